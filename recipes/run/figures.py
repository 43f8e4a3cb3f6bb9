"""The figure of one or more runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accelerando.algorithms.figures import COLOURS, house_look, save_figure

from .history import TRAIN_LOSS
from .results import Result, label

LONG = 10  # evaluations, of which the first may be left out of the picture


def draw(results: Sequence[Result], path: Path, title: str) -> np.ndarray:
    """Draws the first accuracy (or metric) and the training loss over training time; returns the picture's pixels."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    metric = next((name for name in names if "Accuracy" in name), names[0] if names else None)
    panels: list[tuple[str, str]] = [(metric, f"evaluation {label(metric)}")] if metric else []
    # Label smoothing, say, changes what is minimised: the losses of two runs need not be comparable.
    panels.append((TRAIN_LOSS, "training loss" if len(results) == 1 else "training loss, each run's own"))
    figure = Figure(figsize=(5 * len(panels), 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, title_of_axis) in zip(row, panels, strict=True):
        curves: list[np.ndarray] = []
        for result, colour in zip(results, COLOURS * (len(results) // len(COLOURS) + 1), strict=False):
            records = [record for record in result.records if _is_finite(record.get(name))]
            seconds, values = (np.array([record[key] for record in records]) for key in ("seconds", name))
            smooth = _running_mean(values) if name == TRAIN_LOSS else values
            axes.plot(seconds, values, color=colour, alpha=0.25 if smooth is not values else 0, linewidth=0.8)
            marker = "o" if smooth is values and len(values) <= 50 else ""
            axes.plot(seconds, smooth, color=colour, label=result.run_name, linewidth=1.8, marker=marker, markersize=3)
            if len(values):
                curves.append(values)
            if name == metric and len(values):
                end = (seconds[-1], values[-1])
                axes.annotate(f"{end[1]:.4f}", end, (4, 0), "data", "offset points", color=colour, va="center")
        axes.set(xlabel="training time (s)", ylabel=title_of_axis)
        house_look(axes)
        if curves:
            axes.set_xlim(0, 1.25 * axes.dataLim.x1 or None)  # room for the number at the end
        if curves and name == metric and "Accuracy" in name:
            _show_where_it_settles(axes, curves)
    if len(results) > 1:
        row[-1].legend(frameon=False)
    return save_figure(figure, path)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _show_where_it_settles(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    """Leaves out the first fifth of long curves, and says so, where it would take more than half of the picture.

    Beside a steep rise runs of different quality would look alike.
    """
    values = np.concatenate(curves)
    least, top = values.min(), values.max()
    bottom = min(np.quantile(curve, 0.2 if len(curve) >= LONG else 0) for curve in curves)
    if top - least <= 2 * (top - bottom):
        bottom = least
    margin = 0.1 * (top - bottom) or 0.1
    axes.set_ylim(float(bottom - margin), float(top + margin))
    if number := int((values < bottom - margin).sum()):
        words = f"below the frame: {number} {'values' if number > 1 else 'value'}, the least {least:.4f}"
        axes.text(0.98, 0.02, words, transform=axes.transAxes, ha="right", fontsize="x-small", color="0.35")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Over the last 5 % of the values, or all there are so far."""
    window = max(1, len(values) // 20)
    total = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)
