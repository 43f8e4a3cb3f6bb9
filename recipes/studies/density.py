"""Accuracy over density: which pruned networks match the dense one, and how sparse the sparsest of them is.

Matching: within 0.2 percentage points of the dense network (Frankle et al., Linear Mode Connectivity and the Lottery
Ticket Hypothesis, arXiv:1912.05671), or within one standard deviation (Chen et al., for BERT, arXiv:2007.12223).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.results import aligned, label, percent
from .statistics import mean_and_deviation
from .table import Row, by_seed

DENSE = "dense"
ROUNDING = 1e-6  # of metrics, which are of 32 bits
UNKNOWN = "what matches is not known: the dense network has no finite mean, or no standard deviation"


@dataclass(frozen=True, kw_only=True)
class Mean:
    """All seeds' rows of one arm at one density: the median of the seconds, and means of all else."""

    arm: str
    level: int
    density: float  # share of the prunable weights that is kept
    seeds: int  # how many
    value: float  # NaN or infinite if one of the runs diverged
    deviation: float  # of `value` over seeds, by n - 1; NaN for a single seed
    low: float  # the least value
    high: float  # the greatest
    compression_ratio: float
    speedup: float  # theoretical
    seconds: float  # of training, this level or run alone
    matches: bool | None = None  # whether it is as good as the dense network; None: that is the dense one, or not known
    tolerance: float = math.nan  # how much worse than the dense network may be what matches it; NaN: not known


def means(
    rows: Iterable[Row], metric: str, tolerance: float | None = 0.002, chosen_by: str | None = None
) -> list[Mean]:
    """One for each arm and density, in the order of the rows' arms, in each by falling density.

    What matches has a mean of the metric `chosen_by`, by default `metric` itself, that is worse than the dense
    network's by `tolerance` at most, in the metric's own units; by default 0.2 percentage points of accuracy. None: by
    the dense network's standard deviation over seeds. Densities are equal if their percentages are to three digits; of
    one seed the last row counts.
    """
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], percent(row["density"])), {})[row["seed"]] = row
    cells = [[*seeds.values()] for seeds in groups.values()]
    order = list(dict.fromkeys(cell[0]["arm"] for cell in cells))
    cells.sort(key=lambda cell: (order.index(cell[0]["arm"]), -np.mean([row["density"] for row in cell])))
    chosen = _matched([_mean(cell, chosen_by or metric) for cell in cells], chosen_by or metric, tolerance)
    shown = [_mean(cell, metric) for cell in cells]
    return [
        replace(mean, matches=other.matches, tolerance=other.tolerance)
        for mean, other in zip(shown, chosen, strict=True)
    ]


def _mean(cell: Sequence[Row], metric: str) -> Mean:
    first, values = cell[0], np.array([row.metrics.get(metric, math.nan) for row in cell])
    value, deviation = mean_and_deviation(values)
    density, compression_ratio, speedup = np.mean(
        [(row["density"], row["compression_ratio"], row["speedup"]) for row in cell], axis=0
    ).tolist()
    return Mean(
        arm=first["arm"],
        level=first["level"],
        density=density,
        seeds=len(cell),
        value=value,
        deviation=deviation,
        low=float(values.min()),
        high=float(values.max()),
        compression_ratio=compression_ratio,
        speedup=speedup,
        seconds=float(np.median([row.seconds for row in cell])),
    )


def _matched(means: list[Mean], metric: str, tolerance: float | None) -> list[Mean]:
    dense, sign = dense_of(means), -1 if lower_is_better(metric) else 1
    margin = math.nan if dense is None else dense.deviation if tolerance is None else tolerance
    if dense is None or not math.isfinite(dense.value - margin):
        return means
    matched = []
    for row in means:
        near = math.isfinite(row.value) and sign * (dense.value - row.value) <= margin + ROUNDING
        matched.append(row if row.arm == DENSE else replace(row, matches=near, tolerance=margin))
    return matched


def values_of(rows: Iterable[Row], metric: str, arm: str, density: float) -> dict[Any, float]:
    """The arm's metric at a density by seed, or its negative where less is better."""
    sign, same = -1 if lower_is_better(metric) else 1, percent(density)
    own = [row for row in rows if row["arm"] == arm and percent(row["density"]) == same]
    return {seed: sign * value for seed, value in by_seed(own, metric).items()}


def dense_of(means: Iterable[Mean]) -> Mean | None:
    """The dense network's."""
    return next((row for row in means if row.arm == DENSE), None)


def by_arm(means: Sequence[Mean]) -> dict[str, list[Mean]]:
    """The rows of each arm but the dense network, by falling density."""
    arms = dict.fromkeys(row.arm for row in means if row.arm != DENSE)
    return {arm: sorted((row for row in means if row.arm == arm), key=lambda row: -row.density) for arm in arms}


def sparsest_match(means: Sequence[Mean]) -> dict[str, Mean | None]:
    """Of each arm but the dense network the row of lowest density that matches, as all its rows above it do."""
    matching = {arm: [*takewhile(lambda row: row.matches, rows)] for arm, rows in by_arm(means).items()}
    return {arm: rows[-1] if rows else None for arm, rows in matching.items()}


def table(means: Sequence[Mean], metric: str, by_deviation: bool = False, chosen_by: str | None = None) -> str:
    """Each arm's values by density, and its sparsest match; of arms and densities the more numerous are the rows."""
    arms, dense = by_arm(means), dense_of(means)
    pruned = sorted((row for rows in arms.values() for row in rows), key=lambda row: -row.density)
    cells = {(row.arm, percent(row.density)): _cell(row) for row in pruned}
    densities = dict.fromkeys(density for _, density in cells)
    rows = [["arm", *densities]] + [[arm, *(cells.get((arm, density), "") for density in densities)] for arm in arms]
    if known := any(row.matches is not None for row in pruned):
        sparsest = [percent(row.density) if row else "none" for row in sparsest_match(means).values()]
        rows = [[*row, last] for row, last in zip(rows, ["sparsest match", *sparsest], strict=True)]
    if len(densities) >= len(arms):
        rows = list(zip(["weights", *rows[0][1:]], *rows[1:], strict=True))
    first = f"{label(metric)}{_seeds(means)}, by weights remaining\ndense network: {_cell(dense)}"
    last = _meaning(pruned[0], by_deviation, chosen_by) if known and dense else UNKNOWN
    return "\n".join((first, aligned(rows, left=("arm",), blank="not trained at this density"), last))


def _seeds(means: Sequence[Mean]) -> str:
    least, most = (which((row.seeds for row in means), default=1) for which in (min, max))
    number = most if least == most else f"{least} to {most}"
    return f", mean ± standard deviation over {number} seeds" if most > 1 else " of one seed"


def _cell(row: Mean | None) -> str:
    if row is None or not math.isfinite(row.value):
        return "diverged" if row else "none"
    deviation = f" ± {row.deviation:.4f}".replace(" 0.", " .") if math.isfinite(row.deviation) else ""
    return f"{'* ' if row.matches else ''}{row.value:.4f}{deviation}"


def _meaning(row: Mean, by_deviation: bool, chosen_by: str | None) -> str:
    within = f"one standard deviation ({row.tolerance:.4f})" if by_deviation else f"{row.tolerance:.4g}"
    by = " on validation data" if chosen_by else ""
    sparsest = "sparsest match: the lowest density down to which all match"
    return f"* matches: mean within {within} of the dense network's, or better{by}; {sparsest}"
