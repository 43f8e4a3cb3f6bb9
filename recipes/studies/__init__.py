"""The studies, by whose names a YAML finds them: ``study: {tickets: {...}}``."""

from .distillation import Distillation
from .glue import Glue
from .tradeoff import Tradeoff

__all__ = ["Distillation", "Glue", "Tradeoff"]
