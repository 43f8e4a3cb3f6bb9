"""TradeoffCurve in a training by Lightning's Trainer.

def configure_optimizers(self):
    optimizer = torch.optim.SGD(self.parameters(), 0.1)
    scheduler = MultiplicativeCyclicLR(optimizer, warmup=800, period=800)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

curve = TradeoffCurve()
Trainer(max_steps=6400, val_check_interval=800, check_val_every_n_epoch=None, callbacks=[curve])
"""

import math
import warnings
from itertools import takewhile
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ..cyclic import MultiplicativeCyclicLR
from ..tradeoff_curve import Curve
from .counted import log_numbers, refuse_manual, refuse_stoppers
from .evaluated import Evaluated
from .host import progress_of


class TradeoffCurve(Evaluated):
    """Keep what is reached at the end of every cycle, before the learning rate rises again, and what it has cost.

    The module's scheduler is a `MultiplicativeCyclicLR`, of interval "step". A validation has to fall due at the end of
    each cycle, and the training has to end with one: otherwise ValueError is raised at its start, which says what would
    fit. Each point is logged as `tradeoff/...`, and stands in `points` (and in the checkpoint) as a dict of numbers:

    - `cycle`, counted from 0, and the updates that training took: `batch`;
    - `seconds` of training, from asking for a batch to the end of its update, but for asking for the first one after an
      evaluation or a checkpoint; those of the slowest rank;
    - every metric that the validation logs.
    """

    ends = "cycle"
    bound_to_the_length: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._curve: Curve | None = None
        self._state: dict[str, Any] = {}

    @property
    def points(self) -> list[dict[str, float]]:
        return self._curve.points if self._curve else self._state.get("points", [])

    def state_dict(self) -> dict[str, Any]:
        if self._curve:
            self._curve.clock.stop()  # what follows is no training
            self._state = self._curve.state_dict()
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self._curve = state_dict, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self._curve, self._state = None, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        refuse_stoppers(self, trainer)
        refuse_manual(self, pl_module)
        scheduler = self._scheduler(trainer)
        if not trainer.enable_validation:
            raise ValueError("TradeoffCurve has nothing to evaluate on; give the Trainer val_dataloaders.")
        progress = progress_of(trainer)
        steps = progress.in_batches(progress.length) if progress.length else None
        if steps is None:
            raise ValueError("TradeoffCurve needs a training of known length; give the Trainer max_steps.")
        self._steps = int(steps)
        if not trainer.global_step:
            scheduler.check_steps(self._steps)
        ends = takewhile(lambda end: end <= self._steps, map(math.ceil, scheduler.cycle_ends()))
        self.check_validations(trainer, ends)
        if not self._curve:
            self._curve = Curve(scheduler)
            self._curve.load_state_dict(self._state)

    def _scheduler(self, trainer: Trainer) -> MultiplicativeCyclicLR:
        held = trainer.lr_scheduler_configs
        found = [config.scheduler for config in held if isinstance(config.scheduler, MultiplicativeCyclicLR)]
        if len(found) != 1 or len(held) != 1:
            names = ", ".join(type(config.scheduler).__name__ for config in held) or "none"
            raise ValueError(f"TradeoffCurve needs the module's scheduler to be a MultiplicativeCyclicLR, got {names}.")
        if (held[0].interval, held[0].frequency) != ("step", 1):
            given = f'"interval": {held[0].interval!r}, "frequency": {held[0].frequency}'
            raise ValueError(f'TradeoffCurve needs a scheduler of "interval": "step", "frequency": 1, got {given}.')
        return found[0]

    @property
    def curve(self) -> Curve:
        """The object, once training has started."""
        assert self._curve
        return self._curve

    def is_end(self, updates: int) -> bool:
        at = self.points[-1]["batch"] if self.points else 0
        return updates > at and self.curve.due(updates)

    def record(self, trainer: Trainer, updates: int, metrics: dict[str, float]) -> None:
        log_numbers(trainer, "tradeoff/", self.curve.add(updates, **metrics))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.curve.clock.stop()
        self.curve.clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.curve.clock.stop()
        self.curve.clock.start()  # the next batch is asked for

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self._curve:
            self._curve.clock.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.curve.clock.stop()
        if (now := trainer.global_step) < self._steps and trainer.is_global_zero:
            text = f"the training was stopped after {now} of {self._steps} updates; later points do not come"
            warnings.warn(f"TradeoffCurve: {text}.", stacklevel=2)
