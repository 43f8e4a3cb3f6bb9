"""Pruning in a run of Composer's Trainer: masks that hold, at initialization, gradually, and in levels."""

from .at_init import PruneAtInit
from .lottery import LotteryTicket
from .magnitude_pruning import MagnitudePruning
from .sparsity import Pruning

__all__ = ["LotteryTicket", "MagnitudePruning", "PruneAtInit", "Pruning"]


def __dir__() -> list[str]:
    return __all__
