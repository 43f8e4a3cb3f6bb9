"""The techniques as callbacks for Hugging Face's Trainer, of the same names and arguments as Composer's classes."""

try:
    import accelerate  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("accelerate", "transformers"):
        raise
    hint = f"needs {error.name}, which is missing: pip install 'accelerando[transformers]'"
    raise ImportError(f"{__name__} {hint}") from None

from .distillation import Distillation
from .examples import ForgettingEvents
from .label_smoothing import LabelSmoothing
from .labelled_positions import LabelledPositions
from .linear_path import LinearPath
from .lottery import LotteryTicket
from .pruning import MagnitudePruning, PruneAtInit
from .snapshots import Snapshots

__all__ = [
    "Distillation",
    "ForgettingEvents",
    "LabelSmoothing",
    "LabelledPositions",
    "LinearPath",
    "LotteryTicket",
    "MagnitudePruning",
    "PruneAtInit",
    "Snapshots",
]


def __dir__() -> list[str]:
    return __all__
