"""Differentiable siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259), by which distilled images are augmented.

Each image is augmented in one way of several, by random numbers that are given: images with the same numbers, such as
the real and the distilled ones of a class, are augmented alike. Ranges are those of utils.py in
VICO-UoE/DatasetCondensation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..validation import check

NOISE = 4  # random numbers for an image's augmentation
ALL = "color_crop_cutout_flip_scale_rotate"


def augmented(images: Tensor, noise: Tensor, augment: str = ALL) -> Tensor:
    """Each image augmented in one of several ways, differentiably; those with the same noise in the same way.

    Args:
        images: (N, C, H, W), about normalized.
        noise: (N, 4), uniform in [0, 1).
        augment: the ways, of which one is drawn for each image, with _ between them; "none" leaves images alone.
    """
    ways, result = check_augment(augment), images
    chosen = (noise[:, 0] * len(ways)).long().clamp(max=len(ways) - 1)
    for i, way in enumerate(ways):
        rows = (chosen == i).nonzero()[:, 0]
        if len(rows):
            changed = _WAYS[way](images[rows], noise[rows, 1:, None, None, None])
            result = result.index_copy(0, rows, changed.to(result.dtype))
    return result


def check_augment(augment: str, owner: str = "augmented") -> list[str]:
    """The ways in it, none of "none"; ValueError for one that is not known, or is given twice."""
    ways = [] if augment == "none" else augment.split("_")
    fits = set(ways) <= _WAYS.keys() and len(ways) == len(set(ways))
    check(owner, "augment", fits, f"none, or some of {ALL} with _ between them", augment)
    return ways


def _color(x: Tensor, noise: Tensor) -> Tensor:
    brightness, saturation, contrast = noise.unbind(1)
    x = x + brightness - 0.5
    x = torch.lerp(x.mean(1, keepdim=True), x, 2 * saturation)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast + 0.5)


def _crop(x: Tensor, noise: Tensor) -> Tensor:
    """Moved by an eighth of its side at most, with zeros behind."""
    height, width = x.shape[2:]
    rows, columns = int(height / 8 + 0.5), int(width / 8 + 0.5)
    windows = F.pad(x, (columns, columns, rows, rows)).unfold(2, height, 1).unfold(3, width, 1)
    top, left = ((noise[:, i].flatten() * (2 * most + 1)).long() for i, most in enumerate((rows, columns)))
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def _cutout(x: Tensor, noise: Tensor) -> Tensor:
    """Zeros in a rectangle of half its sides, whose centre is anywhere."""
    inside = []
    for i, side in enumerate(x.shape[2:]):
        size = int(side / 2 + 0.5)
        first = (noise[:, i].reshape(-1, 1) * (side + 1 - size % 2)).long() - size // 2
        places = torch.arange(side, device=x.device)
        inside.append((places >= first) & (places < first + size))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


def _flip(x: Tensor, noise: Tensor) -> Tensor:
    return torch.where(noise[:, 0] < 0.5, x.flip(3), x)


def _scale(x: Tensor, noise: Tensor) -> Tensor:
    """Each side by a factor between 1 / 1.2 and 1.2."""
    factors = noise[:, :2].reshape(-1, 2) * (1.2 - 1 / 1.2) + 1 / 1.2
    return _affine(x, torch.diag_embed(factors))


def _rotate(x: Tensor, noise: Tensor) -> Tensor:
    """By 15 degrees at most."""
    angles = (noise[:, 0].flatten() - 0.5) * 2 * math.radians(15)
    sine, cosine = angles.sin(), angles.cos()
    return _affine(x, torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1))


def _affine(x: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(F.pad(matrices, (0, 1)), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "rotate": _rotate,
    "scale": _scale,
}
