"""What the callbacks have in common as guests of a Lightning Trainer (2.5 and later)."""

import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..progress import Moment, Progress
from ..shown import Shown


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
        name = type(self).__name__
        raise TypeError(
            f"This {name} is the class for Lightning's Trainer: for Composer's, from accelerando.algorithms import "
            f"{name}."
        )

    run_event = match  # what it asks a callback

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
