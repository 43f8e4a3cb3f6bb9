"""How long runs train, in Composer's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer.core import Time

    from ..config.recipe import Recipe


def duration(recipe: Recipe) -> Time:
    """How long it trains."""
    return as_time(recipe.trainer["max_duration"])


def relative_length(own: Time, whole: Time) -> float:
    """How many times as long it is; 1 where the units differ, so that nobody can tell."""
    return own.value / whole.value if own.unit == whole.unit else 1.0


def as_time(value: Any) -> Time:
    """A number without a unit counts epochs, as for Composer."""
    from composer.core import TimeUnit, ensure_time

    return ensure_time(value, TimeUnit.EPOCH)


def has_times_in_dur(arguments: Mapping[str, Any]) -> bool:
    """Whether one is a share of the whole run's length, other than its beginning."""
    times = [value for value in arguments.values() if isinstance(value, str) and value.endswith("dur")]
    return any(as_time(time).value > 0 for time in times)
