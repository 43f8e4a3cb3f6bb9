"""The plane through three networks, or the best one through four.

Garipov et al. draw the plane of three networks, with coordinates by Gram-Schmidt (arXiv 1802.10026). McDermott and
Cummings draw one for four, which lie in no plane (arXiv 2310.18769): here it is the best in the least squares sense,
and says how far each network is from it.

Every point is a sum of the networks, `P(x, y) = sum_i c_i(x, y) W_i` with shares `c_i` that add up to 1. So it is zero
where all networks are: of pruned ones its support is within the union of theirs, wherever it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..validation import check
from .interpolation import State, check_alike, distance, is_averaged

_THIN = 1e-3  # width by length, below which networks count as on a line


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The plane of some networks, with Euclidean coordinates in the space of their weights.

    `coordinates` holds those of the networks, `(N, 2)`, in units of L2 distance; of a network that is not on the plane
    they are those of the nearest point on it, and `distances` says how far that is. The shares of the networks in a
    point are linear in its coordinates: `origin + x * x_axis + y * y_axis`, `(N,)` each.
    """

    networks: tuple[dict[str, Tensor], ...]
    coordinates: Tensor
    distances: tuple[float, ...]
    origin: Tensor
    x_axis: Tensor
    y_axis: Tensor

    def state(self, x: float, y: float) -> dict[str, Tensor]:
        """Returns the state at a point, which is nobody's to write; where a network is, that is its own, bit for bit.

        Integers, such as counters, are those of the network with the largest share.
        """
        shares = self.origin + x * self.x_axis + y * self.y_axis
        most = int(shares.argmax())
        others = [i for i in range(len(shares)) if i != most and abs(shares[i]) > 1e-8]
        start = self.networks[most]

        def moved(name: str) -> Tensor:
            wide = torch.promote_types(start[name].dtype, torch.float32)
            result = start[name].to(wide, copy=True)
            for i in others:  # differences leave alone what all networks share
                result.add_(self.networks[i][name].to(wide) - start[name], alpha=shares[i].item())
            return result.to(start[name].dtype)

        return {name: moved(name) if others and is_averaged(value) else value for name, value in start.items()}


def plane_through(
    networks: Sequence[State],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] | None = None,
    device: torch.device | str | None = None,
) -> Plane:
    """Returns the plane through three states, or the nearest to four: the sum of squares of their distances is least.

    Of three the first is at (0, 0), the second at (length, 0), and the third has y > 0. Of four the mean is at (0, 0),
    and x is the direction in which they differ most. The states are copied.

    Args:
        include, exclude: patterns of the names of the tensors whose distances count, by default all but the running
            statistics of batch norm, as in `distance`. The others, if floating-point, move along with them.
        device: where the states are held; by default where each tensor is.

    Raises ValueError for states of other networks, for two that are equal, for a line, and for numbers not finite.
    """
    count = len(networks)
    check("plane_through", "networks", count in (3, 4), "three or four states", count)
    for number, state in enumerate(networks[1:], 2):
        check_alike(networks[0], state, f"networks 1 and {number}")
    squares = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(i):
            apart = distance(networks[i], networks[j], include, exclude)
            check("plane_through", "networks", apart > 0, f"different, but {j + 1} and {i + 1} are equal", apart)
            squares[i, j] = squares[j, i] = apart**2
    check("plane_through", "networks", squares.isfinite().all(), "finite", "infinity or NaN among their weights")
    # Their inner products about the mean follow from their distances alone: classical multidimensional scaling.
    centering = torch.eye(count, dtype=torch.float64) - 1 / count
    values, vectors = torch.linalg.eigh(-centering @ squares @ centering / 2)  # the least one first
    lengths = values.clamp(min=0).sqrt()
    thin = (lengths[-2] / lengths[-1]).item()
    check("plane_through", "networks", thin > _THIN, "in a plane, not on a line", f"width by length {thin:.1e}")
    beside = (vectors[:, :-2] * lengths[:-2]).norm(dim=1) if count > 3 else torch.zeros(count)
    found = vectors[:, [-1, -2]] * lengths[[-1, -2]]
    shift, turn = _of_three(found) if count == 3 else _of_four(found)
    axes = vectors[:, [-1, -2]] / lengths[[-1, -2]]
    x_axis, y_axis = (axes @ turn).unbind(1)
    return Plane(
        networks=tuple(_copied(state, networks[0], device) for state in networks),
        coordinates=(found - shift) @ turn,
        distances=tuple(beside.tolist()),
        origin=1 / count + axes @ shift,
        x_axis=x_axis,
        y_axis=y_axis,
    )


def _of_three(found: Tensor) -> tuple[Tensor, Tensor]:
    """The first one's place, and the turn, or reflection, that puts the second on the x axis, the third above it."""
    first, second, third = found
    x, y = (second - first) / (second - first).norm()
    up = torch.stack([-y, x])
    return first, torch.stack([torch.stack([x, y]), up if up @ (third - first) > 0 else -up], 1)


def _of_four(found: Tensor) -> tuple[Tensor, Tensor]:
    """No shift; and the reflections that put the outermost network on each axis on its positive side."""
    outermost = found[found.abs().argmax(0), [0, 1]]
    return torch.zeros(2, dtype=found.dtype), outermost.sign().diag()


def _copied(state: State, like: State, device: torch.device | str | None) -> dict[str, Tensor]:
    return {name: state[name].detach().to(device or value.device, copy=True) for name, value in like.items()}
