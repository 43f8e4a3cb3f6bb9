"""Callbacks that act before or after updates of the optimizer, and after all that others do there."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from .host import Technique, callbacks_of

_SHARDING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Counted(Technique):
    """The base of a technique that counts updates.

    `before_update` comes with the first of the batches whose gradients make an update, `after_update` with the last;
    and where a module that optimizes by itself ends an epoch without an update, there once more.
    """

    late: ClassVar[int] = 1  # who is later comes after those that are less so, and before those that write checkpoints

    def __init__(self) -> None:
        self._counted = 0
        self._open = False  # whether the last batch was no update's last one

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises ValueError where the strategy splits weights."""
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy, _SHARDING):
            name, strategy = type(self).__name__, type(trainer.strategy).__name__
            raise ValueError(f"{name} does not work on weights that {strategy} splits; train with strategy='ddp'.")
        # A new list: Lightning is walking through the old one.
        trainer.callbacks = sorted(callbacks_of(trainer), key=_lateness)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError where there are several optimizers."""
        if (several := len(trainer.optimizers)) > 1:
            name, module = type(self).__name__, type(pl_module).__name__
            raise ValueError(f"{name} counts the updates of one optimizer, and {module} has {several}; leave it out.")
        self._counted = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.before_update(trainer, pl_module, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._open = trainer.global_step == self._counted
        if not self._open:
            self._counted = trainer.global_step
            self.after_update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._open and not pl_module.automatic_optimization:  # the epoch's last batches have made no update
            self.after_update(trainer, pl_module)

    def before_update(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Before each update; the batch is the first one of it."""

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After each update, or an epoch's last batch, before evaluation and checkpoint."""


def _lateness(callback: Any) -> int:
    return 9 if isinstance(callback, Checkpoint) else getattr(callback, "late", 0)


def refuse_stoppers(technique: Technique, trainer: Trainer) -> None:
    """Raises ValueError where a callback of Lightning's may end the training before what is to follow has come."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping | Timer):
            name, other = type(technique).__name__, type(callback).__name__
            other = "Timer (or max_time)" if other == "Timer" else other
            raise ValueError(
                f"{name}: leave {other} out: it ends the whole training, and what is to follow never comes."
            )


def refuse_manual(technique: Technique, pl_module: LightningModule) -> None:
    """Raises ValueError for manual optimization, in which the module steps the schedulers, as often as it likes."""
    if not pl_module.automatic_optimization:
        name, module = type(technique).__name__, type(pl_module).__name__
        raise ValueError(f"{name} needs automatic_optimization=True, which {module} has set to False.")


def is_fitting(trainer: Trainer) -> bool:
    """Whether what runs is a training, or an evaluation within one, that of Lightning's sanity check left out."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def log_numbers(trainer: Trainer, prefix: str, values: Mapping[str, Any]) -> None:
    """Gives the numbers among the values to the Trainer's loggers."""
    numbers = {f"{prefix}{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
