"""The figure of `landscape`: barriers over density, the planes of the first seed, what the Hessians' diagonals hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from accelerando.algorithms.examples.distillation import DistilledSet

from ..run.distilled_set import draw_images
from ..run.figures import COLOURS, house_look
from ..run.results import label, percent
from .density import DENSE
from .density_figure import DASHES, over_density
from .landscape_cells import LARGEST, MEAN, Found
from .paths import TREATMENTS
from .plotting import legend_below
from .stability_cells import HESSIAN, Cell, by_place, treatments_of
from .stability_figure import ARM_COLOURS, of_barriers
from .statistics import mean_and_deviation

ACROSS = 4  # panels in a row


def draw(
    cells: Sequence[Cell],
    planes: Sequence[Found],
    diagonals: Sequence[Mapping[str, Any]],
    metric: str,
    stable_below: float,
    title: str,
    sets: Mapping[str, DistilledSet],
) -> Figure:
    """Means over seeds and their standard deviations; planes, Hessians and distilled `sets`, if there are some."""
    shown = [found for found in planes if found[0]["seed"] == planes[0][0]["seed"]]
    curved = any(name.startswith(HESSIAN) for cell in cells for name in cell.measured)
    colours, rows = _colours(cells), -(-len(shown) // ACROSS)
    heights = [height for height in (3.3, 3.0 * rows, 3.3 * curved, 3.3 * bool(sets)) if height]
    figure = Figure(figsize=(13, 0.8 + sum(heights)), dpi=150, layout="constrained")
    figure.suptitle(title)
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    top = next(parts)
    treatments = treatments_of(cells)
    first, *others = top.subplots(1, len(treatments) + 1)
    for axes, how in zip((first, *others), treatments, strict=False):
        _over_density(axes, cells, colours, lambda cell, how=how: cell.barrier(how))
        of_barriers(axes, stable_below)
        axes.set_title(f"stable below the dotted line{f', {TREATMENTS[how]}' if len(treatments) > 1 else ''}")
    _over_density(others[-1], cells, colours, lambda cell: cell.value)
    others[-1].set(title="at the ends", ylabel=f"evaluation {label(metric)}")
    if shown:
        _planes(next(parts), shown, rows)
    if curved:
        left, middle, right = next(parts).subplots(1, 3, width_ratios=(2, 1, 1))
        _diagonals(left, diagonals, colours)
        middle.set_title("trace of the Hessian by weight")
        right.set_title("its largest eigenvalue")
        for axes, name in ((middle, MEAN), (right, LARGEST)):
            _over_density(axes, cells, colours, lambda cell, name=name: cell.measured.get(name, math.nan))
            axes.set_ylabel("in units of the loss")
    if sets:
        panels = next(parts).subplots(1, len(sets), squeeze=False).flat
        for axes, (name, own) in zip(panels, sets.items(), strict=True):
            draw_images(axes, own.images, own.labels)
            axes.set_title(f"distilled images, {name}")
    for axes in figure.get_axes():
        axes.title.set_fontsize("medium")
    legend_below(figure, first, 5)
    return figure


def _colours(cells: Sequence[Cell]) -> dict[str, Any]:
    arms = dict.fromkeys(cell.arm for cell in cells)
    more = iter(COLOURS[4:] * len(arms))
    return {arm: ARM_COLOURS[arm] if arm in ARM_COLOURS else next(more) for arm in arms}


def _over_density(axes: Axes, cells: Sequence[Cell], colours: Mapping[str, Any], value: Any) -> None:
    """A line for each kind of network, which begins at the dense one."""
    places = by_place(cells)
    whole = [own for (arm, _, _), own in places.items() if arm == DENSE]
    for arm, colour in colours.items():
        own = sorted((found for (of, _, _), found in places.items() if of == arm), key=lambda of: -of[0].density)
        lines = own if arm == DENSE else [*whole, *own]
        x = [100 * float(np.mean([cell.density for cell in seeds])) for seeds in lines]
        y, error = np.array([mean_and_deviation([value(cell) for cell in seeds]) for seeds in lines]).T
        axes.plot(x, y, color=colour, lw=1.3)
        first, error = (0 if arm == DENSE else len(whole)), np.nan_to_num(error)
        points: Any = (x[first:], y[first:], error[first:])
        axes.errorbar(*points, label=arm, color=colour, ls="", marker="o", ms=4, capsize=2, zorder=3)
    over_density(axes, (cell.density for cell in cells))
    axes.set_xlabel("weights remaining (%)")


def _planes(part: Any, planes: Sequence[Found], rows: int) -> None:
    """The error in the planes, all by the same colours, and where the copies are, or to what they are next."""
    columns = min(len(planes), ACROSS)
    grid = part.subplots(rows, columns, squeeze=False)
    errors = [100 * np.array(plane["grid"]["error"], dtype=float) for _, plane in planes]
    finite = np.concatenate([error[np.isfinite(error)] for error in errors])
    levels = MaxNLocator(20).tick_values(finite.min(), max(finite.max(), finite.min() + 1))
    for axes, (row, plane), error in zip(grid.flat, planes, errors, strict=False):
        drawn = axes.contourf(plane["x"], plane["y"], np.ma.masked_invalid(error), levels, cmap="viridis_r")
        x, y = np.array(plane["coordinates"]).T
        axes.plot(x, y, ls="", marker="o", ms=5, color="white", mec="black")
        axes.set(title=f"{row['arm']}, {percent(row['density'])}", aspect="equal", facecolor="0.8")
        if axes is grid[0, -1]:
            part.colorbar(drawn, ax=grid, label=f"test error (points), seed {row['seed']}", format="{x:g}")
    for axes in [*grid.flat][len(planes) :]:
        axes.set_visible(False)
    part.supxlabel("L2 distance in the plane of the copies", fontsize="medium")


def _diagonals(axes: Axes, lines: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    """A step line for each network, whose dashes tell densities of one kind apart."""
    networks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        networks.setdefault((line["arm"], percent(line["density"])), []).append(line)
    held = [line for line in lines if line["share"]]
    for (arm, density), own in networks.items():
        place = [of for kind, of in networks if kind == arm].index(density)
        edges = [*(line["low"] for line in own), own[-1]["high"]]
        shares = [100 * line["share"] for line in own]
        look: dict[str, Any] = {"color": colours[arm], "ls": DASHES[place % len(DASHES)], "lw": 1.3}
        axes.stairs(shares, edges, label=arm if arm == DENSE else f"{arm}, {density}", **look)
    smallest = min(abs(line["low"]) for line in lines)
    reach = max(abs(line[end]) for line in held for end in ("low", "high"))
    axes.set_xscale("symlog", linthresh=smallest)
    axes.set_xlim(min(line["low"] for line in held), max(line["high"] for line in held))
    tens = [10.0**power for power in range(-5, math.floor(math.log10(reach)) + 1, 2)]
    axes.set_xticks([*(-ten for ten in reversed(tens)), 0, *tens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.25 * max(100 * line["share"] for line in lines))  # room for the legend
    axes.set(title="values of the Hessian's diagonal", xlabel="in units of the loss", ylabel="share (%)")
    house_look(axes)
    axes.legend(frameon=False, fontsize="x-small", ncols=3, loc="upper center")
