"""Mode connectivity: paths between networks, what is measured along them, their barriers; curvature."""

from .barriers import barrier, disagreement, example_barriers, is_monotone, largest_rise
from .batch_norm import recompute_statistics
from .curvature import HessianDiagonal, HessianEigenvalues, hessian_diagonal, hessian_eigenvalues
from .interpolation import distance, distances, interpolate, linear_path, support_mismatch
from .paths import PathMetrics, error_per_example, evaluate_path, loss_per_example

__all__ = [
    "HessianDiagonal",
    "HessianEigenvalues",
    "PathMetrics",
    "barrier",
    "disagreement",
    "distance",
    "distances",
    "error_per_example",
    "evaluate_path",
    "example_barriers",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "interpolate",
    "is_monotone",
    "largest_rise",
    "linear_path",
    "loss_per_example",
    "recompute_statistics",
    "support_mismatch",
]
