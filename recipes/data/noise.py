"""Labels that are wrong on purpose, whatever data they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from composer.core import DataSpec
from torch import Tensor
from torchvision.datasets import DatasetFolder

from ..config.errors import REFUSALS, ArgumentError, ConfigError, Source
from ..config.lookup import Part
from ..config.sections import check_section
from .facts import Described
from .loaders import AnyDevice, TensorLoader

SECTION = "train_data"  # any of those of data


@dataclass
class NoisyLabels:
    """The data of another source, of whose examples a share, chosen at random, has labels that are drawn anew.

    They are drawn uniformly from all classes, so that some stay what they were; with a fraction of 1 the labels say
    nothing of the images. Which examples these are, and their labels, follow from `seed` and the number of examples
    alone: they are the same in every epoch, on every rank, in training and in evaluation. The source must hold classes
    in memory, or in a folder of images.
    """

    of: dict[str, Any]  # the other source with its arguments, such as {fashion_mnist: {split: train}}
    fraction: float = 0.15  # of the examples, above 0 and at most 1
    seed: int = 0

    def check(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ArgumentError("fraction", f"{self.fraction} given; expected a share above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError("seed", f"{self.seed} given; expected a whole number from 0 to {2**32 - 1}")
        try:
            part = self._part()
            with part.source.blame(part.key, *REFUSALS):
                part.build().check()
        except ConfigError as error:
            raise ArgumentError(f"of{error.key.removeprefix(SECTION)}", error.message) from error

    def overlaps(self, other: Any) -> bool:
        own, others = self._source(), other._source() if isinstance(other, NoisyLabels) else other
        return own == others or (hasattr(own, "overlaps") and own.overlaps(others))

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        spec = self._source().build(batch_size, train, seed, device)
        loader, classes = spec.dataloader, spec.facts.classes if isinstance(spec, Described) else None
        dataset = getattr(loader, "dataset", None)
        if isinstance(loader, TensorLoader) and classes:
            *inputs, labels = loader.tensors
            loader.tensors = (*inputs, noisy(labels, classes, self.fraction, self.seed))
            loader.dataset.tensors = loader.tensors  # type: ignore[attr-defined]
        elif isinstance(dataset, DatasetFolder) and classes:
            dataset.targets = noisy(torch.tensor(dataset.targets), classes, self.fraction, self.seed).tolist()
            files = [file for file, _ in dataset.samples]
            dataset.samples = dataset.imgs = [*zip(files, dataset.targets, strict=True)]  # type: ignore[attr-defined]
        else:
            hint = "expected images in memory, or in a folder with one folder per class"
            raise ArgumentError("of", f"the labels of {next(iter(self.of))} are not told one by one; {hint}")
        return spec

    def _source(self) -> Any:
        return self._part().build()

    def _part(self) -> Part:
        return check_section(Source(), SECTION, self.of)[0]


def noisy(labels: Tensor, classes: int, fraction: float, seed: int) -> Tensor:
    """Returns labels (N,) of which round(fraction * N), chosen at random, are drawn anew from so many classes."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    drawn = torch.randint(classes, (len(chosen),), generator=generator)
    found = labels.clone()
    found[chosen.to(labels.device)] = drawn.to(labels)
    return found
