"""MixUp: training on convex combinations of pairs of examples (Zhang et al. 2017, arXiv 1710.09412).

Same names, arguments and meaning as in `composer.algorithms`. Here a batch is mixed once, whole, before it is split
into microbatches, so their number changes nothing; and every draw is a function of the run's seed, the batch's number
and the rank, so a resumed run mixes as the uninterrupted one does and nobody else's random numbers move.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.batch_helpers import batch_set
from torch import Tensor

from .host import composer_model, refuse_twins
from .label_smoothing import LabelSmoothing
from .targets import computes_own_loss, cross_entropy, dense_targets, unsupported


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


def mix_targets(logits: Tensor, target: Tensor, permuted: Tensor, mixing: float) -> Tensor:
    """`(1 - mixing) * target + mixing * permuted` as float32 rows, of the shape of `logits`, `(N, C, ...)`.

    Both hold class indices `(N, ...)`, of which negative ones count for nothing, or probabilities `(N, C, ...)`.
    """
    if target.shape == logits.shape:
        return target.float().lerp(permuted.float(), mixing)
    rows, index = dense_targets(logits, target, on=1 - mixing), permuted.long().unsqueeze(1)
    return rows.scatter_add_(1, index.clamp(min=0), torch.where(index < 0, 0.0, mixing))


def draw_mixing(alpha: float, generator: Any) -> float:
    """`min(z, 1 - z)` with `z ~ Beta(alpha, alpha)`: the original example weighs most, so accuracy has a meaning."""
    z = float(generator.beta(alpha, alpha)) if alpha > 0 else 0.0
    return min(z, 1 - z)


class MixUp(Algorithm):
    """Train on mixed examples with mixed targets.

    Args:
        alpha: parameter of the Beta distribution of the mixing, above 0; the larger, the more even the pairs.
        interpolate_loss: mix the losses of both targets, not the targets. The same for a loss that is linear in the
            target, as cross entropy is, and the only way for a loss that takes class indices alone.
        input_key, target_key: where the batch holds them: a key, an index, or a pair of functions (get, set).

    The mixing is common to all ranks; the pairs are drawn within each rank's batch. Splitting into microbatches must
    keep the order of the examples, as Composer's does.
    """

    def __init__(
        self,
        alpha: float = 0.2,
        interpolate_loss: bool = False,
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
    ):
        if not 0 < alpha < float("inf"):
            raise ValueError(f"MixUp: alpha must be above 0 and finite, got {alpha}.")
        self.alpha = alpha
        self.interpolate_loss = interpolate_loss
        self.input_key, self.target_key = input_key, target_key
        self.mixing = 0.0
        self._seed = 0
        # Of the whole batch; then of the microbatch at hand: what is mixed in, and what is put back after the loss.
        self._permuted_target = self._other_target = self._original_target = torch.empty(0)
        self._done = 0

    def __repr__(self) -> str:
        return f"MixUp(alpha={self.alpha}, interpolate_loss={self.interpolate_loss})"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed = state.get("seed", self._seed)

    def match(self, event: Event, state: State) -> bool:
        return event in _STEPS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        _STEPS[event](self, state)

    def _start(self, state: State) -> None:
        refuse_twins(self, state)
        if self.interpolate_loss and any(isinstance(other, LabelSmoothing) for other in state.algorithms):
            raise ValueError(
                "MixUp(interpolate_loss=True) adds the loss of targets that LabelSmoothing has not smoothed. Use "
                "interpolate_loss=False beside LabelSmoothing; for cross entropy over classes it is the same."
            )
        self._seed = state.rank_zero_seed

    def _mix(self, state: State) -> None:
        # Composer moves a batch to the device microbatch by microbatch, but partners come from all of it.
        state.batch = state.device.batch_to_device(state.batch)
        try:
            input, target = state.batch_get_item(self.input_key), state.batch_get_item(self.target_key)
        except KeyError as error:
            raise ValueError(
                f"MixUp finds nothing at {error} in a batch of {', '.join(map(str, state.batch))}: give input_key and "
                "target_key."
            ) from error
        for name, value in (("input", input), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"MixUp needs one tensor at {name}_key, but the batch holds {type(value).__name__} there."
                )
        if not input.is_floating_point() and input.dtype != torch.uint8:
            raise TypeError(f"MixUp mixes images or features, but input_key gives {input.dtype}, such as token ids.")
        step = state.timestamp.batch.value
        self.mixing = draw_mixing(self.alpha, np.random.default_rng((self._seed, step)))
        pairs = np.random.default_rng((self._seed, step, dist.get_global_rank())).permutation(len(input))
        mixed, self._permuted_target, _ = mixup_batch(input, target, self.mixing, indices=torch.from_numpy(pairs))
        state.batch_set_item(self.input_key, mixed)

    def _restart(self, state: State) -> None:
        # An optimizer with a closure (SAM) and a retry after running out of memory pass over the microbatches again.
        self._done = 0

    def _mix_target(self, state: State) -> None:
        target = self._original_target = state.batch_get_item(self.target_key)
        other = self._other_target = self._permuted_target[self._done : self._done + len(target)]
        self._done += len(target)
        if self.interpolate_loss:
            return
        outputs: Any = state.outputs
        logits = outputs["logits"] if computes_own_loss(outputs) else outputs
        if not isinstance(logits, Tensor):
            raise unsupported("MixUp", outputs)
        mixed = mix_targets(logits, target, other, self.mixing)
        state.batch_set_item(self.target_key, mixed)
        if computes_own_loss(outputs):
            outputs["loss"] = cross_entropy(logits, mixed)

    def _restore_target(self, state: State) -> None:
        if not self.interpolate_loss:
            state.batch_set_item(self.target_key, self._original_target)

    def _mix_loss(self, state: State) -> None:
        if not self.interpolate_loss:
            return
        loss, outputs = state.loss, state.outputs
        if not isinstance(loss, Tensor):
            raise TypeError(f"MixUp(interpolate_loss=True) needs one loss, but the model gives {type(loss).__name__}.")
        with get_precision_context(state.precision, state.precision_config):
            if computes_own_loss(outputs):
                other = cross_entropy(outputs["logits"], self._other_target)
            else:
                batch = batch_set(copy.copy(state.batch), self.target_key, self._other_target)
                other = composer_model(state).loss(outputs, batch)
        state.loss = (1 - self.mixing) * loss + self.mixing * other  # type: ignore[operator]


_STEPS = {
    Event.INIT: MixUp._start,
    Event.BATCH_START: MixUp._mix,
    Event.BEFORE_TRAIN_BATCH: MixUp._restart,
    Event.AFTER_FORWARD: MixUp._mix_target,
    Event.AFTER_LOSS: MixUp._mix_loss,  # before Distillation adds to it
    Event.BEFORE_BACKWARD: MixUp._restore_target,
}
