"""What is shown while runs train: lines of one run, and how far a study of many is and how long it still takes."""

from __future__ import annotations

import sys
import time
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from tqdm.auto import tqdm

from accelerando.algorithms.composer.for_recipes import ForRecipes
from accelerando.algorithms.composer.host import progress_of

from .algorithms import for_recipes
from .history import TRAIN_LOSS, History, final_metrics
from .results import label


class Progress(LoggerDestination):
    """A bar on a terminal; a line for each milestone of which an algorithm tells, and for what is told here.

    For `train(..., watch=progress)`.

    Args:
        total: the length of all runs together, in whatever unit that of each is given.
        metric: of those that a milestone has, which one to tell; by default all.
    """

    def __init__(self, total: float, metric: str = ""):
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self._metric = metric.partition("/")[2]
        self._place, self._length, self._before = "", 0.0, 0.0
        self.told = False  # whether an algorithm has told of the end of the run
        self._algorithms: list[ForRecipes] = []
        self._since = time.monotonic()
        shown = dist.get_global_rank() == 0 and sys.stderr.isatty()
        form = "{percentage:3.0f} % |{bar}| {elapsed}{postfix}"
        self._bar = tqdm(total=total, bar_format=form, disable=not shown, dynamic_ncols=True)

    def skip(self, length: float) -> None:
        """A run of that length was done before."""
        self.done += length
        self.skipped += length

    def add(self, length: float) -> None:
        """A run of that length has ended, which another process trained."""
        self.done += length

    def start(self, place: str, length: float) -> None:
        """The next run, and what to call it."""
        self._place, self._length, self._before, self.told = place, length, self.done, False

    def finish(self) -> None:
        """No run is left."""
        self._bar.close()

    @property
    def left(self) -> str:
        """The time left, judged by what was done since the start."""
        trained = self.done - self.skipped
        spent = time.monotonic() - self._since
        return f"{tqdm.format_interval(spent * (self.total - self.done) / trained)} left" if trained else ""

    def fit_start(self, state: State, logger: Logger) -> None:
        self._algorithms = for_recipes(state.algorithms)
        self._count(state)
        self.skipped += self.done - self._before

    def batch_end(self, state: State, logger: Logger) -> None:
        self._count(state)

    def close(self, state: State, logger: Logger) -> None:
        if self.done == self._before:  # trained before, but not reported
            self.skipped += self._length
        self.done, self._algorithms = self._before + self._length, []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        for reached in filter(None, (algorithm.milestone(metrics) for algorithm in self._algorithms)):
            names = [self._metric] if self._metric in reached.values else reached.values
            values = ", ".join(f"{label(f'metrics/{name}')} {reached.values[name]:.4f}" for name in names)
            after = "" if reached.seconds is None else f" after {reached.seconds:.1f} s of training"
            self.tell(f"{self._place}, {reached.place}: {values}{after}")
            self.told = self.done >= self._before + self._length

    def tell(self, text: str) -> None:
        """One line, and how far the study is."""
        if dist.get_global_rank() != 0:
            return
        if self._bar.disable:
            print(f"{text} ({self.done / self.total:.0%}, {self.left})", file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def _count(self, state: State) -> None:
        self.done = self._before + self._length * min(progress_of(state).elapsed("dur"), 1.0)
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(filter(None, (self.left, self._place))), refresh=False)
            self._bar.update(self.done - self._bar.n)


class Lines(LoggerDestination):
    """One plain line per evaluation (per epoch where there is none), for output that is not a terminal."""

    def __init__(self, history: History):
        self.history = history

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._print(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if not state.evaluators:
            self._print(state)

    def _print(self, state: State) -> None:
        if dist.get_global_rank() != 0:
            return
        values = [f"train loss {loss:.4g}" for loss in self._last_losses()]
        values += [f"{label(name)} {value:.4g}" for name, value in final_metrics(self.history.records).items()]
        place = f"epoch {int(state.timestamp.epoch)}, batch {int(state.timestamp.batch)} of {state.max_duration}"
        print(f"{place}, {self.history.seconds:.1f} s: {', '.join(values)}", file=sys.stderr, flush=True)

    def _last_losses(self) -> list[float]:
        return [record[TRAIN_LOSS] for record in self.history.records[-2:] if TRAIN_LOSS in record][-1:]
