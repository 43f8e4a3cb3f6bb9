"""Each way of augmenting by a plain version, pixel by pixel; the same numbers change both sides alike."""

import math

import pytest
import torch

from accelerando.algorithms.examples.augmentation import ALL, NOISE, augmented

IMAGES = torch.randn(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.rand(5, NOISE, generator=torch.Generator().manual_seed(1))


def color(image, a, b, c):
    image = image + (a - 0.5)
    grey = image.mean(0)
    image = torch.stack([grey + (channel - grey) * 2 * b for channel in image])
    return image.mean() + (image - image.mean()) * (c + 0.5)


def crop(image, a, b, _):
    return moved(image, math.floor(a * 3) - 1, math.floor(b * 3) - 1)  # an eighth of 8 and of 6 pixels is one


def moved(image, down, right):
    found = torch.zeros_like(image)
    for y in range(8):
        for x in range(6):
            if 0 <= y + down < 8 and 0 <= x + right < 6:
                found[:, y, x] = image[:, y + down, x + right]
    return found


def cutout(image, a, b, _):
    top, left = math.floor(a * 9) - 2, math.floor(b * 6) - 1  # of 4 x 3 pixels, an even and an odd side
    found = image.clone()
    for y in range(8):
        for x in range(6):
            if top <= y < top + 4 and left <= x < left + 3:
                found[:, y, x] = 0
    return found


def flip(image, a, *_):
    return image.flip(2) if a < 0.5 else image


def scale(image, a, b, _):
    sizes = [share * (1.2 - 1 / 1.2) + 1 / 1.2 for share in (a, b)]
    return sampled(image, lambda x, y: (x * sizes[0], y * sizes[1]))


def rotate(image, a, *_):
    angle = math.radians((a - 0.5) * 30)
    sine, cosine = math.sin(angle), math.cos(angle)
    return sampled(image, lambda x, y: (cosine * x - sine * y, sine * x + cosine * y))


def sampled(image, place):
    """Bilinearly, zero outside; the image reaches from -1 to 1 along both sides."""
    found = torch.zeros_like(image)
    for row in range(8):
        for column in range(6):
            x, y = place((2 * column + 1) / 6 - 1, (2 * row + 1) / 8 - 1)
            x, y = ((x + 1) * 6 - 1) / 2, ((y + 1) * 8 - 1) / 2
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    if 0 <= i < 8 and 0 <= j < 6:
                        found[:, row, column] += image[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return found


PLAIN = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "rotate": rotate, "scale": scale}


@pytest.mark.parametrize("way", PLAIN)
def test_each_way_is_that_of_a_plain_version(way):
    found = augmented(IMAGES, NUMBERS, way)
    expected = [PLAIN[way](image, *row[1:].tolist()) for image, row in zip(IMAGES, NUMBERS, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, IMAGES)


def test_one_way_is_drawn_for_each_image_and_gradients_flow():
    ways = ALL.split("_")
    images, numbers = IMAGES[:1].repeat(60, 1, 1, 1).requires_grad_(), torch.rand(60, NOISE)
    found = augmented(images, numbers, ALL)
    for image, row, result in zip(images, numbers, found, strict=True):
        alone = augmented(image[None], row[None], ways[int(row[0] * len(ways))])[0]
        assert torch.equal(alone, result)
    assert {int(row[0] * len(ways)) for row in numbers} == {*range(6)}
    found.sum().backward()
    assert images.grad.flatten(1).abs().sum(1).min() > 0


def test_the_same_numbers_change_both_sides_alike():
    """Whatever else is in the batch."""
    both = augmented(IMAGES[[0, 1, 0, 2]], NUMBERS[[3, 2, 3, 3]], ALL)
    assert torch.equal(both[0], both[2])
    assert torch.equal(augmented(IMAGES[[0]], NUMBERS[[3]], ALL)[0], both[0])
    assert augmented(IMAGES, NUMBERS, "none") is IMAGES
