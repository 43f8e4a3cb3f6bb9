"""LabelSmoothing: targets shrunk towards the uniform distribution (Szegedy et al. 2015, arXiv 1512.00567, section 7).

Nothing is read back from the device after the first batch, ignored targets get no smoothing either, the loss stays
what it was but for the smoothing, and models that compute it themselves, as Hugging Face's do in `forward`, are
smoothed too.
"""

import warnings
from typing import Any, ClassVar

from torch import Tensor, nn

from .asked_loss import AskedLoss, Loss
from .own_loss import OwnLoss
from .shown import Shown
from .targets import IGNORED, dense_targets, holds_classes, logits_in, soften
from .validation import NoEffectWarning, check

REMEDY = "Smooth in the loss itself, as with torch's cross_entropy(label_smoothing=...)."


def smooth_labels(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore_index: int = IGNORED) -> Tensor:
    """`(1 - smoothing) * target + smoothing / C` in float32, of the shape of `logits`, `(N, C, ...)`.

    `target` holds class indices `(N, ...)`, `ignore_index` giving a row of zeros, or probabilities `(N, C, ...)`, of
    which a row of zeros stays one. With a single output, `(N,)` or `(N, 1, ...)`, targets are binary, of their own
    shape, and 1/2 takes the place of `1 / C`. Raises ValueError for other targets and for labels that are no classes.
    """
    if logits.ndim == 1 or logits.shape[1] == 1:
        return soften(target, smoothing, binary=True)
    uniform = smoothing / logits.shape[1]
    if target.shape == logits.shape:
        dense = target.float()
        return dense.mul(1 - smoothing).add_((dense != 0).any(1, keepdim=True), alpha=uniform)
    return dense_targets(logits, target, 1 - smoothing + uniform, uniform, ignore_index)


class Smoother(Shown):
    """Smooths the targets that a loss sees: `loss = smoother.loss(F.cross_entropy, model(inputs), targets)`.

    Args:
        smoothing: weight of the uniform distribution, in [0, 1]; 0 does nothing, and warns (NoEffectWarning).
        ignore_index: the label that the loss ignores.

    Classes go towards `1 / C`; targets of a binary cross entropy, one for each output, towards 1/2. What the loss has
    besides stays (weights of classes, the mean over labels that are not ignored, a mixture of experts' balancing term),
    or it is an error (ValueError) at the first batch, as is regression. It is tried on made-up outputs then, up to some
    dozen times.
    """

    no_effect: ClassVar[type[NoEffectWarning]] = NoEffectWarning

    def __init__(self, smoothing: float = 0.1, ignore_index: int = IGNORED) -> None:
        check("LabelSmoothing", "smoothing", 0 <= smoothing <= 1, "in [0, 1]", smoothing)
        if smoothing == 0:
            warnings.warn(self.no_effect("LabelSmoothing: smoothing=0 leaves the labels as they are."), stacklevel=2)
        self.smoothing, self.ignore_index = smoothing, ignore_index
        self.asked = AskedLoss(ignore_index)
        self._own = OwnLoss("LabelSmoothing", ignore_index, REMEDY)

    def loss(self, loss_fn: Loss, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of smoothed targets, where `loss_fn(outputs, targets)` is that of others.

        `outputs` are logits, or a mapping that holds them as "logits". Raises ValueError for a loss that is not known.
        """
        if self.smoothing == 0:
            return loss_fn(outputs, targets)
        smoothed = self.targets(loss_fn, outputs, targets)
        if smoothed is not None:
            return loss_fn(outputs, smoothed)
        return self.smoothed(loss_fn(outputs, targets), outputs, targets)

    def own_loss(self, model: nn.Module, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of smoothed targets, of a model whose outputs bring "loss" and "logits", as Hugging Face's do."""
        return self.smoothed(outputs["loss"], outputs, targets, model)

    def targets(self, loss_fn: Loss, outputs: Any, targets: Tensor, given: Tensor | None = None) -> Tensor | None:
        """Smoothed targets for a loss that takes them in the place of the batch's; None for one that does not.

        `given` are the targets as they were before somebody mixed them.
        """
        if logits_in("LabelSmoothing", outputs) is not outputs:
            return None
        if holds_classes(outputs, targets if given is None else given):
            if targets.is_floating_point():  # MixUp has made rows of it
                return soften(targets, self.smoothing, binary=False)
            if (scales := self.asked.scales_of_rows(loss_fn, outputs, targets)) is None:
                return None
            (scale,), uniform = scales, self.smoothing / outputs.shape[1]
            on, off = scale * (1 - self.smoothing + uniform), scale * uniform
            return dense_targets(outputs, targets, on, off, self.ignore_index)
        if targets.numel() != outputs.numel():
            return None
        nature = self.asked.nature(loss_fn, outputs, targets)
        if nature is None or not (targets.is_floating_point() or self.asked.takes_floats(loss_fn, outputs, targets)):
            raise ValueError(
                f"LabelSmoothing needs classes or probabilities, but to the loss the {targets.dtype} targets of "
                f"{tuple(targets.shape)} for outputs of {tuple(outputs.shape)} are neither, as in regression. {REMEDY}"
            )
        return soften(targets, self.smoothing, nature == "binary")

    def smoothed(self, loss: Any, outputs: Any, targets: Tensor, model: nn.Module | None = None) -> Tensor:
        """A loss that is there already, smoothed, where it is known which plain loss is in it; see `OwnLoss`."""
        if not isinstance(loss, Tensor):
            raise TypeError(f"LabelSmoothing needs one loss, but the model gives {type(loss).__name__}.")
        if self.smoothing == 0:
            return loss
        logits = logits_in("LabelSmoothing", outputs)
        plain = self._own.find(model, outputs, loss, logits, targets)
        if plain.kind == "squared error":
            raise ValueError(
                "LabelSmoothing needs classes, but the model does regression (its loss is a squared error)."
            )
        return loss + plain.smoothing(logits, targets, self.smoothing)
