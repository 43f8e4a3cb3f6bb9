"""What Blalock et al. (arXiv:2003.03033) say of pruned networks: how methods rank, what decides it; the verdicts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from .claims import Claim, judge_each, judge_some
from .shrinkbench_table import GRADIENT, MAGNITUDE, RANDOM, Entry
from .statistics import Difference, paired

SOURCE = "arXiv:2003.03033, as others quote it"
FAR = 0.05  # of the accuracy
CRITERIA = (MAGNITUDE, GRADIENT)

Values = dict[Any, float]  # top-1 by seed
Cells = Mapping[tuple[str, float], Mapping[str, Mapping[str, Values]]]  # pair and ratio, initial model, method


def claims_of(entries: Sequence[Entry]) -> Iterator[Claim]:
    """Each on the top-1 accuracy; seeds are paired, as they order the data alike for all methods.

    A method of which a run has diverged is not compared; and where there is one, no method is the first.
    """
    diverged = {_network(one) for one in entries if not math.isfinite(one.top1)}
    places, baselines = {network[:3] for network in diverged}, {one.method: one.baseline for one in entries}
    ranked = cells_of([one for one in entries if _network(one)[:3] not in places])
    yield _telling(_by_initial(ranked), diverged)
    yield _telling(_by_seed(ranked), diverged)
    cells = cells_of([one for one in entries if _network(one) not in diverged])
    for ratio in sorted({one.asked for one in entries}):
        of_ratio = {pair: own for (pair, asked), own in cells.items() if asked == ratio}
        lost = {network for network in diverged if network[1] == ratio}
        yield _telling(_random_is_far_below(ratio, of_ratio, baselines), lost)
        yield _telling(_global_beats_layerwise(ratio, of_ratio, baselines), lost)


def _network(one: Entry) -> tuple[str, float, str, str]:
    return one.pair, one.asked, one.initial, one.method


def _telling(claim: Claim, diverged: Collection[tuple[str, float, str, str]]) -> Claim:
    """The claim with what is not counted."""
    names = [f"{method} of {pair}, {initial} at {ratio:g}x" for pair, ratio, initial, method in sorted(diverged)]
    told = f"{claim.measured}; not counted, as a run diverged: {', '.join(names)}"
    return replace(claim, measured=told) if names else claim


def cells_of(entries: Sequence[Entry]) -> Cells:
    """The top-1 accuracies by pair and ratio, initial model, method and seed."""
    found: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for one in entries:
        found[one.pair, one.asked][one.initial][one.method][one.seed] = one.top1
    return found


def _by_initial(cells: Cells) -> Claim:
    """It holds where one method is above all others of an initial model, and another of another, by t tests."""
    several = {place: own for place, own in cells.items() if len(own) > 1}
    found: dict[str, list[Difference]] = {}
    for (pair, ratio), own in several.items():
        for one, other in combinations(own, 2):
            methods = own[one].keys() & own[other].keys()
            firsts = [{a: _above_all(own[initial], a, methods) for a in methods} for initial in (one, other)]
            for a, b in permutations(methods, 2):
                name = f"{pair} at {ratio:g}x: {a} above all others of {one}, {b} above all others of {other}"
                found[name] = [firsts[0][a], firsts[1][b]]
    firsts = {place: {_first(methods) for methods in own.values()} for place, own in several.items()}
    differ = sum(len(first) > 1 for first in firsts.values())
    claim = "Which method ranks first depends on the initial model."
    lacking = "" if several else "each pair has one initial model; give several initials"
    judged = judge_some(claim, SOURCE, dict(sorted(found.items())), precondition=lacking)
    where = (
        f"the means rank another method first for another initial model at {differ} of {len(firsts)} pairs and ratios"
    )
    return judged if lacking else replace(judged, measured=f"{where}; {judged.measured}")


def _above_all(methods: Mapping[str, Values], first: str, names: Collection[str]) -> Difference:
    """The difference of the first from the one of the others from which it is told least."""
    each = [paired(methods[first], methods[name]) for name in sorted(names) if name != first]
    return max(each, key=lambda one: one.p_above if one.pairs > 1 else math.inf, default=paired({}, {}))


def _by_seed(cells: Cells) -> Claim:
    """By counting, as it says what single seeds tell: it holds where any place has no method that all seeds put first.

    A method that shares the first place is first, too.
    """
    places = [methods for own in cells.values() for methods in own.values() if len(methods) > 1]
    seeds = [_of_each_seed(methods) for methods in places]
    several = [firsts for firsts in seeds if len(firsts) > 1]
    differ = sum(not set.intersection(*firsts) for firsts in several)
    claim = "Which method ranks first depends on the seed."
    measured = f"no method is first with every seed at {differ} of {len(several)} pairs, initial models and ratios"
    if not several:
        why = "one method, or one seed, has nothing beside it; give two or more"
        return Claim(claim=claim, source=SOURCE, measured="nothing", verdict="cannot be told here", why=why)
    verdict = "holds" if differ else "fails"
    return Claim(claim=claim, source=SOURCE, measured=measured, verdict=verdict, why="by counting; one place suffices")


def _first(methods: Mapping[str, Values]) -> str:
    means = {method: float(np.mean([*values.values()])) for method, values in methods.items()}
    return max(means, key=lambda method: means[method])


def _of_each_seed(methods: Mapping[str, Values]) -> list[set[str]]:
    """For each seed that all methods have, those that are first."""
    common = set.intersection(*({*values} for values in methods.values()))
    best = {seed: max(values[seed] for values in methods.values()) for seed in common}
    return [{method for method, values in methods.items() if values[seed] == best[seed]} for seed in common]


def _random_is_far_below(ratio: float, cells: Mapping[str, Any], baselines: Mapping[str, str]) -> Claim:
    found = {}
    for place, methods in _places(cells):
        random, scopes = _with(methods, baselines, RANDOM), product(("global", "layerwise"), CRITERIA)
        others = [own for scope in scopes if (own := _with(methods, baselines, " ".join(scope)))]
        if random and others:
            seeds = random.keys() & set.intersection(*({*own} for own in others))
            found[place] = paired({seed: min(own[seed] for own in others) for seed in seeds}, random)
    claim = f"At {ratio:g}x, random pruning is far below magnitude and gradients, by over {100 * FAR:g} points."
    lacking = "" if found else "random pruning, or what to compare it with, was not tried"
    return judge_each(claim, SOURCE, found, precondition=lacking, at_least=FAR)


def _global_beats_layerwise(ratio: float, cells: Mapping[str, Any], baselines: Mapping[str, str]) -> Claim:
    found = {}
    for place, methods in _places(cells):
        for criterion in CRITERIA:
            both = [_with(methods, baselines, f"{scope} {criterion}") for scope in ("global", "layerwise")]
            if all(both):
                found[f"{place}, {criterion}"] = paired(*both)
    claim = f"At {ratio:g}x, comparing the scores of all layers is better than pruning each layer alike."
    lacking = "" if found else "no criterion was tried both ways"
    return judge_each(claim, SOURCE, found, precondition=lacking)


def _places(cells: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Values]]]:
    for pair, own in cells.items():
        for initial, methods in own.items():
            yield f"{pair}, {initial}", methods


def _with(methods: Mapping[str, Values], baselines: Mapping[str, str], baseline: str) -> Values:
    """The first method that is that baseline; empty where there is none."""
    return next((values for method, values in methods.items() if baselines[method] == baseline), {})
