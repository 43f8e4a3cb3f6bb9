"""Mode connectivity: paths between networks, what is measured along them, their barriers; planes, curvature."""

from .barriers import barrier, disagreement, example_barriers, is_monotone, largest_rise
from .batch_norm import recompute_statistics
from .curvature import HessianDiagonal, HessianEigenvalues, hessian_diagonal, hessian_eigenvalues
from .curves import PathCurves
from .interpolation import distance, distances, interpolate, linear_path, support_mismatch
from .parts import blocks_of, layers_of
from .paths import PathMetrics, error_per_example, evaluate_path, loss_per_example
from .plane import Plane, plane_through
from .plane_metrics import PlaneMetrics, evaluate_plane

__all__ = [
    "HessianDiagonal",
    "HessianEigenvalues",
    "PathCurves",
    "PathMetrics",
    "Plane",
    "PlaneMetrics",
    "barrier",
    "blocks_of",
    "disagreement",
    "distance",
    "distances",
    "error_per_example",
    "evaluate_path",
    "evaluate_plane",
    "example_barriers",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "interpolate",
    "is_monotone",
    "largest_rise",
    "layers_of",
    "linear_path",
    "loss_per_example",
    "plane_through",
    "recompute_statistics",
    "support_mismatch",
]


def __dir__() -> list[str]:
    return __all__
