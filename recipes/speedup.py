"""Speed-up at equal quality: how much longer the baseline trains until it is as good.

As in Blakeney et al., Reduce, Reuse, Recycle (arXiv:2211.00683): training time to the same quality, teachers included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000


@dataclass(frozen=True)
class Point:
    """The end of one run: a student's, or a teacher's, whose arm is "teacher"."""

    arm: str
    window: float  # share of training, from its start, in which is distilled; 0 without teachers
    teachers: str  # their names, joined by +; a teacher's own
    seed: int
    length: str  # a time string such as 16ep
    batches: int
    samples: int
    seconds: float  # of training, the teachers' answers included, evaluation not
    teacher_seconds: float  # in which all its teachers were trained
    value: float  # the metric at the end


class Bounded(NamedTuple):
    """A number, or what it lies above (">") or below ("<"); "<>": it may lie on either side."""

    value: float
    bound: str = ""

    def __str__(self) -> str:
        sign = "~" if len(self.bound) > 1 else self.bound
        return "" if math.isnan(self.value) else f"{sign}{self.value:.2f}"


class Grid(NamedTuple):
    """One arm's runs, (seeds, lengths)."""

    seconds: np.ndarray
    values: np.ndarray  # the higher, the better


@dataclass(frozen=True)
class Speedup:
    """One arm's mean over seeds at one length, and the baseline's time to that quality over this arm's.

    `low` and `high` bound the middle 95 % of the bootstrap over seeds; 0 and infinity: no limit, because the baseline's
    curve ends before. Those called `total` count the training of the teachers as time of the arm.
    """

    arm: str
    window: float
    teachers: str
    length: str  # "all": the geometric mean over lengths
    seeds: int
    seconds: float  # median
    value: float  # mean
    deviation: float  # of `value` over seeds, by n - 1; NaN for a single seed
    speedup: float
    bound: str
    low: float
    high: float
    total: float
    total_low: float
    total_high: float


def baseline_curve(baseline: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Median seconds (L,), rising, and the best mean value (L,) up to there, without lengths whose mean is not finite.

    The running maximum makes "until it is as good" defined: who may train longer may also stop earlier.
    """
    seconds, values = np.median(baseline.seconds, axis=0), baseline.values.mean(axis=0)
    order = np.argsort(seconds, kind="stable")
    order = order[np.isfinite(values[order])]
    return seconds[order], np.maximum.accumulate(values[order])


def time_to(quality: float, seconds: ArrayLike, values: ArrayLike) -> Bounded:
    """When a curve that does not fall reaches `quality`, linear over the logarithm of time between its points."""
    t, v = np.asarray(seconds, dtype=float), np.asarray(values, dtype=float)
    if not (len(v) and math.isfinite(quality)):
        return Bounded(math.nan)
    i = int(np.searchsorted(v, quality))  # the first point that is as good
    if i == len(v):
        return Bounded(float(t[-1]), ">")
    if v[i] == quality or i == 0:
        return Bounded(float(t[i]), "" if v[i] == quality else "<")
    share = (quality - v[i - 1]) / (v[i] - v[i - 1])
    return Bounded(math.exp((1 - share) * math.log(t[i - 1]) + share * math.log(t[i])))


def speedups(baseline: Grid, arm: Grid, more: float = 0.0) -> list[Bounded]:
    """At each length of `arm`, whose runs took `more` seconds besides; the last one is their geometric mean."""
    curve = baseline_curve(baseline)
    times = [time_to(quality, *curve) for quality in arm.values.mean(axis=0)]
    costs = np.median(arm.seconds, axis=0) + more
    ratios = [Bounded(time / cost, bound) for (time, bound), cost in zip(times, costs.tolist(), strict=True)]
    return [*ratios, geometric_mean(ratios)]


def geometric_mean(ratios: Sequence[Bounded]) -> Bounded:
    """With bounds in place of what they bound, so that it is a bound itself; NaN if one of them is."""
    bound = "".join(sorted({sign for ratio in ratios for sign in ratio.bound}))
    return Bounded(math.exp(np.mean([math.log(ratio.value) for ratio in ratios])), bound)


def intervals(baseline: Grid, arm: Grid, more: float = 0.0, resamples: int = RESAMPLES) -> list[tuple[float, float]]:
    """95 % of each of `speedups`, by drawing seeds with replacement, the same ones for both; NaN for a single seed.

    Where a resample's speed-up is bounded on one side only, it counts as that bound to this side, and as 0 or infinity
    to the other. Of few seeds such an interval is too narrow rather than too wide.
    """
    seeds = len(arm.values)
    if seeds < 2:
        return [(math.nan, math.nan)] * (arm.values.shape[1] + 1)
    draws = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    drawn = [speedups(_rows(baseline, draw), _rows(arm, draw), more) for draw in draws]
    return [_middle(column) for column in zip(*drawn, strict=True)]


def _rows(grid: Grid, seeds: np.ndarray) -> Grid:
    return Grid(grid.seconds[seeds], grid.values[seeds])


def _middle(drawn: Iterable[Bounded]) -> tuple[float, float]:
    known = list(drawn)
    if any(math.isnan(ratio.value) for ratio in known):
        return math.nan, math.nan
    lows = [0.0 if "<" in ratio.bound else ratio.value for ratio in known]
    highs = [math.inf if ">" in ratio.bound else ratio.value for ratio in known]
    low, high = (np.quantile(x, q, method="inverted_cdf") for x, q in ((lows, 0.025), (highs, 0.975)))
    return float(low), float(high)


def summarize(points: Sequence[Point], baseline: str, lower: bool = False, resamples: int = RESAMPLES) -> list[Speedup]:
    """A row for each length of each arm and window, and one for all its lengths; the baseline's own rows come first.

    With `lower`, less is better. The baseline may have more lengths than the others. Every arm must have all of its own
    lengths with all seeds.
    """
    students = [point for point in points if point.arm != "teacher"]
    arms = dict.fromkeys((point.arm, point.window, point.teachers) for point in students)
    sign = -1 if lower else 1
    grids = {key: grid(students, *key[:2], sign) for key in sorted(arms, key=lambda key: key[0] != baseline)}
    reference = next(iter(grids.values()))
    rows: list[Speedup] = []
    for (arm, window, teachers), runs in grids.items():
        lengths = _lengths(students, arm, window)
        more = next(p.teacher_seconds for p in students if (p.arm, p.window) == (arm, window))
        seeds, values = len(runs.values), runs.values
        deviations = values.std(axis=0, ddof=1) if seeds > 1 else np.full(len(lengths), math.nan)
        means = np.array([np.median(runs.seconds, axis=0), sign * values.mean(axis=0), deviations]).T.tolist()
        means.append([math.nan] * 3)
        plain, total = speedups(reference, runs), speedups(reference, runs, more)
        limits = intervals(reference, runs, 0.0, resamples), intervals(reference, runs, more, resamples)
        for k, length in enumerate([*lengths, "all"]):
            ratios = *plain[k], *limits[0][k], total[k].value, *limits[1][k]
            row: Any = arm, window, teachers, length, seeds, *means[k], *ratios
            rows.append(Speedup(*row))
    return rows


def _lengths(points: Iterable[Point], arm: str, window: float) -> list[str]:
    return list(dict.fromkeys(p.length for p in points if (p.arm, p.window) == (arm, window)))


def grid(points: Sequence[Point], arm: str, window: float, sign: int = 1) -> Grid:
    """The arm's runs by seed and length, both in the order of `points`; values times `sign`, so that more is better."""
    lengths = _lengths(points, arm, window)
    runs = {(p.seed, p.length): (p.seconds, sign * p.value) for p in points if (p.arm, p.window) == (arm, window)}
    seeds = dict.fromkeys(seed for seed, _ in runs)
    return Grid(*np.moveaxis(np.array([[runs[seed, length] for length in lengths] for seed in seeds]), -1, 0))


def rank(values: Mapping[str, float], lower: bool = False) -> list[str]:
    """The names from the highest value to the lowest, with `lower` the other way round; not finite ones come last."""
    sign = -1 if lower else 1
    order = {name: sign * value if math.isfinite(value) else -math.inf for name, value in values.items()}
    return sorted(order, key=order.__getitem__, reverse=True)


def limits_text(low: float, high: float) -> str:
    """An interval as text; an end that has no limit is left open."""
    if math.isnan(low):
        return ""
    ends = ("" if not 0 < end < math.inf else f"{end:.2f}" for end in (low, high))
    return "any" if (low, high) == (0, math.inf) else " to ".join(ends).strip()


def rows_by_arm(rows: Iterable[Speedup]) -> dict[tuple[str, float], list[Speedup]]:
    """Those of each arm and window."""
    arms: dict[tuple[str, float], list[Any]] = {}
    for row in rows:
        arms.setdefault((row.arm, row.window), []).append(row)
    return arms
