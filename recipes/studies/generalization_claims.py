"""What Jin et al., Pruning's Effect on Generalization Through the Lens of Training and Regularization, say; verdicts.

arXiv:2210.13738. Each claim is judged for each share of wrong labels. The optimum is chosen on validation data, as far
as there are some; all differences are paired over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..run.results import percent
from .claims import Claim, judge, judge_each, judge_some
from .density import DENSE
from .generalization_cells import ALL, EXTENDED, LEFT_OUT, LOSS, NARROWER, ONCE, WRONG, values
from .statistics import paired
from .table import Row

ABSTRACT = "arXiv:2210.13738, abstract"
QUOTED = "arXiv:2210.13738, as others quote it"
IS_DENSE = "the optimum is the dense network"
DIVERGED = "a run diverged"
Values = dict[Any, float]


def claims_of(
    rows: Sequence[Row], placed: Sequence[Row], levels: Mapping[str, int], metric: str, on_fewer: bool
) -> Iterator[Claim]:
    """The verdicts of one share of wrong labels, from its rows, and these by density.

    `levels` are the optima of the ladders; `on_fewer` says whether there are to be trainings on fewer examples.
    """
    is_noisy = any(f"{LOSS}{WRONG}" in row.metrics for row in placed)
    first, best = next(iter(levels.items()))
    sign = -1 if lower_is_better(metric) else 1

    def found(arm: str, level: int) -> Values:
        return {seed: sign * value for seed, value in values(placed, arm, level, metric).items()}

    def loss(arm: str, level: int, part: str) -> Values:
        return values(placed, arm, level, f"{LOSS}{part}")

    dense, own, once = found(DENSE, 0), found(first, best), found(ONCE, best)
    density = next((row["density"] for row in placed if row["level"] == best), 1.0)
    at = "" if best == 0 else f", at {percent(density)}"
    several = {
        f"Size alone does not explain what pruning does for generalization{at}.": {
            "over the masks trained once": (own, once),
            "over a narrower dense network": (own, found(NARROWER, best)),
        },
        f"Longer training and smaller size are both needed for its whole effect{at}.": {
            "over longer training alone": (own, found(EXTENDED, best)),
            "over smaller size alone": (own, once),
        },
    }
    nothing = _nothing(dense, own, best)
    yield from (_each(claim, pairs, nothing) for claim, pairs in several.items())
    for ladder in levels:
        by = f" (by {ladder})" if len(levels) > 1 else ""
        at_levels = {_at(placed, level): level for level in _levels(placed, ladder)}
        lower = {place: [(loss(DENSE, 0, ALL), loss(ladder, level, ALL))] for place, level in at_levels.items()}
        yield _some(f"At some densities pruning leads to better training: to a lower training loss{by}.", lower, "")
        regular = {
            place: [
                (loss(ladder, level, WRONG), loss(DENSE, 0, WRONG)),
                (found(ladder, level), dense),
            ]
            for place, level in at_levels.items()
        }
        claim = (
            "At some densities it regularizes: the loss of wrong labels is higher than the dense network's, and "
            f"generalization is better{by}."
        )
        yield _some(claim, regular, "" if is_noisy else "no label is wrong")
    if on_fewer:
        random, improved = (values(rows, LEFT_OUT[kind], best, metric) for kind in ("random", "improved"))
        pair = tuple({seed: sign * value for seed, value in one.items()} for one in (random, improved))
        claim = "Leaving out the examples whose loss pruning improves most costs more than leaving out random ones."
        lacking, difference = _lacking([pair]) if best else IS_DENSE, paired(*pair)
        measured = "nothing" if lacking else f"costs more by {difference}"
        yield judge(claim, QUOTED, difference, precondition=lacking, measured=measured)


def _nothing(dense: Values, own: Values, best: int) -> str:
    """Why there is nothing to explain at the optimum, which is chosen on other data than these; "" if there is."""
    if best == 0:
        return IS_DENSE
    better = paired(own, dense)
    return f"there is nothing to explain: pruning is better than the dense network by {better}" * (better.mean <= 0)


def _each(claim: str, pairs: Mapping[str, tuple[Values, Values]], nothing: str) -> Claim:
    """One that is denied by one pair is denied, also where another one is lacking."""
    problems = {name: _lacking([pair]) for name, pair in pairs.items()}
    told = {name: paired(*pair) for name, pair in pairs.items() if not problems[name]}
    judged = judge_each(claim, ABSTRACT, told, precondition=nothing)
    lacking = "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)
    if nothing or not lacking or judged.verdict == "fails":
        return judged
    return replace(judged, verdict="cannot be told here", why=lacking)


def _some(claim: str, pairs: Mapping[str, Sequence[tuple[Values, Values]]], lacking: str) -> Claim:
    """Densities at which a run has diverged, or which lack one, do not count."""
    problems = {name: _lacking(own) for name, own in pairs.items()} if not lacking else {}
    counted = {name: [paired(*pair) for pair in pairs[name]] for name, problem in problems.items() if not problem}
    lacking = lacking or ("" if counted else "none of the densities counts")
    judged = judge_some(claim, ABSTRACT, counted, precondition=lacking)
    others = [f"{name} (not counted: {problem})" for name, problem in problems.items() if problem]
    return replace(judged, measured="; ".join([judged.measured, *others]))


def _lacking(pairs: Sequence[tuple[Values, ...]]) -> str:
    """Why these cannot be compared; "" if they can."""
    both = [one for pair in pairs for one in pair]
    if not all(both):
        return "there is nothing to compare with"
    return "" if all(math.isfinite(value) for one in both for value in one.values()) else DIVERGED


def _levels(rows: Sequence[Row], arm: str) -> list[int]:
    return sorted({row["level"] for row in rows if row["arm"] == arm})


def _at(rows: Sequence[Row], level: int) -> str:
    return f"at {percent(next(row['density'] for row in rows if row['level'] == level))}"
