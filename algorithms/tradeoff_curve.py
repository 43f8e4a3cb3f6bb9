"""The tradeoff curve: accuracy over training time, for every length of training, from one run with cyclic rates.

Source: "Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates" (arXiv 2206.00832). What is reached
at the end of a cycle stands for what a run of its own of that length would have reached.

    curve = Curve(scheduler)
    for step in curve.timed(range(6400)):
        ...
        scheduler.step()
        if curve.due(step + 1):
            curve.add(step + 1, accuracy=evaluate(model))
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from .cyclic import Cycles, MultiplicativeCyclicLR
from .ranks import gathered
from .shown import Shown

T = TypeVar("T")


class TrainingClock:
    """Seconds of training: from asking for a batch to the end of its update, summed over all of them.

    So neither evaluation nor checkpoints count, nor the replay of batches on resume.
    """

    def __init__(self):
        self.seconds, self._since = 0.0, 0.0
        self._runs = False

    def start(self) -> None:
        self._since, self._runs = time.perf_counter(), True

    def stop(self) -> None:
        """Stops it; once it stands, to stop it again changes nothing."""
        if self._runs:
            self.seconds += time.perf_counter() - self._since
        self._runs = False


class Curve(Shown):
    """What is reached at the end of each cycle, and the seconds of training that it took.

    `points` is a list of dicts of numbers: `cycle`, counted from 0; `batch`, the updates so far; `seconds` of training,
    as `TrainingClock` counts them, those of the slowest rank; and whatever is added.

    Args:
        schedule: the scheduler of the training, or its cycles in updates; None for a host that counts cycles, and
            calls `add_cycle`.
    """

    def __init__(self, schedule: MultiplicativeCyclicLR | Cycles | None = None):
        if not isinstance(schedule, MultiplicativeCyclicLR | Cycles | None):
            name = type(schedule).__name__
            raise TypeError(f"Curve: schedule must be a MultiplicativeCyclicLR, or Cycles, got {name}.")
        self._schedule = schedule
        self.points: list[dict[str, float]] = []
        self.clock = TrainingClock()

    def timed(self, steps: Iterable[T]) -> Iterator[T]:
        """Counts the time of each step, up to where `due` is asked, or else to the end of the loop's body."""
        self.clock.start()
        for step in steps:
            yield step
            self.clock.stop()
            self.clock.start()
        self.clock.stop()

    def due(self, step: int) -> bool:
        """Whether the last of `step` updates has completed a cycle, so that the next one has a higher rate."""
        self.clock.stop()
        cycles = self._cycles
        return cycles.ended(step) > cycles.ended(step - 1)

    def add(self, step: int, **values: Any) -> dict[str, float]:
        """Keeps and returns the point of the cycle that has ended with the last of `step` updates; on every rank.

        `values` are numbers, or tensors and arrays of one.
        """
        return self.add_cycle(self._cycles.ended(step), step, values)

    def add_cycle(self, ended: int, batch: int, values: dict[str, Any]) -> dict[str, float]:
        """Does so where so many cycles have `ended`, whatever counts them."""
        numbers = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        point = {"cycle": ended - 1, "batch": batch, "seconds": max(gathered(self.clock.seconds)), **numbers}
        self.points.append(point)
        return point

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "seconds": self.clock.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self.clock.seconds = [*state.get("points", [])], state.get("seconds", 0.0)

    @property
    def _cycles(self) -> Cycles:
        if self._schedule is None:
            raise ValueError("Curve: without a schedule it does not know when a cycle ends; give it the scheduler.")
        return self._schedule if isinstance(self._schedule, Cycles) else self._schedule.cycles
