"""Data that do not fit the model or each other: one line that names the key, before anything is trained."""

import datasets
import numpy as np
import pytest
import torch
from composer import DataSpec
from composer.models import ComposerClassifier
from PIL import Image
from streaming import MDSWriter
from torch.utils.data import DataLoader, TensorDataset

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.python_docs import python_docs_tokenizer
from accelerando.recipes.run.agreement import agree, takes
from accelerando.recipes.train import train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CIFAR = {"depth": 8, "width": 4, "num_classes": 10, "in_channels": 1}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folders of images, MDS shards and tables of texts, each with labels of its own."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    for folder, classes in {
        "images/train": ["cat", "cow", "dog"],
        "images/val": ["cat", "cow", "dog"],
        "missing": ["cat", "dog"],
        "renamed": ["cat", "dog", "kuh"],
        "empty": ["cat", "dog"],
    }.items():
        for name in classes:
            (root / folder / name).mkdir(parents=True)
            for i in range(2):
                image.save(root / folder / name / f"{i}.jpeg")
    (root / "empty" / "cow").mkdir()
    for name, label in {"shards": 2, "beyond": 3, "negative": -1}.items():
        with MDSWriter(out=str(root / name), columns={"x": "jpeg", "y": "int"}) as writer:
            for i in range(8):
                writer.write({"x": image, "y": label if i == 5 else i % 3})
    for name, labels in {
        "two": [0, 1],
        "three": [0, 2],
        "unlabelled": [0, -1],
        "words": ["no", "yes"],
        "gaps": [0, None],
        "scores": [0.0, 1.0],
        "nan": [0.0, float("nan")],
        "truth": [False, True],
        "lists": [[0.0, 1.0], [1.0, 0.0]],
        "named": datasets.ClassLabel(names=["no", "yes"]),
        "swapped": datasets.ClassLabel(names=["yes", "no"]),
    }.items():
        named = isinstance(labels, datasets.ClassLabel)
        rows = {"text": ["a list", "the tuple"] * 2, "label": ([0, 1] if named else labels) * 2}
        data = datasets.Dataset.from_dict(rows)
        (data.cast_column("label", labels) if named else data).save_to_disk(str(root / name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        python_docs_tokenizer(512).save_pretrained(root / "vocabulary")
        yield root


def folder(path, **options):
    return lambda root: {
        "image_folder": {"path": str(root / path), "crop_size": 8, "resize_size": 8, "num_workers": 0, **options}
    }


def shards(path):
    return lambda root: {
        "streaming_images": {"local": str(root / path), "crop_size": 8, "resize_size": 8, "num_workers": 0}
    }


def table(path, **options):
    given = {"seq_len": 16, "label_column": "label", **options}
    return lambda root: {
        "hugging_face_text": {"name": str(root / path), "tokenizer": str(root / "vocabulary"), **given}
    }


def digits(split, **options):
    return lambda root: {"digits": {"split": split, **options}}


def docs(**options):
    return lambda root: {"python_docs": {"seq_len": 32, "vocab_size": 512, **options}}


def resnet(num_classes):
    return {"resnet": {"depth": 18, "num_classes": num_classes}}


def cifar(**options):
    return {"resnet_cifar": CIFAR | options}


def lenet(**options):
    return {"lenet_300_100": {"image_size": 8, **options}}


def bert(num_labels=None, **fields):
    config = {"vocab_size": 512, "max_position_embeddings": 32, **SIZES, **fields}
    kind = {"objective": "classification", "num_labels": num_labels} if num_labels else {}
    return {"bert": {"config": config, **kind}}


def recipe_of(root, model, training, evaluation=None, **more):
    data = {"train_data": training(root), **({"eval_data": evaluation(root)} if evaluation else {})}
    fixed = {"run_name": "run", "folder": str(root / "runs"), "max_duration": "1ep", "global_batch_size": 2}
    return check({**fixed, "model": model, "optimizer": {"sgd": {"lr": 0.1}}, "device": "cpu", **data, **more})


def compare(*parts, **more):
    recipe = recipe_of(*parts, **more)
    data = [(part, part.build(2, False, 0, "cpu")) for part in (recipe.train_data, recipe.eval_data) if part]
    agree(recipe, takes(recipe.model.build()), data)


FOLDER, TABLE = "train_data.image_folder", "train_data.hugging_face_text"
WRONG = {
    "more outputs": (
        resnet(1000),
        folder("images/train"),
        None,
        "model.resnet.num_classes: is for 1000 .* 3: cat",
    ),
    "fewer outputs": (resnet(2), folder("images/train"), None, "model.resnet.num_classes: is for 2 .* has 3: cat"),
    "the parent": (resnet(2), folder("images"), None, f"{FOLDER}: .* holds the folders train, val: .*images/train"),
    "a class less": (resnet(3), folder("images/train"), folder("missing"), "eval_data.image_folder: lacks cow; exp"),
    "another": (resnet(3), folder("images/train"), folder("renamed"), "eval_data.image_folder: lacks cow and has kuh"),
    "a frame": (resnet(3), folder("images/train"), folder("empty", crop_size=9), "eval_data.*: resize_size must be at"),
    "digits, 3": (cifar(num_classes=3), digits("train"), None, "num_classes: is for 3 classes, .* train_data.digits"),
    "digits, 11": (cifar(num_classes=11), digits("train"), None, "num_classes: is for 11 classes, but .* has 10"),
    "digits in colour": (cifar(in_channels=3), digits("train"), None, "in_channels: is for images of 3 .* have 1$"),
    "grey digits": (resnet(10), digits("train"), None, "model.resnet: is for images of 3 channel.* have 1$"),
    "other classes": (
        cifar(),
        digits("train"),
        folder("images/val"),
        "eval_data.image_folder: lacks 0, 1, 2 and 7",
    ),
    "side": (lenet(), digits("train", resize=4), None, "image_size: is for images of 8 pixels per side, but .* have 4"),
    "evaluated side": (
        {"convnet": {"in_channels": 1, "image_size": 8}},
        digits("train"),
        digits("test", resize=4),
        "model.convnet.image_size: is for images of 8 pixels per side, but those of eval_data.digits have 4",
    ),
    "cropped": (
        {"convnet": {"num_classes": 3}},
        folder("images/train"),
        None,
        "is for images of 32 pixels per side, but those of train_data.image_folder have 8",
    ),
    "linear channels": (lenet(in_channels=3), digits("train"), None, "is for images of 3 channel.* have 1"),
    "too small": (
        {"vgg_cifar": {"in_channels": 1, "width": 4}},
        digits("train"),
        None,
        "train_data.digits: has images of 8 pixels per side, but model.vgg_cifar takes 16 or more",
    ),
    "images as text": (bert(), digits("train"), None, "train_data.digits: holds images, but model.bert takes texts"),
    "text as images": (cifar(), table("two"), None, f"{TABLE}: holds texts, but model.resnet_cifar takes images"),
    "labels beyond": (bert(2), table("three"), None, "model.bert.num_labels: is for 2 classes, .* has labels up to 2"),
    "labels below": (bert(3), table("two"), None, "model.bert.num_labels: is for 3 classes, but .* has labels up to 1"),
    "evaluated": (
        bert(2),
        table("two"),
        table("three"),
        "num_labels: is for 2 .* eval_data.* labels up to 2",
    ),
    "names": (bert(3), table("named"), None, "model.bert.num_labels: is for 3 classes, but .* has 2: no, yes"),
    "order": (bert(2), table("named"), table("swapped"), "eval_data.*: has its classes in another order; expected"),
    "unlabelled": (bert(2), table("unlabelled"), None, f"{TABLE}.label_column: row 1 of train has -1 as label; exp"),
    "words": (bert(2), table("words"), None, f"{TABLE}.label_column: row 0 of train has 'no' as label"),
    "gaps": (bert(2), table("gaps"), None, f"{TABLE}.label_column: row 1 of train has null as label"),
    "nan": (bert(1), table("nan"), None, f"{TABLE}.label_column: row 1 of train has nan as label"),
    "truth": (bert(2), table("truth"), None, f"{TABLE}.label_column: row 0 of train has false as label"),
    "lists": (bert(2), table("lists"), None, f"{TABLE}.label_column: row 0 of train has .0.0, 1.0. as label"),
    "scores": (bert(2), table("scores"), None, f"{TABLE}: has labels that are numbers, but model.bert takes classes"),
    "ratings": (bert(1), table("two"), None, f"{TABLE}: has labels that are classes, but model.bert takes numbers"),
    "masked": (bert(), table("two"), None, f"{TABLE}: has labels that are classes, but .* takes tokens.*: leave out"),
    "no labels": (bert(2), table("two", label_column=None), None, f"{TABLE}: has labels that are tokens.*; give label"),
    "too many words": (bert(2, vocab_size=99), table("two"), None, f"{TABLE}.tokenizer: has a vocabulary of 512 w"),
    "not masked": (
        bert(2),
        docs(),
        None,
        "train_data.python_docs: has labels that are tokens, but model.bert takes cl",
    ),
    "positions": (bert(2), table("two", seq_len=33), None, f"{TABLE}.seq_len: is 33, but model.bert has 32 positions"),
    "vocabulary": (
        bert(vocab_size=99),
        docs(),
        None,
        "train_data.python_docs: has a vocabulary of 512 words, .* for 99",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(case, files):
    *parts, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as raised:
        compare(files, *parts)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "parts",
    [
        (resnet(3), folder("images/train"), folder("images/val")),
        (resnet(3), folder("images/train"), folder("empty")),
        (resnet(3), shards("shards"), folder("images/val")),
        (cifar(), digits("train"), digits("test")),
        (lenet(image_size=4), digits("train", resize=4), digits("test", resize=4)),
        (bert(2), table("named"), table("two")),
        (bert(3), table("three"), table("two")),
        (bert(1), table("scores")),
        (bert(), docs(split="test")),
    ],
)
def test_what_fits_is_let_through(parts, files):
    compare(files, *parts)


@pytest.mark.parametrize(("path", "label"), [("beyond", 3), ("negative", -1)])
@pytest.mark.parametrize("part", ["train_data", "eval_data"])
def test_a_label_that_only_shards_know_ends_the_run_when_it_comes(path, label, part, files):
    data = [shards(path), folder("images/val")]
    with pytest.raises(
        ConfigError, match=rf"{part}.streaming_images: has the label {label}, but model.resnet is for 3"
    ):
        train(recipe_of(files, resnet(3), *(data if part == "train_data" else data[::-1]), autoresume=False))


class Elsewhere:
    """Somebody's source, which says nothing of what it holds."""

    def check(self):
        pass

    def build(self, batch_size, train, seed, device):
        labels = torch.tensor([0, 1, 2, 1, -100, 0, 1, 3])
        return DataSpec(DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), labels), batch_size))


def test_what_says_nothing_is_left_alone_but_for_labels_that_end_in_an_error(files):
    def somebodys(root):
        return {f"{__name__}:Elsewhere": {}}

    recipe = recipe_of(files, cifar(num_classes=3), somebodys)
    spec = recipe.train_data.build(2, True, 0, "cpu")
    agree(recipe, takes(recipe.model.build()), [(recipe.train_data, spec)])
    *good, last = spec.dataloader
    for batch in good:
        assert spec.batch_transforms(batch) is batch
    with pytest.raises(ConfigError, match=r"has the label 3, but model.resnet_cifar is for 3 classes"):
        spec.batch_transforms(last)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    own = ComposerClassifier(module, num_classes=3, loss_fn=lambda outputs, targets: outputs.mean())
    assert takes(own).classes is None and takes(ComposerClassifier(module, num_classes=3)).classes == 3


@pytest.mark.parametrize(
    ("model", "data"), [(cifar(), digits("train")), (resnet(3), folder("images/train")), (bert(2), table("two"))]
)
def test_tokens_are_counted_where_there_are_any(model, data, files):
    with pytest.raises(ConfigError, match=r"accumulate_train_batch_on_tokens: true given, .* no labelled tokens"):
        compare(files, model, data, accumulate_train_batch_on_tokens=True)
