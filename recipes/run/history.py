"""The `History` that a run records: every number that is logged, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination

from accelerando.algorithms.tradeoff_curve import TrainingClock

Record = dict[str, float]  # in a file, what is not finite is null
TRAIN_LOSS = "loss/train/total"
TRAIN_PREFIX = "metrics/train/"
EVAL_PREFIX = "metrics/eval/"
VALIDATION = "eval/validation"  # the label of what is evaluated on `validation_data`
COUNTS = ("batch", "samples", "seconds")
MOST_RECORDS = 10_000


class History(LoggerDestination):
    """Every number that is logged, and what reaching those weights had cost; goes into the checkpoint.

    There is one record per batch: the state of the weights after `batch` updates, which saw `samples` samples and took
    `seconds` of training (see `TrainingClock`), and whatever was measured on these weights.

    Of a long run only every second, fourth, ... record stays, `MOST_RECORDS` at most; besides these, all that hold an
    evaluation, or a number whose name begins with one of `kept`, and the last two: the newest loss stands in the last
    but one, with the weights that had it.
    """

    def __init__(self, kept: Iterable[str] = ()):
        self._kept = (EVAL_PREFIX, *kept)
        self.records: list[Record] = []
        self._clock = TrainingClock()
        self._state: State | None = None

    @property
    def seconds(self) -> float:
        """Those of training so far."""
        return self._clock.seconds

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._clock.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._clock.stop()
        # A callback that logged at this event has begun the record with the time of the previous one.
        self._record(state)["seconds"] = self.seconds

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self._state is None:
            return
        record = self._record(self._state)
        for name, value in metrics.items():
            if not name.startswith("time/") and getattr(value, "ndim", 0) == 0 and not isinstance(value, str):
                record[name] = float(value)

    def _record(self, state: State) -> Record:
        batch, samples = int(state.timestamp.batch), int(state.timestamp.sample)
        if not self.records or self.records[-1]["batch"] != batch:
            self.records.append({"batch": batch, "samples": samples, "seconds": self.seconds})
            # Between the batches at which the stride may double, all but one are as they should be.
            self._thin(0 if batch % MOST_RECORDS == 0 else -3)
        return self.records[-1]

    def _thin(self, start: int) -> None:
        # By the batch alone, so that a resumed run keeps the same records.
        stride = 1 << (int(self.records[-1]["batch"]) // MOST_RECORDS).bit_length()
        self.records[start:-2] = [
            record
            for record in self.records[start:-2]
            if record["batch"] % stride == 0 or any(name.startswith(self._kept) for name in record)
        ]

    def state_dict(self) -> dict[str, Any]:
        # Thousands of records as one text: torch reads safe pickles object by object, in Python.
        return {"records": json.dumps(self.records), "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        records, self._clock.seconds = state["records"], state["seconds"]
        self.records = json.loads(records) if isinstance(records, str) else records  # a list in older checkpoints
        if self.records:
            self._thin(0)  # which may hold them all


def final_metrics(records: Sequence[Record]) -> dict[str, float]:
    """The latest value of every evaluation metric."""
    return {name: value for record in records for name, value in record.items() if name.startswith(EVAL_PREFIX)}
