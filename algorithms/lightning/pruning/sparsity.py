"""What all pruning has in common in a training by Lightning: masks that hold, and that travel with the checkpoint."""

from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import nn

from ...progress import Moment, moment
from ...pruning.masks import Masks
from ...pruning.pruner import Pruner
from ...pruning.size import compression_ratio
from ..counted import Counted, log_numbers
from ..host import callbacks_of

_AVERAGING: Any = (callbacks.StochasticWeightAveraging, getattr(callbacks, "WeightAveraging", ()))  # the latter: 2.6


def averaging(trainer: Trainer) -> list[Any]:
    """Returns Lightning's callbacks that average weights."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, _AVERAGING)]


def average_of(callback: Any) -> nn.Module | None:
    """Returns the module of averages, once there is one; one of torch's has names of its own, with `module.` before."""
    return callback._average_model


class Pruning(Counted):
    """Keeps masks, and what they prune at zero, whoever writes there: weights, gradients, optimizers' state, averages.

    It is zero after every update, in every evaluation and prediction, and in every checkpoint of Lightning's; but not
    what optimizers such as SOAP keep in bases of their own (see `mask_optimizers`). Gradients are masked before they
    are clipped. Where the module optimizes by itself (`automatic_optimization=False`), an update is a step of its one
    optimizer.

    Subclasses say when to prune and what: in `before_update` and `after_update`, by `prune`. `masks` holds the masks by
    the names of the parameters, and is empty before anything is pruned. The checkpoint holds one bit per weight; when a
    training goes on from it, ValueError is raised if masks are missing, do not fit the module, or do not fit its
    weights.
    """

    def __init__(self, pruner: Pruner):
        super().__init__()
        self.pruner = pruner

    @property
    def masks(self) -> Masks:
        return self.pruner.masks

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return self.pruner.weights

    def remaining(self) -> int:
        """Returns how many of the prunable weights are left."""
        return self.pruner.remaining()

    def share_left(self) -> float:
        """Returns the share of the prunable weights that is not zero, as they are."""
        return self.pruner.share_left()

    def plan(self) -> dict[str, Any]:
        """Returns what a training that goes on must have in common with the one before, as builtins by argument."""
        return self.pruner.plan()

    def counted_moment(self, argument: str, value: str, units: tuple[str, ...]) -> Moment:
        """Returns the moment that an argument gives; ValueError for one in units that are not counted here."""
        time = moment(value)
        expected = f"a time in {', '.join(units)}, which Lightning counts"
        self.pruner.check(argument, time and time.unit in units, expected, value)
        assert time
        return time

    def state_dict(self) -> dict[str, Any]:
        return {**self.pruner.state_dict(), "plan": self.plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state_dict)

    def measure(self, trainer: Trainer) -> None:
        """When the length of the training is known, and a checkpoint has been loaded."""

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Then, when `weights` and `masks` are known too."""

    def is_due_before(self, trainer: Trainer) -> bool:
        """Whether a training without any masks cannot be gone on with."""
        return False

    def finish(self, trainer: Trainer) -> None:
        """When training ends, as planned or before."""

    def prune(self, masks: Masks, trainer: Trainer) -> None:
        """From here on, `masks` hold."""
        self.pruner.prune(masks)
        self.pruned(trainer)

    def pruned(self, trainer: Trainer) -> None:
        """What is to be done when the pruner has new masks."""
        self._hold_averages(trainer)
        left = {"density": self.share_left(), "compression_ratio": compression_ratio(self.pruner.model)}
        log_numbers(trainer, "pruning/", left)

    def _hold_averages(self, trainer: Trainer) -> None:
        for callback in averaging(trainer):
            if average := average_of(callback):
                self.pruner.hold_in(dict(chain(average.named_parameters(), average.named_buffers())))

    def _hold(self, trainer: Trainer) -> None:
        if self.masks and self.weights:
            self.pruner.hold()
            self._hold_averages(trainer)

    def _hold_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.masks and self.weights:
            self.pruner.hold_weights()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises ValueError beside others who prune."""
        super().setup(trainer, pl_module, stage)
        name, kinds = type(self).__name__, (Pruning, callbacks.ModelPruning)
        if other := [type(c).__name__ for c in callbacks_of(trainer) if isinstance(c, kinds) and c is not self]:
            raise ValueError(f"{name} cannot share the masks with {', '.join(other)}; prune in one way.")
        if stage == "fit" and not trainer.global_step:
            self.pruner.clear()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.pruner.bind(pl_module, trainer.optimizers)
        self.measure(trainer)
        self.pruner.verify(self.plan())
        if not self.masks and trainer.global_step > 0 and self.is_due_before(trainer):
            name, now = type(self).__name__, trainer.global_step
            raise ValueError(
                f"{name}: the checkpoint, of update {now}, holds no masks, as it should; "
                "prune at that moment or later, or load a checkpoint of a training like this, or its weights alone."
            )
        if not pl_module.automatic_optimization:
            self.pruner.attach()
        self.begin(trainer, pl_module)
        self._hold(trainer)

    # Others may have written since the last hook: optimizers, callbacks, the module.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._hold_weights(trainer, pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.masks and not pl_module.automatic_optimization:  # the module may clip next
            self.pruner.hold_gradients()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.masks:
            self.pruner.hold_gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._counted:
            self._hold(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._hold(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_weights(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_weights(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_weights(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._hold(trainer)  # what the checkpoint holds is not copied yet

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._hold(trainer)  # stochastic weight averaging ends with its averages in the module
        self.pruner.detach()
        self.finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.pruner.detach()
