"""A small set of images that stands for a larger one: distilled by a run of ours, or by others."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from composer.core import DataSpec
from torch import Tensor
from torchvision.transforms.functional import normalize

from accelerando.algorithms.examples.augmentation import NOISE, augmented, check_augment
from accelerando.algorithms.examples.distillation import DistilledSet, enlarged, load_distilled

from ..config.errors import ArgumentError
from .facts import Described, Facts
from .loaders import AnyDevice, TensorLoader, to_device


@dataclass
class Distilled:
    """The images of a safetensors file: `images`, floats (N, C, H, W), and `labels`, integers (N,) from 0.

    They are taken to be normalized as the real data are, unless `mean` and `std` say how to normalize them. A run that
    distils leaves such a file, `distilled/images.safetensors`, which tells factor and augmentation besides.
    """

    file: str  # may lie in the folder of all runs
    factor: int | None = None  # smaller images along each side of one; by default what the file tells, or 1
    augment: str | None = None  # in training: such as color_crop_scale, of which each image gets one, or none
    mean: list[float] | None = None  # of the real data's channels
    std: list[float] | None = None

    def look_in(self, runs: Path) -> None:
        """The folder of all runs, in which the file may lie."""
        if (inside := runs / self.file).is_file():
            self.file = str(inside)

    def check(self) -> None:
        found = self._load()
        least = min(found.images.shape[2:])
        if not 1 <= (factor := self._factor(found)) <= least:
            raise ArgumentError("factor", f"{factor} given; expected from 1 to {least}, the pixels of a side")
        try:
            check_augment(self._augment(found))
        except ValueError as error:
            raise ArgumentError("augment", str(error)) from error
        expected = f"expected numbers for {found.images.shape[1]} channel(s) in both mean and std, or neither"
        if (self.mean is None) != (self.std is None):
            raise ArgumentError("std" if self.std is None else "mean", f"missing; {expected}")
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) != found.images.shape[1]:
                raise ArgumentError(name, f"{given} given; {expected}")
        if self.std is not None and min(self.std) <= 0:
            raise ArgumentError("std", f"{self.std} given; expected numbers above 0")

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, Distilled) and Path(other.file).resolve() == Path(self.file).resolve()

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        found = self._load()
        images = normalize(found.images, self.mean, self.std) if self.mean and self.std else found.images
        channels, side = images.shape[1], images.shape[3]
        facts = Facts(inputs="images", labels="classes", classes=found.classes, channels=channels, side=side)
        tensors = [to_device(part, device) for part in enlarged(images, found.labels, self._factor(found))]
        if train and (augment := self._augment(found)) != "none":
            change = partial(_augmented, augment=augment)
            return Described(TensorLoader(tensors, batch_size, train, seed, change, noise_shape=(NOISE,)), facts)
        return Described(TensorLoader(tensors, batch_size, train, seed), facts)

    def _load(self) -> DistilledSet:
        try:
            return load_distilled(self.file)
        except (FileNotFoundError, ValueError) as error:
            raise ArgumentError("file", str(error)) from error

    def _factor(self, found: DistilledSet) -> int:
        return found.factor if self.factor is None else self.factor

    def _augment(self, found: DistilledSet) -> str:
        return found.augment if self.augment is None else self.augment


def _augmented(batch: tuple[Tensor, ...], noise: Tensor, augment: str) -> tuple[Tensor, ...]:
    images, labels = batch
    return augmented(images, noise, augment), labels
