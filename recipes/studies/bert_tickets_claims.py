"""What Chen et al. (arXiv:2007.12223) say of BERT's tickets, and the verdicts, each on the metric of the task.

Differences are told in standard deviations of the task's dense networks over seeds, as what matches is within one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..run.results import percent
from .bert_tickets_cells import FROM, LATER, ONE_SHOT, RANDOM, SCRATCH, TICKETS, Task
from .claims import Claim, judge_each, judge_some
from .density import DENSE
from .statistics import LEVEL, Difference, difference
from .table import Row

SOURCE = "arXiv:2007.12223, abstract"
QUOTED = "arXiv:2007.12223, as others quote it"
BEATS = 2.0  # deviations by which theta_0 must beat random weights


def claims_of(
    rows: Sequence[Row], tasks: Sequence[Task], densities: Sequence[float], transfer: float | None, masked_lm: str
) -> Iterator[Claim]:
    """Each at the densities at which there are controls, and those of masks on other tasks at that of `transfer`.

    A task on which theta_0 is not told to be better than random weights tells nothing of tickets of theta_0, so that
    no claim but the first counts it.
    """
    cells = _Cells(rows)
    gains = {task.name: cells.values(task, DENSE, 1.0, SCRATCH) for task in tasks}
    # The test is one-sided: what is asked is whether theta_0 is better.
    counted = [task for task in tasks if difference(gains[task.name]).p_above < LEVEL]
    begins, sources = _theta_is_better(gains, [task.name for task in counted]), [task.name for task in tasks]
    yield begins
    told = counted and begins.verdict == "holds"
    lacking = "" if told else "it is not told that theta_0 is better than random weights"
    tasks = counted or tasks
    for density in densities:
        at = f"at {percent(1 - density)} of sparsity"
        yield _matches(cells, tasks, density, at, lacking)
        if found := cells.over(tasks, TICKETS, density, LATER, density):
            claim = f"No later rewinding is needed {at}: tickets are not better by a deviation for it."
            yield judge_each(claim, SOURCE, found, at_least=-1, precondition=lacking)
        for control, words in ((RANDOM, "random weights"), (ONE_SHOT, "weights of theta_0 of greatest magnitude")):
            if found := cells.over(tasks, TICKETS, density, control, density):
                claim = f"Tickets are better than as many {words} {at}."
                yield judge_each(claim, QUOTED, found, precondition=lacking)
    if transfer is not None:
        at = f"at {percent(1 - transfer)} of sparsity"
        yield from _of_masks(cells, sources, tasks, transfer, masked_lm, at, lacking)


class _Cells:
    """Differences between two networks of a task, in deviations of its dense networks, which are taken as they are."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def values(
        self, task: Task, arm: str, density: float, other: str = DENSE, other_density: float = 1.0
    ) -> list[float]:
        """By how much the arm is better than the other one, of each seed that both have."""
        a, b = task.values(self.rows, arm, density), task.values(self.rows, other, other_density)
        deviation = task.deviation(self.rows)
        seeds = [seed for seed in a if seed in b and math.isfinite(a[seed]) and math.isfinite(b[seed])]
        return [(a[seed] - b[seed]) / deviation for seed in seeds] if deviation > 0 else []

    def over(self, tasks: Sequence[Task], *networks: Any) -> dict[str, Difference]:
        """The mean of the values of each task that has some."""
        found = {task.name: difference(self.values(task, *networks)) for task in tasks}
        return {name: one for name, one in found.items() if one.pairs}


def _theta_is_better(gains: Mapping[str, Sequence[float]], counted: Sequence[str]) -> Claim:
    """By how many deviations theta_0 is better in each task, of which the `counted` ones tell of tickets."""
    more = {name: [difference([one - BEATS for one in own])] for name, own in gains.items() if own}
    claim = "Theta_0 is better than random initial weights by more than two deviations on a task (the precondition)."
    judged = judge_some(claim, SOURCE, more)
    means = ", ".join(f"{name} {sum(own) / len(own):+.2f}" for name, own in gains.items() if own)
    idle = [name for name in gains if name not in counted]
    measured = f"better by {means} deviations; less two: {judged.measured}" if means else "nothing"
    left_out = f"; not told to be better on {', '.join(idle)}, not counted below" if idle and means else ""
    return replace(judged, measured=measured + left_out)


def _matches(cells: _Cells, tasks: Sequence[Task], density: float, at: str, lacking: str) -> Claim:
    """A task does not count where as many random weights are not told from the tickets: it asks nothing of them."""
    found, random = cells.over(tasks, TICKETS, density), cells.over(tasks, TICKETS, density, RANDOM, density)
    counted, others = dict[str, Difference](), list[str]()
    for name, one in found.items():
        if name in random and random[name].is_told and random[name].mean > 0:
            counted[name] = one
        else:
            why = "not told from random weights" if name in random else "as many random weights were not tried"
            others.append(f"{name} {one} (not counted: {why})")
    lacking = lacking or ("" if counted else "none of the tasks counts")
    claim = f"Tickets that are rewound to theta_0 match the dense network {at}."
    judged = judge_each(claim, SOURCE, counted, at_least=-1, precondition=lacking)
    return replace(judged, measured="; ".join([*([judged.measured] if counted else []), *others]) or "nothing")


def _of_masks(
    cells: _Cells, sources: Sequence[str], tasks: Sequence[Task], density: float, masked_lm: str, at: str, lacking: str
) -> Iterator[Claim]:
    """Masked LM's masks match everywhere; those of each other task fail to match somewhere."""
    for source in sources:
        others = [task for task in tasks if task.name != source]
        values = {task.name: cells.values(task, f"{FROM}{source}", density) for task in others}
        values = {name: own for name, own in values.items() if own}
        if not values:
            continue
        if source == masked_lm:
            claim = f"Masks that were found by masked language modelling match on all other tasks {at}."
            found = {name: difference(own) for name, own in values.items()}
            yield judge_each(claim, SOURCE, found, at_least=-1, precondition=lacking)
        else:
            claim = f"Masks that were found on {source} do not match on all other tasks {at}."
            short = {name: [difference([-1 - one for one in own])] for name, own in values.items()}
            judged = judge_some(claim, SOURCE, short, precondition=lacking)
            means = ", ".join(f"{name} {sum(own) / len(own):+.2f}" for name, own in values.items())
            yield replace(
                judged, measured=f"over the dense network {means} deviations; short of one: {judged.measured}"
            )
