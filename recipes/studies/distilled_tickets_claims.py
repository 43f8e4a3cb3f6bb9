"""What else McDermott and Cummings say of tickets that are found on distilled data; the verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .claims import Claim, judge_each
from .landscape_claims import DIVERGED, Networks, as_good, gaps, has_diverged, networks_of
from .stability_cells import TICKETS, Cell
from .statistics import paired

RANDOM = "random"
FEWER = 150  # times, in the abstract
COMPANION = "arXiv:2307.03364, of which the notebooks of luke-mcdermott-mi/distilled-pruning show it"
OWN = "none: a control of this study, which tells what distilling is worth"


def claims_of_the_set(cells: Sequence[Cell], arm: str, few_real: str, real: int, small: int) -> Iterator[Claim]:
    """`arm` are tickets found on `small` distilled images in place of `real` ones, `few_real` on as few of these."""
    networks = networks_of(cells)
    claim, lacking = f"{arm.capitalize()} are better than random weights.", "as many random weights were not tried"
    yield _better(claim, COMPANION, networks, arm, RANDOM, lacking)
    claim, lacking = f"{arm.capitalize()} are better than {few_real}.", "few_real is not given"
    yield _better(claim, OWN, networks, arm, few_real, lacking)
    few = f"the real data are {real / small:.3g} times as many as the distilled: {real} and {small} images"
    lacking = "" if real >= FEWER * small else few
    claim = f"{arm.capitalize()} match those of all real data with {FEWER} times fewer training points."
    yield as_good(claim, networks, arm, lacking, _like_random(networks))


def _better(claim: str, source: str, networks: Networks, arm: str, other: str, lacking: str) -> Claim:
    """By the gaps to the dense network, at each density that `arm` and the `other` have; it lacks something if none."""
    both = [density for density in networks.get(arm, {}) if density in networks.get(other, {})]
    left = [density for density in both if has_diverged(networks, density, arm, other)]
    found = {
        f"at {density}": paired(gaps(networks[arm][density]), gaps(networks[other][density]))
        for density in both
        if density not in left
    }
    if both:
        lacking = "none of the densities counts" if left and not found else ""
    judged = judge_each(claim, source, found, precondition=lacking)
    others = [f"{density} (not counted: {DIVERGED})" for density in left]
    return replace(judged, measured="; ".join([*([judged.measured] if found or not left else []), *others]))


def _like_random(networks: Networks) -> dict[str, str]:
    """The densities at which it does not matter which weights are kept, and why that is known."""
    left = {}
    for density, own in networks.get(TICKETS, {}).items():
        if not (random := networks.get(RANDOM, {}).get(density)):
            left[density] = "as many random weights were not tried"
            continue
        found = paired(gaps(own), gaps(random))
        margin = next((cell.tolerance for cell in own.values()), math.nan)
        if not (found.mean > 0 and found.is_told) and not found.mean > margin:
            left[density] = "tickets of all real data are not told from random weights"
    return left
