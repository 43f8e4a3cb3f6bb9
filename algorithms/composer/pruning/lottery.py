"""LotteryTicket in a run of Composer's Trainer.

ticket = LotteryTicket(levels=5, fraction=0.2, rewind_to="2ep")
Trainer(..., max_duration="20ep", schedulers=ticket.wrap(CosineAnnealingScheduler()), algorithms=[ticket])
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from composer.algorithms import EMA
from composer.core import Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.optim import ConstantScheduler
from composer.utils import dist

from ...progress import Moment, moment
from ...pruning.lottery import Lottery, Rewind
from ...pruning.masks import Masks, Scope
from ..for_recipes import FinishedRun, Folder, Milestone
from ..host import (
    also_evaluate,
    bound_to_the_length,
    composer_model,
    evaluated,
    moment_of,
    progress_of,
    refuse_stoppers,
)
from ..run_schedulers import composer_scheduler, replace_scheduler
from .findings import OF_LEVEL, check_numbers, level_table, ratios, with_costs
from .rewound import RewoundScheduler
from .sparsity import Pruning, averages

_LOGGED = "lottery/"


class LotteryTicket(Pruning):
    """Train to the end, prune the weights of least magnitude, rewind to step k, train to the end again, and so on.

    The Trainer's `max_duration`, in ep or ba, is the length T of one training: level 0 trains the dense network from 0
    to T, each further level from k to T, so that the run ends at `T + levels (T - k)`. The learning rate goes on from k
    to T in every level as it did in the first one: the ticket wraps the schedulers that the Trainer is built with, and
    those that are given to `fit` must come through `wrap`.

    Whatever ends the run, such as an EarlyStopper, ends all levels: Composer's are refused, and of a run that is
    stopped otherwise a warning tells; `results` has the levels that have come to their end.

    All evaluators run at the end of each level, before the next pruning. `results` then has one dict per level:
    `level`, `density`, the `batch` at which it ended, the masks' `digest`, and every metric, such as
    `eval/MulticlassAccuracy`; it is logged as `lottery/...`. `masks_of` has the level's masks. All of this, and step k,
    is in the checkpoint.

    Each level begins with new optimizers' state, what they count in their groups included, and reseeds the global
    generators by the run's seed and the level, so that it is what a run of its own from k, with that mask and that
    seed, is. The data go on in their own order. EMA begins anew, from the weights of k.

    Args:
        levels: how many times to prune.
        fraction: what to prune each time, in (0, 1), of what remains; or of all, if `schedule` is `arithmetic`.
        schedule: `geometric` or `arithmetic`. One-shot pruning is `levels=1` with a large fraction.
        rewind_to: k, in ep or ba, before T.
        rewind: `weights` puts weights and buffers, saved ones or not, back to those of k; `learning_rate` keeps the
            trained ones; `finetune` keeps them, and trains them with a constant learning rate.
        finetune_multiplier: of the optimizer's learning rate, for `finetune`; Renda et al. have 0.001 of 0.1.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        save_folder: where to write each level's masks, as `level-1.safetensors` and so on (see `load_masks`), and step
            k, as `rewind.safetensors`.
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    supplied: ClassVar = {"save_folder": Folder(name="tickets")}
    may_grow = ("levels",)
    kept_records = (_LOGGED,)

    def __init__(
        self,
        levels: int,
        fraction: float = 0.2,
        schedule: Literal["geometric", "arithmetic"] = "geometric",
        rewind_to: str = "0ba",
        rewind: Rewind = "weights",
        finetune_multiplier: float = 0.01,
        scope: Scope = "global",
        save_folder: str | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        super().__init__(include, exclude, classifier)
        self.pruner = self.lottery = Lottery(
            None, (), None, levels, fraction, schedule,
            rewind=rewind, finetune_multiplier=finetune_multiplier, scope=scope, save_folder=save_folder,
            include=include, exclude=exclude, classifier=classifier, name=self._name,
        )  # fmt: skip
        time = moment(rewind_to)
        self.check("rewind_to", time and time.unit in ("ep", "ba"), "in ep or ba", rewind_to)
        assert time is not None
        self.levels, self.densities, self.rewind_to, self.rewind = levels, self.lottery.densities, time, rewind
        self.scope: Scope = scope
        self.finetune_multiplier, self.save_folder = finetune_multiplier, save_folder
        self.duration: Time | None = None  # of one training, T; None before the Trainer has been built
        self._schedulers: list[RewoundScheduler] = []
        self._steps: list[int] | None = None  # of the schedulers, before the last update

    @property
    def level(self) -> int:
        return self.lottery.level

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.lottery.results

    @property
    def snapshot(self) -> dict[str, Any]:
        return self.lottery.snapshot

    def wrap(self, scheduler: Callable[..., float] | None) -> RewoundScheduler:
        """The Composer scheduler, which is asked for the same learning rates from k to T in each level.

        Without one the learning rate is constant.
        """
        scheduler = ConstantScheduler() if scheduler is None else scheduler
        if not callable(scheduler):
            kind = type(scheduler).__name__
            raise TypeError(
                f"LotteryTicket wraps Composer's schedulers, which are functions of the state; got a {kind}."
            )
        self._schedulers.append(RewoundScheduler(scheduler, self._place))
        return self._schedulers[-1]

    def _place(self, updates: int) -> tuple[Time | None, int, float | None]:
        """The length of one training, where in it the run is, and the multiplier in place of the schedule's, if any."""
        tuned = self.rewind == "finetune" and updates >= self.lottery.steps > 0
        return self.duration, self.position(updates), self.finetune_multiplier if tuned else None

    def masks_of(self, level: int) -> Masks:
        """The masks with which that level, which has begun, was trained; on the CPU. Level 0 has none."""
        return self.lottery.masks_of(level)

    def position(self, updates: int) -> int:
        """Where in one training, in batches from 0 to T, the run is after so many updates."""
        return self.lottery.position(updates)

    def match(self, event: Event, state: State) -> bool:
        return event is Event.BATCH_CHECKPOINT or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event is Event.BATCH_CHECKPOINT:
            self._record(state, logger)

    def is_due_before(self, state: State) -> bool:
        return not self.lottery.loaded and state.timestamp.batch.value > self.lottery.rewind_to

    def begin(self, state: State) -> None:
        self.duration = self._steps = None
        for scheduler in self._schedulers:
            scheduler.asked = False

    def measure(self, state: State) -> None:
        """The plan in batches; the run becomes as long as all levels are."""
        duration = state.max_duration
        if duration is None or duration.unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
            given = duration and duration.to_timestring()
            raise ValueError(f"LotteryTicket: the Trainer's max_duration must be given, in ep or ba; it is {given}.")
        self.duration = duration
        refuse_stoppers(self, state)
        T, k = (self._batches(time, state) for time in (moment_of(duration), self.rewind_to))
        self.check("rewind_to", k < T, f"before max_duration={duration}", str(self.rewind_to))
        self.lottery.steps, self.lottery.rewind_to = T, k
        for algorithm in state.algorithms:
            name = type(algorithm).__name__
            late = isinstance(algorithm, EMA) and str(algorithm.ema_start) not in ("0.0dur", "0ep", "0ba")
            if late or bound_to_the_length(algorithm):
                raise ValueError(
                    f"LotteryTicket: leave this {name} out: it follows how much of all levels is over, not of each."
                )
        self._wrap_schedulers(state)
        state.max_duration = Time(self.lottery.total, TimeUnit.BATCH)

    def _wrap_schedulers(self, state: State) -> None:
        """Those that have not come through `wrap`; the first update's rate is the same without it."""
        if self.rewind == "finetune" and not state.schedulers:
            hint = "give the Trainer one, such as ConstantScheduler()"
            raise ValueError(f"LotteryTicket: rewind='finetune' sets the rates of the run's scheduler; {hint}.")
        if sum(scheduler.asked for scheduler in self._schedulers) == len(state.schedulers):
            return
        for compiled in state.schedulers:
            scheduler: Any = composer_scheduler(compiled) or compiled
            if not isinstance(scheduler, RewoundScheduler):
                wrapped = self.wrap(scheduler)
                replace_scheduler(compiled, wrapped)
                wrapped.asked = True

    def _batches(self, time: Moment, state: State) -> int:
        if (batches := progress_of(state).in_batches(time)) is None:
            hint = "use ba, or give train_dataloader to the Trainer if it has one"
            raise ValueError(f"LotteryTicket: the length of an epoch is not known, but {time} is given; {hint}.")
        return int(batches)

    def prepare(self, state: State) -> None:
        self.lottery.check_place(state.timestamp.batch.value, "max_duration")

    def start(self, state: State) -> None:
        if str(state.max_duration) != f"{self.lottery.total}ba":
            hint = "the length of one training, and a plain fit()"
            raise ValueError(f"LotteryTicket needs Trainer(max_duration=...), {hint}.")
        if len(state.schedulers) != sum(scheduler.asked for scheduler in self._schedulers):
            hint = "give them to the Trainer when it is built, or ticket.wrap(...) to fit"
            raise ValueError(
                f"LotteryTicket has to wrap the Trainer's scheduler, and all if there are several: {hint}."
            )
        self.prepare(state)
        also_evaluate(state, self, self._is_due, self._is_measured)

    def _is_due(self, state: State) -> bool:
        return self.lottery.ended(state.timestamp.batch.value) is not None and not self._is_measured(state)

    def _is_measured(self, state: State) -> bool:
        return bool(self.results) and self.results[-1]["batch"] == state.timestamp.batch.value

    def before_update(self, state: State, logger: Logger) -> None:
        self._check_steps(state)
        self.lottery.seed = state.seed - dist.get_global_rank()
        if not self.lottery.before_update(state.timestamp.batch.value):
            return
        model = composer_model(state)
        own = dict(chain(model.named_parameters(), model.named_buffers()))
        with torch.no_grad():
            for average in averages(state):
                for name, tensor in average.items():
                    tensor.copy_(own[name])
        self.pruned(state, logger)

    def after_update(self, state: State, logger: Logger) -> None:
        self.lottery.updates = state.timestamp.batch.value

    def _check_steps(self, state: State) -> None:
        """Learning rates that change with each epoch can be set back to the beginning of one only."""
        steps = [scheduler.last_epoch for scheduler in state.schedulers]
        by_epoch, self._steps = bool(steps) and steps == self._steps, steps
        if by_epoch and any(
            batches % int(state.dataloader_len or 1) for batches in (self.lottery.rewind_to, self.lottery.steps)
        ):
            hint = "give them in whole epochs, or step_schedulers_every_batch=True"
            raise ValueError(f"LotteryTicket: rewind_to or max_duration lies within an epoch; {hint}.")

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """Also `levels`: the `results`, each with what this level alone had cost, and the ratios of its masks."""
        size = super().found(run)
        sizes, levels = self.size(run.state), with_costs(self.results, run.records, run.begun)
        return {**size, "levels": [level | ratios(sizes, self.masks_of(level["level"])) for level in levels]}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        super().check_found(found)
        if not isinstance(levels := found.get("levels"), list):
            raise ValueError(f"levels is {levels!r}; expected a list")
        for level in levels:
            check_numbers(level, OF_LEVEL)

    @classmethod
    def tables(cls, found: Mapping[str, Any]) -> list[str]:
        return [*super().tables(found), *([level_table(found["levels"])] if found["levels"] else [])]

    def milestone(self, logged: Mapping[str, Any]) -> Milestone | None:
        if f"{_LOGGED}batch" not in logged:
            return None
        level, left = (logged[f"{_LOGGED}{name}"] for name in ("level", "density"))
        values = {name.removeprefix(_LOGGED): value for name, value in logged.items() if name.startswith(_LOGGED)}
        metrics = {name: value for name, value in values.items() if "/" in name}
        return Milestone(place=f"level {level} of {self.levels}, {100 * left:.3g} %", values=metrics)

    def finish(self, state: State, logger: Logger) -> None:
        if (now := state.timestamp.batch.value) < self.lottery.total and dist.get_global_rank() == 0:
            text = (
                f"the run was stopped in level {self.level} of {self.levels}, after {now}ba of {self.lottery.total}ba"
            )
            warnings.warn(f"LotteryTicket: {text}; results has {len(self.results)} levels.", stacklevel=2)

    def _record(self, state: State, logger: Logger) -> None:
        """At the checkpoint of a batch, when its evaluation is over."""
        if self._is_due(state):
            metrics = evaluated(state)
            result = self.lottery.record(**metrics)
            logger.log_metrics({f"{_LOGGED}{name}": value for name, value in result.items() if name != "digest"})
