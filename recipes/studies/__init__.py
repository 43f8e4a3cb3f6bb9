"""The studies, by whose names a YAML finds them: ``study: {tickets: {...}}``."""

from .bert_tickets import BertTickets
from .data_diet import DataDiet
from .distillation import Distillation
from .distilled_tickets import DistilledTickets
from .generalization import Generalization
from .glue import Glue
from .interpolation import Interpolation
from .landscape import Landscape
from .prune_at_init import PruneAtInit
from .scaling_law import ScalingLaw
from .shrinkbench import ShrinkBench
from .stability import Stability
from .tickets import Tickets
from .tradeoff import Tradeoff
from .variants import Variants

__all__ = [
    "BertTickets",
    "DataDiet",
    "Distillation",
    "DistilledTickets",
    "Generalization",
    "Glue",
    "Interpolation",
    "Landscape",
    "PruneAtInit",
    "ScalingLaw",
    "ShrinkBench",
    "Stability",
    "Tickets",
    "Tradeoff",
    "Variants",
]
