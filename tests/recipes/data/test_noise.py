"""Labels that are wrong on purpose: how many, the same at every look, and what cannot have them."""

import pytest
import torch
from formats import picture

from accelerando.recipes.config.errors import ArgumentError, ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import Digits
from accelerando.recipes.data.noise import NoisyLabels, changed_by, noisy
from runs import settings

OF = {"digits": {"split": "train[:1000]"}}


def in_order(source):
    batches = [*source.build(500, False, 0, "cpu").dataloader]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_as_many_labels_as_asked_for_are_wrong_and_of_all_other_classes_alike():
    labels = torch.arange(10).repeat(1000)
    for fraction in (0.15, 0.9):
        found = noisy(labels, 10, fraction, seed=3)
        wrong = found != labels
        assert int(wrong.sum()) == 10_000 * fraction
        assert torch.equal(wrong.nonzero()[:, 0], changed_by(10_000, fraction, seed=3))
        pairs = torch.stack([found[wrong & (labels == label)].bincount(minlength=10) for label in range(10)])
        assert not pairs.diagonal().any()
        others = pairs[~torch.eye(10, dtype=torch.bool)].double()
        # Each of the 90 is a count with this mean and about its root for a deviation.
        mean = 1000 * fraction / 9
        assert ((others - mean).abs() < 5 * mean**0.5).all() and others.var() < 2 * mean
        assert torch.equal(found, noisy(labels, 10, fraction, seed=3))
        assert not torch.equal(found, noisy(labels, 10, fraction, seed=4))
    assert torch.equal(labels, torch.arange(10).repeat(1000))
    assert torch.equal(noisy(labels, 10, 0.0, seed=3), labels)


def test_an_example_has_one_label_in_every_epoch_and_in_evaluation():
    source, clean = NoisyLabels(of=OF, fraction=0.5, seed=1), Digits("train[:1000]")
    images, labels = in_order(source)
    same_images, true = in_order(clean)
    assert torch.equal(images, same_images)
    assert torch.equal(labels, noisy(true, 10, 0.5, 1))
    changed = source.build(500, True, 0, "cpu").facts.changed
    assert (labels != true).nonzero()[:, 0].tolist() == [*changed] and len(changed) == 500
    with pytest.raises(ArgumentError, match=r"fraction: 0\.0001 given, which changes none of 1000 labels"):
        in_order(NoisyLabels(of=OF, fraction=1e-4))
    nothing = NoisyLabels(of=OF, fraction=0.0)
    assert torch.equal(in_order(nothing)[1], true) and not nothing.build(500, False, 0, "cpu").facts.changed
    given = {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    loader = source.build(100, True, 7, "cpu").dataloader
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        seen = [pair for images, labels in loader for pair in zip(images, labels.tolist(), strict=True)]
        assert len(seen) == 1000 and all(given[image.numpy().tobytes()] == label for image, label in seen)


def test_a_folder_of_images(tmp_path):
    for i in range(40):
        name = tmp_path / ("cat" if i < 20 else "dog") / f"{i:02}.jpeg"
        name.parent.mkdir(exist_ok=True)
        picture(i).save(name)
    folder = {"image_folder": {"path": str(tmp_path), "crop_size": 16, "resize_size": 16, "num_workers": 0}}
    source = NoisyLabels(of=folder, fraction=0.5)
    source.check()
    (_, labels), *_ = source.build(40, False, 0, "cpu").dataloader
    true = torch.tensor([0] * 20 + [1] * 20)
    assert torch.equal(labels, noisy(true, 2, 0.5, 0)) and int((labels != true).sum()) == 20


def test_what_is_left_out_of_training_is_left_out_here_too(tmp_path):
    assert NoisyLabels(of=OF).overlaps(Digits("train[500:]")) and not NoisyLabels(of=OF).overlaps(Digits("test"))
    assert NoisyLabels(of=OF).overlaps(NoisyLabels(of={"digits": {}}))
    others = {"train_data": {"noisy_labels": {"of": OF}}, "validation_data": {"digits": {"split": "train[900:]"}}}
    with pytest.raises(ConfigError, match=r"validation_data\.digits: holds examples of train_data"):
        check(settings(tmp_path) | others)
    check(settings(tmp_path) | others | {"validation_data": {"digits": {"split": "train[1000:]"}}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"of": {"digit": {}}}, "of.digit: unknown name; did you mean digits?"),
        ({"of": {"digits": {"splt": "test"}}}, "of.digits.splt: unknown argument; did you mean split?"),
        ({"of": {"digits": {"split": "all"}}}, "of.digits.split: 'all' given; expected train or test"),
        ({"of": {}}, "of: expected one name, found none"),
        ({"of": {"digits": {}}, "fraction": 1}, "fraction: 1.0 given; expected a share from 0 and below 1"),
        ({"of": {"digits": {}}, "fraction": -0.1}, "fraction: -0.1 given; expected a share from 0 and below 1"),
        ({"of": {"digits": {}}, "seed": -1}, "seed: -1 given; expected a whole number"),
        ({"of": {"fashion_mnist": {"path": "/nowhere"}}}, "of.fashion_mnist: found no train-images"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(settings(tmp_path) | {"train_data": {"noisy_labels": given}})
    assert f"train_data.noisy_labels.{message}" in str(error.value) and "\n" not in str(error.value)
