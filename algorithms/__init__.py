"""Training-efficiency and sparsity techniques: classes for the Composer Trainer, and the pure functions under them."""

from .blur_layers import BlurConv2d, BlurMaxPool2d, BlurPool2d, blur_2d, blurmax_pool2d
from .blurpool import BlurPool, apply_blurpool
from .channels_last import ChannelsLast, apply_channels_last
from .cyclic import MultiplicativeCyclicScheduler, cycle_ends, cyclic_multiplier
from .distillation import Distillation, add_distillation, distillation_kl, distillation_mse, draw_teachers
from .label_smoothing import LabelSmoothing, smooth_labels
from .labelled_positions import LabelledPositions
from .mixup import MixUp, mixup_batch
from .pruning import LotteryTicket, MagnitudePruning, PruneAtInit
from .snapshots import Snapshot, Snapshots, find_snapshot, find_snapshots
from .targets import dense_targets
from .teachers import load_teacher
from .tradeoff_curve import TradeoffCurve

__all__ = [
    "BlurConv2d",
    "BlurMaxPool2d",
    "BlurPool",
    "BlurPool2d",
    "ChannelsLast",
    "Distillation",
    "LabelSmoothing",
    "LabelledPositions",
    "LotteryTicket",
    "MagnitudePruning",
    "MixUp",
    "MultiplicativeCyclicScheduler",
    "PruneAtInit",
    "Snapshot",
    "Snapshots",
    "TradeoffCurve",
    "add_distillation",
    "apply_blurpool",
    "apply_channels_last",
    "blur_2d",
    "blurmax_pool2d",
    "cycle_ends",
    "cyclic_multiplier",
    "dense_targets",
    "distillation_kl",
    "distillation_mse",
    "draw_teachers",
    "find_snapshot",
    "find_snapshots",
    "load_teacher",
    "mixup_batch",
    "smooth_labels",
]
