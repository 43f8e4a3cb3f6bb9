"""Class targets and the losses on them, without reading from the device what the targets hold."""

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label of what is not to be predicted, in torch and in Hugging Face models


def labels_key(batch: Any, target_key: Any) -> Any:
    """Where the labels stand: at `target_key`; in a batch that is a mapping its default, 1, means "labels"."""
    return "labels" if isinstance(batch, Mapping) and target_key == 1 else target_key


def check_labels(target: Tensor, classes: int, ignore_index: int = IGNORED) -> None:
    """Raise ValueError where an integer label is neither in `[0, classes)` nor `ignore_index`.

    Nothing is read from a GPU: there a device-side assertion with the same sentence ends the process.
    """
    label = target.long()
    fits = ((label >= 0) & (label < classes)) | (label == ignore_index)
    expected = f"Labels must lie in [0, {classes}) or be ignore_index={ignore_index}"
    try:
        torch._assert_async(fits.all(), f"{expected}.")
    except RuntimeError:  # from the CPU, or a device that has no such assertion
        if wrong := label[~fits].unique()[:5].tolist():
            raise ValueError(f"{expected}, got {', '.join(map(str, wrong))}.") from None


def dense_targets(
    logits: Tensor, target: Tensor, on: float = 1.0, off: float = 0.0, ignore_index: int = IGNORED
) -> Tensor:
    """Index targets as one float32 row per example: `on` at the class, `off` elsewhere.

    `logits` is `(N, C, ...)`, `target` is `(N, ...)`; `ignore_index` gives a row of zeros. Targets that are dense
    already, of the shape of `logits`, come back as float32, unchanged otherwise.

    Raises ValueError where `target` is neither, where its indices are not integers, or lie outside `[0, C)`; see
    `check_labels`.
    """
    if target.shape == logits.shape:
        return target.float()
    if target.shape != logits.shape[:1] + logits.shape[2:] or target.is_floating_point():
        raise ValueError(
            f"Targets must be integer classes of shape {tuple(logits.shape[:1] + logits.shape[2:])} or probabilities "
            f"of shape {tuple(logits.shape)}, as the outputs are; got {target.dtype} of shape {tuple(target.shape)}."
        )
    check_labels(target, logits.shape[1], ignore_index)
    index = target.long().unsqueeze(1)
    ignored = index == ignore_index
    rows = torch.where(ignored, 0.0, off).expand(logits.shape).contiguous()
    return rows.scatter_(1, index.masked_fill(ignored, 0), torch.where(ignored, 0.0, on))


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy in float32 of Hugging Face logits `(N, ..., C)`; a label of -100 is ignored, as in their models."""
    classes = logits.shape[-1]
    target = target.reshape(-1, classes) if target.shape == logits.shape else target.flatten()
    return F.cross_entropy(logits.reshape(-1, classes).float(), target, label_smoothing=smoothing)


def computes_own_loss(outputs: Any) -> TypeGuard[MutableMapping[str, Tensor]]:
    """Whether the model's outputs bring their own loss, as those of a Hugging Face model that is given labels do."""
    return isinstance(outputs, Mapping) and "loss" in outputs and "logits" in outputs


def unsupported(name: str, outputs: Any) -> TypeError:
    """The error for outputs from which no algorithm can tell the logits."""
    return TypeError(
        f"{name} needs outputs that are one tensor of logits, or a mapping with 'loss' and 'logits' as Hugging Face "
        f"models with return_dict=True give it; got {type(outputs).__name__}."
    )
