"""Callbacks that change what a training step is given."""

import inspect
from enum import IntEnum
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .host import Technique, around_training_step, callbacks_of


class Place(IntEnum):
    """Who comes before whom at a training step, in whichever order the Trainer was given them; as in Composer."""

    MIXES = 0
    SMOOTHS = 1
    CONVERTS = 2
    DISTILLS = 3
    SELECTS = 4


class StepTechnique(Technique):
    """The base of a technique that changes the batch or the loss of a training step."""

    place: Place

    def __init__(self) -> None:
        self._undo: Any = None

    def change(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        """Returns the batch that the training step, or the next technique, is given in the place of this one."""
        return batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError where the training step fetches its batches itself."""
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise ValueError(
                f"{type(self).__name__} needs the batch that training_step is given: define training_step(self, batch, "
                "batch_idx) in the place of training_step(self, dataloader_iter)."
            )
        if step_techniques(trainer)[0] is self:
            self._undo = around_training_step(pl_module, partial(_step, trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._undo:
            self._undo()
        self._undo = None


def step_techniques(trainer: Trainer) -> list[StepTechnique]:
    """Returns the Trainer's callbacks of this kind, in the order in which they act."""
    held = (callback for callback in callbacks_of(trainer) if isinstance(callback, StepTechnique))
    return sorted(held, key=lambda technique: technique.place)


def _step(trainer: Trainer, pl_module: LightningModule, training_step: Any, batch: Any) -> Any:
    for technique in step_techniques(trainer):
        batch = technique.change(trainer, pl_module, batch)
    return training_step(batch)
