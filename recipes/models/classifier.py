"""What every classifier of images has in common: its loss, its initial state, and which images it takes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch.nn.functional as F
from composer.models import ComposerClassifier
from torch import Tensor, nn

from accelerando.algorithms.targets import dense_targets

from ..data.facts import Facts
from .metrics import CrossEntropy, MulticlassAccuracy, MulticlassTop5Accuracy

Loss = Literal["cross_entropy", "bce"]


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Summed over classes, which keeps the learning rate at cross entropy's scale, and averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, dense_targets(logits, target), reduction="sum") / len(logits)


# F.cross_entropy takes dense targets too; Composer's soft_cross_entropy would read them back from the device.
LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "bce": binary_cross_entropy}


class ImageClassifier(ComposerClassifier):
    """A classifier that says which images it takes, as far as its modules do not.

    Of more than five classes it tells the top-5 accuracy too. Its metrics are not among its modules, all of which
    Composer puts into another mode and back to take them.
    """

    def __init__(self, module: nn.Module, num_classes: int, loss_fn: Callable[..., Tensor], takes: Facts):
        measured = [CrossEntropy(), MulticlassAccuracy(num_classes)]
        if num_classes > 5:
            measured.append(MulticlassTop5Accuracy(num_classes))
        trained, evaluated = (
            {type(metric).__name__: metric for metric in metrics}
            for metrics in ([MulticlassAccuracy(num_classes)], measured)
        )
        super().__init__(module, num_classes, trained, evaluated, loss_fn)  # type: ignore[arg-type]
        self.takes = replace(takes, pairs=True)


def classifier(
    module: nn.Module,
    head: nn.Linear,
    loss: Loss,
    *,
    channels: int | None = None,
    side: int | None = None,
    least_side: int | None = None,
) -> ComposerClassifier:
    """The initialisation is that of MosaicML's ResNet examples: Kaiming-normal weights and uniform BatchNorm scales."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if loss == "bce":
        # Each class starts at a probability of about 1 / num_classes.
        nn.init.constant_(head.bias, -math.log(head.out_features))
    takes = Facts(channels=channels, side=side, least_side=least_side)
    return ImageClassifier(module, head.out_features, LOSSES[loss], takes)
