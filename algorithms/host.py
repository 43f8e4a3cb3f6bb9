"""What the algorithms have in common as guests of the Composer Trainer."""

import math

from composer.core import Algorithm, State, Time, TimeUnit
from composer.models import ComposerModel

UNITS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN, TimeUnit.DURATION)


def refuse_twins(algorithm: Algorithm, state: State) -> None:
    """Raise ValueError where the run holds a second algorithm of this name, of this class or of Composer's.

    Both would act, and on resume both would receive the state of the last one.
    """
    name = type(algorithm).__name__
    if sum(type(other).__name__ == name for other in state.algorithms) > 1:
        raise ValueError(f"The Trainer was given more than one {name}; keep one, of accelerando or of Composer.")


def composer_model(state: State) -> ComposerModel:
    """The model that the user gave to the Trainer, out of what DDP wraps around it."""
    return state.model if hasattr(state.model, "loss") else state.model.module  # type: ignore[return-value]


def moment(value: str | Time) -> Time | None:
    """A time string as a moment of the training, in ep, ba, sp, tok or dur; None for what is none."""
    try:
        time = Time.from_input(value)
    except (ValueError, TypeError, RuntimeError):
        return None
    longest = 1 if time.unit == TimeUnit.DURATION else math.inf
    return time if time.unit in UNITS and 0 <= time.value <= longest else None


def reached(state: State, time: Time) -> bool:
    """Whether so much of the training is over; within an epoch too, where the number of its batches is known."""
    unit, wanted = time.unit, float(time.value)
    if unit == TimeUnit.DURATION:
        duration: Time = state.max_duration  # type: ignore[assignment]
        unit, wanted = duration.unit, wanted * duration.value
    return elapsed(state, unit) >= wanted * (1 - 1e-9)  # 0.3 of ten batches may come out as a little more than three


def elapsed(state: State, unit: TimeUnit) -> float:
    """How much of the training is over; epochs with their parts, where the number of their batches is known."""
    over: float = state.timestamp.get(unit).value
    if unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        over += state.timestamp.batch_in_epoch.value / int(state.dataloader_len)
    return over
