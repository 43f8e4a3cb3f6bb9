"""What is pruned stays exactly zero: for a training loop of one's own, and for the algorithms here."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set what is pruned to zero, in place; also where it is infinite or NaN."""
    with torch.no_grad():
        for name, mask in masks.items():
            tensors[name].masked_fill_(~mask, 0)


def mask_gradients(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
    """Set the gradients of what is pruned to zero, in one call.

    A weight that is zero, and whose momenta are, then stays zero under every optimizer that treats each weight apart:
    SGD, Nesterov's momentum, Adam, weight decay and so on. What is pruned does not count in the gradient's norm either.
    """
    pairs = [(weight.grad, masks[name]) for name, weight in weights.items() if weight.grad is not None]
    if pairs:
        torch._foreach_mul_(*map(list, zip(*pairs, strict=True)))  # pyright: ignore[reportPrivateImportUsage]


def mask_optimizers(
    optimizers: Iterable[Optimizer], weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
) -> None:
    """Set the optimizers' state of what is pruned to zero: every tensor that has the shape of its weight."""
    with torch.no_grad():
        for optimizer in _with_bases(optimizers):
            for name, weight in weights.items():
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.masked_fill_(~masks[name], 0)


def forget_momenta(optimizers: Iterable[Optimizer]) -> None:
    """Make the optimizers' state that of new ones; not what some keep in groups, which `put_options_back` is for."""
    for optimizer in _with_bases(optimizers):
        optimizer.state.clear()
        if "global_step" in vars(optimizer):  # by which SAM takes turns
            vars(optimizer)["global_step"] = 0


def _with_bases(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Those that wrap another one, such as SAM's, together with it."""
    found = [*optimizers]
    return found + [base for optimizer in found if (base := getattr(optimizer, "base_optimizer", None))]
