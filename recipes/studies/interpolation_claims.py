"""What two papers say of straight lines through the weights of a training; verdicts.

Frankle, Revisiting "Qualitatively Characterizing Neural Network Optimization Problems" (arXiv:2012.06898), and Vlaar
and Frankle, What Can Linear Interpolation of Neural Network Loss Landscapes Tell Us? (arXiv:2106.16004). Seeds are the
clusters, but where arms are correlated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from accelerando.algorithms.connectivity.curves import lower_is_better

from .claims import Claim, Verdict, judge, judge_each, judge_some
from .interpolation_arms import finest, halves
from .interpolation_cells import BEGIN, RUN, WHOLE, parts_in, paths, short, treatments_of, with_treatment
from .paths import TREATMENTS
from .statistics import LEAST, difference, paired, spearman
from .table import Row, by_seed, groups

REVISITING, WHAT = "arXiv:2012.06898", "arXiv:2106.16004"
TOLERANCE = 0.01  # of the fall from the beginning to the end: what rises by less is numerical, or that of few examples
CLOSE = 0.75  # the place on the path from which on it is close to the end; a straight fall is midway at 0.5
TELLS = 0.5  # a correlation of arms that tells
POINTS = 1.0  # of error, by which parts differ that are unlike


def claims_of(
    rows: Sequence[Row],
    metric: str,
    setting: Literal["simple", "modern"],
    detailed: Sequence[str],
    by_sensitivity: Mapping[str, str],
) -> Iterator[Claim]:
    """The verdicts, those on paths for each treatment of batch norm.

    `by_sensitivity` says of the arms that have options by part of which arm's parts.
    """
    if not (treatments := treatments_of(rows)):
        return
    first = next(row["arm"] for row in rows if row["role"] == RUN)
    for how in treatments:
        named = f" ({TREATMENTS[how]})" if len(treatments) > 1 else ""
        own = with_treatment(rows, how)
        found = [_falls(own, first, how) if setting == "simple" else _stays_high(own, first, how)]
        found += [_from_the_middle(own, arm, how) for arm in detailed]
        found.append(_shape_and_metric(own, metric, how))
        found += [_parts_differ(own, arm, how) for arm in detailed if parts_in(row for row in own if row["arm"] == arm)]
        yield from (replace(claim, claim=claim.claim + named) for claim in found)
    for arm, of in by_sensitivity.items():
        if {arm, of} <= {row["arm"] for row in rows if row["role"] == RUN}:
            yield _options_help(rows, metric, arm, of)


def _whole(rows: Sequence[Row], arm: str, name: str) -> dict[str, dict[int, float]]:
    """This number of the paths of all weights, by their start, then by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in paths(rows, WHOLE, arm):
        found.setdefault(row["start"], {})[row["seed"]] = row.metrics.get(name, math.nan)
    return found


def _falls(rows: Sequence[Row], arm: str, how: str) -> Claim:
    rises = _whole(rows, arm, f"rise/train/loss/{how}").get(BEGIN, {})
    falls = _whole(rows, arm, f"fall/train/loss/{how}").get(BEGIN, {})
    found = paired({seed: TOLERANCE * fall for seed, fall in falls.items()}, rises)
    claim = "In the simple setting the training loss falls steadily from the initial weights to the final ones."
    measured = f"highest rise {_each(rises)}; what {TOLERANCE:g} of the fall is more than that: {found}"
    return judge(claim, f"{REVISITING}, of Goodfellow et al.", found, measured=measured)


def _stays_high(rows: Sequence[Row], arm: str, how: str) -> Claim:
    places = {metric: _whole(rows, arm, f"high/test/{metric}/{how}").get(BEGIN, {}) for metric in ("loss", "error")}
    told = {f"the {metric}": difference([*values.values()]) for metric, values in places.items()}
    lacking = "" if all(math.isfinite(v) for own in places.values() for v in own.values()) else "a path does not fall"
    claim = (
        "In modern settings test loss and error stay high on the line from the initial weights until close to the "
        f"final ones: they are midway beyond {CLOSE:g} of it."
    )
    return judge_each(claim, REVISITING, told, precondition=lacking, at_least=CLOSE)


def _from_the_middle(rows: Sequence[Row], arm: str, how: str) -> Claim:
    """Of each step that lies in the middle, for whichever it is there by 0.01 of the fall from the beginning."""
    falls = _whole(rows, arm, f"fall/test/loss/{how}").get(BEGIN, {})
    above = {start: own for start, own in _whole(rows, arm, f"above/test/loss/{how}").items() if start != BEGIN}
    by_step = {}
    for start, own in above.items():
        values = {seed: value - TOLERANCE * falls.get(seed, math.nan) for seed, value in own.items()}
        by_step[start] = difference([value for value in values.values() if math.isfinite(value)])
    claim = f"From a state in the middle of training the test loss rises on the line to the end: a barrier ({arm})."
    measured = "; ".join(f"from {start} by {_each(own)}" for start, own in above.items()) or "nothing"
    lacking = "" if above else "steps names none"
    told = judge_some(claim, REVISITING, {f"from {at}": [one] for at, one in by_step.items()}, precondition=lacking)
    beyond = f"; beyond {TOLERANCE:g} of the fall from the beginning {told.measured}" if above else ""
    return replace(told, measured=f"{measured}{beyond}")


def _shape_and_metric(rows: Sequence[Row], metric: str, how: str) -> Claim:
    """Over arms, whose means over seeds are the points."""
    sign = -1 if lower_is_better(metric) else 1
    ends = {
        arm: float(np.mean([sign * row.metrics.get(metric, math.nan) for row in own]))
        for (arm,), own in groups([row for row in rows if row["role"] == RUN], "arm").items()
    }
    claim = "The shape of the path from the beginning to the end does not tell how good the end is."
    told, words = [], []
    for shape in ("area", "high", "above"):
        means = {arm: _mean(_whole(rows, arm, f"{shape}/test/loss/{how}").get(BEGIN, {})) for arm in ends}
        told_arms = [arm for arm in ends if math.isfinite(means[arm]) and math.isfinite(ends[arm])]
        # Those that are equal are one training, such as from a top that is the beginning.
        arms = [*{(means[arm], ends[arm]): arm for arm in told_arms}.values()]
        if (found := spearman(*([of[arm] for arm in arms] for of in (means, ends)))) is None:
            continue
        told.append((found.low, found.high))
        span = f"{found.low:+.2f} to {found.high:+.2f}, {found.points} arms"
        words.append(f"{shape} of the test loss {found.value:+.2f} ({span})")
    measured = f"Spearman's correlation with the metric: {'; '.join(words)}" if words else "nothing"
    how_told = f"95 % by Fisher's transformation, which must lie within {TELLS:g} of 0 for each shape"
    verdict: Verdict = "cannot be told here"
    if not told:
        how_told = f"fewer than {LEAST} arms have a path and differ; give more"
    elif all(low > -TELLS and high < TELLS for low, high in told):
        verdict = "holds"
    elif any(low > TELLS or high < -TELLS for low, high in told):
        verdict = "fails"
    return Claim(claim=claim, source=WHAT, measured=measured, verdict=verdict, why=how_told)


def _parts_differ(rows: Sequence[Row], arm: str, how: str) -> Claim:
    """By the part that is the most sensitive of all in the other seeds, less the least sensitive there, in this one."""
    by_part: dict[str, dict[int, float]] = {}
    kind = finest([kind for _, kind in parts_in(row for row in rows if row["arm"] == arm)])
    for row in paths(rows, kind, arm):
        by_part.setdefault(row["part"], {})[row["seed"]] = row[f"fall/test/error/{how}"]
    seeds = list(dict.fromkeys(seed for values in by_part.values() for seed in values))
    apart = {}
    for seed in seeds:
        means = {part: _mean({s: v for s, v in values.items() if s != seed}) for part, values in by_part.items()}
        order = sorted((part for part in means if math.isfinite(means[part])), key=lambda part: means[part])
        if len(order) > 1:
            apart[seed] = by_part[order[-1]][seed] - by_part[order[0]][seed]
    found = difference([*apart.values()])
    order = sorted(by_part, key=lambda part: -_mean(by_part[part]))
    each = ", ".join(f"{short(part)} {_mean(by_part[part]):.2f}" for part in order)
    plural = {"layer": "layers", "block": "blocks"}.get(kind, "parts")
    claim = f"Some {plural} are more sensitive to being put back to their beginning than others ({arm})."
    measured = f"points of test error: {each}; the most less the least sensitive one of the other seeds {found}"
    hint = "" if len(by_part) > 1 else "there are not several parts"
    return judge(claim, WHAT, found, precondition=hint, at_least=POINTS, measured=measured)


def _options_help(rows: Sequence[Row], metric: str, arm: str, of: str) -> Claim:
    """And in how many of the seeds each part is of the more sensitive half."""
    sign = -1 if lower_is_better(metric) else 1
    of_runs = groups((row for row in rows if row["role"] == RUN), "arm")
    ends = {name: by_seed(of_runs[name,], lambda row: sign * row.metrics.get(metric, math.nan)) for name in (arm, of)}
    rises: dict[int, dict[str, float]] = {}
    kind = finest([kind for _, kind in parts_in(row for row in rows if row["arm"] == of)])
    for row in paths(rows, kind, of):
        rises.setdefault(row["seed"], {})[row["part"]] = row.metrics["fall/train/loss/interpolate"]
    times = Counter(part for own in rises.values() for part in halves(own)[0])
    half = ", ".join(f"{short(part)} {n}" for part, n in times.most_common())
    found = paired(ends[arm], ends[of])
    measured = f"{found}; in so many of {len(rises)} seeds a part is of the more sensitive half: {half}"
    claim = f"Options by how sensitive a part is help: {arm} ends better than {of}."
    return judge(claim, WHAT, found, measured=measured)


def _mean(values: dict[int, float]) -> float:
    return float(np.mean([*values.values()])) if values else math.nan


def _each(values: dict[int, float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values.values()) or "nothing"
