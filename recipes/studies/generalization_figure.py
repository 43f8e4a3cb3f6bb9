"""The figure of `generalization`: for each share of wrong labels the metric, and training losses, over density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..run.figures import COLOURS, house_look
from ..run.results import label
from .density import DENSE
from .density_figure import over_density
from .generalization_cells import ALL, CLEAN, EL2N, EXTENDED, LOSS, NARROWER, ONCE, WRONG
from .plotting import draw_deviation, legend_below, round_ticks
from .statistics import mean_and_deviation
from .table import Row, groups

Looks = Mapping[str, dict[str, Any]]


def draw(found: Mapping[str, tuple[Sequence[Row], int]], ladders: Sequence[str], metric: str, title: str) -> Figure:
    """Means over seeds and their standard deviations; `found` has for each share of wrong labels the rows by density,
    and the level of the optimum.
    """
    looks = _looks(ladders)
    noisy = {name: any(f"{LOSS}{WRONG}" in row.metrics for row in rows) for name, (rows, _) in found.items()}
    columns = 3 + any(noisy.values())
    figure = Figure(figsize=(1 + 3.4 * columns, 0.9 + 2.9 * len(found)), dpi=150, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for own, (name, (rows, level)) in zip(grid, found.items(), strict=True):
        panels = iter(own)
        _over_density(axes := next(panels), rows, looks, metric)
        _mark(axes, rows, level)
        axes.set(title=f"{name}; dotted: the optimum", ylabel=f"evaluation {label(metric)}")
        parts = {CLEAN: "right labels", WRONG: "wrong labels"} if noisy[name] else {ALL: "all examples"}
        for part, words in parts.items():
            _over_density(axes := next(panels), rows, looks, f"{LOSS}{part}")
            _of_loss(axes, f"training, {words}")
            _mark(axes, rows, level)
        _by_group(axes := next(panels), rows, looks, level)
        _of_loss(axes, "training, at the optimum")
        for axes in panels:
            axes.set_visible(False)
        for axes in own:
            axes.title.set_fontsize("medium")
            house_look(axes)
    legend_below(figure, grid[0, 0], 6)
    return figure


def _looks(ladders: Sequence[str]) -> Looks:
    arms = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate((*ladders, EXTENDED, ONCE, NARROWER))}
    looks = {arm: {"color": colour, "marker": "osD^v<>"[i % 7]} for i, (arm, colour) in enumerate(arms.items())}
    return {DENSE: {"color": "0.3", "marker": "*"}, **looks}


def _over_density(axes: Axes, rows: Sequence[Row], looks: Looks, name: str) -> None:
    """A line for each arm, which begins at the dense network but for narrower ones."""
    by_arm = groups(rows, "arm")
    dense = by_arm.get((DENSE,), [])
    for arm, look in looks.items():
        if not (own := by_arm.get((arm,))):
            continue
        lines = [*([] if arm in (DENSE, NARROWER) else [dense]), *groups(own, "level").values()]
        lines = sorted((line for line in lines if line), key=lambda line: line[0]["level"])
        x = [100 * line[0]["density"] for line in lines]
        means = [mean_and_deviation([row.metrics.get(name, math.nan) for row in line]) for line in lines]
        y, deviation = np.array(means).T
        axes.plot(x, y, label=arm, lw=1.3, ms=4, zorder=3, **look)
        draw_deviation(axes, x, y, deviation, look["color"])
    over_density(axes, (row["density"] for row in rows))
    axes.set_xlabel("weights remaining (%)")


def _of_loss(axes: Axes, title: str) -> None:
    """Logarithmic, and as high as its lines are: where a deviation is as large as its mean, its end is at 0."""
    axes.set(title=title, ylabel="loss")
    heights = np.concatenate([[], *(np.asarray(line.get_ydata(), dtype=float) for line in axes.lines)])
    heights = heights[np.isfinite(heights) & (heights > 0)]
    if len(heights):
        axes.set_yscale("log")
        axes.set_ylim(heights.min() / 1.3, heights.max() * 1.3)
        round_ticks(axes.yaxis, axes.get_ylim())


def _mark(axes: Axes, rows: Sequence[Row], level: int) -> None:
    density = next((row["density"] for row in rows if row["level"] == level), 1.0)
    axes.axvline(100 * density, color="0.5", lw=1, ls=":", zorder=1)


def _by_group(axes: Axes, rows: Sequence[Row], looks: Looks, level: int) -> None:
    names = [name for name in rows[0].metrics if name.startswith(f"{LOSS}{EL2N}")] if rows else []
    for arm, look in looks.items():
        own = [row for row in rows if row["arm"] == arm and row["level"] == (0 if arm == DENSE else level)]
        if own:
            y = [float(np.mean([row.metrics.get(name, math.nan) for row in own])) for name in names]
            axes.plot(range(len(names)), y, lw=1.3, ms=4, **look)
    axes.set_xticks(range(len(names)), [name.removeprefix(f"{LOSS}{EL2N} ").removesuffix(" %") for name in names])
    axes.tick_params(axis="x", labelsize="x-small")
    axes.set_xlabel("examples by EL2N (percentiles)")
