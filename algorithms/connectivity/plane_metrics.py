"""Loss and error on a grid in the plane of three or four networks.

found = evaluate_plane(model, (a, b, c), test_batches, points=41)
contourf(found.x, found.y, found.means["loss"])
scatter(*found.plane.coordinates.T)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batches import device_of
from ..validation import check
from .interpolation import State
from .paths import METRICS, Forward, Metric, evaluate_path
from .plane import Plane, plane_through


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaneMetrics:
    """What `evaluate_plane` has found.

    `means` holds by the name of the metric its mean over all examples at each point, `(len(y), len(x))`; `networks` the
    means of the networks themselves, each where it is, on the plane or off it.
    """

    x: list[float]
    y: list[float]
    means: dict[str, Tensor]
    plane: Plane
    networks: dict[str, list[float]]
    examples: int


def evaluate_plane(
    model: nn.Module,
    networks: Sequence[State] | Plane,
    batches: Iterable[Any],
    metrics: Mapping[str, Metric] = METRICS,
    points: int | tuple[Sequence[float], Sequence[float]] = 21,
    *,
    margin: float = 0.2,
    batch_norm: Literal["interpolate", "recompute"] = "interpolate",
    statistics: Iterable[Any] | None = None,
    forward: Forward | None = None,
    target_key: Any = 1,
) -> PlaneMetrics:
    """Returns the metrics of a model on a grid in the plane of three or four networks, and those of the networks.

    At a point where a network is, they are those of the network, bit for bit.

    Args:
        networks: their states; or their plane, as from `plane_through`.
        points: the coordinates on the two axes; or how many there are on each, evenly spaced.
        margin: how far such axes reach beyond the networks on each side, as a share of the networks' extent.
        model, batches, metrics, batch_norm, statistics, forward, target_key: as for `evaluate_path`, which measures
            all points in one pass over the data. "interpolate" gives running statistics the shares of the weights.

    Raises ValueError as `plane_through` and `evaluate_path` do.
    """
    check("evaluate_plane", "margin", 0 <= margin < math.inf, "at least 0", margin)
    device = device_of(model)
    plane = networks if isinstance(networks, Plane) else plane_through(networks, device=device)
    x, y = _axes(plane, points, margin)
    count = len(plane.networks)

    def state_at(number: float) -> dict[str, Tensor]:
        row, column = divmod(int(number) - count, len(x))
        return plane.networks[int(number)] if number < count else plane.state(x[column], y[row])

    found = evaluate_path(
        model,
        state_at,
        range(count + len(x) * len(y)),
        batches,
        metrics,
        batch_norm=batch_norm,
        statistics=statistics,
        forward=forward,
        target_key=target_key,
    )
    grids = {name: torch.tensor(means[count:], dtype=torch.float64) for name, means in found.means.items()}
    return PlaneMetrics(
        x=x,
        y=y,
        means={name: grid.view(len(y), len(x)) for name, grid in grids.items()},
        plane=plane,
        networks={name: means[:count] for name, means in found.means.items()},
        examples=found.examples,
    )


def _axes(plane: Plane, points: Any, margin: float) -> list[list[float]]:
    if isinstance(points, int):
        check("evaluate_plane", "points", points > 1, "at least 2 on each axis, or the coordinates", points)
        low, high = plane.coordinates.min(0).values, plane.coordinates.max(0).values
        reach = margin * (high - low)
        return [
            torch.linspace(*ends, points, dtype=torch.float64).tolist()
            for ends in zip(low - reach, high + reach, strict=True)
        ]
    axes = [[float(place) for place in axis] for axis in points]
    fits = len(axes) == 2 and all(axes) and all(map(math.isfinite, [*axes[0], *axes[1]]))
    check("evaluate_plane", "points", fits, "a number, or finite coordinates on two axes", points)
    return axes
