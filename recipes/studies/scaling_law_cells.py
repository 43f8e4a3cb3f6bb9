"""What the study `scaling_law` makes of its rows: for each family the points, the fits, how far they are off; tables.

A row is a level of a ladder. Its tags are `arm` (the configuration), `family`, `depth`, `width`, `examples`, `weights`
(how many can be pruned), `seed`, `level` (0: the dense network) and `density`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelerando.algorithms.pruning.scaling_law import (
    FittedLaw,
    PowerLaw,
    PrunableNetwork,
    Smallest,
    deviations,
    fit_power_law,
    fit_scaling_law,
    relative_deviations,
    smallest_network,
)
from accelerando.algorithms.pruning.scaling_measurements import Measurements

from ..run.results import aligned, percent
from .statistics import bootstrap, mean_and_deviation
from .table import Row, groups

TOLD = ("depth", "width", "examples")  # l, w and n
CONSTANTS, ALONE = 5, 3  # of one law of all configurations, and of one
RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class SmallestMeasured:
    """The least number of weights with which an error was measured, infinite where none was.

    It is but a bound (`at_most`) where a ladder ends before its networks are worse.
    """

    weights: float
    at_most: bool

    def __str__(self) -> str:
        if not math.isfinite(self.weights):
            return "none"
        return f"{'at most ' * self.at_most}{self.weights:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The networks of one model, by their points, means over seeds.

    Attributes:
        measured: all points of pruned networks; `examples` and `noise`, (points,), are those of the training data, and
            the standard error of the mean over seeds, relative to it, NaN for a single seed.
        networks: the dense ones by configuration.
        fitted_on: the configurations that the joint law was fitted on.
        law, power: the joint law and the plain power law; None where there are too few points.
        singles: the laws of single configurations.
        smallest: by wanted error the smallest network by the law, and the smallest that was measured.
        left_out: points that lack an error above 0, or some of the seeds.
    """

    name: str
    measured: Measurements
    examples: np.ndarray
    noise: np.ndarray
    networks: Mapping[str, PrunableNetwork]
    fitted_on: Sequence[str]
    law: FittedLaw | None
    power: PowerLaw | None
    singles: Mapping[str, FittedLaw]
    smallest: Mapping[float, tuple[Smallest | None, SmallestMeasured]]
    left_out: Sequence[str]

    @property
    def predicted(self) -> list[str]:
        """The configurations that the joint law was not fitted on."""
        return [name for name in self.measured.configurations if name not in self.fitted_on]


def families_of(
    rows: Sequence[Row], metric: str, fit_on: Collection[str] | None, errors: Sequence[float]
) -> list[Family]:
    """Those that have a point at least."""
    found = (_family(name, own, metric, fit_on, errors) for (name,), own in groups(rows, "family").items())
    return [family for family in found if family]


def _family(
    name: str, rows: Sequence[Row], metric: str, fit_on: Collection[str] | None, errors: Sequence[float]
) -> Family | None:
    points: list[tuple[Any, ...]] = []
    networks, left_out = dict[str, PrunableNetwork](), list[str]()
    for (arm,), own in groups(rows, "arm").items():
        by_level, first = groups(own, "level"), own[0]
        seeds = len(by_level.get((0,), ()))
        levels = {level: _of_level(of_level, metric, seeds) for (level,), of_level in by_level.items()}
        if not 0 < (dense := levels.pop(0, (math.nan,))[0]) < math.inf:
            left_out.append(f"{arm} (no error of the dense network above 0)")
            continue
        sizes = {key: first[key] for key in ("depth", "width")}
        networks[arm] = PrunableNetwork(name=arm, dense_error=dense, weights=first["weights"], **sizes)
        for error, noise, density in (levels[level] for level in sorted(levels)):
            if 0 < error < math.inf and density > 0:
                points.append((arm, density, error, dense, *sizes.values(), first["examples"], noise))
            else:
                left_out.append(f"{arm} at {percent(density)}")
    if not points:
        return None
    measured = Measurements.of_points(point[:6] for point in points)
    examples, noise = (np.array(column) for column in zip(*(point[6:] for point in points), strict=True))
    chosen = [arm for arm in measured.configurations if fit_on is None or arm in fit_on]
    part = measured.of(chosen) if chosen else None
    law = fit_scaling_law(part, RESAMPLES) if part is not None and len(part) > CONSTANTS else None
    return Family(
        name=name,
        measured=measured,
        examples=examples,
        noise=noise,
        networks=networks,
        fitted_on=chosen,
        law=law,
        power=fit_power_law(part) if law and part is not None else None,
        singles={
            arm: fit_scaling_law(own, RESAMPLES)
            for arm in measured.configurations
            if len(own := measured.of([arm])) > ALONE
        },
        smallest={
            error: (smallest_network(law, [*networks.values()], error), _smallest_measured(measured, networks, error))
            for error in errors
            if law
        },
        left_out=left_out,
    )


def _of_level(rows: Sequence[Row], metric: str, seeds: int) -> tuple[float, float, float]:
    """The mean error over seeds, the standard error of that relative to it, and the density.

    It is NaN where some seeds have not come that far: those that have may be the better ones.
    """
    errors = [1 - row.metrics.get(metric, math.nan) for row in rows]
    mean, deviation = mean_and_deviation(errors if len(rows) == seeds else [math.nan])
    noise = deviation / math.sqrt(len(rows)) / mean if mean > 0 else math.nan
    return mean, noise, float(np.mean([row["density"] for row in rows]))


def _smallest_measured(
    measured: Measurements, networks: Mapping[str, PrunableNetwork], error: float
) -> SmallestMeasured:
    """The sparsest levels that have the error; up to the next one by interpolation, of the logarithms of both."""
    least, at_most = math.inf, False
    for name, network in networks.items():
        own = measured.configuration == name
        x, y = np.log([*measured.density[own], 1.0]), np.log([*measured.error[own], network.dense_error])
        order = x.argsort()
        x, y = x[order], y[order] - math.log(error)
        if not (y <= 0).any():
            continue
        i = int((y <= 0).argmax())
        at_most |= i == 0
        place = x[i] + (x[i - 1] - x[i]) * y[i] / (y[i] - y[i - 1]) if i else x[0]
        least = min(least, network.weights * math.exp(place))
    return SmallestMeasured(weights=least, at_most=at_most)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and deviation of relative errors of several configurations, with 95 % of their resamples."""

    mean: float
    deviation: float
    of_mean: tuple[float, float]
    of_deviation: tuple[float, float]
    configurations: int

    def __str__(self) -> str:
        (a, b), (c, d) = self.of_mean, self.of_deviation
        if self.configurations == 1:
            return f"mean {self.mean:+.1%}, deviation {self.deviation:.1%}, one configuration"
        return (
            f"mean {self.mean:+.1%} (95 % {a:+.1%} to {b:+.1%}), deviation {self.deviation:.1%} ({c:.1%} to {d:.1%}), "
            f"{self.configurations} configurations"
        )


def spread_of(values: Sequence[np.ndarray]) -> Spread:
    """Of relative deviations, an array (points,) for each configuration; of one configuration no interval is known."""

    def over(statistic: Callable[[np.ndarray], Any], places: np.ndarray) -> float:
        return float(statistic(np.concatenate([values[place] for place in places])))

    places = np.arange(len(values))
    found = [
        (over(statistic, places), bootstrap(lambda drawn, s=statistic: over(s, drawn), places))
        if len(values) > 1
        else (over(statistic, places), (-math.inf, math.inf))
        for statistic in (np.mean, lambda x: np.std(x, ddof=1))
    ]
    (mean, of_mean), (deviation, of_deviation) = found
    return Spread(
        mean=mean, deviation=deviation, of_mean=of_mean, of_deviation=of_deviation, configurations=len(values)
    )


def by_configuration(law: Any, measured: Measurements, names: Sequence[str]) -> list[np.ndarray]:
    """The relative deviations of the points of each of these configurations."""
    return [relative_deviations(law, measured.of([name])) for name in names]


def lines_of(family: Family) -> list[dict[str, Any]]:
    """A line for each point."""
    measured, law = family.measured, family.law
    predicted = law.law.error(*measured.arguments) if law else np.full(len(measured), math.nan)
    return [
        {
            "family": family.name,
            "configuration": measured.configuration[i],
            **{key: getattr(measured, key)[i] for key in ("depth", "width")},
            "examples": family.examples[i],
            "weights": family.networks[measured.configuration[i]].weights,
            **{key: getattr(measured, key)[i] for key in ("density", "dense_error", "error")},
            "noise": family.noise[i],
            "predicted": predicted[i],
            "fitted": measured.configuration[i] in family.fitted_on,
        }
        for i in range(len(measured))
    ]


def table_of(family: Family) -> str:
    """The constants, the deviations, each configuration by itself, and the smallest networks."""
    parts = [f"{family.name.upper()}, {len(family.measured)} points of {len(family.networks)} configurations"]
    parts.append(_constants(family) if family.law else "too few points to fit the law on")
    lines = [["configuration", "depth", "width", "examples", "dense error", "alone: mean", "deviation", "cannot tell",
              "jointly: mean", "deviation", "the joint law is"]]  # fmt: skip
    for name in family.measured.configurations:
        own, network, alone = family.measured.of([name]), family.networks[name], family.singles.get(name)
        jointly = deviations(family.law.law, own) if family.law else None
        told = (
            [f"{alone.within.mean:+.1%}", f"{alone.within.deviation:.1%}", ", ".join(alone.untold) or "none"]
            if alone
            else [""] * 3
        )
        told += [f"{jointly.mean:+.1%}", f"{jointly.deviation:.1%}"] if jointly else [""] * 2
        examples = family.examples[family.measured.configuration == name][0]
        sizes = [f"{value:g}" for value in (network.depth, network.width, examples)]
        lines.append(
            [name, *sizes, f"{network.dense_error:.4f}", *told, "fitted" if name in family.fitted_on else "predicted"]
        )
    parts.append(
        aligned(lines, left=("configuration", "cannot tell", "the joint law is"), blank="too few points to fit on")
    )
    if family.smallest:
        parts.append(_smallest(family))
    if family.left_out:
        parts.append(f"left out: {', '.join(family.left_out)}")
    return "\n".join(parts)


def _constants(family: Family) -> str:
    assert family.law and family.power
    lines = [str(family.law)]
    for names, words in ((family.fitted_on, "fitted"), (family.predicted, "predicted")):
        if names:
            part = family.measured.of(names)
            pair = (("the law", family.law.law), ("a plain power law", family.power))
            lines += [f"{words}, {law}: {deviations(fitted, part)}" for law, fitted in pair]
    if np.isfinite(family.noise).any():
        lines.append(f"standard error of the means over seeds: {noise_of(family):.1%} of them")
    return "\n".join(lines)


def noise_of(family: Family) -> float:
    """The root mean square, over points, of the relative standard error of the mean over seeds; NaN if unknown."""
    known = family.noise[np.isfinite(family.noise)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else math.nan


def _smallest(family: Family) -> str:
    lines = [["error", "smallest network", "density", "weights", "95 %", "of the laws", "measured"]]
    for error, (found, measured) in family.smallest.items():
        if found is None:
            lines.append([f"{error:g}", "none", "", "", "", "", str(measured)])
            continue
        interval = " to ".join(f"{bound:,.0f}" for bound in (found.low, found.high))
        cells = [found.network.name, percent(found.density), f"{found.weights:,.0f}", interval, percent(found.agree)]
        lines.append([f"{error:g}", *cells, str(measured)])
    return aligned(lines, left=("smallest network",), blank="no network of the law's has so small an error")
