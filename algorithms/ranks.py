"""Which of the processes that train together this one is, by torch.distributed; one that trains alone is the first."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def rank() -> int:
    """Returns the number of this process among all, from 0."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """Returns how many processes train together."""
    return distributed.get_world_size() if _together() else 1


def gathered(value: Any) -> list[Any]:
    """Returns what every process gives here, in the order of their ranks; the same on all of them."""
    values = [value] * world_size()
    if _together():
        distributed.all_gather_object(values, value)
    return values


def of_first(make: Callable[[], T]) -> T:
    """Returns what the first process makes, which is pickled for the others."""
    value: list[Any] = [make() if rank() == 0 else None]
    if _together():
        distributed.broadcast_object_list(value)
    return value[0]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
