"""Every shipped YAML trains for two batches on small data in the format that it names."""

import csv
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import found_in, write_images, write_texts
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import accelerando.yamls
from accelerando.algorithms.pruning import level_densities, prunable_weights
from accelerando.recipes.config.loading import load
from accelerando.recipes.config.recipe import check
from accelerando.recipes.studies.driver import run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import read_table
from accelerando.recipes.train import train
from tiny import launch

SHIPPED = Path(inspect.getfile(accelerando.yamls)).parent
SMALL = {f"digits/{name}" for name in ("baseline", "mild", "all")} | {
    "python_docs/bert_tiny",
    "fashion_mnist/lenet",
    "fashion_mnist/resnet8",
}
DISTILLED = {f"resnet50/distill_{name}" for name in ("one", "ensemble", "random")} | {
    f"bert/distill_{name}" for name in ("first20", "first50", "whole")
}
BIG = (
    DISTILLED
    | {f"resnet50/{name}" for name in ("baseline", "mild", "medium", "hot")}
    | {
        "bert/pretrain_base",
        "bert/finetune_mnli",
        "bert/finetune_squad",
    }
)
TRADEOFFS = {"digits/tradeoff", "fashion_mnist/tradeoff", "resnet50/tradeoff"}
GLUES = {"bert/glue"}  # run in test_glue.py
BERT_TICKETS = {"bert/bert_tickets", "python_docs/bert_tickets"}
DISTILLATIONS = {"digits/distillation", "fashion_mnist/distillation", "python_docs/distillation"}
TICKETS = {"digits/tickets", "fashion_mnist/tickets", "resnet50/tickets", "bert/tickets"}
CRITERIA = {"digits/prune_at_init", "fashion_mnist/prune_at_init", "resnet50/prune_at_init"}
STABILITIES = {f"{name}/stability" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")} | {
    "fashion_mnist/stability_lenet",
    "cifar10/stability_vgg16",
}
LANDSCAPES = {f"{name}/landscape" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")} | {
    "fashion_mnist/landscape_lenet"
}
DISTILLED_TICKETS = {f"{name}/distilled_tickets" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")}
INTERPOLATIONS = {f"{name}/interpolation" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")} | {
    "fashion_mnist/interpolation_lenet",
    "cifar10/interpolation_vgg16",
}
DIETS = {f"{name}/data_diet" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")}
SHRINKBENCHES = {f"{name}/shrinkbench" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")}
GENERALIZATIONS = {f"{name}/generalization" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")} | {
    "cifar10/generalization_vgg16"
}
LAWS = {f"{name}/scaling_law" for name in ("digits", "fashion_mnist", "cifar10", "resnet50")}
STUDIES = TRADEOFFS | GLUES | DISTILLATIONS | TICKETS | CRITERIA | STABILITIES | LANDSCAPES | INTERPOLATIONS
STUDIES |= GENERALIZATIONS | DISTILLED_TICKETS | DIETS | LAWS | SHRINKBENCHES | BERT_TICKETS | {"digits/variants"}
# Of the small images in the place of ImageNet.
SMALL_SET = [
    f"study.distilled_tickets.distilling.{change}"
    for change in (
        "global_batch_size=4",
        "model.dataset_distiller={per_class: 2, num_classes: 2, image_size: 64, factor: 1, embedding: null}",
    )
]
FEW = "eval_subset_num_batches=1"
SMALL_PAIR = ["pairs.resnet18-imagenet=false", "methods.global-gradient.samples_per_class=2"]
SMALL_PAIR = [f"study.shrinkbench.{change}" for change in (*SMALL_PAIR, "fine_tuning.global_batch_size=4")]
CYCLES = ["max_duration=4ba", "study.tradeoff.window=1ba"]
CYCLES += ["scheduler.multiplicative_cyclic={t_warmup: 1ba, t_period: 1ba}"]


def test_every_yaml_is_run_here():
    shipped = {path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")}
    assert shipped == SMALL | BIG | STUDIES


def test_every_yaml_says_what_it_is_and_how_to_launch_it():
    for name in SMALL | BIG | STUDIES:
        program = f"recipes/{'study' if name in STUDIES else 'train'}.py"
        head = re.split("\nrun_name:|\nextends:", (SHIPPED / f"{name}.yaml").read_text())[0]
        assert all(line.startswith("#") for line in head.splitlines()), name
        assert program in head and f"yamls/{name}.yaml" in head, name


@pytest.mark.parametrize("name", sorted(SMALL))
def test_small(name, tmp_path):
    overrides = ["max_duration=2ba", f"folder={tmp_path}"]
    if name == "python_docs/bert_tiny":
        overrides.append("scheduler.linear_with_warmup.t_warmup=1ba")  # 6 % of two batches is none
    result = train(check(*load(f"{name}.yaml", overrides)))
    assert result.batches == 2 and result.metrics


@pytest.mark.parametrize("name", ["digits/tradeoff", "fashion_mnist/tradeoff"])
def test_small_tradeoff(name, tmp_path):
    short = [*CYCLES, "study.tradeoff.seeds=[17]", "study.tradeoff.compare_standard=false", "eval_interval=1ba", FEW]
    found = run(plan(*load(f"{name}.yaml", [*short, f"folder={tmp_path}"])))
    assert [row.batches for row in found.rows] == [2, 4] * len(load(f"{name}.yaml")[0].study.tradeoff.arms)


def test_small_variants(tmp_path):
    few = ["max_duration=4ba", "scheduler.cosine_annealing_with_warmup.t_warmup=1ba", "study.variants.seeds=[17]"]
    given = load("digits/variants.yaml", [*few, f"folder={tmp_path}"])
    rows = run(plan(*given)).rows
    assert [(row["variant"], row.batches) for row in rows] == [(name, 4) for name in given[0].study.variants.variants]


def a_small_study(name):
    """Two teachers and one seed, two batches each."""
    block = "study.distillation"
    teachers = [f"{block}.teachers.{teacher}" for teacher in load(f"{name}.yaml")[0].study.distillation.teachers]
    short = [f"{teacher}.max_duration=2ba" for teacher in teachers[:2]] + [
        f"{teacher}=false" for teacher in teachers[2:]
    ]
    (schedule,) = load(f"{name}.yaml")[0].scheduler
    if schedule.endswith("with_warmup"):
        short.append(f"scheduler.{schedule}.t_warmup=1ba")  # 6 % of two batches is none
    own = ["lengths=[2ba]", "baseline_lengths=[]", "windows=[0.5]", "seeds=[17]"]
    return [f"{name}.yaml", FEW, *(f"{block}.{key}" for key in own), *short]


@pytest.mark.parametrize("name", sorted(DISTILLATIONS))
def test_small_distillation(name, tmp_path):
    file, *overrides = a_small_study(name)
    rows = run(plan(*load(file, [*overrides, f"folder={tmp_path}"]))).rows
    assert [row["arm"] for row in rows] == ["teacher"] * 2 + ["none", "best", "poorest", "ensemble", "random"]
    assert all(row.batches == 2 for row in rows)


def a_small_ladder(name, *but, controls=""):
    """Its first ladder with one level, and at that one its controls; two batches each."""
    first, *others = load(f"{name}.yaml")[0].study.tickets.ladders
    own = [f"ladders.{first}.levels=1", "ticket.rewind_to=1ba", "control_levels=[1]", "tolerance=0.1", "seeds=[17]"]
    own += [f"ladders.{other}=false" for other in others] + [f"controls={controls}"] * bool(controls)
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.tickets.{change}" for change in own), *but]


def a_small_comparison(name, *but, changes=()):
    """Two criteria at one density and one ablation of one of them, and pruning after training."""
    own = ["tolerance=0.1", "seeds=[17]", "densities=[0.5]", "ablations=[shuffle]", *changes]
    own += [f"criteria.{criterion}=false" for criterion in ("grasp", "magnitude", "synflow")]
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.prune_at_init.{change}" for change in own), *but]


WARMUP = "scheduler.cosine_annealing_with_warmup.t_warmup=1ba"


@pytest.mark.parametrize(
    ("name", "but", "batches"),
    [("digits/tickets", [WARMUP], 1), ("fashion_mnist/tickets", ["study.tickets.ticket.rewind_to=0ba"], 2)],
)
def test_small_tickets(name, but, batches, tmp_path):
    file, *overrides = a_small_ladder(name, *but, f"folder={tmp_path}")
    rows = run(plan(*load(file, overrides))).rows
    assert [(row["arm"], row["batches"]) for row in rows] == [
        ("dense", 2),
        ("iterative", batches),
        *((control, 2) for control in ("random", "reinitialize", "shuffle")),
    ]


@pytest.mark.parametrize(("name", "but"), [("digits/prune_at_init", [WARMUP]), ("fashion_mnist/prune_at_init", [])])
def test_small_criteria(name, but, tmp_path):
    file, *overrides = a_small_comparison(name, *but, f"folder={tmp_path}")
    arms = ["dense", "snip", "snip, shuffle", "random", "magnitude after training"]
    assert [row["arm"] for row in run(plan(*load(file, overrides))).rows] == arms


def a_small_stability(name, *but):
    """One seed, two copies from one step, and one density, pruned at once; two batches each."""
    own = ["seeds=[17]", "steps=[1ba]", "copies=2", "densities=[0.5]", "ladder={fraction: 0.5}", "controls=[random]"]
    own += ["points=2", "path_examples=8", "tolerance=0.1"]
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.stability.{change}" for change in own), *but]


@pytest.mark.parametrize(
    ("name", "but"),
    [("digits/stability", [WARMUP]), ("fashion_mnist/stability", []), ("fashion_mnist/stability_lenet", [])],
)
def test_small_stability(name, but, tmp_path):
    file, *overrides = a_small_stability(name, *but, FEW, f"folder={tmp_path}")
    found = run(plan(*load(file, overrides)))
    assert [row["arm"] for row in found.rows if row["role"] == "pair"] == ["dense", "tickets", "random"]


def a_small_landscape(name, *but, copies=2):
    """One seed, the dense network and one level, pruned at once; two batches each."""
    own = ["seeds=[17]", "levels=[0,1]", f"copies={copies}", "ladder={fraction: 0.5}", "controls=[]", "points=2"]
    own += ["path_examples=8", "hessian.probes=2", "hessian.examples=4", "tolerance=0.1"]
    own += ["plane=null"] if copies == 2 else ["plane.points=2"]
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.landscape.{change}" for change in own), *but]


ON_128 = "study.landscape.tickets_on.128-images"


@pytest.mark.parametrize(
    ("name", "but", "more"),
    [
        (
            "digits/landscape",
            [WARMUP, f"{ON_128}.max_duration=2ba", f"{ON_128}.{WARMUP}"],
            ["tickets on 128-images"],
        ),
        ("fashion_mnist/landscape", [], []),
        ("fashion_mnist/landscape_lenet", [], []),
    ],
)
def test_small_landscape(name, but, more, tmp_path):
    file, *overrides = a_small_landscape(name, *but, FEW, f"folder={tmp_path}")
    found = run(plan(*load(file, overrides)))
    assert [row["arm"] for row in found.rows if row["role"] == "pair"] == ["dense", "tickets", *more]


def a_small_search_on_distilled_data(name, *but):
    """One seed, the dense network and one level, pruned at once; two batches each, and sets of a few images."""
    own = ["seeds=[17]", "levels=[0,1]", "ladder={fraction: 0.5}", "controls=[]", "points=2", "path_examples=8"]
    own += ["tolerance=0.1", "finding.max_duration=2ba", "distilling.max_duration=2ba"]
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.distilled_tickets.{change}" for change in own), *but]


@pytest.mark.parametrize(
    ("name", "but"),
    [
        ("digits/distilled_tickets", [WARMUP, f"study.distilled_tickets.finding.{WARMUP}"]),
        ("fashion_mnist/distilled_tickets", []),
    ],
)
def test_small_search_on_distilled_data(name, but, tmp_path):
    file, *overrides = a_small_search_on_distilled_data(name, *but, FEW, f"folder={tmp_path}")
    found = run(plan(*load(file, overrides)))
    arms = ["dense", "tickets", "tickets on distilled data", "tickets on as few real images"]
    assert [row["arm"] for row in found.rows if row["role"] == "pair"] == arms


@pytest.mark.parametrize(
    ("name", "model", "runs", "cost"),
    [
        ("stability", "resnet_cifar", 240, 375.4),
        ("stability_vgg16", "vgg_cifar", 162, 384.7),
        ("landscape", "convnet", 63, 90.0),
    ],
)
def test_the_length_of_the_studies_of_cifar10(name, model, runs, cost):
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {}}", "eval_data={digits: {split: test}}", f"model.{model}.in_channels=1"]
    nodes = plan(*load(f"cifar10/{name}.yaml", ["variables.cifar10=/nowhere", "loggers=null", *data])).nodes({})
    assert len(nodes) == runs and round(sum(node.cost for node in nodes), 1) == cost


def a_small_generalization(name, *but):
    """One seed, one share of wrong labels, one round and the narrowest network; two batches each."""
    block = "study.generalization"
    *others, _ = load(f"{name}.yaml")[0].study.generalization.widths
    own = ["seeds=[17]", "noise=[0.3]", "rounds=1", "score_at=1ba", "groups=2", "tolerance=0.1"]
    own += [f"widths.{width}=false" for width in others]
    return [f"{name}.yaml", "max_duration=2ba", *(f"{block}.{change}" for change in own), *but]


ROUNDS = ["dense", "magnitude", "synflow", "extended", "once", "narrower", "narrower"]


@pytest.mark.parametrize(("name", "but"), [("digits/generalization", [WARMUP]), ("fashion_mnist/generalization", [])])
def test_small_generalization(name, but, tmp_path):
    file, *overrides = a_small_generalization(name, *but, FEW, f"folder={tmp_path}")
    found = run(plan(*load(file, overrides)))
    assert not found.failures
    assert [row["arm"] for row in found.rows][: len(ROUNDS)] == ROUNDS


def a_small_law(name, *but, arms):
    """One seed, these configurations, and one level; two batches each."""
    block = "study.scaling_law"
    given = load(f"{name}.yaml")[0].study.scaling_law.configurations
    own = ["seeds=[17]", "ladder={levels: 1, fraction: 0.5, rewind_to: 1ba}", f"fit_on=[{arms[0]}]"]
    own += [f"configurations.{arm}=false" for arm in given if arm not in arms]
    return [f"{name}.yaml", "max_duration=2ba", *(f"{block}.{change}" for change in own), *but]


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("digits/scaling_law", ("l3-w32", "l3-w64-half")),
        ("fashion_mnist/scaling_law", ("l8-w4", "l8-w4-twentieth", "mlp-l3-w30")),
    ],
)
def test_small_law(name, arms, tmp_path):
    file, *overrides = a_small_law(name, FEW, f"folder={tmp_path}", arms=arms)
    found = run(plan(*load(file, overrides)))
    assert not found.failures
    assert [(row["arm"], row["level"]) for row in found.rows] == [(arm, level) for arm in arms for level in (0, 1)]
    assert (
        len({row["examples"] for row in found.rows}) == 2
        and len({row["family"] for row in found.rows}) == len(arms) - 1
    )


def test_the_law_of_cifar10():
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {}}", "eval_data={digits: {split: test}}", "model.resnet_cifar.in_channels=1"]
    names = [*load("cifar10/scaling_law.yaml")[0].study.scaling_law.configurations]
    own = [f"{name}=false" for name in names if name.endswith("quarter")]
    own = [f"study.scaling_law.configurations.{change}" for change in own]
    fitted = [name for name in load("cifar10/scaling_law.yaml")[0].study.scaling_law.fit_on if "quarter" not in name]
    own.append(f"study.scaling_law.fit_on=[{','.join(fitted)}]")
    found = plan(*load("cifar10/scaling_law.yaml", ["variables.cifar10=/nowhere", "loggers=null", *data, *own]))
    nodes = found.nodes({})
    assert len(names) == 18 and len(nodes) == 3 * 16 and all(node.cost == 1 + 20 * 150 / 160 for node in nodes)


@pytest.mark.parametrize(("name", "model"), [("generalization", "resnet_cifar"), ("generalization_vgg16", "vgg_cifar")])
def test_the_generalizations_of_cifar10(name, model):
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {split: 'train[:80%]'}}", "eval_data={digits: {split: test}}"]
    data += ["validation_data={digits: {split: 'train[80%:]'}}", f"model.{model}.in_channels=1"]
    one = ["study.generalization.seeds=[17]", "study.generalization.noise=[0.3]", "study.generalization.rounds=2"]
    found = plan(*load(f"cifar10/{name}.yaml", ["variables.cifar10=/nowhere", "loggers=null", *data, *one]))
    assert len(found.nodes({})) == 1 + 4 * 2 + 3 * 3 + 2


def test_the_search_on_distilled_data_of_cifar10():
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {}}", "eval_data={digits: {split: test}}", "model.convnet.in_channels=1"]
    own = ["train_data={cifar10: false, digits: {}}", "global_batch_size=640"]
    data += [f"study.distilled_tickets.distilling.{change}" for change in own]
    found = plan(*load("cifar10/distilled_tickets.yaml", ["variables.cifar10=/nowhere", "loggers=null", *data]))
    assert len(found.nodes({})) == 51


def a_small_interpolation(name, *but, arms=()):
    """One seed and few points, two batches each, of these arms and those that begin with them."""
    block = "study.interpolation"
    given = load(f"{name}.yaml")[0].study.interpolation
    own = ["seeds=[17]", "steps=[1ba]", "points=3", "part_points=2", "path_examples=8", f"detailed=[{arms[0]}]"]
    own += [f"arms.{arm}=false" for arm in given.arms if arm not in arms]
    own += [f"origins.{origin}.max_duration=2ba" for origin in given.get("origins", ())]
    return [f"{name}.yaml", "max_duration=2ba", *(f"{block}.{change}" for change in own), *but]


@pytest.mark.parametrize(
    ("name", "but", "arms"),
    [
        ("digits/interpolation", [WARMUP], ("plain", "adam", "adversarial", "from_top", "reset_block")),
        ("fashion_mnist/interpolation", [], ("plain", "augmented", "adversarial", "from_top", "reset_block")),
        ("fashion_mnist/interpolation_lenet", [], ("plain", "narrow", "adversarial", "reset_layer")),
    ],
)
def test_small_interpolation(name, but, arms, tmp_path):
    file, *overrides = a_small_interpolation(name, *but, FEW, f"folder={tmp_path}", arms=arms)
    found = run(plan(*load(file, overrides)))
    assert not found.failures
    paths = [row for row in found.rows if row["role"] == "path" and row["kind"] == "training"]
    assert tuple(row["arm"] for row in paths if row["k"] == 0) == arms


@pytest.mark.parametrize(
    ("name", "model", "runs"), [("interpolation", "resnet_cifar", 54), ("interpolation_vgg16", "vgg_cifar", 51)]
)
def test_the_interpolations_of_cifar10(name, model, runs):
    """On other data, as the real ones are large."""
    data = [
        "train_data={digits: {resize: null}}",
        "eval_data={digits: {split: test}}",
        f"model.{model}.in_channels=1",
        f"model.{model}.width=4",
    ]
    places = [f"arms.{arm}.train_data" for arm in ("a_fifth", "half", "not_augmented")]
    places.append("origins.random_labels.train_data.noisy_labels.of")
    arms = [f"study.interpolation.{place}={{cifar10: false, digits: {{}}}}" for place in places]
    found = plan(*load(f"cifar10/{name}.yaml", ["variables.cifar10=/nowhere", "loggers=null", *data, *arms]))
    assert len(found.nodes({})) == runs


def a_small_diet(name, *but, starts, count=128):
    """One seed, of each of these subsets so many examples, one step, and one level; two batches each."""
    given = load(f"{name}.yaml")[0].study.data_diet.starts
    own = ["seeds=[17]", "steps=[0ba,1ba]", "ladder={levels: 1, fraction: 0.5}", "density=0.5", "points=2"]
    own += ["path_examples=8", "hessian=null", "score_at=1ba", "replicates=1", "tolerance=0.1"]
    own += [f"starts.{start}.count={count}" for start in starts if "count" in given[start]]
    own += [f"starts.{start}=false" for start in given if start not in starts]
    return [f"{name}.yaml", "max_duration=2ba", *(f"study.data_diet.{change}" for change in own), *but]


IMAGENET_DIETS = ("all", "random_12800", "easy_12800")
FEWER = ["train_data.fashion_mnist.split=train[:512]", "validation_data.fashion_mnist.split=train[512:600]"]


@pytest.mark.parametrize(
    ("name", "but", "starts"),
    [
        ("digits/data_diet", [WARMUP], ("all", "easy_128", "random_labels")),
        ("fashion_mnist/data_diet", FEWER, ("all", "easy_512", "random_labels")),
    ],
)
def test_small_data_diet(name, but, starts, tmp_path):
    file, *overrides = a_small_diet(name, *but, FEW, f"folder={tmp_path}", starts=starts)
    found = run(plan(*load(file, overrides)))
    assert not found.failures
    assert [row["start"] for row in found.rows if row["role"] == "pair"] == ["initialization", *starts]


def test_the_length_of_the_data_diet_of_cifar10():
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {}}", "eval_data={digits: {split: test}}", "validation_data=null"]
    given = load("cifar10/data_diet.yaml")[0].study.data_diet.starts
    data += [f"study.data_diet.starts.{start}.count=128" for start, diet in given.items() if "count" in diet]
    overrides = ["variables.cifar10=/nowhere", "loggers=null", "model.resnet_cifar.in_channels=1", *data]
    nodes = plan(*load("cifar10/data_diet.yaml", overrides)).nodes({})
    assert len(nodes) == 676 and round(sum(node.cost for node in nodes)) == 3493


def a_small_shrinkbench(name, *but, methods=("global-magnitude", "random")):
    """One seed, one ratio, one initial model, and these methods; two batches each."""
    block, given = "study.shrinkbench", load(f"{name}.yaml")[0].study.shrinkbench
    own = ["seeds=[17]", "compressions=[4]", "fine_tuning.max_duration=2ba"]
    own += [f"methods.{method}=false" for method in given.methods if method not in methods]
    own += [f"initials.{initial}=false" for initial in [*given.get("initials", ())][1:]]
    return [f"{name}.yaml", "max_duration=2ba", *(f"{block}.{change}" for change in own), *but]


@pytest.mark.parametrize("name", ["digits/shrinkbench", "fashion_mnist/shrinkbench"])
def test_small_shrinkbench(name, tmp_path):
    file, *overrides = a_small_shrinkbench(name, FEW, f"folder={tmp_path}")
    found = run(plan(*load(file, overrides)))
    assert not found.failures
    pairs = load(f"{name}.yaml")[0].study.shrinkbench.pairs
    methods = ("dense", "global-magnitude", "random")
    assert [(row["pair"], row["method"]) for row in found.rows] == [(pair, one) for pair in pairs for one in methods]


def test_the_ratios_that_the_shrinkbench_of_cifar10_reaches():
    """On other data, as the real ones are large."""
    data = ["train_data={digits: {resize: null}}", "eval_data={digits: {split: test}}"]
    data += [f"model.resnet_cifar.{change}" for change in ("in_channels=1", "num_classes=10")]
    vgg = "study.shrinkbench.pairs.vgg16=false"
    found = plan(*load("cifar10/shrinkbench.yaml", ["variables.cifar10=/nowhere", "loggers=null", vgg, *data]))
    assert len(found.nodes({})) == 2 * 2 * (1 + 3 * 5 * 5)


def a_small_bert_tickets(name, *but, tasks):
    """One seed, these tasks, and one level; two batches each."""
    block, given = "study.bert_tickets", load(f"{name}.yaml")[0].study.bert_tickets
    own = ["seeds=[17]", "tolerance=0.1", "control_levels=[1]", "transfer_level=1", "later=1ba"]
    own += ["ladder.levels=1", "ladder.fraction=0.5"]
    own += [f"tasks.{task}.max_duration=2ba" if task in tasks else f"tasks.{task}=false" for task in given.tasks]
    own += [f"metrics.{task}={metric}" for task, metric in given.get("metrics", {}).items() if task in tasks]
    return [f"{name}.yaml", "max_duration=2ba", *(f"{block}.{change}" for change in own), *but]


def masks_of_tasks(found, *tasks):
    assert not found.failures
    return {(row["task"], row["arm"]) for row in found.rows if row["task"] in tasks}


def expected(tasks, *others):
    arms = ("dense", "tickets", "later", "scratch", "one_shot", "random")
    sources = [*tasks, *others]
    return {(task, arm) for task in tasks for arm in (*arms, *(f"from {one}" for one in sources if one != task))}


def a_small_tiny_bert(*but):
    """Two tasks, each alone and both together, on a BERT that the study pretrains."""
    block = "study.bert_tickets"
    short = [f"{block}.pretraining.max_duration=2ba", f"{block}.together.all.tasks=[topic,masked_lm]"]
    short += [f"{block}.together.all.max_duration=2ba", "scheduler.linear_with_warmup.t_warmup=1ba", FEW]
    return a_small_bert_tickets("python_docs/bert_tickets", *short, *but, tasks=("masked_lm", "topic"))


def test_small_tickets_of_bert(tmp_path):
    file, *overrides = a_small_tiny_bert(f"folder={tmp_path}")
    tasks = ("masked_lm", "topic")
    assert masks_of_tasks(run(plan(*load(file, overrides))), *tasks) == expected(tasks, "all")


def test_tickets_of_a_bert_of_the_hub(tmp_path):
    """On small files in the hub's formats: a task of two metrics, SQuAD, and masked language modelling."""
    write_texts(tmp_path)
    tasks = ("masked_lm", "mrpc", "squad")
    places = [*found_in("bert/bert_tickets", tmp_path), f"folder={tmp_path / 'runs'}", "global_batch_size=4"]
    places += [f"study.bert_tickets.tasks.{task}.global_batch_size=4" for task in ("masked_lm", "squad")]
    file, *overrides = a_small_bert_tickets("bert/bert_tickets", *places, FEW, tasks=tasks)
    found = run(plan(*load(file, overrides)))
    assert masks_of_tasks(found, *tasks) == expected(tasks)
    metrics = {name.rpartition("/")[2] for row in found.rows if row["task"] == "mrpc" for name in row.metrics}
    assert {"MulticlassAccuracy", "BinaryF1Score"} <= metrics


def test_the_matrices_of_bert_that_are_pruned():
    config = load("bert/tickets.yaml")[0]
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=3))
    weights = prunable_weights(model, include=config.study.tickets.ticket.include)
    assert len(weights) == 73 and sum(weight.numel() for weight in weights.values()) == 85_524_480
    assert not any("embeddings" in name or "classifier" in name for name in weights)
    ladder = config.study.tickets.ladders.tickets
    densities = level_densities(ladder.levels, ladder.fraction, ladder.schedule)
    assert densities == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Small data in the formats of the big ones, one launch of two ranks for all, and where their results lie."""
    data = tmp_path_factory.mktemp("data")
    write_images(data)
    write_texts(data)
    runs = data / "runs"
    common = [
        "max_duration=2ba",
        f"folder={runs}",
        "precision=fp32",
        "global_batch_size=4",
        "eval_batch_size=4",
        "eval_interval=1ba",
        "device=cpu",
    ]
    images = [f"variables.imagenet={data / 'imagenet'}", "model.resnet.num_classes=2"]
    images += [f"{part}.image_folder.num_workers=0" for part in ("train_data", "eval_data")]
    shards = []
    for part, split in (("train_data", "train"), ("eval_data", "val")):
        shards += [f"{part}.streaming_images.local={data / 'shards' / split}"]
        shards += [f"{part}.streaming_images.{option}" for option in ("num_workers=0", "crop_size=64")]
    text = [
        f"variables.remote={data / 'c4'}",
        f"variables.local={data / 'cache'}",
        f"variables.tokenizer={data / 'bert'}",
    ]
    text += [f"{part}.streaming_text.num_workers=0" for part in ("train_data", "eval_data")]
    text += [f"model.bert.config.{option}" for option in ("num_hidden_layers=1", "hidden_size=24")]
    pairs = [f"variables.model={data / 'bert'}", f"variables.data={data / 'mnli'}"]
    text.append("device_train_microbatch_size=1")
    extra = {"bert/pretrain_base": text, "bert/finetune_mnli": pairs}
    extra["bert/finetune_squad"] = [pairs[0], f"variables.data={data / 'squad'}"]
    tiny = [f"{part}.image_folder.crop_size=64" for part in ("train_data", "eval_data")]
    # One of them is as large as on GPUs.
    small_images = [*images, *tiny, "model.resnet.depth=18"]
    extra |= dict.fromkeys((name for name in BIG if name.startswith("resnet50/")), small_images)
    extra["resnet50/baseline"] = images
    for name in DISTILLED:
        kind = name.rpartition("_")[2]
        several = "[resnet50/baseline, resnet50/mild]" if kind != "one" else "resnet50/baseline"
        extra[name] = [*small_images, f"variables.teachers={several}"]
        if name.startswith("bert"):
            extra[name] = [*text, "variables.teachers=bert/pretrain_base"]
    # The teachers come first.
    names = sorted(BIG, key=lambda name: (name in DISTILLED, name))
    commands = {name: [f"{name}.yaml", *common, f"run_name={name}", *extra[name]] for name in names}
    commands["streaming"] = ["resnet50/baseline.yaml", *common, "run_name=streaming", *shards, "model.resnet.depth=18"]
    name = "resnet50/tradeoff"
    arms = load(f"{name}.yaml")[0].study.tradeoff.arms
    arms = [f"study.tradeoff.arms.{arm}=false" for arm in arms if arm not in ("baseline", "all")]
    commands[name] = [f"{name}.yaml", *common, *small_images, f"run_name={name}", *CYCLES, *arms]
    steps = "scheduler.multi_step_with_warmup={t_warmup: 1ba, milestones: [2ba]}"
    small = [*common[1:], *images, *tiny, "model.resnet.depth=18", steps]
    name = "resnet50/tickets"
    commands[name] = a_small_ladder(name, *small, f"run_name={name}", controls="[reinitialize]")
    name = "bert/tickets"
    commands[name] = a_small_ladder(name, *common[1:], *pairs, f"run_name={name}")
    name = "resnet50/prune_at_init"
    commands["resnet50/stability"] = a_small_stability("resnet50/stability", *small, "run_name=resnet50/stability")
    # With a rate above 0, which the second batch does not have yet, so that its copies differ.
    commands["resnet50/landscape"] = a_small_landscape(
        "resnet50/landscape", *small, "run_name=resnet50/landscape", "max_duration=3ba", copies=3
    )
    commands["resnet50/interpolation"] = a_small_interpolation(
        "resnet50/interpolation", *small, "run_name=resnet50/interpolation", arms=["plain"]
    )
    commands["resnet50/generalization"] = a_small_generalization(
        "resnet50/generalization", *small, "run_name=resnet50/generalization", "model.resnet.depth=50"
    )
    commands["resnet50/scaling_law"] = a_small_law(
        "resnet50/scaling_law", *small, "run_name=resnet50/scaling_law", "model.resnet.depth=50", arms=("w4", "w8")
    )
    commands["resnet50/distilled_tickets"] = a_small_search_on_distilled_data(
        "resnet50/distilled_tickets", *small, "run_name=resnet50/distilled_tickets", *SMALL_SET
    )
    commands["resnet50/data_diet"] = a_small_diet(
        "resnet50/data_diet", *small, "run_name=resnet50/data_diet", "max_duration=3ba", starts=IMAGENET_DIETS, count=8
    )
    commands["resnet50/shrinkbench"] = a_small_shrinkbench(
        "resnet50/shrinkbench", *small, "run_name=resnet50/shrinkbench", *SMALL_PAIR, methods=("global-gradient",)
    )
    alone = [
        "criteria.random=false",
        "criteria.snip_per_batch.samples_per_class=2",
        "ablations=[]",
        "after_training=false",
    ]
    commands[name] = a_small_comparison(name, *small, f"run_name={name}", changes=alone)
    ranks = [f"folder={runs}", "device=cpu", "global_batch_size=4", "loggers={wandb: {project: accelerando}}"]
    commands["study"] = [*a_small_study("digits/distillation"), *ranks]
    commands["bert_tickets"] = [*a_small_tiny_bert(), *ranks]
    (data / "commands.json").write_text(json.dumps(list(commands.values())))
    done = launch(2, Path(__file__).with_name("run_yamls.py"), data / "commands.json", WANDB_MODE="offline")
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


@pytest.mark.programs
def test_tradeoff_under_two_ranks(big):
    with (big / "resnet50" / "tradeoff" / "table.csv").open() as file:
        rows = [(row["arm"], row["end"], row["samples"]) for row in csv.DictReader(file)]
    assert rows == [
        (arm, end, samples) for arm in ("baseline", "all") for end, samples in (("2ba", "8"), ("4ba", "16"))
    ]
    assert list((big / "resnet50" / "tradeoff").glob("wandb/offline-run-*"))


@pytest.mark.programs
def test_distillation_under_two_ranks(big):
    rows = [(row["arm"], row.samples) for row in read_table(big / "digits-distillation" / "table.csv")]
    assert rows == [(arm, 8) for arm in ("teacher", "teacher", "none", "best", "poorest", "ensemble", "random")]
    (run,) = (big / "digits-distillation").glob("wandb/offline-run-*")
    names = {path.name.split("_")[0] for path in run.glob("files/media/*/*")}
    assert names == {"table", "speedup", "claims"}


@pytest.mark.programs
@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("resnet50/tickets", ["dense", "one_shot", "reinitialize"]),
        ("bert/tickets", ["dense", "tickets", "random"]),
        ("resnet50/prune_at_init", ["dense", "snip_per_batch"]),
    ],
)
def test_pruning_under_two_ranks(name, arms, big):
    rows = [(row["arm"], row["samples"]) for row in read_table(big / name / "table.csv")]
    assert rows == [(arm, 4 if arm in ("one_shot", "tickets") else 8) for arm in arms]
    (run,) = (big / name).glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/table/*")} >= {"density"}


@pytest.mark.programs
def test_stability_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "stability" / "table.csv")
    assert [row["arm"] for row in rows if row["role"] == "pair"] == ["dense", "tickets", "random"]
    (run,) = (big / "resnet50" / "stability").glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/table/*")} >= {"stability", "claims"}


@pytest.mark.programs
def test_shrinkbench_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "shrinkbench" / "table.csv")
    assert [(row["method"], row.samples) for row in rows] == [("dense", 8), ("global-gradient", 8)]
    assert rows[1]["compression_ratio"] == pytest.approx(4, rel=1e-3)
    (run,) = (big / "resnet50" / "shrinkbench").glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/table/*")} >= {"shrinkbench", "claims"}


@pytest.mark.programs
def test_data_diet_under_two_ranks(big):
    """The ranks share the examples, of which the file has all."""
    folder = big / "resnet50" / "data_diet"
    rows = [row for row in read_table(folder / "table.csv") if row["role"] == "pair"]
    assert [row["start"] for row in rows] == ["initialization", *IMAGENET_DIETS]
    for row in rows:
        barriers = load_file(next((folder / row.node / "barriers").glob("*.safetensors")))
        for how, values in barriers.items():
            assert row[f"connected/{how}"] == pytest.approx(100 * (values < 0.1).double().mean().item())
            assert row[f"example barrier/{how}"] == pytest.approx(values.double().mean().item())


@pytest.mark.programs
def test_landscape_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "landscape" / "table.csv")
    assert [row["arm"] for row in rows if row["role"] == "pair"] == ["dense"] * 3 + ["tickets"] * 3
    (run,) = (big / "resnet50" / "landscape").glob("wandb/offline-run-*")
    names = {path.name.split("_")[0] for path in run.glob("files/media/table/*")}
    assert names >= {"landscape", "planes", "diagonals", "claims"}


@pytest.mark.programs
def test_generalization_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "generalization" / "table.csv")
    arms = [row["arm"] for row in rows]
    assert arms[:6] == ["dense", "magnitude", "extended", "once", "narrower", "narrower"]
    assert all(row.samples == 8 and np.isfinite(row["train/loss/wrong"]) for row in rows[:6])
    (run,) = (big / "resnet50" / "generalization").glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/table/*")} >= {"generalization", "claims"}


@pytest.mark.programs
def test_scaling_law_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "scaling_law" / "table.csv")
    assert [(row["arm"], row["level"], row["width"]) for row in rows] == [
        (name, level, width) for name, width in (("w4", 4), ("w8", 8)) for level in (0, 1)
    ]
    assert len({row["weights"] for row in rows}) == 2 and all(row.samples == 8 for row in rows if row["level"] == 0)
    (run,) = (big / "resnet50" / "scaling_law").glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/table/*")} >= {"points", "claims"}


@pytest.mark.programs
def test_distilled_tickets_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "distilled_tickets" / "table.csv")
    arms = ["dense", "tickets", "tickets on distilled data"]
    assert [row["arm"] for row in rows if row["role"] == "pair"] == arms
    assert [row["samples"] for row in rows if row["role"] == "distilling"] == [8]


@pytest.mark.programs
def test_tickets_of_several_tasks_under_two_ranks(big):
    tasks, rows = ("masked_lm", "topic"), read_table(big / "python-docs-bert-tickets" / "table.csv")
    assert {(row["task"], row["arm"]) for row in rows if row["task"] in tasks} == expected(tasks, "all")
    together = [row for row in rows if row["task"] == "topic of all"]
    assert together and all(np.isfinite(value) for row in together for value in row.metrics.values())
    assert all(row.samples == 8 for row in together if row["level"] == 0)


@pytest.mark.programs
def test_interpolation_under_two_ranks(big):
    rows = read_table(big / "resnet50" / "interpolation" / "table.csv")
    parts = ["all", "all", "conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert [row["part"].removeprefix("module.") for row in rows if row["role"] == "path"] == parts


@pytest.mark.programs
@pytest.mark.parametrize("name", sorted(BIG | {"streaming"}))
def test_big_under_two_ranks(name, big):
    result = json.loads((big / name / "results.json").read_text())
    assert result["batches"] == 2 and result["samples"] == 8
    assert all(np.isfinite(value) for value in result["metrics"].values()) and result["metrics"]
    assert (big / name / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((big / name).glob("wandb/offline-run-*"))
    (checkpoint,) = (big / name / "checkpoints").glob("ep*.pt")
    saved = torch.load(checkpoint, weights_only=False)["state"]
    assert saved["timestamp"]["Timestamp"]["batch"] == 2
