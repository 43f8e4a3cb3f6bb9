"""The figure of `stability`: barriers over the step and over density, what networks are worth, errors on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..run.figures import COLOURS, house_look
from ..run.results import label
from .density import DENSE
from .density_figure import DASHES, over_density
from .paths import TREATMENTS
from .plotting import draw_deviation, legend_below
from .stability_cells import PAIR, TICKETS, Cell, by_place, match_on_average, treatments_of
from .statistics import mean_and_deviation
from .table import Row

ARM_COLOURS = {
    DENSE: "0.2",
    TICKETS: COLOURS[0],
    "random": COLOURS[1],
    "reinitialize": COLOURS[2],
    "shuffle": COLOURS[3],
}
Steps = Mapping[str, int]  # in batches


def draw(cells: Sequence[Cell], rows: Sequence[Row], metric: str, stable_below: float, title: str) -> Figure:
    """Means over seeds and their standard deviations; a pruned network that matches has a full marker."""
    steps: Steps = {cell.step: cell.k for cell in sorted(cells, key=lambda cell: cell.k)}
    treatments, pruned = treatments_of(cells), any(cell.arm == TICKETS for cell in cells)
    count = len(treatments) + 2 + 2 * pruned
    columns = 3 if count > 4 else 2
    figure = Figure(figsize=(2 + 3.6 * columns, 0.6 + 3.1 * -(-count // columns)), dpi=150, layout="constrained")
    figure.suptitle(title)
    panels = iter(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    first = None
    for how in treatments:
        axes = next(panels)
        first = first or axes
        named = f", {TREATMENTS[how]}" if len(treatments) > 1 else ""
        _over_steps(axes, cells, steps, lambda cell, how=how: cell.barrier(how))
        of_barriers(axes, stable_below)
        axes.set_title(f"stable below the dotted line{named}")
    axes = next(panels)
    _over_steps(axes, cells, steps, lambda cell: cell.value)
    axes.set(title="at the ends", ylabel=f"evaluation {label(metric)}")
    if pruned:
        axes = next(panels)
        _over_densities(axes, cells, steps, treatments[0])
        of_barriers(axes, stable_below)
        axes.set(title="tickets, by step", xlabel="weights remaining (%)")
    sparsest = min((cell.density for cell in cells if cell.arm == TICKETS), default=1.0)
    for arm, density in ((DENSE, 1.0), (TICKETS, sparsest))[: 1 + pruned]:
        axes = next(panels)
        _along_paths(axes, [row for row in rows if row["role"] == PAIR and row["arm"] == arm], density, steps)
        named = "dense network" if arm == DENSE else f"tickets with {100 * density:.3g} %"
        axes.set(title=f"from copy to copy: {named}", xlabel="place on the path", ylabel="test error (points)")
        axes.legend(title="step", frameon=False, fontsize="x-small", title_fontsize="x-small")
    for axes in panels:
        axes.set_visible(False)
    for axes in figure.axes:
        axes.title.set_fontsize("medium")
        house_look(axes)
    if first:
        legend_below(figure, first, 4)
    return figure


def of_barriers(axes: Axes, stable_below: float) -> None:
    """Linear below twice the threshold of stability, above it logarithmic: some barriers are as high as they can be."""
    top = max(axes.dataLim.y1, 2 * stable_below)
    axes.axhline(stable_below, color="0.5", lw=1, ls=":")
    axes.set_yscale("symlog", linthresh=2 * stable_below)
    ticks = [share * stable_below for share in (0, 0.5, 1, 1.5, 2, 5, 10, 20, 50)]
    axes.set_yticks([tick for tick in ticks if tick <= 1.1 * top])
    axes.yaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    axes.set(ylim=(0, 1.1 * top), ylabel="barrier in test error (points)")


def _over_steps(axes: Axes, cells: Sequence[Cell], steps: Steps, value: Any) -> None:
    """A line for each network; the axis is logarithmic, but begins at 0."""
    networks: dict[tuple[str, str], dict[int, list[Cell]]] = {}
    for (arm, density, _), own in by_place(cells).items():
        networks.setdefault((arm, density), {})[own[0].k] = own
    densities = list(dict.fromkeys(density for arm, density in networks if arm != DENSE))
    for (arm, density), by_k in networks.items():
        x = np.array(sorted(by_k))
        mean, deviation = np.array([mean_and_deviation([value(cell) for cell in by_k[k]]) for k in x]).T
        dashes = "-" if arm == DENSE else DASHES[densities.index(density) % len(DASHES)]
        look: dict[str, Any] = {"color": ARM_COLOURS[arm], "ls": dashes, "lw": 1.5}
        axes.plot(x, mean, label=arm if arm == DENSE else f"{arm}, {density}", **look)
        draw_deviation(axes, x, mean, deviation, ARM_COLOURS[arm])
        for k, height in zip(x, mean, strict=True):
            matches = arm == DENSE or match_on_average(by_k[k])
            axes.plot(
                [k], [height], marker="o", ms=4, color=ARM_COLOURS[arm], mfc=None if matches else "white", clip_on=False
            )
    positive = [k for k in steps.values() if k > 0]
    axes.set_xscale("symlog", linthresh=min(positive, default=1))
    axes.set_xticks([*steps.values()], [*steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step k from which copies are trained")


def _over_densities(axes: Axes, cells: Sequence[Cell], steps: Steps, how: str) -> None:
    """Tickets and, at the left, the dense network."""
    shown = [cell for cell in cells if cell.arm in (DENSE, TICKETS)]
    for step, colour in _colours(steps).items():
        own = sorted((c for (_, _, at), c in by_place(shown).items() if at == step), key=lambda c: -c[0].density)
        x = [100 * float(np.mean([cell.density for cell in seeds])) for seeds in own]
        y = [float(np.mean([cell.barrier(how) for cell in seeds])) for seeds in own]
        axes.plot(x, y, marker="o", ms=4, color=colour, label=step)
    over_density(axes, (cell.density for cell in shown))
    axes.legend(title="step", frameon=False, fontsize="x-small", title_fontsize="x-small")


def _along_paths(axes: Axes, rows: Sequence[Row], density: float, steps: Steps) -> None:
    """The mean over pairs and seeds, with statistics interpolated."""
    for step, colour in _colours(steps).items():
        curves = [
            [value for name, value in row.metrics.items() if name.startswith("path/interpolate/")]
            for row in rows
            if row["step"] == step and math.isclose(row["density"], density, rel_tol=1e-2)
        ]
        if curves:
            mean = np.mean(np.array(curves), axis=0)
            axes.plot(np.linspace(0, 1, len(mean)), mean, color=colour, label=step)


def _colours(steps: Steps) -> dict[str, Any]:
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(steps)))
    return dict(zip(steps, shades, strict=True))
