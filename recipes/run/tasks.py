"""What a model of several tasks needs of its run."""

from composer.core import Algorithm, Event, State
from composer.loggers import Logger


class OneTaskAtATime(Algorithm):
    """Prepares a run whose batches are each of one task, and takes itself out of it before checkpoints are loaded.

    DDP is told that a step leaves other tasks' heads alone. An evaluation is of one task, whose label tells which, so
    that its metrics need not.
    """

    @property
    def find_unused_parameters(self) -> bool:
        return True

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.BEFORE_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if state.fsdp_config is not None:
            raise ValueError("several tasks cannot share an encoder whose weights FSDP splits; use DDP")
        if event is Event.BEFORE_LOAD:
            state.algorithms.remove(self)
            for label, metrics in state.eval_metrics.items():
                state.eval_metrics[label] = {name.partition("/")[2]: metric for name, metric in metrics.items()}
