"""Tables and the figure of what distillation is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from accelerando.algorithms.connectivity.curves import lower_is_better
from accelerando.algorithms.figures import COLOURS

from ..run.results import aligned, label, percent
from .plotting import deviation_entry, draw_deviation, limits, over_time, time_unit
from .speedup import PLAIN, RESAMPLES, TEACHER, Bounded, Speedup, limits_text, rank
from .table import Row

STYLES = {PLAIN: ("black", "X")}
STYLES |= zip(("best", "poorest", "ensemble", "random"), zip(COLOURS, "ovsD", strict=False), strict=False)


def rows_by_arm(rows: Iterable[Speedup]) -> dict[tuple[str, float], list[Speedup]]:
    """Those of each arm and window."""
    arms: dict[tuple[str, float], list[Speedup]] = {}
    for row in rows:
        arms.setdefault((row.arm, row.window), []).append(row)
    return arms


def teacher_table(rows: Sequence[Row], metric: str, ranked_by: str | None = None) -> str:
    """The teachers, the best one by the metric `ranked_by` first, which by default is the other one."""
    by_name = {row["teachers"]: row for row in rows if row["arm"] == TEACHER}
    unit, size = time_unit(row.seconds for row in by_name.values())
    metrics = list(dict.fromkeys((metric, ranked_by or metric)))
    values = {each: {name: row.metrics.get(each, float("nan")) for name, row in by_name.items()} for each in metrics}
    lines = [
        (
            name,
            by_name[name]["length"],
            *(f"{values[each][name]:.4f}" for each in metrics),
            f"{by_name[name].seconds / size:.2f}",
        )
        for name in rank(values[metrics[-1]], lower_is_better(metrics[-1]))
    ]
    return aligned([("teacher", "trained for", *map(label, metrics), f"in ({unit})"), *lines], left=("teacher",))


def quality_table(rows: Sequence[Speedup], metric: str) -> str:
    """Each arm's mean over seeds and median training time, by length."""
    lines, (unit, size) = [], time_unit(row.seconds for row in rows if row.length != "all")
    lengths = [row.length for row in rows if row.window == 0 and row.length != "all"]  # the plain runs have them all
    for (arm, window), own in rows_by_arm(rows).items():
        cells = {row.length: f"{row.value:.4f} ({row.seconds / size:.2f} {unit})" for row in own}
        lines.append((arm, percent(window) if window else "never", *(cells.get(length, "") for length in lengths)))
    table = aligned([("arm", "distilled", *lengths), *lines], left=("arm",), blank="not trained for so long")
    return f"{label(metric)}, mean over {rows[0].seeds} seeds, and median training time\n{table}"


def speedup_table(rows: Sequence[Speedup]) -> str:
    """Each distilled arm's speed-up at equal quality, by length."""
    lines, names = [], ("arm", "distilled", "teachers")
    last = ("all lengths", "95 %", "with teachers' training", "95 % with it")
    lengths = list(dict.fromkeys(row.length for row in rows if row.window and row.length != "all"))
    for (arm, window), own in rows_by_arm(rows).items():
        if window:
            cells = {row.length: str(Bounded(row.speedup, row.bound)) for row in own}
            ends = limits_text(own[-1].low, own[-1].high), limits_text(own[-1].total_low, own[-1].total_high)
            total = str(Bounded(own[-1].total, own[-1].bound))
            each = (cells.get(length, "") for length in (*lengths, "all"))
            lines.append((arm, percent(window), own[0].teachers, *each, ends[0], total, ends[1]))
    blank = "not trained so, or one seed alone"
    table = aligned([(*names, *lengths, *last), *lines], left=("arm", "teachers"), blank=blank)
    meaning = "baseline's time to the same quality over the arm's; > and <: the baseline's curve ends before, ~: both\n"
    note = f"all lengths: geometric mean; 95 %: {RESAMPLES} resamples of {rows[0].seeds} seeds"
    return f"speed-up at equal quality: {meaning}{table}\n{note}"


def draw(table: Sequence[Row], rows: Sequence[Speedup], metric: str, title: str) -> Figure:
    """Quality over training time, a panel for each window."""
    rows = [row for row in rows if row.length != "all"]
    windows = list(dict.fromkeys(row.window for row in rows if row.window))
    unit, size = time_unit(row.seconds for row in rows)
    figure = Figure(figsize=(1.6 + 3.6 * len(windows), 4.2), dpi=150, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    panels = figure.subplots(1, len(windows), sharex=True, sharey=True, squeeze=False)[0]
    sign = -1 if lower_is_better(metric) else 1
    times, values, deviations = _columns(rows, size)
    span, (bottom, top) = limits(times, sign * values, deviations)
    reached = [row.metrics.get(metric, float("nan")) for row in table if row["arm"] == TEACHER]
    taught = [value for value in reached if sign * value > bottom]
    top = max([top, *(sign * value + 0.03 * (top - bottom) for value in taught)])
    legend: dict[str, Any] = {}
    for axes, window in zip(panels, windows, strict=True):
        over_time(axes, span, unit)
        axes.set(
            ylim=(sign * bottom, sign * top),  # better is above
            title=f"distilled in the first {percent(window)}" if window < 1 else "distilled throughout",
        )
        for (arm, share), own in rows_by_arm(rows).items():
            if share not in (0.0, window):
                continue
            colour, marker = STYLES[arm]
            x, y, deviation = _columns(own, size)
            order = 3 if arm == PLAIN else 2
            (legend[arm],) = axes.plot(x, y, color=colour, marker=marker, ms=5, lw=1.6, zorder=order)
            draw_deviation(axes, x, y, deviation, colour)
        for value in taught:
            legend["a teacher"] = axes.axhline(value, color="0.55", lw=0.9, ls=(0, (4, 3)), zorder=1)
    panels[0].set_ylabel(f"evaluation {label(metric)}")
    legend |= deviation_entry(figure)
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", frameon=False)
    return figure


def _columns(rows: Sequence[Speedup], size: float) -> np.ndarray:
    return np.reshape([(row.seconds / size, row.value, row.deviation) for row in rows], (-1, 3)).T
