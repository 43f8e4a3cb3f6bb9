"""LabelSmoothing: targets shrunk towards the uniform distribution (Szegedy et al. 2015, arXiv 1512.00567, section 7).

Same names, arguments and meaning as in `composer.algorithms`. Here nothing is read back from the device after the
first batch, ignored targets get no smoothing either, the loss stays what it was but for the smoothing, and models that
compute it themselves, as Hugging Face's do in `forward`, are smoothed too.
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor

from .asked_loss import AskedLoss
from .bases import EventAlgorithm
from .batches import labels_key, target_in
from .host import composer_model
from .own_loss import OwnLoss, PlainLoss
from .targets import IGNORED, dense_targets, holds_classes, logits_in, soften
from .validation import check

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


class LabelSmoothing(EventAlgorithm):
    """Smooth the targets that the loss sees; metrics and other algorithms see the original ones.

    Args:
        smoothing: weight of the uniform distribution, in [0, 1]; 0 does nothing, and warns (NoEffectWarning).
        target_key: where the batch holds the target: a key, an index, or a pair of functions (get, set). For a batch
            that is a mapping the default means "labels".
        ignore_index: the label that the loss ignores.

    Classes go towards `1 / C`; targets of a binary cross entropy, one for each output, towards 1/2. What the loss has
    besides stays (weights of classes, the mean over labels that are not ignored, a mixture of experts' balancing term),
    or it is an error (ValueError) at the first batch, as is regression. It is tried on made-up outputs then, up to some
    dozen times.

    With a loss of Composer's own, such as `ComposerClassifier`'s default, dense targets make *the loss* read from the
    device twice; `torch.nn.functional.cross_entropy` as `loss_fn` takes them without.
    """

    steps: ClassVar = {
        Event.FIT_START: "_forget",
        Event.BEFORE_FORWARD: "_remember",
        Event.BEFORE_LOSS: "_smooth",
        Event.AFTER_LOSS: "_finish",
    }

    def __init__(
        self,
        smoothing: float = 0.1,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        ignore_index: int = IGNORED,
    ):
        check("LabelSmoothing", "smoothing", 0 <= smoothing <= 1, "in [0, 1]", smoothing)
        if smoothing == 0:
            warnings.warn(NoEffectWarning("LabelSmoothing: smoothing=0 leaves the labels as they are."), stacklevel=2)
        self.smoothing = smoothing
        self.target_key, self.ignore_index = target_key, ignore_index
        self._given: Tensor | None = None  # the batch's target, before anybody mixed it
        self._original: Tensor | None = None  # what is put back after the loss
        self._pending = False  # whether the loss is smoothed once it is there
        self._forget()

    def match(self, event: Event, state: State) -> bool:
        return super().match(event, state) and (self.smoothing > 0 or event == Event.INIT)

    def _forget(self, state: State | None = None, logger: Logger | None = None) -> None:
        self._asked = AskedLoss(self.target_key, self.ignore_index)
        self._own = OwnLoss("LabelSmoothing", self.ignore_index, REMEDY)

    def _remember(self, state: State, logger: Logger) -> None:
        self._given = target_in("LabelSmoothing", state.batch, self.target_key)

    def _smooth(self, state: State, logger: Logger) -> None:
        outputs: Any = state.outputs
        target, logits = target_in("LabelSmoothing", state.batch, self.target_key), logits_in("LabelSmoothing", outputs)
        self._original, self._pending = None, False
        if self._asked.uses_own(state, outputs, target):
            outputs["loss"] = self._smoothed_loss(state, outputs["loss"], logits, target)
        elif isinstance(outputs, Tensor) and (smoothed := self._smoothed_targets(state, logits, target)) is not None:
            self._original = target
            state.batch_set_item(labels_key(state.batch, self.target_key), smoothed)
        else:
            self._pending = True

    def _finish(self, state: State, logger: Logger) -> None:
        if self._original is not None:
            state.batch_set_item(labels_key(state.batch, self.target_key), self._original)
            self._original = None
        elif self._pending:
            target = target_in("LabelSmoothing", state.batch, self.target_key)
            if not isinstance(state.loss, Tensor):
                raise TypeError(f"LabelSmoothing needs one loss, but the model gives {type(state.loss).__name__}.")
            logits = logits_in("LabelSmoothing", state.outputs)
            state.loss = self._smoothed_loss(state, state.loss, logits, target)

    def _smoothed_targets(self, state: State, outputs: Tensor, target: Tensor) -> Tensor | None:
        """For a loss that takes them in the place of the batch's; None for one that does not."""
        given = target if self._given is None else self._given
        if holds_classes(outputs, given):
            if target.is_floating_point():  # MixUp has made rows of it
                return soften(target, self.smoothing, binary=False)
            scale, uniform = self._asked.scale_of_rows(state, outputs, target), self.smoothing / outputs.shape[1]
            if scale is None:
                return None
            on, off = scale * (1 - self.smoothing + uniform), scale * uniform
            return dense_targets(outputs, target, on, off, self.ignore_index)
        if target.numel() != outputs.numel():
            return None
        nature = self._asked.nature(state, outputs, target)
        if nature is None or not (target.is_floating_point() or self._asked.takes_floats(state, outputs, target)):
            raise ValueError(
                f"LabelSmoothing needs classes or probabilities, but to the loss the {target.dtype} targets of "
                f"{tuple(target.shape)} for outputs of {tuple(outputs.shape)} are neither, as in regression. {REMEDY}"
            )
        return soften(target, self.smoothing, nature == "binary")

    def _smoothed_loss(self, state: State, loss: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        plain: PlainLoss = self._own.find(composer_model(state), state.outputs, loss, logits, target)
        if plain.kind == "squared error":
            raise ValueError(
                "LabelSmoothing needs classes, but the model does regression (its loss is a squared error)."
            )
        return loss + plain.smoothing(logits, target, self.smoothing)
