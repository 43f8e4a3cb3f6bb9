"""A run that distils: killed and gone on with it leaves the same file, which tells where it comes from; mistakes."""

import json

import pytest
import torch
from safetensors import safe_open

from accelerando.algorithms import load_distilled
from accelerando.algorithms.examples.distillation import DatasetDistiller, tiles
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.data.images import Digits
from accelerando.recipes.models.builders import convnet
from accelerando.recipes.models.distilling import DatasetDistiller as Model
from accelerando.recipes.train import train
from runs import KILL, same, settings, trained

KEEPER = "accelerando.recipes.run.distilled_set:KeepsDistilledSet"


def distilling(folder, begin="real", **changes):
    """The base run of the tests, but of a small set; two epochs of four batches."""
    sizes = {"per_class": 2, "in_channels": 1, "image_size": 8, "factor": 2, "augment": "crop_scale"}
    return settings(folder) | {
        "model": {"dataset_distiller": sizes | changes},
        "eval_data": None,
        "eval_subset_num_batches": -1,
        "optimizer": {"sgd": {"lr": 1.0, "momentum": 0.5}},
        "scheduler": None,
        "algorithms": {KEEPER: {"begin": begin}},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result, weights = trained(distilling(folder))
    return folder / "run", result, weights


def test_a_run_leaves_its_set_and_where_it_comes_from(whole):
    folder, result, weights = whole
    found = load_distilled(folder / "distilled" / "images.safetensors")
    assert torch.equal(found.images, weights["distiller.images"]) and found.images.shape == (20, 1, 8, 8)
    assert torch.equal(found.labels, torch.arange(10).repeat_interleave(2))
    assert (found.factor, found.augment) == (2, "crop_scale")
    assert (folder / "distilled" / "images.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((folder / "results.json").read_text())["found"]["distilled"]
    assert (told["images"], told["small_images"], told["examples"]) == (20, 80, 1437)
    assert told["loss"] == [record["loss/train/total"] for record in result.records if "loss/train/total" in record][-1]
    with safe_open(folder / "distilled" / "images.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["digest"] == told["digest"] and metadata["examples"] == "1437"
    assert result.batches == 8 and result.metrics == {}


def test_killed_and_gone_on_with_it_is_the_same_bit_for_bit(whole, tmp_path):
    _, result, weights = whole
    with pytest.raises(KeyboardInterrupt):
        train(distilling(tmp_path) | KILL)
    resumed, after = trained(distilling(tmp_path))
    assert same(after, weights)
    assert resumed.found == result.found


def test_it_is_the_plain_distiller_on_the_runs_batches(whole, tmp_path):
    """From its first images, which are real ones or noise, at each step by one batch."""
    noise = trained(distilling(tmp_path, "noise"))[1]
    for begin in ("real", "noise"):
        torch.manual_seed(17)
        model = Model(2, 10, 1, 8, 2, "crop_scale")
        own = DatasetDistiller(
            lambda: convnet(width=32, in_channels=1, image_size=8).module[:-1], 2, 10, (1, 8, 8), 2, "crop_scale"
        )
        own.load_state_dict(model.distiller.state_dict())
        data = Digits().build(32, False, 17, "cpu").dataloader
        if begin == "real":
            own.begin_with(data)
        first = load_distilled((whole[0] if begin == "real" else tmp_path / "run") / "distilled" / "begin.safetensors")
        assert torch.equal(first.images, own.images.detach()) and (first.factor, first.augment) == (2, "crop_scale")
        optimizer = torch.optim.SGD(own.parameters(), 1.0, momentum=0.5)
        loader = Digits().build(32, True, 17, "cpu").dataloader
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for (images, labels), _ in zip(loader, range(4), strict=False):
                optimizer.zero_grad()
                own(images, labels).backward()
                optimizer.step()
        weights = whole[2] if begin == "real" else noise
        torch.testing.assert_close(weights["distiller.images"], own.images.detach())
    assert tiles(own.images, 2)[0].shape == (20, 1, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": 0}, "model.dataset_distiller: DatasetDistiller: per_class must be 1 or more"),
        ({"num_classes": 9}, "model.dataset_distiller.num_classes: is for 9 classes, but train_data.digits has 10"),
        ({"in_channels": 3}, "model.dataset_distiller.in_channels: is for images of 3 channel(s), but those of"),
        ({"image_size": 16}, "model.dataset_distiller.image_size: is for images of 16 pixels per side, but those of"),
        ({"augment": "crop_cut"}, "augment must be none, or some of color_crop"),
        ({"embedding": {"resnet": {"dept": 18}}}, "model.dataset_distiller.embedding.resnet.dept: unknown argument"),
        ({"embedding": {"convnet": {"in_channels": 3}}}, "model.dataset_distiller: Given groups=1"),
        ({"per_class": 40}, "class 0 has"),
    ],
)
def test_mistakes_are_one_line(changes, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        train(distilling(tmp_path, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": {}}, "nothing keeps the distilled set: expected KeepsDistilledSet among the run's algorithms"),
        (
            {"eval_data": {"digits": {"split": "test"}}},
            "nothing is evaluated of a distilled set: expected no eval_data",
        ),
        (
            {"model": settings("")["model"]},
            "KeepsDistilledSet is for the model dataset_distiller, not for a ImageClassifier",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        train(distilling(tmp_path) | changes)
    assert message in str(error.value) and "\n" not in str(error.value)
