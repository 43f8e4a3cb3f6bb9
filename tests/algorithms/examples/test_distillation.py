"""Distribution matching by a plain loop; going on exactly; what distilled images are worth; files and mistakes."""

import copy
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from accelerando.algorithms import DatasetDistiller, load_distilled, save_distilled
from accelerando.algorithms.examples.augmentation import NOISE, augmented
from accelerando.algorithms.examples.distillation import enlarged, matching_loss, tiles
from accelerando.algorithms.generators import numpy_generator, seeded

SEEDS = range(5)


def features(side=8, width=4, depth=2):
    layers = [
        (nn.Conv2d(width if i else 1, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2))
        for i in range(depth)
    ]
    return nn.Sequential(*(layer for block in layers for layer in block), nn.Flatten())


def examples(count=40, classes=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, side, side, generator=generator), torch.arange(count) % classes


def distiller(**changes):
    given = {"per_class": 2, "classes": 3, "shape": (1, 8, 8), "factor": 2, "seed": 5} | changes
    return DatasetDistiller(features, **given)


def plain_loss(real, real_labels, made, made_labels):
    """Zhao & Bilen's equation 4, with means over a batch."""
    total = 0.0
    for label in {*real_labels.tolist()} & {*made_labels.tolist()}:
        apart = real[real_labels == label].mean(0) - made[made_labels == label].mean(0)
        total += (apart**2).sum()
    return total


def test_the_matching_loss_is_that_of_a_plain_loop():
    real, made = torch.randn(20, 7), torch.randn(9, 7, requires_grad=True)
    real_labels, made_labels = torch.arange(20) % 4, torch.arange(9) % 3  # the last class has nothing that is made
    loss = matching_loss(real, real_labels, made, made_labels, classes=5)
    expected = plain_loss(real, real_labels, made, made_labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(one, made)[0] for one in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_a_step_is_that_of_a_plain_script():
    """A new network, the same noise for all images of a class on both sides, means of features."""
    own, (images, labels) = distiller(augment="color_flip_rotate"), examples()
    before = own.images.detach().clone().requires_grad_()
    losses = [own(images, labels) for _ in range(2)]
    for step, loss in enumerate(losses):
        draw = numpy_generator(5, step)
        noise = torch.from_numpy(draw.random((3, NOISE), dtype="float32"))
        with seeded(int(draw.integers(2**32))):
            network = features()
        small = torch.cat([torch.stack(tiles(image[None], 2), 1)[0] for image in before])
        made = F.interpolate(small, size=8, mode="bilinear")
        made_labels = torch.arange(3).repeat_interleave(2 * 4)
        sides = []
        for given, of in ((images, labels), (made, made_labels)):
            changed = [
                augmented(one[None], noise[label][None], "color_flip_rotate")
                for one, label in zip(given, of, strict=True)
            ]
            sides.append(network(torch.cat(changed)))
        expected = plain_loss(sides[0].detach(), labels, sides[1], made_labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        gradients = [torch.autograd.grad(total, of)[0] for total, of in ((loss, own.images), (expected, before))]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert losses[0].item() != losses[1].item()


def trained(own, optimizer, steps):
    images, labels = examples()
    for _ in range(steps):
        optimizer.zero_grad()
        own(images, labels).backward()
        optimizer.step()


def test_it_goes_on_bit_for_bit_and_draws_from_nobody():
    whole, torch_state = distiller(), torch.get_rng_state()
    optimizer = torch.optim.SGD(whole.parameters(), 1.0, momentum=0.5)
    trained(whole, optimizer, 3)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    trained(whole, optimizer, 4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    resumed = distiller(seed=99)  # the seed comes from the state
    optimizer = torch.optim.SGD(resumed.parameters(), 1.0, momentum=0.5)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.rand(7)  # whatever others draw
    trained(resumed, optimizer, 4)
    assert torch.equal(resumed.images, whole.images) and not torch.equal(whole.images, saved[0]["images"])
    assert [name for name, _ in whole.named_parameters()] == ["images"]


def test_an_image_holds_smaller_ones_which_are_enlarged():
    images, labels = torch.arange(2 * 6 * 6.0).view(2, 1, 6, 6), torch.tensor([4, 7])
    large, of = enlarged(images, labels, 2)
    assert large.shape == (8, 1, 6, 6) and of.tolist() == [4] * 4 + [7] * 4
    corner = F.interpolate(images[1:, :, :3, 3:], size=6, mode="bilinear")
    assert torch.equal(large[5:6], corner)
    assert all(map(torch.equal, enlarged(images, labels, 1), (images, labels)))
    # Where a side is not divided, all pixels belong to one of the smaller images at least.
    uneven = torch.zeros(1, 1, 7, 7)
    for part in tiles(uneven, 3):
        assert part.shape == (1, 1, 3, 3)
        part += 1
    assert uneven.min() == 1


def test_a_step_may_see_some_of_the_images_of_each_class_alone():
    own, (images, labels) = distiller(at_once=3, augment="none"), examples()
    moved = []
    for _ in range(2):
        (gradient,) = torch.autograd.grad(own(images, labels), own.images)
        moved.append(torch.stack(tiles(gradient, 2), 1).flatten(2).abs().sum(2).view(3, 2 * 4) > 0)
        assert moved[-1].sum(1).tolist() == [3, 3, 3]
    assert not torch.equal(*moved)


def test_it_begins_with_real_images_chosen_at_random_whatever_the_batches():
    images, labels = examples(60)
    began = []
    for seed, size in ((5, 60), (5, 7), (6, 60)):
        own = distiller(seed=seed)
        own.begin_with(zip(images.split(size), labels.split(size), strict=True))
        began.append(own.images.detach())
    assert torch.equal(began[0], began[1]) and not torch.equal(began[0], began[2])
    small = F.interpolate(images, size=4, mode="area")
    for label in range(3):
        found = torch.stack(tiles(began[0][2 * label : 2 * label + 2], 2)).flatten(0, 1)
        places = [int((small - one).abs().sum((1, 2, 3)).argmin()) for one in found]
        assert len({*places}) == 8 and all(labels[place] == label for place in places)
        assert torch.allclose(small[places], found)


def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = (torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.305) / 0.376
    labels = torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [(images[rows], labels[rows]) for rows in (order[360:], order[:360])]


def accuracy(images, labels, test, seed):
    """Of a network that is trained on these alone, augmented in training."""
    torch.manual_seed(seed)
    network = nn.Sequential(features(width=16), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        changed = augmented(images, torch.rand(len(images), NOISE), WAYS)
        optimizer.zero_grad()
        F.cross_entropy(network(changed), labels).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (network.eval()(test[0]).argmax(1) == test[1]).float().mean().item()


WAYS = "crop_rotate_scale"


def test_networks_learn_more_from_distilled_digits_than_from_as_many_real_ones():
    train, test = digits()
    better = []
    for seed in SEEDS:
        own = DatasetDistiller(
            lambda: features(width=32), per_class=10, classes=10, shape=(1, 8, 8), augment=WAYS, seed=seed
        )
        own.begin_with([train])
        optimizer = torch.optim.SGD(own.parameters(), 5.0, momentum=0.5)
        order = np.random.default_rng(seed)
        for _ in range(60):
            rows = torch.from_numpy(order.permutation(len(train[1]))[:512])
            optimizer.zero_grad()
            own(train[0][rows], train[1][rows]).backward()
            optimizer.step()
        real = DatasetDistiller(features, per_class=10, classes=10, shape=(1, 8, 8), seed=100 + seed)
        real.begin_with([train])
        worth = [accuracy(one.images.detach(), one.labels, test, seed) for one in (own, real)]
        better.append(worth[0] - worth[1])
    mean, error = np.mean(better), np.std(better, ddof=1) / math.sqrt(len(better))
    assert mean - 2.776 * error > 0, better  # Student's interval of 95 %


def test_files_of_ours_and_of_others(tmp_path):
    images, labels = torch.rand(6, 3, 5, 5), torch.arange(6) % 3
    save_distilled(tmp_path / "own.safetensors", images, labels, factor=2, augment="flip", digest="abc")
    found = load_distilled(tmp_path / "own.safetensors")
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
    assert (found.factor, found.augment, found.classes) == (2, "flip", 3)
    save_file({"images": images.half(), "labels": labels.int()}, tmp_path / "theirs.safetensors")
    found = load_distilled(tmp_path / "theirs.safetensors")
    assert (found.factor, found.augment, found.images.dtype, found.labels.dtype) == (
        1,
        "none",
        torch.float32,
        torch.int64,
    )
    assert {*load_file(tmp_path / "own.safetensors")} == {"images", "labels"}


FLOATS, WHOLE = torch.rand(4, 1, 5, 5), torch.arange(4)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"data": FLOATS}, {}, "is no distilled set: it holds data; expected images and labels"),
        ({"images": FLOATS[0], "labels": WHOLE}, {}, r"its images are float32 \(1, 5, 5\); expected floats"),
        ({"images": FLOATS.to(torch.uint8), "labels": WHOLE}, {}, "its images are uint8"),
        ({"images": FLOATS, "labels": WHOLE[:3]}, {}, r"its labels are int64 \(3,\); expected 4 integers"),
        ({"images": FLOATS, "labels": WHOLE.float()}, {}, "its labels are float32"),
        ({"images": FLOATS / 0, "labels": WHOLE}, {}, "its images hold values that are not finite"),
        ({"images": FLOATS, "labels": WHOLE - 1}, {}, "it has the label -1; expected classes from 0"),
        ({"images": FLOATS, "labels": WHOLE}, {"factor": "two"}, "it tells the factor 'two'; expected a whole number"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tensors, metadata, message, tmp_path):
    save_file(tensors, file := tmp_path / "set.safetensors", metadata)
    with pytest.raises(ValueError, match=message) as error:
        load_distilled(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": 0}, "per_class must be 1 or more, got 0"),
        ({"classes": 0}, "classes must be 1 or more"),
        ({"factor": 0}, "factor must be 1 or more"),
        ({"at_once": 9}, "at_once must be 1 to 8, or None, got 9"),
        ({"factor": 9}, "factor must be at most 8, a side, got 9"),
        ({"shape": (8, 8)}, "shape must be"),
        ({"augment": "color_colour"}, "augment must be none, or some of color_crop"),
        ({"augment": "crop_crop"}, "augment must be none, or some of"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"DatasetDistiller: {message}"):
        distiller(**changes)


def test_real_images_that_do_not_suffice_are_refused():
    images, labels = examples(9)
    with pytest.raises(ValueError, match="class 0 has 3 real images: expected 8 or more to begin with"):
        distiller().begin_with([(images, labels)])
    with pytest.raises(ValueError, match="the real labels are 0 to 2: expected 0 to 1, the classes"):
        distiller(classes=2).begin_with([(images, labels)])
