"""When the metrics of the training are measured: at every batch they would be a tenth of a small network's step."""

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from .history import TRAIN_PREFIX


class TrainMetrics(Callback):
    """Has them measured and logged at every `interval`-th batch, and at the last one of an epoch of known length.

    In between, and where Composer tells them again at an epoch's end, they are those of the batch measured last, also
    after a kill since which none was.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self._measured = False  # since the run began or went on
        self._aside: dict[str, Any] = {}
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        assert self._state
        return {"values": dict(self._state.train_metric_values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._state
        self._state.train_metric_values |= state["values"]

    def fit_start(self, state: State, logger: Logger) -> None:
        if not self._measured:
            self._set_aside(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        now, length = state.timestamp, state.dataloader_len
        last = length is not None and int(now.batch_in_epoch) + 1 == int(length)
        if last or int(now.batch) % self.interval == 0:
            self._bring_back(state)
            self._measured = True
        else:
            self._set_aside(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._measured:
            self._bring_back(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if not self._measured:
            logger.log_metrics(last_train_metrics(state))

    def _set_aside(self, state: State) -> None:
        if state.train_metrics:
            self._aside, state.train_metrics = state.train_metrics, {}

    def _bring_back(self, state: State) -> None:
        if self._aside:
            state.train_metrics, self._aside = self._aside, {}


def last_train_metrics(state: State) -> dict[str, Any]:
    """The metrics of the training, under the names by which they are logged, of the batch measured last."""
    return {f"{TRAIN_PREFIX}{name}": value for name, value in state.train_metric_values.items()}
