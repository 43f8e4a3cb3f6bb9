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
        for result, colour in zip(results, COLOURS * (len(results) // len(COLOURS) + 1), strict=False):
            records = [record for record in result.records if _is_finite(record.get(name))]
            seconds, values = (np.array([record[key] for record in records]) for key in ("seconds", name))
            smooth = _running_mean(values) if name == TRAIN_LOSS else values
            axes.plot(seconds, values, color=colour, alpha=0.25 if smooth is not values else 0, linewidth=0.8)
            marker = "o" if smooth is values and len(values) <= 50 else ""
            axes.plot(seconds, smooth, color=colour, label=result.run_name, linewidth=1.8, marker=marker, markersize=3)
            if name == metric and len(values):
                end = (seconds[-1], values[-1])
                axes.annotate(f"{end[1]:.4f}", end, (4, 0), "data", "offset points", color=colour, va="center")
        axes.set(xlabel="training time (s)", ylabel=title_of_axis)
        house_look(axes)
        axes.margins(x=0.15)  # room for the figure at the end
        axes.set_xlim(left=0)
        if name == metric and "Accuracy" in name:
            axes.set_ylim(*_where_it_settles(axes))
    if len(results) > 1:
        row[-1].legend(frameon=False)
    return save_figure(figure, path)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _where_it_settles(axes: Axes) -> tuple[float, float]:
    """Limits that leave out the first steep rise, beside which runs of different quality would look alike."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    bottom, top = min(np.quantile(curve, 0.2) for curve in curves), max(curve.max() for curve in curves)
    margin = 0.1 * (top - bottom) or 0.1
    return float(bottom - margin), float(top + margin)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Over the last 5 % of the values, or all there are so far."""
    window = max(1, len(values) // 20)
    total = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)
