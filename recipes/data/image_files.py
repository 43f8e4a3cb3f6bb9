"""Images in files by name, decoded by worker processes; the sources are made as those of `images.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from composer.core import DataSpec
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from .checks import check_folder, check_least
from .facts import Described, Facts
from .loaders import AnyDevice, to_device, worker_loader
from .shards import check_shards, open_shards, same_shards

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass
class ImageFolder:
    """JPEG (or PNG, ...) files in one folder per class, as ImageNet's train and val are commonly laid out.

    All images become RGB, grey ones too, and are normalised by ImageNet's mean (0.485, 0.456, 0.406) and standard
    deviation (0.229, 0.224, 0.225). In training each is cropped at random, to 8 to 100 % of its area in a shape from
    3:4 to 4:3, which is scaled to `crop_size`, and half of them are flipped left to right: torchvision's
    RandomResizedCrop and RandomHorizontalFlip. In evaluation, and in training with `augment: false`, the shorter side
    is scaled to `resize_size`, and the centre of `crop_size` is cut out.

    The labels are the places of the classes' names in their order. What is evaluated must have the folders of what is
    trained on, or its labels would be those of other classes; a folder may be empty there.
    """

    path: str  # the folder that holds the classes' folders
    crop_size: int = 224  # pixels per side of what the model sees
    resize_size: int = 256  # in evaluation: the shorter side before the central crop
    num_workers: int = 8  # processes per rank that decode
    augment: bool = True  # in training: crop at random and flip half of the images; false: as in evaluation

    def check(self) -> None:
        _check_sizes(self)
        check_folder(Path(self.path), "a folder of images")
        folders = sorted(entry.name for entry in Path(self.path).iterdir() if entry.is_dir())
        if not folders:
            raise FileNotFoundError(f"{self.path} holds no folder: expected one folder of images per class")
        if SPLITS.issuperset(folders):
            hint = f"expected one folder of images per class; is it {Path(self.path, folders[0])}?"
            raise ValueError(f"{self.path} holds the folders {', '.join(folders)}: {hint}")

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, ImageFolder) and Path(other.path).resolve() == Path(self.path).resolve()

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        transform = _imagenet_transform(train and self.augment, self.crop_size, self.resize_size)
        dataset = torchvision.datasets.ImageFolder(self.path, transform, loader=_load_image, allow_empty=not train)
        loader = worker_loader(dataset, _stack, batch_size, train, seed, self.num_workers)
        return _decoded(loader, device, self.crop_size, len(dataset.classes), tuple(dataset.classes))


@dataclass
class StreamingImages:
    """ImageNet (or alike) in MosaicML Streaming's MDS format, with columns `x` (`jpeg` or `pil`) and `y` (`int`).

    What is done to the images is what `image_folder` does.

    Shards tell neither the names nor the number of their classes; a label that is too large ends the run when it comes.
    After a resume in the middle of an epoch the order goes on exactly; the random crops do not repeat. In evaluation on
    several ranks, at most one sample per rank is seen twice where the ranks do not divide the number of samples.
    """

    local: str  # the folder that holds the shards, or that caches them
    remote: str | None = None  # where they come from: s3://..., gs://..., a folder; None: they are all in `local`
    split: str | None = None  # sub-folder of both
    crop_size: int = 224  # pixels per side of what the model sees
    resize_size: int = 256  # in evaluation: the shorter side before the central crop
    num_workers: int = 8  # processes per rank that decode
    augment: bool = True  # in training: crop at random and flip half of the images; false: as in evaluation

    def check(self) -> None:
        _check_sizes(self)
        check_shards(self.local, self.remote, self.split, {"x", "y"})

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, StreamingImages) and same_shards(self, other)

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        from streaming.vision import StreamingImageNet

        transform = _imagenet_transform(train and self.augment, self.crop_size, self.resize_size)
        dataset = open_shards(
            StreamingImageNet, self.local, self.remote, self.split, batch_size, train, seed, transform=transform
        )
        loader = worker_loader(dataset, _stack, batch_size, train, seed, self.num_workers)
        return _decoded(loader, device, self.crop_size)


def _check_sizes(source: ImageFolder | StreamingImages) -> None:
    check_least(1, crop_size=source.crop_size, resize_size=source.resize_size)
    check_least(0, num_workers=source.num_workers)


def _load_image(path: str) -> Image.Image:
    try:
        return torchvision.datasets.folder.default_loader(path)
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _imagenet_transform(augment: bool, crop_size: int, resize_size: int) -> transforms.Compose:
    """From PIL image to PIL image, and a `Compose`: so that Composer's ColOut and RandAugment can append themselves."""
    # Grey and CMYK images exist in ImageNet.
    steps: list[Any] = [transforms.Lambda(_to_rgb)]
    if augment:
        steps += [transforms.RandomResizedCrop(crop_size), transforms.RandomHorizontalFlip()]
    else:
        if resize_size < crop_size:  # torchvision would put a black frame around the image
            raise ValueError(f"resize_size must be at least crop_size, which is {crop_size}, not {resize_size}")
        steps += [transforms.Resize(resize_size), transforms.CenterCrop(crop_size)]
    return transforms.Compose(steps)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _stack(samples: Sequence[tuple[Image.Image, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack([pil_to_tensor(image) for image in images]), torch.tensor(labels)


def _decoded(
    loader: DataLoader,
    device: AnyDevice,
    crop_size: int,
    classes: int | None = None,
    names: tuple[str, ...] | None = None,
) -> DataSpec:
    """Images travel as bytes, a quarter of the size, and are normalised on the device."""
    mean, std = (
        to_device(torch.tensor(values).view(3, 1, 1) * 255, device) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def transform(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return (images - mean) / std, labels

    facts = Facts(inputs="images", labels="classes", classes=classes, names=names, channels=3, side=crop_size)
    return Described(loader, facts, microbatch_transforms=transform)
