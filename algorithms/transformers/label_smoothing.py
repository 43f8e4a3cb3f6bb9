"""LabelSmoothing in Hugging Face's Trainer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..label_smoothing import Smoother
from ..targets import IGNORED
from .host import Run
from .losses import OfLoss


class LabelSmoothing(OfLoss):
    """Smooths the targets that the loss of the training sees, and keeps whatever else is in the loss.

        Trainer(model, args, callbacks=[LabelSmoothing(0.1)], ...)

    With a loss of one's own: `compute_loss_func=smoothing.wrap(compute_loss_func)`, beside the callback `smoothing`.

    Args:
        smoothing, ignore_index: see `Smoother`, which also says what is smoothed in which loss.

    The Trainer's `label_smoothing_factor` replaces the model's loss, weights and a mixture of experts' term included;
    it must be 0.
    """

    first = True  # the plain loss must still be there to be found

    def __init__(self, smoothing: float = 0.1, ignore_index: int = IGNORED):
        super().__init__(ignore_index)
        self.smoothing = smoothing
        self._smoother = Smoother(smoothing, ignore_index)

    def begin(self, run: Run) -> None:
        super().begin(run)
        if self.smoothing:
            self._smoother = Smoother(self.smoothing, self.ignore_index)

    def changed(self, loss: Callable[[Any, Tensor | None], Tensor], outputs: Any, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("LabelSmoothing: the batches hold no 'labels'.")
        if "loss" in outputs and outputs["loss"] is not None:
            assert self.run
            return self._smoother.own_loss(self.run.model, outputs, labels)

        def of_logits(logits: Tensor, labels: Tensor) -> Tensor:
            return loss(type(outputs)({**outputs, "logits": logits}), labels)

        return self._smoother.loss(of_logits, outputs["logits"], labels)
