"""What the rows of `stability` come to: a cell for each network, dense or pruned, at a step, for each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.results import aligned, label, percent
from .density import DENSE, ROUNDING
from .paths import TREATMENTS, treatments_in
from .pruning import number
from .statistics import mean_and_deviation
from .table import Row, groups

TICKETS, COPY, PAIR = "tickets", "copy", "pair"
BARRIER, HESSIAN = "barrier", "hessian/"  # how the names of what is measured begin
Place = tuple[str, str, str]  # an arm, a density as text, a step


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The copies of one network, of one seed, from one step on.

    `k` is the step in batches, `share` that of T. `value` is the mean of the metric over copies; `gap` how much better
    that is than the mean of this seed's dense trainings, and `tolerance` how much worse it may be to match. `measured`
    are means over the pairs of copies, and over copies of what was measured of each Hessian.
    """

    arm: str
    density: float
    step: str
    k: int
    share: float
    seed: int
    value: float
    gap: float
    tolerance: float
    measured: Mapping[str, float]

    @property
    def place(self) -> Place:
        return self.arm, percent(self.density), self.step

    def barrier(self, how: str) -> float:
        """In test error, in points."""
        return self.measured.get(f"{BARRIER}/test/error/{how}", math.nan)

    def matches(self, times: float = 1.0) -> bool:
        """Whether it is worse than the dense network by so many times the tolerance at most."""
        return self.gap >= -times * self.tolerance - ROUNDING

    def is_told(self, how: str) -> bool:
        """Whether nothing in it has diverged, and the tolerance is known."""
        return all(map(math.isfinite, (self.barrier(how), self.gap, self.tolerance)))


def cells_of(rows: Sequence[Row], metric: str, tolerance: float | None) -> list[Cell]:
    """The cells, by the order of their rows; those without a path are left out."""
    sign = -1 if lower_is_better(metric) else 1
    dense: dict[int, list[float]] = {}
    for row in rows:
        if row["arm"] == DENSE and row["role"] != PAIR:
            dense.setdefault(row["seed"], []).append(row.metrics.get(metric, math.nan))
    reference = {seed: float(np.mean(values)) for seed, values in dense.items()}
    margin = mean_and_deviation([*reference.values()])[1] if tolerance is None and reference else tolerance
    found = []
    for (arm, seed, step, _), own in groups(rows, "arm", "seed", "step", "level").items():
        copies, pairs = ([row for row in own if row["role"] == role] for role in (COPY, PAIR))
        if not (copies and pairs):
            continue
        value = float(np.mean([row.metrics.get(metric, math.nan) for row in copies]))
        found.append(
            Cell(
                arm=arm,
                density=copies[0]["density"],
                step=step,
                k=copies[0]["k"],
                share=copies[0]["share"],
                seed=seed,
                value=value,
                gap=sign * (value - reference.get(seed, math.nan)),
                tolerance=math.nan if margin is None else margin,
                measured=_measured(pairs) | _measured(copies, HESSIAN),
            )
        )
    return found


def _measured(rows: Sequence[Row], prefix: str = "") -> dict[str, float]:
    names = [name for name in rows[0].metrics if name.startswith(prefix)]
    return {name: float(np.mean([row.metrics.get(name, math.nan) for row in rows])) for name in names}


def metrics_of_path(path: Mapping[str, Any]) -> dict[str, float]:
    """Of what a copy has left of a path: barriers, of errors in points, for data, metric and treatment of batch norm.

    Also the L2 distance of the ends, their disagreement in points, and the test error at each point.
    """
    from accelerando.algorithms.connectivity import barrier

    found: dict[str, float] = {}
    for data, treatments in path["curves"].items():
        for how, curves in treatments.items():
            for metric, values in curves.items():
                unit = 100 if metric == "error" else 1
                found[f"{BARRIER}/{data}/{metric}/{how}"] = unit * barrier([number(value) for value in values])
    found |= {"distance": number(path["distance"]), "disagreement": 100 * number(path["disagreement"])}
    for how, curves in path["curves"]["test"].items():
        found |= {f"path/{how}/{i:02}": 100 * number(value) for i, value in enumerate(curves["error"])}
    return found


def treatments_of(cells: Iterable[Cell]) -> list[str]:
    """Those of batch norm; of networks without it there is one."""
    return treatments_in(name for cell in cells for name in cell.measured if name.startswith(BARRIER))


def by_place(cells: Iterable[Cell]) -> dict[Place, list[Cell]]:
    """The cells of all seeds of each network at each step."""
    found: dict[Place, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.place, []).append(cell)
    return found


def means_of(cells: Sequence[Cell], stable_below: float) -> list[dict[str, Any]]:
    """A line for each network at each step: means and sample deviations over seeds, and how many match, are stable."""
    lines = []
    names = dict.fromkeys(name for cell in cells for name in cell.measured if not name.startswith("path/"))
    treatments = treatments_of(cells)
    for own in by_place(cells).values():
        line: dict[str, Any] = {name: getattr(own[0], name) for name in ("arm", "density", "step", "k", "share")}
        line["seeds"] = len(own)
        columns = {"value": [cell.value for cell in own], "gap": [cell.gap for cell in own]}
        columns |= {name: [cell.measured.get(name, math.nan) for cell in own] for name in names}
        for name, values in columns.items():
            line[name], line[f"{name}, deviation"] = mean_and_deviation(values)
        line["matching"] = sum(cell.matches() for cell in own)
        for how in treatments:
            line[f"stable/{how}"] = sum(cell.barrier(how) < stable_below for cell in own)
        lines.append(line)
    return lines


NOT_TRAINED = "no copies of it at this step"


def table(cells: Sequence[Cell], metric: str, stable_below: float) -> str:
    """Barriers by network and step, each with the metric; and how often what is pruned matches and is stable."""
    if not cells:
        return "no path is measured yet"
    places, treatments = by_place(cells), treatments_of(cells)
    steps = list(dict.fromkeys(step for _, _, step in sorted(places, key=lambda place: places[place][0].k)))
    networks = list(dict.fromkeys(place[:2] for place in places))
    parts = []
    for how in treatments:
        lines = [["network", "weights", *steps]]
        for network in networks:
            lines.append([*network, *(_cell(places.get((*network, step), []), how, stable_below) for step in steps)])
        named = f", {TREATMENTS[how]}" if len(treatments) > 1 else ""
        parts.append(f"barrier in test error, in points{named}\n{aligned(lines, left=('network',), blank=NOT_TRAINED)}")
    lines = [["network", "weights", *steps]]
    for network in networks:
        lines.append([*network, *(_value(places.get((*network, step), [])) for step in steps)])
    parts.append(f"{label(metric)}\n{aligned(lines, left=('network',), blank=NOT_TRAINED)}")
    seeds = len({cell.seed for cell in cells})
    over = f"means ± standard deviations over {seeds} seeds" if seeds > 1 else "one seed"
    parts.append(
        f"by step; {over}\n~ stable: below {stable_below:g} points on average; "
        f"* matches: within {cells[0].tolerance:.4f} of the dense trainings, or better, on average"
    )
    for how in treatments:
        named = f" ({TREATMENTS[how]})" if len(treatments) > 1 else ""
        counts = counts_of([cell for cell in cells if cell.arm != DENSE and cell.is_told(how)], how, stable_below)
        lines = [["", "stable", "not stable"], ["matching", *map(str, counts[0])], ["not", *map(str, counts[1])]]
        parts.append(f"pruned networks, by seed{named}\n{aligned(lines, left=('',))}")
    return "\n\n".join(parts)


def counts_of(cells: Iterable[Cell], how: str, stable_below: float, times: float = 1.0) -> list[list[int]]:
    """How many cells match and do not (rows), and are stable and not (columns)."""
    counts = [[0, 0], [0, 0]]
    for cell in cells:
        counts[not cell.matches(times)][cell.barrier(how) >= stable_below] += 1
    return counts


def match_on_average(cells: Sequence[Cell]) -> bool:
    """Whether the cells of all seeds of a network match in the mean."""
    return float(np.mean([cell.gap for cell in cells])) >= -cells[0].tolerance - ROUNDING


def _cell(cells: Sequence[Cell], how: str, stable_below: float) -> str:
    if not cells:
        return ""
    mean, deviation = mean_and_deviation([cell.barrier(how) for cell in cells])
    return f"{'~ ' if mean < stable_below else ''}{_text(mean, deviation, 2)}"


def _value(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    mean, deviation = mean_and_deviation([cell.value for cell in cells])
    matches = cells[0].arm != DENSE and match_on_average(cells)
    return f"{'* ' if matches else ''}{_text(mean, deviation, 4)}"


def _text(mean: float, deviation: float, digits: int) -> str:
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if math.isfinite(deviation) else "")
