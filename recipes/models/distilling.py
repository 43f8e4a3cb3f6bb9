"""A model that distils the training data: what is trained is the images of a small set.

    model: {dataset_distiller: {per_class: 10, num_classes: 10, in_channels: 1, image_size: 28}}
    algorithms: {"accelerando.recipes.run.distilled_set:KeepsDistilledSet": {}}
    optimizer: {sgd: {lr: 1.0, momentum: 0.5}}

Such a run of recipes/train.py leaves `distilled/images.safetensors` in its folder, which the data source `distilled`
reads.
"""

from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from accelerando.algorithms.examples import distillation
from accelerando.algorithms.examples.augmentation import ALL
from accelerando.algorithms.generators import untouched_generators

from ..config.errors import ArgumentError, ConfigError, Source
from ..config.lookup import Part
from ..config.sections import check_section
from ..data.checks import check_least
from ..data.facts import Facts


class DatasetDistiller(ComposerModel):
    """Images that stand for the training data, by distribution matching: see `algorithms/examples/distillation.py`.

    Of a batch in several microbatches each is matched on its own, by a network of its own.

    Args:
        per_class: images of each class.
        num_classes: how many there are.
        in_channels: of the images, as of the training data.
        image_size: pixels per side, as of the training data.
        factor: smaller images along each side of one, each of which is enlarged to its size.
        augment: color, crop, cutout, flip, rotate, scale or some of them, with _ between them; or none.
        at_once: how many smaller images of a class a step sees, drawn anew for each; null for all, which takes memory.
        embedding: the network whose features are matched, a model's name with its arguments, less its last linear
            layer; by default a ConvNet-3 of width 32.
    """

    def __init__(
        self,
        per_class: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        factor: int = 1,
        augment: str = ALL,
        at_once: int | None = None,
        embedding: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_least(1, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        part = _checked(embedding or {"convnet": {"width": 32, **sizes}})
        with untouched_generators():
            _features_of(part)(torch.zeros(2, in_channels, image_size, image_size))  # which it must take
        self.takes = Facts(
            inputs="images", labels="classes", classes=num_classes, channels=in_channels, side=image_size
        )
        self.kept = False  # whether somebody writes a file at the end
        self.distiller = distillation.DatasetDistiller(
            lambda: _features_of(part),
            per_class=per_class,
            classes=num_classes,
            shape=(in_channels, image_size, image_size),
            factor=factor,
            augment=augment,
            at_once=at_once,
            seed=int(torch.randint(2**31, ())),
        )

    @property
    def small_images(self) -> int:
        """How many images there are to train on, of which each of the set may hold several."""
        return len(self.distiller.labels) * self.distiller.factor**2

    def forward(self, batch: Any) -> Tensor:
        if not self.kept:
            raise ValueError("nothing keeps the distilled set: expected KeepsDistilledSet among the run's algorithms")
        return self.distiller(*batch)

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs


def _checked(embedding: dict[str, Any]) -> Part:
    try:
        return check_section(Source(), "model", embedding)[0]
    except ConfigError as error:
        raise ArgumentError(f"embedding{error.key.removeprefix('model')}", error.message) from error


def _features_of(part: Part) -> nn.Module:
    """A new network of ComposerClassifier's kind, with nothing in the place of its last linear layer."""
    network = part.build().module
    *_, last = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    network.set_submodule(last, nn.Identity())
    return network
