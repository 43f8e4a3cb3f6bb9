"""Pruning at initialization: a subnetwork is chosen before training, or early in it, and trained on from there.

    pruner = Pruner(model, optimizer)
    pruner.prune(prune_at_init(model, "snip", 0.1, batches, F.cross_entropy))

Criteria and ablations are those of Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
Mark?" (arXiv 2009.08576). They found that shuffling each layer's mask, or drawing its weights anew, costs nothing: then
a criterion has chosen how many weights each layer keeps, not which.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import seeded, torch_generator
from ..validation import check
from .criteria import CRITERIA, OF_DATA, OF_WEIGHTS, synflow
from .enforcement import apply_masks
from .files import load_masks
from .masks import Masks, Scope, keep_highest, kept_counts, shuffled
from .prunable import prunable_weights
from .pruner import check_density

Density = float | dict[str, float]
Criterion = Callable[[nn.Module, dict[str, nn.Parameter], Masks], dict[str, Tensor]]

_STREAM = 0x9127  # no other technique's random numbers


def exponential_densities(density: float, iterations: int) -> Iterator[float]:
    """`density ** (k / iterations)` for k = 1, ..., iterations, as SynFlow prunes (arXiv 2006.05467)."""
    for k in range(1, iterations + 1):
        yield density ** (k / iterations)


def prune_at_init(
    model: nn.Module,
    criterion: str | Criterion = "snip",
    density: Density | None = None,
    batches: Iterable[Any] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    iterations: int | None = None,
    scope: Scope = "global",
    shuffle: bool = False,
    reinitialize: bool = False,
    invert: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    ticket: Mapping[str, Tensor] | None = None,
    weights: dict[str, nn.Parameter] | None = None,
    forward: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs),
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    name: str = "prune_at_init",
) -> Masks:
    """Returns masks by the names of the weights, for `Pruner.prune`; the model stays as it is, but for `reinitialize`.

    Args:
        model: not compiled and not wrapped, as by DDP.
        criterion: the name of one in `accelerando.algorithms.pruning.criteria.CRITERIA`, such as `snip`; or a function
            of the masks so far, (model, weights by name, masks by name) -> scores by name, of which the highest are
            kept.
        density: share of the weights that is kept, in (0, 1); or shares by patterns of the layers' names.
        batches: a few, of (inputs, targets), on the model's device, which the criteria of data look at; the papers
            take 10 samples of each class (`class_balanced`). `synflow` looks at the shape of the first one's inputs.
        loss: of (outputs, targets), the mean over the samples, for the criteria of data.
        iterations: in how many steps to prune, each scoring what the last one has left, with densities that fall
            exponentially; by default 100 for `synflow`, 1 for the others.
        scope: compare the scores of all layers (`global`), or of each (`layerwise`).
        shuffle: then shuffle each layer's mask. Each layer keeps its density.
        reinitialize: then draw each pruned layer's weights anew: from its own, in a random order, which for weights
            drawn independently is a draw from their distribution, whichever it was. The mask stays.
        invert: keep the lowest scores in place of the highest.
        temperature: what outputs are divided by before the loss; GraSP's authors take 200.
        seed: of all that is drawn.
        ticket: masks, as from `load_masks`, in place of criterion and density.
        weights: those that are pruned; by default `prunable_weights(model)`, else a `Pruner`'s.
        forward: the outputs of a model for inputs, where they are not `model(inputs)`.
        batch_loss: of (model, batch), in place of `forward` and `loss`, for batches of other forms.
        name: what errors call it.

    Raises ValueError for arguments that cannot work, and where scores are not finite or do not tell what to keep.
    """
    weights = prunable_weights(model) if weights is None else weights
    generator = torch_generator(seed, _STREAM)
    if ticket is None:
        iterations = checked(name, criterion, density, iterations, scope, temperature)
        of_loss = batch_loss or _loss_of(forward, loss, temperature)
        needless = callable(criterion) or criterion not in OF_DATA
        check(name, "loss", of_loss or needless, f"given, as {criterion} takes its gradient", loss)
        check(name, "temperature", temperature == 1 or not batch_loss, "1 beside batch_loss", temperature)
        try:
            score = _score(criterion, batches, of_loss, forward, seed, generator)
            masks = _choose(model, weights, score, density, iterations, scope, invert)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    else:
        masks = dict(ticket)
    if shuffle:
        masks = shuffled(masks, generator)
    if reinitialize:
        with torch.no_grad():
            for layer, drawn in shuffled(weights, generator).items():
                weights[layer].copy_(drawn)
    return masks


def checked(
    owner: str,
    criterion: Any,
    density: Density | None,
    iterations: int | None,
    scope: str,
    temperature: float = 1.0,
    *,
    ticket: str | PathLike[str] | None = None,
    invert: bool = False,
    samples_per_class: int = 1,
) -> int:
    """Raises ValueError for arguments that cannot work; returns the number of iterations.

    They are those of `prune_at_init`, and a host's: a file in place of criterion and density, and how many samples it
    takes of each class.
    """
    if ticket is not None:
        check(owner, "ticket", density is None and iterations is None and not invert, "given alone", ticket)
        check(owner, "ticket", Path(ticket).is_file(), "a file of masks", ticket)
    known = callable(criterion) or criterion in CRITERIA
    check(owner, "criterion", known, f"a function or one of {', '.join(CRITERIA)}", criterion)
    if ticket is None:
        check(owner, "density", density is not None, "given where no ticket is", density)
        assert density is not None
        check_density(owner, density)
    iterations = iterations if iterations is not None else 100 if criterion == "synflow" else 1
    check(owner, "iterations", type(iterations) is int and iterations >= 1, "a whole number, at least 1", iterations)
    check(owner, "temperature", 0 < temperature < float("inf"), "above 0, finite", temperature)
    check(owner, "scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
    check(owner, "samples_per_class", samples_per_class >= 1, "at least 1", samples_per_class)
    return iterations


def masks_of_ticket(
    owner: str, ticket: str | PathLike[str] | None, weights: Mapping[str, Tensor], *, partial: bool = False
) -> Masks | None:
    """Returns the masks in a file, None without one; ValueError, which names the `owner`, where they do not fit.

    For `partial` see `load_masks`.
    """
    try:
        return None if ticket is None else load_masks(ticket, weights, partial=partial)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}.") from error


def _choose(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    score: Criterion,
    density: Density | None,
    iterations: int,
    scope: Scope,
    invert: bool,
) -> Masks:
    """Iteration by iteration, on the weights that the last one has left."""
    dense = {name: weight.detach().clone() for name, weight in weights.items()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    masks: Masks = {}
    try:
        for share in _densities(density or 1.0, iterations):
            scores = score(model, weights, masks)
            if invert:
                scores = {name: -values for name, values in scores.items()}
            masks = keep_highest(scores, kept_counts(sizes, share, scope), masks)
            apply_masks(weights, masks)
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(dense[name])
    return masks


def _densities(density: Density, iterations: int) -> Iterator[Density]:
    if isinstance(density, dict):
        shares = [[*exponential_densities(share, iterations)] for share in density.values()]
        return (dict(zip(density, row, strict=True)) for row in zip(*shares, strict=True))
    return exponential_densities(density, iterations)


def _loss_of(
    forward: Callable[[nn.Module, Any], Any], loss: Callable[[Any, Any], Tensor] | None, temperature: float
) -> Callable[[nn.Module, Any], Tensor] | None:
    if loss is None:
        return None

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        outputs = forward(model, batch[0])
        return loss(outputs if temperature == 1 else outputs / temperature, batch[1])

    return of_batch


def _score(
    criterion: str | Criterion,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None,
    forward: Callable[[nn.Module, Any], Any],
    seed: int,
    generator: torch.Generator,
) -> Criterion:
    if callable(criterion):
        return criterion
    if of_weights := OF_WEIGHTS.get(criterion):
        return lambda model, weights, masks: of_weights(weights, generator)
    if criterion == "synflow":
        with seeded(seed):
            batch = next(iter(batches), None)
        inputs = batch[0] if isinstance(batch, Sequence) else None
        if not isinstance(inputs, Tensor):
            raise ValueError("synflow needs batches of (inputs, targets), whose inputs it replaces by ones")
        return lambda model, weights, masks: synflow(model, weights, inputs, forward)
    with seeded(seed):  # augmentation
        seen = [*batches]
    of_data = OF_DATA[criterion]
    return lambda model, weights, masks: of_data(model, weights, seen, loss, seed=seed)
