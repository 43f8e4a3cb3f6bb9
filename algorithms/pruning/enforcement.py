"""What is pruned stays exactly zero: for a training loop of one's own, and for the algorithms here.

In a mask, what is not zero is kept. What `bits_of` makes of masks may stand for them, which saves time at every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Bits:
    """A mask as integers, of which all bits are set where a weight is kept, and none where it is pruned."""

    integers: Tensor

    def __getitem__(self, place: Any) -> Bits:
        return Bits(self.integers[place])


def bits_of(mask: Tensor | Bits, weight: Tensor | None = None) -> Bits:
    """The mask as int8, or for a weight on a CPU as integers of its own size.

    Which is faster there, several times so for many weights; a GPU waits for its memory.
    """
    if isinstance(mask, Bits):
        return mask
    size = weight.element_size() if weight is not None and weight.device.type == "cpu" else 1
    return Bits(mask.bool().view(torch.int8).neg().to(_INTEGERS[size]))


def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor | Bits]) -> None:
    """Set what is pruned to zero, in place; also where it is infinite or NaN."""
    for name, mask in masks.items():
        _keep(tensors[name], mask)


def _keep(tensor: Tensor, mask: Tensor | Bits) -> None:
    # Not by multiplication, of which NaN stays NaN; and masked_fill_ takes twice the time.
    bits = bits_of(mask).integers.to(tensor.device)
    tensor.detach().view(_INTEGERS[tensor.element_size()]).bitwise_and_(bits)


def mask_gradients(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor | Bits]) -> None:
    """Set the gradients of what is pruned to zero, also where they are infinite or NaN.

    A weight that is zero, and whose momenta are, then stays zero under every optimizer that treats each weight apart:
    SGD, Nesterov's momentum, Adam, weight decay and so on. What is pruned does not count in the gradient's norm either.
    """
    for name, mask in masks.items():
        gradient = weights[name].grad
        if gradient is not None and gradient.is_sparse:
            _keep(gradient._values(), mask[tuple(gradient._indices())])
        elif gradient is not None:
            _keep(gradient, mask)


def mask_optimizers(
    optimizers: Iterable[Optimizer], weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor | Bits]
) -> None:
    """Set the optimizers' state of what is pruned to zero: every tensor of numbers that has the shape of its weight.

    An optimizer that keeps matrices for the dimensions of the weights, such as SOAP's and Shampoo's, may keep the rest
    in other bases, in which no weight is pruned; then its state is left alone.
    """
    for optimizer in _with_bases(optimizers):
        states = [(weights[name], mask, optimizer.state.get(weights[name], {})) for name, mask in masks.items()]
        if any(_has_bases(weight, state) for weight, _, state in states):
            continue
        for weight, mask, state in states:
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                    _keep(value, mask)


def _has_bases(weight: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether there are square matrices, in lists or of another shape than the weight has."""
    for value in state.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            square = isinstance(each, Tensor) and each.ndim == 2 and each.shape[0] == each.shape[1] > 1
            if square and (each is not value or each.shape != weight.shape):
                return True
    return False


def forget_momenta(optimizers: Iterable[Optimizer]) -> None:
    """Make the optimizers' state that of new ones.

    What some keep in groups stays, which `accelerando.algorithms.pruning.rewound.put_options_back` is for.
    """
    for optimizer in _with_bases(optimizers):
        optimizer.state.clear()
        if "global_step" in vars(optimizer):  # by which SAM takes turns
            vars(optimizer)["global_step"] = 0


def _with_bases(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Those that wrap another one, such as SAM's, together with it."""
    found = [*optimizers]
    return found + [base for optimizer in found if (base := getattr(optimizer, "base_optimizer", None))]
