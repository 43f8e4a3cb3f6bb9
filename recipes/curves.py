"""Accuracy over training time: what is best at a budget, and does one cyclic run tell it as well as independent ones?

Portes et al., Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates (arXiv:2206.00832).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from scipy import stats

from accelerando.recipes.run.figures import COLOURS, save_figure
from accelerando.recipes.run.history import Record
from accelerando.recipes.run.results import aligned, label

LOWER_IS_BETTER = ("crossentropy", "perplexity", "error", "loss")
COMPARISON = "arm points signed absolute worst best_signed best_absolute best_worst means_absolute means_worst "
COMPARISON += "seeds_absolute spearman pearson cost_seconds cost_batches first_equal first_pairs"


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
    best: float  # the best of its values so near to the trough, but in its own cycle, of which that is the end


@dataclass(frozen=True)
class Mean(Point):
    """All seeds' points at one cycle's end: the median of the seconds, as timings are noisy, and means of values."""

    seeds: int  # `seed` is the first one
    deviation: float  # of `value` over seeds, by n - 1; NaN for a single seed


class Difference(NamedTuple):
    """One minus the other over the `points` where both are finite; NaN if there are none."""

    points: int
    signed: float  # mean
    absolute: float  # mean
    worst: float  # absolute


def lower_is_better(metric: str) -> bool:
    """Whether it is an error, by its name."""
    return metric.lower().endswith(LOWER_IS_BETTER)


def choose_metric(names: Iterable[str], wanted: str | None = None, errors: bool = False) -> str:
    """The metric `wanted` by its name or its last part, by default the first accuracy.

    ValueError if there is none, and, unless `errors` are allowed, if less is better.
    """
    for name in (names := list(names)):
        short = name.rpartition("/")[2]
        if "Accuracy" in short if wanted is None else wanted.lower() in (name.lower(), short.lower()):
            if lower_is_better(name) and not errors:
                raise ValueError(f"lower is better for {name}; choose a metric of which more is better")
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
    """One run's points, one for each record with ``tradeoff/cycle``; of a standard run the last one, as `first_cycle`.

    `ends` are those of all cycles; `window` is in batches before a cycle's end, and does not reach into the cycle
    before: what follows the end belongs to the next one. The paper's authors look to both sides. ValueError for a run
    without such a record, and for such a record without the metric or beyond `ends`.
    """
    points, run, alone = [], f"the {schedule} run of {arm!r}, seed {seed},", schedule == "standard"
    values = {r["batch"]: math.nan if r[metric] is None else r[metric] for r in records if metric in r}
    if not (troughs := [record for record in records if "tradeoff/cycle" in record]):
        raise ValueError(f"{run} ended before its first cycle did")
    since = -1  # the end of the cycle before
    for record in troughs[-1:] if alone else troughs:
        cycle, batch = first_cycle + (0 if alone else int(record["tradeoff/cycle"])), int(record["batch"])
        if cycle >= len(ends):
            raise ValueError(f"{run} has a cycle {cycle}, counted from 0, where {len(ends)} were expected")
        if batch not in values:
            raise ValueError(f"{run} lacks {metric} at its trough, batch {batch}")
        first, since = max(since + 1, batch - window), batch
        best = max((v for b, v in values.items() if first <= b <= batch and math.isfinite(v)), default=math.nan)
        cost = batch, int(record["tradeoff/samples"]), record["tradeoff/seconds"]
        points.append(Point(arm, seed, schedule, cycle, ends[cycle], *cost, values[batch], best))
    if not alone and len(troughs) < len(ends):
        raise ValueError(f"{run} ended after {len(troughs)} of {len(ends)} cycles; leave out what stops it")
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


def budgets(points: Sequence[Point], baseline: str) -> list[dict[str, Any]]:
    """What is best from how many training seconds on: the frontier of all cyclic mean curves, a row per point.

    `gain` is over the line of `baseline` in the figure, in the same seconds: its mean curve, linear over the logarithm
    of time. It is NaN before the line begins; where that has ended, the gain is over its last value.
    """
    curves = mean_curves(points, "cyclic").values()
    line = sorted((m.seconds, m.value) for m in curves if m.arm == baseline) or [(1.0, math.nan)]
    x, y = [math.log(seconds) for seconds, _ in line], [value for _, value in line]
    return [
        {name: getattr(m, name) for name in ("seconds", "arm", "end", "value", "deviation")}
        | {"gain": m.value - float(np.interp(math.log(m.seconds), x, y, left=math.nan))}
        for m in frontier(curves)
    ]


def budget_table(points: Sequence[Point], metric: str, baseline: str) -> str:
    """`budgets` as text, the time in the figure's unit; the last column is the gain."""
    rows, (unit, size) = budgets(points, baseline), time_unit(point.seconds for point in points)
    for row in rows:
        row["seconds"] = f"{(time := row['seconds'] / size):,.{2 if time < 100 else 0}f}"
    names = {"seconds": f"from ({unit})", "value": label(metric), "gain": f"over {baseline}"}
    return _table([{names.get(name, name): cell for name, cell in row.items()} for row in rows])


def time_unit(seconds: Iterable[float]) -> tuple[str, int]:
    """The unit in which the shortest time is half a unit at least, and its seconds."""
    shortest = min(seconds, default=0.0)
    return ("h", 3600) if shortest >= 1800 else ("min", 60) if shortest >= 30 else ("s", 1)


def comparisons(points: Sequence[Point], baseline: str) -> list[dict[str, Any]]:
    """Standard minus cyclic runs: a row for each arm that has both, and a last one, "pooled", for all of these.

    Differences are of single runs of the same seed, as the paper's authors have them, at the trough and of the `best`
    in the window; those of `means` are of means over seeds. `seeds_absolute`, to compare with, is how far two seeds'
    standard runs differ. Correlations are of the means' gains over `baseline`, at the trough. All these leave out the
    first point, up to which the cyclic schedule is the independent run's: there, `first_equal` of `first_pairs` pairs
    of runs agree exactly. Costs are all standard runs' over the one cyclic run's.
    """
    standard, cyclic = mean_curves(points, "standard"), mean_curves(points, "cyclic")
    means = [(standard[key], cyclic[key]) for key in cyclic if key in standard]
    reference = {s.cycle: (s.value, c.value) for s, c in means if s.arm == baseline}
    alone = {(p.arm, p.cycle, p.seed): p for p in points if p.schedule == "standard"}
    runs = [(s, p) for p in points if p.schedule == "cyclic" and (s := alone.get((p.arm, p.cycle, p.seed)))]
    seeds = [(p, q) for p, q in combinations(alone.values(), 2) if (p.arm, p.cycle) == (q.arm, q.cycle)]
    arms = list(dict.fromkeys(s.arm for s, _ in means))
    rows = []
    for name, group in [*((arm, [arm]) for arm in arms), ("pooled", arms)] if arms else []:
        value, best = _differences(runs, group), _differences(runs, group, "best")
        of_means, of_seeds = _differences(means, group), _differences(seeds, group)
        pairs = [(s, c) for s, c in means if s.arm in group]
        later = [(s, c) for s, c in pairs if s.cycle > 0 and s.arm != baseline]
        gains = [(s.value, c.value, *reference.get(s.cycle, [math.nan] * 2)) for s, c in later]
        correlations = improvement_correlation(*np.reshape(gains, (-1, 4)).T)
        ends = {c.arm: c for _, c in pairs}.values()
        seconds = sum(s.seconds for s, _ in pairs) / sum(c.seconds for c in ends)
        batches = sum(s.batches for s, _ in pairs) / sum(c.batches for c in ends)
        equal = [s.value == c.value for s, c in runs if s.arm in group and s.cycle == 0]
        apart = *value, *best[1:], *of_means[2:], of_seeds.absolute
        rows.append((name, *apart, *correlations, seconds, batches, sum(equal), len(equal)))
    return [dict(zip(COMPARISON.split(), row, strict=True)) for row in rows]


def _differences(pairs: Iterable[tuple[Point, Point]], arms: Sequence[str], name: str = "value") -> Difference:
    values = [(getattr(p, name), getattr(q, name)) for p, q in pairs if p.arm in arms and p.cycle > 0]
    return difference(*np.reshape(values, (-1, 2)).T)


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


def draw(points: Sequence[Point], metric: str, path: Path, title: str) -> np.ndarray:
    """Draws each arm's mean curve and what is best at each budget; returns the pixels, (height, width, 3) of uint8."""
    return save_figure(_figure(points, metric, title), path)


def _figure(points: Sequence[Point], metric: str, title: str) -> Figure:
    curves, standard = (list(mean_curves(points, schedule).values()) for schedule in ("cyclic", "standard"))
    unit, size = time_unit(point.seconds for point in points)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    hollow: Any = {"ms": 7, "mfc": "none", "linestyle": ""}
    legend = {}
    for i, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        colour, marker = (*COLOURS, "#999999")[i % 8], "osD^v<>p"[(i + i // 8) % 8]
        x, y, deviation = _columns((m for m in curves if m.arm == arm), size)
        (legend[arm],) = axes.plot(x, y, color=colour, marker=marker, ms=5, lw=1.6)
        if np.isfinite(deviation).any():
            axes.fill_between(x, y - deviation, y + deviation, color=colour, alpha=0.15, linewidth=0)
        x, y, _ = _columns((m for m in standard if m.arm == arm), size)
        axes.plot(x, y, color=colour, marker=marker, **hollow)
    if standard:
        (legend["independent runs"],) = axes.plot([], [], color="0.4", marker="o", **hollow)
    x, y, _ = _columns(frontier(curves), size)
    (legend["best at its budget"],) = axes.step(x, y, "o--", color="0.3", lw=0.9, ms=12, mfc="none", where="post")
    times, values, _ = _columns(curves + standard, size)
    (left, right), heights = limits(times, values)
    over_time(axes, (left, right), unit)
    axes.set(ylim=heights, title=title, ylabel=f"evaluation {label(metric)}")
    # Of the artists' own labels, matplotlib leaves out those that start with "_", as an arm's name may.
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", frameon=False)
    return figure


def over_time(axes: Axes, span: tuple[float, float], unit: str) -> None:
    """A logarithmic axis of training time with round ticks, and the rest of the house's look."""
    ticks = LogLocator(subs=(1, 2, 5)) if span[1] > 8 * span[0] else MaxNLocator(5)
    axes.set(xscale="log", xlim=span, xlabel=f"training time ({unit})")
    axes.xaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_locator=NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _columns(means: Iterable[Mean], size: float) -> np.ndarray:
    return np.reshape([(m.seconds / size, m.value, m.deviation) for m in means], (-1, 3)).T


def limits(times: np.ndarray, values: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes: what is below five times the range of the upper half leaves, if it comes before all the rest."""
    finite = np.isfinite(values)
    times, values = (times[finite], values[finite]) if finite.any() else (times, np.zeros(len(times)))
    top, reach = values.max(), 5 * (values.max() - np.median(values)) or np.ptp(values)
    left, right = 0.8 * times[values >= top - reach].min(), 1.2 * times.max()
    bottom = values[times >= left].min()
    margin = 0.08 * (top - bottom) or 0.1
    return (left, right), (bottom - margin, top + margin)
