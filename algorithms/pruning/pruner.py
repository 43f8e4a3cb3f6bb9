"""Pruner: masks that hold in a training loop of one's own, whoever writes the weights.

    pruner = Pruner(model, optimizer)
    pruner.prune(prune_at_init(model, "snip", 0.1, batches, F.cross_entropy))

From there on every `optimizer.step()` leaves at zero what is pruned.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .. import ranks
from ..checkpoints import some
from ..shown import Shown
from ..validation import check
from .enforcement import Bits, apply_masks, bits_of, mask_gradients, mask_optimizers
from .masks import (
    LayerCollapseWarning,
    Masks,
    collapsed,
    digest,
    packed,
    size,
    unpacked,
)
from .prunable import MostlyDenseWarning, left_dense, prunable_weights


class Pruner(Shown):
    """Keeps at exactly zero what masks prune: weights, their gradients, the optimizers' state, averages.

    It acts by itself at each step of the optimizers: before it, on gradients; after it, on weights and state. Whoever
    clips gradients calls `hold_gradients` first, so that what is pruned does not count in their norm. `masks` are by
    the names of the parameters, and empty before anything is pruned. With `torch.distributed` all ranks must prune
    alike, and all must call `prune` and `load_state_dict`.

    Args:
        model: not wrapped, as by DDP, whose names differ. A host gives None, and calls `bind` when it knows the model;
            then nothing is done at the optimizers' steps, unless `attach` is called.
        optimizers: one or several, as they are before Accelerate, say, wraps them.
        include, exclude, classifier: which weights; see `prunable_weights`.
        name: what errors and warnings call it; by default the class's name.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Optimizer | Iterable[Optimizer] = (),
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
        *,
        name: str | None = None,
    ):
        self.name = name or type(self).__name__
        for argument, patterns in {"include": include, "exclude": exclude}.items():
            known = not isinstance(patterns, str) and all(isinstance(pattern, str) for pattern in patterns)
            self.check(argument, known, "a sequence of names or patterns", patterns)
        self.check("include", include, "one pattern at least; without any there is nothing to prune", include)
        self._chosen: dict[str, Any] = {"include": include, "exclude": exclude, "classifier": classifier}
        self._hooks: list[RemovableHandle] = []
        self.clear()
        if model is not None:
            self._start(model, optimizers)

    def check(self, argument: str, fits: Any, expected: str, given: Any) -> None:
        """Raises ValueError, naming the argument and what was expected of it, unless it `fits`."""
        check(self.name, argument, fits, expected, given)

    def clear(self) -> None:
        """Forgets the training that it has been in, for another one."""
        self.masks: Masks = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.optimizers: list[Optimizer] = []
        self._bits: dict[str, Bits] = {}  # the masks as `bits_of` makes them
        self._averages: list[Mapping[str, Tensor]] = []
        self._was: dict[str, Any] = {}  # the plan of the training that is gone on with
        self._doubted = False  # masks were loaded, and have not been compared with the weights yet

    @property
    def loaded(self) -> bool:
        """Whether it goes on with what a checkpoint holds."""
        return bool(self._was)

    def _start(self, model: nn.Module, optimizers: Optimizer | Iterable[Optimizer]) -> None:
        self.bind(model, optimizers)
        self.attach()

    def bind(self, model: nn.Module, optimizers: Optimizer | Iterable[Optimizer] = ()) -> None:
        """Finds the weights that can be pruned; what was loaded before is to be verified (`verify`)."""
        try:
            self.weights = prunable_weights(model, **self._chosen)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}.") from error
        self.model, self.optimizers = model, [optimizers] if isinstance(optimizers, Optimizer) else [*optimizers]
        by_default = tuple(self._chosen["include"]) == ("*",) and not self._chosen["exclude"]
        dense = left_dense(model, self.weights) if by_default else []
        if dense and ranks.rank() == 0:
            text = f"{self.name} reaches less than half of the network's parameters, by default not {some(dense)}"
            warnings.warn(f"{text}; include=[...] reaches others", MostlyDenseWarning, stacklevel=3)

    def attach(self) -> None:
        """From here on the masks hold at each step of the optimizers, until `detach`."""
        self.detach()
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.hold_gradients()
        # A closure makes the gradients within the step, some optimizers' more than once, and from other weights.
        held = [args[0], *(self._masking(value) for value in args[1:])]
        return tuple(held), {name: self._masking(value) for name, value in kwargs.items()}

    def _masking(self, closure: Any) -> Any:
        if not callable(closure):
            return closure

        def masked() -> Any:
            self.hold_weights()
            loss = closure()
            self.hold_gradients()
            return loss

        return masked

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.hold()

    def prune(self, masks: Mapping[str, Tensor]) -> None:
        """From here on, `masks` hold: a bool tensor for each of the `weights`, True where it is kept.

        A LayerCollapseWarning tells of layers of which nothing is left. Raises ValueError where masks do not fit, and
        RuntimeError where the ranks' differ.
        """
        if wrong := _misfits(masks, self.weights):
            raise ValueError(f"{self.name}: masks do not fit the weights that are pruned: {some(wrong)}.")
        collapse = set(collapsed(masks)) - (set(collapsed(self.masks)) if self.masks else set())
        if collapse and ranks.rank() == 0:
            names = some([name for name in masks if name in collapse])
            text = f"{self.name}: layer collapse, nothing is left of {names}; prune less, or layerwise"
            warnings.warn(text, LayerCollapseWarning, stacklevel=3)
        self._doubted = False
        self._keep(masks)
        self.hold()

    def _keep(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = {name: _like(weight, masks[name]) for name, weight in self.weights.items()}
        self._bits = {name: bits_of(mask, self.weights[name]) for name, mask in self.masks.items()}
        if len(set(ranks.gathered(digest(self.masks)))) > 1:
            raise RuntimeError(f"{self.name}: the ranks have chosen different masks; their weights have gone apart.")

    def hold(self) -> None:
        """Sets to zero what is pruned in the weights, in the optimizers' state, and in what `hold_also` has named."""
        self.hold_weights()
        mask_optimizers(self.optimizers, self.weights, self._bits)
        for tensors in self._averages:
            self.hold_in(tensors)

    def hold_weights(self) -> None:
        self._compare()
        apply_masks(self.weights, self._bits)

    def hold_gradients(self) -> None:
        self._compare()
        mask_gradients(self.weights, self._bits)

    def hold_in(self, tensors: Mapping[str, Tensor]) -> None:
        """The same in other tensors, by the names of the weights; names of wrappers may have `module.` before."""
        named = {name if name in self._bits else name.removeprefix("module."): t for name, t in tensors.items()}
        apply_masks(named, {name: bits for name, bits in self._bits.items() if name in named})

    def hold_also(self, tensors: Mapping[str, Tensor]) -> None:
        """Has `hold` reach these tensors too, such as `dict(average.named_parameters())` of an AveragedModel."""
        self._averages.append(tensors)

    def remaining(self) -> int:
        """Returns how many of the prunable weights are left."""
        if self.masks:
            return sum(map(size, self.masks.values()))
        return sum(weight.numel() for weight in self.weights.values())

    def share_left(self) -> float:
        """Returns the share of the prunable weights that is not zero, as they are."""
        nonzero = sum(int(weight.detach().count_nonzero()) for weight in self.weights.values())
        return nonzero / sum(weight.numel() for weight in self.weights.values())

    def plan(self) -> dict[str, Any]:
        """Returns what a training that goes on must have in common with the one before, as builtins by argument."""
        return {name: list(v) if isinstance(v, Sequence) else v for name, v in self._chosen.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the masks, one bit per weight, and the plan."""
        return {"masks": packed(self.masks), "plan": self.plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the masks of a training; the model's weights may be loaded before or after.

        Raises ValueError for masks that cannot be read or are not of these layers, for another plan, and, at the next
        step, for weights that are not zero where they are pruned.
        """
        try:
            self.masks, self._was = unpacked(state["masks"]), state["plan"]
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.name}: the checkpoint holds no readable masks; {error}") from error
        self._bits, self._doubted = {}, True
        if self.weights:
            self._fit(self.plan())

    def verify(self, plan: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError unless what was loaded is of this plan, model and weights; for hosts, after `bind`."""
        self._fit(self.plan() if plan is None else plan)
        self._compare()

    def _fit(self, plan: Mapping[str, Any]) -> None:
        if wrong := [f"{name}={was!r}" for name, was in self._was.items() if plan.get(name, was) != was]:
            raise ValueError(f"{self.name}: the checkpoint's run had {some(wrong)}; go on as it was, or start anew.")
        if not self.masks:
            return
        if wrong := _misfits(self.masks, self.weights):
            raise ValueError(
                f"{self.name}: the checkpoint's masks do not fit the weights that are pruned here: {some(wrong)}; "
                "include, exclude and classifier must be what they were."
            )
        self._keep(self.masks)

    def _compare(self) -> None:
        for name, bits in self._bits.items():  # of a model that has been moved
            if bits.integers.device != (weight := self.weights[name]).device:
                self._bits[name] = bits_of(_like(weight, self.masks[name]), weight)
        if not self._doubted or not self.weights:
            return
        if revived := _revived(self.weights, self.masks):
            hint = f"what they prune is not 0 in {some(revived)}"
            raise ValueError(f"{self.name}: the masks are not of these weights; {hint}.")
        self._doubted = False


def check_density(owner: str, density: float | Mapping[str, float]) -> None:
    """Raises ValueError unless it is a share that prunes something, or shares by patterns that do."""
    if isinstance(density, Mapping):
        shares = density.values()
        fits = density and all(0 < share <= 1 for share in shares) and min(shares) < 1
        check(owner, "density", fits, "shares in (0, 1], not all of them 1", dict(density))
    else:
        check(owner, "density", 0 < density < 1, "a share in (0, 1)", density)


def _misfits(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """The names that one of the two lacks, or of which the shapes differ."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (weights, masks)]
    return [name for name in {**weights, **masks} if shapes[0].get(name) != shapes[1].get(name)]


def _revived(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[str]:
    """The layers in which something pruned is not zero."""
    return [name for name, mask in masks.items() if (weights[name].detach()[~mask] != 0).any()]


def _like(weight: Tensor, mask: Tensor) -> Tensor:
    """On the same device, and in the same memory format."""
    return torch.empty_like(weight, dtype=torch.bool).copy_(mask)
