"""Callbacks that need an evaluation after certain updates, for which a callback cannot ask Lightning."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ..checkpoints import some
from .counted import Counted, is_fitting
from .host import accumulation_varies


class Evaluated(Counted, ABC):
    """The base of a technique that keeps what the validations find that fall due at its ends, of cycles, say.

    A checkpoint that is written between an end and its validation, as ModelCheckpoint(every_n_train_steps=...) does,
    has Lightning leave that validation out when it goes on from there: a warning tells of it.
    """

    ends: str  # what ends, for errors and warnings

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, Any] = {}

    @abstractmethod
    def is_end(self, updates: int) -> bool:
        """Whether something has ended with the last of so many updates, and is not recorded yet."""

    @abstractmethod
    def record(self, trainer: Trainer, updates: int, metrics: dict[str, float]) -> None:
        """Keeps what was found there."""

    def check_validations(self, trainer: Trainer, ends: Iterable[int]) -> None:
        """Raises ValueError where the Trainer does not validate after so many updates each."""
        if accumulation_varies(trainer):
            text = "leave GradientAccumulationScheduler out: a validation has to fall due after certain updates"
            raise ValueError(f"{type(self).__name__}: {text}, of which each must have as many batches.")
        ends = [*ends]
        if missed := [end for end in ends if not _validates(trainer, end)]:
            name, many = type(self).__name__, f"{some([*map(str, missed)])} updates"
            raise ValueError(
                f"{name}: a {self.ends} ends after {many}, when no validation falls due; {_hint(trainer, ends)}."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer) and self.is_end(updates := trainer.global_step):
            found = trainer.callback_metrics.items()
            fresh = {name: float(value) for name, value in found if self._logged.get(name) is not value}
            self.record(trainer, updates, fresh)
        self._logged = {}

    def before_update(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._tell_of_lost(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_of_lost(trainer)

    def _tell_of_lost(self, trainer: Trainer) -> None:
        if trainer.enable_validation and self.is_end(updates := trainer.global_step):
            self.lost(trainer, updates)
            text = f"the {self.ends} that ended after {updates} updates has no metrics"
            why = "the training went on from a checkpoint that was written before the validation there"
            if trainer.is_global_zero:
                warnings.warn(f"{type(self).__name__}: {text}; {why}.", stacklevel=2)

    def lost(self, trainer: Trainer, updates: int) -> None:
        """Does what is left to do without metrics."""


def _place(trainer: Trainer, updates: int) -> tuple[int, int]:
    """The epoch, from 0, and how many batches of it are over, after so many updates."""
    batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
    if not math.isfinite(batches):
        return 0, updates * each
    per_epoch = math.ceil(batches / each)
    epoch = (updates - 1) // per_epoch
    return epoch, min((updates - epoch * per_epoch) * each, int(batches))


def _in_all(trainer: Trainer, updates: int) -> int:
    epoch, batch = _place(trainer, updates)
    return batch if epoch == 0 else epoch * int(trainer.num_training_batches) + batch


def _validates(trainer: Trainer, updates: int) -> bool:
    """By the rules of Lightning's training loop; where time or an unknown length of the data decides, nobody knows."""
    interval: float | None = trainer.val_check_batch
    if interval is None or not math.isfinite(interval):
        return False
    if (every := trainer.check_val_every_n_epoch) is None:
        return _in_all(trainer, updates) % interval == 0
    epoch, batch = _place(trainer, updates)
    return math.isfinite(trainer.num_training_batches) and (epoch + 1) % every == 0 and batch % interval == 0


def _hint(trainer: Trainer, ends: list[int]) -> str:
    return "give the Trainer " + " or ".join(_fitting(trainer, ends))


def _fitting(trainer: Trainer, ends: list[int]) -> Iterator[str]:
    places = [_place(trainer, end) for end in ends]
    if all(batch == trainer.num_training_batches for _, batch in places):
        yield f"check_val_every_n_epoch={math.gcd(*(epoch + 1 for epoch, _ in places))}"
    interval = math.gcd(*(_in_all(trainer, end) for end in ends))
    yield f"val_check_interval={interval}, check_val_every_n_epoch=None"
