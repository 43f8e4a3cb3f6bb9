"""Looking at a model without leaving a trace in it: on a copy of it, or on itself, with all that it holds put back."""

import copy
import types
from collections import deque
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .generators import untouched_generators


class _OfValues(TorchFunctionMode):
    """Copies what a computation has left, as a network that keeps its features does, by value; torch refuses to."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            # Not in the memo, which goes by ids: the detached tensor is gone at once, and another one gets its id.
            return func(args[0].detach(), {})
        return func(*args, **(kwargs or {}))


def unsynchronize(module: nn.Module) -> None:
    """Has a SyncBatchNorm work as on one rank: it waits for the others in every pass, but they may have fewer batches.

    Other modules stay as they are.
    """
    if isinstance(module, nn.SyncBatchNorm):
        module.forward = types.MethodType(_BatchNorm.forward, module)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; ValueError where the model holds what cannot be copied, such as a lock or an open file."""
    try:
        with _OfValues():
            return copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, so that nobody can look at it beside its training: {error}"
        ) from error


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Afterwards all modules have the attributes that they had: modes, buffers, hooks, lists, other tensors.

    Meanwhile tensors and containers are copies; parameters are the model's own, and are nobody's to write.
    """
    saved = [(module, dict(vars(module))) for module in model.modules()]
    copies: dict[int, Any] = {}  # modules may share them
    try:
        for module, was in saved:
            # By the dict, as attributes of a compiled module's wrapper are those of the wrapped one.
            vars(module).update({name: _copy(value, copies) for name, value in was.items()})
        yield
    finally:
        for module, was in saved:
            vars(module).clear()
            vars(module).update(was)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models are in evaluation mode, without gradients; they and the global random generators are afterwards as
    before, but for weights that are written to."""
    devices = {tensor.device for model in models for tensor in chain(model.parameters(), model.buffers())}
    with torch.no_grad(), untouched_generators(each for each in devices if each.type == "cuda"), ExitStack() as stack:
        for model in models:
            stack.enter_context(kept(model))
            model.eval()
        # An autocast around it keeps weights in half precision: those of here are without gradients.
        stack.callback(torch.clear_autocast_cache)
        yield


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_leaf:
        copies[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
    elif isinstance(value, list | deque | set | MutableMapping) and hasattr(value, "copy"):
        result: Any = copy.copy(value)
        copies[id(value)] = result
        if isinstance(result, MutableMapping):
            result.update({key: _copy(item, copies) for key, item in result.items()})
        elif isinstance(result, list):
            result[:] = [_copy(item, copies) for item in result]
    return copies.get(id(value), value)
