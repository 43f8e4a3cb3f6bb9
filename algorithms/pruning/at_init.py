"""PruneAtInit: a subnetwork is chosen at initialization, or early in training, and trained on from there.

Criteria and ablations are those of Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
Mark?" (arXiv 2009.08576). They found that shuffling each layer's mask, or drawing its weights anew, costs nothing: then
a criterion has chosen how many weights each layer keeps, not which.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import State, TimeUnit
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..for_recipes import Supply
from ..generators import seeded, torch_generator
from ..host import composer_model, moment, reached, share_of_training
from .criteria import CRITERIA, OF_DATA, OF_WEIGHTS, synflow
from .enforcement import apply_masks
from .files import load_masks
from .masks import Masks, Scope, digest, keep_highest, kept_counts, shuffled
from .samples import class_balanced
from .sparsity import Pruning, plain_forward

Criterion = Callable[[nn.Module, dict[str, nn.Parameter], Masks], dict[str, Tensor]]
_STREAM = 0x9127  # no other algorithm's random numbers


def exponential_densities(density: float, iterations: int) -> Iterator[float]:
    """`density ** (k / iterations)` for k = 1, ..., iterations, as SynFlow prunes (arXiv 2006.05467)."""
    for k in range(1, iterations + 1):
        yield density ** (k / iterations)


class PruneAtInit(Pruning):
    """Prune before the first update, or at `at`, by a criterion or by the masks of a `ticket`; then train on.

    Args:
        criterion: the name of one in `criteria.CRITERIA`, such as `snip`; or a function of the masks so far,
            (model, weights by name, masks by name) -> scores by name, of which the highest are kept. `snip` is the same
            for every number of microbatches and ranks; `snip_per_batch` takes `|g * w|` of each of the loader's
            batches, as the code of arXiv 2009.08576 does (see `criteria.snip`).
        density: share of the prunable weights that is kept, in (0, 1); or shares by patterns of the layers' names.
        ticket: a file of masks (see `save_masks`) in place of criterion and density.
        iterations: in how many steps to prune, each scoring what the last one has left, with densities that fall
            exponentially; by default 100 for `synflow`, 1 for the others.
        at: when: ep or ba; what is trained before is dense. A warning (NoEffectWarning) tells of a training that is
            stopped before.
        scope: compare the scores of all layers (`global`), or of each (`layerwise`).
        shuffle: then shuffle each layer's mask. Each layer keeps its density.
        reinitialize: then draw each pruned layer's weights anew: from its own, in a random order, which for weights
            drawn independently is a draw from their distribution, whichever it was. The mask stays.
        invert: keep the lowest scores in place of the highest.
        samples_per_class: how many samples of each class the criteria of data see; 10 in the papers. Where samples have
            no class, as in masked language modelling, they see ten times as many samples in all.
        temperature: what logits are divided by in those criteria; GraSP's authors take 200.
        seed: of all that is drawn; by default the run's.
        transform: of batches, on the device, to what the model sees, such as normalisation: what a DataSpec's
            `batch_transforms` and `microbatch_transforms` do together, as Composer does not show them to algorithms.
        include, exclude, classifier: which weights; see `prunable_weights`.

    The criteria of data take samples from the Trainer's `train_dataloader`, whose dataset must have indices and a
    length. Its augmentations apply, which the authors of arXiv 2009.08576 leave out; like them, all but `synflow` look
    at the network in train mode. A batch of one sample that would be left over joins the one before.
    """

    supplied: ClassVar = {"ticket": Supply.FILE, "transform": Supply.TRANSFORM}

    def __init__(
        self,
        criterion: str | Criterion = "magnitude",
        density: float | dict[str, float] | None = None,
        ticket: str | None = None,
        iterations: int | None = None,
        at: str = "0ba",
        scope: Scope = "global",
        shuffle: bool = False,
        reinitialize: bool = False,
        invert: bool = False,
        samples_per_class: int = 10,
        temperature: float = 1.0,
        seed: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        super().__init__(include, exclude, classifier)
        known = callable(criterion) or criterion in CRITERIA
        self.check("criterion", known, f"a function or one of {', '.join(CRITERIA)}", criterion)
        if ticket is None:
            self.check("density", density is not None, "given where no ticket is", density)
            self.check_density(density)  # type: ignore[arg-type]
        else:
            self.check("ticket", density is None and iterations is None and not invert, "given alone", ticket)
            self.check("ticket", Path(ticket).is_file(), "a file of masks", ticket)
        iterations = iterations if iterations is not None else 100 if criterion == "synflow" else 1
        self.check("iterations", type(iterations) is int and iterations >= 1, "a whole number, at least 1", iterations)
        self.check("samples_per_class", samples_per_class >= 1, "at least 1", samples_per_class)
        self.check("temperature", 0 < temperature < float("inf"), "above 0, finite", temperature)
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        time = moment(at)
        self.check("at", time and time.unit in (TimeUnit.EPOCH, TimeUnit.BATCH), "in ep or ba", at)
        early = not reinitialize or at in ("0ba", "0ep")
        self.check("reinitialize", early, "False where training has begun (at)", reinitialize)
        assert time is not None
        self.criterion, self.density, self.ticket, self.at = criterion, density, ticket, time
        self.iterations, self.shuffle, self.reinitialize, self.invert = iterations, shuffle, reinitialize, invert
        self.scope: Scope = scope
        self.samples_per_class, self.temperature, self.seed = samples_per_class, temperature, seed
        self.transform = transform
        self._digest: str | None = None  # of the ticket's masks

    def plan(self) -> dict[str, Any]:
        how = {"criterion": self.criterion if isinstance(self.criterion, str) else "a function", "at": str(self.at)}
        names = ("density", "iterations", "scope", "shuffle", "reinitialize", "invert", "samples_per_class")
        own = {name: getattr(self, name) for name in (*names, "temperature", "seed")}
        return {**super().plan(), **how, **own, "ticket": self._digest}

    def begin(self, state: State) -> None:
        self._digest = None

    def measure(self, state: State) -> None:
        if self.ticket is not None:
            self._digest = digest(self._load())  # what is wrong with it must not come up after hours

    def _load(self) -> Masks:
        assert self.ticket is not None
        try:
            return load_masks(self.ticket, self.weights)
        except ValueError as error:
            raise ValueError(f"PruneAtInit: {error}.") from error

    def start(self, state: State) -> None:
        fits = self.masks or (share_of_training(self.at, state) or 0) < 1
        self.check("at", fits, f"within the training, which lasts {state.max_duration}", str(self.at))

    def is_due_before(self, state: State) -> bool:
        return reached(state, self.at) and not self._is_now(state)

    def _is_now(self, state: State) -> bool:
        """Before the update that follows `at`."""
        now = state.timestamp
        if self.at.unit == TimeUnit.EPOCH:
            return now.epoch.value == self.at.value and now.batch_in_epoch.value == 0
        return now.batch.value == self.at.value

    def finish(self, state: State, logger: Logger) -> None:
        if not self.masks and dist.get_global_rank() == 0:
            text = f"before at={self.at}; it was dense"
            text = f"PruneAtInit: the training has ended after {state.timestamp.batch}, {text}."
            warnings.warn(NoEffectWarning(text), stacklevel=2)

    def before_update(self, state: State, logger: Logger) -> None:
        if self.masks or not self._is_now(state):
            return
        seed = state.rank_zero_seed if self.seed is None else self.seed
        generator = torch_generator(seed, _STREAM)
        masks = self._load() if self.ticket is not None else self._choose(state, seed, generator)
        if self.shuffle:
            masks = shuffled(masks, generator)
        if self.reinitialize:
            self._reinitialize(generator)
        self.prune(masks, state, logger)

    def _choose(self, state: State, seed: int, generator: torch.Generator) -> Masks:
        """Iteration by iteration, on the weights that the last one has left."""
        model, dense = composer_model(state), {name: weight.detach().clone() for name, weight in self.weights.items()}
        masks: Masks = {}
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        try:
            score = self._score(state, seed, generator)
            for share in self._densities():
                scores = score(model, self.weights, masks)
                if self.invert:
                    scores = {name: -values for name, values in scores.items()}
                masks = keep_highest(scores, kept_counts(sizes, share, self.scope), masks)
                apply_masks(self.weights, masks)
        except ValueError as error:
            raise ValueError(f"PruneAtInit: {error}") from error
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(dense[name])
        return masks

    def _densities(self) -> Iterator[float | dict[str, float]]:
        if isinstance(self.density, dict):
            shares = [[*exponential_densities(share, self.iterations)] for share in self.density.values()]
            return (dict(zip(self.density, row, strict=True)) for row in zip(*shares, strict=True))
        return exponential_densities(self.density or 1.0, self.iterations)

    def _score(self, state: State, seed: int, generator: torch.Generator) -> Criterion:
        if callable(self.criterion):
            return self.criterion
        if of_weights := OF_WEIGHTS.get(self.criterion):
            return lambda model, weights, masks: of_weights(weights, generator)
        if self.criterion == "synflow":
            return partial(_synflow, state.batch, self.transform is not None)
        with seeded(seed):  # augmentation
            batches = [*self._batches(state, seed)]
        loss = partial(_loss, self.temperature)
        of_data = OF_DATA[self.criterion]
        return lambda model, weights, masks: of_data(model, weights, batches, loss, seed=seed)

    def _batches(self, state: State, seed: int) -> Iterator[Any]:
        """This rank's share of the samples, in batches as large as its own."""
        loader: Any = state.dataloader
        dataset = getattr(loader, "dataset", None)
        if not (isinstance(loader, DataLoader) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise ValueError(f"{self.criterion} needs a DataLoader over a dataset with indices and a length")
        own = class_balanced(dataset, self.samples_per_class, seed)[dist.get_global_rank() :: dist.get_world_size()]
        size = state.device_train_microbatch_size
        if self.criterion == "snip_per_batch" or not isinstance(size, int):
            size = loader.batch_size or 1
        starts = [*range(0, len(own), size)]
        if size > 1 and len(starts) > 1 and len(own) - starts[-1] == 1:
            starts.pop()  # of a single sample batch norm has no statistics
        for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
            samples = [dataset[index] for index in own[start:end]]  # type: ignore[index]
            batch = state.device.batch_to_device(loader.collate_fn(samples))
            yield self.transform(batch) if self.transform else batch

    def _reinitialize(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for name, drawn in shuffled(self.weights, generator).items():
                self.weights[name].copy_(drawn)


def _loss(temperature: float, model: nn.Module, batch: Any) -> Tensor:
    outputs = plain_forward(model, batch)
    if temperature != 1:
        if isinstance(model, HuggingFaceModel) or not isinstance(outputs, Tensor):
            raise ValueError("temperature must be 1 for a model that computes its loss itself")
        outputs = outputs / temperature
    return model.loss(outputs, batch)  # type: ignore[operator]


def _synflow(
    batch: Any, transformed: bool, model: nn.Module, weights: dict[str, nn.Parameter], masks: Masks
) -> dict[str, Tensor]:
    inputs = batch[0] if isinstance(batch, Sequence) else None
    if not isinstance(inputs, Tensor):
        raise ValueError("synflow needs batches of (inputs, targets), whose inputs it replaces by ones")
    inputs = inputs.float() if transformed else inputs  # images of bytes become numbers on their way
    return synflow(model, weights, inputs, lambda copied, ones: plain_forward(copied, (ones, None)))
