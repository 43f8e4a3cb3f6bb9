"""The loss of a training step with what callbacks make of it: Lightning's cannot replace one by themselves."""

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..asked_loss import Loss
from .steps import StepTechnique, step_techniques


class LossTechnique(StepTechnique):
    """The base of a technique that changes the loss, where the training step asks for it by `training_loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = False  # whether this training has done so yet

    def around(self, loss_fn: Loss) -> Loss:
        """Returns the loss that takes the place of another one."""
        return loss_fn

    def own(self, pl_module: LightningModule, outputs: Any, targets: Any) -> Any:
        """Changes the outputs' "loss", which the model has computed; returns the targets that it is of, if of one."""
        return targets

    def beside(self, trainer: Trainer, pl_module: LightningModule, loss: Any, outputs: Any) -> Any:
        """Returns the loss with what the technique adds."""
        return loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.asked = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raises ValueError where the training step had a loss, but did not ask for it."""
        if not self.asked and (outputs or not pl_module.automatic_optimization):
            name = type(self).__name__
            raise ValueError(
                f"{name} acts where training_step asks for its loss, and that of {type(pl_module).__name__} does not: "
                "write loss = training_loss(self, F.cross_entropy, logits, targets) there, with training_loss from "
                f"accelerando.algorithms.lightning, or leave {name} out of the callbacks."
            )


@torch.compiler.disable
def training_loss(module: LightningModule, loss_fn: Loss | None, outputs: Any, targets: Any) -> Tensor:
    """The loss of a training step, with what MixUp, LabelSmoothing and Distillation make of it:

        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            return training_loss(self, F.cross_entropy, self.model(inputs), targets)

    Args:
        module: the LightningModule, whose Trainer has these callbacks.
        loss_fn: the plain loss, a function of outputs and targets; None where the outputs bring their "loss", as those
            of a Hugging Face model that was given labels do.
        outputs: logits, or a mapping that holds them as "logits".
        targets: what the training step was given.

    In evaluation, without such callbacks, and without a Trainer it is the plain loss. Of parts of a batch, in its
    order, each call takes the next. Raises ValueError and TypeError for losses that a technique cannot change.
    """
    trainer = _training(module)
    techniques = [each for each in step_techniques(trainer) if isinstance(each, LossTechnique)] if trainer else []
    if loss_fn is None:
        outputs, given = copy.copy(outputs), targets
        for technique in techniques:
            given = technique.own(module, outputs, given)
        loss = outputs["loss"]
    else:
        for technique in reversed(techniques):
            loss_fn = technique.around(loss_fn)
        loss = loss_fn(outputs, targets)
    for technique in techniques:
        technique.asked = True
        loss = technique.beside(trainer, module, loss, outputs)  # type: ignore[arg-type]
    return loss


def _training(module: LightningModule) -> Trainer | None:
    """The module's Trainer while it trains."""
    try:
        trainer = module.trainer
    except RuntimeError:  # there is none
        return None
    return trainer if isinstance(trainer, Trainer) and trainer.training else None
