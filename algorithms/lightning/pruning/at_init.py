"""PruneAtInit in a training by Lightning's Trainer."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ...pruning.at_init import Criterion, checked, masks_of_ticket, prune_at_init
from ...pruning.criteria import OF_DATA
from ...pruning.masks import Masks, Scope, digest
from ...pruning.pruner import Pruner
from ...pruning.samples import balanced_batches
from ...validation import NoEffectWarning
from ..host import common_seed, progress_of, refuse_untold
from .sparsity import Pruning


class PruneAtInit(Pruning):
    """Prune before the first update, or at `at`, by a criterion or by the masks of a `ticket`; then train on.

    Args:
        criterion: the name of one in `accelerando.algorithms.pruning.criteria.CRITERIA`, such as `snip`; or a function
            of the masks so far, (module, weights by name, masks by name) -> scores by name, of which the highest are
            kept. `snip` is the same for every number of ranks; `snip_per_batch` takes `|g * w|` of each of the loader's
            batches, as the code of arXiv 2009.08576 does (see `accelerando.algorithms.snip`).
        density: share of the prunable weights that is kept, in (0, 1); or shares by patterns of the layers' names.
        ticket: a file of masks (see `save_masks`) in place of criterion and density.
        iterations: in how many steps to prune, each scoring what the last one has left, with densities that fall
            exponentially; by default 100 for `synflow`, 1 for the others.
        at: when: ep or ba (updates); what is trained before is dense. A warning (NoEffectWarning) tells of a training
            that is stopped before.
        scope, shuffle, reinitialize, invert: see `prune_at_init`.
        samples_per_class: how many samples of each class the criteria of data see; 10 in the papers. Where samples have
            no class, as in masked language modelling, they see ten times as many samples in all.
        temperature: what outputs are divided by in those criteria; GraSP's authors take 200.
        seed: of all that is drawn; None: Lightning's global seed, or else torch's initial one.
        loss: of (outputs, targets), the mean over the samples, for the criteria of data where batches are (inputs,
            targets) and the module's `forward` gives the outputs, such as `F.cross_entropy`.
        batch_loss: of (module, batch), in the place of `loss`, for batches of other forms.
        include, exclude, classifier: which weights; see `prunable_weights`.

    The criteria of data take samples from the Trainer's train_dataloader, whose dataset must have indices and a length.
    Its augmentations apply, and the module's hooks for batches; like the authors of arXiv 2009.08576, all but `synflow`
    look at the network in train mode. A batch of one sample that would be left over joins the one before.
    """

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
        loss: Callable[[Any, Any], Tensor] | None = None,
        batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        name = type(self).__name__
        super().__init__(Pruner(None, (), include, exclude, classifier, name=name))
        check = self.pruner.check
        iterations = checked(
            name, criterion, density, iterations, scope, temperature,
            ticket=ticket, invert=invert, samples_per_class=samples_per_class,
        )  # fmt: skip
        needed = ticket is None and not callable(criterion) and criterion in OF_DATA
        given = (loss is not None) + (batch_loss is not None)
        check("loss", given == needed, "given (or batch_loss) for criteria of data, and for them alone", loss)
        check("temperature", temperature == 1 or not batch_loss, "1 beside batch_loss", temperature)
        self.at = self.counted_moment("at", at, ("ep", "ba"))
        check("reinitialize", not (reinitialize and self.at.value), "False where training has begun (at)", reinitialize)
        self.criterion, self.density, self.ticket = criterion, density, ticket
        self.iterations, self.shuffle, self.reinitialize, self.invert = iterations, shuffle, reinitialize, invert
        self.scope: Scope = scope
        self.samples_per_class, self.temperature, self.seed = samples_per_class, temperature, seed
        self.loss, self.batch_loss = loss, batch_loss
        self._digest: str | None = None  # of the ticket's masks

    def plan(self) -> dict[str, Any]:
        how = {"criterion": self.criterion if isinstance(self.criterion, str) else "a function", "at": str(self.at)}
        names = ("density", "iterations", "scope", "shuffle", "reinitialize", "invert", "samples_per_class")
        own = {name: getattr(self, name) for name in (*names, "temperature", "seed")}
        return {**super().plan(), **how, **own, "ticket": self._digest}

    def measure(self, trainer: Trainer) -> None:
        # What is wrong with a ticket must not come up after hours.
        self._digest = None if (masks := self._load()) is None else digest(masks)
        refuse_untold(self, trainer, self.at)
        progress = progress_of(trainer)
        fits = self.masks or (progress.share(self.at) or 0) < 1
        self.pruner.check("at", fits, f"within the training, which lasts {progress.length}", str(self.at))

    def _load(self) -> Masks | None:
        return masks_of_ticket("PruneAtInit", self.ticket, self.weights)

    def is_due_before(self, trainer: Trainer) -> bool:
        return progress_of(trainer).passed(self.at)

    def finish(self, trainer: Trainer) -> None:
        if not self.masks and trainer.is_global_zero:
            text = f"the training has ended after {trainer.global_step}ba, before at={self.at}; it was dense"
            warnings.warn(NoEffectWarning(f"PruneAtInit: {text}."), stacklevel=2)

    def before_update(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self.masks or not progress_of(trainer).reached(self.at):
            return
        seed = common_seed(trainer, self.seed)
        batches = self._one_batch(batch) if self.criterion == "synflow" else self._batches(trainer, pl_module, seed)
        with _plain(pl_module):
            masks = prune_at_init(
                pl_module,
                self.criterion,
                self.density,
                batches,
                self.loss,
                iterations=self.iterations,
                scope=self.scope,
                shuffle=self.shuffle,
                reinitialize=self.reinitialize,
                invert=self.invert,
                temperature=self.temperature,
                seed=seed,
                ticket=self._load(),
                weights=self.weights,
                batch_loss=self.batch_loss,
                name="PruneAtInit",
            )
        self.prune(masks, trainer)

    def _one_batch(self, batch: Any) -> Iterator[Any]:
        yield (batch, None) if isinstance(batch, Tensor) else batch

    def _batches(self, trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[Any]:
        loader = trainer.train_dataloader
        size = getattr(loader, "batch_size", None)
        if self.criterion == "snip_per_batch" and not size:
            raise ValueError("snip_per_batch needs a loader with a batch_size, which this one has not; try snip")
        # They are needed while the module, which is to be copied, does not know its Trainer.
        hooks = trainer.precision_plugin.convert_input, trainer.strategy.batch_to_device
        for batch in balanced_batches(loader, self.samples_per_class, seed, size or 1, str(self.criterion)):
            pl_module.trainer = trainer
            try:
                batch = hooks[1](pl_module.on_before_batch_transfer(hooks[0](batch), 0))
            finally:
                pl_module.trainer = None  # type: ignore[assignment]
            yield batch


@contextmanager
def _plain(pl_module: LightningModule) -> Iterator[None]:
    """Criteria look at copies of the module, which copy no Trainer with it, and have the methods of its class.

    Lightning gives a compiled module others, which in copies still have the weights of the original.
    """
    trainer, own = pl_module.trainer, vars(pl_module)
    bound = {name: own.pop(name) for name in ("forward", "training_step") if name in own}
    pl_module.trainer = None  # type: ignore[assignment]
    try:
        yield
    finally:
        pl_module.trainer = trainer
        own.update(bound)
