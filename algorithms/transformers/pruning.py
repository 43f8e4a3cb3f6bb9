"""MagnitudePruning and PruneAtInit in Hugging Face's Trainer, and what all pruning there has in common."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from .. import ranks
from ..progress import moment
from ..pruning.at_init import Criterion, checked, masks_of_ticket, prune_at_init
from ..pruning.magnitude_pruning import MagnitudePruner
from ..pruning.masks import Masks, Scope, digest
from ..pruning.pruner import Pruner
from ..pruning.samples import balanced_batches
from ..validation import NoEffectWarning
from .host import Run, Technique, install


class Pruning(Technique):
    """Keeps masks, and what they prune at zero: weights, gradients before they are clipped, the optimizer's state.

    It is zero after every update, in every evaluation and in every checkpoint. `pruner` holds the masks, which go with
    the checkpoint, one bit per weight; ValueError is raised where they are missing, or do not fit model and weights.
    """

    pruner: Pruner

    @property
    def masks(self) -> Masks:
        return self.pruner.masks

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return self.pruner.weights

    def excludes(self, other: Technique) -> bool:
        return isinstance(other, Pruning)

    def plan(self) -> dict[str, Any]:
        """Returns what a run that goes on must have in common with the one before, as builtins by argument."""
        return self.pruner.plan()

    def is_due_before(self, run: Run) -> bool:
        """Whether a training without any masks cannot be gone on with."""
        return False

    def begin(self, run: Run) -> None:
        self.pruner.clear()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pruner.load_state_dict(dict(state))

    def state_dict(self) -> dict[str, Any]:
        return {**self.pruner.state_dict(), "plan": self.plan()}

    def start(self, run: Run) -> None:
        self.attach(run)
        self.pruner.verify(self.plan())
        if run.state.global_step and not self.masks and self.is_due_before(run):
            hint = "prune at that moment or later, or resume a checkpoint of a run like this"
            raise ValueError(f"{self.name}: the checkpoint of step {run.state.global_step} holds no masks; {hint}.")

    def attach(self, run: Run) -> None:
        """From here on the pruner's masks hold in this model and optimizer."""
        self.pruner.bind(run.model, run.optimizer)
        self.pruner.attach()
        self.hold_gradients(run)

    def hold_gradients(self, run: Run) -> None:
        """Has gradients masked as they come: the Trainer clips them before it tells anybody that they are there."""

        def masking(name: str) -> Callable[[Tensor], Tensor | None]:
            def masked(gradient: Tensor) -> Tensor | None:
                if name not in self.masks or gradient.is_sparse:  # the optimizer's step is held anyway
                    return None
                return torch.where(self.masks[name], gradient, 0)

            return masked

        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        install(run.model, "pruning", [weight.register_hook(masking(name)) for name, weight in trained.items()])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        assert self.run
        self.pruner.detach()
        install(self.run.model, "pruning")
        left = round(self.pruner.share_left() * sum(weight.numel() for weight in self.weights.values()))
        if args.load_best_model_at_end and self.masks and left > self.pruner.remaining() and ranks.rank() == 0:
            text = (
                f"the best model, which was loaded, is of a moment with {left} weights, not {self.pruner.remaining()}"
            )
            warnings.warn(f"{self.name}: {text}; leave load_best_model_at_end out.", stacklevel=2)


class MagnitudePruning(Pruning):
    """Prunes the weights of least magnitude, at `start`, or gradually from then to `end`; see `MagnitudePruner`.

        Trainer(model, args, callbacks=[MagnitudePruning(density=0.1, start="0.1dur", end="0.7dur")], ...)

    Args:
        density: share of the weights that is kept in the end, in (0, 1); or shares by patterns of the layers' names.
        start: when it begins: ep, ba (updates) or dur. What is due after an update is done before its evaluation.
        end: when it ends; None to prune all at once. A warning tells of a training that ends before.
        interval: time from one step of gradual pruning to the next; by default a hundredth of the time from start to
            end.
        schedule: `linear`, or `cubic`, with the large steps first.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    def __init__(
        self,
        density: float | dict[str, float],
        start: str = "0dur",
        end: str | None = None,
        interval: str | None = None,
        schedule: Literal["linear", "cubic"] = "cubic",
        scope: Scope = "global",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        steps = None  # which the Trainer knows
        self.pruner = self.gradual = MagnitudePruner(
            None, (), density, start, end, interval, schedule, scope, steps, include, exclude, classifier,
            name=self.name,
        )  # fmt: skip
        self.counted(self.gradual.times.values())

    def is_due_before(self, run: Run) -> bool:
        return self.gradual.left_at(run.progress()) < self.gradual.remaining()

    def start(self, run: Run) -> None:
        self.gradual.check_times(run.progress())
        super().start(run)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        if state.global_step == 0:
            assert self.run
            self.gradual.update(self.run.progress())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        assert self.run
        self.gradual.update(self.run.progress(state.global_step + 1))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_train_end(args, state, control, **parts)
        self.gradual.finish()


class PruneAtInit(Pruning):
    """Prunes before the first update, or at `at`, by a criterion or by the masks of a `ticket`; then trains on.

        Trainer(model, args, callbacks=[PruneAtInit("snip", density=0.1)], ...)

    Args:
        criterion, density, iterations, scope, shuffle, reinitialize, invert: see `prune_at_init`.
        ticket: a file of masks (see `save_masks`) in place of criterion and density.
        at: when: ep or ba (updates); what is trained before is dense. A warning (NoEffectWarning) tells of a training
            that ends before.
        samples_per_class: how many samples of each class the criteria of data see; 10 in the papers. Where samples have
            no class, as in masked language modelling, they see ten times as many samples in all.
        seed: of all that is drawn; by default that of the TrainingArguments.
        compute_loss_func: the Trainer's, where it has one; else the criteria look at the model's own loss.
        include, exclude, classifier: which weights; see `prunable_weights`.

    The criteria of data take samples from the Trainer's `train_dataset`, which must have indices and a length, and
    batches of as many as the training's microbatches have. Snapshots of the same moment come before.
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
        seed: int | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        self.pruner = Pruner(None, (), include, exclude, classifier, name=self.name)
        check = self.pruner.check
        iterations = checked(
            self.name, criterion, density, iterations, scope,
            ticket=ticket, invert=invert, samples_per_class=samples_per_class,
        )  # fmt: skip
        time = moment(at)
        check("at", time and time.unit in ("ep", "ba"), "in ep or ba", at)
        assert time is not None
        check("reinitialize", not reinitialize or time.value == 0, "False where training has begun (at)", reinitialize)
        self.criterion, self.density, self.ticket, self.at = criterion, density, ticket, time
        self.counted([time])
        self.iterations, self.shuffle, self.reinitialize, self.invert = iterations, shuffle, reinitialize, invert
        self.scope: Scope = scope
        self.samples_per_class, self.seed, self.compute_loss_func = samples_per_class, seed, compute_loss_func
        self._digest: str | None = None  # of the ticket's masks

    def plan(self) -> dict[str, Any]:
        how = {"criterion": self.criterion if isinstance(self.criterion, str) else "a function", "at": str(self.at)}
        names = ("density", "iterations", "scope", "shuffle", "reinitialize", "invert", "samples_per_class", "seed")
        return {**super().plan(), **how, **{name: getattr(self, name) for name in names}, "ticket": self._digest}

    def attach(self, run: Run) -> None:
        super().attach(run)
        # What is wrong with a ticket must not come up after hours.
        self._digest = None if (masks := self._load()) is None else digest(masks)
        fits = self.masks or (run.progress().share(self.at) or 0) < 1
        self.pruner.check("at", fits, f"within the training, which lasts {run.state.max_steps}ba", str(self.at))

    def _load(self) -> Masks | None:
        return masks_of_ticket(self.name, self.ticket, self.weights)

    def is_due_before(self, run: Run) -> bool:
        progress = run.progress()
        return progress.reached(self.at) and not progress.is_at(self.at)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        assert self.run
        if self.masks or not self.run.progress().is_at(self.at):
            return
        run, seed = self.run, args.seed if self.seed is None else self.seed
        masks = prune_at_init(
            run.model,
            self.criterion,
            self.density,
            self._inputs(run, seed) if self.criterion == "synflow" else self._batches(run, seed),
            iterations=self.iterations,
            scope=self.scope,
            shuffle=self.shuffle,
            reinitialize=self.reinitialize,
            invert=self.invert,
            seed=seed,
            ticket=self._load(),
            weights=self.weights,
            forward=lambda copied, inputs: copied(**{str(copied.main_input_name): inputs}),
            batch_loss=self._loss,
            name=self.name,
        )
        self.pruner.prune(masks)

    def _loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        if self.compute_loss_func is None:
            outputs = model(**batch)
            return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.compute_loss_func(model(**inputs), batch.get("labels"), num_items_in_batch=None)

    def _inputs(self, run: Run, seed: int) -> Iterator[tuple[Any, None]]:
        """For synflow, which replaces them by ones."""
        yield next(self._batches(run, seed))[run.model.main_input_name], None

    def _batches(self, run: Run, seed: int) -> Iterator[dict[str, Any]]:
        """This rank's share of the samples, in batches as large as its own."""
        size = run.args.per_device_train_batch_size
        for batch in balanced_batches(run.loader, self.samples_per_class, seed, size, str(self.criterion)):
            yield {n: v.to(run.model.device) if isinstance(v, Tensor) else v for n, v in batch.items()}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_train_end(args, state, control, **parts)
        if not self.masks and ranks.rank() == 0:
            text = (
                f"{self.name}: the training has ended after {state.global_step}ba, before at={self.at}; it was dense."
            )
            warnings.warn(NoEffectWarning(text), stacklevel=2)
