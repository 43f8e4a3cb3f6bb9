"""What so many seeds can tell: differences of paired runs with intervals, tests, and what they could have shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05
POWER = 0.8
RESAMPLES = 2000
LEAST = 4  # points of which a correlation has an interval


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of paired values, by Student's paired t test.

    Attributes:
        mean, low, high: the mean, and its interval of 95 %; of a single pair the interval is NaN.
        p: two-sided, of no difference; where all pairs have the same one it is 0, or 1 if that is 0.
        pairs: how many, such as seeds.
        detectable: the difference that so many pairs, spread as these are, show at 5 % in four of five cases.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    detectable: float

    @property
    def is_told(self) -> bool:
        """Whether it differs from 0 at 5 %."""
        return self.p < LEVEL

    @property
    def p_above(self) -> float:
        """One-sided, that it is not above 0."""
        return self.p / 2 if self.mean > 0 else 1 - self.p / 2

    @property
    def is_alike(self) -> bool:
        """Whether all of several pairs have the same difference, so that there is no deviation to test it by."""
        return self.low == self.high

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{self.mean:+.4f} (one seed)"
        if self.is_alike:
            return f"{self.mean:+.4f} (the same of all {self.pairs} seeds)"
        interval = f"95 % {self.low:+.4f} to {self.high:+.4f}"
        return f"{self.mean:+.4f} ({interval}; {self.pairs} seeds, paired t test, p {self.p:.2g})"


def paired(a: Mapping[Any, float], b: Mapping[Any, float]) -> Difference:
    """`a` minus `b`, of the keys that both have with finite values, such as seeds."""
    keys = [key for key in a if key in b and math.isfinite(a[key]) and math.isfinite(b[key])]
    return difference([a[key] - b[key] for key in keys])


def difference(values: ArrayLike) -> Difference:
    """The mean of differences (pairs,), against 0."""
    d = np.asarray(values, dtype=float)
    n = len(d)
    if n < 2:
        nan = math.nan
        return Difference(mean=float(d.mean()) if n else nan, low=nan, high=nan, p=nan, pairs=n, detectable=nan)
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    if error < 1e-4 * np.abs(d).max():  # equal but for rounding: metrics are of 32 bits
        error = 0.0
    reach = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    shown = (float(stats.t.ppf(1 - LEVEL / 2, n - 1)) + float(stats.t.ppf(POWER, n - 1))) * error
    return Difference(mean=mean, low=mean - reach, high=mean + reach, p=p, pairs=n, detectable=shown)


def bootstrap(statistic: Callable[..., float], *samples: ArrayLike, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % of a statistic of samples (n, ...) that are drawn with replacement, all by the same indices.

    Of few samples such an interval is too narrow rather than too wide.
    """
    arrays = [np.asarray(sample) for sample in samples]
    draws = np.random.default_rng(0).integers(len(arrays[0]), size=(resamples, len(arrays[0])))
    few, which = np.unique(draws, axis=0, return_inverse=True)  # of two samples there are but four draws
    values = np.array([statistic(*(array[draw] for array in arrays)) for draw in few])[which.ravel()]
    low, high = np.nanquantile(values, (LEVEL / 2, 1 - LEVEL / 2), method="inverted_cdf")
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's, of so many points, and its interval of 95 % by Fisher's transformation."""

    value: float
    low: float
    high: float
    points: int


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation | None:
    """The correlation of the ranks of (points,); None of fewer than four, and where all of one are equal."""
    ranks = stats.rankdata(x), stats.rankdata(y)
    if len(ranks[0]) < LEAST or any(np.ptp(each) == 0 for each in ranks):
        return None
    found: Any = stats.pearsonr(*ranks)
    low, high = found.confidence_interval(1 - LEVEL)
    return Correlation(value=float(found.statistic), low=float(low), high=float(high), points=len(ranks[0]))


def mean_and_deviation(values: ArrayLike) -> tuple[float, float]:
    """The mean, and the sample deviation (by n - 1), which is NaN for a single value."""
    array = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan
