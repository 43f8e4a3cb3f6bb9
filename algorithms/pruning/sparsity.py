"""What all pruning has in common during training: masks that hold, and that travel with the checkpoint."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from composer.algorithms import EMA
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from ..checkpoints import some
from ..host import composer_model, refuse_twins
from .enforcement import apply_masks, mask_gradients, mask_optimizers
from .masks import Masks, collapsed, density, digest, packed, prunable_weights, size, unpacked
from .samples import samples_in
from .size import ModelSize, MultiplyAdds, model_size, trace_multiply_adds


class LayerCollapseWarning(UserWarning):
    """A layer keeps no weight at all."""


def averages(state: State) -> list[dict[str, Tensor]]:
    """The weights and buffers that Composer's EMA averages, by the names that they have in the model."""
    own = dict(chain(composer_model(state).named_parameters(), composer_model(state).named_buffers()))
    models = [a.ema_model for a in state.algorithms if isinstance(a, EMA) and a.ema_model is not None]
    kept = [{**model.named_parameters_dict, **model.named_buffers_dict} for model in models]
    return [{n if n in own else n.removeprefix("module."): tensor for n, tensor in by_name.items()} for by_name in kept]


def plain_forward(model: nn.Module, batch: Any) -> Any:
    """The outputs by the model's class, past what torch.compile may have put in their way as the model's own."""
    return type(model).forward(model, batch)


class Pruning(Algorithm):
    """Keeps masks, and what they prune at zero: weights, gradients, the optimizer's state, EMA's averages.

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
        self._mixes = self._unproven = self._moves = self._unlogged = False
        self._multiply_adds: MultiplyAdds | None = None

    @property
    def _name(self) -> str:
        return type(self).__name__

    def check(self, argument: str, fits: Any, expected: str, given: Any) -> None:
        """Raise ValueError, naming the argument and what was expected of it, unless it `fits`."""
        if not fits:
            raise ValueError(f"{self._name}: {argument} must be {expected}, got {given!r}.")

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

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masks": packed(self.masks), "plan": self.plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.masks, self._was = unpacked(state["masks"]), state["plan"]
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self._name}: the checkpoint holds no readable masks; {error}") from error

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BEFORE_FORWARD:
            return self._multiply_adds is None
        return event in _STEPS and (event != Event.AFTER_TRAIN_BATCH or bool(self.masks))

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        _STEPS[event](self, state, logger)

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
        self.masks = {name: _like(self.weights[name], mask) for name, mask in masks.items()}
        self._agree()
        apply_masks(self.weights, self.masks)
        mask_optimizers(state.optimizers, self.weights, self.masks)
        for tensors in averages(state):
            apply_masks(tensors, {name: mask for name, mask in self.masks.items() if name in tensors})
        self._unproven = self._unlogged = True
        logger.log_metrics({"pruning/density": density(self.masks)})

    @property
    def traced(self) -> bool:
        """Whether multiply-adds are known, as they are once a batch has been trained."""
        return self._multiply_adds is not None

    def trace(self, state: State, batch: Any) -> None:
        """Counts the multiply-adds of a batch, as the model sees it; the figures are per sample."""
        uses, other = trace_multiply_adds(composer_model(state), partial(plain_forward, batch=batch))
        samples = samples_in(batch)
        self._multiply_adds = MultiplyAdds({part: n // samples for part, n in uses.items()}, other // samples)

    def size(self, state: State) -> ModelSize:
        """The size of the run's model, tensor by tensor and in all."""
        return model_size(composer_model(state), self._multiply_adds or MultiplyAdds({}, 0), self.masks)

    def _agree(self) -> None:
        digests = dist.all_gather_object(digest(self.masks))
        if len(set(digests)) > 1:
            raise RuntimeError(f"{self._name}: the ranks have chosen different masks; their weights have gone apart.")

    def _begin(self, state: State, logger: Logger) -> None:
        refuse_twins(self, state)
        if other := [type(a).__name__ for a in state.algorithms if isinstance(a, Pruning) and a is not self]:
            raise ValueError(f"{self._name} cannot share the masks with {', '.join(other)}; prune in one way.")
        if state.fsdp_config is not None or state.tp_config is not None:
            raise ValueError(f"{self._name} does not work on weights that FSDP or tensor parallelism split; use DDP.")
        self.masks, self.weights, self._multiply_adds, self._mixes = {}, {}, None, False
        self._unproven = self._moves = self._unlogged = False
        self._was = {}
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
        self.measure(state)
        plan = self.plan()
        if wrong := [f"{name}={was!r}" for name, was in self._was.items() if plan.get(name, was) != was]:
            raise ValueError(f"{self._name}: the checkpoint's run had {some(wrong)}; go on as it was, or start anew.")
        if self.masks:
            self._verify()
        elif state.timestamp.batch.value > 0 and self.is_due_before(state):
            raise ValueError(
                f"{self._name}: the checkpoint, of batch {state.timestamp.batch.value}, holds no masks, as it should; "
                "load one of a run like this, or its weights alone (load_weights_only=True)."
            )
        self.prepare(state)

    def _verify(self) -> None:
        """That the masks loaded are those of this model and of its weights."""
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        if wrong := [name for name in {**shapes, **self.masks} if shapes.get(name) != _shape(self.masks.get(name))]:
            raise ValueError(
                f"{self._name}: the checkpoint's masks do not fit the weights that are pruned here: {some(wrong)}; "
                "include, exclude and classifier must be what they were."
            )
        self.masks = {name: _like(weight, self.masks[name]) for name, weight in self.weights.items()}
        if revived := _revived(self.weights, self.masks):
            hint = f"what they prune is not 0 in {some(revived)}"
            raise ValueError(f"{self._name}: the masks are not of these weights; {hint}.")
        self._agree()
        self._unproven = True

    def _start(self, state: State, logger: Logger) -> None:
        self.start(state)

    def _before(self, state: State, logger: Logger) -> None:
        self.before_update(state, logger)

    def _trace(self, state: State, logger: Logger) -> None:
        self.trace(state, state.batch)

    def _finish(self, state: State, logger: Logger) -> None:
        self.finish(state, logger)

    def _mask_gradients(self, state: State, logger: Logger) -> None:
        mask_gradients(self.weights, self.masks)
        if self._unproven:  # at a learning rate of zero nothing shows
            groups = (group for optimizer in state.optimizers for group in optimizer.param_groups)
            self._moves = any(group["lr"] > 0 for group in groups)

    def _after(self, state: State, logger: Logger) -> None:
        if self._unproven and self._moves:  # some optimizers, such as Muon, mix the gradients of different weights
            self._mixes = bool(_revived(self.weights, self.masks))
            self._unproven = self._moves = False
        if self.masks and self._mixes:
            apply_masks(self.weights, self.masks)
            mask_optimizers(state.optimizers, self.weights, self.masks)
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
    Event.INIT: Pruning._begin,
    Event.AFTER_LOAD: Pruning._check,
    Event.FIT_START: Pruning._start,
    Event.BATCH_START: Pruning._before,
    Event.BEFORE_FORWARD: Pruning._trace,
    Event.AFTER_TRAIN_BATCH: Pruning._mask_gradients,
    Event.BATCH_END: Pruning._after,
    Event.FIT_END: Pruning._finish,
}
