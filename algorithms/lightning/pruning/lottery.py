"""LotteryTicket in a training by Lightning's Trainer.

ticket = LotteryTicket(levels=5, fraction=0.2, rewind_to="2ep")
Trainer(max_epochs=20, callbacks=[ticket])
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch.optim.swa_utils import AveragedModel

from ...progress import Moment, Progress
from ...pruning.lottery import LevelSchedule, Lottery, Rewind
from ...pruning.masks import Masks, Scope
from ..counted import log_numbers, refuse_manual, refuse_stoppers
from ..evaluated import Evaluated
from ..host import callbacks_of, common_seed, first_limit, progress_of
from .sparsity import Pruning, average_of, averaging

_BY_EPOCH = (callbacks.GradientAccumulationScheduler, callbacks.StochasticWeightAveraging, callbacks.BaseFinetuning)


class LotteryTicket(Pruning, Evaluated):
    """Train to the end, prune the weights of least magnitude, rewind to step k, train to the end again, and so on.

    The Trainer's `max_steps` or `max_epochs` is the length T of one training: level 0 trains the dense network from 0
    to T, each further level from k to T. While it fits, the Trainer's limit becomes `T + levels (T - k)`. Schedulers go
    on from k to T in every level as they did in the first one.

    A validation has to fall due at the end of each level, before the next pruning: otherwise ValueError is raised at
    the start, which says what would fit; without validation data there is none. `results` then has one dict per level:
    `level`, `density`, the `batch` (update) at which it ended, the masks' `digest`, and every metric that the
    validation logs; it is logged as `lottery/...`. `masks_of` has the level's masks. All of this, and step k, is in the
    checkpoint.

    Each level begins with new optimizer's state, what it counts in its groups included, and reseeds the global
    generators by the seed of `seed_everything` and the level. The data go on in their own order. WeightAveraging begins
    anew, from the weights of k. Whatever ends the training, such as EarlyStopping, or follows its epochs, is refused.

    Args:
        levels: how many times to prune.
        fraction: what to prune each time, in (0, 1), of what remains; or of all, if `schedule` is `arithmetic`.
        schedule: `geometric` or `arithmetic`. One-shot pruning is `levels=1` with a large fraction.
        rewind_to: k, in ep or ba (updates), before T.
        rewind: `weights` puts weights and buffers, saved ones or not, back to those of k; `learning_rate` keeps the
            trained ones; `finetune` keeps them, and trains them with a constant learning rate.
        finetune_multiplier: of the optimizer's learning rate, for `finetune`; Renda et al. have 0.001 of 0.1.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        save_folder: where to write each level's masks, as `level-1.safetensors` and so on (see `load_masks`), and step
            k, as `rewind.safetensors`.
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    ends = "level"

    def __init__(
        self,
        levels: int,
        fraction: float = 0.2,
        schedule: LevelSchedule = "geometric",
        rewind_to: str = "0ba",
        rewind: Rewind = "weights",
        finetune_multiplier: float = 0.01,
        scope: Scope = "global",
        save_folder: str | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        self.lottery = Lottery(
            None, (), None, levels, fraction, schedule,
            rewind=rewind, finetune_multiplier=finetune_multiplier, scope=scope, save_folder=save_folder,
            include=include, exclude=exclude, classifier=classifier, name=type(self).__name__,
        )  # fmt: skip
        super().__init__(self.lottery)
        self.levels, self.densities, self.rewind = levels, self.lottery.densities, rewind
        self.rewind_to = self.counted_moment("rewind_to", rewind_to, ("ep", "ba"))
        self._limits: tuple[int, int | None] | None = None  # max_steps and max_epochs, as they were given

    @property
    def level(self) -> int:
        return self.lottery.level

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.lottery.results

    def masks_of(self, level: int) -> Masks:
        """The masks with which that level, which has begun, was trained; on the CPU. Level 0 has none."""
        return self.lottery.masks_of(level)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.lottery.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lottery.seed = state_dict["seed"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_stoppers(self, trainer)
        refuse_manual(self, pl_module)
        for callback in callbacks_of(trainer):
            late = any(getattr(callback, f"update_starting_at_{unit}", None) for unit in ("step", "epoch"))
            if late or isinstance(callback, _BY_EPOCH) or getattr(callback, "bound_to_the_length", False):
                text = "it follows how much of all levels is over, not of each"
                raise ValueError(f"LotteryTicket: leave this {type(callback).__name__} out: {text}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lifts the limits, so that a checkpoint of any level can be gone on from.

        The module has made its schedulers by now, for the length of one training.
        """
        loop = trainer.fit_loop
        self._limits = loop.max_steps, loop.max_epochs
        if first_limit(*self._limits, None) is None:
            raise ValueError("LotteryTicket: the Trainer needs max_steps or max_epochs, the length of one training.")
        loop.max_epochs = -1
        if loop.max_steps != -1:
            loop.epoch_loop.max_steps = sys.maxsize

    def measure(self, trainer: Trainer) -> None:
        """The plan in updates; the training becomes as long as all levels are."""
        assert self._limits is not None
        per_epoch = progress_of(trainer).batches_per_epoch
        length = first_limit(*self._limits, per_epoch)
        progress = Progress(batches_per_epoch=per_epoch, length=length)
        T, k = (self._updates(progress, time) for time in (cast(Moment, length), self.rewind_to))
        self.pruner.check("rewind_to", k < T, f"before the end of one training, {length}", str(self.rewind_to))
        self.lottery.steps, self.lottery.rewind_to = T, k
        self._check_schedulers(trainer, per_epoch)
        total, loop = self.lottery.total, trainer.fit_loop
        if loop.max_steps != -1:
            loop.epoch_loop.max_steps = total
        elif per_epoch is None or total % per_epoch:
            hint = f"give it in ep, or Trainer(max_steps={T})"
            raise ValueError(f"LotteryTicket: rewind_to={self.rewind_to} lies within an epoch; {hint}.")
        else:
            loop.max_epochs = total // per_epoch
        if trainer.enable_validation:
            self.check_validations(trainer, (T + level * (T - k) for level in range(self.levels + 1)))

    def _updates(self, progress: Progress, time: Moment) -> int:
        if (updates := progress.in_batches(time)) is None:
            raise ValueError(f"LotteryTicket: the length of an epoch is not known, but {time} is given; use ba.")
        return int(updates)

    def _check_schedulers(self, trainer: Trainer, per_epoch: int | None) -> None:
        """What changes with each epoch, or with each so many, can be set back to such a moment only."""
        for config in trainer.lr_scheduler_configs:
            if config.frequency != 1:
                raise ValueError(f'LotteryTicket needs schedulers of "frequency": 1, got {config.frequency}.')
            inside = any(updates % (per_epoch or 1) for updates in (self.lottery.rewind_to, self.lottery.steps))
            if config.interval == "epoch" and inside:
                hint = 'give them in whole epochs, or schedulers of "interval": "step"'
                raise ValueError(f"LotteryTicket: rewind_to or the length lies within an epoch; {hint}.")

    def is_due_before(self, trainer: Trainer) -> bool:
        return not self.lottery.loaded and trainer.global_step > self.lottery.rewind_to

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.lottery.loaded and not trainer.global_step:
            self.lottery.seed = common_seed(trainer, None)
        self.lottery.follow([config.scheduler for config in trainer.lr_scheduler_configs])
        self.lottery.check_place(trainer.global_step, "max_steps or max_epochs")
        self.lottery.updates = trainer.global_step

    def before_update(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().before_update(trainer, pl_module, batch)
        if not self.lottery.start_update(trainer.global_step):
            return
        with torch.no_grad():
            for callback in averaging(trainer):
                if isinstance(average := average_of(callback), AveragedModel):
                    average.module.load_state_dict(pl_module.state_dict())
                    average.n_averaged.zero_()
        self.pruned(trainer)

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.lottery.updates = trainer.global_step
        if self.lottery.level_ended and not trainer.enable_validation:
            self.record(trainer, trainer.global_step, {})

    def is_end(self, updates: int) -> bool:
        return bool(self.lottery.steps) and self.lottery.level_ended and not self.lottery.recorded

    def record(self, trainer: Trainer, updates: int, metrics: dict[str, float]) -> None:
        log_numbers(trainer, "lottery/", self.lottery.record(**metrics))

    def lost(self, trainer: Trainer, updates: int) -> None:
        self.record(trainer, updates, {})

    def finish(self, trainer: Trainer) -> None:
        if (now := trainer.global_step) < self.lottery.total and trainer.is_global_zero:
            text = f"the training was stopped in level {self.level} of {self.levels}, after {now}ba of"
            text = f"{text} {self.lottery.total}ba; results has {len(self.results)} levels"
            warnings.warn(f"LotteryTicket: {text}.", stacklevel=2)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._put_limits_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._put_limits_back(trainer)

    def _put_limits_back(self, trainer: Trainer) -> None:
        """For another `fit`."""
        if self._limits:
            trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs = self._limits
        self._limits = None
