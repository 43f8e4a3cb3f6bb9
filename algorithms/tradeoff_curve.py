"""TradeoffCurve: accuracy over training time, for every length of training, from one run with cyclic learning rates.

Source: "Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates" (arXiv 2206.00832). What is reached
at the end of a cycle stands for what a run of its own of that length would have reached.

    scheduler = MultiplicativeCyclicScheduler(t_warmup="8ep", t_period="8ep", growth=2)
    curve = TradeoffCurve(scheduler)
    Trainer(..., max_duration="512ep", schedulers=scheduler, algorithms=[curve])
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from composer.core import Event, State, Time
from composer.loggers import Logger
from composer.utils import dist

from .bases import EventAlgorithm
from .cyclic import MultiplicativeCyclicScheduler
from .for_recipes import ForRecipes, Milestone, Supply
from .host import TrainingClock, also_evaluate, evaluated, refuse_stoppers

_LOGGED = "tradeoff/"


class TradeoffCurve(ForRecipes, EventAlgorithm):
    """Evaluate at the end of every cycle, before the learning rate rises again, and keep what was reached at what cost.

    Every evaluator of the Trainer runs there, beside the times at which it runs anyway. Each point is logged as
    `tradeoff/...`, and stands in `points` (and in the checkpoint) as a dict of numbers:

    - `cycle`, counted from 0, and the updates and samples that training took: `batch`, `samples`;
    - `seconds` of training, as `TrainingClock` counts them; those of the slowest rank;
    - every metric, such as `eval/MulticlassAccuracy`.

    Args:
        scheduler: the one that the Trainer was given.
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

    def __init__(self, scheduler: MultiplicativeCyclicScheduler):
        if not isinstance(scheduler, MultiplicativeCyclicScheduler):
            name = type(scheduler).__name__
            raise TypeError(f"TradeoffCurve: scheduler must be a MultiplicativeCyclicScheduler, got {name}.")
        self.scheduler = scheduler
        self.points: list[dict[str, float]] = []
        self._clock = TrainingClock()
        self._ended = 0
        self._length: Time | None = None  # of fit(), as planned
        self._cycles_in_all: int | None = None

    def __repr__(self) -> str:
        return "TradeoffCurve(scheduler)"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "points": self.points, "seconds": self._clock.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self._clock.seconds = state.get("points", []), state.get("seconds", 0.0)

    def _begin(self, state: State, logger: Logger) -> None:
        refuse_stoppers(self, state)
        self.points, self._clock = [], TrainingClock()
        # Another Trainer may have had it before; this one asks it for the first learning rate after this event.
        self.scheduler.stretch = None

    def _start(self, state: State, logger: Logger) -> None:
        if not state.evaluators:
            raise ValueError("TradeoffCurve has nothing to evaluate on; give the Trainer an eval_dataloader.")
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
        self._clock.start()

    def _stop_clock(self, state: State, logger: Logger) -> None:
        self._clock.stop()

    def _record(self, state: State, logger: Logger) -> None:
        if (ended := self._cycles(state)) == self._ended:
            return
        self._ended = ended
        slowest = state.device.tensor_to_device(torch.tensor(self._clock.seconds))
        dist.all_reduce(slowest, reduce_operation="MAX")
        point: dict[str, float] = {
            "cycle": ended - 1,
            "batch": state.timestamp.batch.value,
            "samples": state.timestamp.sample.value,
            "seconds": slowest.item(),
        }
        point |= evaluated(state)
        self.points.append(point)
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
