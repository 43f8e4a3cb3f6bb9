"""LotteryTicket: iterative magnitude pruning with rewinding, inside one Composer run.

Sources: Frankle and Carbin, "The Lottery Ticket Hypothesis" (arXiv 1803.03635); rewinding to step k: Frankle et al.,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis" (arXiv 1912.05671); rewinding the learning rate and
fine-tuning: Renda et al. (arXiv 2003.02389); the arithmetic schedule: Chen et al., for BERT (arXiv 2007.12223).

    ticket = LotteryTicket(levels=5, fraction=0.2, rewind_to="2ep")
    Trainer(..., max_duration="20ep", schedulers=ticket.wrap(CosineAnnealingScheduler()), algorithms=[ticket])
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from composer.algorithms import EMA
from composer.core import Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.optim import ConstantScheduler
from composer.utils import dist, reproducibility
from torch import Tensor

from ..checkpoints import write_safetensors
from ..for_recipes import FinishedRun, Folder, Milestone
from ..host import also_evaluate, bound_to_the_length, composer_model, evaluated, in_batches, moment, refuse_stoppers
from .criteria import magnitude
from .enforcement import forget_momenta
from .files import save_masks
from .findings import OF_LEVEL, check_numbers, level_table, ratios, with_costs
from .masks import Masks, Scope, density, digest, keep_highest, kept_counts, packed, size, unpacked
from .rewound import RewoundScheduler, options_of, put_back, put_options_back, snapshot_of
from .sparsity import Pruning, averages

Rewind = Literal["weights", "learning_rate", "finetune"]
_LOGGED = "lottery/"


def level_densities(levels: int, fraction: float, schedule: Literal["geometric", "arithmetic"]) -> list[float]:
    """The share of weights kept in levels 0, 1, ..., `levels`.

    Each prunes `fraction` of what remains, hence `(1 - fraction)^i`; or, `arithmetic`, of all: `1 - i fraction`.
    """
    if schedule == "arithmetic":
        return [round(1 - level * fraction, 12) for level in range(levels + 1)]
    return [(1 - fraction) ** level for level in range(levels + 1)]


class LotteryTicket(Pruning):
    """Train to the end, prune the weights of least magnitude, rewind to step k, train to the end again, and so on.

    The Trainer's `max_duration`, in ep or ba, is the length T of one training: level 0 trains the dense network from 0
    to T, each further level from k to T, so that the run ends at `T + levels (T - k)`. The learning rate goes on from k
    to T in every level as it did in the first one: give the Trainer its scheduler through `wrap`.

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
        self.check("levels", type(levels) is int and levels >= 1, "a whole number, at least 1", levels)
        self.check("fraction", 0 < fraction < 1, "in (0, 1)", fraction)
        self.check("schedule", schedule in ("geometric", "arithmetic"), "'geometric' or 'arithmetic'", schedule)
        self.densities = level_densities(levels, fraction, schedule)
        self.check("fraction", self.densities[-1] > 0, f"below 1/{levels}, so that something remains", fraction)
        time = moment(rewind_to)
        self.check("rewind_to", time and time.unit in (TimeUnit.EPOCH, TimeUnit.BATCH), "in ep or ba", rewind_to)
        modes = ("weights", "learning_rate", "finetune")
        self.check("rewind", rewind in modes, f"one of {modes}", rewind)
        self.check(
            "finetune_multiplier", 0 < finetune_multiplier < float("inf"), "above 0, finite", finetune_multiplier
        )
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        self.check("save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        assert time is not None
        self.levels, self.rewind_to, self.rewind = levels, time, rewind
        self.scope: Scope = scope
        self.finetune_multiplier, self.save_folder = finetune_multiplier, save_folder
        self._clear()

    def _clear(self) -> None:
        self.level = 0
        self.results: list[dict[str, Any]] = []
        self.snapshot: dict[str, Any] = {}
        self.duration: Time | None = None  # of one training, T; None before the Trainer has been built
        self._k = self._T = 0  # in batches
        self._history = [packed({})]  # the masks of each level
        self._options: list[dict[str, Any]] = []  # of the optimizers, before the first update
        self._steps: list[int] | None = None  # of the schedulers, before the last update
        self._schedulers: list[RewoundScheduler] = getattr(self, "_schedulers", [])

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
        constant = self.finetune_multiplier if self.rewind == "finetune" and updates >= self._T > 0 else None
        return self.duration, self.position(updates), constant

    def masks_of(self, level: int) -> Masks:
        """The masks with which that level, which has begun, was trained; on the CPU. Level 0 has none."""
        return unpacked(self._history[level])

    def position(self, updates: int) -> int:
        """Where in one training, in batches from 0 to T, the run is after so many updates."""
        return updates if updates < self._T or not self._T else self._k + (updates - self._T) % (self._T - self._k)

    @property
    def _total(self) -> int:
        return self._T + self.levels * (self._T - self._k)

    def _ended(self, updates: int) -> int | None:
        """The level that has ended with so many updates, if one has."""
        level, rest = divmod(updates - self._T, self._T - self._k)
        return level if level >= 0 and rest == 0 else None

    def state_dict(self) -> dict[str, Any]:
        own = {"level": self.level, "results": self.results, "snapshot": self.snapshot, "history": self._history}
        return {**super().state_dict(), **own, "options": self._options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        try:
            self.level, self.results, self.snapshot = state["level"], state["results"], state["snapshot"]
            self._history, self._options = state["history"], state["options"]
        except KeyError as error:
            raise ValueError(f"LotteryTicket: the checkpoint is of another algorithm; it lacks {error}") from error

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BATCH_CHECKPOINT or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event == Event.BATCH_CHECKPOINT:
            self._record(state, logger)

    def plan(self) -> dict[str, Any]:
        densities = {f"density {level}": share for level, share in enumerate(self.densities)}
        how = {"rewind": self.rewind, "finetune_multiplier": self.finetune_multiplier, "scope": self.scope}
        return {**super().plan(), "k": self._k, "T": self._T, **how, **densities}

    def is_due_before(self, state: State) -> bool:
        return not self._was and state.timestamp.batch.value > self._k

    def begin(self, state: State) -> None:
        self._clear()
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
        self._T, self._k = (self._batches(time, state) for time in (duration, self.rewind_to))
        self.check("rewind_to", self._k < self._T, f"before max_duration={duration}", self.rewind_to.to_timestring())
        for algorithm in state.algorithms:
            name = type(algorithm).__name__
            late = isinstance(algorithm, EMA) and str(algorithm.ema_start) not in ("0.0dur", "0ep", "0ba")
            if late or bound_to_the_length(algorithm):
                raise ValueError(
                    f"LotteryTicket: leave this {name} out: it follows how much of all levels is over, not of each."
                )
        state.max_duration = Time(self._total, TimeUnit.BATCH)

    def _batches(self, time: Time, state: State) -> int:
        if (batches := in_batches(time, state)) is None:
            hint = "use ba, or give train_dataloader to the Trainer if it has one"
            raise ValueError(f"LotteryTicket: the length of an epoch is not known, but {time} is given; {hint}.")
        return int(batches)

    def prepare(self, state: State) -> None:
        self._check_place(state)
        model = composer_model(state)
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        # Buffers may get another shape in training, and those that are not saved may come and go.
        there = {name: self.snapshot[name].shape for name in shapes.keys() & self.snapshot.keys()}
        if self.snapshot and (shapes != there or model.state_dict().keys() - self.snapshot.keys()):
            raise ValueError("LotteryTicket: what the checkpoint holds of step k is of another model.")

    def _check_place(self, state: State) -> None:
        now = state.timestamp.batch.value
        if self.level != max(0, 1 + (now - self._T - 1) // (self._T - self._k)) or self.level > self.levels:
            raise ValueError(
                f"LotteryTicket: the run is in level {self.level}, after {now} batches; with these levels, rewind_to "
                "and max_duration, that is not where it would be."
            )

    def start(self, state: State) -> None:
        if str(state.max_duration) != f"{self._total}ba":
            hint = "the length of one training, and a plain fit()"
            raise ValueError(f"LotteryTicket needs Trainer(max_duration=...), {hint}.")
        if len(state.schedulers) != sum(scheduler.asked for scheduler in self._schedulers):
            hint = "Trainer(schedulers=ticket.wrap(...))"
            raise ValueError(
                f"LotteryTicket has to wrap the Trainer's scheduler, and all if there are several: {hint}."
            )
        self._check_place(state)
        also_evaluate(state, self, self._is_due, self._is_measured)

    def _is_due(self, state: State) -> bool:
        return self._ended(state.timestamp.batch.value) is not None and not self._is_measured(state)

    def _is_measured(self, state: State) -> bool:
        return bool(self.results) and self.results[-1]["batch"] == state.timestamp.batch.value

    def before_update(self, state: State, logger: Logger) -> None:
        now = state.timestamp.batch.value
        self._check_steps(state)
        if not self._options:  # at the first update, wherever the run has started
            self._options = options_of(state.optimizers)
            self._tell_of_zeros()
        if now == self._k and self.rewind == "weights" and not self.snapshot:
            self.snapshot = snapshot_of(composer_model(state))
            if self.save_folder and dist.get_global_rank() == 0:
                saved = composer_model(state).state_dict().items()
                tensors = {name: self.snapshot[name] for name, value in saved if isinstance(value, Tensor)}
                write_safetensors(Path(self.save_folder, "rewind.safetensors"), tensors, {"format": "pt"})
        if self._ended(now) == self.level and now < self._total:
            self._next_level(state, logger)

    def _tell_of_zeros(self) -> None:
        """A network that was pruned before does not stay so in level 0. A layer that is all zero is initialized so."""
        counts = [(weight.numel(), size(weight)) for weight in self.weights.values()]
        total, zero = sum(n for n, _ in counts), sum(n - kept for n, kept in counts if kept)
        if zero > total / 100 and dist.get_global_rank() == 0:
            text = f"{zero} of {total} weights are zero at the start; level 0 is dense, and trains them like the others"
            warnings.warn(f"LotteryTicket: {text}.", stacklevel=2)

    def _check_steps(self, state: State) -> None:
        """Learning rates that change with each epoch can be set back to the beginning of one only."""
        steps = [scheduler.last_epoch for scheduler in state.schedulers]
        by_epoch, self._steps = bool(steps) and steps == self._steps, steps
        if by_epoch and any(batches % int(state.dataloader_len or 1) for batches in (self._k, self._T)):
            hint = "give them in whole epochs, or step_schedulers_every_batch=True"
            raise ValueError(f"LotteryTicket: rewind_to or max_duration lies within an epoch; {hint}.")

    def _next_level(self, state: State, logger: Logger) -> None:
        share = self.densities[self.level + 1]
        kept = kept_counts({name: weight.numel() for name, weight in self.weights.items()}, share, self.scope)
        masks = keep_highest(magnitude(self.weights), kept, self.masks)
        self.level += 1
        if self.rewind == "weights":
            put_back(composer_model(state), self.snapshot)
        model = composer_model(state)
        own = dict(chain(model.named_parameters(), model.named_buffers()))
        with torch.no_grad():
            for average in averages(state):
                for name, tensor in average.items():
                    tensor.copy_(own[name])
        forget_momenta(state.optimizers)
        put_options_back(state.optimizers, self._options)
        self.prune(masks, state, logger)
        reproducibility.seed_all((state.seed + 1_000_003 * self.level) % 2**32)
        self._history.append(packed(self.masks))
        if self.save_folder and dist.get_global_rank() == 0:
            about = {"level": str(self.level), "density": repr(density(self.masks))}
            save_masks(Path(self.save_folder, f"level-{self.level}.safetensors"), self.masks, **about)

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
        if (now := state.timestamp.batch.value) < self._total and dist.get_global_rank() == 0:
            text = f"the run was stopped in level {self.level} of {self.levels}, after {now}ba of {self._total}ba"
            warnings.warn(f"LotteryTicket: {text}; results has {len(self.results)} levels.", stacklevel=2)

    def _record(self, state: State, logger: Logger) -> None:
        """At the checkpoint of a batch, when its evaluation is over."""
        now = state.timestamp.batch.value
        if self._ended(now) is None or self._is_measured(state):
            return
        kept = self.share_left() if self.masks else 1.0
        metrics = evaluated(state)
        about: dict[str, Any] = {"level": self.level, "density": kept, "batch": now}
        self.results.append({**about, "digest": digest(self.masks), **metrics})
        logger.log_metrics({f"{_LOGGED}{name}": value for name, value in (about | metrics).items()})
