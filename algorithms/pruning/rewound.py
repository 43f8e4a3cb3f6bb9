"""What is set back in a run that trains from 0 to T, then from k to T again and again: model, optimizer, schedule."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from composer.core import State, Time, Timestamp
from composer.optim import ComposerScheduler
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


_SCHEDULED = {"params", "lr", "initial_lr"}  # which are not the optimizer's own to change


def options_of(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """What each group holds besides parameters and learning rate; some optimizers count their updates there."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [{key: deepcopy(value) for key, value in group.items() if key not in _SCHEDULED} for group in groups]


def put_options_back(optimizers: Iterable[Optimizer], options: Iterable[Mapping[str, Any]]) -> None:
    """Makes those options what they were."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, was in zip(groups, options, strict=False):  # groups may have been added
        for key in group.keys() - was.keys() - _SCHEDULED:
            del group[key]
        group.update(deepcopy(dict(was)))


class RewoundScheduler(ComposerScheduler):
    """Asks a scheduler as if the run were where in one training it is.

    Times in ep, ba and dur are exact; samples and tokens are counted by their mean in the batches so far.

    Args:
        scheduler: a Composer scheduler, or any function of the state.
        place: by the number of updates, the length of one training (None if it is not known yet: then the run's state
            is asked), where in it the run is, in batches, and None or a multiplier in place of the scheduler's.
    """

    def __init__(self, scheduler: Callable[..., float], place: Callable[[int], tuple[Time | None, int, float | None]]):
        self.scheduler, self.place, self.asked = scheduler, place, False

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        self.asked = True
        updates = state.timestamp.batch.value
        # Composer asks for the next update's rate before it counts the last one; torch's scheduler has counted it.
        late = any(getattr(scheduler, "last_epoch", 0) == updates + 1 for scheduler in state.schedulers)
        duration, position, constant = self.place(updates + late)
        if constant is not None:
            return constant
        arguments = () if ssr == 1 else (ssr,)  # which a function need not take
        there: Any = state if duration is None else _Place(state, duration, position, late and position > 0)
        return self.scheduler(there, *arguments)


class _Place:
    """A run's state, but for where in its training it is."""

    def __init__(self, state: State, duration: Time, position: int, late: bool):
        self._state, self.max_duration = state, duration
        self.schedulers = [SimpleNamespace(last_epoch=position)]
        self.timestamp, batch = state.timestamp, position - late
        if self.timestamp.batch.value != batch:
            length = int(state.dataloader_len or batch + 1)
            epoch, in_epoch = divmod(batch, length)
            if epoch and not in_epoch and not late:  # of a schedule that is stepped by epoch, before that is counted
                epoch, in_epoch = epoch - 1, length
            share = batch / self.timestamp.batch.value
            sample, token = (round(self.timestamp.get(name).value * share) for name in ("sample", "token"))
            self.timestamp = Timestamp(epoch=epoch, batch=batch, batch_in_epoch=in_epoch, sample=sample, token=token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_elapsed_duration(self) -> Time:
        return self.timestamp.get(self.max_duration.unit) / self.max_duration
