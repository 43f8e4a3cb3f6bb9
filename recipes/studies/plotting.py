"""What the figures of several studies share: the axis of training time, and limits that no bad start stretches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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


def limits(times: np.ndarray, values: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes: what is below five times the range of the upper half leaves, if it comes before all the rest."""
    finite = np.isfinite(values)
    times, values = (times[finite], values[finite]) if finite.any() else (times, np.zeros(len(times)))
    top, reach = values.max(), 5 * (values.max() - np.median(values)) or np.ptp(values)
    left, right = 0.8 * times[values >= top - reach].min(), 1.2 * times.max()
    bottom = values[times >= left].min()
    margin = 0.08 * (top - bottom) or 0.1
    return (left, right), (bottom - margin, top + margin)
