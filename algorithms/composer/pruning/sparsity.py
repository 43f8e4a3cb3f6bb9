"""What all pruning has in common during training: masks that hold, and that travel with the checkpoint."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from composer.algorithms import EMA, SWA
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from ...pruning.masks import Masks
from ...pruning.pruner import Pruner
from ...pruning.samples import samples_in
from ...pruning.size import ModelSize, MultiplyAdds, model_size, trace_multiply_adds
from ..bases import Guest
from ..for_recipes import FinishedRun, ForRecipes
from ..host import RequiredOnLoad, composer_model, refuse_twins
from .findings import OF_SIZE, check_numbers


def averages(state: State, event: Event | None = None) -> list[dict[str, Tensor]]:
    """The weights and buffers that Composer's EMA and SWA average, by the names that they have in the model.

    Those of SWA, which are on the CPU, only where there is no `event`, or it is the one at which they are changed.
    """
    kept: list[dict[str, Tensor]] = []
    for algorithm in state.algorithms:
        if isinstance(algorithm, EMA) and (model := algorithm.ema_model):
            kept.append({**model.named_parameters_dict, **model.named_buffers_dict})
        elif isinstance(algorithm, SWA) and algorithm.swa_model and event in (None, algorithm.match_event):
            module: Any = algorithm.swa_model.module
            kept.append(dict(chain(module.named_parameters(), module.named_buffers())))
    if not kept:
        return []
    own = dict(chain(composer_model(state).named_parameters(), composer_model(state).named_buffers()))
    return [{n if n in own else n.removeprefix("module."): tensor for n, tensor in by_name.items()} for by_name in kept]


def plain_forward(model: nn.Module, batch: Any) -> Any:
    """The outputs by the model's class, past what torch.compile may have put in their way as the model's own."""
    return type(model).forward(model, batch)


class Pruning(ForRecipes, Guest):
    """Keeps masks, and what they prune at zero, whoever writes there: weights, gradients, optimizers' state, averages.

    It is zero after every batch, in every evaluation and prediction, and in every checkpoint, which cannot be resumed
    without the algorithm; but not what optimizers such as SOAP keep in bases of their own (see `mask_optimizers`).

    Subclasses say when to prune and what: in `before_update` and `after_update`, by `prune`. `masks` holds the masks by
    the names of the parameters, and is empty before anything is pruned. The checkpoint holds one bit per weight; after
    loading it, ValueError is raised if masks are missing, do not fit the model, or do not fit its weights.
    """

    def __init__(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), classifier: bool = True):
        self.pruner = Pruner(None, (), include, exclude, classifier, name=self._name)
        self._run: State | None = None
        self._unlogged = False
        self._multiply_adds: MultiplyAdds | None = None
        self._traced = False

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def masks(self) -> Masks:
        return self.pruner.masks

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return self.pruner.weights

    def check(self, argument: str, fits: Any, expected: str, given: Any) -> None:
        """Raise ValueError, naming the argument and what was expected of it, unless it `fits`."""
        self.pruner.check(argument, fits, expected, given)

    def remaining(self) -> int:
        """How many of the prunable weights are left."""
        return self.pruner.remaining()

    def share_left(self) -> float:
        """The share of the prunable weights that is not zero, as they are."""
        return self.pruner.share_left()

    def plan(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before, as builtins by argument."""
        return self.pruner.plan()

    def state_dict(self) -> dict[str, Any]:
        # Composer has the weights in its hands already, but not a copy: whoever has written there comes too late.
        if self._run:
            self._hold(self._run)
            self._hold_averages(self._run)
        return {**super().state_dict(), **self.pruner.state_dict(), "plan": self.plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state)

    def match(self, event: Event, state: State) -> bool:
        if event is Event.BEFORE_FORWARD:
            return not self._traced
        if event is Event.BATCH_START:
            return self.acts_before(state)
        return event in _STEPS or (event in _MASKED and bool(self.masks))

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event in _MASKED and self.masks:
            getattr(self, _MASKED[event])(state, event)
        if event in _STEPS:
            getattr(self, _STEPS[event])(state, logger)

    def begin(self, state: State) -> None:
        """When a Trainer is built; it may have had another one before."""

    def measure(self, state: State) -> None:
        """When data and `max_duration` are known, and a checkpoint has been loaded."""

    def prepare(self, state: State) -> None:
        """Then, when `weights` and `masks` are known too."""

    def start(self, state: State) -> None:
        """When training starts."""

    def acts_before(self, state: State) -> bool:
        """Whether `before_update` may have anything to do: to be called is a share of a small network's step."""
        return True

    def before_update(self, state: State, logger: Logger) -> None:
        """Before each update; the batch is known."""

    def after_update(self, state: State, logger: Logger) -> None:
        """After each update, before evaluation and checkpoint."""

    def finish(self, state: State, logger: Logger) -> None:
        """When training ends, as planned or before."""

    def is_due_before(self, state: State) -> bool:
        """Whether a run without any masks cannot be gone on with."""
        return False

    def prune(self, masks: Masks, state: State, logger: Logger) -> None:
        """From here on, `masks` hold."""
        self.pruner.prune(masks)
        self.pruned(state, logger)

    def pruned(self, state: State, logger: Logger) -> None:
        """What is to be done when the pruner has new masks."""
        self._hold_averages(state)
        self._unlogged = True
        logger.log_metrics({"pruning/density": self.share_left()})

    def _hold(self, state: State, event: Event | None = None) -> None:
        self.pruner.hold_weights()

    def _hold_averages(self, state: State, event: Event | None = None) -> None:
        for tensors in averages(state, event):
            self.pruner.hold_in(tensors)

    def _hold_all(self, state: State, event: Event | None = None) -> None:
        self.pruner.hold()
        self._hold_averages(state, event)

    def _hold_gradients(self, state: State, event: Event | None = None) -> None:
        self.pruner.hold_gradients()

    @property
    def traced(self) -> bool:
        """Whether multiply-adds have been counted, as they are once a batch has been trained."""
        return self._traced

    def trace(self, state: State, batch: Any) -> None:
        """Counts the multiply-adds of a batch, as the model sees it; the figures are per sample.

        What cannot be counted is no reason to stop: a warning says so, and the figures are left out.
        """
        self._traced = True
        try:
            found = trace_multiply_adds(composer_model(state), partial(plain_forward, batch=batch))
            self._multiply_adds = found._replace(samples=None)
            self._multiply_adds = found._replace(samples=samples_in(batch))
        except Exception as error:
            left_out = "a sample" if self._multiply_adds else "a batch, and the theoretical speedup,"
            text = f"{self._name}: the multiply-adds of {left_out} are not known, and left out: {error}"
            warnings.warn(text, stacklevel=2)

    def size(self, state: State) -> ModelSize:
        """The size of the run's model, tensor by tensor and in all."""
        return model_size(composer_model(state), self._multiply_adds, self.masks)

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """`size`: that of the model, with the `density` of what can be pruned.

        Where nothing has been trained since the start, there has been no batch yet to count multiply-adds with.
        """
        if not self.traced:
            self.trace(run.state, run.batch())
        return {"size": self.size(run.state).as_dict() | {"density": self.share_left() if self.masks else 1.0}}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_numbers(found.get("size"), OF_SIZE)
        ModelSize.from_dict(found["size"])

    @classmethod
    def tables(cls, found: Mapping[str, Any]) -> list[str]:
        return [ModelSize.from_dict(found["size"]).table()]

    def _begin(self, state: State, logger: Logger) -> None:
        refuse_twins(self, state)
        if other := [type(a).__name__ for a in state.algorithms if isinstance(a, Pruning) and a is not self]:
            raise ValueError(f"{self._name} cannot share the masks with {', '.join(other)}; prune in one way.")
        if state.fsdp_config is not None or state.tp_config is not None:
            raise ValueError(f"{self._name} does not work on weights that FSDP or tensor parallelism split; use DDP.")
        self.pruner.clear()
        self._run, self._traced, self._unlogged, self._multiply_adds = state, False, False, None
        self.begin(state)
        # On the way out, algorithms run backwards: the last one masks gradients before another one clips them. On the
        # way in, it comes after EMA has brought the weights back that are trained.
        state.algorithms.remove(self)
        state.algorithms.append(self)

    def _check(self, state: State, logger: Logger) -> None:
        self.pruner.bind(composer_model(state), state.optimizers)
        self.measure(state)
        self.pruner.verify(self.plan())
        if not self.masks and state.timestamp.batch.value > 0 and self.is_due_before(state):
            raise ValueError(
                f"{self._name}: the checkpoint (or start), of batch {state.timestamp.batch.value}, holds no masks, as "
                "it should; prune at that moment or later, load a checkpoint of a run like this, or its weights alone "
                "(load_weights_only=True)."
            )
        self.prepare(state)
        # Not before: a checkpoint that has none would be told to lack it.
        state.algorithms.append(RequiredOnLoad(type(self).__qualname__))

    def _start(self, state: State, logger: Logger) -> None:
        self.pruner.optimizers = [*state.optimizers]  # which SAM has wrapped by now
        self.start(state)

    def _before(self, state: State, logger: Logger) -> None:
        self.before_update(state, logger)

    def _trace(self, state: State, logger: Logger) -> None:
        self.trace(state, state.batch)

    def _finish(self, state: State, logger: Logger) -> None:
        self.finish(state, logger)

    def _after(self, state: State, logger: Logger) -> None:
        self.after_update(state, logger)
        if self._unlogged:
            now = self.size(state)
            values = {"compression_ratio": now.compression_ratio, "speedup": now.theoretical_speedup}
            logger.log_metrics({f"pruning/{name}": value for name, value in values.items() if math.isfinite(value)})
            self._unlogged = False


_STEPS = {
    Event.INIT: "_begin",
    Event.AFTER_LOAD: "_check",
    Event.FIT_START: "_start",
    Event.BATCH_START: "_before",
    Event.BEFORE_FORWARD: "_trace",
    Event.BATCH_END: "_after",
    Event.FIT_END: "_finish",
}
# Others may have written since the last event: optimizers, algorithms, callbacks, which come after the algorithms.
_MASKED = {
    Event.FIT_START: "_hold_all",
    Event.BEFORE_TRAIN_BATCH: "_hold",
    Event.AFTER_TRAIN_BATCH: "_hold_gradients",
    Event.BATCH_END: "_hold_all",
    Event.EPOCH_END: "_hold_all",
    Event.FIT_END: "_hold_all",
    **dict.fromkeys(
        (
            Event.BATCH_CHECKPOINT,
            Event.EPOCH_CHECKPOINT,
            Event.EVAL_START,
            Event.EVAL_BATCH_START,
            Event.EVAL_BEFORE_FORWARD,
            Event.PREDICT_START,
            Event.PREDICT_BEFORE_FORWARD,
        ),
        "_hold",
    ),
}
