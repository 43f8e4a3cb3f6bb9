"""What the rows of `data_diet` come to: tickets and properties of each start, at each step and of each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from accelerando.algorithms.connectivity.curves import lower_is_better

from .density import DENSE, ROUNDING
from .paths import TREATMENTS, treatments_in
from .pruning import number
from .stability_cells import BARRIER, HESSIAN, Cell
from .statistics import Correlation, spearman
from .table import Row, by_seed

if TYPE_CHECKING:
    from ..run.results import Result

SCORES, ORIGIN, LADDER = "scores", "pretraining", "ladder"  # roles of rows, beside those of stability
INITIAL = "initialization"  # where all starts begin
CONNECTED, MEAN, MIDPOINT = "connected", "example barrier", "midpoint"  # how the names of what is measured begin
PREDICTORS = {
    f"{CONNECTED}/": "connected examples",
    f"{MEAN}/": "mean barrier of the examples",
    f"{BARRIER}/test/error/": "barrier in test error",
    f"{HESSIAN}trace": "trace of the Hessian",
    f"{HESSIAN}largest eigenvalue": "its largest eigenvalue",
}


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """That of a start at a step, of one seed, at the density that is stated.

    `k` is the step in batches. `quality` is the metric, or its negative where less is better; `gap` how much better the
    ticket is than the same seed's dense training from initial weights, on the data by which it is chosen what matches,
    and `tolerance` how much worse it may be to match. `measured` are the properties of the start: means over the pairs
    of its copies.
    """

    start: str
    step: str
    k: int
    seed: int
    quality: float
    gap: float
    tolerance: float
    measured: Mapping[str, float]

    @property
    def matches(self) -> bool | None:
        """Whether it matches the dense network; None if that is not known."""
        return match([self])


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many steps a start needs: more than `above`, and `at_most` so many; None where no bound is known."""

    above: int | None
    at_most: int | None

    def __str__(self) -> str:
        if self.at_most is None:
            return f"> {self.above}"
        return str(self.at_most) if self.above is None else f"{self.above} to {self.at_most}"


def arm_of(start: str, step: str) -> str:
    """The arm of a start's ladder."""
    return start if start == INITIAL else f"{start}, {step}"


def tickets_of(
    rows: Sequence[Row], cells: Iterable[Cell], metric: str, chosen_by: str, level: int, tolerance: float
) -> list[Ticket]:
    """The tickets of a level, in the order of their rows; those whose copies are not measured have no properties."""
    properties = {(cell.arm, cell.seed): cell.measured for cell in cells}
    of_ladders = [row for row in rows if row["role"] == LADDER]
    dense = by_seed((row for row in of_ladders if row["arm"] == DENSE), chosen_by)
    sign, found = -1 if lower_is_better(metric) else 1, []
    for row in (row for row in of_ladders if row["level"] == level):
        gap = sign * (row.metrics.get(chosen_by, math.nan) - dense.get(row["seed"], math.nan))
        found.append(
            Ticket(
                start=row["start"],
                step=row["step"],
                k=row["k"],
                seed=row["seed"],
                quality=sign * row.metrics.get(metric, math.nan),
                gap=gap,
                tolerance=tolerance,
                measured=properties.get((row["arm"], row["seed"]), {}),
            )
        )
    return found


def match(tickets: Sequence[Ticket]) -> bool | None:
    """Whether they match the dense network on average; None if that is not known."""
    above = float(np.mean([ticket.gap + ticket.tolerance for ticket in tickets]))
    return above >= -ROUNDING if math.isfinite(above) else None


def by_place(tickets: Iterable[Ticket]) -> dict[tuple[str, str], dict[int, Ticket]]:
    """Those of each start at each step, by seed."""
    found: dict[tuple[str, str], dict[int, Ticket]] = {}
    for ticket in tickets:
        found.setdefault((ticket.start, ticket.step), {})[ticket.seed] = ticket
    return found


def needed_of(tickets: Sequence[Ticket], start: str) -> dict[int, Needed]:
    """By seed, of those whose ladders are all known: the first of the steps, 0 among them, from which tickets match."""
    steps = {ticket.k for ticket in tickets}
    found = {}
    for seed in dict.fromkeys(ticket.seed for ticket in tickets):
        matches = {t.k: t.matches for t in tickets if t.seed == seed and t.start in (start, INITIAL)}
        if {*matches} != steps or None in matches.values():
            continue
        order = sorted(matches)
        place = next((place for place, k in enumerate(order) if matches[k]), len(order))
        found[seed] = Needed(
            above=order[place - 1] if place else None, at_most=order[place] if place < len(order) else None
        )
    return found


def fewer(a: Needed, b: Needed) -> int | None:
    """1 where `a` is fewer than `b`, -1 where it is more, 0 where it is the same to one of the steps tried.

    None where both are beyond these steps, as which of them is more is not known; and where both are 0, as nothing is
    needed at all.
    """
    if a.at_most == b.at_most and not a.at_most:
        return None
    ends = [math.inf if one.at_most is None else one.at_most for one in (a, b)]
    return int(np.sign(ends[1] - ends[0]))


def examples_of(result: Result, place: int) -> dict[str, float]:
    """Of what a copy has left of the twin of that place: the share of connected ones, in %, and the mean barrier."""
    from .data_diet_measures import EXAMPLES

    barriers = result.found[EXAMPLES][place]["barriers"]
    found = {f"{CONNECTED}/{how}": 100 * number(of["connected"]) for how, of in barriers.items()}
    return found | {f"{MEAN}/{how}": number(of["mean"]) for how, of in barriers.items()}


def midpoint_before(result: Result, level: int) -> dict[str, float]:
    """Of what a ladder has left: how high it is midway from the end of the level before to that of this one.

    Errors are in points.
    """
    from .data_diet_measures import MIDPOINTS

    own = result.found[MIDPOINTS][level - 1]["test"] if level else {}
    return {
        f"{MIDPOINT}/test/{metric}/{how}": (100 if metric == "error" else 1) * number(value)
        for how, metrics in own.items()
        for metric, value in metrics.items()
    }


def treatments_of(tickets: Iterable[Ticket]) -> list[str]:
    """Those of batch norm."""
    return treatments_in(name for ticket in tickets for name in ticket.measured if name.startswith(CONNECTED))


def predictors_in(tickets: Sequence[Ticket]) -> dict[str, str]:
    """Which of the measured properties may predict, by name; their words."""
    names = dict.fromkeys(name for ticket in tickets for name in ticket.measured)
    several, found = len(treatments_of(tickets)) > 1, {}
    for begin, words in PREDICTORS.items():
        for name in (name for name in names if name == begin or (begin.endswith("/") and name.startswith(begin))):
            how = name.removeprefix(begin)
            found[name] = f"{words}, {TREATMENTS[how]}" if how and several else words
    return found


def points_of(tickets: Iterable[Ticket], name: str) -> list[tuple[Ticket, float, float]]:
    """For each start at each step its first ticket, and the means of the property and of the quality.

    They are over the seeds of which both are measured; where one of these is not finite, the point is left out.
    """
    found = []
    for own in by_place(ticket for ticket in tickets if name in ticket.measured).values():
        x, y = (
            float(np.mean(values))
            for values in zip(*((t.measured[name], t.quality) for t in own.values()), strict=True)
        )
        if math.isfinite(x) and math.isfinite(y):
            found.append((next(iter(own.values())), x, y))
    return found


def correlation_of(tickets: Iterable[Ticket], name: str) -> Correlation | None:
    """Spearman's correlation of a property with the tickets' quality, over starts and steps."""
    points = points_of(tickets, name)
    return spearman([x for _, x, _ in points], [y for _, _, y in points])
