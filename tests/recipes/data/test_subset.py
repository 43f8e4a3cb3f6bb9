"""Some of the examples of another source: which, of what scores, and in a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from formats import WORDS, picture
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from accelerando.algorithms import data_digest, easiest_first, save_scores
from accelerando.recipes.config.errors import ArgumentError, ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.image_files import StreamingImages
from accelerando.recipes.data.images import Digits
from accelerando.recipes.data.noise import NoisyLabels
from accelerando.recipes.data.subset import Subset
from accelerando.recipes.train import train
from runs import served, settings

OF = {"digits": {"split": "train[:200]"}}


def in_order(source):
    batches = [*source.build(64, False, 0, "cpu").dataloader]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def images():
    return in_order(Digits("train[:200]"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Scores of two replicates, which agree on average that the harder an example is, the later it comes."""
    folder = tmp_path_factory.mktemp("scores")
    digest = data_digest(Digits("train[:200]").build(64, False, 0, "cpu").dataloader)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    names = [str(folder / f"{name}.safetensors") for name in "ab"]
    for name, sign in zip(names, (1, -1), strict=True):
        save_scores(name, {"el2n": torch.arange(200) / 200 + sign * noise, "loss": torch.rand(200)}, digest)
    return names


def test_the_easiest_and_the_hardest_by_the_mean_over_replicates(images, files):
    for keep, offset, rows in (
        ("easiest", 0, slice(0, 50)),
        ("easiest", 7, slice(7, 57)),
        ("hardest", 7, slice(143, 193)),
    ):
        source = Subset(of=OF, scores=files, by="el2n", keep=keep, count=50, offset=offset)
        source.check()
        found = in_order(source)
        assert all(torch.equal(one, whole[rows]) for one, whole in zip(found, images, strict=True))
    assert not torch.equal(
        in_order(Subset(of=OF, scores=files[0], by="el2n", keep="easiest", count=50))[0], images[0][:50]
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_files_of_scores_may_lie_in_the_folder_of_all_runs(depth, images, files):
    """Those of a source inside another one too."""
    folder, name = Path(files[0]).parent.parent, Path(files[0]).parent.name
    own = {"scores": [f"{name}/a.safetensors", f"{name}/b.safetensors"], "by": "el2n", "keep": "easiest", "count": 50}
    source = Subset(of=OF, **own)
    for _ in range(depth):
        source = Subset(of={"subset": {name: value for name, value in vars(source).items() if value}}, count=50)
    with pytest.raises(ArgumentError, match=r"a\.safetensors is no"):
        source.build(50, False, 0, "cpu")
    source.look_in(folder)
    assert torch.equal(in_order(source)[0], images[0][:50])


def places(found, images):
    return [int((images[0] == image).flatten(1).all(1).nonzero()[0]) for image in found[0]]


def test_scores_without_a_mean_are_one_line(tmp_path):
    digest = data_digest(Digits("train[:200]").build(64, False, 0, "cpu").dataloader)
    for name, value in (("up.safetensors", float("inf")), ("down.safetensors", -float("inf"))):
        save_scores(tmp_path / name, {"loss": torch.full((200,), value)}, digest)
    with pytest.raises(ArgumentError, match="scores: easiest_first: scores must be numbers, got 'NaN'"):
        in_order(Subset(of=OF, scores=[str(file) for file in tmp_path.iterdir()], keep="easiest", count=50))


def test_as_many_of_each_class(images, files):
    labels = images[1]
    balanced = places(in_order(Subset(of=OF, scores=files, by="el2n", keep="easiest", count=50, balanced=True)), images)
    firsts = [(labels == label).nonzero()[:5, 0] for label in range(10)]
    assert balanced == torch.cat(firsts).sort().values.tolist()
    drawn = places(in_order(Subset(of=OF, keep="random", count=47, balanced=True)), images)
    counts = labels[drawn].bincount()
    assert len({*drawn}) == 47 and sorted(counts.tolist()) == [4] * 3 + [5] * 7
    with pytest.raises(
        ArgumentError, match=r"balanced: true given, but of 195 examples class \d has \d+ of them, others"
    ):
        in_order(Subset(of=OF, count=195, balanced=True))


def test_those_drawn_at_random_follow_the_seed_alone(images):
    one, same, other = (places(in_order(Subset(of=OF, count=60, seed=seed)), images) for seed in (None, 0, 1))
    assert one == same == sorted(one) and one != other and len({*one}) == 60
    rest = places(in_order(Subset(of=OF, count=140, offset=60)), images)
    assert {*one, *rest} == {*range(200)}


def test_which_labels_are_wrong_is_known_of_a_part_too():
    noisy = {"noisy_labels": {"of": OF, "fraction": 0.15}}
    (images, labels), clean = in_order(NoisyLabels(of=OF, fraction=0.15)), in_order(Digits("train[:200]"))[1]
    spec = Subset(of=noisy, count=80).build(64, True, 0, "cpu")
    held, given = spec.dataloader.tensors
    rows = [int((images == image).flatten(1).all(1).nonzero()[0]) for image in held]
    assert torch.equal(given, labels[rows])
    assert [*spec.facts.changed] == (given != clean[rows]).nonzero()[:, 0].tolist() and spec.facts.changed
    scores = {"of": {"subset": {"of": OF, "count": 100}}, "fraction": 0.5}
    assert len(NoisyLabels(**scores).build(64, True, 0, "cpu").facts.changed) == 50
    with pytest.raises(ArgumentError, match="of: noisy_labels has wrong labels already"):
        NoisyLabels(of=noisy, seed=1).build(64, True, 0, "cpu")


def test_a_run_passes_over_a_few_examples_as_often_as_need_be(tmp_path):
    from composer.models import ComposerClassifier

    model = ComposerClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), num_classes=10)
    loader = Subset(of=OF, count=48).build(16, True, 3, "cpu").dataloader
    seen = [image.numpy().tobytes() for images, _ in served(model, loader, tmp_path, "15ba") for image in images]
    assert len(seen) == 15 * 16
    assert all(seen.count(image.numpy().tobytes()) == 5 for image in loader.tensors[0])
    first, second = seen[:48], seen[48:96]
    assert first != second and sorted(first) == sorted(second)


def test_a_folder_of_images(tmp_path):
    for i in range(40):
        name = tmp_path / ("cat" if i < 20 else "dog") / f"{i:02}.jpeg"
        name.parent.mkdir(exist_ok=True)
        picture(i).save(name)
    folder = {"image_folder": {"path": str(tmp_path), "crop_size": 16, "resize_size": 16, "num_workers": 0}}
    whole = Subset(of=folder, count=40).build(40, False, 0, "cpu").dataloader
    save_scores(tmp_path / "scores.safetensors", {"el2n": torch.arange(40.0)}, data_digest(whole))
    hard = Subset(of=folder, scores=str(tmp_path / "scores.safetensors"), keep="hardest", count=21)
    (images, labels), *rest = hard.build(40, False, 0, "cpu").dataloader
    ((all_images, _),) = whole
    assert labels.tolist() == [0] + [1] * 20 and torch.equal(images, all_images[19:]) and not rest
    assert [len(labels) for _, labels in hard.build(10, True, 0, "cpu").dataloader] == [10, 10]
    (tmp_path / "dog" / "20.jpeg").write_bytes(b"another")
    with pytest.raises(ArgumentError, match="has scores of other data than these 40 examples"):
        hard.build(40, False, 0, "cpu")


def test_texts_in_memory(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    texts = ["the cat " + "sat " * number for number in range(12)]
    Dataset.from_dict({"text": texts, "label": [0, 1] * 6}).save_to_disk(tmp_path / "data")
    text = {"name": str(tmp_path / "data"), "tokenizer": str(tmp_path / "tokenizer"), "seq_len": 16}
    of = {"hugging_face_text": {**text, "label_column": "label"}}
    whole = Subset(of=of, count=12).build(12, False, 0, "cpu").dataloader
    save_scores(tmp_path / "scores.safetensors", {"loss": torch.arange(12.0)}, data_digest(whole))
    easy = Subset(of=of, scores=str(tmp_path / "scores.safetensors"), keep="easiest", count=4)
    (batch,) = easy.build(4, False, 0, "cpu").dataloader
    assert batch["attention_mask"].sum(1).tolist() == [4, 5, 6, 7] and batch["labels"].tolist() == [0, 1, 0, 1]
    masked = Subset(of={"hugging_face_text": {**text, "seq_len": 6}}, count=3).build(3, True, 0, "cpu").dataloader
    assert [len(batch["labels"]) for batch in masked] == [3]
    with pytest.raises(ArgumentError, match="of: the labels of hugging_face_text are not told one by one"):
        Subset(of={"hugging_face_text": {**text, "seq_len": 6}}, count=3, balanced=True).build(3, True, 0, "cpu")


def test_images_in_shards(numbered, shards, tmp_path):
    def labels(source, train=False, size=12, device="cpu"):
        return [label for _, batch in source.build(size, train, 0, device).dataloader for label in batch.tolist()]

    sizes = {"crop_size": 8, "resize_size": 8, "num_workers": 0}
    of = {"streaming_images": {"local": str(numbered), **sizes}}
    whole = Subset(of=of, count=37).build(37, False, 0, "cpu").dataloader
    ((images, places),) = whole  # of which the labels tell
    plain = {
        int(label): image
        for image, label in StreamingImages(str(numbered), **sizes).build(1, False, 0, "cpu").dataloader
    }
    assert places.tolist() == [*range(37)] and all(torch.equal(images[i], plain[i][0]) for i in range(37))
    save_scores(tmp_path / "scores.safetensors", {"el2n": torch.arange(37.0)}, data_digest(whole))
    hard = Subset(of=of, scores=str(tmp_path / "scores.safetensors"), keep="hardest", count=24)
    assert labels(hard) == [*range(13, 37)]
    first, again, workers = labels(hard, True), labels(hard, True), {**of["streaming_images"], "num_workers": 1}
    assert first == again != sorted(first) and sorted(first) == [*range(13, 37)]
    assert labels(replace(hard, of={"streaming_images": workers}), True) == first
    wrong = NoisyLabels(of={"subset": {"of": of, "count": 30, "seed": 1}}, fraction=0.5)
    held = wrong.build(30, False, 0, "cpu")
    ((_, noisy),), right = held.dataloader, labels(Subset(of=of, count=30, seed=1), size=30)
    assert [i for i, (a, b) in enumerate(zip(noisy.tolist(), right, strict=True)) if a != b] == [*held.facts.changed]
    assert len(held.facts.changed) == 15
    two = {"streaming_images": {"local": str(shards), "split": "train", **sizes}}
    assert labels(Subset(of=two, count=4, balanced=True), size=4).count(0) == 2
    sources = (hard, wrong, Subset(of=two, count=70))
    digests = {data_digest(source.build(3, False, 0, "cpu").dataloader) for source in sources}
    assert len({*digests, data_digest(whole)}) == 4
    with pytest.raises(ArgumentError, match="has scores of 37 examples"):
        replace(hard, of=two).build(4, False, 0, "cpu")
    with pytest.raises(ArgumentError, match="of other data than these 37 examples"):
        replace(hard, of={"noisy_labels": {"of": of, "fraction": 0.1}}).build(4, False, 0, "cpu")


def scoring(folder):
    changes = {"eval_subset_num_batches": 1, "save_interval": "1ep", "max_duration": "2ep"}
    looks = {
        "example_scores": {"at": ["3ba", "2ep"], "scores": ["el2n", "error"]},
        "forgetting_events": {"interval": "2ba"},
    }
    data = {"train_data": {"noisy_labels": {"of": OF}}, "algorithms": looks}
    return (
        {name: value for name, value in settings(folder).items() if name != "train_subset_num_batches"} | changes | data
    )


def test_scores_of_one_run_choose_the_examples_of_another(tmp_path):
    first = train(scoring(tmp_path) | {"run_name": "first"})
    assert "ExampleScores" in first.algorithms
    scores = tmp_path / "first" / "scores"
    assert sorted(file.name for file in scores.iterdir()) == ["ba12.safetensors", "ba3.safetensors"]
    easy = {"of": {"noisy_labels": {"of": OF}}, "by": "el2n", "keep": "easiest", "count": 64}
    files = [str(scores / "ba3.safetensors"), str(scores / "ba12.safetensors")]
    second = scoring(tmp_path) | {"run_name": "second", "max_duration": "5ba", "algorithms": {}}
    result = train(second | {"train_data": {"subset": {**easy, "scores": files}}})
    assert result.batches == 5 and result.samples == 160
    forgotten = str(tmp_path / "first" / "forgetting" / "forgetting.safetensors")
    found = Subset(of=easy["of"], scores=forgotten, keep="hardest", count=20).build(20, False, 0, "cpu")
    assert len(found.dataloader.dataset) == 20
    other = {**easy, "of": OF, "scores": files}
    with pytest.raises(ConfigError) as error:
        train(second | {"run_name": "third", "train_data": {"subset": other}})
    assert "train_data.subset.scores: " in str(error.value) and "of other data than these 200 examples" in str(
        error.value
    )


def test_scores_of_a_run_on_shards_choose_among_them(numbered, tmp_path):
    of = {"streaming_images": {"local": str(numbered), "crop_size": 8, "resize_size": 8, "num_workers": 0}}
    model = {"convnet": {"in_channels": 3, "image_size": 8, "width": 4, "depth": 1, "num_classes": 37}}
    given = settings(tmp_path) | {"model": model, "global_batch_size": 8, "max_duration": "2ba", "eval_data": None}
    given |= {"scheduler": {"cosine_annealing": {}}}
    given |= {
        "eval_subset_num_batches": -1,
        "train_subset_num_batches": -1,
        "algorithms": {"example_scores": {"at": ["2ba"], "scores": ["el2n"]}},
    }
    train(given | {"train_data": of})
    file = tmp_path / "run" / "scores" / "ba2.safetensors"
    order = easiest_first(load_file(file)["el2n"])
    easy = {"of": of, "scores": str(file), "keep": "easiest", "count": 16}
    ((_, labels),) = Subset(**easy).build(16, False, 0, "cpu").dataloader
    assert labels.tolist() == sorted(order[:16].tolist())
    result = train(given | {"train_data": {"subset": easy}, "run_name": "second", "algorithms": {}})
    assert result.samples == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"of": {"digit": {}}}, "of.digit: unknown name; did you mean digits?"),
        ({"of": OF, "count": 0}, "count: 0 given; expected a whole number from 1"),
        ({"of": OF, "offset": -1}, "offset: -1 given; expected a whole number from 0"),
        ({"of": OF, "keep": "median"}, "keep: 'median' given; expected"),
        ({"of": OF, "keep": "hardest"}, "scores: none given; expected files for hardest"),
        ({"of": OF, "scores": "a.safetensors"}, "scores: 'a.safetensors' given; expected none for random"),
        ({"of": OF, "by": "el2n"}, "by: 'el2n' given, which has no effect for random"),
        ({"of": OF, "keep": "easiest", "scores": "a", "seed": 1}, "seed: 1 given, which has no effect for easiest"),
        ({"of": OF, "seed": -1}, "seed: -1 given; expected a whole number"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(settings(tmp_path) | {"train_data": {"subset": given}})
    assert f"train_data.subset.{message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"of": OF, "count": 300}, "count: 300 given, but digits has 200 examples"),
        ({"of": OF, "count": 150, "offset": 60}, "count: 150 after 60 given, but digits has 200 examples"),
        ({"of": OF, "count": 20}, "count: 20 given, but 20 samples do not fill a batch of 32 on 1 rank(s)"),
        (
            {"of": OF, "keep": "easiest", "scores": "/nothing.safetensors", "count": 64},
            "scores: /nothing.safetensors is no",
        ),
        ({"of": {"subset": {"of": OF, "count": 20}}, "count": 10}, "of.subset.count: 20 given, but 20 samples do not"),
    ],
)
def test_what_the_data_do_not_allow_is_one_line(given, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        train(settings(tmp_path) | {"train_data": {"subset": given}})
    assert f"train_data.subset.{message}" in str(error.value) and "\n" not in str(error.value)
