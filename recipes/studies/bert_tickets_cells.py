"""What the study `bert_tickets` reads of its rows: the means of each task, and how each mask does on each task.

A row's tags are `task`, `arm`, `seed`, `level` and `density`, that of the ladder's level. The metric `kept` has what
was counted, which is another where masks stand in a network with other matrices. The ladder of several tasks has rows
of each of them, as the task "NAME of LADDER".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.history import EVAL_PREFIX
from ..run.results import aligned, percent
from .density import DENSE, Mean, dense_of, means, values_of
from .metrics import of_validation
from .statistics import mean_and_deviation
from .table import Row

TICKETS, LATER, SCRATCH, ONE_SHOT, RANDOM = "tickets", "later", "scratch", "one_shot", "random"
FROM = "from "  # before the name of the task on which masks were found


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task's name, the metric by which it is judged, all its metrics, and whether it has validation data."""

    name: str
    metric: str
    metrics: tuple[str, ...]
    validated: bool

    def of_several(self, ladder: str) -> Task:
        """The same task as one of several that are trained at once."""
        own = {metric: metric.replace(EVAL_PREFIX, f"{EVAL_PREFIX}{self.name}/", 1) for metric in self.metrics}
        name = f"{self.name} of {ladder}"
        return Task(name=name, metric=own[self.metric], metrics=tuple(own.values()), validated=False)

    def chosen_by(self, metric: str) -> str | None:
        """The metric by which is chosen what is reported in `metric`; None where there is no other."""
        return of_validation(metric) if self.validated else None

    def means(self, rows: Sequence[Row], metric: str, tolerance: float | None) -> list[Mean]:
        """Those of each arm and density of the task's rows."""
        return means(self.rows(rows), metric, tolerance, self.chosen_by(metric))

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The task's own."""
        return [row for row in rows if row["task"] == self.name]

    def values(self, rows: Sequence[Row], arm: str, density: float = 1.0) -> dict[Any, float]:
        """The metric by seed, or its negative where less is better."""
        return values_of(self.rows(rows), self.metric, arm, density)

    def deviation(self, rows: Sequence[Row]) -> float:
        """That of the dense networks over seeds; NaN of a single one, or where one diverged."""
        values = [*self.values(rows, DENSE).values()]
        return mean_and_deviation(values)[1] if values else math.nan


def transfers(
    rows: Sequence[Row], tasks: Sequence[Task], density: float, tolerance: float | None
) -> list[dict[str, Any]]:
    """A line for each mask of that density on each task that was tried, and for the dense networks."""
    lines = []
    for task in tasks:
        found = task.means(rows, task.metric, tolerance)
        dense = dense_of(found)
        for mean in found:
            if mean is not dense and (percent(mean.density) != percent(density) or mean.arm == LATER):
                continue
            source = task.name if mean.arm == TICKETS else mean.arm.removeprefix(FROM)
            line = {"source": source, "target": task.name, "density": mean.density, "value": mean.value}
            line |= {"deviation": mean.deviation, "seeds": mean.seeds, "matches": mean.matches}
            less = mean.value - dense.value if dense else math.nan
            lines.append({**line, "over_dense": -less if lower_is_better(task.metric) else less})
    order = [DENSE, *(task.name for task in tasks)]
    names = dict.fromkeys(line["source"] for line in lines)
    others = [name for name in names if name not in order and name not in (ONE_SHOT, RANDOM)]
    order += [*others, ONE_SHOT, RANDOM]
    return sorted(lines, key=lambda line: order.index(line["source"]))


def in_words(lines: Sequence[Mapping[str, Any]]) -> str:
    """The matrix as text: a row for each source of masks, a column for each task."""
    targets = dict.fromkeys(line["target"] for line in lines)
    cells = {(line["source"], line["target"]): line for line in lines}
    shown = [["masks of", *targets]]
    for source in dict.fromkeys(line["source"] for line in lines):
        texts = []
        for target in targets:
            line = cells.get((source, target))
            texts.append(f"{'* ' if line['matches'] else ''}{line['value']:.4f}" if line else "not tried")
        shown.append([source, *texts])
    density = next((line["density"] for line in lines if line["source"] != DENSE), 1.0)
    return f"{aligned(shown, left=('masks of',))}\nat {percent(density)} of the weights; * matches the dense network"
