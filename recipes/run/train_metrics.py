"""When the metrics of the training are measured: at every batch they would be a tenth of a small network's step."""

from numbers import Real
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor

from .history import TRAIN_PREFIX


class TrainMetricsInterval(Callback):
    """Has them measured and logged at every `interval`-th batch, at an epoch's first and last, and at the run's last.

    Of which batch these are the last is known where data have a length, or `max_duration` counts batches. From one
    batch's end to the next one's start the metrics are those of the batch measured last, also after a kill; where
    Composer tells them again, at an epoch's end, it tells these.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self._aside: dict[str, Any] = {}
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        assert self._state
        found = {name: _number(value) for name, value in self._state.train_metric_values.items()}
        return {"values": {name: value for name, value in found.items() if value is not None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._state
        self._state.train_metric_values |= state["values"]

    def fit_start(self, state: State, logger: Logger) -> None:
        for name, metric in (state.train_metrics or {}).items():
            if metric._update_count == 0 and name in state.train_metric_values:
                # What it counted is not kept; as Composer itself does, it is given what came of it.
                metric._computed, metric._update_count = state.train_metric_values[name], 1  # type: ignore[assignment]

    def batch_start(self, state: State, logger: Logger) -> None:
        first = int(state.timestamp.batch_in_epoch) == 0 or not state.train_metric_values
        if not (first or _is_last(state) or int(state.timestamp.batch) % self.interval == 0) and state.train_metrics:
            self._aside, state.train_metrics = state.train_metrics, {}

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._aside:
            state.train_metrics, self._aside = self._aside, {}


def _is_last(state: State) -> bool:
    """Whether the batch is known to be the last one of its epoch, or of the run."""
    now, length, whole = state.timestamp, state.dataloader_len, state.max_duration
    if whole is not None and whole.unit.value == "ba" and int(now.batch) + 1 == int(whole.value):
        return True
    return length is not None and int(now.batch_in_epoch) + 1 == int(length)


def _number(value: Any) -> Tensor | float | None:
    """A metric's value as a checkpoint may hold it; None for several numbers."""
    if isinstance(value, Tensor):
        return value if value.ndim == 0 else None
    return float(value) if isinstance(value, Real) else None  # NumPy's among them


def last_train_metrics(state: State) -> dict[str, Any]:
    """The metrics of the training, under the names by which they are logged, of the batch measured last."""
    return {f"{TRAIN_PREFIX}{name}": value for name, value in state.train_metric_values.items()}
