"""Several tasks on one encoder: whose batches come when, what is shared, and a ladder that is killed and goes on."""

import copy
import random
from collections import Counter

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertTokenizerFast

from accelerando.algorithms.pruning import prunable_weights
from accelerando.algorithms.pruning.files import load_masks
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.several import Several
from accelerando.recipes.data.text import HuggingFaceText
from accelerando.recipes.models.hugging_face import bert
from accelerando.recipes.models.several import SeveralTasks
from accelerando.recipes.run.agreement import agree_by_task
from accelerando.recipes.train import train
from runs import free_of_seconds, measured, same, trained

ENCODER = "*bert.encoder.*"
WORDS = [f"w{i}" for i in range(30)]
SIZES = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 8,
}
EXAMPLES = {"topic": (24, 3), "order": (17, 2), "words": (20, 2)}  # and how many classes


def classifier(classes, **more):
    return {"bert": {"objective": "classification", "num_labels": classes, "config": SIZES, **more}}


MODELS = {"topic": classifier(3), "order": classifier(2), "words": {"bert": {"config": SIZES}}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two tasks with classes, and masked language modelling."""
    root, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "tokenizer")
    found = {}
    for task, (size, classes) in EXAMPLES.items():
        rows = [{"text": " ".join(draw.choices(WORDS, k=6)), "label": i % classes} for i in range(size)]
        DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:10])}).save_to_disk(root / task)
        found[task] = {"name": str(root / task), "tokenizer": str(root / "tokenizer"), "seq_len": 8}
        found[task] |= {"mask_probability": 0.5} if task == "words" else {"label_column": "label"}
    return found


def several(sources, split="train"):
    return {task: {"hugging_face_text": given | {"split": split}} for task, given in sources.items()}


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return [*loader]


def order(batches):
    return [batch["task"][0] for batch in batches]


def equal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(
        a.keys() - {"task"} == b.keys() - {"task"} and all(torch.equal(a[k], b[k]) for k in a if k != "task")
        for a, b in pairs
    )


def test_an_epoch_holds_every_batch_of_every_task_once_as_in_a_run_of_it_alone(sources):
    spec = Several(several(sources)).build(4, True, 7, "cpu")
    epochs = [epoch(spec.dataloader, number) for number in (0, 1)]
    assert order(epochs[0]) != order(epochs[1]) and equal(epochs[0], epoch(spec.dataloader, 0))
    assert order(epochs[0]) != order(epoch(Several(several(sources)).build(4, True, 8, "cpu").dataloader, 0))
    for task, given in sources.items():
        alone = HuggingFaceText(**given).build(4, True, 7, "cpu").dataloader
        for number, batches in enumerate(epochs):
            assert Counter(order(batches))[task] == len(alone) > 3
            assert equal([batch for batch in batches if batch["task"] == [task] * 4], epoch(alone, number))
    assert len(spec.dataloader) == len(epochs[0]) and spec.num_samples == 24 + 17 + len(alone.dataset)
    assert spec.get_num_samples_in_batch(epochs[0][0]) == 4
    parts = spec.split_batch(epochs[0][0], 3)
    assert [part["task"] for part in parts] == [epochs[0][0]["task"][:3], epochs[0][0]["task"][3:]]


def test_a_start_elsewhere_goes_on_through_the_epochs(sources):
    loader = Several(several(sources)).build(4, True, 7, "cpu").dataloader
    stream = [batch for number in range(3) for batch in epoch(loader, number)]
    size = len(loader)
    for shift in (5, size, size + 3):
        loader.sampler.shift_by(shift)
        for number in range(2 if shift <= size else 1):
            place = number * size + shift
            found, wanted = epoch(loader, number), stream[place : place + size]
            assert order(found) == order(wanted) and equal(found, wanted)


def test_ranks_share_each_batch_of_one_process(sources, monkeypatch):
    def rows(rank, world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        batches = epoch(Several(several(sources)).build(4 // world, True, 7, "cpu").dataloader, 1)
        return order(batches), [{tuple(row.tolist()) for row in batch["input_ids"]} for batch in batches]

    (tasks, whole), (left_tasks, left), (right_tasks, right) = rows(0, 1), rows(0, 2), rows(1, 2)
    assert tasks == left_tasks == right_tasks
    for together, one, other in zip(whole, left, right, strict=True):
        assert one | other == together and not one & other


def batch_of(task, samples=4):
    ids = torch.randint(5, SIZES["vocab_size"], (samples, 8), generator=torch.Generator().manual_seed(0))
    labels = ids if task == "words" else torch.arange(samples) % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "task": [task] * samples}


@pytest.mark.parametrize("tasks", [("topic", "order", "words"), ("words", "topic", "order")])
def test_each_model_is_as_alone_but_for_one_encoder(tasks):
    torch.manual_seed(3)
    model = SeveralTasks({task: MODELS[task] for task in tasks}).eval()
    alone = {}
    for task in tasks:
        torch.manual_seed(3)
        alone[task] = bert(**MODELS[task]["bert"]).eval()
    first, held = alone[tasks[0]], model.state_dict()
    names = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(held[name], value) for name, value in first.state_dict().items())
    assert [name for name in names if "heads." not in name] == [name for name, _ in first.named_parameters()]
    assert not any("encoder" in name or "embeddings" in name for name in names if "heads." in name)
    assert len({id(p) for p in model.parameters()}) == len(names)
    copied = copy.deepcopy(model)
    copied.load_state_dict({name: value + 0.01 for name, value in held.items()})
    for task, own in alone.items():
        weights = {name: held.get(f"heads.{task}.{name.removeprefix('model.')}") for name in own.state_dict()}
        weights = {name: held[name] if value is None else value for name, value in weights.items()}
        if task != tasks[0]:  # its own head, as it was drawn
            heads = [name for name in weights if f"heads.{task}.{name.removeprefix('model.')}" in held]
            drawn = own.state_dict()
            assert heads and all(torch.equal(weights[n], drawn[n]) for n in heads if "decoder.weight" not in n)
        own.load_state_dict(weights)
        batch = batch_of(task)
        outputs = model(batch)
        torch.testing.assert_close(model.loss(outputs, batch), own.loss(own(batch), batch))
        assert not torch.equal(copied(batch).logits, outputs.logits)
        model.zero_grad()
        model.loss(outputs, batch).backward()
        changed = {name for name, p in model.named_parameters() if p.grad is not None}
        others = [name for name in changed if name.startswith("heads.") and f".{task}." not in name]
        assert "model.bert.encoder.layer.0.output.dense.weight" in changed and not others
    with pytest.raises(ValueError, match="a batch is of no task among"):
        model({**batch, "task": ["other"] * 4})


def test_metrics_of_one_name_are_kept_apart():
    model = SeveralTasks({task: MODELS[task] for task in ("topic", "order")}).eval()
    metrics = copy.deepcopy(model.get_metrics())
    names = ("MulticlassAccuracy", "CrossEntropy")
    assert [*metrics] == [f"{task}/{name}" for task in ("topic", "order") for name in names]
    assert not model.get_metrics(is_train=True)
    for task in ("topic", "order"):
        batch = batch_of(task)
        outputs = model.eval_forward(dict(batch))
        for metric in metrics.values():
            model.update_metric(batch, outputs, metric)
        right = (outputs.argmax(-1) == batch["labels"]).float().mean()
        assert metrics[f"{task}/MulticlassAccuracy"].compute() == right
        loss = torch.nn.functional.cross_entropy(outputs, batch["labels"])
        torch.testing.assert_close(metrics[f"{task}/CrossEntropy"].compute(), loss)
        assert outputs.shape == (4, EXAMPLES[task][1])


def test_encoders_that_are_not_one_are_refused(tmp_path):
    def refused(message, *models, **more):
        with pytest.raises(ValueError) as error:
            SeveralTasks(dict(zip(("topic", "order"), models, strict=True)), **more)
        assert message in str(error.value) and "\n" not in str(error.value)

    deep = classifier(2, config=SIZES | {"num_hidden_layers": 3})
    refused("models.order: has another encoder.layer.2", classifier(3), deep)
    heads = classifier(2, config=SIZES | {"num_attention_heads": 4})
    refused("models.order: has another encoder.layer.1.attention.self than the bert of topic", classifier(3), heads)
    refused("models.order: makes a ImageClassifier", classifier(3), {"lenet_300_100": {}})
    refused("models.order.bert.num_label: unknown argument", classifier(3), {"bert": {"num_label": 3}})
    refused("models.order: expected one name, found none", classifier(3), None)
    refused(
        "shared: BertForSequenceClassification of topic has no module enc", classifier(3), classifier(2), shared="enc"
    )
    for name in ("one", "other"):
        bert(config=SIZES).model.save_pretrained(tmp_path / name)
    one, other = ({"pretrained": str(tmp_path / name)} for name in ("one", "other"))
    refused("models.order: has other weights in embeddings", classifier(3, **one), classifier(2, **other))
    SeveralTasks({"topic": classifier(3, **one), "order": classifier(2, **one), "words": {"bert": one}})


def settings(folder, sources, **changes):
    given = {
        "run_name": "run",
        "folder": str(folder),
        "max_duration": "6ba",
        "global_batch_size": 4,
        "device_train_microbatch_size": 2,
        "save_interval": "4ba",
        "model": {"several_tasks": {"models": MODELS}},
        "train_data": {"several": {"sources": several(sources)}},
        "eval_data": {"several": {"sources": several(sources, "test")}},
        "optimizer": {"adamw": {"lr": 0.01}},
        "algorithms": {"lottery_ticket": {"levels": 2, "fraction": 0.5, "rewind_to": "1ba", "include": [ENCODER]}},
        "device": "cpu",
    }
    return given | changes


@pytest.fixture(scope="module")
def ladder(sources, tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("ladder"), sources)
    return config, *trained(config)


def test_a_ladder_on_several_tasks_goes_on_after_a_kill(ladder, tmp_path):
    config, whole, weights = ladder
    config = config | {"folder": str(tmp_path)}
    for batch in (2, 10):  # in levels 0 and 1; before the first checkpoint, and within an epoch
        with pytest.raises(KeyboardInterrupt):
            train(config | {"callbacks": {"runs:Watch": {"kill_at": batch}}})
    result, resumed = trained(config)
    assert same(resumed, weights) and measured(result) == measured(whole)
    assert free_of_seconds(result.found["levels"]) == free_of_seconds(whole.found["levels"])


def test_its_metrics_are_those_of_each_task(ladder, sources):
    _, result, weights = ladder
    names = {
        "topic/MulticlassAccuracy",
        "topic/CrossEntropy",
        "order/MulticlassAccuracy",
        "order/CrossEntropy",
        "words/LanguageCrossEntropy",
        "words/MaskedAccuracy",
    }
    assert {*result.metrics} == {f"metrics/eval/{name}" for name in names}
    assert {f"eval/{name}" for name in names} <= result.found["levels"][0].keys()
    model = SeveralTasks(MODELS).eval()
    model.load_state_dict(weights)
    for task in ("topic", "order"):
        (batch,) = HuggingFaceText(**sources[task], split="test").build(10, False, 0, "cpu").dataloader
        outputs = model.eval_forward({**batch, "task": [task] * 10})
        right = (outputs.argmax(-1) == batch["labels"]).float().mean()
        assert result.metrics[f"metrics/eval/{task}/MulticlassAccuracy"] == pytest.approx(right.item())


def test_its_masks_fit_a_run_of_one_task_and_the_other_way_round(ladder, sources, tmp_path):
    _, result, weights = ladder
    file = f"{result.folder}/tickets/level-2.safetensors"
    masks = load_masks(file, prunable_weights(SeveralTasks(MODELS), [ENCODER]))
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) * 4 == sum(mask.numel() for mask in masks.values())
    data = several(sources)
    one = {"model": MODELS["order"], "train_data": data["order"], "eval_data": None, "max_duration": "2ba"}
    pruned = {"prune_at_init": {"ticket": file, "include": [ENCODER]}}
    _, found = trained(settings(tmp_path, sources, **one, algorithms=pruned))
    assert all(torch.equal(found[name] != 0, mask) for name, mask in masks.items())
    assert [*masks] == [*prunable_weights(bert(**MODELS["order"]["bert"]), [ENCODER])]


def test_a_single_one_of_several_tasks_is_a_run_of_that_task(sources, tmp_path):
    fixed = {"eval_data": None, "algorithms": {}, "max_duration": "7ba", "device_train_microbatch_size": None}
    data = several(sources)["order"]
    _, alone = trained(settings(tmp_path, sources, **fixed, model=MODELS["order"], train_data=data))
    of_one = {"model": {"several_tasks": {"models": {"order": MODELS["order"]}}}, "run_name": "one"}
    result, found = trained(
        settings(tmp_path, sources, **fixed, **of_one, train_data={"several": {"sources": {"order": data}}})
    )
    assert same(found, alone)
    assert {record.get("trainer/device_train_microbatch_size") for record in result.records} == {4, None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "several.sources: none given"),
        ({"train": {"digits": {}}}, "several.sources: 'train' given, which cannot be the name"),
        ({"topic": {"digit": {}}}, "several.sources.topic.digit: unknown name; did you mean digits?"),
        ({"topic": {"digits": {"split": "all"}}}, "several.sources.topic.digits.split: 'all' given"),
        ({"topic": None}, "several.sources.topic: expected one name, found none"),
    ],
)
def test_mistakes_in_a_source_are_told_of_its_key(changes, message, sources, tmp_path):
    with pytest.raises(ConfigError) as error:
        check(settings(tmp_path, sources, train_data={"several": {"sources": changes}}))
    assert f"train_data.{message}" in str(error.value)


WRONG = {
    "positions": (
        {"topic": {"seq_len": 9}},
        {},
        "train_data.several.sources.topic.hugging_face_text.seq_len: is 9, but",
    ),
    "classes": ({}, {"topic": classifier(4)}, "model.several_tasks.models.topic.bert.num_labels: is for 4 classes"),
    "labels": (
        {"words": {"label_column": "label"}},
        {},
        "train_data.several.sources.words.hugging_face_text: has labels",
    ),
    "no data": ({"words": None}, {}, "train_data.several: has no data of words, a task of model.several_tasks"),
    "no model": ({}, {"words": None}, "train_data.several.sources.words: model.several_tasks has no such task"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_tasks_data_must_fit_its_model(case, sources, tmp_path):
    data, models, message = WRONG[case]
    given = {task: one | (data.get(task) or {}) for task, one in sources.items() if data.get(task, one)}
    held = {task: models.get(task, one) for task, one in MODELS.items() if models.get(task, one)}
    changes = {"train_data": {"several": {"sources": several(given)}}, "model": {"several_tasks": {"models": held}}}
    compare(settings(tmp_path, sources, **changes), message)


def test_data_and_model_are_both_of_several_tasks(sources, tmp_path):
    one = {"train_data": several(sources)["topic"], "eval_data": None}
    compare(settings(tmp_path, sources, **one), "train_data.hugging_face_text: is not of several tasks, but")
    compare(
        settings(tmp_path, sources, model=MODELS["topic"]), "train_data.several: is of several tasks, but model.bert"
    )


def compare(config, message):
    recipe = check(config)
    with pytest.raises(ConfigError) as error:
        agree_by_task(recipe, recipe.model.build(), [(recipe.train_data, recipe.train_data.build(2, True, 0, "cpu"))])
    assert message in str(error.value)
