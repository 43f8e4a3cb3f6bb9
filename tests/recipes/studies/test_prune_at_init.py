"""Whole studies of `prune_at_init` on the real digits: what they leave, kill and resume, more of anything, mistakes."""

import csv
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf

from accelerando.recipes.config.errors import ConfigError, Source
from accelerando.recipes.prune_at_init import main, plan, prune_at_init
from accelerando.recipes.run import figures
from accelerando.recipes.run.pruned_run import pruning_of
from accelerando.recipes.run.results import Result
from accelerando.recipes.train import train

YAML = """
run_name: study
criteria:
  snip: {samples_per_class: 2}
  small: {criterion: magnitude, scope: layerwise}
  random: {}
densities: [0.1, 0.5]
ablations: [shuffle, invert]
after_training: {rewind_to: 1ba}
seeds: [1]
max_duration: 3ba
global_batch_size: 64
eval_batch_size: 360
eval_interval: 1dur
model: {resnet_cifar: {depth: 8, width: 4, in_channels: 1}}
train_data: {digits: {}}
eval_data: {digits: {split: test}}
optimizer: {decoupled_sgdw: {lr: 0.1, momentum: 0.9}}
scheduler: {cosine_annealing: {}}
device: cpu
"""
YAML += f'callbacks: {{"{__name__}:Watch": {{}}}}\n'
RUN, AFTER = 3, 3 + 2  # batches
ARMS = ["snip", "snip, shuffle", "snip, invert", "small", "small, shuffle", "small, invert", "random"]
LAST = "magnitude after training"
OF_A_SEED = RUN + 2 * (len(ARMS) * RUN + AFTER)
ACCURACY = "metrics/eval/MulticlassAccuracy"
pytestmark = pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.LayerCollapseWarning")


class Watch(Callback):
    """Counts the batches of all runs, keeps what they prune, and may kill the process at one of the batches."""

    batches = 0
    kill_at = -1
    masks: dict[str, dict[str, torch.Tensor]]

    def batch_end(self, state, logger):
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt

    def fit_end(self, state, logger):
        name = state.run_name.rpartition("/")[2]
        Watch.masks[name] = dict(pruning_of(state).masks) if pruning_of(state) else {}


@pytest.fixture(scope="module", autouse=True)
def runs_without_figures():
    """Half the time of so short a run goes into its own figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: np.zeros((4, 4, 3), np.uint8))
        yield


@pytest.fixture(autouse=True)
def watch():
    Watch.batches, Watch.kill_at, Watch.masks = 0, -1, {}


@pytest.fixture
def config(tmp_path):
    return OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(tmp_path)})


@pytest.fixture(scope="module")
def whole(runs_without_figures, tmp_path_factory):
    """A study's folder, its points, and the masks of its runs."""
    Watch.batches, Watch.kill_at, Watch.masks = 0, -1, {}
    folder = tmp_path_factory.mktemp("whole")
    points = prune_at_init(OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(folder)}))
    assert Watch.batches == OF_A_SEED
    return folder / "study", points, Watch.masks


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "study", symlinks=True)
    return whole[1]


def without_seconds(points):
    return [{name: value for name, value in vars(p).items() if name != "seconds"} for p in points]


def test_a_study_and_what_it_leaves(whole):
    folder, points, _ = whole
    with (folder / "prune_at_init.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: str(value) for name, value in vars(point).items()} for point in points] == rows
    # By falling density, whatever their order in the file.
    assert [(p.arm, p.level) for p in points] == [("dense", 0)] + [(arm, n) for n in (1, 2) for arm in (*ARMS, LAST)]
    densities = {p.density for p in points if p.level}  # whatever the scope, the same number of weights
    assert sorted(densities) == pytest.approx([0.1, 0.5], abs=1e-4) and len(densities) == 2
    assert all((p.batches, p.samples) == (b := 2 if p.arm == LAST else 3, 64 * b) and p.seconds > 0 for p in points)
    assert all((p.compression_ratio > 1.5) == (p.speedup > 1.1) == (p.level > 0) for p in points)
    with (folder / "density.csv").open() as file:
        means = [(row["arm"], row["level"]) for row in csv.DictReader(file)]
    assert means == [("dense", "0"), *((arm, level) for arm in (*ARMS, LAST) for level in "12")]
    assert (folder / "prune_at_init.png").read_bytes().startswith(b"\x89PNG")
    assert OmegaConf.load(folder / "config.yaml").densities == [0.1, 0.5]


def test_each_arm_is_the_run_that_it_says(whole, config):
    folder, points, masks = whole
    value = {(p.arm, p.level): p.value for p in points}
    own = ("criteria", "densities", "ablations", "after_training", "seeds")
    plain: dict[str, Any] = {k: v for k, v in OmegaConf.to_container(config).items() if k not in own} | {"seed": 1}  # type: ignore[union-attr]

    def accuracy(name, **algorithms):
        return train(plain | {"run_name": name, "algorithms": algorithms}).metrics[ACCURACY]

    assert accuracy("dense") == value["dense", 0]
    snip = {"criterion": "snip", "density": 0.1, "samples_per_class": 2}
    assert accuracy("snip", prune_at_init=snip) == value["snip", 2]
    assert accuracy("shuffle", prune_at_init=snip | {"shuffle": True}) == value["snip, shuffle", 2]
    ticket = {"levels": 1, "fraction": 0.9, "schedule": "arithmetic", "rewind": "learning_rate", "rewind_to": "1ba"}
    assert accuracy("ticket", lottery_ticket=ticket) == value[LAST, 2]
    dense = Result.load(folder / "after_training-0.5-seed1").levels[0]
    assert dense["eval/MulticlassAccuracy"] == value["dense", 0]

    kept = {name: masks[f"snip{name}-0.5-seed1"] for name in ("", "-shuffle", "-invert")}
    assert all(mask.sum() == kept["-shuffle"][name].sum() for name, mask in kept[""].items())
    assert any(mask.sum() != kept["-invert"][name].sum() for name, mask in kept[""].items())
    assert not any(
        all(torch.equal(m, kept[other][n]) for n, m in kept[""].items()) for other in ("-shuffle", "-invert")
    )


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, config):
    assert prune_at_init(config) == copied and Watch.batches == 0
    config.update(densities=[0.5], ablations=[])
    config.criteria.update(small=False, random=False)
    known = [p for p in copied if p.arm == "dense" or (p.level == 1 and p.arm in ("snip", LAST))]
    assert prune_at_init(config) == known and Watch.batches == 0
    config.seeds = [2, 1]
    assert [p for p in prune_at_init(config) if p.seed == 1] == known and Watch.batches == 2 * RUN + AFTER
    Watch.batches, config.seeds, config.ablations = 0, [1], ["reinitialize"]
    more = prune_at_init(config)
    assert [p.arm for p in more] == ["dense", "snip", "snip, reinitialize", LAST] and Watch.batches == RUN
    Watch.batches, config.densities, config.ablations = 0, [0.25, 0.5], []
    more = prune_at_init(config)
    assert [(p.arm, p.level) for p in more[1:]] == [("snip", 1), (LAST, 1), ("snip", 2), (LAST, 2)]
    assert more[:3] == known and Watch.batches == RUN + AFTER
    config.after_training = False
    assert prune_at_init(config) == [p for p in more if p.arm != LAST] and Watch.batches == RUN + AFTER
    config.criteria.snip.samples_per_class = 3
    with pytest.raises(ConfigError, match=r"criteria\.snip\.samples_per_class: 3 given, but the run in .* has 2"):
        prune_at_init(config)


@pytest.mark.parametrize("kill_at", [2, RUN + 1, 2 * RUN + 4])
def test_killed_at_any_time_it_goes_on(whole, config, kill_at):
    config.update(criteria={"snip": {"samples_per_class": 2}}, ablations=[], densities=[0.5], save_interval="1ba")
    Watch.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        prune_at_init(config)
    resumed = prune_at_init(config)
    kept = [p for p in whole[1] if p.arm == "dense" or (p.level == 1 and p.arm in ("snip", LAST))]
    assert without_seconds(resumed) == without_seconds(kept)
    assert 0 <= Watch.batches - (2 * RUN + AFTER) <= 1


def test_it_is_told_and_logged_to_wandb(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config.update(criteria={"random": {}}, densities=[0.5], loggers={"wandb": {"project": "p"}})
    points = prune_at_init(config)
    (run,) = (tmp_path / "study").glob("wandb/offline-run-*")
    contents = {}
    for name in ("prune_at_init", "density"):
        (table,) = run.glob(f"files/media/table/{name}*.table.json")
        contents[name] = json.loads(table.read_text())
    first = contents["prune_at_init"]
    assert [dict(zip(first["columns"], row, strict=True)) for row in first["data"]] == [vars(p) for p in points]
    assert [row[0] for row in contents["density"]["data"]] == ["dense", "random", LAST]
    (figure,) = run.glob("files/media/images/*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("run ")]
    assert [line.partition(": accuracy ")[0] for line in lines] == [
        "run 1 of 3: dense, seed 1",
        "run 2 of 3: random, 50 %, seed 1",
        f"run 3 of 3: {LAST}, 50 %, seed 1",
    ]
    assert lines[-1].endswith("(100%, 00:00 left)") and "sparsest match" in out and "prune_at_init.csv" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["criteria=null"], "command line: criteria: missing; expected names, each with its arguments"),
        (["criteria.a b={criterion: snip}"], "criteria.a b: expected a name of up to 100 letters"),
        (["criteria.snipp={}"], "command line: criteria.snipp: unknown criterion; did you mean snip?"),
        (
            ["criteria.mine={criterion: snipp}"],
            "command line: criteria.mine.criterion: unknown criterion; did you mean",
        ),
        (["criteria.mine={criterion: [snip]}"], "command line: criteria.mine.criterion: unknown criterion"),
        (
            ["criteria.snip.samples=3"],
            "command line: criteria.snip.samples: unknown argument; did you mean samples_per",
        ),
        (["criteria.snip.samples_per_class=0"], "criteria.snip.samples_per_class: PruneAtInit: samples_per_class must"),
        (["criteria.snip.density=0.5"], "command line: criteria.snip.density: the study sets it for every run"),
        (["criteria.snip.shuffle=true"], "command line: criteria.snip.shuffle: the study sets it for every run"),
        (["criteria.snip.ticket=x"], "command line: criteria.snip.ticket: the study sets it for every run"),
        (
            ["criteria.snip.at=1ba", "ablations=[reinitialize]"],
            "criteria.snip: PruneAtInit: reinitialize must be False",
        ),
        (["criteria.dense={criterion: snip}"], "command line: criteria.dense: is what the study calls something else"),
        (["criteria.snip-shuffle={criterion: snip}"], "criteria: several of their runs would be called snip-shuffle"),
        (["densities=null"], "command line: densities: null given"),
        (["densities=[]"], "command line: densities: [] given; expected different ones, above 0 and below 1"),
        (["densities=[0.5,1.5]"], "command line: densities: [0.5, 1.5] given; expected different ones, above 0"),
        (["densities=[1]"], "command line: densities: [1] given; expected different ones, above 0 and below 1"),
        (["densities=[0.5,0.5]"], "densities: [0.5, 0.5] given; expected different ones"),
        (["densities=[0.5,0.50001]"], "that differ in their first three digits"),
        (["densities=[half]"], "command line: densities: ['half'] given"),
        (
            ["ablations=[shufle]"],
            "command line: ablations: ['shufle'] given; expected different ones, of shuffle, rein",
        ),
        (["ablations=[invert,invert]"], "ablations: ['invert', 'invert'] given; expected different ones"),
        (["pruning.density=0.5"], "command line: pruning.density: unknown argument; expected one of classifier"),
        (["pruning.exclude=[nothing]"], "no prunable weight is called 'nothing'"),
        (["pruning.scope=local"], "command line: pruning.scope: 'local' given"),
        (["after_training.fraction=0.5"], "command line: after_training.fraction: the study sets it for every run"),
        (["after_training.rewnd=weights"], "command line: after_training.rewnd: unknown argument; did you mean rewind"),
        (["after_training.rewind_to=3ba"], "command line: after_training.rewind_to: 3ba given; expected less than max"),
        (["after_training=3"], "command line: after_training: 3 given"),
        (["algorithms={prune_at_init: {density: 0.5}}"], "algorithms.prune_at_init: the study adds what prunes"),
        (
            ["algorithms={ema: {half_life: 10ba, ema_start: 0.5dur}}"],
            "algorithms.ema: follows the length of the whole run",
        ),
        (["tolerance=some"], "command line: tolerance: 'some' given; expected a number or null"),
        (["eval_data=null"], "command line: eval_data: missing"),
        (["seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["max_duration=4tok"], "command line: max_duration: 4tok given"),
        (["run_name=a_run"], "a_run is the folder of a training run; choose another one"),
    ],
)
def test_mistakes_are_one_line(config, overrides, message, tmp_path, capsys):
    (tmp_path / "a_run" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "study.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(SystemExit) as exit:
        main([str(file), *overrides])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert Watch.batches == 0


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"synflow": {}}, r"criteria\.synflow: synflow feeds images of ones, which this model of text does not take"),
        (
            {"grasp": {"temperature": 200}},
            r"criteria\.grasp\.temperature: must be 1 for a model that computes its loss",
        ),
    ],
)
def test_what_text_cannot_do_is_known_beforehand(config, criteria, message):
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.update(model={"bert": {"objective": "classification", "config": sizes | {"intermediate_size": 8}}})
    config.criteria = criteria
    with pytest.raises(ConfigError, match=message):
        plan(config, Source())
    config.criteria = {"grasp": {}}
    assert [arm.name for arm in plan(config, Source()).arms] == ["grasp", "grasp, shuffle", "grasp, invert", LAST]


def test_a_plan_trains_nothing(config):
    study = plan(config, Source())
    assert study.densities == [0.5, 0.1] and [arm.name for arm in study.arms] == [*ARMS, LAST]
    assert [arm.trainings for arm in study.arms] == [1.0] * len(ARMS) + [2 - 1 / 3]
    config.after_training = True
    assert plan(config, Source()).arms[-1].arguments["rewind"] == "learning_rate" and Watch.batches == 0
