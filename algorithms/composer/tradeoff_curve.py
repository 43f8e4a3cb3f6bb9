"""TradeoffCurve: points at the ends of cycles, see `..tradeoff_curve`, in a run of Composer's Trainer.

scheduler = MultiplicativeCyclicScheduler(t_warmup="8ep", t_period="8ep", growth=2)
curve = TradeoffCurve()
Trainer(..., max_duration="512ep", schedulers=scheduler, algorithms=[curve])
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from composer.core import Event, State, Time
from composer.loggers import Logger
from composer.utils import dist

from ..tradeoff_curve import Curve
from .bases import EventAlgorithm
from .cyclic import MultiplicativeCyclicScheduler
from .for_recipes import ForRecipes, Milestone, Supply
from .host import also_evaluate, evaluated, refuse_stoppers
from .run_schedulers import composer_scheduler

_LOGGED = "tradeoff/"


class TradeoffCurve(ForRecipes, EventAlgorithm):
    """Evaluate at the end of every cycle, before the learning rate rises again, and keep what was reached at what cost.

    Every evaluator of the Trainer runs there, beside the times at which it runs anyway. Each point is logged as
    `tradeoff/...`, and stands in `points` (and in the checkpoint) as a dict of numbers:

    - `cycle`, counted from 0, and the updates and samples that training took: `batch`, `samples`;
    - `seconds` of training, as `accelerando.algorithms.tradeoff_curve.TrainingClock` counts them, on the slowest rank;
    - every metric, such as `eval/MulticlassAccuracy`.

    Args:
        scheduler: the one that the Trainer was given; by default, `scheduler` is the run's when training starts.
    """

    steps: ClassVar = {
        Event.INIT: "_begin",
        Event.FIT_START: "_start",
        Event.BEFORE_DATALOADER: "_start_clock",
        Event.BATCH_END: "_stop_clock",
        Event.EVAL_AFTER_ALL: "_record",
        Event.FIT_END: "_finish",
    }

    bound_to_the_length = True
    supplied: ClassVar = {"scheduler": Supply.SCHEDULER}
    kept_records = (_LOGGED,)

    def __init__(self, scheduler: MultiplicativeCyclicScheduler | None = None):
        if not isinstance(scheduler, MultiplicativeCyclicScheduler | None):
            name = type(scheduler).__name__
            raise TypeError(f"TradeoffCurve: scheduler must be a MultiplicativeCyclicScheduler, got {name}.")
        self._finds_scheduler, self._scheduler = scheduler is None, scheduler
        self.curve = Curve()
        self._ended = 0
        self._length: Time | None = None  # of fit(), as planned
        self._cycles_in_all: int | None = None

    @property
    def scheduler(self) -> MultiplicativeCyclicScheduler:
        """The one that was given, or the run's."""
        if self._scheduler is None:
            raise ValueError(
                "TradeoffCurve finds its scheduler when training starts; give it one to ask for it before."
            )
        return self._scheduler

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.curve.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve.load_state_dict(state)

    @property
    def points(self) -> list[dict[str, float]]:
        return self.curve.points

    def _begin(self, state: State, logger: Logger) -> None:
        refuse_stoppers(self, state)
        self.curve = Curve()
        # Another Trainer may have had it before; this one asks it for the first learning rate after this event.
        if self._finds_scheduler:
            self._scheduler = None
        else:
            self.scheduler.stretch = None

    def _start(self, state: State, logger: Logger) -> None:
        if not state.evaluators:
            raise ValueError("TradeoffCurve has nothing to evaluate on; give the Trainer an eval_dataloader.")
        if self._finds_scheduler:
            self._scheduler = _cyclic_scheduler(state)
        if self.scheduler.stretch is None or state.max_duration is None:
            raise ValueError("TradeoffCurve needs the Trainer's own scheduler: Trainer(schedulers=curve.scheduler).")
        if state.timestamp.batch.value == 0:
            self.scheduler.check_duration(state.max_duration, state.dataloader_len)
        self._length = state.max_duration
        self._cycles_in_all = self.scheduler.cycles_within(state.max_duration, state.dataloader_len)
        self._ended = self._cycles(state)
        also_evaluate(state, self, self._is_due, self._is_measured)

    def _cycles(self, state: State) -> int:
        # A run that is stopped has its max_duration set to where it is, which ends no cycle.
        return self.scheduler.cycles_ended(state, self._length)

    def _is_due(self, state: State) -> bool:
        return self._cycles(state) > self._ended

    def _is_measured(self, state: State) -> bool:
        """At the end of the epoch or of the run, with the same weights."""
        return bool(self.points) and self.points[-1]["batch"] == state.timestamp.batch.value

    def _start_clock(self, state: State, logger: Logger) -> None:
        self.curve.clock.start()

    def _stop_clock(self, state: State, logger: Logger) -> None:
        self.curve.clock.stop()

    def _record(self, state: State, logger: Logger) -> None:
        if (ended := self._cycles(state)) == self._ended:
            return
        self._ended = ended
        samples = state.timestamp.sample.value
        point = self.curve.add_cycle(ended, state.timestamp.batch.value, {"samples": samples, **evaluated(state)})
        logger.log_metrics({f"{_LOGGED}{name}": value for name, value in point.items()})

    def milestone(self, logged: Mapping[str, Any]) -> Milestone | None:
        if f"{_LOGGED}cycle" not in logged or self._cycles_in_all == 1:
            return None
        values = {name.removeprefix(_LOGGED): value for name, value in logged.items() if name.startswith(_LOGGED)}
        place = f"cycle {values['cycle'] + 1}" + (f" of {self._cycles_in_all}" if self._cycles_in_all else "")
        metrics = {name: value for name, value in values.items() if "/" in name}
        return Milestone(place=place, values=metrics, seconds=values["seconds"])

    def _finish(self, state: State, logger: Logger) -> None:
        if self._length is not None and state.timestamp < self._length and dist.get_global_rank() == 0:
            text = f"the run was stopped after {state.timestamp.batch} of {self._length}; later points do not come"
            warnings.warn(f"TradeoffCurve: {text}.", stacklevel=2)


def _cyclic_scheduler(state: State) -> MultiplicativeCyclicScheduler:
    """The run's one; raises ValueError where there is none, or there are several."""
    schedulers = [composer_scheduler(compiled) or compiled for compiled in state.schedulers]
    cyclic = [scheduler for scheduler in schedulers if isinstance(scheduler, MultiplicativeCyclicScheduler)]
    if len(cyclic) != 1:
        there = ", ".join(type(scheduler).__name__ for scheduler in schedulers) or "none"
        raise ValueError(
            f"TradeoffCurve: the Trainer's schedulers must hold one MultiplicativeCyclicScheduler, and hold {there}; "
            "give the Trainer one, or, where another one calls it, also TradeoffCurve(scheduler)."
        )
    return cyclic[0]
