"""What the figures of several studies share: axes, limits that no bad start stretches, and marks in legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from ..run.figures import house_look

MARKERS = "osD^v<>p"
DEVIATION = "± one standard deviation\nover seeds"


def time_unit(seconds: Iterable[float]) -> tuple[str, int]:
    """The unit in which the shortest time is half a unit at least, and its seconds."""
    shortest = min(seconds, default=0.0)
    return ("h", 3600) if shortest >= 1800 else ("min", 60) if shortest >= 30 else ("s", 1)


def over_time(axes: Axes, span: tuple[float, float], unit: str) -> None:
    """A logarithmic axis of training time with round ticks, and the rest of the house's look."""
    axes.set(xscale="log", xlim=span, xlabel=f"training time ({unit})")
    round_ticks(axes.xaxis, span)
    house_look(axes)


def round_ticks(axis: Axis, span: tuple[float, float]) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ..., or nearer ones, so that there are four; else evenly spaced."""
    axis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    for ticks in (LogLocator(subs=(1, 2, 5)), LogLocator(subs=(1, 1.5, 2, 3, 5, 7)), MaxNLocator(5)):
        axis.set_major_locator(ticks)
        if sum(span[0] <= tick <= span[1] for tick in ticks.tick_values(*span)) >= 4:
            break


def ticks_at(axis: Axis, points: Iterable[float], span: tuple[float, float]) -> None:
    """A tick at each point of a logarithmic axis, with its number where there is room, at both ends in any case."""
    points = sorted(set(points))
    width, reach = axis.axes.bbox.width * 72 / axis.axes.figure.dpi, abs(math.log(span[1] / span[0]))

    def apart(one: float, other: float) -> bool:
        letters = len(f"{one:.3g}{other:.3g}") / 2
        return abs(math.log(one / other)) >= reach * max(1 / 9, 7 * (letters + 1) / width)

    told = points[-1:]
    for point in reversed(points[:-1]):
        if point == points[0] or (apart(point, told[-1]) and apart(point, points[0])):
            told.append(point)
    axis.set(major_locator=FixedLocator(told), minor_locator=FixedLocator([p for p in points if p not in told]))
    axis.set(major_formatter="{x:.3g}", minor_formatter=NullFormatter())


def side_by_side(looks: Iterable[Mapping[str, Any]], **all_have: Any) -> tuple[Line2D, ...]:
    """One entry of a legend for marks of several kinds, of which it shows up to three; `HANDLERS` draw it."""
    kinds = {look["marker"]: look for look in looks}
    return tuple(Line2D([], [], **{**look, "ls": "", **all_have}) for look in [*kinds.values()][:3])


def draw_deviation(axes: Axes, x: ArrayLike, y: np.ndarray, deviation: np.ndarray, colour: Any) -> None:
    """One standard deviation to both sides of a curve (points,): a band, and about a point without neighbours a bar."""
    x, known = np.asarray(x), np.isfinite(y) & np.isfinite(deviation)
    before, after = np.pad(known, (1, 0))[:-1], np.pad(known, (0, 1))[1:]
    alone = known & ~before & ~after
    if (known & ~alone).any():
        axes.fill_between(x, y - deviation, y + deviation, color=colour, alpha=0.13, lw=0)
    if alone.any():
        axes.errorbar(x[alone], y[alone], deviation[alone], fmt="none", ecolor=colour, elinewidth=1, capsize=3)


def deviation_entry(figure: Figure) -> dict[str, Any]:
    """The legend's entry for the bands of a figure, or for its bars where it has no bands; none without either."""
    parts = [part for axes in figure.axes for part in (*axes.collections, *axes.patches)]
    if any(isinstance(part, PolyCollection | Polygon | Rectangle) for part in parts):
        return {DEVIATION: Patch(color="0.3", alpha=0.2, lw=0)}
    bars = [one for axes in figure.axes for one in axes.containers if isinstance(one, ErrorbarContainer)]
    segments = [segment for one in bars for lines in one.lines[2] for segment in lines.get_segments()]
    if any(np.ptp(segment[:, 1]) for segment in segments if len(segment)):
        return {DEVIATION: Line2D([], [], color="0.3", ls="", marker="|", ms=12)}
    return {}


def legend_below(figure: Figure, axes: Axes, columns: int, **more: Any) -> None:
    """Under the panels: what one of them shows, what deviations are, and `more`."""
    handles, names = axes.get_legend_handles_labels()
    legend = dict(zip(names, handles, strict=True)) | deviation_entry(figure) | more
    figure.legend([*legend.values()], [*legend], loc="outside lower center", ncols=columns, frameon=False)


HANDLERS = {tuple: HandlerTuple(ndivide=None, pad=0.4)}


def limits(
    times: np.ndarray, values: np.ndarray, deviations: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes: what is below five times the range of the upper half leaves, if it comes before all the rest.

    What is shown is shown with its deviation, where that is not NaN.
    """
    finite, deviations = np.isfinite(values), np.nan_to_num(deviations)
    if not finite.any():
        finite, values = np.ones(len(times), bool), np.zeros(len(times))
    times, values, deviations = times[finite], values[finite], deviations[finite]
    top, reach = values.max(), 5 * (values.max() - np.median(values)) or np.ptp(values)
    left, right = 0.8 * times[values >= top - reach].min(), 1.2 * times.max()
    bottom, top = (values - deviations)[times >= left].min(), (values + deviations)[times >= left].max()
    margin = 0.08 * (top - bottom) or 0.1
    return (left, right), (bottom - margin, top + margin)
