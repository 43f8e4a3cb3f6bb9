"""Models by name: their shapes, their losses, their initial state, and what they refuse."""

import math
from itertools import pairwise

import pytest
import torch
from composer.loss import binary_cross_entropy_with_logits
from sklearn import metrics as plain
from torch.nn import functional as F

from accelerando.recipes.config.recipe import check
from accelerando.recipes.models import builders
from accelerando.recipes.models.builders import bert, convnet, lenet_300_100, resnet, resnet_cifar, vgg_cifar
from accelerando.recipes.models.metrics import build_metrics
from accelerando.recipes.train import train

TINY_BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def text_batch(labels):
    ids = torch.randint(5, 64, (4, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels(ids)}


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet(depth):
    model = resnet(depth, num_classes=7)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 6])
    logits = model((images, labels))
    assert logits.shape == (2, 7)
    torch.testing.assert_close(model.loss(logits, (images, labels)), F.cross_entropy(logits, labels))
    # Kaiming-normal over the fan-in, and uniform BatchNorm scales.
    weight = model.module.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert model.module.bn1.weight.min() < 0.2 and model.module.bn1.weight.max() <= 1


@pytest.mark.parametrize("kind", ["index", "dense"])
def test_bce_is_composers_and_starts_at_equal_chances(kind):
    model = resnet_cifar(8, num_classes=10, loss="bce")
    torch.testing.assert_close(model.module[-1].bias, torch.full((10,), -math.log(10)))
    logits = torch.randn(6, 10)
    target = torch.arange(6) if kind == "index" else torch.softmax(torch.randn(6, 10), 1)
    torch.testing.assert_close(model.loss(logits, (None, target)), binary_cross_entropy_with_logits(logits, target))


def test_cross_entropy_takes_dense_targets():
    logits, target = torch.randn(6, 10), torch.softmax(torch.randn(6, 10), 1)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(resnet_cifar(8).loss(logits, (None, target)), expected)


@pytest.mark.parametrize(("depth", "channels", "size"), [(8, 1, 8), (8, 1, 28), (20, 3, 32)])
def test_resnet_cifar(depth, channels, size):
    model = resnet_cifar(depth, in_channels=channels)
    assert model((torch.randn(2, channels, size, size), None)).shape == (2, 10)
    weights = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weights) - 2 == depth  # its layers, and two projections
    strided = [m for m in weights if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == 4 and all(m.in_channels >= 16 for m in strided)


def test_resnet_cifar_has_the_papers_size():
    # He et al. 2015, table 6: 0.27 M and 0.85 M.
    for depth, millions in [(20, 0.27), (56, 0.86)]:
        parameters = sum(p.numel() for p in resnet_cifar(depth).parameters())
        assert parameters / 1e6 == pytest.approx(millions, abs=0.01)


def test_resnet_cifar_refuses_other_depths():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet_cifar(depth=18)


# VGG-16 has 14.7 M. By hand: 9 a b weights of a 3x3 convolution from a channels to b, b biases and 2 b of its norm.
STAGES = {
    11: [3, 64, 128, 256, 256, 512, 512, 512, 512],
    13: [3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    16: [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    19: [3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512],
}
LENET = 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
GREY = 9 * 128 + 2 * 9 * 128 * 128 + 3 * 3 * 128 + 128 * 4 * 4 * 10 + 10


@pytest.mark.parametrize(
    ("model", "arguments", "parameters", "images"),
    [
        (lenet_300_100, {}, LENET, (1, 28)),
        (lenet_300_100, {"width": 30, "depth": 4, "in_channels": 3, "image_size": 8}, 30 * 193 + 310 + 220, (3, 8)),
        (lenet_300_100, {"width": 2, "depth": 2, "num_classes": 5}, 2 * 785 + 5 * 3, (1, 28)),
        *(
            (vgg_cifar, {"depth": depth}, sum((9 * a + 3) * b for a, b in pairwise(plan)) + 5130, (3, 32))
            for depth, plan in STAGES.items()
        ),
        (convnet, {}, 320_010, (3, 32)),  # as Zhao et al. 2021 have it for CIFAR-10
        (convnet, {"normalization": "batch"}, 320_010, (3, 32)),
        (convnet, {"in_channels": 1, "image_size": 28}, GREY, (1, 28)),
        (convnet, {"width": 8, "depth": 1, "image_size": 9, "num_classes": 2}, 8 * 27 + 24 + 2 * 128 + 2, (3, 9)),
    ],
)
def test_sizes_of_networks(model, arguments, parameters, images):
    built = model(**arguments)
    assert sum(p.numel() for p in built.parameters()) == parameters
    channels, side = images
    assert built((torch.randn(2, channels, side, side), None)).shape == (2, built.num_classes)


TINY = {
    "lenet_300_100": {"image_size": 8, "width": 30},
    "vgg_cifar": {"in_channels": 1, "depth": 11, "width": 2},
    "convnet": {"image_size": 8, "in_channels": 1, "width": 4},
    "resnet_cifar": {"depth": 8, "in_channels": 1, "width": 2},
}
TRAINED_BY = {
    "ticket": {"lottery_ticket": {"levels": 2, "fraction": 0.5}},
    **{criterion: {"prune_at_init": {"criterion": criterion, "density": 0.25}} for criterion in ("snip", "grasp")},
    "synflow": {"prune_at_init": {"criterion": "synflow", "density": 0.25, "iterations": 5}},
}


# VGG's last kernels see one pixel of so small images: eight ninths of their weights have no effect, and a score of 0.
@pytest.mark.filterwarnings("ignore:.*weights kept are chosen by their index")
@pytest.mark.parametrize("by", TRAINED_BY)
@pytest.mark.parametrize("name", TINY)
def test_a_recipe_prunes_a_quarter_to_be_left(name, by, tmp_path):
    side = {"fashion_mnist": {"split": "test[:256]", "resize": 16}} if name == "vgg_cifar" else {"digits": {}}
    config = {
        "run_name": "run",
        "folder": str(tmp_path),
        "max_duration": "2ba",
        "save_interval": "2ba",
        "global_batch_size": 32,
        "model": {name: TINY[name]},
        "train_data": side,
        "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}},
        "algorithms": TRAINED_BY[by],
        "device": "cpu",
    }
    train(check(config))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]["model"]
    weights = [value for key, value in saved.items() if key.endswith("weight") and value.ndim > 1]
    kept = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert kept == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", TINY)
def test_networks_are_compiled_blurred_and_computed_in_bfloat16(name):
    model = getattr(builders, name)(**TINY[name])
    images, labels = torch.randn(4, 1, 16, 16) if name == "vgg_cifar" else torch.randn(4, 1, 8, 8), torch.arange(4)
    expected = model.eval().module(images)
    compiled = torch.compile(model.module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    if name != "lenet_300_100":
        last = model.module.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train().module(images)
    assert logits.dtype is torch.bfloat16
    model.loss(logits, (images, labels)).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_instance_normalization_is_of_each_image_and_channel():
    norm = convnet(width=4).module[1]
    x = torch.randn(3, 4, 6, 6)
    expected = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_width_of_resnet():
    parameters = sum(p.numel() for p in resnet(50, width=128).parameters())
    assert parameters == 68_883_240  # torchvision's documentation of wide_resnet50_2
    with pytest.raises(ValueError, match=r"width must be 64 at depth 34, not 32"):
        resnet(34, width=32)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lenet_300_100, {"depth": 1}, "depth must be at least 2, not 1"),
        (lenet_300_100, {"width": 2}, "width must be at least 3, not 2"),
        (convnet, {"image_size": 7}, "image_size must be at least 8, which 3 poolings halve to 1, not 7"),
        (convnet, {"depth": 0}, "depth must be at least 1, not 0"),
        (vgg_cifar, {"width": 0}, "width must be at least 1, not 0"),
    ],
)
def test_what_makes_no_network_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


@pytest.mark.parametrize(("model", "size"), [(resnet, "num_classes"), (resnet_cifar, "width")])
def test_sizes_below_one_are_refused(model, size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, not 0"):
        model(**{size: 0})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_for_masked_lm(attention):
    model = bert(config=TINY_BERT, attention=attention)
    assert model.config.hidden_size == 16 and model.config._attn_implementation == attention
    batch = text_batch(lambda ids: ids.masked_fill(torch.rand(ids.shape) < 0.5, -100))
    outputs = model(batch)
    assert outputs["logits"].shape == (4, 8, 64) and outputs["loss"].requires_grad
    assert set(model.get_metrics(is_train=False)) == {"LanguageCrossEntropy", "MaskedAccuracy"}
    logits = model.eval().eval_forward(dict(batch))
    for metric in model.get_metrics(is_train=False).values():
        model.update_metric(batch, logits, metric)
    metric = model.get_metrics(is_train=False)["LanguageCrossEntropy"]
    torch.testing.assert_close(metric.compute(), model(batch)["loss"])


@pytest.mark.parametrize(("num_labels", "metric"), [(3, "MulticlassAccuracy"), (1, "MeanSquaredError")])
def test_bert_for_classification_and_regression(num_labels, metric):
    model = bert("classification", TINY_BERT, num_labels=num_labels).eval()
    batch = text_batch(lambda ids: torch.tensor([0, 1, 2, 1]) if num_labels > 1 else torch.randn(4))
    assert model(batch)["logits"].shape == (4, num_labels)
    metrics = model.get_metrics(is_train=False)
    for each in metrics.values():
        model.update_metric(batch, model.eval_forward(dict(batch)), each)
    loss = metrics["CrossEntropy" if num_labels > 1 else "MeanSquaredError"]
    torch.testing.assert_close(loss.compute(), model(batch)["loss"])
    assert metric in metrics and "CrossEntropy" not in model.get_metrics(is_train=True)


def test_bert_starts_from_pretrained_weights(tmp_path):
    source = bert(config=TINY_BERT)
    source.model.save_pretrained(tmp_path)
    again = bert(pretrained=str(tmp_path), config={"hidden_dropout_prob": 0.3})
    assert again.config.hidden_dropout_prob == 0.3 and again.config.hidden_size == 16
    expected = source.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    body = bert("classification", pretrained=str(tmp_path), num_labels=4).model
    assert torch.equal(body.bert.embeddings.word_embeddings.weight, source.model.bert.embeddings.word_embeddings.weight)


def test_bert_starts_from_a_checkpoint_file(tmp_path):
    source = bert(config=TINY_BERT)
    content = {"state": {"model": source.state_dict(), "integrations": {"huggingface": source.get_metadata()}}}
    torch.save(content, tmp_path / "ep1.pt")
    again = bert(pretrained=str(tmp_path / "ep1.pt"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"it has another shape of bert.embeddings.word_embeddings.weight"):
        bert(pretrained=str(tmp_path / "ep1.pt"), config={"vocab_size": 65})
    with pytest.raises(ValueError, match=r"it has, unknown to the model, bert.encoder.layer.0"):
        bert(pretrained=str(tmp_path / "ep1.pt"), config={"num_hidden_layers": 0})


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_bert_forgets_what_the_weights_were_for(kind, tmp_path):
    source = bert("classification", TINY_BERT, num_labels=3)
    source(text_batch(lambda ids: torch.tensor([0, 1, 2, 1])))
    assert source.config.problem_type == "single_label_classification"
    if kind == "folder":
        source.model.save_pretrained(tmp_path / "bert")
    else:
        content = {"state": {"model": source.state_dict(), "integrations": {"huggingface": source.get_metadata()}}}
        torch.save(content, tmp_path / "bert")
    model = bert("classification", pretrained=str(tmp_path / "bert"), num_labels=1).eval()
    batch = text_batch(lambda ids: torch.randn(4))
    outputs = model(batch)
    assert outputs["logits"].shape == (4, 1)
    torch.testing.assert_close(outputs["loss"], F.mse_loss(outputs["logits"][:, 0], batch["labels"]))


def test_bert_refuses_an_encoder_with_holes(tmp_path):
    source = bert(config=TINY_BERT).model
    weights = source.state_dict()
    del weights["bert.encoder.layer.0.output.dense.bias"]
    source.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"does not fit the model: it lacks bert.encoder.layer.0.output.dense.bias"):
        bert("classification", pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"another shape of bert.embeddings.word_embeddings.weight"):
        bert("classification", pretrained=str(tmp_path), config={"vocab_size": 65})


@pytest.mark.parametrize("predicted", ["any", "one class", "never right"])
def test_metrics_of_two_classes(predicted):
    target = torch.randint(2, (40,))
    outputs = {
        "any": torch.randn(40, 2),
        "one class": torch.tensor([1.0, 0.0]).repeat(40, 1),
        "never right": F.one_hot(1 - target, 2).float(),
    }[predicted]
    y, x = target.numpy(), outputs.argmax(1).numpy()
    expected = [plain.accuracy_score(y, x), plain.f1_score(y, x), plain.matthews_corrcoef(y, x)]
    for metric, value in zip(build_metrics(["accuracy", "f1", "matthews"], 2), expected, strict=True):
        for part in range(0, 40, 16):
            metric.update(outputs[part : part + 16], target[part : part + 16])
        assert metric.compute().item() == pytest.approx(value, abs=1e-6)


def test_matthews_of_three_classes():
    outputs, target = torch.randn(60, 3), torch.randint(3, (60,))
    (metric,) = build_metrics(["matthews"], 3)
    metric.update(outputs, target)
    assert metric.compute().item() == pytest.approx(plain.matthews_corrcoef(target, outputs.argmax(1)), abs=1e-6)


def test_bert_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no is not a folder: expected what save_to_disk or save_pretrained"):
        bert(pretrained=str(tmp_path / "no"))


def test_bert_refuses_a_field_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"hiden_size.*hidden_size"):
        bert(config={"hiden_size": 16})
