"""Whole studies of `tickets` on the real digits: what they leave, kill and resume, more of anything, mistakes."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf

from accelerando.algorithms.pruning import load_masks, prunable_weights
from accelerando.algorithms.pruning.masks import density
from accelerando.recipes.config.errors import ConfigError, Source
from accelerando.recipes.models.builders import resnet_cifar
from accelerando.recipes.run import figures
from accelerando.recipes.run.pruned_run import pruning_of
from accelerando.recipes.tickets import main, plan, tickets
from accelerando.recipes.train import train

YAML = """
run_name: study
ladders:
  iterative: {levels: 2}
  one_shot: {levels: 1, fraction: 0.36}
ticket: {fraction: 0.2, rewind_to: 1ba}
controls: [random, reinitialize, shuffle]
control_levels: [2]
seeds: [1, 2]
max_duration: 4ba
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
ITERATIVE, ONE_SHOT, CONTROL = 4 + 2 * 3, 4 + 3, 4  # batches
OF_A_SEED = ITERATIVE + ONE_SHOT + 3 * CONTROL
ACCURACY = "metrics/eval/MulticlassAccuracy"


class Watch(Callback):
    """Counts the batches of all runs, keeps what they start from and prune, and may kill the process at a batch."""

    batches = 0
    kill_at = -1
    starts: dict[str, torch.Tensor]
    masks: dict[str, dict[str, torch.Tensor]]

    def fit_start(self, state, logger):
        Watch.starts[state.run_name] = next(state.model.parameters()).detach().clone()

    def batch_end(self, state, logger):
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt

    def fit_end(self, state, logger):
        Watch.masks[state.run_name] = dict(pruning_of(state).masks) if pruning_of(state) else {}


@pytest.fixture(scope="module", autouse=True)
def runs_without_figures():
    """Half the time of so short a run goes into its own figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: np.zeros((4, 4, 3), np.uint8))
        yield


@pytest.fixture(autouse=True)
def watch():
    Watch.batches, Watch.kill_at, Watch.starts, Watch.masks = 0, -1, {}, {}


@pytest.fixture
def config(tmp_path):
    return OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(tmp_path)})


@pytest.fixture(scope="module")
def whole(runs_without_figures, tmp_path_factory):
    """A study's folder, its points, and what its runs started from and pruned, by the last part of their names."""
    Watch.batches, Watch.kill_at, Watch.starts, Watch.masks = 0, -1, {}, {}
    folder = tmp_path_factory.mktemp("whole")
    points = tickets(OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(folder)}))
    assert Watch.batches == 2 * OF_A_SEED
    starts, masks = ({k.rpartition("/")[2]: v for k, v in kept.items()} for kept in (Watch.starts, Watch.masks))
    return folder / "study", points, starts, masks


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "study", symlinks=True)
    return whole[1]


def without_seconds(points):
    return [{name: value for name, value in vars(p).items() if name != "seconds"} for p in points]


def named(things, *parts):
    """The one whose name has all these parts."""
    (found,) = (thing for name, thing in things.items() if all(part in name for part in parts))
    return found


def test_a_study_and_what_it_leaves(whole):
    folder, points, _, _ = whole
    with (folder / "tickets.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = [("dense", "0"), ("iterative", "1"), ("iterative", "2"), ("one_shot", "1")]
    arms += [(control, "2") for control in ("random", "reinitialize", "shuffle")]
    assert [(row["seed"], row["arm"], row["level"]) for row in rows] == [(seed, *arm) for seed in "12" for arm in arms]
    assert [{name: str(value) for name, value in vars(point).items()} for point in points] == rows
    lengths = {"dense": 4, "iterative": 3, "one_shot": 3}
    assert all((p.batches, p.samples) == (b := lengths.get(p.arm, 4), 64 * b) for p in points)
    assert all(p.seconds > 0 and (p.compression_ratio > 1) == (p.speedup > 1) == (p.arm != "dense") for p in points)
    with (folder / "density.csv").open() as file:
        means = list(csv.DictReader(file))
    assert [(row["arm"], row["level"], row["seeds"]) for row in means] == [(*arm, "2") for arm in arms]
    assert (folder / "tickets.png").read_bytes().startswith(b"\x89PNG")
    assert OmegaConf.load(folder / "config.yaml").ladders.one_shot.fraction == 0.36


def test_points_are_those_of_separate_runs(whole, config, tmp_path):
    folder, points, _, _ = whole
    own = ("ladders", "ticket", "controls", "control_levels", "seeds")
    plain = {key: value for key, value in OmegaConf.to_container(config).items() if key not in own} | {"seed": 1}
    value = {(p.arm, p.level): p.value for p in points if p.seed == 1}

    def accuracy(name, **algorithms):
        return train(plain | {"run_name": name, "algorithms": algorithms}).metrics[ACCURACY]

    assert accuracy("dense") == value["dense", 0]
    ladder = train(plain | {"algorithms": {"lottery_ticket": {"levels": 2, "fraction": 0.2, "rewind_to": "1ba"}}})
    assert [level["eval/MulticlassAccuracy"] for level in ladder.levels] == [
        value["dense", 0],
        value["iterative", 1],
        value["iterative", 2],
    ]
    random = {"criterion": "random", "density": 0.8**2, "at": "1ba"}
    assert accuracy("random", prune_at_init=random) == value["random", 2]
    ticket = {"ticket": str(folder / "iterative-seed1" / "tickets" / "level-2.safetensors"), "at": "1ba"}
    assert accuracy("shuffle", prune_at_init=ticket | {"shuffle": True}) == value["shuffle", 2]
    plain["seed"] = 1_000_001
    assert accuracy("reinitialize", prune_at_init=ticket) == value["reinitialize", 2]


def test_controls_are_what_they_say(whole):
    folder, points, starts, masks = whole
    by_density = {}
    for point in points:
        by_density.setdefault(point.level if point.arm != "one_shot" else 2, set()).add(point.density)
    assert all(len(densities) == 1 for densities in by_density.values())
    for seed in (1, 2):
        controls = ("random", "shuffle", "reinitialize")
        kept = {control: named(masks, control, "level2", f"seed{seed}") for control in controls}
        ticket = load_masks(folder / f"iterative-seed{seed}" / "tickets" / "level-2.safetensors", kept["random"])
        assert {density(m) for m in (ticket, *kept.values())} == by_density[2] and density(ticket) < 1
        assert all(torch.equal(ticket[name], mask) for name, mask in kept["reinitialize"].items())
        assert all(ticket[name].sum() == mask.sum() for name, mask in kept["shuffle"].items())
        assert any(not torch.equal(ticket[name], mask) for name, mask in kept["shuffle"].items())
        assert any(ticket[name].sum() != mask.sum() for name, mask in kept["random"].items())
        start = starts[f"iterative-seed{seed}"]
        for control in ("random", "shuffle"):
            assert torch.equal(named(starts, control, f"seed{seed}"), start)
        assert not torch.equal(named(starts, "reinitialize", f"seed{seed}"), start)


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, config, tmp_path):
    assert tickets(config) == copied and Watch.batches == 0
    config.seeds = [1, 5]
    more = tickets(config)
    assert Watch.batches == OF_A_SEED
    first = [point for point in copied if point.seed == 1]
    assert [point for point in more if point.seed == 1] == first

    # A third level, and the controls of that one alone.
    Watch.batches, config.seeds, config.control_levels = 0, [1], [2, 3]
    config.ladders.iterative.levels = 3
    prolonged = tickets(config)
    assert Watch.batches == 3 + 3 * CONTROL
    assert [point for point in prolonged if point.level < 3] == first
    config.update(controls=["shuffle"], control_levels=[3])
    config.ladders.one_shot, Watch.batches = False, 0
    kept = tickets(config)
    assert [point for point in prolonged if point in kept] == kept and Watch.batches == 0
    assert without_seconds(tickets(OmegaConf.merge(config, {"run_name": "anew"}))) == without_seconds(kept)
    # Fewer levels are another run.
    config.ladders.iterative.levels, config.control_levels = 2, [1]
    with pytest.raises(ConfigError, match=r"ladders\.iterative\.levels: 2 given, but the run in .* has 3"):
        tickets(config)


@pytest.mark.parametrize("kill_at", [4, 6, ITERATIVE, ITERATIVE + CONTROL + 2])
def test_killed_at_any_time_it_goes_on(whole, config, kill_at, tmp_path):
    config.update(seeds=[1], controls=["random", "shuffle"], control_levels=[2], save_interval="1ba")
    config.ladders.one_shot = False
    Watch.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        tickets(config)
    assert not (tmp_path / "study" / "tickets.csv").exists()
    resumed = tickets(config)
    ladder, controls = ("dense", "iterative"), ("random", "shuffle")
    kept = [p for p in whole[1] if p.seed == 1 and (p.arm in ladder or (p.arm in controls and p.level == 2))]
    assert without_seconds(resumed) == without_seconds(kept)
    assert 0 <= Watch.batches - (ITERATIVE + 2 * CONTROL) <= 1


def test_another_ticket_does_not_pass_for_this_one(copied, config, tmp_path):
    config.update(seeds=[1], controls=["shuffle"])
    study = tmp_path / "study"
    for folder in study.glob("shuffle-*-seed1"):
        shutil.rmtree(folder)
    file = study / "iterative-seed1" / "tickets" / "level-2.safetensors"
    own = file.read_bytes()
    for other in ((study / "iterative-seed2" / "tickets" / "level-2.safetensors").read_bytes(), own[:100], None):
        file.write_bytes(other) if other is not None else file.unlink()
        with pytest.raises(ConfigError, match=r"delete .*iterative-seed1 to train it again") as refused:
            tickets(config)
        assert refused.value.file == str(file)
    assert Watch.batches == 0
    file.write_bytes(own)
    assert [point.arm for point in tickets(config)].count("shuffle") == 1 and Watch.batches == CONTROL

    # Another training finds other masks, of which the controls are other runs.
    shutil.rmtree(study / "iterative-seed1")
    config.update(optimizer={"decoupled_sgdw": {"lr": 0.3, "momentum": 0.9}}, controls=[])
    config.ladders.one_shot, Watch.batches = False, 0
    tickets(config)
    config.controls = ["shuffle"]
    tickets(config)
    assert Watch.batches == ITERATIVE + CONTROL
    assert len([*study.glob("shuffle-iterative-level2-*-seed1")]) == 2


def test_a_moved_study_is_the_same(copied, config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "study").rename(tmp_path / "elsewhere" / "study")
    config.folder = str(tmp_path / "elsewhere")
    assert tickets(config) == copied and Watch.batches == 0


def test_it_is_told_and_logged_to_wandb(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config.update(seeds=[1], controls=["random"], control_levels=[1], loggers={"wandb": {"project": "p"}})
    config.ladders.one_shot = False
    points = tickets(config)
    (run,) = (tmp_path / "study").glob("wandb/offline-run-*")
    contents = {}
    for name in ("tickets", "density"):
        (table,) = run.glob(f"files/media/table/{name}*.table.json")
        contents[name] = json.loads(table.read_text())
    rows = [dict(zip(contents["tickets"]["columns"], row, strict=True)) for row in contents["tickets"]["data"]]
    assert rows == [vars(point) for point in points]
    assert [row[0] for row in contents["density"]["data"]] == ["dense", "iterative", "iterative", "random"]
    (figure,) = run.glob("files/media/images/*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "study" / "iterative-seed1").glob("wandb/offline-run-*"))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("run ")]
    assert len(lines) == 4 and lines[-1].endswith("(100%, 00:00 left)")
    place, value = "run 1 of 2: iterative, seed 1, level", f"accuracy {points[2].value:.4f} ("
    assert lines[0].startswith(f"{place} 0 of 2, 100 %: ") and lines[2].startswith(f"{place} 2 of 2, 64 %: {value}")
    assert lines[3].startswith("run 2 of 2: random, seed 1, level 1: accuracy ")
    assert "sparsest match" in out and "density.csv" in out


def test_of_a_loss_less_is_better(config):
    config.update(
        metric="CrossEntropy",
        seeds=[1],
        controls=[],
        control_levels=None,
        ladders={"bad": {"levels": 1, "fraction": 0.9}},
    )
    dense, bad = tickets(config)
    assert dense.value < bad.value
    with open(f"{config.folder}/study/density.csv") as file:
        assert [row["matches"] for row in csv.DictReader(file)] == ["", "False"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ladders=null"], "command line: ladders: missing; expected names, each with its arguments"),
        (["ladders=[a]"], "command line: ladders: "),
        (["ladders.iterative=false", "ladders.one_shot=false"], "command line: ladders: each of them is false"),
        (["ladders.iterative=3"], "ladders.iterative: 3 given; expected its arguments as a mapping"),
        (["ladders.a/b={levels: 1}"], "ladders.a/b: expected a name of up to 100 letters"),
        (["ladders.random={levels: 1}"], "command line: ladders.random: is what the study calls something else"),
        (["ladders.dense={levels: 1}"], "command line: ladders.dense: is what the study calls something else"),
        (["ladders.more={}"], "command line: ladders.more.levels: missing"),
        (["ladders.iterative.lvels=2"], "command line: ladders.iterative.lvels: unknown argument; did you mean levels"),
        (["ladders.iterative.levels=two"], "command line: ladders.iterative.levels: 'two' given"),
        (
            ["ladders.iterative.levels=0"],
            "command line: ladders.iterative.levels: LotteryTicket: levels must be ",
        ),
        (["ladders.iterative.fraction=1.5"], "ladders.iterative.fraction: LotteryTicket: fraction must be in (0, 1)"),
        (["ladders.iterative.save_folder=x"], "ladders.iterative.save_folder: the study sets it for every run"),
        (["ticket.fractoin=0.2"], "command line: ticket.fractoin: unknown argument; did you mean fraction"),
        (
            ["ticket.rewind_to=soon"],
            "command line: ticket.rewind_to: LotteryTicket: rewind_to must be in ep or ba, got 'soon'",
        ),
        (["ticket.rewind_to=4ba"], "rewind_to: 4ba given; expected less than max_duration"),
        (["ticket.include=[nothing.*]"], "no prunable weight is called 'nothing.*'"),
        (
            ["controls=[lucky]"],
            "command line: controls: ['lucky'] given; expected different ones, of random, reinitialize",
        ),
        (["controls=[random,random]"], "controls: ['random', 'random'] given; expected different ones"),
        (["controls=random"], "command line: controls: 'random' given"),
        (
            ["ladders.iterative.rewind=finetune"],
            "controls: what they are compared with begins at step k, but iterative",
        ),
        (["control_levels=[3]"], "command line: control_levels: [3] given; expected different ones, from 1 to 2"),
        (["control_levels=[]"], "command line: control_levels: [] given; expected different ones, from 1 to 2"),
        (["control_levels=[1,1]"], "control_levels: [1, 1] given; expected different ones"),
        (["seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["seeds=[-1]"], "command line: seeds: -1 given; expected a whole number from 0"),
        (["seeds=[4294967295]"], "command line: seeds: 4295967295 given; expected a whole number from 0"),
        (["seed=3"], "command line: seed: a study has several"),
        (["tolerance=-1"], "command line: tolerance: -1 given; expected 0 or more"),
        (
            ["tolerance=null", "seeds=[1]"],
            "command line: tolerance: null is one standard deviation over seeds; give two",
        ),
        (["metric=Precision"], "command line: metric: no metric is 'Precision'"),
        (["eval_data=null"], "command line: eval_data: missing; what a subnetwork is worth is evaluated there"),
        (["max_duration=400sp"], "command line: max_duration: 400sp given; expected it in ep or ba"),
        (
            ["algorithms={magnitude_pruning: {density: 0.5}}"],
            "algorithms.magnitude_pruning: the study adds what prunes",
        ),
        (
            ["algorithms={progressive_resizing: {}}"],
            "algorithms.progressive_resizing: follows the length of the whole run",
        ),
        (
            ["algorithms={label_smoothing: {smoothing: 2}}"],
            "algorithms.label_smoothing: LabelSmoothing: smoothing must",
        ),
        (["optimizer={decoupled_sgdw: {lr: -1}}"], "command line: optimizer.decoupled_sgdw: "),
        (["model={resnet_cifar: {depth: 9}}"], "command line: model.resnet_cifar: depth must be"),
        (["run_name=a_run"], "a_run is the folder of a training run; choose another one"),
        (["run_name=null"], "command line: run_name: missing"),
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
    ("override", "message"),
    [
        ("ticket.rewind_to=2ba", "command line: ticket.rewind_to: 2ba given, but the run in"),
        ("ladders.one_shot.fraction=0.5", "command line: ladders.one_shot.fraction: 0.5 given, but the run in"),
        ("max_duration=6ba", "command line: max_duration: 6ba given, but the run in"),
        ("optimizer.decoupled_sgdw.lr=0.2", "command line: optimizer.decoupled_sgdw.lr: 0.2 given, but the run in"),
    ],
)
def test_what_is_in_the_folder_is_not_falsified(copied, config, override, message, capsys, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(SystemExit):
        main([str(file), override])
    assert message in capsys.readouterr().err and Watch.batches == 0


def test_a_plan_trains_nothing(config):
    study = plan(config, Source("f.yaml"))
    assert [ladder.trainings for ladder in study.ladders] == [1 + 2 * 0.75, 1.75]
    del config.control_levels
    assert plan(config, Source("f.yaml")).control_levels == [1, 2]
    assert Watch.batches == 0
    config.ladders.iterative.levels = "${global_batch_size}"
    assert plan(config, Source("f.yaml")).ladders[0].levels == 64


def pretrained():
    """A model whose weights are given, but for the last layer's."""
    model = resnet_cifar(depth=8, width=4, in_channels=1)
    for weight in list(prunable_weights(model).values())[:-1]:
        torch.nn.init.constant_(weight, 0.5)
    return model


def test_weights_that_are_not_drawn_cannot_be_drawn_anew(config):
    config.model = {f"{__name__}:pretrained": {}}
    with pytest.raises(
        ConfigError, match=r"controls: reinitialize draws other weights, but those of .* are the same whatever the seed"
    ):
        plan(config, Source("f.yaml"))
    config.controls = ["random", "shuffle"]
    assert plan(config, Source("f.yaml")).controls == ["random", "shuffle"]
