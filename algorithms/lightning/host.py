"""What the callbacks have in common as guests of a Lightning Trainer (2.5 and later)."""

import functools
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from ..progress import Moment, Progress, Unit
from ..shown import Shown
from ..validation import misplaced


class Technique(Shown, Callback):
    """The base of a technique's callback, of which a Trainer holds one.

    In a checkpoint its state stands under a name that no other callback of the same class name takes.
    """

    @property
    def state_key(self) -> str:
        return f"accelerando.{type(self).__qualname__}"

    @property
    def match(self) -> Any:
        """What Composer asks an algorithm at first. Raises TypeError."""
        raise misplaced(self, "Lightning", "Composer")

    run_event = match  # what it asks a callback

    @property
    def on_init_end(self) -> Any:
        """What Hugging Face's Trainer asks of a callback at first. Raises TypeError."""
        raise misplaced(self, "Lightning", "Hugging Face")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises ValueError where the Trainer holds a second callback of this class: both would act."""
        name = type(self).__name__
        if sum(isinstance(other, type(self)) for other in callbacks_of(trainer)) > 1:
            raise ValueError(f"The Trainer was given more than one {name}; keep one.")


def callbacks_of(trainer: Trainer) -> list[Any]:
    """Returns the Trainer's callbacks, by an attribute that type checkers do not know."""
    return trainer.callbacks  # type: ignore[attr-defined]


def progress_of(trainer: Trainer) -> Progress:
    """Returns how far the training has come, counted in updates of the optimizer: `accumulate_grad_batches` make one.

    Samples and tokens are nobody's to count here, and stay 0.
    """
    if updates_vary(trainer):
        return _by_batches(trainer)
    batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
    per_epoch = math.ceil(batches / each) if math.isfinite(batches) and batches else None
    in_epoch = trainer.global_step - trainer.current_epoch * per_epoch if per_epoch else 0
    return Progress(
        batch=trainer.global_step,
        epoch=trainer.current_epoch,
        batch_in_epoch=max(in_epoch, 0),
        batches_per_epoch=per_epoch,
        length=first_limit(trainer.max_steps, trainer.max_epochs, per_epoch),
    )


@dataclass(frozen=True, kw_only=True)
class _ByBatches(Progress):
    """That of a training in which nobody knows how many updates an epoch has: `part` of the one at hand is over."""

    part: float = 0.0

    def elapsed(self, unit: Unit) -> float:
        return self.epoch + self.part if unit == "ep" else super().elapsed(unit)


def updates_vary(trainer: Trainer) -> bool:
    """Whether the number of an epoch's updates is not known beforehand, or not the same in all."""
    known = trainer.lightning_module.automatic_optimization and math.isfinite(trainer.num_training_batches)
    return not known or accumulation_varies(trainer)


def accumulation_varies(trainer: Trainer) -> bool:
    """Whether the number of batches that make an update may change from one epoch to the next."""
    return any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks_of(trainer))


def _by_batches(trainer: Trainer) -> Progress:
    """By the batches that Lightning has counted; of an epoch of unknown length none of it is over before the end."""
    batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
    loop = trainer.fit_loop
    counts = loop.epoch_loop.batch_progress
    now: Any = counts.current
    epochs: Any = loop.epoch_progress.current
    done = now.processed
    ended = 0 < done == now.ready and (counts.is_last_batch or done == batches)
    starts = trainer.lightning_module._current_fx_name == "on_train_start"
    if starts and ended and epochs.started <= epochs.completed:  # the counts are those of an epoch that is over
        done, ended = 0, False
    in_epoch = math.ceil(done / each) if ended else done // each
    part = in_epoch / math.ceil(batches / each) if math.isfinite(batches) and batches else 0.0
    return _ByBatches(
        batch=trainer.global_step,
        epoch=trainer.current_epoch,
        batch_in_epoch=in_epoch,
        length=first_limit(trainer.max_steps, trainer.max_epochs, None),
        part=1.0 if ended else part,
    )


def refuse_untold(technique: Technique, trainer: Trainer, *moments: Moment) -> None:
    """Raises ValueError for a moment of which nobody can tell in this training when it comes; at its start."""
    for time in moments:
        if time.value and time.unit != "ba" and (why := _untold(trainer, time)):
            raise ValueError(f"{type(technique).__name__}: {time} {why}.")


def _untold(trainer: Trainer, time: Moment) -> str | None:
    length, epochs = progress_of(trainer).length, time.value
    if time.unit == "dur":
        if length is None:
            known = "max_steps or max_epochs, or the moment in ep or ba"
            return f"is a share of a training whose length is not known; give the Trainer {known}"
        if updates_vary(trainer) and trainer.max_steps >= 0 and first_limit(-1, trainer.max_epochs, None):
            return (
                "is a share of a training that may end by max_steps or by max_epochs; give the Trainer one of the two"
            )
        epochs = time.value * length.value if length.unit == "ep" else 0
    if not math.isfinite(trainer.num_training_batches) and abs(epochs - round(epochs)) > 1e-6:
        return "lies within an epoch, and the loader has no length; give whole epochs, or ba, or a loader with a length"
    return None


def first_limit(steps: int, max_epochs: int | None, per_epoch: int | None) -> Moment | None:
    """What comes first of `max_steps` and `max_epochs`, of which -1 means no limit."""
    epochs = max_epochs if max_epochs is not None and max_epochs >= 0 else None
    if steps >= 0 and (epochs is None or per_epoch is None or steps <= epochs * per_epoch):
        return Moment(steps, "ba")
    return None if epochs is None else Moment(epochs, "ep")


def batches_seen(trainer: Trainer) -> int:
    """Returns the number of the loader's batch at hand, from 0 in the whole training; of accumulated ones, each.

    One that an exception broke off, and that a resumed training repeats, keeps its number.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed


def common_seed(trainer: Trainer, seed: int | None) -> int:
    """Returns the seed, by default Lightning's global one (`seed_everything`) or else torch's, of the first rank."""
    own = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())) if seed is None else seed
    return trainer.strategy.broadcast(own)


def when_built(pl_module: LightningModule, act: Callable[[], None]) -> None:
    """Has `act` called, from a callback's `setup`, once the module has built its layers and no weights are loaded yet.

    It builds them in its constructor, in its `setup`, which comes after the callbacks', or in `configure_model`.
    """
    own, inner = vars(pl_module).get("configure_model"), pl_module.configure_model

    def configure_model() -> None:
        vars(pl_module).pop("configure_model")
        if own is not None:
            pl_module.configure_model = own
        inner()
        act()

    pl_module.configure_model = configure_model


def around_training_step(
    pl_module: LightningModule, step: Callable[[Callable[..., Any], Any], Any]
) -> Callable[[], None]:
    """Has `step(training_step, batch)` called in the place of `training_step(batch, ...)`; returns what undoes it.

    Callbacks see a batch and cannot replace it. The module's attribute is what every strategy calls, DDP's and that of
    a compiled module included.
    """
    own, inner = vars(pl_module).get("training_step"), pl_module.training_step

    @functools.wraps(inspect.unwrap(inner))  # by whose signature Lightning tells what to give
    def training_step(batch: Any, *rest: Any) -> Any:
        return step(lambda changed: inner(changed, *rest), batch)

    def undo() -> None:
        if own is None:
            vars(pl_module).pop("training_step", None)
        else:
            pl_module.training_step = own

    pl_module.training_step = training_step
    return undo
