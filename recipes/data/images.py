"""Images in memory by name: each source is a dataclass whose fields are a YAML's arguments.

`check()` raises a one-line error before anything is built. `build()` returns a `DataSpec` whose batches are
(images, labels), normalised to about zero mean and unit deviation; its `batch_size` is per rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.datasets
from composer.core import DataSpec
from composer.utils import dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms.functional import normalize

from ..config.errors import ArgumentError
from .checks import check_folder
from .facts import Described, Facts
from .idx import find_idx, read_idx
from .loaders import AnyDevice, TensorLoader, to_device
from .splits import overlap, part_of

DEBIAN = "/usr/share/datasets/fashion-mnist"


class _InMemory:
    """All images of the split, normalised, on the device. A split is one of `sizes`, or a slice of it."""

    mean: ClassVar[list[float]]
    std: ClassVar[list[float]]
    classes: ClassVar[Sequence[str]]
    sizes: ClassVar[dict[str, int]]
    side: ClassVar[int]  # of an image, in pixels, before `resize`
    split: str
    resize: int | None
    augment = False

    def load(self, split: str, rows: slice) -> tuple[Tensor, Tensor]:
        """Images of float32 in [0, 1], (N, C, H, W), and labels, of these rows of the split."""
        raise NotImplementedError

    def place(self) -> str:
        """The folder of the files; two sources of one place and class have the same images."""
        return ""

    def check(self) -> None:
        self.part()
        if self.resize is not None and not 1 <= self.resize <= self.side:
            hint = f"expected pixels per side, from 1 to the images' own {self.side}"
            raise ArgumentError("resize", f"{self.resize} given; {hint}")

    def part(self) -> tuple[str, range]:
        """The split and which of its images."""
        return part_of(self.split, self.sizes)

    def overlaps(self, other: Any) -> bool:
        alike = type(other) is type(self) and Path(other.place()).resolve() == Path(self.place()).resolve()
        return alike and overlap(self.part(), other.part())

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        split, rows = self.part()
        images, labels = self.load(split, slice(rows.start, rows.stop))
        if self.resize:
            images = F.interpolate(images, size=self.resize, mode="area")
        tensors = [to_device(normalize(images, self.mean, self.std), device), to_device(labels, device)]
        names, (channels, side) = tuple(self.classes), images.shape[1:3]
        facts = Facts(inputs="images", labels="classes", classes=len(names), names=names, channels=channels, side=side)
        if train and self.augment:
            crop = partial(_crop_and_flip, padding=max(1, round(4 * side / self.side)))
            return Described(TensorLoader(tensors, batch_size, train, seed, crop, noise_shape=(3,)), facts)
        return Described(TensorLoader(tensors, batch_size, train, seed), facts)


class _Version(NamedTuple):
    """A file as it is now: what it holds is read once for all runs of a study, and anew when it has been changed."""

    path: Path
    device: int
    inode: int
    changed: int
    size: int

    @classmethod
    def of(cls, file: Path) -> "_Version":
        found = file.stat()
        return cls(file, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Read once for all runs of a study, as it is text."""
    return load_digits(return_X_y=True)  # type: ignore[return-value]


@lru_cache(maxsize=2)
def _cifar10(path: str, train: bool, download: bool, files: tuple[_Version, ...]) -> torchvision.datasets.CIFAR10:
    return torchvision.datasets.CIFAR10(path, train, download=download)


@lru_cache(maxsize=4)
def _idx(file: _Version, shape: tuple[int, ...]) -> Tensor:
    return read_idx(file.path, shape)


@dataclass
class Digits(_InMemory):
    """1797 real handwritten digits, 8x8 pixels, that scikit-learn carries with it: 1437 to train on, 360 to test on."""

    split: str = "train"  # or test, or a slice such as train[:80%]
    resize: int | None = None  # pixels per side, each the mean of the area that it covers

    mean, std, classes, side = [0.305], [0.376], "0123456789", 8
    sizes: ClassVar[dict[str, int]] = {"train": 1437, "test": 360}

    def load(self, split: str, rows: slice) -> tuple[Tensor, Tensor]:
        pixels, labels = _digits()
        halves = train_test_split(pixels, labels, test_size=360, stratify=labels, random_state=0)
        pixels, labels = halves[split == "test" :: 2]
        return torch.tensor(pixels[rows], dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels[rows])


@dataclass
class Cifar10(_InMemory):
    """CIFAR-10: 60 000 colour images of 32x32 pixels, as torchvision keeps them on disk; served from memory."""

    path: str  # the folder that holds (or, with download, will hold) cifar-10-batches-py
    split: str = "train"  # or test, or a slice such as train[:80%]
    augment: bool = True  # in training: crop at random after padding by 4 pixels in 32, and flip half of the images
    download: bool = False  # into `path` what it lacks
    resize: int | None = None  # pixels per side, each the mean of the area that it covers

    side = 32
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    sizes: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}

    def place(self) -> str:
        return self.path

    def check(self) -> None:
        super().check()
        if not self.download:
            check_folder(Path(self.path, torchvision.datasets.CIFAR10.base_folder), "CIFAR-10 (or set download: true)")

    def load(self, split: str, rows: slice) -> tuple[Tensor, Tensor]:
        source = torchvision.datasets.CIFAR10
        listed = source.train_list if split == "train" else source.test_list
        files = [Path(self.path, source.base_folder, name) for name, _ in listed]
        with dist.run_local_rank_zero_first():
            there = all(file.is_file() for file in files)
            read = _cifar10 if there else _cifar10.__wrapped__  # what is not there may be downloaded at each call
            data = read(self.path, split == "train", self.download, tuple(map(_Version.of, files)) if there else ())
        return torch.from_numpy(data.data[rows]).permute(0, 3, 1, 2) / 255, torch.tensor(data.targets[rows])


@dataclass
class FashionMnist(_InMemory):
    """Fashion-MNIST: 70 000 grey images of 28x28 pixels in four idx files, gzipped or not; served from memory."""

    path: str | None = None  # the folder that holds them, or FashionMNIST/raw with them; by default Debian's
    split: str = "train"  # or test, or a slice such as train[:80%]
    augment: bool = False  # in training: crop at random after padding by 4 pixels in 28, and flip half of the images
    download: bool = False  # what `path` lacks, into its FashionMNIST/raw
    resize: int | None = None  # pixels per side, each the mean of the area that it covers

    mean, std, classes, side = [0.2860], [0.3530], torchvision.datasets.FashionMNIST.classes, 28
    sizes: ClassVar[dict[str, int]] = {"train": 60_000, "test": 10_000}

    def place(self) -> str:
        return self.path or DEBIAN

    def check(self) -> None:
        super().check()
        if not self.download:
            self.files(self.part()[0])
        elif not self.path:
            raise ArgumentError("download", "true given, but no path; expected the folder to download to as path")

    def files(self, split: str) -> list[Path]:
        """Those of the images and of their labels; FileNotFoundError where one is missing."""
        folders = [Path(self.path), Path(self.path, "FashionMNIST", "raw")] if self.path else [Path(DEBIAN)]
        part = {"train": "train", "test": "t10k"}[split]
        hint = "apt install dataset-fashion-mnist and leave out path, or set download: true with a path"
        return [find_idx(f"{part}-{kind}-ubyte", folders, hint) for kind in ("images-idx3", "labels-idx1")]

    def load(self, split: str, rows: slice) -> tuple[Tensor, Tensor]:
        with dist.run_local_rank_zero_first():
            try:
                images, labels = self.files(split)
            except FileNotFoundError:
                if not (self.download and self.path):
                    raise
                torchvision.datasets.FashionMNIST(self.path, download=True)
                images, labels = self.files(split)
        size = self.sizes[split]
        pixels = _idx(_Version.of(images), (size, self.side, self.side))
        classes = _idx(_Version.of(labels), (size,)).long()
        if classes.max() >= len(self.classes):
            raise ValueError(f"{labels} has the label {int(classes.max())}; expected 0 to {len(self.classes) - 1}")
        return pixels[rows, None] / 255, classes[rows]


def _crop_and_flip(batch: tuple[Tensor, ...], noise: Tensor, padding: int = 4) -> tuple[Tensor, ...]:
    """Crop each image at a random place after padding it with zeros, and flip it left to right half of the time.

    Args:
        batch: images (N, C, H, W), and labels.
        noise: (N, 3), uniform in [0, 1).
    """
    images, labels = batch
    height, width = images.shape[2:]
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = (noise[:, :2] * (2 * padding + 1)).long().unbind(1)
    cropped = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(noise[:, 2, None, None, None] < 0.5, cropped.flip(3), cropped), labels
