"""What the study `stability` checks of its densities beforehand, and whoever measures paths of its copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, islice, takewhile
from typing import Any

from ..config.errors import show
from ..run.results import percent
from .core import Base, refuse_twice
from .tickets import checked_ladder

MOST_LEVELS = 100


def check_copies(base: Base, study: Any) -> None:
    """Raises an error where no paths can be measured between copies as the study's keys say."""
    from composer.models import HuggingFaceModel

    source, recipe = base.source, base.recipe
    if isinstance(recipe.model.build(), HuggingFaceModel):
        raise recipe.source.error(recipe.model.key, "paths are measured of classifiers of pairs (inputs, classes)")
    for key, least in {"copies": 2, "points": 2, "path_examples": 1}.items():
        if (given := getattr(study, key)) is not None and given < least:
            raise source.error(key, f"{given} given; expected {least} or more")
    if not getattr(study, "stable_below", 1.0) > 0:
        raise source.error("stable_below", f"{study.stable_below} given; expected points of error, above 0")


def check_densities(base: Base, densities: Sequence[float], ladder: Mapping[str, Any]) -> dict[float, int]:
    """The level at which a ladder of these arguments has each density; an error where it reaches one at none."""
    from accelerando.algorithms.pruning import level_densities

    source = base.source
    for name in ("levels", "rewind_to", "rewind"):
        if name in ladder:
            raise source.error(f"ladder.{name}", "follows from densities and steps; leave it out")
    fits = all(0 < share < 1 for share in densities) and len({*map(percent, densities)}) == len(densities)
    refuse_twice(densities, source, "densities", fits, "above 0 and below 1, that differ in their first three digits")
    first = checked_ladder(base, "ladder", {"ladder": {**ladder, "levels": 1}}).arguments
    fraction, schedule = first.get("fraction", 0.2), first.get("schedule", "geometric")
    every = (level_densities(level, fraction, schedule)[-1] for level in islice(count(1), MOST_LEVELS))
    reached = [*takewhile(lambda share: share > 0.99 * min(densities), every)]
    levels = {percent(share): level for level, share in enumerate(reached, 1)}
    for density in densities:
        if percent(density) not in levels:
            near = ", ".join(f"{share:.3g}" for share in sorted(reached, key=lambda share: abs(share - density))[:3])
            hint = f"a ladder that prunes {fraction:g} at each level does not reach it; it reaches {near or 'less'}"
            raise source.error("densities", f"{show(density)} given; {hint}")
    return {density: levels[percent(density)] for density in sorted(densities, reverse=True)}
