"""Image data: every source read from files of its own format, whole and damaged."""

import gzip
import json
import os
import pickle
import shutil
from itertools import chain

import numpy as np
import pytest
import torch
from composer import Callback, Trainer
from composer.algorithms import ColOut, ProgressiveResizing, RandAugment
from composer.devices import DeviceCPU
from composer.models import ComposerClassifier
from formats import picture
from PIL import Image
from torchvision.datasets import CIFAR10

from accelerando.recipes.data.image_files import ImageFolder, StreamingImages
from accelerando.recipes.data.images import (
    DEBIAN,
    Cifar10,
    Digits,
    FashionMnist,
    _crop_and_flip,
)
from accelerando.recipes.models.builders import resnet
from tiny import launch


def batches(spec):
    return [spec.microbatch_transforms(spec.batch_transforms(batch)) for batch in spec.dataloader]


def labels_of(spec):
    return torch.cat([labels for _, labels in batches(spec)]).tolist()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Eleven JPEGs in two classes: three of cats and eight of dogs, some of them grey or CMYK."""
    root = tmp_path_factory.mktemp("images")
    for i in range(11):
        name = root / ("cat" if i < 3 else "dog") / f"{i}.jpeg"
        name.parent.mkdir(exist_ok=True)
        picture(i, mode={4: "L", 5: "CMYK"}.get(i, "RGB")).save(name)
    return root


def test_digits_are_split_once_and_for_all():
    train, test = (Digits(split).build(360, False, 0, "cpu") for split in ("train", "test"))
    assert (train.num_samples, test.num_samples) == (1437, 360)
    images, labels = batches(test)[0]
    assert images.shape == (360, 1, 8, 8) and images.dtype == torch.float32
    assert labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    everything = torch.cat([images for images, _ in batches(train)])
    torch.testing.assert_close(everything.mean(), torch.tensor(0.0), atol=5e-3, rtol=0)
    torch.testing.assert_close(everything.std(), torch.tensor(1.0), atol=5e-3, rtol=0)
    seen = {image.numpy().tobytes() for image in everything}
    assert not seen & {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("device", [torch.device("cpu"), DeviceCPU()])
def test_digits_can_be_learnt(device):
    torch.manual_seed(0)
    model = ComposerClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), num_classes=10)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_dataloader=Digits("train").build(128, True, 1, device),
        eval_dataloader=Digits("test").build(100, False, 1, device),
        max_duration="3ep",
        progress_bar=False,
        device="cpu",
        seed=1,
    )
    trainer.fit()
    trainer.close()
    assert trainer.state.timestamp.batch == 33 and trainer.state.timestamp.sample == 33 * 128
    assert trainer.state.eval_metrics["eval"]["MulticlassAccuracy"].compute() > 0.9


def write_cifar(root, monkeypatch):
    """Six images to train on and two to test on; without the checksums of the real files."""
    images = np.random.default_rng(0).integers(0, 256, (8, 3 * 32 * 32), dtype=np.uint8)
    (root / "cifar-10-batches-py").mkdir()
    contents = {
        "data_batch_1": {"data": images[:6], "labels": [0, 1, 2, 3, 4, 5]},
        "test_batch": {"data": images[6:], "labels": [6, 7]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    for name, content in contents.items():
        (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return images.reshape(8, 3, 32, 32)


def test_cifar10(tmp_path, monkeypatch):
    pixels = write_cifar(tmp_path, monkeypatch)
    source = Cifar10(str(tmp_path), "test")
    source.check()
    ((images, labels),) = batches(source.build(2, False, 0, "cpu"))
    assert labels.tolist() == [6, 7]
    expected = (pixels[6, 2, 5, 9] / 255 - 0.4465) / 0.2616
    assert images[0, 2, 5, 9].item() == pytest.approx(expected, abs=1e-6)
    augmented = Cifar10(str(tmp_path)).build(3, True, 0, "cpu")
    assert [tuple(images.shape) for images, _ in batches(augmented)] == [(3, 3, 32, 32)] * 2
    plain = Cifar10(str(tmp_path), augment=False).build(3, True, 0, "cpu")
    assert labels_of(plain) == labels_of(augmented)
    assert not torch.equal(batches(plain)[0][0], batches(augmented)[0][0])


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


def write_fashion_mnist(folder, opened=open, suffix="", images=None, labels=bytes([3, 1, 4, 1, 5])):
    """Five images for each of the two parts."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = PIXELS.tobytes() if images is None else images
    for part in ("train", "t10k"):
        for kind, header, content in (("images-idx3", [0x803, 5, 28, 28], pixels), ("labels-idx1", [0x801, 5], labels)):
            with opened(folder / f"{part}-{kind}-ubyte{suffix}", "wb") as file:
                file.write(np.array(header, dtype=">i4").tobytes() + content)


@pytest.fixture
def five(monkeypatch):
    monkeypatch.setattr(FashionMnist, "sizes", {"train": 5, "test": 5})


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize(("opened", "suffix"), [(open, ""), (gzip.open, ".gz"), (gzip.open, ""), (open, ".gz")])
def test_fashion_mnist(folder, opened, suffix, tmp_path):
    write_fashion_mnist(tmp_path / folder, opened, suffix)
    source = FashionMnist(str(tmp_path), "test")
    source.check()
    spec = source.build(2, False, 0, "cpu")
    assert labels_of(spec) == [3, 1, 4, 1, 5]
    images = torch.cat([images for images, _ in batches(spec)])
    torch.testing.assert_close(images[:, 0], (torch.tensor(PIXELS) / 255 - 0.2860) / 0.3530)


def test_fashion_mnist_of_debian():
    """It is found without a path; its labels are as many of each class, its pixels of the stated mean."""
    source = FashionMnist(split="test")
    source.check()
    spec = source.build(10_000, False, 0, "cpu")
    ((images, labels),) = batches(spec)
    assert images.shape == (10_000, 1, 28, 28) and labels.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=0.01, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=0.01, rtol=0)
    assert source.overlaps(FashionMnist(DEBIAN, "test", resize=14)) and not source.overlaps(FashionMnist())


def test_what_is_not_there_is_downloaded_again(tmp_path, monkeypatch):
    def download(self):
        (tmp_path / "cifar-10-batches-py").exists() or write_cifar(tmp_path, monkeypatch)

    write_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "download", download)
    for _ in range(3):
        shutil.rmtree(tmp_path / "cifar-10-batches-py")
        assert labels_of(Cifar10(str(tmp_path), augment=False, download=True).build(6, False, 0, "cpu")) == [*range(6)]
        assert (tmp_path / "cifar-10-batches-py" / "data_batch_1").is_file()
    (tmp_path / "cifar-10-batches-py" / "old").symlink_to("nowhere")  # a file that nobody reads
    assert labels_of(Cifar10(str(tmp_path), "test").build(2, False, 0, "cpu")) == [6, 7]


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize("kind", ["fashion_mnist", "cifar10"])
def test_files_are_read_once_for_all_runs_but_again_when_they_have_changed(kind, tmp_path, monkeypatch):
    if kind == "cifar10":
        write_cifar(tmp_path, monkeypatch)
        source, file = Cifar10(str(tmp_path), augment=False), tmp_path / "cifar-10-batches-py" / "data_batch_1"
    else:
        write_fashion_mnist(tmp_path)
        source, file = FashionMnist(str(tmp_path)), tmp_path / "train-images-idx3-ubyte"

    def seen(split="train"):
        source.split = split
        ((images, _),) = batches(source.build(8, False, 0, "cpu"))
        return images

    first = seen()
    expected, content, was = first.clone(), file.read_bytes(), file.stat()
    first.zero_()  # what a run does to its images is not in the next one's
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # as if nobody had written
    assert torch.equal(seen(), expected) and torch.equal(seen("train[1:4]"), expected[1:4])
    file.write_bytes(content.replace(content[-99:], bytes(99)) if kind == "fashion_mnist" else content)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    again = seen()
    assert torch.equal(again, expected) is (kind == "cifar10") and torch.equal(again[:4], expected[:4])


@pytest.mark.usefixtures("five")
def test_damaged_fashion_mnist(tmp_path):
    def refusal(name, content=None, **how):
        write_fashion_mnist(tmp_path, **how)
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as raised:
            FashionMnist(str(tmp_path)).build(5, False, 0, "cpu")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    assert "5 x 28 x 28 bytes: it begins with 474946, not 0000080300000005" in refusal(images, b"GIF")
    assert "it has 3919 bytes after its header, not 5 x 28 x 28" in refusal(images, images=PIXELS.tobytes()[:-1])
    assert "is damaged: it has more after its header, not 5" in refusal(labels, labels=bytes(6))
    assert "begins with" in refusal(labels, np.array([0x801, 4], dtype=">i4").tobytes() + bytes(4))
    assert "has the label 10; expected 0 to 9" in refusal(labels, labels=bytes([3, 1, 4, 10, 5]))
    for name in (images, labels):
        (tmp_path / name).unlink()
    write_fashion_mnist(tmp_path / "zipped", gzip.open, ".gz")
    zipped = tmp_path / "zipped" / f"{images}.gz"
    whole = zipped.read_bytes()
    for content in (b"no gzip", whole[:-99], whole[:99] + b"damage" + whole[105:]):
        zipped.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*{images}.gz: |{images}.gz is no idx file"):
            FashionMnist(str(tmp_path / "zipped")).build(5, False, 0, "cpu")


def test_resized_images_are_means_of_areas():
    whole, small = (batches(Digits("test", resize=side).build(360, False, 0, "cpu"))[0][0] for side in (None, 4))
    torch.testing.assert_close(small, whole.view(360, 1, 4, 2, 4, 2).mean((3, 5)))
    assert small.shape == (360, 1, 4, 4)
    for side in (0, 9):
        with pytest.raises(ValueError, match=rf"resize: {side} given; .* from 1 to the images' own 8"):
            Digits(resize=side).check()


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize(("resize", "padding"), [(None, 4), (14, 2), (2, 1)])
def test_the_padding_of_crops_scales_with_the_image(resize, padding, tmp_path):
    """Of white images as much is black at most as they are shifted by."""
    write_fashion_mnist(tmp_path, images=bytes([255]) * PIXELS.size)
    spec = FashionMnist(str(tmp_path), augment=True, resize=resize).build(5, True, 0, "cpu")
    white = (1 - 0.2860) / 0.3530
    side = resize or 28
    shifts = set()
    for epoch in range(30):
        spec.dataloader.sampler.set_epoch(epoch)
        for images, _ in batches(spec):
            for mask in (images[:, 0] - white).abs() < 1e-5:
                shifts |= {side - int(mask.any(dim).sum()) for dim in (0, 1)}
    assert max(shifts) == padding and min(shifts) == 0


def test_crop_and_flip_against_a_plain_reference():
    images, noise, labels = torch.randn(9, 2, 5, 6), torch.rand(9, 3), torch.arange(9)
    results, same = _crop_and_flip((images, labels), noise, padding=2)
    assert same is labels
    for image, (top, left, flip), result in zip(images, noise, results, strict=True):
        padded = torch.zeros(2, 9, 10)
        padded[:, 2:7, 2:8] = image
        y, x = int(top * 5), int(left * 5)
        expected = padded[:, y : y + 5, x : x + 6]
        assert torch.equal(result, expected.flip(-1) if flip < 0.5 else expected)


def test_image_folder_in_evaluation(folder):
    source = ImageFolder(str(folder), crop_size=16, resize_size=24, num_workers=0)
    source.check()
    spec = source.build(4, False, 0, "cpu")
    assert labels_of(spec) == [0] * 3 + [1] * 8 and spec.num_samples == 11
    image = batches(spec)[0][0][0]
    # The shorter side, 32, becomes 24, and the longer 30; the centre is what remains.
    pixels = Image.open(folder / "cat" / "0.jpeg").resize((30, 24), Image.Resampling.BILINEAR).crop((7, 4, 23, 20))
    expected = torch.tensor(np.array(pixels)).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    torch.testing.assert_close(image, expected)


def test_image_folder_repeats_its_crops_with_its_seed_and_not_with_its_epoch(folder):
    def epochs():
        spec = ImageFolder(str(folder), crop_size=8, num_workers=1).build(4, True, 3, "cpu")
        return [torch.cat([images for images, _ in batches(spec)]) for _ in range(2)]

    (first, second), (again, _) = epochs(), epochs()
    assert first.shape == (8, 3, 8, 8) and torch.equal(first, again) and not torch.equal(first, second)


def test_without_augmentation_training_sees_what_evaluation_sees(folder, shards):
    size = {"crop_size": 16, "resize_size": 24, "num_workers": 0}
    options = {"augment": False, **size}
    plain, seen = ImageFolder(str(folder), **options), ImageFolder(str(folder), **size)
    alone = {
        tuple(image.flatten().tolist()) for images, _ in batches(seen.build(1, False, 3, "cpu")) for image in images
    }
    given = [image for images, _ in batches(plain.build(1, True, 3, "cpu")) for image in images]
    assert len(given) == 11 and {tuple(image.flatten().tolist()) for image in given} == alone
    streamed = StreamingImages(str(shards), split="val", **options).build(1, True, 3, "cpu")
    assert {tuple(image.flatten().tolist()) for images, _ in batches(streamed) for image in images} == {
        tuple(image.flatten().tolist())
        for images, _ in batches(StreamingImages(str(shards), split="val", **size).build(1, False, 3, "cpu"))
        for image in images
    }


class Record(Callback):
    def __init__(self):
        self.images, self.labels = [], []

    def before_forward(self, state, logger):
        self.images.append(state.batch[0])
        self.labels.append(state.batch[1])


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_composers_own_augmentations_run_on_decoded_images(kind, folder, shards):
    if kind == "folder":
        source = ImageFolder(str(folder), crop_size=32, num_workers=0)
    else:
        source = StreamingImages(str(shards), split="train", crop_size=32, num_workers=0)
    model = resnet(18, num_classes=2)
    record = Record()
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        train_dataloader=source.build(4, True, 0, "cpu"),
        max_duration="2ba",
        device_train_microbatch_size=2,
        algorithms=[RandAugment(), ColOut(p_row=0.25, p_col=0.25, batch=True), ProgressiveResizing(initial_scale=0.5)],
        callbacks=[record],
        progress_bar=False,
        device="cpu",
        seed=1,
    )
    trainer.fit()
    trainer.close()
    assert trainer.state.timestamp.batch == 2
    assert all(images.dtype == torch.float32 and images.shape[-1] < 32 for images in record.images)
    assert len(record.images) == 4


def test_streaming_images_in_evaluation(shards):
    source = StreamingImages(str(shards), split="val", crop_size=16, resize_size=16, num_workers=0)
    source.check()
    spec = source.build(4, False, 0, "cpu")
    assert labels_of(spec) == [0] * 3 + [1] * 8
    assert batches(spec)[0][0].shape == (4, 3, 16, 16)


def test_streaming_images_from_a_remote_to_a_cache(shards, tmp_path):
    source = StreamingImages(str(tmp_path / "cache"), remote=str(shards), split="val", crop_size=16, num_workers=0)
    source.check()
    assert labels_of(source.build(3, False, 0, "cpu")) == [0] * 3 + [1] * 8
    assert (tmp_path / "cache" / "val" / "index.json").is_file()


def test_streaming_images_go_on_in_the_middle_of_an_epoch(shards):
    def labels(samples, batches):
        spec = StreamingImages(str(shards), split="train", crop_size=8, num_workers=0).build(5, True, 2, "cpu")
        if samples:
            spec.dataloader.dataset.load_state_dict(states[0])
        order = []
        for _, (_, y) in zip(range(batches), spec.dataloader, strict=False):
            order += y.tolist()
        states.append(spec.dataloader.dataset.state_dict(samples + len(order), True))
        return order

    states = []
    labels(0, 2)
    assert labels(10, 3) == labels(0, 5)[10:]


def test_what_is_missing_is_named(tmp_path, folder, shards):
    expectations = [
        (Cifar10(str(tmp_path)), FileNotFoundError, "cifar-10-batches-py is not a folder: .*download: true"),
        (
            FashionMnist(str(tmp_path)),
            FileNotFoundError,
            "no train-images-idx3-ubyte, nor .*FashionMNIST/raw; apt install dataset-fashion-mnist .* download: true",
        ),
        (FashionMnist(download=True), ValueError, "download: true given, but no path"),
        (ImageFolder(str(tmp_path / "no")), FileNotFoundError, "no is not a folder: expected a folder of images"),
        (ImageFolder(str(folder / "cat")), FileNotFoundError, "cat holds no folder: .*one folder of images per class"),
        (StreamingImages(str(tmp_path)), FileNotFoundError, "index.json is missing: expected a folder of MDS shards"),
        (StreamingImages(str(tmp_path), remote=str(tmp_path / "far")), FileNotFoundError, "far/index.json is missing"),
    ]
    for source, error, message in expectations:
        with pytest.raises(error, match=message):
            source.check()
    Digits().check()
    for source in (Cifar10, FashionMnist):
        source(str(tmp_path), download=True).check()
    StreamingImages(str(tmp_path), remote="s3://bucket/imagenet").check()


def test_damaged_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    picture(0).save(tmp_path / "cat" / "0.jpeg")
    whole = (tmp_path / "cat" / "0.jpeg").read_bytes()
    (tmp_path / "cat" / "0.jpeg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read the image .*cat/0\.jpeg"):
        batches(ImageFolder(str(tmp_path), num_workers=0).build(1, False, 0, "cpu"))
    (tmp_path / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match="Found no valid file for the classes dog"):
        ImageFolder(str(tmp_path), num_workers=0).build(1, True, 0, "cpu")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(RuntimeError, match="Dataset not found or corrupted"):
        Cifar10(str(tmp_path)).build(1, False, 0, "cpu")


TWO_RANKS = """
import json, sys
import torch
from accelerando.recipes.data.image_files import ImageFolder, StreamingImages
from accelerando.recipes.data.loaders import TensorLoader
from accelerando.recipes.run.buffers import OneSetOfBuffers
from composer import DataSpec, Evaluator, Trainer
from composer.models import ComposerClassifier
from composer.utils import dist

class SaysCat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rank", torch.tensor(dist.get_global_rank()))

    def forward(self, images):
        return torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 2).float()

folder, shards, numbered, out = sys.argv[1:]
dist.initialize_dist("cpu")
labels = torch.tensor([0] * 3 + [1] * 8)
specs = {
    "folder": ImageFolder(folder, crop_size=8, resize_size=8, num_workers=0).build(2, False, 0, "cpu"),
    "shards": StreamingImages(shards, split="val", crop_size=8, resize_size=8, num_workers=0).build(2, False, 0, "cpu"),
    "tensors": DataSpec(TensorLoader([torch.zeros(11, 1), labels], 2, False, 0)),
}
model = ComposerClassifier(SaysCat(), num_classes=2)
trainer = Trainer(model=model, device="cpu", callbacks=OneSetOfBuffers(), progress_bar=False)
trainer.eval([Evaluator(label=name, dataloader=spec) for name, spec in specs.items()])
seen = {name: trainer.state.eval_metrics[name]["MulticlassAccuracy"].compute().item() for name in specs}
# 37 images on two ranks are 9 batches of twice 2: a whole epoch, and one that goes on after 5 of them.
source = StreamingImages(numbered, crop_size=8, num_workers=0)
def served(state=None):
    spec = source.build(2, True, 3, "cpu")
    if state:
        spec.dataloader.dataset.load_state_dict(state)
    mine = [labels.tolist() for _, labels in spec.dataloader]
    state = dist.all_gather_object(spec.dataloader.dataset.state_dict(4 * 5, True))[0]
    return [sorted(left + right) for left, right in zip(*dist.all_gather_object(mine))], state
seen["whole"], state = served()
seen["rest"], _ = served(state)
seen["buffers"] = dist.all_gather_object(model.module.rank.item())
if dist.get_global_rank() == 0:
    with open(out, "w") as file:
        json.dump(seen, file)
"""


@pytest.mark.programs
def test_two_ranks_evaluate_one_model_and_count_no_sample_twice(folder, shards, numbered, tmp_path):
    (tmp_path / "evaluate.py").write_text(TWO_RANKS)
    done = launch(2, tmp_path / "evaluate.py", folder, shards, numbered, tmp_path / "seen.json")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["buffers"] == [0, 0]
    assert seen["folder"] == seen["tensors"] == pytest.approx(3 / 11)
    # Streaming repeats a sample, the last but one, to give each rank as many.
    assert seen["shards"] == pytest.approx(3 / 12)
    assert len(seen["whole"]) == 9 and len(set(chain(*seen["whole"]))) == 36
    assert seen["rest"] == seen["whole"][5:]
    one = StreamingImages(str(numbered), crop_size=8, num_workers=0).build(4, True, 3, "cpu").dataloader
    assert [sorted(labels.tolist()) for _, labels in one] == seen["whole"]
