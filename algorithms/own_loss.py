"""Which plain loss a number is that a model computed itself, and what other targets would make of it.

Hugging Face's models compute their loss in `forward`, where no target can be exchanged any more. What can be done is to
add the difference: `loss + plain(new targets) - plain(old targets)`. That is right where `plain` is in the loss, and
keeps whatever else does not depend on the labels, such as the balancing term of a mixture of experts. So it must be
known to be in there: its value and its gradient at the logits must be those of the loss, or it is an error. Values are
read at the first batch only; from then on the device itself compares them, at every batch, without being waited for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .targets import IGNORED, check_labels, dense_targets, insist, soften


@dataclass(frozen=True)
class PlainLoss:
    """A mean over positions that are not ignored, of logits and targets as Hugging Face's models have them.

    Args:
        kind: "squared error" and "binary cross entropy" are taken number by number, as many targets as logits.
        classes: which dimension of the logits holds the classes.
        shifted: position t predicts the label of t + 1.
        ignore_index: the label of what is not to be predicted.
    """

    kind: Literal["cross entropy", "binary cross entropy", "squared error"]
    classes: int = -1
    shifted: bool = False
    ignore_index: int = IGNORED

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss in float32; 0 where every position is ignored. `target` as it came, or as `soft` makes it."""
        rows, target = self._rows(logits, target)
        if self.kind == "binary cross entropy":
            return F.binary_cross_entropy_with_logits(rows, target.float())
        if self.kind == "squared error":
            return F.mse_loss(rows, target.float())
        if target.ndim == 2:
            return F.cross_entropy(rows, target.float())
        check_labels(target, rows.shape[1], self.ignore_index)
        summed = F.cross_entropy(rows, target.long(), ignore_index=self.ignore_index, reduction="sum")
        return summed / (target.long() != self.ignore_index).sum().clamp(min=1)

    def soft(self, logits: Tensor, target: Tensor) -> Tensor:
        """The same targets in numbers that can be mixed and smoothed: `self` is linear in them but for "squared error".

        Classes become rows of the shape of `logits`, the larger the more are ignored, as the mean is then over all.
        """
        if self.kind != "cross entropy" or target.is_floating_point():
            return target.float()
        label = self._aligned(logits, target)[1]
        share = label.numel() / (label.long() != self.ignore_index).sum().clamp(min=1)
        rows = logits.movedim(self.classes, 1)
        dense = dense_targets(rows, target.reshape(rows.shape[:1] + rows.shape[2:]), share, 0.0, self.ignore_index)
        return dense.movedim(1, self.classes)

    def smoothing(self, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """What smoothing the targets adds to the loss. It takes no softmax, since a target counts linearly."""
        rows, target = self._rows(logits, target, dtype=None)
        if self.kind == "binary cross entropy":
            target = target.float()
            return ((target - soften(target, smoothing, binary=True)) * rows).mean()
        uniform = rows.mean(1, dtype=torch.float32)
        if target.ndim == 2:
            target = target.float()
            return smoothing * ((target * rows).sum(1) - target.sum(1) * uniform).mean()
        label = target.long()
        valid = label != self.ignore_index
        chosen = rows.gather(1, label.masked_fill(~valid, 0).unsqueeze(1)).squeeze(1)
        return smoothing * ((chosen - uniform) * valid).sum() / valid.sum().clamp(min=1)

    def _rows(self, logits: Tensor, target: Tensor, dtype: torch.dtype | None = torch.float32) -> tuple[Tensor, Tensor]:
        """Logits `(R, C)` with targets `(R,)` or `(R, C)`; flat ones where these are taken number by number."""
        logits = logits if dtype is None else logits.to(dtype)
        if self.kind != "cross entropy":
            return logits.flatten(), target.flatten()
        dense = target.is_floating_point()
        logits, target = self._aligned(logits, target)
        logits = logits.movedim(self.classes, -1).flatten(0, -2)
        return logits, target.movedim(self.classes, -1).flatten(0, -2) if dense else target.flatten()

    def _aligned(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (logits[:, :-1], target[:, 1:]) if self.shifted else (logits, target)


def plain_losses(logits: Tensor, target: Tensor, ignore_index: int, shifted: bool = False) -> Iterator[PlainLoss]:
    """Those that the shapes allow; `shifted` tells which of two that look alike is the likelier."""
    if logits.numel() == target.numel():
        yield PlainLoss("binary cross entropy")
        yield PlainLoss("squared error")
    if logits.ndim < 2:
        return
    dense, second = target.is_floating_point(), logits.shape[:1] + logits.shape[2:]
    for classes, shape in ((-1, logits.shape[:-1]), (1, second)):
        fits = target.shape == (logits.shape if dense else shape) and logits.shape[classes] > 1
        if classes == 1 and logits.ndim == 2:
            continue
        if fits and classes == -1 and logits.ndim == 3:
            for shift in (shifted, not shifted):
                yield PlainLoss("cross entropy", shifted=shift, ignore_index=ignore_index)
        elif fits:
            yield PlainLoss("cross entropy", classes, ignore_index=ignore_index)
    if not dense and logits.ndim == 2 and target.ndim > 1 and target.numel() == len(logits):
        yield PlainLoss("cross entropy", ignore_index=ignore_index)


class OwnLoss:
    """Finds the plain loss that is in a model's own, once, and has the device compare the two from then on.

    Args:
        name: of the algorithm, for its errors.
        ignore_index: the label of what is not to be predicted.
        remedy: what to do where the loss is another one.
    """

    def __init__(self, name: str, ignore_index: int, remedy: str):
        self.name, self.ignore_index, self.remedy = name, ignore_index, remedy
        self._key: Any = None
        self._found: tuple[PlainLoss, bool] | None = None

    def find(self, model: nn.Module | None, outputs: Any, loss: Tensor, logits: Tensor, target: Tensor) -> PlainLoss:
        """The plain loss of `logits` and `target` that is in `loss`; of the `model` its config tells of further terms.

        Raises ValueError where there is none, or where the rest is no term that the outputs name: it might be anything,
        and need not leave the plain one as it is (weights of classes, another mean).
        """
        named = tuple(outputs) if isinstance(outputs, Mapping) else ()
        key = (named, loss.dtype, logits.ndim, logits.shape[-1], target.dtype, target.ndim)
        rest = _named_terms(model, outputs)
        if not torch.is_grad_enabled():  # a trial of the loss, on made-up outputs, of which nothing is to be learnt
            return self._choose(model, loss, logits, target, rest)[0]
        if key != self._key or self._found is None:
            self._key = key
            plain, named_too, certain = self._choose(model, loss, logits, target, rest)
            self._found = (plain, named_too) if certain else None
            return plain
        plain, named_too = self._found
        with torch.no_grad():
            value = plain(logits, target) + (rest if named_too else 0.0)
            # A loss that is not finite, as of float16 now and then, says nothing.
            near = ((loss - value).abs() <= 8 * _tolerance(loss) * (1 + value.abs())) | ~loss.isfinite()
        insist(
            near.all(),
            f"{self.name}: the model's own loss is no longer the plain {plain.kind} of its logits and labels",
            lambda: f": {float(loss.detach()):.4g} and {float(value):.4g}. {self.remedy}",
        )
        return plain

    def _choose(
        self, model: nn.Module | None, loss: Tensor, logits: Tensor, target: Tensor, rest: Tensor | float
    ) -> tuple[PlainLoss, bool, bool]:
        """The plain loss, whether the named terms come on top of it, and whether another batch need not be asked."""
        if loss.ndim:
            raise ValueError(f"{self.name} needs a model's own loss to be one number, got {tuple(loss.shape)}.")
        gradient = _gradient(loss, logits, keep=True)
        loss, seen, fitting = loss.detach(), [], []
        shifted = bool(getattr(model, "shift_labels", False))
        for plain in plain_losses(logits, target, self.ignore_index, shifted):
            copy = logits.detach().requires_grad_()
            value = plain(copy, target)
            steepness, value = _gradient(value, copy), value.detach()
            close = [
                extra
                for extra in ((True, False) if torch.is_tensor(rest) else (False,))
                if not loss.isfinite()
                or abs(float(loss) - float(value + rest * extra)) <= _tolerance(loss) * (1 + abs(float(value)))
            ]
            alike = gradient is None or _alike(gradient, steepness)
            seen.append(
                f"{plain.kind}{' of shifted labels' * plain.shifted} {float(value):.4g}"
                f"{' with another gradient' * (not alike)}"
            )
            if close and alike:
                fitting.append((plain, close[0]))
        if not fitting:
            shapes = f"logits of {tuple(logits.shape)} and labels of {tuple(target.shape)}"
            raise ValueError(
                f"{self.name}: the model's own loss, {float(loss):.4g}, is none that {self.name} knows for {shapes}: "
                f"{', '.join(seen) or 'none has such shapes'}. What it has besides (weights of classes, another mean, "
                f"a term that its outputs do not name) would be lost. {self.remedy}"
            )
        # All-zero logits, as of a head that starts at zero, or a batch without labels tell too little.
        certain = len(fitting) == 1 and bool(loss.isfinite()) and (gradient is None or bool(gradient.any()))
        return *fitting[0], certain


def _named_terms(model: nn.Module | None, outputs: Any) -> Tensor | float:
    """What a mixture of experts adds to its loss: each term that its outputs name, by its coefficient in the config."""
    modules = (model, *model.children()) if model is not None else ()
    config: Any = next((each.config for each in modules if hasattr(each, "config")), None)
    if not isinstance(outputs, Mapping) or not hasattr(config, "get_text_config"):
        return 0.0
    settings = config.to_dict() | config.get_text_config().to_dict()
    rest: Tensor | float = 0.0
    for ending in ("aux_loss", "z_loss"):
        terms = [value.detach() for name, value in outputs.items() if name.endswith(ending) and torch.is_tensor(value)]
        weights = [value for name, value in settings.items() if name.endswith(f"{ending}_coef")]
        if terms and weights:
            rest = rest + weights[0] * sum(terms)
    return rest


def _gradient(loss: Tensor, logits: Tensor, keep: bool = False) -> Tensor | None:
    """At the logits; None where the graph does not tell, as behind `torch.compile`."""
    if not (loss.requires_grad and logits.requires_grad):
        return None
    return torch.autograd.grad(loss, logits, retain_graph=keep, allow_unused=True)[0]


def _alike(a: Tensor, b: Tensor | None) -> bool:
    if b is None or not a.isfinite().all():
        return True
    limit = 2 * max(torch.finfo(a.dtype).eps, 5e-4)
    return bool((a - b).abs().max() <= limit * b.abs().max())


def _tolerance(loss: Tensor) -> float:
    return 2 * max(torch.finfo(loss.dtype).eps, 5e-5)
