"""A study of `bert_tickets` on a tiny BERT that it pretrains itself: what begins where, masks, claims, mistakes."""

import math
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from studies import Watch, lines, outcome, refused, table, weights, without_seconds

from accelerando.algorithms.checkpoints import read_weights
from accelerando.algorithms.pruning.files import SUFFIX, save_masks
from accelerando.recipes.models.hugging_face import bert
from accelerando.recipes.studies.bert_tickets_cells import Task, transfers
from accelerando.recipes.studies.bert_tickets_claims import claims_of
from accelerando.recipes.studies.bert_tickets_masks import TransferredTicket
from accelerando.recipes.studies.bert_tickets_runs import PRETRAINING
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row

TASKS = ("masked_lm", "topic")
LENGTH, LEVELS, LATER, TOGETHER, PRETRAINED = 2, 2, 1, 3, 2  # batches, levels
OWN = """
study:
  bert_tickets:
    pretraining: {max_duration: 2ba}
    masked_lm: masked_lm
    tasks:
      masked_lm: {}
      topic:
        model: {bert: {objective: classification, num_labels: 12}}
        train_data: {python_docs_task: {task: topic, vocab_size: 512}}
        eval_data: {python_docs_task: {task: topic, split: test, stride: 16, vocab_size: 512}}
    ladder: {levels: 2, fraction: 0.3, schedule: arithmetic, include: ["*bert.encoder.*"]}
    later: 1ba
    together: {all: {tasks: [topic, masked_lm], max_duration: 3ba}}
    controls: [one_shot, random]
    control_levels: [2]
    transfer_level: 2
    seeds: [1, 2]
run_name: study
max_duration: 2ba
eval_interval: 1dur
save_interval: 1dur
global_batch_size: 32
eval_batch_size: 128
model:
  bert:
    objective: masked_lm
    config: {vocab_size: 512, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
train_data: {python_docs: {seq_len: 32, vocab_size: 512}}
eval_data: {python_docs: {split: test, seq_len: 32, vocab_size: 512}}
optimizer: {decoupled_adamw: {lr: 1.0e-2, weight_decay: 0.0}}
scheduler: {linear: {alpha_f: 0.0}}
callbacks: {"studies:Watch": {}}
"""
pytestmark = pytest.mark.usefixtures("watch")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def study(folder, **changes):
    given = OmegaConf.create(OWN)
    given.folder = str(folder)
    given.study.bert_tickets.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A study's folder, how many batches it took, and by run the first weights and the masks."""
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    assert not outcome(study(folder)).failures
    return folder / "study", Watch.batches, Watch.starts, Watch.masks


def encoder(folder):
    """The matrices of theta_0 that are pruned."""
    return {name: tensor for name, tensor in weights(folder / PRETRAINING).items() if is_pruned(name, tensor)}


def is_pruned(name, tensor):
    return "bert.encoder." in name and tensor.dim() == 2


def file_of(folder, name, level=2):
    return {
        key.removesuffix(SUFFIX): mask
        for key, mask in read_weights(folder / name / f"tickets/level-{level}.safetensors").items()
    }


def test_each_training_is_as_long_as_it_says(whole):
    _, batches, starts, _ = whole
    ladders = 2 * LENGTH * (1 + LEVELS) + TOGETHER * (1 + LEVELS)
    of_task = LENGTH + (LENGTH + LEVELS * (LENGTH - LATER)) + 2 * LENGTH + 2 * LENGTH
    assert batches == PRETRAINED + 2 * (ladders + 2 * of_task) and len(starts) == 1 + 2 * (3 + 2 * 6)


def test_all_but_scratch_begin_at_theta_0_and_heads_at_the_seed(whole):
    folder, _, starts, _ = whole
    (words,) = (tensor for name, tensor in weights(folder / PRETRAINING).items() if "word_embeddings" in name)
    for name, first in starts.items():
        begins = torch.equal(first, words)
        assert begins == (name != PRETRAINING and "scratch" not in name), name
    assert not torch.equal(starts["topic-scratch-seed1"], starts["topic-scratch-seed2"])


def test_one_shot_keeps_the_greatest_of_theta_0(whole):
    """By the formula, in NumPy."""
    folder, _, _, masks = whole
    every = np.concatenate([tensor.abs().flatten().numpy() for tensor in encoder(folder).values()])
    threshold = np.sort(every)[::-1][round(0.4 * len(every)) - 1]
    found = masks["topic-one_shot-level2-seed1"]
    assert found.keys() == encoder(folder).keys()
    assert all(torch.equal(mask, encoder(folder)[name].abs() >= threshold) for name, mask in found.items())
    other = masks["topic-random-level2-seed1"]
    assert sum(int(mask.sum()) for mask in other.values()) == round(0.4 * len(every))
    assert any(not torch.equal(mask, other[name]) for name, mask in found.items())


@pytest.mark.parametrize("source", ["masked_lm", "all"])
def test_masks_of_one_task_are_those_that_another_is_trained_with(whole, source):
    folder, _, _, masks = whole
    (run,) = (name for name in masks if re.fullmatch(f"topic-from-{source}-level2-.{{6}}-seed1", name))
    found = file_of(folder, f"{source}-tickets-seed1")
    assert masks[run].keys() == found.keys() and len(found) == 6
    assert all(torch.equal(mask, found[name]) for name, mask in masks[run].items())
    trained = weights(folder / run)
    assert all((trained[name][~mask] == 0).all() and (trained[name][mask] != 0).any() for name, mask in found.items())


def test_the_table_and_the_figures_of_it(whole):
    folder, *_ = whole
    rows = table(folder)
    assert {row["task"] for row in rows} == {PRETRAINING, *TASKS, "topic of all", "masked_lm of all"}
    arms = {"dense", "tickets", "later", "scratch", "one_shot", "random", "from masked_lm", "from all"}
    assert {row["arm"] for row in rows if row["task"] == "topic"} == arms
    assert {row["density"] for row in rows} == {1.0, 0.7, 0.4}
    kept = [row["kept"] for row in rows if row.tags.get("level")]
    assert len(kept) == 2 * (2 * (2 + 2 + 2 + 2) + 2 * 2) and np.allclose(
        sorted({round(one, 2) for one in kept}), [0.4, 0.7]
    )
    dense = [row for row in rows if row["task"] == "topic" and row["arm"] == "dense"]
    assert len(dense) == 2 and all(row.batches == LENGTH for row in dense)
    metrics = {line["metric"] for line in lines(folder / "density.csv") if line["task"] == "masked_lm"}
    assert metrics == {"metrics/eval/LanguageCrossEntropy", "metrics/eval/MaskedAccuracy"}
    matrix = {(line["source"], line["target"]) for line in lines(folder / "transfer.csv")}
    assert matrix == {(one, other) for one in ("dense", *TASKS, "all", "one_shot", "random") for other in TASKS}
    assert (folder / "figure.png").stat().st_size > 10_000
    text = (folder / "report.md").read_text()
    assert "MASKS OF ONE TASK ON ANOTHER" in text and "by language cross entropy, tickets match" in text


def test_what_was_killed_goes_on_and_ends_the_same(whole, tmp_path):
    """In a ladder of several tasks, and again in a run that follows one."""
    given = study(tmp_path)
    for batches in (20, 30):
        Watch.reset(kill_at=batches)
        with pytest.raises(KeyboardInterrupt):
            outcome(given)
    Watch.reset()
    assert not outcome(given).failures and Watch.batches < whole[1] - 40
    assert without_seconds(table(tmp_path / "study")) == without_seconds(table(whole[0]))


def test_it_is_told_what_there_is_to_train(tmp_path):
    told = dry_run(plan(study(tmp_path)))
    assert "known later" in told and "topic-from-masked_lm-level2-seed1" in told and not (tmp_path / "study").exists()


LADDER = "ladder={levels: 2, fraction: 0.3, include: ["


@pytest.mark.parametrize(
    "override, told",
    [
        ("metric=accuracy", "metric: each task has one of its own; give `metrics`, by task"),
        ("masked_lm=mlm", "masked_lm: mlm given; expected one of the tasks masked_lm, topic"),
        ("metrics={topic: F1}", "metrics.topic: F1 given; expected one of MulticlassAccuracy"),
        (
            "transfer_level=3",
            "transfer_level: [3] given; expected different ones, from 1 to 2, the levels of",
        ),
        ("control_levels=[]", "controls: given without control_levels, at which they stand"),
        ("controls=[shuffle]", "controls: ['shuffle'] given; expected list[Literal['one_shot', 'random']]"),
        ("later=2ba", "later.rewind_to: 2ba given; expected less than max_duration"),
        ("ladder.rewind_to=1ba", "ladder.rewind_to: ladders rewind to theta_0, or to `later`; leave it out"),
        (f'{LADDER}"*.decoder.*"]}}', "ladder.include: no prunable weight is called '*.decoder.*'"),
        (
            f'{LADDER}"*bert.encoder.*","*bert.pooler.*"]}}',
            "ladder.include: prunes model.bert.pooler.dense.weight of topic, which the network of the pretraining",
        ),
        (
            "together.all.tasks=[topic]",
            "together.all.tasks: ['topic'] given; expected different ones, two or more of the tasks",
        ),
        ("pretraining=null", "tasks.masked_lm: model.bert: model.bert.encoder.layer.0.attention.self.query.weight is"),
        ("tasks.topic.model.bert.config={hidden_size: 32}", "tasks.topic: model.bert begins with other weights in"),
        (
            "scratch={model: {bert: {config: {hidden_size: 32}}}}",
            "scratch: model.bert has (512, 32) where theta_0 has (512, 16) in model.bert.embeddings.word_embeddings",
        ),
        ("seeds=[1]", "tolerance: null is one standard deviation over seeds; give two seeds or more"),
    ],
)
def test_mistakes(override, told, tmp_path):
    line = refused(tmp_path, study(tmp_path), f"study.bert_tickets.{override}")
    assert line.startswith(f"{tmp_path / 'study.yaml'}: study.bert_tickets.{told}") or told in line, line


def stubborn(folder: str, pretrained: str | None = None):
    """A model that has its weights whatever it is told."""
    return bert(pretrained=folder)


def of_the_hub(whole, folder, **changes):
    """One task, from weights of another run that is as large as no default."""
    given = study(folder, pretraining=None, masked_lm="masked_lm", together={}, transfer_level=None, **changes)
    del given.study.bert_tickets.tasks.topic
    given.model = {"bert": {"pretrained": str(whole[0] / PRETRAINING)}}
    return given


def test_random_weights_are_of_the_architecture_of_theta_0(whole, tmp_path):
    Watch.reset()
    assert not outcome(of_the_hub(whole, tmp_path)).failures
    scratch, ladder = (Watch.starts[f"masked_lm-{arm}-seed1"] for arm in ("scratch", "tickets"))
    assert scratch.shape == ladder.shape and not torch.equal(scratch, ladder)


def test_a_scratch_network_with_pretrained_weights_is_refused(whole, tmp_path):
    own = {"model": {f"{__name__}:stubborn": {"folder": str(whole[0] / PRETRAINING)}}}
    for given in (of_the_hub(whole, tmp_path, scratch=own), study(tmp_path, masked_lm=None, scratch=own)):
        given.study.bert_tickets.tasks.pop("topic", None)
        line = refused(tmp_path, given | {"study": {"bert_tickets": {"together": {}}}})
        assert "study.bert_tickets.scratch: model." in line and "whatever the seed; expected random weights" in line


def test_what_theta_0_lacks_is_not_pruned(whole, tmp_path):
    """That of masked language modelling has no pooler."""
    given = of_the_hub(whole, tmp_path)
    given.study.bert_tickets.tasks.topic = {**OmegaConf.create(OWN).study.bert_tickets.tasks.topic}
    given.study.bert_tickets.ladder.include = ["*bert.encoder.*", "*bert.pooler.*"]
    line = refused(tmp_path, given)
    assert "study.bert_tickets.tasks.topic: model.bert: model.bert.pooler.dense.weight is random" in line


def test_random_weights_may_be_asked_for(whole, tmp_path):
    dry_run(plan(of_the_hub(whole, tmp_path, scratch={"model": {"bert": {"random_weights": True}}})))


ACCURACY = "metrics/eval/MulticlassAccuracy"
MADE_UP = [Task(name=name, metric=ACCURACY, metrics=(ACCURACY,), validated=False) for name in ("mlm", "a", "b")]
SPREAD = (0.01, 0.0, -0.01)  # of three seeds: one deviation is .01


def made_up(values):
    """Rows of three seeds whose means are these, by task, arm and density."""
    return [
        Row(
            node=f"{task}-{arm}",
            tags={"task": task, "arm": arm, "seed": seed, "level": 0, "density": density},
            batches=1,
            samples=1,
            seconds=1.0,
            metrics={ACCURACY: mean + more + 1e-4 * seed * (arm != "dense"), "compression_ratio": 1.0, "speedup": 1.0},
        )
        for (task, arm, density), mean in values.items()
        for seed, more in enumerate(SPREAD)
    ]


def verdicts(values):
    found = claims_of(made_up(values), MADE_UP, [0.3], 0.3, "mlm")
    return {one.claim.partition(" at ")[0]: one.verdict for one in found}


FOUND = {(task, "dense", 1.0): 0.8 for task in ("mlm", "a", "b")}
FOUND |= {(task, "scratch", 1.0): 0.6 for task in ("mlm", "a", "b")}
FOUND |= {(task, "tickets", 0.3): 0.798 for task in ("mlm", "a", "b")}
FOUND |= {(task, "later", 0.3): 0.799 for task in ("mlm", "a", "b")}
FOUND |= {(task, "random", 0.3): 0.5 for task in ("mlm", "a", "b")}
FOUND |= {(task, "from mlm", 0.3): 0.8 for task in ("a", "b")}
FOUND |= {
    ("mlm", "from a", 0.3): 0.7,
    ("b", "from a", 0.3): 0.8,
    ("mlm", "from b", 0.3): 0.8,
    ("a", "from b", 0.3): 0.8,
}
MATCH, LATER_CLAIM = "Tickets that are rewound to theta_0 match the dense network", "No later rewinding is needed"


def test_claims_of_what_was_found_as_the_paper_says():
    found = verdicts(FOUND)
    assert found[MATCH] == found[LATER_CLAIM] == "holds"
    assert found["Tickets are better than as many random weights"] == "holds"
    assert found["Masks that were found by masked language modelling match on all other tasks"] == "holds"
    assert found["Masks that were found on a do not match on all other tasks"] == "holds"
    assert found["Masks that were found on b do not match on all other tasks"] == "fails"


def test_claims_of_what_was_found_otherwise():
    worse = {**FOUND, ("a", "tickets", 0.3): 0.7, ("b", "later", 0.3): 0.9, ("b", "from mlm", 0.3): 0.7}
    found = verdicts(worse)
    assert found[MATCH] == found[LATER_CLAIM] == "fails"
    assert found["Masks that were found by masked language modelling match on all other tasks"] == "fails"


def test_nothing_is_told_where_theta_0_is_no_better_than_random_weights():
    same = {**FOUND, **{(task, "scratch", 1.0): 0.79 for task in ("mlm", "a", "b")}}
    found = verdicts(same)
    assert found.pop(next(iter(found))) == "fails" and set(found.values()) == {"cannot be told here"}


def test_a_task_does_not_count_on_which_theta_0_is_worth_nothing():
    idle = {**FOUND, ("b", "scratch", 1.0): 0.8, ("b", "tickets", 0.3): 0.7, ("b", "from mlm", 0.3): 0.7}
    found = verdicts(idle)
    assert found[MATCH] == "holds"  # which fails on b
    assert found["Masks that were found by masked language modelling match on all other tasks"] == "holds"
    first, *_ = claims_of(made_up(idle), MADE_UP, [0.3], 0.3, "mlm")
    assert first.measured.endswith("not told to be better on b, not counted below")
    without = {key: value for key, value in FOUND.items() if key[1] != "scratch"}
    assert set(verdicts(without).values()) == {"cannot be told here"}


def test_a_task_does_not_count_where_random_weights_do_as_well():
    like = {**FOUND, **{(task, "random", 0.3): 0.799 for task in ("mlm", "a", "b")}}
    assert verdicts(like)[MATCH] == "cannot be told here"
    but_one = {**FOUND, ("a", "random", 0.3): 0.798, ("a", "tickets", 0.3): 0.798}
    assert verdicts(but_one)[MATCH] == "holds"


def test_the_matrix_has_each_mask_once_on_each_task():
    matrix = transfers(made_up(FOUND), MADE_UP, 0.3, None)
    cells = {(line["source"], line["target"]): line for line in matrix}
    assert len(cells) == len(matrix) == 3 * 3 + 3 + 3
    assert cells["a", "mlm"]["over_dense"] == pytest.approx(-0.0999, abs=1e-4) and not cells["a", "mlm"]["matches"]
    assert cells["b", "b"]["matches"] and math.isclose(cells["dense", "b"]["value"], 0.8)


class Pooled(torch.nn.Module):
    """An encoder of one matrix, with a pooler or without."""

    def __init__(self, pooler):
        super().__init__()
        self.encoder = torch.nn.Linear(4, 4)
        if pooler:
            self.pooler = torch.nn.Linear(4, 4)


def test_what_a_ticket_has_no_mask_for_is_kept_by_magnitude(tmp_path):
    masks = {"encoder.weight": torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.5}
    save_masks(tmp_path / "ticket.safetensors", masks)
    model, algorithm = Pooled(True), TransferredTicket(str(tmp_path / "ticket.safetensors"), 0.5)
    algorithm.pruner.bind(model, ())
    found = algorithm.chosen()
    assert torch.equal(found["encoder.weight"], masks["encoder.weight"])
    eighth = model.pooler.weight.abs().flatten().sort(descending=True).values[7]
    assert torch.equal(found["pooler.weight"], model.pooler.weight.abs() >= eighth)
    save_masks(tmp_path / "both.safetensors", found)
    less = TransferredTicket(str(tmp_path / "both.safetensors"), 0.5)
    less.pruner.bind(Pooled(False), ())
    assert less.chosen().keys() == {"encoder.weight"}
    save_masks(tmp_path / "other.safetensors", {"head.weight": masks["encoder.weight"]})
    other = TransferredTicket(str(tmp_path / "other.safetensors"), 0.5)
    other.pruner.bind(Pooled(True), ())
    with pytest.raises(ValueError, match=r"other.safetensors does not fit: it lacks the masks of encoder.weight"):
        other.chosen()
