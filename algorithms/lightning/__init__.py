"""The techniques as callbacks for a Lightning Trainer, of the same names and arguments as Composer's classes."""

try:
    import lightning.pytorch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("lightning", "lightning.pytorch"):
        raise
    raise ImportError(f"{__name__} needs Lightning, which is missing: pip install 'accelerando[lightning]'") from None

from .blurpool import BlurPool
from .channels_last import ChannelsLast
from .distillation import Distillation
from .examples import ForgettingEvents
from .label_smoothing import LabelSmoothing
from .labelled_positions import LabelledPositions
from .linear_path import LinearPath
from .losses import training_loss
from .mixup import MixUp
from .pruning import LotteryTicket, MagnitudePruning, PruneAtInit
from .snapshots import Snapshots
from .tradeoff_curve import TradeoffCurve

__all__ = [
    "BlurPool",
    "ChannelsLast",
    "Distillation",
    "ForgettingEvents",
    "LabelSmoothing",
    "LabelledPositions",
    "LinearPath",
    "LotteryTicket",
    "MagnitudePruning",
    "MixUp",
    "PruneAtInit",
    "Snapshots",
    "TradeoffCurve",
    "training_loss",
]


def __dir__() -> list[str]:
    return __all__
