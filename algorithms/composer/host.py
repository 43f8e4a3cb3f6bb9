"""What the algorithms have in common as guests of the Composer Trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import composer.algorithms
from composer.algorithms import (
    SWA,
    GyroDropout,
    LayerFreezing,
    ProgressiveResizing,
    SelectiveBackprop,
    SeqLengthWarmup,
)
from composer.algorithms import warnings as composers_warnings
from composer.callbacks import EarlyStopper, MLPerfCallback, ThresholdStopper
from composer.core import Algorithm, Event, State, Time, Timestamp, TimeUnit
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from .. import validation
from ..progress import COUNTS, Moment, Progress

# What these do follows the share of the whole run that is over, so that a part of it is not like a run of that length.
BOUND_TO_THE_LENGTH = (
    GyroDropout,
    LayerFreezing,
    ProgressiveResizing,
    SelectiveBackprop,
    SeqLengthWarmup,
    SWA,
)
UNITS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN, TimeUnit.DURATION)


class NoEffectWarning(validation.NoEffectWarning, composers_warnings.NoEffectWarning):
    """A technique has changed nothing; whoever filters Composer's warnings, filters it too."""


def bound_to_the_length(algorithm: Algorithm) -> bool:
    """Whether what it does follows how much of the whole run is over; ours say so themselves."""
    return isinstance(algorithm, BOUND_TO_THE_LENGTH) or getattr(algorithm, "bound_to_the_length", False)


def refuse_twins(algorithm: Algorithm, state: State) -> None:
    """Raise ValueError where the run holds a second algorithm of this class, or Composer's class of the same name.

    Both would act, and on resume both would receive the state of the last one; which any two classes of one name do.
    """
    ours = [kind for kind in type(algorithm).__mro__ if kind.__module__.startswith(f"{__package__}.")]
    techniques = (kind for kind in ours if issubclass(kind, Algorithm) and kind.__module__ != f"{__package__}.bases")
    own = next(techniques, type(algorithm))
    kinds = (own, getattr(composer.algorithms, own.__name__, own))
    if sum(isinstance(other, kinds) for other in state.algorithms) > 1:
        raise ValueError(
            f"The Trainer was given more than one {own.__name__}; keep one, of accelerando or of Composer."
        )
    name = type(algorithm).__qualname__
    if sum(type(other).__qualname__ == name for other in state.algorithms) > 1:
        raise ValueError(
            f"The Trainer was given two classes called {name}, and from a checkpoint Composer gives both the state of "
            "the last one; rename yours."
        )


class RequiredOnLoad(Algorithm):
    """Makes the checkpoints of a run refuse to be resumed without the algorithm that is called `name`.

    Composer takes care of that for its own classes only: it looks up the name that a checkpoint gives, finds one that
    is required, and evaluates the text that is stored with it. This is stored under the name of one of those, which
    nobody trains with, and its text calls `recall`. To load weights alone, or to exclude `name`, stays possible.
    """

    def __init__(self, name: str):
        self.name, self.missing = name, False

    def state_dict(self) -> dict[str, Any]:
        call = f"__import__({__name__!r}, fromlist=['recall']).recall({self.name!r}, locals())"
        return {"repr": f"{self.__class__.__qualname__} and {call}"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Which happens on a full resume, and not where weights alone are loaded."""
        if self.missing:
            raise ValueError(
                f"The checkpoint was trained with {self.name}, which this Trainer lacks, and without it another run "
                f"would go on: add it to the algorithms as it was there; or load the weights alone "
                f"(load_weights_only=True), or leave it out on purpose (load_exclude_algorithms=[{self.name!r}])."
            )

    def match(self, event: Event, state: State) -> bool:
        return event is Event.AFTER_LOAD and self.missing

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        state.algorithms.remove(self)


RequiredOnLoad.__qualname__ = composer.algorithms.NoOpModel.__qualname__


def recall(name: str, composers: Mapping[str, Any]) -> Any:
    """Called by Composer in `State._apply_required_algorithms`, whose local variables these are."""
    state, excluded = composers["self"], composers["exclude_algorithms"] or ()
    if name not in excluded and not any(type(other).__qualname__ == name for other in state.algorithms):
        required = RequiredOnLoad(name)
        required.missing = True
        state.algorithms.append(required)
    # What Composer finds here as present it does not try to add.
    composers["current_algos"].setdefault(str, []).append(composers["serialized_value"]["repr"])
    return name


def refuse_stoppers(algorithm: Algorithm, state: State) -> None:
    """Raise ValueError where a callback of Composer's may end the run before what the algorithm needs has come."""
    for callback in state.callbacks:
        stops = isinstance(callback, EarlyStopper | ThresholdStopper)
        if stops or (isinstance(callback, MLPerfCallback) and callback.exit_at_target):
            name, other = type(algorithm).__name__, type(callback).__name__
            raise ValueError(
                f"{name}: leave this {other} out: it ends the whole run, and what is to follow never comes."
            )


def composer_model(state: State) -> ComposerModel:
    """The model that the user gave to the Trainer, out of what DDP wraps around it."""
    return state.model if hasattr(state.model, "loss") else state.model.module  # type: ignore[return-value]


def moment_of(time: Time) -> Moment:
    """The same in the words of the techniques, which know no host."""
    return Moment(time.value, time.unit.value)


def progress_of(state: State, now: Timestamp | None = None) -> Progress:
    """How far the run has come, or how far it had at another time."""
    now, length, batches = now or state.timestamp, state.max_duration, state.dataloader_len
    return Progress(
        **{name: int(getattr(now, name)) for name in COUNTS},
        batches_per_epoch=None if batches is None else int(batches),
        length=length and moment_of(length),
    )


def evaluated(state: State) -> dict[str, float]:
    """What the last evaluation found, as ``label/metric``; metrics of one number only."""
    values: dict[str, float] = {}
    for label in (evaluator.label for evaluator in state.evaluators):
        for name, metric in state.eval_metrics[label].items():
            value: Any = metric.compute()
            if isinstance(value, Tensor) and value.numel() == 1:
                values[f"{label}/{name}"] = value.item()
    return values


class AlsoWhen:
    """An evaluator's interval: as asked for, and also when something is `due`; but not when this was `measured`."""

    def __init__(
        self, interval: Any, algorithm: Algorithm, due: Callable[[State], bool], measured: Callable[[State], bool]
    ):
        self.interval, self.algorithm, self.due, self.measured = interval, algorithm, due, measured

    def __call__(self, state: State, event: Event) -> bool:
        asked = self.interval(state, event)
        if self.algorithm not in state.algorithms:  # the evaluator has come into another run
            return asked
        return self.due(state) or (asked and not self.measured(state))


def also_evaluate(
    state: State, algorithm: Algorithm, due: Callable[[State], bool], measured: Callable[[State], bool]
) -> None:
    """Have every evaluator run when something is due, at the end of the batch, and not again for the same weights."""
    for evaluator in state.evaluators:
        interval: Any = evaluator.eval_interval
        # Wrapped already where fit() was called before, or where the evaluator comes from another Trainer.
        interval = interval.interval if isinstance(interval, AlsoWhen) else interval
        evaluator.eval_interval = AlsoWhen(interval, algorithm, due, measured)
