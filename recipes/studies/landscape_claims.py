"""What McDermott and Cummings, Linear Mode Connectivity in Sparse Neural Networks (arXiv:2310.18769), say; verdicts.

Their tickets are found on distilled data. Seeds are the clusters: each difference is one of the same seed's networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .claims import Claim, judge_each
from .density import DENSE
from .paths import TREATMENTS
from .stability_cells import TICKETS, Cell, treatments_of
from .statistics import paired

SOURCE = "arXiv:2310.18769, abstract, of distilled data"
Networks = Mapping[str, Mapping[str, Mapping[int, Cell]]]  # by arm, density, seed
LEARNT = 0.5  # of what the dense network classifies correctly
NOT_GIVEN = "no tickets were found on other data: tickets_on is not given"
NO_DENSE = "there is no dense network: 0 is not among the levels"
DIVERGED = "a run diverged"


def claims_of(cells: Sequence[Cell], others: Sequence[str]) -> Iterator[Claim]:
    """The verdicts, those on barriers for each treatment of batch norm; `others` are arms of tickets on other data."""
    networks = networks_of(cells)
    treatments = treatments_of(cells)
    for how in treatments:
        named = f" ({TREATMENTS[how]})" if len(treatments) > 1 else ""
        claim = "Tickets, rewound to initialization, are more stable to the noise of SGD than the dense network."
        found = _more_stable(claim, "arXiv:2310.18769, which says it of distilled data", networks, TICKETS, DENSE, how)
        yield replace(found, claim=found.claim + named)
        for arm in others or [""]:
            elsewhere = arm or f"{TICKETS} found on other data"
            for other, words in ((DENSE, "the dense network"), (TICKETS, "tickets of all real data")):
                claim = f"{elsewhere.capitalize()} are more stable than {words}."
                found = _more_stable(claim, SOURCE, networks, arm, other, how)
                yield replace(found, claim=found.claim + named)
    for arm in others or [""]:
        elsewhere = arm or f"{TICKETS} found on other data"
        claim = f"{elsewhere.capitalize()} are as good as those of all real data, but for the tolerance."
        yield as_good(claim, networks, arm, "" if arm else NOT_GIVEN)


def networks_of(cells: Iterable[Cell]) -> Networks:
    """The cells by arm, density and seed."""
    networks: dict[str, dict[str, dict[int, Cell]]] = {}
    for cell in cells:
        arm, density, _ = cell.place
        networks.setdefault(arm, {}).setdefault(density, {})[cell.seed] = cell
    return networks


def _more_stable(claim: str, source: str, networks: Networks, arm: str, other: str, how: str) -> Claim:
    """By how much lower the barrier is, at each density at which both have learnt something."""
    counted, left = {}, []
    for density, own in networks.get(arm, {}).items():
        # The dense network has one density.
        found = networks.get(other, {})
        theirs = next(iter(found.values()), {}) if other == DENSE else found.get(density, {})
        if not theirs:
            continue
        barriers = [{seed: cell.barrier(how) for seed, cell in of.items()} for of in (theirs, own)]
        if not all(_has_learnt(cell, networks, how) for of in (own, theirs) for cell in of.values()):
            left.append(f"{density} (not counted: a network has learnt too little for its stability to mean anything)")
        elif not all(math.isfinite(value) for values in barriers for value in values.values()):
            left.append(f"{density} (not counted: {DIVERGED})")
        elif barriers[0].keys() & barriers[1].keys():
            counted[f"at {density}"] = paired(*barriers)
    lacking = "" if arm else NOT_GIVEN
    lacking = lacking or ("" if other != DENSE or DENSE in networks else NO_DENSE)
    lacking = lacking or ("none of the densities counts" if left and not counted else "")
    judged = judge_each(claim, source, counted, precondition=lacking)
    measured = [f"barrier lower by, in points, {judged.measured}"] if counted else []
    return replace(judged, measured="; ".join([*measured, *left]) or "nothing")


def _has_learnt(cell: Cell, networks: Networks, how: str) -> bool:
    """Whether it classifies half as many correctly as the same seed's dense network, if there is one."""
    dense = next(iter(networks.get(DENSE, {}).values()), {}).get(cell.seed)
    return dense is None or _correct(cell, how) >= LEARNT * _correct(dense, how)


def _correct(cell: Cell, how: str) -> float:
    """At the ends of its paths, in points."""
    along = [value for name, value in cell.measured.items() if name.startswith(f"path/{how}/")]
    return 100 - (along[0] + along[-1]) / 2


def as_good(
    claim: str, networks: Networks, arm: str, lacking: str = "", left: Mapping[str, str] | None = None
) -> Claim:
    """By the gaps to the dense network, which a seed's tickets share; of densities that are `left` out it tells why."""
    counted, margin, left = {}, math.nan, dict(left or {})
    for density, own in networks.get(arm, {}).items():
        theirs = networks.get(TICKETS, {}).get(density, {})
        margin = next((cell.tolerance for cell in own.values()), math.nan)
        found = paired(gaps(own), gaps(theirs))
        if density not in left and has_diverged(networks, density, arm, TICKETS):
            left[density] = DIVERGED
        if found.pairs and math.isfinite(margin) and density not in left:
            counted[f"at {density}"] = found
    lacking = lacking or ("" if DENSE in networks else NO_DENSE)
    lacking = lacking or ("none of the densities counts" if left and not counted else "")
    judged = judge_each(claim, SOURCE, counted, precondition=lacking, at_least=-margin if counted else 0.0)
    measured = [f"better by {judged.measured}, tolerance {margin:.4f}"] if counted else []
    others = [f"{density} (not counted: {why})" for density, why in left.items()]
    return replace(judged, measured="; ".join([*measured, *others]) or "nothing")


def has_diverged(networks: Networks, density: str, *arms: str) -> bool:
    """Whether a run of these arms at that density has, or one of the dense network."""
    cells = [cell for arm in arms for cell in networks.get(arm, {}).get(density, {}).values()]
    cells += [cell for dense in networks.get(DENSE, {}).values() for cell in dense.values()]
    return not all(math.isfinite(cell.value) for cell in cells)


def gaps(cells: Mapping[int, Cell]) -> dict[int, float]:
    """By how much each seed's network is better than the dense one."""
    return {seed: cell.gap for seed, cell in cells.items()}
