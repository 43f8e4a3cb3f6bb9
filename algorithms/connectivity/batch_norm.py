"""The running statistics of batch norm as averages over batches, in place of those that training has left."""

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Returns the model's layers of batch norm that keep running statistics, by all of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {n: module for n, module in modules if isinstance(module, _BatchNorm) and module.running_mean is not None}


@contextmanager
def averaging(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Gives the statistics of a network that has seen no batch, by their names in the state.

    Meanwhile a forward pass adds its batch to the cumulative average in the buffers; afterwards batch norm is in
    evaluation mode. The model has to be a borrowed one, as `momentum` stays None.
    """
    norms = batch_norms(model)
    fresh: dict[str, Tensor] = {}
    for prefix, norm in norms.items():
        norm.train()
        norm.momentum = None
        if isinstance(norm, nn.SyncBatchNorm):
            # It waits for the other ranks in every pass, but they may have fewer batches.
            norm.forward = types.MethodType(_BatchNorm.forward, norm)
        unseen = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
        held = {name: (getattr(norm, name), value) for name, value in unseen.items()}
        fresh |= {f"{prefix}.{name}".lstrip("."): torch.full_like(*pair) for name, pair in held.items()}
    yield fresh
    for norm in norms.values():
        norm.eval()
