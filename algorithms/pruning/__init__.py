"""Pruning: exact masks that hold, criteria, pruning at initialization, lottery tickets in a single run."""

from .at_init import PruneAtInit, exponential_densities
from .criteria import gradient_magnitude, grasp, magnitude, random_scores, snip, synflow
from .enforcement import apply_masks, mask_gradients, mask_optimizers
from .files import load_masks, save_masks
from .lottery import LotteryTicket, level_densities
from .magnitude_pruning import MagnitudePruning, gradual_density
from .masks import MostlyDenseWarning, TiedScoresWarning, keep_highest, kept_counts, prunable_weights
from .samples import class_balanced
from .size import compression_ratio, model_size, trace_multiply_adds
from .sparsity import LayerCollapseWarning

__all__ = [
    "LayerCollapseWarning",
    "LotteryTicket",
    "MagnitudePruning",
    "MostlyDenseWarning",
    "PruneAtInit",
    "TiedScoresWarning",
    "apply_masks",
    "class_balanced",
    "compression_ratio",
    "exponential_densities",
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
    "random_scores",
    "save_masks",
    "snip",
    "synflow",
    "trace_multiply_adds",
]
