"""Pruning: exact masks that hold, criteria, pruning at initialization, lottery tickets; torch alone."""

from .at_init import exponential_densities, prune_at_init
from .criteria import gradient_magnitude, grasp, magnitude, random_scores, snip, synflow
from .enforcement import apply_masks, mask_gradients, mask_optimizers
from .files import load_masks, save_masks
from .lottery import Lottery, level_densities
from .magnitude_pruning import MagnitudePruner, gradual_density
from .masks import LayerCollapseWarning, TiedScoresWarning, keep_highest, kept_counts
from .prunable import MostlyDenseWarning, prunable_weights
from .pruner import Pruner
from .samples import class_balanced
from .scaling_law import FittedLaw, PrunableNetwork, ScalingLaw, fit_power_law, fit_scaling_law, smallest_network
from .scaling_measurements import Measurements, read_measurements
from .size import compression_ratio, model_size, trace_multiply_adds

__all__ = [
    "FittedLaw",
    "LayerCollapseWarning",
    "Lottery",
    "MagnitudePruner",
    "Measurements",
    "MostlyDenseWarning",
    "PrunableNetwork",
    "Pruner",
    "ScalingLaw",
    "TiedScoresWarning",
    "apply_masks",
    "class_balanced",
    "compression_ratio",
    "exponential_densities",
    "fit_power_law",
    "fit_scaling_law",
    "gradient_magnitude",
    "gradual_density",
    "grasp",
    "keep_highest",
    "kept_counts",
    "level_densities",
    "load_masks",
    "magnitude",
    "mask_gradients",
    "mask_optimizers",
    "model_size",
    "prunable_weights",
    "prune_at_init",
    "random_scores",
    "read_measurements",
    "save_masks",
    "smallest_network",
    "snip",
    "synflow",
    "trace_multiply_adds",
]


def __dir__() -> list[str]:
    return __all__
