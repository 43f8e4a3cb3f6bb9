"""A network of one's own as a classifier: its weights are its own, its loss is the chosen one, mistakes have a key."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import runs
from accelerando.recipes.config.errors import ConfigError, Source
from accelerando.recipes.config.recipe import check
from accelerando.recipes.config.sections import check_section
from accelerando.recipes.models.classifier import binary_cross_entropy
from accelerando.recipes.run.agreement import agree, takes
from accelerando.recipes.run.teachers import build_teachers
from accelerando.recipes.train import train

HERE = __name__
OWN = {"classifier": {"module": f"{__name__}:Net", "num_classes": 10}}


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)


class Wrong(Net):
    def forward(self, images):
        return self.layers(images[:, :, 1:])


def halved(logits, labels):
    return F.cross_entropy(logits, labels) / 2


def exploding():
    raise LookupError("built")


def built(module, **arguments):
    (part,) = check_section(Source(), "model", {"classifier": {"module": module, "num_classes": 10, **arguments}})
    return part.build()


def test_the_network_keeps_its_own_weights_and_the_loss_is_the_chosen_one():
    torch.manual_seed(3)
    expected = Net(5)
    torch.manual_seed(3)
    model = built({f"{HERE}:Net": {"width": 5}})
    assert runs.same(model.module.state_dict(), expected.state_dict())
    batch = torch.randn(6, 1, 8, 8), torch.arange(6)
    logits = model(batch)
    assert torch.equal(logits, expected(batch[0])) and model.loss(logits, batch) == F.cross_entropy(logits, batch[1])
    assert {*model.get_metrics(is_train=False)} == {"CrossEntropy", "MulticlassAccuracy", "MulticlassTop5Accuracy"}
    for loss, function in (("bce", binary_cross_entropy), (f"{HERE}:halved", halved)):
        assert built(f"{HERE}:Net", loss=loss).loss(logits, batch) == function(logits, batch[1])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "model.classifier.module: expected one name, found none"),
        ({"module": "Net"}, "model.classifier.module.Net: not an import path; expected package.module:Name"),
        ({"module": f"{HERE}:Nett"}, f"model.classifier.module.{HERE}:Nett: the module {HERE} has no Nett"),
        ({"module": {f"{HERE}:Net": {"widht": 1}}}, f"module.{HERE}:Net.widht: unknown argument; did you mean width?"),
        ({"module": f"{HERE}:check"}, f"module.{HERE}:check.config: missing; it has no default"),
        ({"module": f"{HERE}:Source"}, "expected a subclass of Module, or a function that makes one"),
        ({"module": f"{HERE}:Net", "classes": 3}, "model.classifier.classes: unknown argument; did you mean num_class"),
    ],
)
def test_a_mistake_is_found_before_anything_is_built(model, message):
    arguments = {"num_classes": 10, **model} if "classes" not in model else model
    with pytest.raises(ConfigError) as error:
        check_section(Source(), "model", {"classifier": arguments})
    assert message in str(error.value)


def test_a_plain_module_in_the_place_of_a_model_is_told_where_it_goes():
    with pytest.raises(ConfigError, match=r"a plain nn.Module, {classifier: {module: {package.module:Net: {}}, num_cl"):
        check_section(Source(), "model", f"{HERE}:Net")


@pytest.mark.parametrize(("loss", "message"), [("hinge", "not an import path"), (f"{HERE}:HERE", "is a str")])
def test_a_loss_that_is_none_is_refused(loss, message):
    with pytest.raises(ConfigError, match=rf"model.classifier.loss: {loss}.* {message}.*; expected cross_entropy, bce"):
        built(f"{HERE}:Net", loss=loss)


def test_a_run_trains_it_and_as_a_teacher_it_must_be_named_in_ones_own_file(tmp_path):
    model = {"classifier": {"module": {f"{HERE}:Net": {"width": 32}}, "num_classes": 10}}
    config = runs.settings(tmp_path) | {"model": model, "optimizer": {"adam": {"lr": 0.01}}, "max_duration": "6ep"}
    result = train(config | {"algorithms": {}})
    assert result.records[-1]["metrics/eval/MulticlassAccuracy"] > 0.3
    student = {"distillation": {"teachers": str(tmp_path / "run")}}
    recipe = check(config | {"run_name": "student", "algorithms": student})
    with pytest.raises(ConfigError, match=r"module.*refused in the folder of a teacher; give {checkpoint: FILE"):
        build_teachers(recipe, recipe.algorithms[0].arguments["teachers"])


class Labelled(Dataset):
    """Images of the digits' size, with labels in one form or another."""

    def __init__(self, form: str):
        self.form = form

    def __len__(self):
        return 8

    def __getitem__(self, place):
        image, label = torch.zeros(1, 8, 8), place % 3
        if self.form == "mapping":
            return {"image": image, "label": label, "name": 1}
        if self.form == "alone":
            return image
        forms = {
            "float": float(label),
            "column": torch.tensor([label]),
            "text": "cat",
            "narrow": torch.tensor(label).int(),
        }
        return image, forms.get(self.form, label)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("float", r"the labels of a batch are torch.float64 in the shape \(4,\); model.classifier takes whole numbers"),
        (
            "column",
            r"the labels of a batch are torch.int64 in the shape \(4, 1\); model.classifier takes whole numbers",
        ),
        ("narrow", r"the labels of a batch are torch.int32 in the shape \(4,\); .* of torch.int64 in the shape \(N,\)"),
        ("text", r"the labels of a batch are a (list|tuple) of 4; model.classifier takes"),
        ("mapping", r"a batch is a mapping of image, label, name; model.classifier takes \(inputs, labels\)"),
        ("alone", r"a batch is torch.float32 in the shape \(4, 1, 8, 8\); model.classifier takes \(inputs, labels\)"),
    ],
)
def test_batches_of_another_form_are_told_of(form, message):
    recipe = check(runs.settings("runs") | {"model": OWN, "train_data": {f"{HERE}:Labelled": {"form": form}}})
    spec = recipe.train_data.build(4, True, 0, "cpu")
    agree(recipe, takes(recipe.model.build()), [(recipe.train_data, spec)])
    with pytest.raises(ConfigError, match=f"train_data.{HERE}:Labelled: {message}"):
        for batch in spec.dataloader:
            spec.microbatch_transforms(spec.batch_transforms(batch))


def test_a_run_with_other_labels_or_classes_ends_with_the_key(tmp_path):
    same = {f"{HERE}:Labelled": {"form": "right"}}
    settings = runs.settings(tmp_path) | {"global_batch_size": 4, "algorithms": {}, "model": OWN, "eval_data": same}
    del settings["train_subset_num_batches"]
    with pytest.raises(ConfigError, match=f"train_data.{HERE}:Labelled: the labels of a batch are torch.float64"):
        train(settings | {"train_data": {f"{HERE}:Labelled": {"form": "float"}}})
    model = {"classifier": {"module": f"{HERE}:Net", "num_classes": 12}}
    with pytest.raises(ConfigError) as error:
        train(settings | {"model": model, "train_data": same})
    assert "config: model.classifier.num_classes: 12 given, but the network returns 10 numbers" in str(error.value)


def test_what_fails_in_it_is_told_with_its_place(tmp_path):
    with pytest.raises(ConfigError) as error:
        train(runs.settings(tmp_path) | {"model": {"classifier": {"module": f"{HERE}:Wrong", "num_classes": 10}}})
    assert "test_own.py" in str(error.value) and ": return self.layers(images[:, :, 1:]); where" in str(error.value)
    with pytest.raises(ConfigError, match=rf"classifier.module.{HERE}:exploding: LookupError: built; at .*test_own.py"):
        built(f"{HERE}:exploding")
