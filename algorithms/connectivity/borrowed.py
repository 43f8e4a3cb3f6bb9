"""A model that is lent out to evaluate other weights than its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..checkpoints import some
from ..generators import untouched_generators
from ..pruning.untouched import kept
from .interpolation import State, is_averaged


@contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Gives the model's state, for `load` to write to, in evaluation mode and without gradients.

    Afterwards the model, and the global random generators, are as they were.
    """
    saved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad(), untouched_generators([device] if device.type == "cuda" else []), kept(model):
        model.eval()
        try:
            yield model.state_dict()
        finally:
            for name, parameter in model.named_parameters():
                parameter.copy_(saved[name])
            torch.clear_autocast_cache()


def load(own: Mapping[str, Tensor], state: State) -> None:
    """Copies a state into a borrowed model's; ValueError where it does not fit, or is the model's own."""
    if misfits := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"states must be those of the model: only one of them has {some(misfits)}")
    for name, value in state.items():
        target = own[name]
        if value.shape != target.shape or is_averaged(value) != is_averaged(target):
            theirs, ours = (f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (value, target))
            raise ValueError(f"states must be those of the model: {name} is {theirs}, where the model has {ours}")
        if value.data_ptr() == target.data_ptr() and value.numel():
            raise ValueError(f"states must be copies: {name} is the model's own, which is overwritten meanwhile")
        target.copy_(value)
    torch.clear_autocast_cache()  # which holds the last state in half precision
