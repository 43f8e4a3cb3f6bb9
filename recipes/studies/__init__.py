"""The studies, by whose names a YAML finds them: ``study: {tickets: {...}}``."""

from .prune_at_init import PruneAtInit
from .tickets import Tickets

__all__ = ["PruneAtInit", "Tickets"]
