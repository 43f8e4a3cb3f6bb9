"""Dataset distillation: a few images that stand for a data set, by distribution matching (Zhao & Bilen, 2110.04181).

At each step a network with new random weights sees both: the images are moved so that the mean of its features over
those of a class comes closer to the mean over a batch's real ones. Images of a class, real and distilled, are augmented
alike (`augmentation.py`), and an image may hold several smaller ones, which are enlarged before they are used
(multi-formation, Kim et al., 2205.14959).

All randomness is a function of seed and step, so that a distillation that goes on ends as the uninterrupted one does.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ..checkpoints import read_metadata, read_weights, some, write_safetensors
from ..generators import generator_of, numpy_generator, seeded
from ..ranks import world_size
from ..validation import check
from .augmentation import ALL, NOISE, augmented, check_augment


def tiles(images: Tensor, factor: int) -> list[Tensor]:
    """Views of the factor x factor smaller images (N, C, h, w) that each image (N, C, H, W) holds, row by row.

    Where the factor does not divide a side, they overlap by one pixel.
    """
    (heights, tops), (widths, lefts) = ((-(-side // factor), _starts(side, factor)) for side in images.shape[2:])
    return [images[..., top : top + heights, left : left + widths] for top in tops for left in lefts]


def _starts(side: int, factor: int) -> list[int]:
    return [i * side // factor for i in range(factor)]


def enlarged(images: Tensor, labels: Tensor, factor: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The smaller images that each image holds, enlarged to its size: (factor^2 N, C, H, W), with their labels.

    Those of one image follow one another; of all of them `rows` are chosen, by default all. Enlarging is bilinear.
    """
    small = torch.stack(tiles(images, factor), 1).flatten(0, 1) if factor > 1 else images
    labels = labels.repeat_interleave(factor**2)
    if rows is not None:
        small, labels = small[rows], labels[rows]
    if factor == 1:
        return small, labels
    large = F.interpolate(small, size=tuple(images.shape[2:]), mode="bilinear", align_corners=False)
    return large, labels


def matching_loss(real: Tensor, real_labels: Tensor, made: Tensor, made_labels: Tensor, classes: int) -> Tensor:
    """The squared distance between the means of features (N, D) and (M, D), summed over the classes that both have.

    Of the real ones, to which no gradient flows, all ranks' are taken together.
    """
    (real_sums, real_counts), (sums, counts) = (
        _by_class(features.float(), labels, classes)
        for features, labels in ((real.detach(), real_labels), (made, made_labels))
    )
    if world_size() > 1:
        distributed.all_reduce(real_sums)
        distributed.all_reduce(real_counts)
    apart = real_sums / real_counts.clamp(min=1) - sums / counts.clamp(min=1)
    return (apart.square() * ((real_counts > 0) & (counts > 0))).sum()


def _by_class(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (classes, D) and counts (classes, 1), by a product of matrices, which repeats bit for bit on GPUs too."""
    of_class = F.one_hot(labels.long(), classes).to(features.dtype)
    return of_class.T @ features, of_class.sum(0)[:, None]


class DatasetDistiller(nn.Module):
    """Images that are distilled: its only parameters, which an optimizer moves by the loss that it gives for a batch.

        distiller = DatasetDistiller(convnet, per_class=10, classes=10, shape=(3, 32, 32))
        distiller.begin_with(batches)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=1.0, momentum=0.5)
        for images, labels in batches:
            optimizer.zero_grad()
            distiller(images, labels).backward()
            optimizer.step()

    Its `state_dict` has the images with their `labels`, and seed and step, from which it goes on.

    Args:
        embedding: makes a network with new random weights, drawn from torch's global generator, that turns images
            (N, C, H, W) into features (N, ...). The means are over what it gives in training mode.
        per_class: how many images each class has.
        classes: how many there are.
        shape: of an image, (C, H, W).
        factor: how many smaller images each has along each side.
        augment: see `augmented`.
        at_once: how many smaller images of a class a step sees, drawn anew for each; by default all.
        seed: of the noise with which the images begin, the real ones that `begin_with` chooses, and all steps.
    """

    images: nn.Parameter
    labels: Tensor
    seed_and_step: Tensor

    def __init__(
        self,
        embedding: Callable[[], nn.Module],
        per_class: int,
        classes: int,
        shape: Sequence[int],
        factor: int = 1,
        augment: str = ALL,
        at_once: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        for name, given in {"per_class": per_class, "classes": classes, "factor": factor}.items():
            check("DatasetDistiller", name, given >= 1, "1 or more", given)
        check("DatasetDistiller", "shape", len(shape) == 3 and min(shape) >= 1, "(channels, height, width)", [*shape])
        check("DatasetDistiller", "factor", factor <= min(shape[1:]), f"at most {min(shape[1:])}, a side", factor)
        check_augment(augment, "DatasetDistiller")
        of_class = per_class * factor**2
        fits = at_once is None or 1 <= at_once <= of_class
        check("DatasetDistiller", "at_once", fits, f"1 to {of_class}, or None", at_once)
        self.embedding, self.per_class, self.classes = embedding, per_class, classes
        self.factor, self.augment, self.at_once = factor, augment, at_once
        noise = torch.randn(classes * per_class, *shape, generator=generator_of(f"{seed} noise"))
        self.images = nn.Parameter(noise)
        self.register_buffer("labels", torch.arange(classes).repeat_interleave(per_class))
        self.register_buffer("seed_and_step", torch.tensor([seed, 0]))

    @torch.no_grad()
    def begin_with(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fills the images with real ones, of which so many are chosen at random for each class, made smaller.

        Raises ValueError where a class has too few, or a label is none of the classes.
        """
        needed, number = self.per_class * self.factor**2, count()
        generator = numpy_generator(int(self.seed_and_step[0]), "begin")
        kept: list[list[tuple[float, int, Tensor]]] = [[] for _ in range(self.classes)]
        size = tuple(tiles(self.images, self.factor)[0].shape[2:])
        for images, labels in batches:
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"the real labels are {found}: expected 0 to {self.classes - 1}, the classes")
            small = F.interpolate(images.float(), size=size, mode="area")
            keys = generator.random(len(labels)).tolist()
            for key, image, label in zip(keys, small, labels.tolist(), strict=True):
                own = kept[label]
                if len(own) < needed or key > own[0][0]:
                    heapq.heappush(own, (key, next(number), image.clone()))
                    if len(own) > needed:
                        heapq.heappop(own)
        for label, own in enumerate(kept):
            if len(own) < needed:
                raise ValueError(f"class {label} has {len(own)} real images: expected {needed} or more to begin with")
            rows = self.images[label * self.per_class : (label + 1) * self.per_class]
            chosen = torch.stack([image for *_, image in sorted(own, key=lambda one: one[:2])])
            for tile, part in zip(tiles(rows, self.factor), chosen.split(self.per_class), strict=True):
                tile.copy_(part)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the next step by real images (N, C, H, W) and their labels; in evaluation, of the same again."""
        seed, step = self.seed_and_step.tolist()
        draw = numpy_generator(seed, step)
        noise = torch.from_numpy(draw.random((self.classes, NOISE), dtype="float32")).to(images.device)
        with seeded(int(draw.integers(2**32))):
            network = self.embedding().requires_grad_(False).to(images.device)
        rows = None if self.at_once is None else self._rows(draw, self.at_once).to(images.device)
        made, made_labels = enlarged(self.images, self.labels, self.factor, rows)
        with torch.no_grad():
            real = network(augmented(images, noise[labels], self.augment)).flatten(1)
        made = network(augmented(made, noise[made_labels], self.augment)).flatten(1)
        if self.training:
            self.seed_and_step[1] += 1
        return matching_loss(real, labels, made, made_labels, self.classes)

    def _rows(self, draw: Any, at_once: int) -> Tensor:
        """So many of each class, in the order of the smaller images."""
        of_class = self.per_class * self.factor**2
        chosen = [draw.permutation(of_class)[:at_once] + label * of_class for label in range(self.classes)]
        return torch.from_numpy(np.concatenate(chosen))


@dataclass(frozen=True, kw_only=True)
class DistilledSet:
    """Images (N, C, H, W), labels (N,), and what their file tells of them, or else one image each, not augmented."""

    images: Tensor
    labels: Tensor
    factor: int = 1
    augment: str = "none"

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1


def save_distilled(path: str | PathLike[str], images: Tensor, labels: Tensor, **metadata: Any) -> None:
    """Writes a set to a safetensors file, whole or not at all, with further values as texts of its metadata."""
    texts = {name: str(value) for name, value in metadata.items()}
    write_safetensors(path, {"images": images, "labels": labels}, {**texts, "format": "pt"})


def load_distilled(path: str | PathLike[str]) -> DistilledSet:
    """The set in a safetensors file of ours or of others: `images`, floats (N, C, H, W), and `labels`, integers (N,).

    Raises FileNotFoundError, and ValueError naming the file for one that is damaged or holds anything else, values that
    are not finite, or labels below 0.
    """
    held = read_weights(path)
    if {*held} != {"images", "labels"}:
        raise ValueError(f"{path} is no distilled set: it holds {some([*held])}; expected images and labels")
    images, labels = held["images"], held["labels"]
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    kinds = {name: f"{str(part.dtype)[6:]} {tuple(part.shape)}" for name, part in held.items()}
    if images.dim() != 4 or not images.is_floating_point() or not images.numel():
        raise ValueError(f"{path}: its images are {kinds['images']}; expected floats (N, channels, height, width)")
    if not whole or labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: its labels are {kinds['labels']}; expected {len(images)} integers, one an image")
    if not images.isfinite().all():
        raise ValueError(f"{path}: its images hold values that are not finite")
    if labels.min() < 0:
        raise ValueError(f"{path}: it has the label {int(labels.min())}; expected classes from 0")
    told = read_metadata(path)
    factor = told.get("factor", "1")
    if not factor.isdecimal():
        raise ValueError(f"{path}: it tells the factor {factor!r}; expected a whole number")
    return DistilledSet(
        images=images.float(), labels=labels.long(), factor=int(factor), augment=told.get("augment", "none")
    )
