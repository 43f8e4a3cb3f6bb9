"""What prunes in `shrinkbench`: criteria by name, and methods at import paths, such as torch.nn.utils.prune's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from torch import Tensor
from torch.nn.utils import prune

from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.composer.pruning.sparsity import Pruning
from accelerando.algorithms.generators import seeded, untouched_generators
from accelerando.algorithms.pruning import kept_counts, prunable_weights, prune_at_init
from accelerando.algorithms.pruning.masks import Masks, Scope
from accelerando.algorithms.pruning.pruner import check_density

from ..config.errors import REFUSALS
from ..config.lookup import import_path
from ..config.recipe import Recipe
from ..run.algorithms import in_its_folders
from ..run.teachers import as_in_training
from .core import Base
from .prune_at_init import checked_criterion
from .pruning_checks import arguments_of, origins, selection
from .shrinkbench_table import GRADIENT, MAGNITUDE, RANDOM

OURS = f"{__name__}:PrunedBy"
BASELINES = {"magnitude": MAGNITUDE, "snip": GRADIENT, "snip_per_batch": GRADIENT, "random": RANDOM}
OF_TORCH = {prune.L1Unstructured: MAGNITUDE, prune.RandomUnstructured: RANDOM}


@dataclass(frozen=True, kw_only=True)
class Method:
    """An algorithm's name in a YAML, and its arguments but for the density; `baseline`, which of the paper's it is."""

    name: str
    algorithm: str
    arguments: dict[str, Any]
    made_from: dict[str, str]
    baseline: str


def checked_method(base: Base, name: str, pruning: Mapping[str, Any], given: Mapping[str, Any]) -> Method:
    """The method of that name, whose arguments are those that all share, and its own."""
    places, algorithm, density = {"pruning": pruning, f"methods.{name}": given}, "prune_at_init", 0.5
    if "method" in given:
        algorithm = OURS
        arguments = arguments_of(PrunedBy, base.source, places, {"density": density}, ("density",))
        kind, default = OF_TORCH.get(import_path(given["method"]), ""), "layerwise"
    else:
        arguments = checked_criterion(base, name, places, density)
        kind, default = BASELINES.get(arguments["criterion"], ""), "global"
    del arguments["density"]
    return Method(
        name=name,
        algorithm=algorithm,
        arguments=arguments,
        made_from=origins(algorithm, places),
        baseline=kind if kind in (RANDOM, "") else f"{arguments.get('scope', default)} {kind}",
    )


def try_out(base: Base, method: Method, recipe: Recipe, density: float) -> None:
    """Raises an error where a class of torch's cannot prune the recipe's model, as along a dimension that it lacks."""
    given = method.arguments
    if method.algorithm != OURS or not _is_torchs(found := import_path(given["method"])):
        return
    with untouched_generators(), base.source.blame(f"methods.{method.name}", *REFUSALS, AttributeError):
        weights = prunable_weights(as_in_training(recipe.model, in_its_folders(recipe)), **selection(given))
        masks_by(found, weights, density, given.get("scope", "layerwise"), given.get("options"))


def masks_by(
    method: Any,
    weights: Mapping[str, Tensor],
    density: float,
    scope: Scope = "layerwise",
    options: Mapping[str, Any] | None = None,
) -> Masks:
    """Masks by a class of torch.nn.utils.prune, of each layer, or of all weights as one (`global`).

    Exactly the share `density` of the weights is kept; of a structured method that of each layer's channels, rounded
    as it does.
    """
    options, sizes = options or {}, {name: weight.numel() for name, weight in weights.items()}
    kept = kept_counts(sizes, density, scope)
    if isinstance(kept, int):
        every = torch.cat([weight.detach().flatten() for weight in weights.values()])
        mask = method(amount=len(every) - kept, **options).compute_mask(every, torch.ones_like(every)).bool()
        parts = zip(weights.items(), mask.split([*sizes.values()]), strict=True)
        return {name: part.view(weight.shape) for (name, weight), part in parts}
    masks = {}
    for name, weight in weights.items():
        amount = 1 - density if _is_structured(method) else sizes[name] - kept[name]
        values = weight.detach().contiguous()
        masks[name] = method(amount=amount, **options).compute_mask(values, torch.ones_like(values)).bool()
    return masks


def _is_torchs(method: Any) -> bool:
    return inspect.isclass(method) and issubclass(method, prune.BasePruningMethod)


def _is_structured(method: Any) -> bool:
    return getattr(method, "PRUNING_TYPE", "") == "structured"


class PrunedBy(Pruning):
    """Prunes before the first update by a method at an import path.

    Args:
        method: ``package.module:Name`` of a class that derives from BasePruningMethod of torch.nn.utils.prune, such as
            ``torch.nn.utils.prune:LnStructured``; or of a function of a model, its weights and its masks so far, both
            by the weights' names, that gives scores by these names, of which the highest are kept.
        density: share of the prunable weights that is kept, in (0, 1); see `masks_by`.
        options: further arguments of the class, such as {n: 2, dim: 0}.
        scope: compare the weights of each layer (`layerwise`), or of all (`global`), which no structured method does.
        seed: of what is drawn; by default the run's.
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    def __init__(
        self,
        method: str,
        density: float,
        options: dict[str, Any] | None = None,
        scope: Scope = "layerwise",
        seed: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        super().__init__(include, exclude, classifier)
        try:
            found = import_path(method)
        except (LookupError, ImportError) as error:
            raise ValueError(f"{self._name}: method must be an import path, got {method!r}; {error}") from error
        self._found: Any = found
        self._is_torchs = _is_torchs(found)
        fits = self._is_torchs or (inspect.isfunction(found) and found.__module__ != prune.__name__)
        self.check("method", fits, "a class such as torch.nn.utils.prune:L1Unstructured, or a function", method)
        check_density(self._name, density)
        if self._is_torchs:
            fits = scope == "layerwise" or not _is_structured(found)
            self.check("scope", fits, "layerwise for a structured method", scope)
            try:
                self._found(amount=0.5, **(options or {}))
            except REFUSALS as error:
                raise ValueError(f"{self._name}: options must be those of {method}, got {options}; {error}") from error
        self.check("options", self._is_torchs or not options, "left out for a function", options)
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        self.method, self.density, self.options, self.seed = method, density, options, seed
        self.scope: Scope = scope

    def plan(self) -> dict[str, Any]:
        names = ("method", "density", "options", "scope", "seed")
        return {**super().plan(), **{name: getattr(self, name) for name in names}}

    def is_due_before(self, state: State) -> bool:
        return state.timestamp.batch > 0

    def before_update(self, state: State, logger: Logger) -> None:
        if self.masks or state.timestamp.batch > 0:
            return
        devices = sorted({weight.get_device() for weight in self.weights.values() if weight.is_cuda})
        with seeded(state.rank_zero_seed if self.seed is None else self.seed, devices):
            if self._is_torchs:
                masks = masks_by(self._found, self.weights, self.density, self.scope, self.options)
            else:
                masks = prune_at_init(
                    composer_model(state),
                    self._found,
                    self.density,
                    scope=self.scope,
                    weights=self.weights,
                    name=self._name,
                )
        self.prune(masks, state, logger)
