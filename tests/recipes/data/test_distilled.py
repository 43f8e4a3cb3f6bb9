"""Training on a distilled set: its images enlarged and augmented, where its file lies, and what is refused."""

import pytest
import torch

from accelerando.algorithms import save_distilled
from accelerando.algorithms.examples.augmentation import augmented
from accelerando.algorithms.examples.distillation import enlarged
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.distilled import Distilled
from runs import settings, trained

IMAGES = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 10


@pytest.fixture
def file(tmp_path):
    save_distilled(tmp_path / "set.safetensors", IMAGES, LABELS, factor=2, augment="color_crop")
    return str(tmp_path / "set.safetensors")


def served(source, train, epoch=0):
    loader = source.build(20, train, 3, "cpu").dataloader
    loader.sampler.set_epoch(epoch)
    return [torch.cat(part) for part in zip(*loader, strict=True)]


def test_images_are_enlarged_and_augmented_as_the_file_tells(file):
    large, labels = enlarged(IMAGES, LABELS, 2)
    images, of = served(Distilled(file), train=False)
    assert torch.equal(images, large) and torch.equal(of, labels)
    loader = Distilled(file).build(20, True, 3, "cpu").dataloader
    order, noise = torch.tensor([*loader.sampler]), loader._noise(0)
    images, of = served(Distilled(file), train=True)
    assert torch.equal(of, labels[order])
    expected = augmented(large[order], noise[order], "color_crop")
    assert torch.equal(images, expected) and not torch.equal(images, large[order])
    assert not torch.equal(served(Distilled(file), train=True, epoch=1)[0].sort(0)[0], images.sort(0)[0])
    plain, _ = served(Distilled(file, factor=1, augment="none"), train=True)
    assert {one.numpy().tobytes() for one in plain} == {one.numpy().tobytes() for one in IMAGES}


def test_images_of_others_are_normalized_as_is_said(file):
    images, _ = served(Distilled(file, factor=1, mean=[0.5], std=[2.0]), train=False)
    torch.testing.assert_close(images, (IMAGES - 0.5) / 2)


def test_the_file_may_lie_in_the_folder_of_all_runs(file, tmp_path):
    config = settings(tmp_path) | {"train_data": {"distilled": {"file": "set.safetensors"}}, "scheduler": None}
    result, _ = trained(config | {"max_duration": "3ba", "train_subset_num_batches": -1})
    assert result.samples == 96
    # The run is the same wherever its folder lies.
    assert check(config).config["train_data"] == {"distilled": {"file": "set.safetensors"}}
    assert Distilled(file).overlaps(Distilled(file)) and not Distilled(file).overlaps(Distilled("other"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "nowhere.safetensors"}, "file: nowhere.safetensors is no file"),
        ({"factor": 9}, "factor: 9 given; expected from 1 to 8, the pixels of a side"),
        ({"augment": "colour"}, "augment: augmented: augment must be none, or some of color_crop"),
        ({"mean": [0.5]}, "std: missing; expected numbers for 1 channel(s) in both mean and std, or neither"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "mean: [0.5, 0.5] given; expected numbers for 1 channel(s)"),
        ({"mean": [0.5], "std": [0.0]}, "std: [0.0] given; expected numbers above 0"),
    ],
)
def test_mistakes_are_one_line(given, message, file, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(settings(tmp_path) | {"train_data": {"distilled": {"file": file, **given}}})
    assert f"train_data.distilled.{message}" in str(error.value) and "\n" not in str(error.value)


def test_a_set_of_other_classes_than_the_models_is_refused_before_training(file, tmp_path):
    model = {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 1, "num_classes": 9}}
    with pytest.raises(ConfigError, match=r"is for 9 classes, but train_data\.distilled has labels up to 9"):
        trained(settings(tmp_path) | {"model": model, "train_data": {"distilled": {"file": file}}})
