"""Least squares for `scaling_law.py`: relative deviations of the law by log parameters, and many fits at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

NAMES = ("eps_up", "gamma", "p", "phi", "psi")
GAMMA = (0.02, 500.0)  # in which gamma is looked for
EXPONENTS = 20.0  # of phi and psi, either way
BEYOND = 1e4  # by this factor p may lie outside of the measured densities
STARTS = 8  # of the grid
STEPS = 60
BLOCK = 200_000  # points at a time, as more do not stay in the caches


@dataclass(frozen=True)
class Problem:
    """Measured errors, and the logarithms of the dense errors, densities, depths and widths, (points,).

    Parameters, (fits, 5), are log eps_up, log gamma, log p, phi and psi, with p at the mean logarithms of depth and
    width.
    """

    error: np.ndarray
    dense: np.ndarray
    density: np.ndarray
    depth: np.ndarray
    width: np.ndarray

    @cached_property
    def sizes(self) -> np.ndarray:
        """Depth and width by their mean logarithms, (2, points)."""
        both = np.stack([self.depth, self.width])
        return both - both.mean(1, keepdims=True)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the parameters, (5,). eps_up is an error, and lies above the dense networks'."""
        beyond, gamma = np.log(BEYOND), np.log(GAMMA)
        least = float(self.dense.max()) + 1e-6
        low = [least, gamma[0], self.density.min() - beyond, -EXPONENTS, -EXPONENTS]
        high = [max(0.0, least + 1e-6), gamma[1], self.density.max() + beyond, EXPONENTS, EXPONENTS]
        return np.array(low), np.array(high)

    def constants(self, theta: np.ndarray) -> tuple[float, ...]:
        """eps_up, gamma, p', phi and psi, of parameters (5,)."""
        p = theta[2] + theta[3] * self.depth.mean() + theta[4] * self.width.mean()
        return (*np.exp([*theta[:2], p]).tolist(), *theta[3:].tolist())

    def deviations(self, theta: np.ndarray) -> np.ndarray:
        """(predicted - measured) / measured, (fits, points)."""
        return self._evaluated(theta)[0]

    def linearized(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The deviations, and their derivatives by the parameters, (fits, points, 5)."""
        found, log_ratio, z, up, by_p = self._evaluated(theta)
        slopes = np.stack([up, log_ratio - up * z, by_p, -by_p * self.sizes[0], -by_p * self.sizes[1]], axis=-1)
        return found, (1 + found)[..., None] * slopes

    def _evaluated(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """The deviations; log(eps / eps_np); z = log(eps_up / eps_np); slopes of the second by log eps_up and log p.

        log(eps / eps_np) = gamma / 2 (log(1 + exp(s + 2 z / gamma)) - log(1 + exp(s))), exp(s) = (p / m)^2.
        """
        eps_up, log_gamma, p, phi, psi = (column[:, None] for column in theta.T)
        gamma, z = np.exp(log_gamma), eps_up - self.dense
        s = 2 * (p - self.density - phi * self.sizes[0] - psi * self.sizes[1])
        t = s + 2 * z / gamma
        first, second = np.logaddexp(0, t), np.logaddexp(0, s)
        log_ratio, up = gamma / 2 * (first - second), np.exp(t - first)
        found = np.exp(log_ratio + self.dense) / self.error - 1
        return found, log_ratio, z, up, gamma * (up - np.exp(s - second))


def best_fit(data: Problem, free: np.ndarray) -> np.ndarray:
    """The parameters (5,) of least squares, the best from several starts; those that are not `free` are 0."""
    low, high = data.bounds
    inside = 1e-3 * (high - low)

    def whole(x: np.ndarray) -> np.ndarray:
        theta = np.zeros((1, len(NAMES)))
        theta[0, free] = x
        return theta

    found = least_squares()(
        lambda x: data.deviations(whole(x))[0],
        np.clip(_best(data, _starts(data, free), free), low + inside, high - inside)[free],
        lambda x: data.linearized(whole(x))[1][0][:, free],
        bounds=(low[free], high[free]),
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    return whole(found.x)[0]


def _best(data: Problem, starts: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The parameters (5,) of the best of the fits from these starts."""
    fits = _descended(data, starts, np.ones((len(starts), len(data.error))), free)
    return fits[(data.deviations(fits) ** 2).sum(1).argmin()]


def _starts(data: Problem, free: np.ndarray) -> np.ndarray:
    """The best of a grid, (starts, 5)."""
    densities, top = data.density, np.log(data.error.max())
    grid = np.meshgrid(
        np.clip([top, top / 2, 0.0], *(bound[0] for bound in data.bounds)),
        np.log([0.3, 1.0, 3.0, 30.0]),
        np.linspace(densities.min() - 1, densities.max(), 5),
        [0.0, 1.0] if free[3] else [0.0],
        [0.0, 1.0] if free[4] else [0.0],
    )
    starts = np.stack([axis.ravel() for axis in grid], axis=1)
    squares = np.concatenate([(data.deviations(starts[part]) ** 2).sum(1) for part in _blocks(starts, data)])
    return starts[squares.argsort(kind="stable")[:STARTS]]


def limit_fits(data: Problem, theta: np.ndarray, free: np.ndarray) -> Iterator[np.ndarray]:
    """The best parameters (5,) with eps_up, and those with gamma, as large as it may be."""
    near = np.repeat(theta[None], 4, 0)
    near[:, 2] += (-1.0, 0.0, 1.0, 2.0)
    for k in (0, 1):
        starts, moving = np.concatenate([near, _starts(data, free)]), free.copy()
        starts[:, k], moving[k] = data.bounds[1][k], False
        yield _best(data, starts, moving)


def refits(data: Problem, theta: np.ndarray, counts: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The parameters (resamples, 5) of fits that begin at `theta`, of so many of each point, (resamples, points).

    All at once: one after the other they would take SciPy ten times as long.
    """
    starts = np.repeat(theta[None], len(counts), 0)
    fits = [_descended(data, starts[part], counts[part], free) for part in _blocks(starts, data)]
    return np.concatenate(fits)


def _blocks(fits: np.ndarray, data: Problem) -> Iterator[slice]:
    size = max(1, BLOCK // len(data.error))
    return (slice(start, start + size) for start in range(0, len(fits), size))


def _descended(data: Problem, theta: np.ndarray, weights: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Levenberg's and Marquardt's method within the bounds, for all fits (fits, 5), with weights (fits, points)."""
    low, high = data.bounds
    theta, damping, going = theta.copy(), np.full(len(theta), 1e-3), np.arange(len(theta))
    found, slopes = data.linearized(theta)
    cost = (weights * found**2).sum(1)
    for _ in range(STEPS):
        weighted = (weights[going, :, None] * slopes).swapaxes(1, 2)
        normal, gradient = weighted @ slopes, (weighted @ found[..., None])[..., 0]
        held = ~free | ((theta[going] <= low) & (gradient > 0)) | ((theta[going] >= high) & (gradient < 0))
        normal[held[:, :, None] | held[:, None, :]] = 0
        diagonal = np.einsum("fii->fi", normal)  # a view
        diagonal += damping[going, None] * diagonal + 1e-12
        diagonal[held], gradient[held] = 1, 0
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        tried, before = np.clip(theta[going] - step, low, high), cost[going]
        after = (weights[going] * data.deviations(tried) ** 2).sum(1)
        better = after <= before
        theta[going[better]], cost[going[better]] = tried[better], after[better]
        damping[going] *= np.where(better, 0.1, 10.0)
        going = going[~(better & (before - after <= 1e-9 * before)) & (damping[going] < 1e8)]
        if not len(going):
            break
        found, slopes = data.linearized(theta[going])
    return theta


def least_squares() -> Callable[..., Any]:
    """SciPy's; ImportError without it."""
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scipy":
            raise
        hint = "pip install 'accelerando[fit]'"
        raise ImportError(f"a fit needs SciPy, which is missing: {hint}", name="scipy") from None
    return least_squares
