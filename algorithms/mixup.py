"""MixUp: training on convex combinations of pairs of examples (Zhang et al. 2017, arXiv 1710.09412).

A batch is mixed once, whole, before it is split into microbatches, so their number changes nothing; and every draw is
a function of the run's seed, the step and the rank, so a resumed run mixes as the uninterrupted one does and nobody
else's random numbers move.
"""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .asked_loss import AskedLoss, Loss
from .generators import numpy_generator
from .own_loss import OwnLoss
from .ranks import rank
from .shown import Shown
from .targets import IGNORED, check_shape, holds_classes, indices_of, logits_in
from .validation import NoEffectWarning, check


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
    scales: Sequence[float | Tensor] = (1.0, 1.0),
) -> Tensor:
    """`(1 - mixing) * target + mixing * permuted` as float32 rows, of the shape of `logits`, `(N, C, ...)`.

    Both hold class indices `(N, ...)`, of which `ignore_index` counts for nothing; `scales` weighs the two.
    """
    check_shape(logits, target)
    index, ignored = indices_of(torch.stack([target, permuted], 1), logits.shape[1], ignore_index)
    weights = ((1 - mixing) * scales[0], mixing * scales[1])
    one, two = (torch.where(each, 0.0, weight) for each, weight in zip(ignored.unbind(1), weights, strict=True))
    rows = torch.zeros(logits.shape, device=logits.device)
    return rows.scatter_add_(1, index, torch.stack([one, two], 1).to(rows.dtype))


def draw_mixing(alpha: float, generator: Any) -> float:
    """`min(z, 1 - z)` with `z ~ Beta(alpha, alpha)`: the original example weighs most, so accuracy has a meaning."""
    z = float(generator.beta(alpha, alpha)) if alpha > 0 else 0.0
    return min(z, 1 - z)


def check_inputs(inputs: Tensor, where: str = "inputs are") -> None:
    """Raise TypeError for what is no tensor of floating point numbers or bytes, such as token ids."""
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        raise TypeError(f"MixUp changes images or features, but {where} {inputs.dtype}, such as token ids.")


class Mixer(Shown):
    """Mixes the batches of a training loop, and what the loss makes of their targets.

        inputs = mixer(inputs, targets, step)
        loss = mixer.loss(F.cross_entropy, model(inputs), targets)

    Args:
        alpha: parameter of the Beta distribution of the mixing, not below 0; the larger, the more even the pairs. 0
            mixes nothing, and warns (NoEffectWarning).
        seed: of the draws. The mixing is common to all ranks, the pairs are drawn within each rank's batch.
        interpolate_loss: mix the losses of both targets, not the targets. The same for a loss that is linear in the
            target, as cross entropy is. A loss that takes class indices alone is mixed in any case.
        ignore_index: the label that the loss ignores.

    What the loss has besides stays, or it is an error (ValueError) at the first batch: classes are exchanged for rows
    of probabilities where the loss, tried on made-up outputs, is the same for both; of a loss that the model computes
    itself the part is changed that is known.

    With a `Smoother`: `mixer.loss(partial(smoother.loss, F.cross_entropy), outputs, targets)`.
    """

    remedy: ClassVar[str] = "Compute it outside of the model, and use the mixer's `loss`."
    no_effect: ClassVar[type[NoEffectWarning]] = NoEffectWarning

    def __init__(
        self, alpha: float = 0.2, seed: int = 0, interpolate_loss: bool = False, ignore_index: int = IGNORED
    ) -> None:
        check("MixUp", "alpha", 0 <= alpha < float("inf"), "finite and not below 0", alpha)
        if alpha == 0:
            warnings.warn(self.no_effect("MixUp: alpha=0 mixes nothing."), stacklevel=2)
        self.alpha, self.seed = alpha, seed
        self.interpolate_loss, self.ignore_index = interpolate_loss, ignore_index
        self.mixing = 0.0  # the other examples' weight in this batch
        self.asked = AskedLoss(ignore_index)
        self._own = OwnLoss("MixUp", ignore_index, self.remedy)
        self._permuted, self._done = torch.empty(0), 0

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]

    def __call__(self, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        """The mixed inputs `(N, ...)` of a whole batch, in float32 where they are bytes; `step` updates were made.

        What is mixed into the targets is kept for the loss. Raises TypeError for inputs that cannot be mixed.
        """
        check_inputs(inputs)
        if self.alpha == 0:
            return inputs
        self.mixing = draw_mixing(self.alpha, numpy_generator(self.seed, step))
        pairs = torch.from_numpy(numpy_generator(self.seed, step, rank()).permutation(len(inputs)))
        mixed, self._permuted, _ = mixup_batch(inputs, targets, self.mixing, indices=pairs)
        self.restart()
        return mixed

    @property
    def begun(self) -> bool:
        """Whether a loss of this batch has been mixed, or of a part of it."""
        return self._done > 0

    def restart(self) -> None:
        """Another pass over the same batch, as an optimizer with a closure makes."""
        self._done = 0

    def next(self, targets: Tensor) -> Tensor:
        """What is mixed into `targets`, those of the batch's next microbatch, or of all of it."""
        left = len(self._permuted) - self._done
        if len(targets) > left:
            raise ValueError(
                f"MixUp: a loss of {len(targets)} targets, where {left} of the mixed batch are left: mix each batch "
                "before its loss, and call `restart` before another pass over it."
            )
        self._done += len(targets)
        return self._permuted[self._done - len(targets) : self._done]

    def loss(self, loss_fn: Loss, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of mixed targets, where `loss_fn(outputs, targets)` is that of others.

        Of several microbatches of a batch, each call takes the next. `outputs` are logits, or a mapping that holds them
        as "logits". Raises ValueError for a loss that the model has computed, see `own_loss`.
        """
        if self.alpha == 0:
            return loss_fn(outputs, targets)
        if self.asked.uses_own(loss_fn, outputs, targets):
            raise ValueError("MixUp: the loss is one that the model has computed itself: use the mixer's `own_loss`.")
        other = self.next(targets)
        mixed = self.targets(loss_fn, outputs, targets, other)
        if mixed is not None:
            return loss_fn(outputs, mixed)
        return self.mix_losses(loss_fn(outputs, targets), loss_fn(outputs, other))

    def own_loss(self, model: nn.Module, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of mixed targets, of a model whose outputs bring "loss" and "logits", as Hugging Face's do."""
        return self.own_loss_and_targets(model, outputs, targets)[0]

    def own_loss_and_targets(self, model: nn.Module, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """That loss, and the mixed targets that it is of; None where losses are mixed.

        With a `Smoother`: `outputs["loss"], mixed = mixer.own_loss_and_targets(model, outputs, targets)`, and then
        `smoother.own_loss(model, outputs, mixed)`.
        """
        logits, loss = outputs["logits"], outputs["loss"]
        if self.alpha == 0:
            return loss, targets
        other = self.next(targets)
        plain = self._own.find(model, outputs, loss, logits, targets)
        if self.interpolate_loss:
            return loss + self.mixing * (plain(logits, other) - plain(logits, targets)), None
        mixed = plain.soft(logits, targets).lerp(plain.soft(logits, other), self.mixing)
        return loss + plain(logits, mixed) - plain(logits, targets), mixed

    def targets(self, loss_fn: Loss, outputs: Any, targets: Tensor, other: Tensor) -> Tensor | None:
        """Targets for the loss to take in the place of the batch's; None where losses are to be mixed."""
        if self.interpolate_loss:
            return None
        logits = logits_in("MixUp", outputs)
        if not targets.is_floating_point() and outputs is logits and holds_classes(logits, targets):
            scales = self.asked.scales_of_rows(loss_fn, logits, targets, other)
            if scales is None:
                return None
            return mix_targets(logits, targets, other, self.mixing, self.ignore_index, scales)
        alike = targets.is_floating_point() or (
            targets.numel() == logits.numel() and self.asked.takes_floats(loss_fn, logits, targets)
        )
        return targets.float().lerp(other.float(), self.mixing) if alike else None

    def mix_losses(self, loss: Any, other: Any) -> Tensor:
        """Of the losses of both targets the mixed one."""
        if not isinstance(loss, Tensor):
            raise TypeError(f"MixUp mixes one loss, of class indices, but the model gives {type(loss).__name__}.")
        return (1 - self.mixing) * loss + self.mixing * other
