"""The running statistics of batch norm, recomputed for the weights of each point of a path.

Those of no training belong to the points between two networks. To interpolate them, as the code of McDermott and
Cummings does (arXiv 2310.18769), makes barriers higher than they are with statistics of training data, which Jordan et
al. recompute at each point (arXiv 2211.08403).
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ranks import gathered, world_size
from ..untouched import unsynchronize
from ..validation import NoEffectWarning, check
from .interpolation import Path, State
from .walk import Forward, Walk


def recompute_statistics(
    model: nn.Module,
    states: tuple[State, State] | Path,
    alphas: int | Sequence[float],
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
) -> Path:
    """Returns the path on which batch norm's statistics are averages over these batches, for `evaluate_path`.

    They are computed here, at all points in one pass; the function that is returned knows these points alone. Each
    batch counts alike, as with torch's `momentum=None`; layers other than batch norm are in evaluation mode. Nothing of
    the model is left changed. The arguments are those of `evaluate_path`, but nobody looks at targets.

    Raises ValueError as that does. A `NoEffectWarning` says that the model has no statistics; its path stays as it is.
    """
    walk = Walk("recompute_statistics", model, states, alphas, forward)
    path, norms = walk.path, batch_norms(walk.model)
    if not norms:
        text = f"{type(walk.model).__name__} has no batch norm with running statistics: there is nothing to recompute"
        warnings.warn(f"recompute_statistics: {text}.", NoEffectWarning, stacklevel=2)
        return path
    with walk.begin() as own:
        unseen = _start_averaging(norms)
        found = dict.fromkeys(walk.points, unseen)
        walk.points, walk.path = [*found], lambda alpha: {**path(alpha), **found[alpha]}
        for batch in walk.batches(batches):
            for alpha, _ in walk.outputs(batch):
                found[alpha] = {name: own[name].clone() for name in unseen}
    seen = found[walk.points[0]] is not unseen
    check("recompute_statistics", "batches", seen, "batches of training data", "none")

    def at(alpha: float) -> dict[str, Tensor]:
        check("recompute_statistics", "alpha", alpha in found, "one of the points that were given", alpha)
        return {**path(alpha), **found[alpha]}

    return at


def averaged_over_ranks(path: Path, alphas: Iterable[float], model: nn.Module) -> Path:
    """Returns the path with the means of all ranks' statistics at these points, each of a rank's share of the data."""
    if world_size() == 1:
        return path
    statistics = ("running_mean", "running_var")
    names = [f"{prefix}.{name}".lstrip(".") for prefix in batch_norms(model) for name in statistics]
    means: dict[float, dict[str, Tensor]] = {}
    for alpha in alphas:
        own = path(alpha)
        every = gathered({name: own[name].cpu() for name in names})
        means[alpha] = {name: torch.stack([each[name] for each in every]).mean(0) for name in names}
    return lambda alpha: {**path(alpha), **means[alpha]}


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Returns the model's layers of batch norm that keep running statistics, by all of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {n: module for n, module in modules if isinstance(module, _BatchNorm) and module.running_mean is not None}


def _start_averaging(norms: dict[str, _BatchNorm]) -> dict[str, Tensor]:
    """Makes forward passes average over batches in the buffers, whose state before the first batch it returns."""
    state = {}
    for prefix, norm in norms.items():
        norm.train()
        norm.momentum = None
        unsynchronize(norm)
        for name, value in {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}.items():
            state[f"{prefix}.{name}".lstrip(".")] = torch.full_like(getattr(norm, name), value)
    return state
