"""Speed-up at equal quality: how much longer the plain training takes until it is as good.

As in Blakeney et al., Reduce, Reuse, Recycle (arXiv:2211.00683): training time to the same quality, teachers included.
A row is the end of a training. Its tags are `arm` (`PLAIN`, `TEACHER`, or how the teachers teach), `window` (the share
of the training, from its start, in which they do), `teachers` (their names, joined by +; a teacher's own), `length` (a
time string such as 16ep) and `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from accelerando.algorithms.connectivity.curves import lower_is_better

from .statistics import LEVEL
from .table import Row, groups

PLAIN, TEACHER = "none", "teacher"
RESAMPLES = 1000


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


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The runs of one arm and window, and the plain ones of the same seeds: those of which all runs are finished."""

    name: str
    window: float
    teachers: str
    lengths: Sequence[str]
    seeds: Sequence[int]
    runs: Grid
    plain: Grid  # which may have other lengths
    beside: Grid  # of the plain ones those of the arm's lengths, NaN where there are none
    more: float  # seconds in which all its teachers were trained


@dataclass(frozen=True, kw_only=True)
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
    return _curve(np.median(baseline.seconds, axis=0), baseline.values.mean(axis=0))


def _curve(seconds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    return next(_drawn(baseline, arm, more, np.arange(len(baseline.values))[None], np.arange(len(arm.values))[None]))


def resampled(baseline: Grid, arm: Grid, more: float = 0.0, resamples: int = RESAMPLES) -> Iterator[list[Bounded]]:
    """`speedups` of seeds drawn with replacement, the same ones for both. Arms of the same seeds are drawn alike."""
    draws = np.random.default_rng(0).integers(len(arm.values), size=(resamples, len(arm.values)))
    return _drawn(baseline, arm, more, draws, draws)


def _drawn(baseline: Grid, arm: Grid, more: float, first: np.ndarray, second: np.ndarray) -> Iterator[list[Bounded]]:
    """For each row of indices of seeds, (resamples, seeds), of the baseline and of the arm."""
    means = [
        means
        for grid, draws in ((baseline, first), (arm, second))
        for means in (np.median(grid.seconds[draws], axis=1), grid.values[draws].mean(axis=1))
    ]
    for seconds, values, costs, qualities in zip(*means, strict=True):
        curve = _curve(seconds, values)
        times = [time_to(quality, *curve) for quality in qualities.tolist()]
        ratios = [
            Bounded(time / (cost + more), bound) for (time, bound), cost in zip(times, costs.tolist(), strict=True)
        ]
        yield [*ratios, geometric_mean(ratios)]


def geometric_mean(ratios: Sequence[Bounded]) -> Bounded:
    """With bounds in place of what they bound, so that it is a bound itself; NaN if one of them is."""
    bound = "".join(sorted({sign for ratio in ratios for sign in ratio.bound}))
    return Bounded(math.exp(np.mean([math.log(ratio.value) for ratio in ratios])), bound)


def quotient(a: Bounded, b: Bounded) -> Bounded:
    """One over the other, which lies below a value where `b` lies above one."""
    return Bounded(a.value / b.value, "".join(sorted({*a.bound, *b.bound.translate(str.maketrans("<>", "><"))})))


def intervals(
    baseline: Grid, arm: Grid, more: float = 0.0, resamples: int = RESAMPLES, level: float = LEVEL
) -> list[tuple[float, float]]:
    """95 %, or 1 - `level`, of each of `speedups`, by drawing seeds with replacement; NaN for a single seed."""
    if len(arm.values) < 2:
        return [(math.nan, math.nan)] * (arm.values.shape[1] + 1)
    return [middle(column, level) for column in zip(*resampled(baseline, arm, more, resamples), strict=True)]


def middle(drawn: Iterable[Bounded], level: float = LEVEL) -> tuple[float, float]:
    """95 %, or 1 - `level`, of a bootstrap's resamples.

    One that is bounded on one side only counts as that bound to this side, and as 0 or infinity to the other. Of few
    seeds such an interval is too narrow rather than too wide.
    """
    known = list(drawn)
    if any(math.isnan(ratio.value) for ratio in known):
        return math.nan, math.nan
    lows = [0.0 if "<" in ratio.bound else ratio.value for ratio in known]
    highs = [math.inf if ">" in ratio.bound else ratio.value for ratio in known]
    ends = (lows, level / 2), (highs, 1 - level / 2)
    low, high = (np.quantile(x, q, method="inverted_cdf") for x, q in ends)
    return float(low), float(high)


def arms_of(rows: Sequence[Row], metric: str) -> list[Arm]:
    """Each arm and window, the plain one first, with the seeds of which all its runs and all plain ones are finished.

    The plain runs may have more lengths than the others. Values are such that more is better.
    """
    found = groups((row for row in rows if row["arm"] != TEACHER), "arm", "window")
    plain = _complete(row for row in rows if row["arm"] == PLAIN)
    arms = []
    for (name, window), own in sorted(found.items(), key=lambda item: item[0][0] != PLAIN):
        runs = {seed: lengths for seed, lengths in _complete(own).items() if seed in plain}
        if not runs:
            continue
        lengths, teachers = list(next(iter(runs.values()))), str(own[0].tags.get("teachers", ""))
        beside = [plain[seed] for seed in runs]
        arms.append(
            Arm(
                name=name,
                window=float(window),
                teachers=teachers,
                lengths=lengths,
                seeds=list(runs),
                runs=_grid(list(runs.values()), lengths, metric),
                plain=_grid(beside, list(beside[0]), metric),
                beside=_grid(beside, lengths, metric),
                more=teacher_seconds(rows, teachers),
            )
        )
    return arms


def _complete(rows: Iterable[Row]) -> dict[int, dict[str, Row]]:
    """By seed and length, of the seeds that have all lengths that any has."""
    seeds: dict[int, dict[str, Row]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], {})[row["length"]] = row
    most = max(map(len, seeds.values()), default=0)
    return {seed: runs for seed, runs in seeds.items() if len(runs) == most}


def _grid(seeds: Sequence[Mapping[str, Row]], lengths: Sequence[str], metric: str) -> Grid:
    sign = -1 if lower_is_better(metric) else 1

    def read(row: Row | None) -> tuple[float, float]:
        return (row.seconds, sign * row.metrics.get(metric, math.nan)) if row else (math.nan, math.nan)

    return Grid(*np.moveaxis(np.array([[read(runs.get(length)) for length in lengths] for runs in seeds]), -1, 0))


def teacher_seconds(rows: Iterable[Row], teachers: str) -> float:
    """The training time of the teachers of these names: of a single one, or of all there are; 0 for none."""
    seconds = {row["teachers"]: row.seconds for row in rows if row["arm"] == TEACHER}
    return seconds.get(teachers, sum(seconds[name] for name in sorted(seconds))) if teachers else 0.0


def summarize(rows: Sequence[Row], metric: str, resamples: int = RESAMPLES) -> list[Speedup]:
    """A line for each length of each arm and window, and one for all its lengths; the plain ones come first."""
    sign, found = -1 if lower_is_better(metric) else 1, []
    for arm in arms_of(rows, metric):
        seconds, values = np.median(arm.runs.seconds, axis=0), arm.runs.values
        deviations = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(arm.lengths), math.nan)
        means = np.array([seconds, sign * values.mean(axis=0), deviations]).T.tolist()
        plain, total = (speedups(arm.plain, arm.runs, more) for more in (0.0, arm.more))
        ends, of_total = (intervals(arm.plain, arm.runs, more, resamples) for more in (0.0, arm.more))
        for k, (length, mean) in enumerate(zip([*arm.lengths, "all"], [*means, [math.nan] * 3], strict=True)):
            found.append(
                Speedup(
                    arm=arm.name,
                    window=arm.window,
                    teachers=arm.teachers,
                    length=length,
                    seeds=len(values),
                    seconds=mean[0],
                    value=mean[1],
                    deviation=mean[2],
                    speedup=plain[k].value,
                    bound=plain[k].bound,
                    low=ends[k][0],
                    high=ends[k][1],
                    total=total[k].value,
                    total_low=of_total[k][0],
                    total_high=of_total[k][1],
                )
            )
    return found


def rank(values: Mapping[str, float | None], lower: bool = False) -> list[str]:
    """The names from the highest value to the lowest, with `lower` the other way round; not finite ones come last."""
    sign = -1 if lower else 1
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    order = {name: sign * known[name] if name in known else -math.inf for name in values}
    return sorted(order, key=order.__getitem__, reverse=True)


def limits_text(low: float, high: float) -> str:
    """An interval as text; an end that has no limit is told in words."""
    if math.isnan(low):
        return ""
    if low > 0 and high < math.inf:
        return f"{low:.2f} to {high:.2f}"
    return f"{low:.2f} or more" if low > 0 else f"{high:.2f} or less" if high < math.inf else "any"
