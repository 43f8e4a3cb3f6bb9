"""The figure of `shrinkbench`: accuracy over compression and over theoretical speed-up, a column for each pair."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..run.figures import house_look
from .density_figure import legend_lines, reach, styles
from .plotting import deviation_entry, round_ticks, ticks_at

OVER = {"compression": "compression ratio", "speedup": "theoretical speed-up"}


def draw(lines: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The means of `shrinkbench_table.means`: a colour for each method, dashes for each of several initial models.

    A curve begins at the initial model; bars are standard deviations.
    """
    pairs = [*dict.fromkeys(line["pair"] for line in lines)]
    looks = styles(dict.fromkeys(arm_of(line, lines) for line in lines))
    figure = Figure(figsize=(2.4 + 3.4 * len(pairs), 6.4), dpi=150, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(OVER), len(pairs), squeeze=False)
    for (over, label), row in zip(OVER.items(), grid, strict=True):
        for pair, axes in zip(pairs, row, strict=True):
            own = [line for line in lines if line["pair"] == pair]
            for arm in dict.fromkeys(arm_of(line, lines) for line in own):
                _draw_curve(axes, [line for line in own if arm_of(line, lines) == arm], over, looks[arm])
            axes.set(ylim=reach(*np.array([(line["top1"], line["top1 deviation"]) for line in own]).T), xlabel=label)
            if over == "compression":
                axes.set_title(pair, fontsize="medium")
            over_ratio(axes, {1.0, *(line["asked"] for line in own)} if over == "compression" else ())
        row[0].set_ylabel("top-1 accuracy")
    names, shown = zip(*legend_lines(looks, 2 if len(looks) > 8 else 1), strict=True)
    legend = dict(zip(names, (Line2D([], [], **style) for style in shown), strict=True)) | deviation_entry(figure)
    options: Any = {"frameon": False, "handlelength": 3, "fontsize": "small"}
    figure.legend([*legend.values()], [*legend], loc="outside right upper", **options)
    return figure


def arm_of(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """The method, and, where there are several, which initial model."""
    several = len({(one["source"], one["initial"]) for one in lines}) > 1
    words = [word for word in (line["initial"], line["source"]) if word]
    return f"{line['method']}, {' '.join(words)}" if several and words else line["method"]


def _draw_curve(axes: Axes, lines: Sequence[Mapping[str, Any]], over: str, look: Any) -> None:
    points = sorted((line[over], line["top1"], line["top1 deviation"]) for line in lines if math.isfinite(line[over]))
    if not points:
        return
    x, y, deviation = np.array([(1.0, lines[0]["dense1"], math.nan), *points]).T
    axes.errorbar(x, y, yerr=np.where(np.isfinite(deviation), deviation, 0.0), elinewidth=0.8, **look)


def over_ratio(axes: Axes, ratios: Collection[float] = ()) -> None:
    """A logarithmic axis with ticks at the ratios, else round ones, and the rest of the house's look."""
    axes.set(xscale="log")
    if ratios:
        ticks_at(axes.xaxis, ratios, axes.get_xlim())
    else:
        round_ticks(axes.xaxis, axes.get_xlim())
    house_look(axes)
