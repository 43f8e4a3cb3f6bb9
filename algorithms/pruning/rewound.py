"""What is set back in a run that trains from 0 to T, then from k to T again and again: model, optimizer, schedule."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoints import some


def snapshot_of(model: nn.Module) -> dict[str, Any]:
    """All that a model registers, by name and on the CPU: its `state_dict`, and what is not in it, such as buffers.

    A buffer that is not filled yet is None.
    """
    buffers = {name: module._buffers[key] for name, module, key in _buffers(model)}
    held = dict(model.named_parameters()) | buffers | model.state_dict()
    return {n: v.detach().cpu().clone() if isinstance(v, Tensor) else deepcopy(v) for n, v in held.items()}


def put_back(model: nn.Module, snapshot: Mapping[str, Any]) -> None:
    """Makes the model what it was, also where a buffer has another shape by now, or was not there.

    What still has its shape keeps its memory, for whoever else refers to it. Raises ValueError where a buffer is gone.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(snapshot[name])
        for name, module, key in _buffers(model):
            was, now = snapshot.get(name), module._buffers[key]
            if name not in snapshot:
                del module._buffers[key]
            elif was is None or now is None or (was.shape, was.dtype) != (now.shape, now.dtype):
                device = next(model.parameters()).device if now is None else now.device
                module._buffers[key] = None if was is None else was.to(device, copy=True)
            else:
                now.copy_(was)
    own = model.state_dict()
    gone = snapshot.keys() - own.keys() - dict(model.named_parameters()).keys() - {name for name, *_ in _buffers(model)}
    if gone:
        raise ValueError(f"{some(sorted(gone))} cannot be set back, because the model does not have it any more")
    model.load_state_dict({name: deepcopy(value) for name, value in snapshot.items() if name in own})


def _buffers(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The name, and the module and key under which it is found."""
    modules = [*model.named_modules()]
    return [(f"{path}.{key}".lstrip("."), module, key) for path, module in modules for key in module._buffers]


class Rates:
    """The rates of a training and the torch schedulers that set them, as they were at a step to which it is set back.

    Besides the learning rate they are momenta, which cyclic schedules change too.
    """

    def __init__(self, optimizers: Iterable[Optimizer], schedulers: Iterable[Any]):
        self._optimizers, self._schedulers = [*optimizers], [*schedulers]
        self.saved: dict[str, Any] = {}

    def remember(self) -> None:
        """Keeps them as they are now."""
        names = ("lr", "initial_lr", "momentum", "betas")
        given = _groups(self._optimizers)
        groups = [{name: deepcopy(group[name]) for name in names if name in group} for group in given]
        self.saved = {"groups": groups, "schedulers": [deepcopy(each.state_dict()) for each in self._schedulers]}

    def put_back(self) -> None:
        """Makes them what they were; without schedulers they are not touched, being somebody else's to set."""
        for scheduler, was in zip(self._schedulers, self.saved["schedulers"], strict=True):
            scheduler.load_state_dict(deepcopy(was))
        groups = _groups(self._optimizers) if self._schedulers else []
        for group, was in zip(groups, self.saved["groups"], strict=False):  # groups may have been added
            for name, value in was.items():
                _set(group, name, value)

    def hold_constant(self, multiplier: float) -> None:
        """Sets the learning rate to that with which the optimizer was made, times the multiplier."""
        for group, was in zip(_groups(self._optimizers), self.saved["groups"], strict=False):
            _set(group, "lr", was.get("initial_lr", was["lr"]) * multiplier)


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    """In place where it is a tensor, which a compiled or captured step refers to."""
    if isinstance(group[name], Tensor):
        group[name].copy_(torch.as_tensor(value))
    else:
        group[name] = deepcopy(value)


def _groups(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """As they are now: an optimizer that loads a checkpoint makes new ones."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


_SCHEDULED = {"params", "lr", "initial_lr"}  # which are not the optimizer's own to change


def options_of(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """What each group holds besides parameters and learning rate; some optimizers count their updates there."""
    kept = [{key: group[key] for key in group.keys() - _SCHEDULED} for group in _groups(optimizers)]
    return deepcopy(kept)


def put_options_back(optimizers: Iterable[Optimizer], options: Iterable[Mapping[str, Any]]) -> None:
    """Makes those options what they were."""
    for group, was in zip(_groups(optimizers), options, strict=False):  # groups may have been added
        for key in group.keys() - was.keys() - _SCHEDULED:
            del group[key]
        group.update(deepcopy(dict(was)))
