"""PruneAtInit in a run of Composer's Trainer."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from composer.core import State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor, nn

from ...progress import moment
from ...pruning.at_init import Criterion, checked, masks_of_ticket, prune_at_init
from ...pruning.masks import Masks, Scope, digest
from ...pruning.samples import balanced_batches
from ..for_recipes import Supply
from ..host import NoEffectWarning, composer_model, progress_of
from .sparsity import Pruning, plain_forward


class PruneAtInit(Pruning):
    """Prune before the first update, or at `at`, by a criterion or by the masks of a `ticket`; then train on.

    Args:
        criterion: the name of one in `accelerando.algorithms.pruning.criteria.CRITERIA`, such as `snip`; or a function
            of the masks so far, (model, weights by name, masks by name) -> scores by name, of which the highest are
            kept. `snip` is the same for every number of microbatches and ranks; `snip_per_batch` takes `|g * w|` of
            each of the loader's batches, as the code of arXiv 2009.08576 does (see `accelerando.algorithms.snip`).
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
        iterations = checked(
            self._name, criterion, density, iterations, scope, temperature,
            ticket=ticket, invert=invert, samples_per_class=samples_per_class,
        )  # fmt: skip
        time = moment(at)
        self.check("at", time and time.unit in ("ep", "ba"), "in ep or ba", at)
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
        # What is wrong with a ticket must not come up after hours.
        self._digest = None if (masks := self._load()) is None else digest(masks)

    def _load(self) -> Masks | None:
        return masks_of_ticket("PruneAtInit", self.ticket, self.weights)

    def start(self, state: State) -> None:
        fits = self.masks or (progress_of(state).share(self.at) or 0) < 1
        self.check("at", fits, f"within the training, which lasts {state.max_duration}", str(self.at))

    def is_due_before(self, state: State) -> bool:
        progress = progress_of(state)
        return progress.reached(self.at) and not progress.is_at(self.at)

    def finish(self, state: State, logger: Logger) -> None:
        if not self.masks and dist.get_global_rank() == 0:
            text = f"before at={self.at}; it was dense"
            text = f"PruneAtInit: the training has ended after {state.timestamp.batch}, {text}."
            warnings.warn(NoEffectWarning(text), stacklevel=2)

    def acts_before(self, state: State) -> bool:
        return not self.masks or type(self).before_update is not PruneAtInit.before_update

    def before_update(self, state: State, logger: Logger) -> None:
        if self.masks or not progress_of(state).is_at(self.at):
            return
        seed = state.rank_zero_seed if self.seed is None else self.seed
        flow = self.criterion == "synflow"
        masks = prune_at_init(
            composer_model(state),
            self.criterion,
            self.density,
            [self._one_batch(state)] if flow else self._batches(state, seed),
            iterations=self.iterations,
            scope=self.scope,
            shuffle=self.shuffle,
            reinitialize=self.reinitialize,
            invert=self.invert,
            seed=seed,
            ticket=self._load(),
            weights=self.weights,
            forward=lambda copied, inputs: plain_forward(copied, (inputs, None)),
            batch_loss=self._loss,
            name="PruneAtInit",
        )
        self.prune(masks, state, logger)

    def _one_batch(self, state: State) -> Any:
        batch: Any = state.batch
        if self.transform and isinstance(batch, Sequence) and isinstance(batch[0], Tensor):
            return batch[0].float(), None  # images of bytes become numbers on their way
        return batch

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        outputs = plain_forward(model, batch)
        if self.temperature != 1:
            if isinstance(model, HuggingFaceModel) or not isinstance(outputs, Tensor):
                raise ValueError("temperature must be 1 for a model that computes its loss itself")
            outputs = outputs / self.temperature
        return model.loss(outputs, batch)  # type: ignore[operator]

    def _batches(self, state: State, seed: int) -> Iterator[Any]:
        """This rank's share of the samples, in batches as large as its own."""
        size, loader = state.device_train_microbatch_size, state.dataloader
        known = size if isinstance(size, int) else 1
        if self.criterion == "snip_per_batch" or not isinstance(size, int):
            size = getattr(loader, "batch_size", None) or known
        for batch in balanced_batches(loader, self.samples_per_class, seed, size, str(self.criterion)):
            batch = state.device.batch_to_device(batch)
            yield self.transform(batch) if self.transform else batch
