"""What Rosenfeld et al., On the Predictability of Pruning Across Scales (arXiv:2006.10621), say; verdicts for a family.

Intervals are those of resampled configurations, as the points of one configuration stray together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from accelerando.algorithms.pruning.scaling_law import ScalingLaw, best_law, deviations, relative_deviations

from .claims import Claim, Verdict, judge
from .scaling_law_cells import ALONE, CONSTANTS, Family, Spread, by_configuration, noise_of, spread_of
from .statistics import bootstrap, difference

QUOTED = "arXiv:2006.10621, as others quote it"
ABSTRACT = "arXiv:2006.10621, abstract"
MEAN, SINGLY, JOINTLY = 0.02, 0.04, 0.06  # relative errors
ENOUGH, CHANGE, DRAWS = 15, 0.01, 20  # configurations; of the deviation; subsets
STEEP = 0.5  # the share of gamma that the law's slope is in the region of the power law
NEAR = 0.25  # of the number of weights
POINTS = 2  # for each constant at least: fewer points lie near to any law that is fitted to them
TOO_FEW = f"too few points, which must be {POINTS} for each of the law's constants"
UNTOLD: Verdict = "cannot be told here"


def claims_of(family: Family) -> Iterator[Claim]:
    """The verdicts on one family's law."""
    if family.law and family.law.within.points < POINTS * CONSTANTS:
        family = replace(family, law=None)
    jointly = dict.fromkeys(family.measured.configurations, family.law.law) if family.law else {}
    alone = {name: one.law for name, one in family.singles.items() if one.within.points >= POINTS * ALONE}
    claim = "The law of a single configuration errs by less than 2 % in the mean, with a deviation below 4 %."
    yield _bounded(claim, alone, [*alone], SINGLY, family)
    claim = "One law of all configurations errs by less than 2 % in the mean, with a deviation below 6 %."
    yield _bounded(claim, jointly, family.fitted_on, JOINTLY, family)
    if family.predicted:
        claim = "It predicts networks that it was not fitted on: less than 2 % in the mean, a deviation below 6 %."
        yield _bounded(claim, jointly, family.predicted, JOINTLY, family)
    yield _suffice(family)
    yield _invariant(family)
    yield _of_another_nature(family)
    if family.smallest:
        yield _smallest(family)


def _bounded(claim: str, laws: Mapping[str, ScalingLaw], names: Sequence[str], limit: float, family: Family) -> Claim:
    """The verdict on how far the laws of these configurations are off.

    It does not hold where the dense networks' errors are as near to what was measured, as any law would be there.
    """
    if not laws:
        return Claim(claim=claim, source=QUOTED, measured="nothing", verdict=UNTOLD, why=TOO_FEW)
    parts = [(laws[name], family.measured.of([name])) for name in names]
    found, noise = spread_of([relative_deviations(law, own) for law, own in parts]), noise_of(family)
    below = _is_within(found, limit)
    above = min(found.of_mean) > MEAN or max(found.of_mean) < -MEAN or found.of_deviation[0] > limit
    verdict, why = _verdict(found, below, above)
    if verdict != "holds" and not noise < limit:
        what = "are not known, of one seed" if math.isnan(noise) else f"are {noise:.1%} by themselves"
        verdict, why = UNTOLD, f"the standard errors of what was measured {what}"
    if verdict == "holds" and _is_within(spread_of([own.dense_error / own.error - 1 for _, own in parts]), limit):
        verdict, why = UNTOLD, "the errors are as near to those of the dense networks; prune further"
    return Claim(claim=claim, source=QUOTED, measured=str(found), verdict=verdict, why=why)


def _is_within(found: Spread, limit: float) -> bool:
    return max(map(abs, found.of_mean)) < MEAN and found.of_deviation[1] < limit


def _verdict(found: Spread, holds: bool, fails: bool) -> tuple[Verdict, str]:
    if found.configurations < 2:
        return UNTOLD, "one configuration has no interval; give two or more"
    if holds or fails:
        return "holds" if holds else "fails", f"by the intervals of resampled configurations ({found.configurations})"
    return UNTOLD, "the intervals of resampled configurations hold both"


def _suffice(family: Family) -> Claim:
    """Those of random subsets are beside that of all; of fewer than 15 configurations two thirds are taken."""
    claim = "About 15 configurations suffice: with more, the deviation changes by less than 1 point."
    measured, names = family.measured, family.measured.configurations
    count = min(ENOUGH, 2 * len(names) // 3)
    if family.law is None or count < 2:
        return Claim(claim=claim, source=QUOTED, measured="nothing", verdict=UNTOLD, why=TOO_FEW)
    of_all = deviations(best_law(measured), measured).deviation
    generator, found = np.random.default_rng(0), list[float]()
    for _ in range(DRAWS):
        part = measured.of(generator.choice(names, count, replace=False).tolist())
        if len(part) > CONSTANTS:
            found.append(deviations(best_law(part), measured).deviation - of_all)
    if not found:
        return Claim(claim=claim, source=QUOTED, measured="nothing", verdict=UNTOLD, why=TOO_FEW)
    low, middle, high = np.quantile(found, (0.025, 0.5, 0.975))
    verdict: Verdict = "holds" if max(high, -low) < CHANGE else "fails" if low > CHANGE and count >= ENOUGH else UNTOLD
    drawn = f"{len(found)} times {count} of {len(names)} configurations"
    text = f"{drawn}: deviation over all {middle:+.2%} (95 % {low:+.2%} to {high:+.2%}) above {of_all:.2%}"
    why = f"by {len(found)} random subsets" if verdict != UNTOLD else f"{len(names)} configurations do not tell more"
    return Claim(claim=claim, source=QUOTED, measured=text, verdict=verdict, why=why)


def _invariant(family: Family) -> Claim:
    claim = "In the region of the power law, networks of equal m* have equal errors: they differ by less than 6 %."
    measured, law, names = family.measured, family.law, family.measured.configurations
    if law is None:
        return Claim(claim=claim, source=ABSTRACT, measured="nothing", verdict=UNTOLD, why=TOO_FEW)
    found = law.law
    m = found.invariant(*measured.arguments[1:])
    up = (m / found.p) ** 2, (found.eps_up / measured.dense_error) ** (2 / found.gamma)
    steep = up[1] / (up[0] + up[1]) - 1 / (1 + up[0]) >= STEEP
    at_m, at_density = (_apart(family, steep, np.log(x)) for x in (m, measured.density))
    if np.count_nonzero(at_m[1].any(1)) < 3:  # two have no interval
        hint = f"in the region of the power law there are not three of {len(names)} configurations with the same m*"
        return Claim(claim=claim, source=ABSTRACT, measured="nothing", verdict=UNTOLD, why=hint)
    value, (low, high) = _root(*at_m), _resampled(*at_m)
    verdict: Verdict = "holds" if high < JOINTLY else "fails" if low > JOINTLY else UNTOLD
    noise = noise_of(family)
    why = "by the interval of resampled configurations"
    if verdict == UNTOLD:
        why = f"{why}, which holds {JOINTLY:.0%}"
    if verdict != "holds" and not noise < JOINTLY:
        verdict, why = UNTOLD, "the standard errors of what was measured are as large, or not known of one seed"
    text = f"at equal m* {value:.1%} (95 % {low:.1%} to {high:.1%})"
    if at_density[1].any():
        text += f", at equal density {_root(*at_density):.1%}"
    return Claim(claim=claim, source=ABSTRACT, measured=text, verdict=verdict, why=why)


def _apart(family: Family, chosen: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far apart log errors are at equal `x`, between two levels by interpolation, of each pair of configurations.

    The sums of squares, and of how many places, (configurations, configurations).
    """
    names, y = family.measured.configurations, np.log(family.measured.error)
    sums, counts = np.zeros((2, len(names), len(names)))
    places = [np.flatnonzero(chosen & (family.measured.configuration == name)) for name in names]
    for (i, a), (j, b) in combinations(enumerate(places), 2):
        if len(a) > 1 and len(b) > 1:
            a, b = (each[np.argsort(x[each])] for each in (a, b))
            shared = a[(x[a] >= x[b[0]]) & (x[a] <= x[b[-1]])]
            sums[i, j] = np.sum((y[shared] - np.interp(x[shared], x[b], y[b])) ** 2)
            counts[i, j] = len(shared)
    return sums + sums.T, counts + counts.T


def _root(sums: np.ndarray, counts: np.ndarray) -> float:
    """The deviation of one network from what both have in common."""
    return math.sqrt(sums.sum() / counts.sum() / 2) if counts.any() else math.nan


def _resampled(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    def statistic(drawn: np.ndarray) -> float:
        return _root(sums[np.ix_(drawn, drawn)], counts[np.ix_(drawn, drawn)])

    return bootstrap(statistic, np.arange(len(sums)))


def _of_another_nature(family: Family) -> Claim:
    claim = "The law is of another nature than a power law of the size, which errs by more."
    if family.law is None or family.power is None:
        return Claim(claim=claim, source=ABSTRACT, measured="nothing", verdict=UNTOLD, why=TOO_FEW)
    names = family.predicted or family.fitted_on
    laws = [by_configuration(law, family.measured, names) for law in (family.power, family.law.law)]
    plain, ours = (np.array([np.sqrt(np.mean(own**2)) for own in law]) for law in laws)
    found = difference(plain - ours)
    of = "configurations that were not fitted on" if family.predicted else "configurations"
    text = f"root mean square {plain.mean():.1%} against {ours.mean():.1%}, of {len(names)} {of}"
    if found.pairs > 1:
        text += f"; more by {found.mean:.1%} (95 % {found.low:.1%} to {found.high:.1%})"
    judged = judge(claim, ABSTRACT, found, measured=text)
    return replace(judged, why=judged.why.replace("seed", "configuration"))


def _smallest(family: Family) -> Claim:
    claim = "The number of weights of the smallest network with a wanted error is predicted within 25 %."
    words, verdicts = list[str](), list[Verdict]()
    for error, (found, measured) in family.smallest.items():
        if found is None or not math.isfinite(measured.weights) or measured.at_most:
            lacking = "by the law no network has it" if found is None else "no network that was measured has it"
            if found and math.isfinite(measured.weights):
                lacking = f"a ladder ends before its networks are worse, and the smallest has {measured}"
            words.append(f"{error:g} (not counted: {lacking})")
            continue
        value, low, high = (weights / measured.weights - 1 for weights in (found.weights, found.low, found.high))
        is_near, is_far = max(abs(low), abs(high)) < NEAR, low > NEAR or high < -NEAR
        verdicts.append("holds" if is_near else "fails" if is_far else UNTOLD)
        words.append(f"{error:g} {value:+.0%} (95 % {low:+.0%} to {high:+.0%})")
    verdict = "fails" if "fails" in verdicts else UNTOLD if UNTOLD in verdicts or not verdicts else "holds"
    why = "by the intervals of the resampled laws" if verdicts else "none of the errors counts"
    return Claim(claim=claim, source=QUOTED, measured="; ".join(words), verdict=verdict, why=why)
