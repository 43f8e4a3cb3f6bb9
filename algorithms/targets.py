"""Class targets, without reading from the device what they hold."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

IGNORED = -100  # the label of what is not to be predicted, in torch and in Hugging Face models


def insist(condition: Tensor, sentence: str, found: Callable[[], str] = lambda: "") -> None:
    """Raise ValueError with the sentence, and what was found, where `condition` does not hold.

    Nothing is read from a GPU: there a device-side assertion with the sentence, of at most 254 characters, ends the
    process.
    """
    try:
        torch._assert_async(condition, f"{sentence}.")  # type: ignore[attr-defined]
    except RuntimeError:  # from the CPU, or from a device that has no such assertion
        if not condition:
            raise ValueError(f"{sentence}{found()}.") from None


def check_labels(target: Tensor, classes: int, ignore_index: int = IGNORED) -> None:
    """Raise ValueError where an integer label is neither in `[0, classes)` nor `ignore_index`; see `insist`."""
    indices_of(target, classes, ignore_index)


def indices_of(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels as int64, with 0 in the place of `ignore_index`, and where that stands. Raises what `check_labels` does.

    Of a small network's step each operation here is a share: there are as few as can be.
    """
    label = target.long()  # torch compares bytes with -100 as if it were 156
    ignored = label == ignore_index
    index = label.masked_fill(ignored, 0)
    fits = index.clamp(0, classes - 1) == index
    expected = f"Labels must lie in [0, {classes}) or be ignore_index={ignore_index}"
    insist(fits.all(), expected, lambda: f", got {', '.join(map(str, label[~fits].unique()[:5].tolist()))}")
    return index, ignored


def dense_targets(
    logits: Tensor, target: Tensor, on: float | Tensor = 1.0, off: float | Tensor = 0.0, ignore_index: int = IGNORED
) -> Tensor:
    """Index targets as one float32 row per example: `on` at the class, `off` elsewhere.

    `logits` is `(N, C, ...)`, `target` is `(N, ...)`; `ignore_index` gives a row of zeros. Targets that are dense
    already, of the shape of `logits`, come back as float32, unchanged otherwise.

    Raises ValueError where `target` is neither, where its indices are not integers, or lie outside `[0, C)`; see
    `check_labels`.
    """
    if target.shape == logits.shape:
        return target.float()
    check_shape(logits, target)
    index, ignored = indices_of(target.unsqueeze(1), logits.shape[1], ignore_index)
    rows = torch.where(ignored, 0.0, off).expand(logits.shape).contiguous()
    return rows.scatter_(1, index, torch.where(ignored, 0.0, on))


def check_shape(logits: Tensor, target: Tensor) -> None:
    """Raise ValueError unless `target` is `(N, ...)`, of integers, for logits `(N, C, ...)`."""
    if target.shape != logits.shape[:1] + logits.shape[2:] or target.is_floating_point():
        raise ValueError(
            f"Targets must be integer classes of shape {tuple(logits.shape[:1] + logits.shape[2:])} or probabilities "
            f"of shape {tuple(logits.shape)}, as the outputs are; got {target.dtype} of shape {tuple(target.shape)}."
        )


def holds_classes(logits: Tensor, target: Tensor) -> bool:
    """Whether `target` is `(N, ...)`, class indices, for logits `(N, C, ...)` of several classes."""
    several = logits.ndim > 1 and logits.shape[1] > 1
    return several and not target.is_floating_point() and target.shape == logits.shape[:1] + logits.shape[2:]


def soften(target: Tensor, smoothing: float, binary: bool) -> Tensor:
    """`target` shrunk towards what says nothing, in float32, of its own shape.

    Binary targets, each of which is a probability, go towards 1/2; rows of probabilities `(N, C, ...)` towards `1 / C`
    of their sum, so that a row of zeros, which counts for nothing, stays one. Raises ValueError where a binary target
    lies outside [0, 1]; see `insist`.
    """
    target = target.float()
    if binary:
        fits = ((target >= 0) & (target <= 1)).all()
        insist(
            fits, "Binary targets must lie in [0, 1]", lambda: f", got {float(target.min())} to {float(target.max())}"
        )
        return target.lerp(target.new_full((), 0.5), smoothing)
    return target.mul(1 - smoothing).add_(target.sum(1, keepdim=True), alpha=smoothing / target.shape[1])


def computes_own_loss(outputs: Any) -> TypeGuard[MutableMapping[str, Tensor]]:
    """Whether the model's outputs bring their own loss, as those of a Hugging Face model that is given labels do."""
    return isinstance(outputs, Mapping) and all(isinstance(outputs.get(key), Tensor) for key in ("loss", "logits"))


def logits_in(name: str, outputs: Any) -> Tensor:
    """The outputs themselves, or "logits" among them. Raises TypeError where there are none."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name} needs outputs that are one tensor of logits, or a mapping with 'logits' as Hugging Face models "
            f"with return_dict=True give it; got {type(outputs).__name__}."
        )
    return logits
