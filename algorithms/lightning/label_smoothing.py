"""LabelSmoothing in a training by Lightning's Trainer."""

from functools import partial
from typing import Any

from lightning.pytorch import LightningModule

from ..asked_loss import Loss
from ..label_smoothing import Smoother
from ..targets import IGNORED
from .losses import LossTechnique
from .steps import Place


class LabelSmoothing(LossTechnique):
    """Smooth the targets that the loss sees, for which the training step asks by `training_loss`.

    `smoothing` and `ignore_index` are those of `Smoother`, which also says what is smoothed in which loss.
    """

    place = Place.SMOOTHS

    def __init__(self, smoothing: float = 0.1, ignore_index: int = IGNORED):
        super().__init__()
        self.smoother = Smoother(smoothing, ignore_index)

    def around(self, loss_fn: Loss) -> Loss:
        return partial(self.smoother.loss, loss_fn)

    def own(self, pl_module: LightningModule, outputs: Any, targets: Any) -> Any:
        if targets is None:
            raise ValueError(
                "MixUp(interpolate_loss=True) mixes the model's own loss, of targets that LabelSmoothing cannot smooth "
                "any more. Use interpolate_loss=False beside LabelSmoothing; for cross entropy it is the same."
            )
        outputs["loss"] = self.smoother.own_loss(pl_module, outputs, targets)
        return targets
