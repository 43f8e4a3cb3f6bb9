"""Training-efficiency techniques: classes for the Composer Trainer, and the pure functions under them."""

from .blur_layers import BlurConv2d, BlurMaxPool2d, BlurPool2d, blur_2d, blurmax_pool2d
from .blurpool import BlurPool, apply_blurpool
from .channels_last import ChannelsLast, apply_channels_last
from .label_smoothing import LabelSmoothing, smooth_labels
from .mixup import MixUp, mixup_batch
from .targets import dense_targets

__all__ = [
    "BlurConv2d",
    "BlurMaxPool2d",
    "BlurPool",
    "BlurPool2d",
    "ChannelsLast",
    "LabelSmoothing",
    "MixUp",
    "apply_blurpool",
    "apply_channels_last",
    "blur_2d",
    "blurmax_pool2d",
    "dense_targets",
    "mixup_batch",
    "smooth_labels",
]
