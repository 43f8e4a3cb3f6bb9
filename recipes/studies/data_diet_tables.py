"""The summaries of `data_diet` as lines, and its tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.results import aligned, label, percent
from .data_diet_cells import (
    CONNECTED,
    INITIAL,
    LADDER,
    MIDPOINT,
    Ticket,
    by_place,
    correlation_of,
    match,
    needed_of,
    predictors_in,
)
from .paths import TREATMENTS, treatments_in
from .stability_cells import HESSIAN
from .statistics import mean_and_deviation
from .table import Row, groups


def lines_of_starts(tickets: Sequence[Ticket]) -> list[dict[str, Any]]:
    """A line for each start at each step: means and sample deviations over seeds."""
    lines = []
    names = dict.fromkeys(name for ticket in tickets for name in ticket.measured if not name.startswith("path/"))
    for (start, step), own in by_place(tickets).items():
        first, *_ = seeds = [*own.values()]
        line: dict[str, Any] = {"start": start, "step": step, "k": first.k, "seeds": len(seeds)}
        columns = {"quality": [t.quality for t in seeds], "gap": [t.gap for t in seeds]}
        columns |= {name: [t.measured.get(name, math.nan) for t in seeds] for name in names}
        for name, values in columns.items():
            line[name], line[f"{name}, deviation"] = mean_and_deviation(values)
        lines.append({**line, "matching": sum(bool(t.matches) for t in seeds)})
    return lines


def lines_of_needed(tickets: Sequence[Ticket], starts: Iterable[str]) -> list[dict[str, Any]]:
    """A line for each start and seed; an empty `at_most` is more than all steps that were tried."""
    found = {start: needed_of(tickets, start) for start in starts}
    return [
        {"start": start, "seed": seed, "above": needed.above, "at_most": needed.at_most}
        for start, seeds in found.items()
        for seed, needed in seeds.items()
    ]


def lines_of_predictors(tickets: Sequence[Ticket]) -> list[dict[str, Any]]:
    """A line for each property that has a correlation with the tickets' quality."""
    found = {name: correlation_of(tickets, name) for name in predictors_in(tickets)}
    return [{"property": name, **vars(one)} for name, one in found.items() if one]


def lines_of_midpoints(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A line for each level but the first of each ladder: means over seeds."""
    lines = []
    for (arm, level), own in groups((row for row in rows if row["role"] == LADDER), "arm", "level").items():
        names = [name for name in own[0].metrics if name.startswith(MIDPOINT)]
        means = {name: float(np.mean([row.metrics.get(name, math.nan) for row in own])) for name in names}
        lines += [{"arm": arm, "level": level, "density": own[0]["density"], **means}] if names else []
    return lines


NO_START = "nothing begins there; at 0ba all starts are one"


def table(tickets: Sequence[Ticket], rows: Sequence[Row], metric: str, density: float, starts: Sequence[str]) -> str:
    """Tickets and connected examples by start and step, steps needed, what predicts, and successive levels."""
    sign, places = -1 if lower_is_better(metric) else 1, by_place(tickets)
    steps = [step for _, step in sorted({(ticket.k, ticket.step) for ticket in tickets})]
    shown = [INITIAL, *starts]

    def by_step(title: str, value: Any, digits: int, marked: bool = False) -> str:
        lines = [["start", *steps]]
        for start in shown:
            cells = [[*places.get((start, step), {}).values()] for step in steps]
            values = [[one for one in map(value, own) if one is not None] for own in cells]
            told = zip(values, cells if marked else [[]] * len(cells), strict=True)
            lines.append([start, *(_cell(*each, digits) for each in told)])
        return f"{title}\n{aligned(lines, left=('start',), blank=NO_START)}"

    parts = [by_step(f"{label(metric)} of tickets with {percent(density)}", lambda t: sign * t.quality, 4, True)]
    for name, words in predictors_in(tickets).items():
        unit = " (%)" if name.startswith(CONNECTED) else ""
        digits = 1 if name.startswith((CONNECTED, HESSIAN)) else 2
        parts.append(by_step(f"{words}{unit}", lambda t, name=name: t.measured.get(name), digits))
    seeds = [*dict.fromkeys(ticket.seed for ticket in tickets)]
    lines = [["start", *(f"seed {seed}" for seed in seeds)]]
    for start in starts:
        found = needed_of(tickets, start)
        lines.append([start, *(str(found.get(seed, "")) for seed in seeds)])
    parts.append(
        f"batches until tickets with {percent(density)} match\n{aligned(lines, left=('start',), blank='at no step')}"
    )
    lines = [["property", "correlation", "95 %", "points"]]
    for name, words in predictors_in(tickets).items():
        if found := correlation_of(tickets, name):
            lines.append([words, f"{found.value:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", str(found.points)])
    if lines[1:]:
        title = "Spearman's correlation with the tickets' quality, over starts and steps"
        parts.append(f"{title}\n{aligned(lines, left=('property', '95 %'))}")
    midpoints = lines_of_midpoints(rows)
    for how in treatments_in(name for line in midpoints for name in line if name.startswith(MIDPOINT)):
        levels = sorted({line["level"] for line in midpoints})
        lines = [["ladder", *(f"{level - 1}-{level}" for level in levels)]]
        for arm in dict.fromkeys(line["arm"] for line in midpoints):
            its = [line for line in midpoints if line["arm"] == arm]
            own = {line["level"]: line.get(f"{MIDPOINT}/test/error/{how}", math.nan) for line in its}
            lines.append([arm, *(f"{own[level]:.2f}" if level in own else "" for level in levels)])
        title = f"test error midway between successive levels less that of their ends, in points, {TREATMENTS[how]}"
        parts.append(f"{title}\n{aligned(lines, left=('ladder',), blank='not measured')}")
    over = f"means ± standard deviations over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return "\n\n".join([*parts, f"{over}; * matches the dense network on average"])


def _cell(values: Sequence[float], marked: Sequence[Ticket], digits: int) -> str:
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    star = "* " if marked and match(marked) else ""
    told = f" ± {deviation:.{digits}f}" if math.isfinite(deviation) else ""
    return f"{star}{mean:.{digits}f}{told}" if math.isfinite(mean) else "not finite"
