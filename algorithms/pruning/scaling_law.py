"""How the error of a pruned network follows from its density, depth and width, and from the dense network's error.

Rosenfeld et al., On the Predictability of Pruning Across Scales (arXiv 2006.10621), for iterative magnitude pruning:

    eps = eps_np ||(m - j p (eps_up / eps_np)^(1/gamma)) / (m - j p)||^gamma,    m = l^phi w^psi d

eps_np is the error of the dense network, which is measured, and in which alone the number of training examples takes
part; d the density; l and w depth and width, in any units. From eps_np networks go over eps_up (p / m)^gamma to the
plateau eps_up. `fit_scaling_law` finds the five constants, by SciPy:

    measured = read_measurements("errors.csv")
    print(found := fit_scaling_law(measured))
    found.law.error(dense_error=0.06, density=0.1, depth=20, width=16)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..validation import check
from .scaling_fit import GAMMA, NAMES, Problem, best_fit, least_squares, limit_fits, refits
from .scaling_measurements import Measurements

LEVEL = 0.05
HALF_WAY = 0.5  # an error above which the plateau, up to 1, is known to a factor of 2
NO_PLATEAU = "no network comes near to the plateau, which may have any error up to 1"
NO_SLOPE = f"{GAMMA[1]:g} fits as well"
NO_PLACE = "eps_up is not told, with which it varies"


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """The law with its five constants; without phi and psi that of one network, where `p` is a density.

    ValueError where eps_up or gamma is not above 0.
    """

    eps_up: float
    gamma: float
    p: float
    phi: float = 0.0
    psi: float = 0.0

    def __post_init__(self) -> None:
        for name in NAMES[:2]:
            check("ScalingLaw", name, (value := getattr(self, name)) > 0, "above 0", value)

    def error(self, dense_error: ArrayLike, density: ArrayLike, depth: ArrayLike = 1, width: ArrayLike = 1) -> Any:
        """The error of the pruned network, a fraction; of numbers, or of arrays (points,).

        ValueError where a dense network has no error above 0, of which the law says nothing.
        """
        eps_np, m = np.asarray(dense_error, dtype=float), self.invariant(density, depth, width)
        check("ScalingLaw", "dense_error", (eps_np > 0).all(), "above 0", dense_error)
        with np.errstate(divide="ignore"):
            s, t = 2 * np.log(m), 2 * np.log(self.p)
        up = t + 2 / self.gamma * np.log(self.eps_up / eps_np)
        return eps_np * np.exp(self.gamma / 2 * (np.logaddexp(s, up) - np.logaddexp(s, t)))

    def invariant(self, density: ArrayLike, depth: ArrayLike = 1, width: ArrayLike = 1) -> Any:
        """m = l^phi w^psi d: where the error is that of the power law, it is the same for the same m."""
        l, w = np.asarray(depth, dtype=float), np.asarray(width, dtype=float)  # noqa: E741
        return l**self.phi * w**self.psi * np.asarray(density, dtype=float)

    def density(self, error: ArrayLike, dense_error: ArrayLike, depth: ArrayLike = 1, width: ArrayLike = 1) -> Any:
        """The least density with that error: up to 1, 0 for one of the plateau, infinite where no density has it."""
        eps, eps_np = np.asarray(error, dtype=float), np.asarray(dense_error, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            q, up = (2 / self.gamma * np.log(each / eps_np) for each in (eps, self.eps_up))
            # (m / p)^2 = (exp(up) - exp(q)) / (exp(q) - 1), where exp(up) may be beyond all numbers
            log_m = np.log(self.p) + (up - q + np.log(-np.expm1(np.minimum(q - up, 0))) - np.log(-np.expm1(-q))) / 2
        least = np.minimum(log_m - np.log(self.invariant(1, depth, width)), 0)
        least = np.where(q > 0, least, 0)  # the dense network itself has what was measured of it
        return np.where(eps >= eps_np, np.exp(least), math.inf)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """eps = c eps_np^a d^b l^e w^f, a power law of the size that is given the dense error too."""

    logarithms: tuple[float, ...]  # of c, then the exponents

    def error(self, dense_error: ArrayLike, density: ArrayLike, depth: ArrayLike = 1, width: ArrayLike = 1) -> Any:
        """As that of `ScalingLaw`."""
        return np.exp(_logarithms(dense_error, density, depth, width) @ self.logarithms)


def _logarithms(*values: ArrayLike) -> np.ndarray:
    """1 and the logarithms, (points, terms)."""
    arrays = np.broadcast_arrays(*values)
    return np.stack([np.ones(arrays[0].shape), *map(np.log, arrays)], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """Mean and sample deviation of the relative error of a law, (predicted - measured) / measured, over the points."""

    mean: float
    deviation: float  # NaN of a single point
    points: int

    def __str__(self) -> str:
        return f"mean {self.mean:+.2%}, deviation {self.deviation:.2%} ({self.points} points)"


def relative_deviations(law: ScalingLaw | PowerLaw, measured: Measurements) -> np.ndarray:
    """(predicted - measured) / measured, (points,)."""
    return law.error(*measured.arguments) / measured.error - 1


def deviations(law: ScalingLaw | PowerLaw, measured: Measurements) -> Deviations:
    """Of the law from these measurements."""
    values = relative_deviations(law, measured)
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Deviations(mean=float(values.mean()), deviation=spread, points=len(values))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One of a law's, with its interval of 95 %; what cannot be told has a `problem`, and bounds at best."""

    value: float
    low: float
    high: float
    problem: str = ""

    def __str__(self) -> str:
        if not self.problem:
            return f"{self.value:.4g} (95 % {self.low:.4g} to {self.high:.4g})"
        bounds = [f"at least {self.low:.3g}"] if self.low > 0 else []
        bounds += [f"at most {self.high:.3g}"] if self.high < math.inf else []
        return "; ".join([f"cannot be told: {self.problem}", *bounds])


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """A law of least squares.

    Attributes:
        law: with the constants of the fit, of which those that cannot be told are not to be read.
        constants: each with its interval, by name.
        resampled: the laws of the resamples, which tell how sure a prediction is.
        within: the deviations from what it was fitted to.
        configurations: how many these were.
    """

    law: ScalingLaw
    constants: Mapping[str, Constant]
    resampled: Sequence[ScalingLaw]
    within: Deviations
    configurations: int

    @property
    def untold(self) -> dict[str, str]:
        """Why, by the names of the constants that cannot be told."""
        return {name: constant.problem for name, constant in self.constants.items() if constant.problem}

    def __str__(self) -> str:
        lines = [f"{name:6}  {constant}" for name, constant in self.constants.items()]
        return "\n".join([*lines, f"relative error, {self.configurations} configurations: {self.within}"])


def fit_scaling_law(measured: Measurements, resamples: int = 500, seed: int = 0) -> FittedLaw:
    """The law of least squares of the relative deviations, (predicted - measured) / measured, in log parameters.

    Intervals are of resampled configurations, as the points of one stray together; of resampled points where there is
    one configuration. Of few configurations they are too narrow rather than too wide. Where all have one depth, or
    depths and widths vary together, phi and psi cannot be told; and neither can a constant whose limit fits as well in
    more of the resamples than lie beyond an interval's end. The others are fitted all the same.

    Raises ImportError without SciPy; ValueError where there are not more points than constants.
    """
    check("fit_scaling_law", "resamples", resamples > 0, "1 or more", resamples)
    data, free, problems = _checked(measured)
    theta = best_fit(data, free)
    several = len(measured.configurations) > 1
    groups = np.unique(measured.configuration, return_inverse=True)[1] if several else np.arange(len(measured))
    size = int(groups.max()) + 1
    counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), resamples)
    thetas = refits(data, theta, counts[:, groups], free)
    limits = [theta, *limit_fits(data, theta, free)]
    own, *others = (np.bincount(groups, data.deviations(each[None])[0] ** 2) for each in limits)
    as_well = [bool(np.mean(counts @ (other - own) <= 0) >= LEVEL / 2) for other in others]
    laws = [_law(data, each) for each in (theta, *thetas)]
    constants = {name: Constant(value=0.0, low=-math.inf, high=math.inf, problem=why) for name, why in problems.items()}
    for name in np.array(NAMES)[free].tolist():
        values = [getattr(law, name) for law in laws]
        (low, high), problem = _interval(values[1:], size), problems.get(name, "")
        if name == "eps_up" and (as_well[0] or high > 0.999):
            high, problem = 1.0, "" if measured.error.max() > HALF_WAY else NO_PLATEAU
        elif name == "gamma" and (as_well[1] or high > 0.999 * GAMMA[1]):
            high, problem = math.inf, NO_SLOPE
        elif name == "p" and constants["eps_up"].problem:
            low, problem = 0.0, NO_PLACE
        constants[name] = Constant(value=values[0], low=low, high=high, problem=problem)
    return FittedLaw(
        law=laws[0],
        constants={name: constants[name] for name in NAMES if name in constants},
        resampled=laws[1:],
        within=deviations(laws[0], measured),
        configurations=len(measured.configurations),
    )


def best_law(measured: Measurements) -> ScalingLaw:
    """As `fit_scaling_law`, without saying how sure it is."""
    data, free, _ = _checked(measured)
    return _law(data, best_fit(data, free))


def _law(data: Problem, theta: np.ndarray) -> ScalingLaw:
    return ScalingLaw(**dict(zip(NAMES, data.constants(theta), strict=True)))


def _checked(measured: Measurements) -> tuple[Problem, np.ndarray, dict[str, str]]:
    """The problem, which of the constants are fitted, (5,), and why an exponent cannot be told."""
    data = Problem(measured.error, *map(np.log, measured.arguments))
    free, problems = _exponents(data.depth, data.width)
    check("fit_scaling_law", "measured", len(measured) > free.sum(), f"more than {free.sum()} points", len(measured))
    return data, free, problems


def _exponents(depth: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Which of the constants are fitted, (5,), and why an exponent cannot be told; of logarithms (points,)."""
    varies = [bool(np.ptp(each) > 1e-9) for each in (depth, width)]
    problems: dict[str, str] = {}
    if all(varies) and np.linalg.matrix_rank(np.stack([np.ones_like(depth), depth, width]), tol=1e-6) < 3:
        varies = [False, True]
        problems |= dict.fromkeys(("phi", "psi"), "depths and widths vary together")
    elif any(varies) and not all(varies):
        problems |= {"psi": "all widths are one"} if varies[0] else {"phi": "all depths are one"}
    return np.array([True, True, True, *varies]), problems


def _interval(values: Sequence[float], groups: int) -> tuple[float, float]:
    """95 % of resampled values (resamples,), at levels that allow for few groups (Hesterberg 2015, arXiv 1411.5279)."""
    from scipy import stats

    n = max(groups, 2)
    level = float(stats.norm.cdf(stats.t.ppf(LEVEL / 2, n - 1) * math.sqrt(n / (n - 1))))
    low, high = np.quantile(values, (level, 1 - level))
    return float(low), float(high)


def fit_power_law(measured: Measurements) -> PowerLaw:
    """By least squares of the relative deviations, as the law; what does not vary has an exponent of 0, or shares one.

    Raises ImportError without SciPy.
    """
    terms, logarithms = _logarithms(*measured.arguments), np.log(measured.error)
    _, varies, directions = np.linalg.svd(terms, full_matrices=False)
    told = directions[varies > 1e-9 * varies[0]].T
    own = terms @ told

    def ratios(x: np.ndarray) -> np.ndarray:
        return np.exp(own @ x - logarithms)

    start = np.linalg.lstsq(own, logarithms)[0]
    found = least_squares()(lambda x: ratios(x) - 1, start, lambda x: ratios(x)[:, None] * own)
    return PowerLaw(logarithms=tuple((told @ found.x).tolist()))


@dataclass(frozen=True, kw_only=True)
class PrunableNetwork:
    """One that may be pruned: its name, the measured error of the dense network, how many weights can be pruned."""

    name: str
    dense_error: float
    weights: int
    depth: float = 1.0
    width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """Which network, pruned to which density, has the fewest weights.

    Attributes:
        network, density: the one to prune, and how far.
        weights: as many are left; by 95 % of the resampled laws from `low` to `high`.
        agree: the share of these laws that choose the same network.
    """

    network: PrunableNetwork
    density: float
    weights: float
    low: float
    high: float
    agree: float


def smallest_network(found: FittedLaw, networks: Sequence[PrunableNetwork], error: float) -> Smallest | None:
    """The one of fewest weights, by a fitted law, whose error is `error` at most; None where no network has it."""
    check("smallest_network", "error", 0 < error < 1, "above 0 and below 1", error)
    check("smallest_network", "networks", len(networks) > 0, "one or more", networks)
    table = [(one.dense_error, one.depth, one.width, one.weights) for one in networks]
    *arguments, weights = np.array(table, dtype=float).T
    own, *others = (law.density(error, *arguments) * weights for law in (found.law, *found.resampled))
    if not math.isfinite(least := own.min()):
        return None
    best, resampled = int(own.argmin()), np.array(others)
    low, high = np.quantile(resampled.min(1), (LEVEL / 2, 1 - LEVEL / 2), method="inverted_cdf")
    return Smallest(
        network=networks[best],
        density=float(least / weights[best]),
        weights=float(least),
        low=float(low),
        high=float(high),
        agree=float(np.mean(resampled.argmin(1) == best)),
    )
