"""LabelSmoothing: targets shrunk towards the uniform distribution (Szegedy et al. 2015, arXiv 1512.00567, section 7).

Same names, arguments and meaning as in `composer.algorithms`. Here nothing is read back from the device, ignored
targets (negative indices) get no smoothing either, and Hugging Face models, which compute their loss in `forward`, are
smoothed too.
"""

from collections.abc import Callable
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from .host import composer_model, refuse_twins
from .targets import computes_own_loss, cross_entropy, dense_targets, labels_key, unsupported


def smooth_labels(logits: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """`(1 - smoothing) * target + smoothing / C` in float32, of the shape of `logits`, `(N, C, ...)`.

    `target` holds class indices `(N, ...)`, a negative one giving a row of zeros, or probabilities `(N, C, ...)`.
    """
    uniform = smoothing / logits.shape[1]
    if target.shape == logits.shape:
        return target.float().mul(1 - smoothing).add_(uniform)
    return dense_targets(logits, target, on=1 - smoothing + uniform, off=uniform)


class LabelSmoothing(Algorithm):
    """Smooth the targets that the loss sees; metrics and other algorithms see the original ones.

    Args:
        smoothing: weight of the uniform distribution, in (0, 1].
        target_key: where the batch holds the target: a key, an index, or a pair of functions (get, set). For a batch
            that is a mapping the default means "labels".

    With a loss of Composer's own, such as `ComposerClassifier`'s default, dense targets make *the loss* read from the
    device twice; `torch.nn.functional.cross_entropy` as `loss_fn` takes them without. Where targets are ignored,
    though, Composer's is the one that leaves them out of its mean; torch's counts them once targets are dense.
    """

    def __init__(self, smoothing: float = 0.1, target_key: str | int | tuple[Callable, Callable] | Any = 1):
        if not 0 < smoothing <= 1:
            raise ValueError(f"LabelSmoothing: smoothing must lie in (0, 1], got {smoothing}.")
        self.smoothing = smoothing
        self.target_key = target_key
        self._original: Tensor | None = None

    def __repr__(self) -> str:
        return f"LabelSmoothing(smoothing={self.smoothing})"

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.BEFORE_LOSS, Event.AFTER_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            refuse_twins(self, state)
            return
        key = labels_key(state.batch, self.target_key)
        if event == Event.AFTER_LOSS:
            if self._original is not None:
                state.batch_set_item(key, self._original)
                self._original = None
            return
        target, outputs = state.batch_get_item(key), state.outputs
        if isinstance(outputs, Tensor):
            self._original = target
            state.batch_set_item(key, smooth_labels(outputs, target, self.smoothing))
        elif computes_own_loss(outputs):
            outputs["loss"] = _smoothed_loss(composer_model(state), outputs["logits"], target, self.smoothing)
        else:
            raise unsupported("LabelSmoothing", outputs)


def _smoothed_loss(model: Module, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits.float(), smooth_labels(logits, target, smoothing))
    if problem == "regression":
        raise ValueError("LabelSmoothing needs classes, but the model does regression (its config has num_labels=1).")
    if logits.ndim > 3:
        raise ValueError(f"LabelSmoothing expects the classes last in a model's own logits, got {tuple(logits.shape)}.")
    if getattr(model, "shift_labels", False):
        logits, target = logits[:, :-1], target[:, 1:]
    return cross_entropy(logits, target, smoothing)
