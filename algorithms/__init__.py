"""Training-efficiency and sparsity techniques, which need torch alone, and, by name, their classes for Composer.

What a training loop needs of a technique stands in its module, and in `__all__` here. `accelerando.algorithms.composer`
has the classes for Composer's Trainer, which have the same names here too: they are imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

from .blur_layers import BlurConv2d, BlurMaxPool2d, BlurPool2d, blur_2d, blurmax_pool2d
from .blurpool import apply_blurpool
from .channels_last import apply_channels_last, batch_channels_last
from .connectivity import (
    HessianDiagonal,
    HessianEigenvalues,
    PathCurves,
    PathMetrics,
    Plane,
    PlaneMetrics,
    barrier,
    blocks_of,
    disagreement,
    distance,
    distances,
    error_per_example,
    evaluate_path,
    evaluate_plane,
    example_barriers,
    hessian_diagonal,
    hessian_eigenvalues,
    interpolate,
    is_monotone,
    largest_rise,
    layers_of,
    linear_path,
    loss_per_example,
    plane_through,
    recompute_statistics,
    support_mismatch,
)
from .cyclic import Cycles, MultiplicativeCyclicLR, cycle_ends, cyclic_multiplier
from .distillation import Distiller, add_distillation, distillation_kl, distillation_mse, draw_teachers
from .examples.distillation import DatasetDistiller, DistilledSet, load_distilled, save_distilled
from .examples.files import data_digest, load_scores, save_scores
from .examples.forgetting import Forgetting
from .examples.scores import easiest_first, el2n, error_l1, gradient_norms, margins, score_examples
from .label_smoothing import Smoother, smooth_labels
from .labelled_positions import HeadPositions, Labelled
from .mixup import Mixer, mix_targets, mixup_batch
from .pruning import (
    FittedLaw,
    LayerCollapseWarning,
    Lottery,
    MagnitudePruner,
    Measurements,
    MostlyDenseWarning,
    PrunableNetwork,
    Pruner,
    ScalingLaw,
    TiedScoresWarning,
    apply_masks,
    class_balanced,
    compression_ratio,
    exponential_densities,
    fit_power_law,
    fit_scaling_law,
    gradient_magnitude,
    gradual_density,
    grasp,
    keep_highest,
    kept_counts,
    level_densities,
    load_masks,
    magnitude,
    mask_gradients,
    mask_optimizers,
    model_size,
    prunable_weights,
    prune_at_init,
    random_scores,
    read_measurements,
    save_masks,
    smallest_network,
    snip,
    synflow,
    trace_multiply_adds,
)
from .snapshots import Snapshot, SnapshotWriter, find_snapshot, find_snapshots
from .targets import dense_targets
from .teachers import Teacher, load_teacher
from .tradeoff_curve import Curve
from .validation import NoEffectWarning

if TYPE_CHECKING:
    from .composer import (
        BlurPool,
        ChannelsLast,
        Distillation,
        ExampleScores,
        ForgettingEvents,
        LabelledPositions,
        LabelSmoothing,
        LinearPath,
        LotteryTicket,
        MagnitudePruning,
        MixUp,
        MultiplicativeCyclicScheduler,
        PruneAtInit,
        Snapshots,
        TradeoffCurve,
    )

_OF_COMPOSER = frozenset(
    (
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
    )
)

__all__ = [
    "BlurConv2d",
    "BlurMaxPool2d",
    "BlurPool",
    "BlurPool2d",
    "ChannelsLast",
    "Curve",
    "Cycles",
    "DatasetDistiller",
    "Distillation",
    "DistilledSet",
    "Distiller",
    "ExampleScores",
    "FittedLaw",
    "Forgetting",
    "ForgettingEvents",
    "HeadPositions",
    "HessianDiagonal",
    "HessianEigenvalues",
    "LabelSmoothing",
    "Labelled",
    "LabelledPositions",
    "LayerCollapseWarning",
    "LinearPath",
    "Lottery",
    "LotteryTicket",
    "MagnitudePruner",
    "MagnitudePruning",
    "Measurements",
    "MixUp",
    "Mixer",
    "MostlyDenseWarning",
    "MultiplicativeCyclicLR",
    "MultiplicativeCyclicScheduler",
    "NoEffectWarning",
    "PathCurves",
    "PathMetrics",
    "Plane",
    "PlaneMetrics",
    "PrunableNetwork",
    "PruneAtInit",
    "Pruner",
    "ScalingLaw",
    "Smoother",
    "Snapshot",
    "SnapshotWriter",
    "Snapshots",
    "Teacher",
    "TiedScoresWarning",
    "TradeoffCurve",
    "add_distillation",
    "apply_blurpool",
    "apply_channels_last",
    "apply_masks",
    "barrier",
    "batch_channels_last",
    "blocks_of",
    "blur_2d",
    "blurmax_pool2d",
    "class_balanced",
    "compression_ratio",
    "cycle_ends",
    "cyclic_multiplier",
    "data_digest",
    "dense_targets",
    "disagreement",
    "distance",
    "distances",
    "distillation_kl",
    "distillation_mse",
    "draw_teachers",
    "easiest_first",
    "el2n",
    "error_l1",
    "error_per_example",
    "evaluate_path",
    "evaluate_plane",
    "example_barriers",
    "exponential_densities",
    "find_snapshot",
    "find_snapshots",
    "fit_power_law",
    "fit_scaling_law",
    "gradient_magnitude",
    "gradient_norms",
    "gradual_density",
    "grasp",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "interpolate",
    "is_monotone",
    "keep_highest",
    "kept_counts",
    "largest_rise",
    "layers_of",
    "level_densities",
    "linear_path",
    "load_distilled",
    "load_masks",
    "load_scores",
    "load_teacher",
    "loss_per_example",
    "magnitude",
    "margins",
    "mask_gradients",
    "mask_optimizers",
    "mix_targets",
    "mixup_batch",
    "model_size",
    "plane_through",
    "prunable_weights",
    "prune_at_init",
    "random_scores",
    "read_measurements",
    "recompute_statistics",
    "save_distilled",
    "save_masks",
    "save_scores",
    "score_examples",
    "smallest_network",
    "smooth_labels",
    "snip",
    "support_mismatch",
    "synflow",
    "trace_multiply_adds",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _OF_COMPOSER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import composer
    except ImportError as error:
        if error.name != "composer":
            raise
        hint = "pip install 'accelerando[composer]', or use what a loop of your own needs, which is in __all__ too"
        raise ImportError(
            f"{__name__}.{name} is a class for Composer's Trainer, which is not installed: {hint}"
        ) from None
    return getattr(composer, name)
