"""What Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (arXiv:1912.05671), say; verdicts.

Seeds are the clusters: each statistic is computed for each seed alone, and judged over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from ..run.results import percent
from .claims import Claim, judge, judge_each, judge_equal
from .density import DENSE
from .paths import TREATMENTS
from .stability_cells import TICKETS, Cell, by_place, counts_of, treatments_of
from .statistics import Difference, difference, paired

SOURCE = "arXiv:1912.05671"
AS_QUOTED = "arXiv:1912.05671, as others quote it"
EARLY = 0.2  # the latest share of T at which the paper's networks become stable, ResNet-50's
VARIED = (0.5, 1.0, 2.0)  # times each threshold
TELLS = 0.5  # Youden's J, of which 1 is agreement in every cell, and 0 none beyond chance
ONE_KIND = "all pruned networks match, or none does, in each seed"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """By what it is judged: the threshold of stability in points, the steps in order, and the kind of setting."""

    stable_below: float
    steps: Sequence[str]
    setting: Literal["small", "harder"]


def claims_of(cells: Sequence[Cell], judged: Judged) -> Iterator[Claim]:
    """The verdicts, those on barriers for each treatment of batch norm."""
    treatments = treatments_of(cells)
    pruned = [cell for cell in cells if cell.arm != DENSE]
    for how in treatments:
        named = f" ({TREATMENTS[how]})" if len(treatments) > 1 else ""
        for claim in _of_the_dense(cells, how, judged):
            yield replace(claim, claim=claim.claim + named)
    if any(cell.arm == TICKETS for cell in cells):
        yield _from_initialization(pruned, judged)
    for how in treatments if pruned else ():
        named = f" ({TREATMENTS[how]})" if len(treatments) > 1 else ""
        told = [cell for cell in pruned if cell.is_told(how)]
        for claim in (
            _if_and_only_if(told, how, judged),
            _when(told, how, judged),
            _distance_is_weaker(told, how),
        ):
            left = len(pruned) - len(told)
            also = f"; {left} cells with a run that diverged do not count" if left else ""
            yield replace(claim, claim=claim.claim + named, measured=claim.measured + also)


def _of_the_dense(cells: Sequence[Cell], how: str, judged: Judged) -> Iterator[Claim]:
    dense = [cell for cell in cells if cell.arm == DENSE]
    first = {cell.seed: cell.barrier(how) for cell in dense if cell.k == 0}
    lacking = "" if first else "0ba is not among the steps"
    limit = judged.stable_below
    if judged.setting == "small":
        found = _below(first, limit)
        claim = f"In the small setting, the dense network is stable from initialization: below {limit:g} points."
        yield judge(
            claim, AS_QUOTED, found, precondition=lacking, measured=_barriers("barrier at step 0", first, found)
        )
        return
    found = paired(first, dict.fromkeys(first, limit))
    claim = f"At initialization the dense network is unstable: {limit:g} points or more."
    yield judge(claim, SOURCE, found, precondition=lacking, measured=_barriers("barrier at step 0", first, found))
    early = [cell for cell in dense if 0 < cell.share <= EARLY]
    last = max((cell.k for cell in early), default=0)
    values = {cell.seed: cell.barrier(how) for cell in early if cell.k == last}
    step = next((cell.step for cell in early if cell.k == last), "")
    found, lacking = (
        _below(values, limit),
        "" if values else f"no step lies in the first {percent(EARLY)} of the training",
    )
    claim = f"Early in training, in the first {percent(EARLY)}, it becomes stable."
    measured = _barriers(f"barrier at step {step}", values, found)
    yield judge(claim, SOURCE, found, precondition=lacking, measured=measured)


def _below(values: Mapping[int, float], limit: float) -> Difference:
    return paired(dict.fromkeys(values, limit), values)


def _barriers(what: str, values: Mapping[int, float], found: Difference) -> str:
    each = ", ".join(f"{value:.2f}" for value in values.values())
    return f"{what} {each} by seed; from the limit {found}" if each else "nothing"


def _from_initialization(pruned: Sequence[Cell], judged: Judged) -> Claim:
    """At densities at which not just any weights match."""
    small = judged.setting == "small"
    claim = (
        "In the small setting, tickets that are rewound to initialization match the dense network."
        if small
        else "In harder settings, tickets that are rewound to initialization do not match the dense network."
    )
    counted, others = dict[str, Difference](), list[str]()
    margin = next((cell.tolerance for cell in pruned), math.nan)
    first = {place: own for place, own in by_place(pruned).items() if own[0].k == 0}
    for (arm, density, step), own in first.items():
        if arm != TICKETS:
            continue
        found = difference([cell.gap if small else -cell.gap for cell in own if math.isfinite(cell.gap)])
        random = [cell.gap for cell in first.get(("random", density, step), [])]
        if random and np.mean(random) >= -margin:
            others.append(f"{density} (not counted: as many random weights match too)")
        elif not all(math.isfinite(cell.gap) for cell in own):
            others.append(f"{density} (not counted: a run diverged)")
        else:
            counted[f"{density} of the weights"] = found
    lacking = "" if math.isfinite(margin) else "what matches is not known: one seed has no standard deviation"
    lacking = lacking or ("" if first else "0ba is not among the steps")
    lacking = lacking or ("" if counted else "none of the densities counts")
    found = judge_each(claim, AS_QUOTED, counted, precondition=lacking, at_least=-margin if small else margin)
    what = "better than dense" if small else "worse than dense"
    measured = "; ".join([*([f"{what}, where {margin:.4f} still match: {found.measured}"] if counted else []), *others])
    return replace(found, measured=measured or "nothing")


def youden(cells: Sequence[Cell], how: str, stable_below: float, times: float = 1.0) -> dict[int, float]:
    """By seed, where it has both: the share of its matching cells that are stable, less that of the others."""
    found = {}
    for seed in dict.fromkeys(cell.seed for cell in cells):
        (a, b), (c, d) = counts_of([cell for cell in cells if cell.seed == seed], how, stable_below, times)
        if a + b and c + d:
            found[seed] = a / (a + b) - c / (c + d)
    return found


def _if_and_only_if(cells: Sequence[Cell], how: str, judged: Judged) -> Claim:
    """By both thresholds as they are given; what would be told with others must not be the contrary."""
    claim, told = "Pruned networks match the dense one if and only if they are stable.", dict[str, Claim]()
    for stable, times in sorted(product(VARIED, VARIED), key=lambda pair: pair != (1.0, 1.0)):
        limit = stable * judged.stable_below
        found = difference([*youden(cells, how, limit, times).values()])
        hint = "" if found.pairs else ONE_KIND
        name = f"{limit:g} points and {times:g} times the tolerance"
        told[name] = judge(claim, SOURCE, found, precondition=hint, at_least=TELLS, measured=str(found))
    first, *others = told.values()
    (a, b), (c, d) = counts_of(cells, how, judged.stable_below)
    same = sum(one.verdict == first.verdict for one in others)
    measured = (
        f"cells: {a} match and are stable, {d} neither, {b} match alone, {c} are stable alone; share of stable "
        f"ones among those that match less that among the others {first.measured}, where {TELLS:g} is asked for; with "
        f"the thresholds halved and doubled, {same} of {len(others)} verdicts are the same"
    )
    contrary = {"holds": "fails", "fails": "holds"}.get(first.verdict)
    if against := [name for name, one in told.items() if one.verdict == contrary]:
        why = f"it {first.verdict} with the thresholds given, and {contrary} with {'; '.join(against)}"
        return replace(first, measured=measured, verdict="cannot be told here", why=why)
    return replace(first, measured=measured)


def _when(cells: Sequence[Cell], how: str, judged: Judged) -> Claim:
    """Whether the first step at which tickets match is that at which they are stable, to one of those that were tried.

    The first, not that from which on they always do: from a late step too little of the training is left to match.
    """
    apart: dict[int, list[float]] = {}
    bounds, told = 0, list[str]()
    tickets = [cell for cell in cells if cell.arm == TICKETS]
    for seed, density in dict.fromkeys((cell.seed, cell.place[1]) for cell in tickets):
        own = {cell.step: cell for cell in tickets if (cell.seed, cell.place[1]) == (seed, density)}
        steps = [step for step in judged.steps if step in own]
        stable = _onset([own[step].barrier(how) < judged.stable_below for step in steps])
        matching = _onset([own[step].matches() for step in steps])
        if stable == matching and stable in (0, len(steps)):
            continue  # from before the first step on, or not by the last one: whenever that is
        names = [*steps, "never"]
        told.append(f"seed {seed}, {density}: stable from {names[stable]}, matching from {names[matching]}")
        unknown = (len(steps),) if own[steps[0]].k == 0 else (0, len(steps))
        bounds += sum(onset in unknown for onset in (stable, matching))
        apart.setdefault(seed, []).append(float(matching - stable))
    found = difference([float(np.mean(values)) for values in apart.values()])
    hint = "" if apart else "no ticket becomes stable or matching between the first step and the last"
    claim = "Tickets become matching when they become stable, to one step of those tried."
    judged_equal = judge_equal(claim, SOURCE, found, within=1.0 + 1e-9, precondition=hint)
    measured = f"matching is later by {found} steps; {'; '.join(told)}" if told else "nothing"
    if judged_equal.verdict == "holds" and bounds:
        why = f"{bounds} of these are only known to lie beyond the steps that were tried, so that more may lie between"
        return replace(judged_equal, measured=measured, verdict="cannot be told here", why=why)
    return replace(judged_equal, measured=measured)


def _onset(told: Sequence[bool]) -> int:
    """The place of the first that is true, or past the end."""
    return next((place for place, one in enumerate(told) if one), len(told))


def _distance_is_weaker(cells: Sequence[Cell], how: str) -> Claim:
    """By how well each tells what matches from what does not, whatever the threshold."""
    by_seed = {seed: [cell for cell in cells if cell.seed == seed] for seed in dict.fromkeys(c.seed for c in cells)}
    areas = [
        {seed: area for seed, own in by_seed.items() if math.isfinite(area := separation(own, name))}
        for name in (f"barrier/test/error/{how}", "distance", "disagreement")
    ]
    found = paired(areas[0], areas[1])
    hint = "" if found.pairs else ONE_KIND
    if found.pairs and all(area == 1 for by in areas[:2] for area in by.values()):
        hint = "both tell every network that matches from every other"
    means = [float(np.mean([*area.values()])) if area else math.nan for area in areas]
    measured = (
        f"area under the curve for what matches: barrier {means[0]:.2f}, L2 distance {means[1]:.2f}, disagreement "
        f"{means[2]:.2f}; barrier less distance {found}"
    )
    claim = "The L2 distance of the copies tells less than the barrier which pruned networks match."
    return judge(claim, f"{AS_QUOTED}, appendix G", found, precondition=hint, measured=measured)


def separation(cells: Sequence[Cell], name: str) -> float:
    """How often a cell that matches has less of this than one that does not; ties count half. NaN without pairs."""
    matching, others = ([c.measured[name] for c in cells if c.matches() is kind] for kind in (True, False))
    less = np.sign(np.subtract.outer(np.array(others), np.array(matching)))
    return float((less.mean() + 1) / 2) if less.size else math.nan
