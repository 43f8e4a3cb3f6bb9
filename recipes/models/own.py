"""A network of one's own as a classifier.

    model: {classifier: {module: {mycode:Net: {width: 32}}, num_classes: 3}}

`mycode:Net`, in `mycode.py` of the current folder, is a class of `torch.nn.Module`, or a function that returns one, as
`torchvision.models:resnet18` is. Its forward takes a batch's inputs and returns logits (N, num_classes).
"""

from collections.abc import Callable
from typing import Any

from composer.models import ComposerClassifier

from ..config.lookup import Part, function_at
from ..data.checks import check_least
from ..data.facts import Facts
from .classifier import LOSSES, ImageClassifier


def classifier(module: Part, num_classes: int, loss: str = "cross_entropy") -> ComposerClassifier:
    """A plain `nn.Module`, with the weights that it begins with, for batches of (inputs, labels).

    Args:
        module: its name with its arguments.
        num_classes: how many there are; the labels are whole numbers from 0.
        loss: cross_entropy, bce, or the import path of a function of (logits, labels) that returns the batch's loss.
    """
    check_least(1, num_classes=num_classes)
    return ImageClassifier(module.build(), num_classes, _loss(loss), Facts())


def _loss(name: str) -> Callable[..., Any]:
    if name in LOSSES:
        return LOSSES[name]
    expected = f"expected {', '.join(LOSSES)} or the import path of a function of (logits, labels)"
    return function_at("loss", name, expected)
