"""What the figures of several studies share: axes, limits that no bad start stretches, and marks in legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..run.figures import house_look


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
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ..., or, where it spans little, evenly spaced."""
    ticks = LogLocator(subs=(1, 2, 5)) if span[1] > 8 * span[0] else MaxNLocator(5)
    axis.set(major_locator=ticks, major_formatter="{x:g}", minor_locator=NullLocator())


def ticks_at(axis: Axis, points: Iterable[float], span: tuple[float, float]) -> None:
    """A tick at each point of a logarithmic axis, with its number where there is room, at both ends in any case."""
    points = sorted(set(points))
    room = abs(math.log(span[1] / span[0])) / 9

    def apart(one: float, other: float) -> bool:
        return abs(math.log(one / other)) >= room

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


HANDLERS = {tuple: HandlerTuple(ndivide=None, pad=0.4)}


def limits(times: np.ndarray, values: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes: what is below five times the range of the upper half leaves, if it comes before all the rest."""
    finite = np.isfinite(values)
    times, values = (times[finite], values[finite]) if finite.any() else (times, np.zeros(len(times)))
    top, reach = values.max(), 5 * (values.max() - np.median(values)) or np.ptp(values)
    left, right = 0.8 * times[values >= top - reach].min(), 1.2 * times.max()
    bottom = values[times >= left].min()
    margin = 0.08 * (top - bottom) or 0.1
    return (left, right), (bottom - margin, top + margin)
