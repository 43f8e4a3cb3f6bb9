"""Accuracy over training time: what is best at a budget, and does one cyclic run tell it as well as independent ones?

Portes et al., Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates (arXiv:2206.00832).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from scipy import stats

from accelerando.recipes.report import COLOURS, Record, aligned, label, write

ALL = "all arms"
COMPARISON = "arm points signed absolute worst best_signed best_absolute best_worst spearman pearson noise "
COMPARISON += "cost_seconds cost_batches first_equal first_pairs"


@dataclass(frozen=True)
class Point:
    """The end of one cycle of one run ("cyclic"), or the end of an independent run of that length ("standard")."""

    arm: str
    seed: int
    schedule: str
    cycle: int  # from 0; of a standard run, the cycle whose end it matches
    end: str  # where that cycle ends, a time string such as 16ep
    batches: int
    samples: int
    seconds: float  # of training, without evaluation
    value: float  # the metric at the trough of the learning rate
    best: float  # the best of its values in a window around the trough, as the paper's authors plot it


@dataclass(frozen=True)
class Mean(Point):
    """All seeds' points at one cycle's end: the median of the seconds, as timings are noisy, and means of values."""

    seeds: int  # `seed` is the first one
    deviation: float  # of `value` over seeds, by n - 1; NaN for a single seed


class Difference(NamedTuple):
    """Standard minus cyclic over the `points` where both are finite; NaN if there are none."""

    points: int
    signed: float  # mean
    absolute: float  # mean
    worst: float  # absolute


def choose_metric(names: Iterable[str], wanted: str | None = None) -> str:
    """The metric `wanted` (the higher the better), by its name or its last part; by default the first accuracy."""
    for name in (names := list(names)):
        if "Accuracy" in name if wanted is None else wanted.lower() in (name.lower(), name.lower().split("/")[-1]):
            return name
    raise ValueError(f"no metric is {wanted or 'an accuracy'!r}: choose one of {names}")


def points_of(
    records: Sequence[Record],
    metric: str,
    ends: Sequence[str],
    window: int,
    *,
    arm: str,
    seed: int,
    schedule: str,
    first_cycle: int = 0,
) -> list[Point]:
    """One run's points, one for each record with ``tradeoff/cycle``; ValueError where such a record lacks the metric.

    `ends` are those of all cycles, of which `first_cycle` is this run's first; `window` is in batches to both sides.
    """
    points = []
    values = {r["batch"]: math.nan if r[metric] is None else r[metric] for r in records if metric in r}
    for record in (record for record in records if "tradeoff/cycle" in record):
        cycle, batch = first_cycle + int(record["tradeoff/cycle"]), int(record["batch"])
        if batch not in values:
            raise ValueError(f"the {schedule} run of {arm!r}, seed {seed}, lacks {metric} at its trough, batch {batch}")
        best = max((v for b, v in values.items() if abs(b - batch) <= window and math.isfinite(v)), default=math.nan)
        cost = batch, int(record["tradeoff/samples"]), record["tradeoff/seconds"]
        points.append(Point(arm, seed, schedule, cycle, ends[cycle], *cost, values[batch], best))
    return points


def mean_curves(points: Iterable[Point], schedule: str) -> dict[tuple[str, int], Mean]:
    """By arm and cycle: the cycles from first to last, in each the arms in the order of `points`."""
    points = sorted((point for point in points if point.schedule == schedule), key=lambda point: point.cycle)
    keys = dict.fromkeys((point.arm, point.cycle) for point in points)
    return {key: _mean([point for point in points if (point.arm, point.cycle) == key]) for key in keys}


def _mean(seeds: Sequence[Point]) -> Mean:
    seconds, values, bests = np.array([(p.seconds, p.value, p.best) for p in seeds]).T
    means = replace(seeds[0], seconds=float(np.median(seconds)), value=float(values.mean()), best=float(bests.mean()))
    return Mean(**asdict(means), seeds=len(seeds), deviation=float(values.std(ddof=1)) if len(seeds) > 1 else math.nan)


def difference(standard: ArrayLike, cyclic: ArrayLike) -> Difference:
    """Of two arrays (points,)."""
    signed = np.subtract(standard, cyclic, dtype=float)
    n = int(np.isfinite(signed).sum())
    signed = signed[np.isfinite(signed)] if n else np.array([math.nan])
    return Difference(n, float(signed.mean()), float(abs(signed).mean()), float(abs(signed).max()))


def improvement_correlation(
    standard: ArrayLike, cyclic: ArrayLike, baseline_standard: ArrayLike, baseline_cyclic: ArrayLike
) -> tuple[float, float]:
    """Spearman's and Pearson's correlation between "method minus baseline" of the two schedules; arrays (points,).

    NaN where one of them is constant, and for fewer than three points, because any two lie on a line.
    """
    x = np.subtract(standard, baseline_standard, dtype=float)
    y = np.subtract(cyclic, baseline_cyclic, dtype=float)
    x, y = np.array([x, y])[:, np.isfinite(x + y)]
    if len(x) < 3 or np.allclose(x, x[0]) or np.allclose(y, y[0]):
        return math.nan, math.nan
    results: Any = stats.spearmanr(x, y), stats.pearsonr(x, y)
    return float(results[0].statistic), float(results[1].statistic)


def frontier(curves: Iterable[Mean]) -> list[Mean]:
    """The points that no other beats by as high a value in as little time, from the fastest on; of equals the first."""
    best: list[Mean] = []
    for mean in sorted((m for m in curves if math.isfinite(m.value)), key=lambda m: (m.seconds, -m.value)):
        if not best or mean.value > best[-1].value:
            best.append(mean)
    return best


def budget_table(points: Sequence[Point], metric: str, baseline: str) -> str:
    """What is best from how many training seconds on: the frontier of all cyclic curves, a row per point.

    The last column is the gain over the best that `baseline` reaches in the same seconds, blank while there is none.
    """
    curves, rows = mean_curves(points, "cyclic").values(), []
    for mean in frontier(curves):
        reached = frontier(m for m in curves if m.arm == baseline and m.seconds <= mean.seconds)
        gain = mean.value - reached[-1].value if reached else math.nan
        row = {
            "from (s)": f"{mean.seconds:,.{2 if mean.seconds < 100 else 0}f}",
            "arm": mean.arm,
            "end": mean.end,
            label(metric): mean.value,
        }
        rows.append(row | {"deviation": mean.deviation, f"over {baseline}": gain})
    return _table(rows)


def comparisons(points: Sequence[Point], baseline: str) -> list[dict[str, Any]]:
    """Cyclic against standard runs: a row for each arm that has both, and a last one for all of these pooled.

    Differences are of means over seeds, at the trough and of the best in the window; correlations are of the gain over
    `baseline` at the trough. Both leave out the first point, up to which the cyclic schedule is the independent run's:
    there, `first_equal` of `first_pairs` pairs of runs agree exactly. `noise`, to compare with, is the deviation over
    seeds of the standard runs, pooled over the same points. Costs are all standard runs' over the one cyclic run's.
    """
    standard, cyclic = mean_curves(points, "standard"), mean_curves(points, "cyclic")
    pairs = [(standard[key], cyclic[key]) for key in cyclic if key in standard]
    reference = {s.cycle: (s.value, c.value) for s, c in pairs if s.arm == baseline}
    first = {(p.schedule, p.arm, p.seed): p.value for p in points if p.cycle == 0}
    both = [(arm, seed) for schedule, arm, seed in first if schedule == "cyclic" and ("standard", arm, seed) in first]
    rows = []
    for name in dict.fromkeys([s.arm for s, _ in pairs] + [ALL] * bool(pairs)):
        group = [(s, c) for s, c in pairs if name in (s.arm, ALL)]
        later = [(s, c) for s, c in group if s.cycle > 0]
        value = difference([s.value for s, _ in later], [c.value for _, c in later])
        best = difference([s.best for s, _ in later], [c.best for _, c in later])
        gains = [(s.value, c.value, *reference.get(s.cycle, [math.nan] * 2)) for s, c in later if s.arm != baseline]
        correlations = improvement_correlation(*np.reshape(gains, (-1, 4)).T)
        spread = [(s.deviation**2 * (s.seeds - 1), s.seeds - 1) for s, _ in later if s.seeds > 1]
        noise = math.sqrt(np.divide(*np.sum(spread, axis=0))) if spread else math.nan
        ends = {c.arm: c for _, c in group}.values()
        seconds = sum(s.seconds for s, _ in group) / sum(c.seconds for c in ends)
        batches = sum(s.batches for s, _ in group) / sum(c.batches for c in ends)
        equal = [first["cyclic", arm, seed] == first["standard", arm, seed] for arm, seed in both if name in (arm, ALL)]
        rows.append((name, *value, *best[1:], *correlations, noise, seconds, batches, sum(equal), len(equal)))
    return [dict(zip(COMPARISON.split(), row, strict=True)) for row in rows]


def comparison_table(points: Sequence[Point], metric: str, baseline: str) -> str:
    """`comparisons` as text, in the metric's own units; empty where there is nothing to compare."""
    if not (rows := comparisons(points, baseline)):
        return ""
    kept = [name for name in COMPARISON.split() if not name.startswith(("points", "first", "best_signed"))]
    table = _table([{name.replace("_", "\n"): row[name] for name in kept} for row in rows])
    equal, pairs = rows[-1]["first_equal"], rows[-1]["first_pairs"]
    same = f"The first point, up to which the schedules are one, is equal in {equal} of {pairs} pairs of runs."
    return f"{label(metric)}, standard minus cyclic, without the first point\n{table}\n{same}"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Numbers to four places, NaN as a blank."""
    cells = [["" if v != v else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return aligned([*map(list, rows[:1]), *cells], left=("arm", "end"))


def write_csv(rows: Iterable[Any], path: Path) -> None:
    """Writes dataclasses or dicts with the same fields, a line each, under the fields' names."""
    rows = [row if isinstance(row, dict) else asdict(row) for row in rows]
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows([*rows[:1], *(row.values() for row in rows)])
    write(path, text.getvalue().encode())


def draw(points: Sequence[Point], metric: str, path: Path, title: str) -> np.ndarray:
    """Draws each arm's mean curve and what is best at each budget; returns the pixels, (height, width, 3) of uint8."""
    curves, standard = (list(mean_curves(points, schedule).values()) for schedule in ("cyclic", "standard"))
    seconds, values, _ = _columns(curves + standard)
    unit, size = next(u for u in [("h", 3600), ("min", 60), ("s", 1)] if seconds.min() >= u[1] / 2 or u[1] == 1)
    canvas = FigureCanvasAgg(figure := Figure(figsize=(8, 4.5), dpi=150, layout="constrained"))
    axes = figure.subplots()
    for i, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        colour, marker = (*COLOURS, "#999999")[i % 8], "osD^v<>p"[(i + i // 8) % 8]
        x, y, deviation = _columns(m for m in curves if m.arm == arm)
        axes.plot(x / size, y, color=colour, marker=marker, ms=5, lw=1.6, label=arm)
        axes.fill_between(x / size, y - deviation, y + deviation, color=colour, alpha=0.15, linewidth=0)
        x, y, _ = _columns(m for m in standard if m.arm == arm)
        axes.plot(x / size, y, color=colour, marker=marker, ms=7, mfc="none", linestyle="")
    axes.plot([], [], "o", color="0.4", ms=7, mfc="none", label="independent runs" if standard else None)
    x, y, _ = _columns(frontier(curves))
    axes.step(x / size, y, "o--", color="0.3", lw=0.9, ms=12, mfc="none", where="post", label="best at its budget")
    bottom, top = _limits(np.array([value for value in values if math.isfinite(value)] or [0.0]))
    left = seconds.min(where=values > bottom, initial=seconds.max())
    axes.set(xscale="log", xlim=(0.8 * left / size, 1.2 * seconds.max() / size), ylim=(bottom, top), title=title)
    axes.set(xlabel=f"training time ({unit})", ylabel=f"evaluation {label(metric)}")
    ticks = LogLocator(subs=(1, 2, 5)) if seconds.max() > 5 * seconds.min() else MaxNLocator(5)
    axes.xaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_locator=NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(buffer := io.BytesIO(), format="png")
    write(path, buffer.getvalue())
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _columns(means: Iterable[Mean]) -> np.ndarray:
    return np.reshape([(m.seconds, m.value, m.deviation) for m in means], (-1, 3)).T


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Down to five times the range of the upper half: a start steeper than that leaves the picture."""
    top, reach = values.max(), 5 * (values.max() - np.median(values)) or np.ptp(values)
    bottom = values[values >= top - reach].min()
    margin = 0.08 * (top - bottom) or 0.1
    return bottom - margin, top + margin
