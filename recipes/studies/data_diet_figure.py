"""The figure of `data_diet`: ladders by start, tickets over the steps of pre-training and over connected examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.figures import COLOURS, house_look
from ..run.results import label, percent
from .data_diet_cells import CONNECTED, INITIAL, Ticket, arm_of, by_place, points_of, treatments_of
from .density import Mean, by_arm, dense_of
from .density_figure import LEAVES, MARKS, exits, heights, mark_edge, over_density
from .paths import TREATMENTS
from .plotting import MARKERS, draw_deviation, legend_below
from .statistics import mean_and_deviation

ACROSS = 4  # panels in a single row
Looks = Mapping[str, Mapping[str, Any]]


def draw(
    means: Sequence[Mean], tickets: Sequence[Ticket], starts: Sequence[str], metric: str, density: float, title: str
) -> Figure:
    """Means over seeds and their standard deviations; a ladder for each start in a panel for each step."""
    steps = {t.step: t.k for t in sorted(tickets, key=lambda t: t.k) if t.start != INITIAL}
    treatments, sign = treatments_of(tickets), -1 if lower_is_better(metric) else 1
    count = len(steps) + 1 + len(treatments)
    columns = count if count <= ACROSS else 3
    rows = -(-count // columns)
    figure = Figure(figsize=(1 + 3.2 * columns, 0.9 + 3.1 * rows), dpi=150, layout="constrained")
    figure.suptitle(title)
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    looks = {INITIAL: {"color": "0.5", "marker": "x"}}
    looks |= {
        start: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, start in enumerate(starts)
    }
    bottom, top = heights(means, sign)
    named = f"evaluation {label(metric)}"
    left = False
    for step in steps:
        axes = next(panels)
        left |= _ladders(axes, means, step, looks, bottom, sign)
        axes.set(title=f"from step {step}", xlabel="weights remaining (%)", ylabel=named)
        axes.set_ylim(sign * bottom, sign * top)  # better is above
    axes = next(panels)
    _over_steps(axes, tickets, {"0ba": 0, **steps}, looks, sign)
    if dense := dense_of(means):
        axes.axhline(dense.value, color="0.3", lw=1.2, ls=(0, (6, 3)))
    axes.set(title=f"tickets with {percent(density)}", xlabel="step k", ylabel=named)
    for how in treatments:
        axes = next(panels)
        for ticket, x, y in points_of(tickets, f"{CONNECTED}/{how}"):
            axes.plot([x], [sign * y], ls="", ms=6, **looks[ticket.start])
            axes.annotate(ticket.step.removesuffix("ba"), (x, sign * y), (4, 3), textcoords="offset points", fontsize=7)
        axes.set(xlabel="connected examples (%)", ylabel=named)
        axes.set_title(f"tickets with {percent(density)}{f', {TREATMENTS[how]}' if len(treatments) > 1 else ''}")
    for axes in panels:
        axes.set_visible(False)
    for axes in figure.axes:
        axes.title.set_fontsize("medium")
        house_look(axes)
    legend_below(figure, figure.axes[0], 5, **({LEAVES: Line2D([], [], **MARKS[LEAVES])} if left else {}))
    return figure


def _ladders(axes: Axes, means: Sequence[Mean], step: str, looks: Looks, bottom: float, sign: int) -> bool:
    """Those that begin at the step, and at initialization; returns whether one leaves, as in `density_figure`."""
    arms, dense, left = by_arm(means), dense_of(means), False
    for start, look in looks.items():
        if own := arms.get(arm_of(start, step)):
            x, y, deviation = np.array([(100 * mean.density, mean.value, mean.deviation) for mean in own]).T
            axes.plot(x, y, label=start, ms=4, lw=1.4, **look)
            draw_deviation(axes, x, y, deviation, look["color"])
            mark_edge(axes, LEAVES, places := exits(x, sign * y, bottom), look["color"])
            left |= bool(places)
    if dense:
        axes.axhline(dense.value, color="0.3", lw=1.2, ls=(0, (6, 3)), label="dense network")
    over_density(axes, (mean.density for mean in means))
    return left


def _over_steps(axes: Axes, tickets: Sequence[Ticket], steps: Mapping[str, int], looks: Looks, sign: int) -> None:
    """A line for each start, which begins at initialization; the axis is logarithmic, but begins at 0."""
    places = by_place(tickets)
    for start in [one for one in looks if one != INITIAL]:
        found = {k: places.get((start, step)) or places.get((INITIAL, step)) for step, k in steps.items()}
        told = {k: [sign * ticket.quality for ticket in own.values()] for k, own in found.items() if own}
        mean, deviation = np.array([mean_and_deviation(values) for values in told.values()]).T
        axes.errorbar([*told], mean, np.nan_to_num(deviation), ms=4, lw=1.4, capsize=2, **looks[start])
    axes.set_xscale("symlog", linthresh=min(k for k in steps.values() if k))
    axes.set_xticks([*steps.values()], [step.removesuffix("ba") for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
