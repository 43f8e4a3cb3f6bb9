"""A scheduler of Composer's that is asked for the rates of one training again and again."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from composer.core import State, Time, Timestamp
from composer.optim import ComposerScheduler


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
