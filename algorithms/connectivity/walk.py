"""A walk along a path: the model is lent out, takes the weights of each point in turn, and is afterwards as it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import device_of, moved
from ..checkpoints import some
from ..untouched import evaluating
from ..validation import check
from .interpolation import Path, State, is_averaged, linear_path

Forward = Callable[[nn.Module, Any], Any]


def evenly_spaced(points: int) -> list[float]:
    """Returns so many places on a path, 2 or more, from 0 to 1."""
    return [number / (points - 1) for number in range(points)]


def on_inputs(owner: str, model: nn.Module, batch: Any) -> Any:
    """Returns the outputs for the inputs of a pair (inputs, targets); ValueError, which names the owner, for others."""
    pair = isinstance(batch, tuple | list)
    check(owner, "forward", pair, "given for batches other than (inputs, targets)", type(batch).__name__)
    return model(batch[0])


class Walk:
    """The points of a path, in evaluation mode, for a model on its device.

    Args:
        model, states, alphas, forward: those of `evaluate_path`.
        owner: what errors call it.
    """

    def __init__(
        self,
        owner: str,
        model: nn.Module,
        states: tuple[State, State] | Path,
        alphas: int | Sequence[float],
        forward: Forward | None,
    ):
        self.owner, self.forward = owner, forward or partial(on_inputs, owner)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        self.model, self.points = model, self._points(alphas)
        self.device = device_of(model)
        if callable(states):
            self.path: Path = states
        else:
            pair = isinstance(states, tuple | list) and len(states) == 2
            check(owner, "states", pair, "(start, end) or a function of alpha", type(states).__name__)
            self.path = linear_path(*states, device=self.device)

    @contextmanager
    def begin(self) -> Iterator[dict[str, Tensor]]:
        """Gives the model's own state, in evaluation mode and without gradients.

        Afterwards the model and the global random generators are as they were.
        """
        saved = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        with evaluating(self.model):
            try:
                self.own = self.model.state_dict()
                yield self.own
            finally:
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(saved[name])
                torch.clear_autocast_cache()

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches on the model's device."""
        for batch in batches:
            yield moved(batch, self.device)

    def outputs(self, batch: Any) -> Iterator[tuple[float, Any]]:
        """Each point, and the outputs there."""
        for alpha in self.points:
            self._load(self.path(alpha))
            yield alpha, self.forward(self.model, batch)

    def _load(self, state: State) -> None:
        if misfits := sorted(self.own.keys() ^ state.keys()):
            raise ValueError(f"{self.owner}: states must fit the model: only one of them has {some(misfits)}")
        for name, value in state.items():
            target = self.own[name]
            if value.shape != target.shape or is_averaged(value) != is_averaged(target):
                theirs, ours = (f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (value, target))
                raise ValueError(f"{self.owner}: states must fit the model: {name} is {theirs}, the model's {ours}")
            if value.data_ptr() == target.data_ptr() and value.numel():
                raise ValueError(
                    f"{self.owner}: states must be copies: {name} is the model's own, which is overwritten"
                )
            target.copy_(value)
        torch.clear_autocast_cache()  # which holds the weights of the last point in half precision

    def _points(self, alphas: int | Sequence[float]) -> list[float]:
        if isinstance(alphas, int):
            check(self.owner, "alphas", alphas > 1, "at least 2, for the ends, or a list of points", alphas)
            return evenly_spaced(alphas)
        points = [float(alpha) for alpha in alphas]
        check(self.owner, "alphas", len(points) > 0, "one point or more", alphas)
        return points
