"""MixUp: training on convex combinations of pairs of examples (Zhang et al. 2017, arXiv 1710.09412).

Same names, arguments and meaning as in `composer.algorithms`. Here a batch is mixed once, whole, before it is split
into microbatches, so their number changes nothing; and every draw is a function of the run's seed, the batch's number
and the rank, so a resumed run mixes as the uninterrupted one does and nobody else's random numbers move.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.batch_helpers import batch_set
from torch import Tensor

from .asked_loss import AskedLoss
from .bases import RandomAlgorithm
from .batches import labels_key, target_in, whole_input
from .host import composer_model
from .label_smoothing import REMEDY as LABELS_REMEDY
from .label_smoothing import LabelSmoothing
from .own_loss import OwnLoss, PlainLoss
from .targets import IGNORED, check_labels, dense_targets, holds_classes, logits_in
from .validation import check

REMEDY = "Compute it in the `loss` method of a ComposerModel, and use interpolate_loss=True."


def mixup_batch(
    input: Tensor,
    target: Tensor,
    mixing: float | None = None,
    alpha: float = 0.2,
    indices: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Mix every example with another one of the batch: `(1 - mixing) * input + mixing * input[indices]`.

    Args:
        input: `(N, ...)`; integers (such as uint8 images) come back as float32.
        target: `(N, ...)`.
        mixing: weight of the other example, in [0, 1]; by default `min(z, 1 - z)` with `z ~ Beta(alpha, alpha)`.
        alpha: parameter of that distribution; 0 mixes nothing.
        indices: `(N,)`, the other example of each; a random permutation by default.

    Returns the mixed input, `target[indices]` and `mixing`. What is not given is drawn from NumPy's global generator.
    """
    if mixing is None:
        mixing = draw_mixing(alpha, np.random)
    if indices is None:
        indices = torch.from_numpy(np.random.permutation(len(input)))
    indices = indices.to(input.device, non_blocking=True)  # type: ignore[union-attr]
    original = input if input.is_floating_point() or input.is_complex() else input.float()
    return original[indices].lerp_(original, 1 - mixing), target[indices], mixing


def mix_targets(
    logits: Tensor,
    target: Tensor,
    permuted: Tensor,
    mixing: float,
    ignore_index: int = IGNORED,
    scales: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
) -> Tensor:
    """`(1 - mixing) * target + mixing * permuted` as float32 rows, of the shape of `logits`, `(N, C, ...)`.

    Both hold class indices `(N, ...)`, of which `ignore_index` counts for nothing; `scales` weighs the two.
    """
    rows = dense_targets(logits, target, (1 - mixing) * scales[0], 0.0, ignore_index)
    check_labels(permuted, logits.shape[1], ignore_index)
    index = permuted.long().unsqueeze(1)
    ignored = index == ignore_index
    return rows.scatter_add_(1, index.masked_fill(ignored, 0), torch.where(ignored, 0.0, mixing * scales[1]))


def draw_mixing(alpha: float, generator: Any) -> float:
    """`min(z, 1 - z)` with `z ~ Beta(alpha, alpha)`: the original example weighs most, so accuracy has a meaning."""
    z = float(generator.beta(alpha, alpha)) if alpha > 0 else 0.0
    return min(z, 1 - z)


class MixUp(RandomAlgorithm):
    """Train on mixed examples with mixed targets.

    Args:
        alpha: parameter of the Beta distribution of the mixing, not below 0; the larger, the more even the pairs. 0
            mixes nothing, and warns (NoEffectWarning).
        interpolate_loss: mix the losses of both targets, not the targets. The same for a loss that is linear in the
            target, as cross entropy is. A loss that takes class indices alone is mixed in any case.
        input_key, target_key: where the batch holds them: a key, an index, or a pair of functions (get, set); for a
            batch that is a mapping the default target_key means "labels".
        ignore_index: the label that the loss ignores.

    What the loss has besides stays, or it is an error (ValueError) at the first batch: classes are exchanged for rows
    of probabilities where the loss, tried on made-up outputs, is the same for both; of a loss that the model computes
    itself the part is changed that is known.

    The mixing is common to all ranks; the pairs are drawn within each rank's batch. Splitting into microbatches must
    keep the order of the examples, as Composer's does.
    """

    steps: ClassVar = {
        Event.INIT: "_start",
        Event.FIT_START: "_forget",
        Event.BATCH_START: "_mix",
        Event.BEFORE_TRAIN_BATCH: "_restart",
        Event.AFTER_FORWARD: "_mix_target",
        Event.AFTER_LOSS: "_mix_loss",  # before Distillation adds to it
        Event.BEFORE_BACKWARD: "_restore_target",
    }

    def __init__(
        self,
        alpha: float = 0.2,
        interpolate_loss: bool = False,
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        ignore_index: int = IGNORED,
    ):
        check("MixUp", "alpha", 0 <= alpha < float("inf"), "finite and not below 0", alpha)
        if alpha == 0:
            warnings.warn(NoEffectWarning("MixUp: alpha=0 mixes nothing."), stacklevel=2)
        self.alpha = alpha
        self.interpolate_loss = interpolate_loss
        self.input_key, self.target_key, self.ignore_index = input_key, target_key, ignore_index
        self.mixing = 0.0
        # Of the whole batch; then of the microbatch at hand: what is mixed in, and what is put back after the loss.
        self._permuted_target = self._other_target = self._original_target = torch.empty(0)
        self._done = 0
        self._by_loss = False  # whether the loss is mixed once it is there
        self._forget()

    def match(self, event: Event, state: State) -> bool:
        return super().match(event, state) and (self.alpha > 0 or event == Event.INIT)

    def _start(self, state: State, logger: Logger) -> None:
        if self.interpolate_loss and any(isinstance(other, LabelSmoothing) for other in state.algorithms):
            raise ValueError(
                "MixUp(interpolate_loss=True) adds the loss of targets that LabelSmoothing has not smoothed. Use "
                "interpolate_loss=False beside LabelSmoothing; for cross entropy it is the same."
            )

    def _forget(self, state: State | None = None, logger: Logger | None = None) -> None:
        self._asked = AskedLoss(self.target_key, self.ignore_index)
        self._own = OwnLoss("MixUp", self.ignore_index, REMEDY)

    def _mix(self, state: State, logger: Logger) -> None:
        input = whole_input("MixUp", state, self.input_key)
        target = target_in("MixUp", state.batch, self.target_key)
        self.mixing = draw_mixing(self.alpha, self.generator(state))
        pairs = self.generator(state, dist.get_global_rank()).permutation(len(input))
        mixed, self._permuted_target, _ = mixup_batch(input, target, self.mixing, indices=torch.from_numpy(pairs))
        state.batch_set_item(self.input_key, mixed)

    def _restart(self, state: State, logger: Logger) -> None:
        # An optimizer with a closure (SAM) and a retry after running out of memory pass over the microbatches again.
        self._done = 0

    def _mix_target(self, state: State, logger: Logger) -> None:
        target = self._original_target = target_in("MixUp", state.batch, self.target_key)
        other = self._other_target = self._permuted_target[self._done : self._done + len(target)]
        self._done += len(target)
        outputs: Any = state.outputs
        own = self._asked.uses_own(state, outputs, target)
        if own:
            mixed = self._mix_own_loss(outputs, self._plain(state, target), target, other)
        elif self.interpolate_loss:
            mixed = None
        else:
            mixed = self._mixed(state, logits_in("MixUp", outputs), target, other)
        self._by_loss = mixed is None and not own
        if mixed is not None:
            state.batch_set_item(labels_key(state.batch, self.target_key), mixed)
        elif any(isinstance(each, LabelSmoothing) for each in state.algorithms):
            raise ValueError(
                f"MixUp beside LabelSmoothing: the loss does not take rows of probabilities in the place of the "
                f"{target.dtype} targets of {tuple(target.shape)}. {LABELS_REMEDY}"
            )

    def _mix_own_loss(self, outputs: Any, plain: PlainLoss, target: Tensor, other: Tensor) -> Tensor | None:
        logits, loss = outputs["logits"], outputs["loss"]
        if self.interpolate_loss:
            outputs["loss"] = loss + self.mixing * (plain(logits, other) - plain(logits, target))
            return None
        mixed = plain.soft(logits, target).lerp(plain.soft(logits, other), self.mixing)
        outputs["loss"] = loss + plain(logits, mixed) - plain(logits, target)
        return mixed

    def _plain(self, state: State, target: Tensor) -> PlainLoss:
        outputs: Any = state.outputs
        return self._own.find(composer_model(state), outputs, outputs["loss"], outputs["logits"], target)

    def _mixed(self, state: State, logits: Tensor, target: Tensor, other: Tensor) -> Tensor | None:
        """Targets for a loss that takes them in the place of the batch's; None for one that does not."""
        if not target.is_floating_point() and state.outputs is logits and holds_classes(logits, target):
            one, two = (self._asked.scale_of_rows(state, logits, each) for each in (target, other))
            if one is None or two is None:
                return None
            return mix_targets(logits, target, other, self.mixing, self.ignore_index, (one, two))
        alike = target.is_floating_point() or (
            target.numel() == logits.numel() and self._asked.takes_floats(state, logits, target)
        )
        return target.float().lerp(other.float(), self.mixing) if alike else None

    def _mix_loss(self, state: State, logger: Logger) -> None:
        loss, outputs = state.loss, state.outputs
        if not self._by_loss:
            return
        if not isinstance(loss, Tensor):
            raise TypeError(f"MixUp mixes one loss, of class indices, but the model gives {type(loss).__name__}.")
        key = labels_key(state.batch, self.target_key)
        with get_precision_context(state.precision, state.precision_config):
            other: Any = composer_model(state).loss(outputs, batch_set(copy.copy(state.batch), key, self._other_target))
        state.loss = (1 - self.mixing) * loss + self.mixing * other

    def _restore_target(self, state: State, logger: Logger) -> None:
        if not self._by_loss:
            state.batch_set_item(labels_key(state.batch, self.target_key), self._original_target)
