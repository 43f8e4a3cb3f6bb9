"""Training-efficiency techniques: classes for the Composer Trainer, and the pure functions under them."""

from .blur_layers import BlurConv2d, BlurMaxPool2d, BlurPool2d, blur_2d, blurmax_pool2d
from .blurpool import BlurPool, apply_blurpool
from .channels_last import ChannelsLast, apply_channels_last
from .cyclic import MultiplicativeCyclicScheduler, cycle_ends, cyclic_multiplier
from .label_smoothing import LabelSmoothing, smooth_labels
from .mixup import MixUp, mixup_batch
from .targets import dense_targets
from .tradeoff_curve import TradeoffCurve

__all__ = [
    "BlurConv2d",
    "BlurMaxPool2d",
    "BlurPool",
    "BlurPool2d",
    "ChannelsLast",
    "LabelSmoothing",
    "MixUp",
    "MultiplicativeCyclicScheduler",
    "TradeoffCurve",
    "apply_blurpool",
    "apply_channels_last",
    "blur_2d",
    "blurmax_pool2d",
    "cycle_ends",
    "cyclic_multiplier",
    "dense_targets",
    "mixup_batch",
    "smooth_labels",
]
