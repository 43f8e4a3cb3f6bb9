"""What all pruning has in common during training: masks that hold, and that travel with the checkpoint."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from composer.algorithms import EMA, SWA
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from ..checkpoints import some
from ..for_recipes import FinishedRun, ForRecipes
from ..host import RequiredOnLoad, composer_model, refuse_twins
from ..validation import check
from .enforcement import apply_masks, bits_of, mask_gradients, mask_optimizers
from .findings import OF_SIZE, check_numbers
from .masks import (
    Masks,
    MostlyDenseWarning,
    collapsed,
    digest,
    left_dense,
    packed,
    prunable_weights,
    size,
    unpacked,
)
from .samples import samples_in
from .size import ModelSize, MultiplyAdds, model_size, trace_multiply_adds


class LayerCollapseWarning(UserWarning):
    """A layer keeps no weight at all."""


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


class Pruning(ForRecipes, Algorithm):
    """Keeps masks, and what they prune at zero, whoever writes there: weights, gradients, optimizers' state, averages.

    It is zero after every batch, in every evaluation and prediction, and in every checkpoint, which cannot be resumed
    without the algorithm; but not what optimizers such as SOAP keep in bases of their own (see `mask_optimizers`).

    Subclasses say when to prune and what: in `before_update` and `after_update`, by `prune`. `masks` holds the masks by
    the names of the parameters, and is empty before anything is pruned. The checkpoint holds one bit per weight; after
    loading it, ValueError is raised if masks are missing, do not fit the model, or do not fit its weights.
    """

    def __init__(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), classifier: bool = True):
        for name, patterns in {"include": include, "exclude": exclude}.items():
            known = not isinstance(patterns, str) and all(isinstance(pattern, str) for pattern in patterns)
            self.check(name, known, "a sequence of names or patterns", patterns)
        self.check("include", include, "one pattern at least; without any there is nothing to prune", include)
        self._chosen: dict[str, Any] = {"include": include, "exclude": exclude, "classifier": classifier}
        self.masks: Masks = {}
        self.weights: dict[str, nn.Parameter] = {}
        self._was: dict[str, Any] = {}  # the plan of the run that is gone on with
        self._bits: Masks = {}  # the masks as `bits_of` makes them
        self._run: State | None = None
        self._unlogged = False
        self._multiply_adds: MultiplyAdds | None = None
        self._traced = False

    @property
    def _name(self) -> str:
        return type(self).__name__

    def check(self, argument: str, fits: Any, expected: str, given: Any) -> None:
        """Raise ValueError, naming the argument and what was expected of it, unless it `fits`."""
        check(self._name, argument, fits, expected, given)

    def check_density(self, density: float | Mapping[str, float]) -> None:
        """That it is a share that prunes something, or shares by patterns that do."""
        if isinstance(density, Mapping):
            shares = density.values()
            fits = density and all(0 < share <= 1 for share in shares) and min(shares) < 1
            self.check("density", fits, "shares in (0, 1], not all of them 1", dict(density))
        else:
            self.check("density", 0 < density < 1, "a share in (0, 1)", density)

    def remaining(self) -> int:
        """How many of the prunable weights are left."""
        if self.masks:
            return sum(map(size, self.masks.values()))
        return sum(weight.numel() for weight in self.weights.values())

    def __repr__(self) -> str:
        return f"{self._name}()"

    def plan(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before, as builtins by argument."""
        return {name: list(v) if isinstance(v, Sequence) else v for name, v in self._chosen.items()}

    def share_left(self) -> float:
        """The share of the prunable weights that is not zero, as they are."""
        nonzero = sum(int(weight.detach().count_nonzero()) for weight in self.weights.values())
        return nonzero / sum(weight.numel() for weight in self.weights.values())

    def state_dict(self) -> dict[str, Any]:
        # Composer has the weights in its hands already, but not a copy: whoever has written there comes too late.
        if self._run:
            self._hold(self._run)
            self._hold_averages(self._run)
        return {**super().state_dict(), "masks": packed(self.masks), "plan": self.plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.masks, self._was = unpacked(state["masks"]), state["plan"]
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self._name}: the checkpoint holds no readable masks; {error}") from error

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BEFORE_FORWARD:
            return not self._traced
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
        collapse = set(collapsed(masks)) - (set(collapsed(self.masks)) if self.masks else set())
        if collapse and dist.get_global_rank() == 0:
            names = some([name for name in masks if name in collapse])
            text = f"{self._name}: layer collapse, nothing is left of {names}; prune less, or layerwise"
            warnings.warn(text, LayerCollapseWarning, stacklevel=2)
        self._keep({name: _like(self.weights[name], mask) for name, mask in masks.items()})
        self._hold_all(state)
        self._unlogged = True
        logger.log_metrics({"pruning/density": self.share_left()})

    def _keep(self, masks: Masks) -> None:
        self.masks, self._bits = masks, {name: bits_of(mask) for name, mask in masks.items()}
        digests = dist.all_gather_object(digest(self.masks))
        if len(set(digests)) > 1:
            raise RuntimeError(f"{self._name}: the ranks have chosen different masks; their weights have gone apart.")

    def _hold(self, state: State, event: Event | None = None) -> None:
        apply_masks(self.weights, self._bits)

    def _hold_averages(self, state: State, event: Event | None = None) -> None:
        for tensors in averages(state, event):
            apply_masks(tensors, {name: bits for name, bits in self._bits.items() if name in tensors})

    def _hold_all(self, state: State, event: Event | None = None) -> None:
        self._hold(state)
        mask_optimizers(state.optimizers, self.weights, self._bits)
        self._hold_averages(state, event)

    def _hold_gradients(self, state: State, event: Event | None = None) -> None:
        mask_gradients(self.weights, self._bits)

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
        self.masks, self._bits, self.weights, self._multiply_adds = {}, {}, {}, None
        self._run, self._traced, self._unlogged, self._was = state, False, False, {}
        self.begin(state)
        # On the way out, algorithms run backwards: the last one masks gradients before another one clips them. On the
        # way in, it comes after EMA has brought the weights back that are trained.
        state.algorithms.remove(self)
        state.algorithms.append(self)

    def _check(self, state: State, logger: Logger) -> None:
        try:
            self.weights = prunable_weights(composer_model(state), **self._chosen)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}.") from error
        by_default = tuple(self._chosen["include"]) == ("*",) and not self._chosen["exclude"]
        dense = left_dense(composer_model(state), self.weights) if by_default else []
        if dense and dist.get_global_rank() == 0:
            text = f"{self._name} reaches less than half of the network's parameters, by default not {some(dense)}"
            warnings.warn(f"{text}; include=[...] reaches others", MostlyDenseWarning, stacklevel=2)
        self.measure(state)
        plan = self.plan()
        if wrong := [f"{name}={was!r}" for name, was in self._was.items() if plan.get(name, was) != was]:
            raise ValueError(f"{self._name}: the checkpoint's run had {some(wrong)}; go on as it was, or start anew.")
        if self.masks:
            self._verify()
        elif state.timestamp.batch.value > 0 and self.is_due_before(state):
            raise ValueError(
                f"{self._name}: the checkpoint (or start), of batch {state.timestamp.batch.value}, holds no masks, as "
                "it should; prune at that moment or later, load a checkpoint of a run like this, or its weights alone "
                "(load_weights_only=True)."
            )
        self.prepare(state)
        # Not before: a checkpoint that has none would be told to lack it.
        state.algorithms.append(RequiredOnLoad(type(self).__qualname__))

    def _verify(self) -> None:
        """That the masks loaded are those of this model and of its weights."""
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        if wrong := [name for name in {**shapes, **self.masks} if shapes.get(name) != _shape(self.masks.get(name))]:
            raise ValueError(
                f"{self._name}: the checkpoint's masks do not fit the weights that are pruned here: {some(wrong)}; "
                "include, exclude and classifier must be what they were."
            )
        self._keep({name: _like(weight, self.masks[name]) for name, weight in self.weights.items()})
        if revived := _revived(self.weights, self.masks):
            hint = f"what they prune is not 0 in {some(revived)}"
            raise ValueError(f"{self._name}: the masks are not of these weights; {hint}.")

    def _start(self, state: State, logger: Logger) -> None:
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


def _revived(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[str]:
    """The layers in which something pruned is not zero."""
    return [name for name, mask in masks.items() if (weights[name].detach()[~mask] != 0).any()]


def _like(weight: Tensor, mask: Tensor) -> Tensor:
    """On the same device, and in the same memory format."""
    return torch.empty_like(weight, dtype=torch.bool).copy_(mask)


def _shape(mask: Tensor | None) -> tuple[int, ...] | None:
    return None if mask is None else tuple(mask.shape)


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
