"""The techniques as classes for Composer's Trainer: at which of its events each of them acts."""

try:
    import composer  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "composer":
        raise
    hint = "pip install 'accelerando[composer]'"
    raise ImportError(f"{__name__} needs Composer, which is missing: {hint}", name="composer") from None

from .blurpool import BlurPool
from .channels_last import ChannelsLast
from .cyclic import MultiplicativeCyclicScheduler
from .distillation import Distillation
from .examples import ExampleScores, ForgettingEvents
from .label_smoothing import LabelSmoothing
from .labelled_positions import LabelledPositions
from .linear_path import LinearPath
from .mixup import MixUp
from .pruning import LotteryTicket, MagnitudePruning, PruneAtInit
from .snapshots import Snapshots
from .tradeoff_curve import TradeoffCurve

__all__ = [
    "BlurPool",
    "ChannelsLast",
    "Distillation",
    "ExampleScores",
    "ForgettingEvents",
    "LabelSmoothing",
    "LabelledPositions",
    "LinearPath",
    "LotteryTicket",
    "MagnitudePruning",
    "MixUp",
    "MultiplicativeCyclicScheduler",
    "PruneAtInit",
    "Snapshots",
    "TradeoffCurve",
]


def __dir__() -> list[str]:
    return __all__
