"""What the values along a path say: its barrier, whether they only fall, and how far two networks disagree."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..validation import check

Values = Sequence[float] | Tensor


def barrier(values: Values) -> float:
    """Returns the highest value along a path less the mean of its ends, in the unit of the values.

    That is the linear interpolation instability of Frankle et al. (arXiv 1912.05671, section 2), who call a network
    stable if it is below 2 points of error; of errors as shares, 100 times the result is in points. The first and the
    last of the values are the ends'. NaN anywhere gives NaN, and infinity on the way infinity.

    Raises ValueError for fewer than two values.
    """
    path = _path("barrier", values)
    return (path.max() - (path[0] + path[-1]) / 2).item()


def largest_rise(values: Values) -> float:
    """Returns by how much the values rise at most, from any point of a path to any later one; NaN if one of them is."""
    path = _path("largest_rise", values)
    return (path - path.cummin(0).values).max().item()


def is_monotone(values: Values, tolerance: float = 0.0) -> bool:
    """Whether the values fall along a path, or stay, but for rises of at most `tolerance`; not where one is NaN.

    Rises are counted from the lowest value so far, so that many small ones in a row are as much as a large one.
    """
    check("is_monotone", "tolerance", tolerance >= 0, "at least 0", tolerance)
    return largest_rise(values) <= tolerance


def disagreement(predictions_a: Any, predictions_b: Any) -> float:
    """Returns the share of the examples for which two networks predict different classes, given as `(N,)` each.

    Raises ValueError for predictions that are no such vectors of one length.
    """
    a, b = (torch.as_tensor(predictions).cpu() for predictions in (predictions_a, predictions_b))
    expected = "classes of the same examples, of shape (N,)"
    fits = a.ndim == b.ndim == 1 and len(a) == len(b) > 0
    check("disagreement", "predictions", fits, expected, f"{tuple(a.shape)} and {tuple(b.shape)}")
    return (a != b).double().mean().item()


def example_barriers(start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """Returns for each example its loss in the middle of a path less the mean of its losses at the ends, `(N,)`.

    The losses at alpha 0, 1/2 and 1, `(N,)` each, are what `evaluate_path` gives `per_example` for these points.
    """
    shapes = [tuple(losses.shape) for losses in (start, middle, end)]
    check("example_barriers", "losses", len({*shapes}) == 1, "of the same examples", shapes)
    return middle - (start + end) / 2


def _path(owner: str, values: Values) -> Tensor:
    path = torch.as_tensor(values, dtype=torch.float64)
    check(owner, "values", path.ndim == 1 and len(path) > 1, "those of two points or more", tuple(path.shape))
    return path
