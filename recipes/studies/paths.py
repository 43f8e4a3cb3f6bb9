"""What studies of paths between networks share: the moments at which paths begin, and the treatments of batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..config.errors import Source
from ..config.recipe import Recipe
from ..config.start import after_the_end
from .core import refuse_twice
from .lengths import duration

TREATMENTS = {"interpolate": "statistics interpolated", "recompute": "statistics recomputed"}  # of batch norm


def check_steps(
    source: Source, steps: Sequence[str], recipe: Recipe, late: Callable[[str, str], str] = after_the_end
) -> list[str]:
    """The steps in their order; an error where one is none, or comes after the end as far as its unit tells.

    `late` says what is wrong with a step after an end.
    """
    from accelerando.algorithms.progress import moment

    times = {step: moment(step) if isinstance(step, str) else None for step in steps}
    units = {time.unit if time else "" for time in times.values()}
    fits = len(units) == 1 and units <= {"ep", "ba"}
    refuse_twice(steps, source, "steps", fits, "all in ba or all in ep, such as [0ba, 500ba]")
    length = duration(recipe)
    places = {step: time.value for step, time in times.items() if time}
    for step, place in places.items():
        if units == {length.unit.value} and place >= length.value:
            raise source.error("steps", late(step, length.to_timestring()))
    return sorted(places, key=lambda step: places[step])


def treatments_in(metrics: Iterable[str]) -> list[str]:
    """Those of batch norm that the names of metrics end in; of networks without it there is one."""
    told = {name.rpartition("/")[2] for name in metrics}
    return [how for how in TREATMENTS if how in told]
