"""Whole studies of `tradeoff` on the real digits: what they leave, kill and resume, new arms and seeds, mistakes."""

import csv
import gc
import json
import shutil

import pytest
import torch
from composer import Callback, ComposerModel
from omegaconf import OmegaConf

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.run.results import Result
from accelerando.recipes.tradeoff import main, tradeoff
from accelerando.recipes.train import train

YAML = """
run_name: study
seeds: [1, 2]
compare_standard: true
window: 1ep
arms:
  baseline: {}
  smoothed: {algorithms: {label_smoothing: {smoothing: 0.1}}}
max_duration: 4ep
eval_interval: 1ep
train_subset_num_batches: 3
global_batch_size: 64
model: {resnet_cifar: {depth: 8, width: 4, in_channels: 1}}
train_data: {digits: {}}
eval_data: {digits: {split: test}}
optimizer: {decoupled_sgdw: {lr: 0.1, momentum: 0.9}}
scheduler: {multiplicative_cyclic: {t_warmup: 1ep, t_period: 1ep, growth: 2}}
device: cpu
"""
YAML += f'callbacks: {{"{__name__}:Watch": {{}}}}\n'


class Watch(Callback):
    """Counts the batches of all runs, keeps their last weights, and may kill the process at one of the batches."""

    batches = 0
    kill_at = -1
    weights: list[dict[str, torch.Tensor]]

    def batch_end(self, state, logger):
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt

    def fit_end(self, state, logger):
        Watch.weights.append({name: value.clone() for name, value in state.model.state_dict().items()})


@pytest.fixture(autouse=True)
def watch():
    Watch.batches, Watch.kill_at, Watch.weights = 0, -1, []


@pytest.fixture
def config(tmp_path):
    return OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(tmp_path)})


def without_seconds(points):
    return [{name: value for name, value in vars(point).items() if name != "seconds"} for point in points]


CYCLIC, ALONE = 12, 6 + 12  # batches of one arm and seed


def test_a_study_and_what_it_leaves(config, tmp_path, capsys):
    points = tradeoff(config)
    assert Watch.batches == 4 * (CYCLIC + ALONE)
    folder = tmp_path / "study"
    names = ["baseline-seed1", "baseline-seed1-alone-2ep", "baseline-seed1-alone-4ep"]
    assert sorted(path.name for path in folder.glob("baseline-seed1*")) == names
    with (folder / "tradeoff.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["schedule"], row["end"], row["batches"]) for row in rows[:4]] == [
        ("baseline", "1", "cyclic", "2ep", "6"),
        ("baseline", "1", "cyclic", "4ep", "12"),
        ("baseline", "1", "standard", "2ep", "6"),
        ("baseline", "1", "standard", "4ep", "12"),
    ]
    assert len(rows) == len(points) == 16
    for point in points:
        name = f"{point.arm}-seed{point.seed}" + (f"-alone-{point.end}" if point.schedule == "standard" else "")
        evaluated = {
            record["batch"]: record["metrics/eval/MulticlassAccuracy"]
            for record in Result.load(folder / name).records
            if "metrics/eval/MulticlassAccuracy" in record
        }
        assert sorted(evaluated) == [3, 6, 9, 12][: max(evaluated) // 3]
        assert point.value == evaluated[point.batches] and point.samples == 64 * point.batches
        near = [value for batch, value in evaluated.items() if 0 <= point.batches - batch <= 3]
        assert point.best == max(near)
    cyclic, _, alone = Watch.weights[:3]
    assert any(not torch.equal(cyclic[name], alone[name]) for name in cyclic)
    with (folder / "comparison.csv").open() as file:
        compared = {row["arm"]: row for row in csv.DictReader(file)}
    assert compared["pooled"]["first_equal"] == compared["pooled"]["first_pairs"] == "4"
    assert float(compared["baseline"]["cost_batches"]) == pytest.approx(18 / 12)
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert OmegaConf.load(folder / "config.yaml") == config
    out, err = capsys.readouterr()
    assert "smoothed" in out and "over baseline" in out and "pooled" in out
    assert "run 1 of 12: baseline, seed 1, cycle 1 of 2: " in err and "left)" in err and "(100%, 00:00 left)" in err


def test_done_runs_are_not_run_again_and_new_ones_are(config):
    config.update(compare_standard=False, seeds=[1])
    first = tradeoff(config)
    assert Watch.batches == 2 * CYCLIC
    assert tradeoff(config) == first
    assert Watch.batches == 2 * CYCLIC
    config.update(seeds=[1, 5])
    config.arms.cold = {"optimizer": {"decoupled_sgdw": {"lr": 0.01}}}
    both = tradeoff(config)
    assert Watch.batches == (2 + 4) * CYCLIC
    assert [point for point in both if point.seed == 1 and point.arm != "cold"] == first
    (cold, *_) = (point for point in both if point.arm == "cold")
    assert cold.value != first[0].value


def test_a_prolonged_study_goes_on_where_it_was(config, tmp_path_factory):
    config.update(compare_standard=False, seeds=[1])
    first = tradeoff(config)
    prolonged = tradeoff(OmegaConf.merge(config, {"max_duration": "8ep"}))
    assert Watch.batches == 2 * 2 * CYCLIC
    assert [point for point in prolonged if point.end != "8ep"] == first
    fresh = tradeoff(OmegaConf.merge(config, {"max_duration": "8ep", "folder": str(tmp_path_factory.mktemp("fresh"))}))
    assert without_seconds(prolonged) == without_seconds(fresh)


def test_a_prolonged_study_goes_on_after_a_kill(config, tmp_path_factory):
    config.update(compare_standard=False, seeds=[1], arms={"baseline": {}})
    tradeoff(config)
    config.max_duration, Watch.kill_at = "8ep", CYCLIC + 2
    with pytest.raises(KeyboardInterrupt):
        tradeoff(config)
    resumed = tradeoff(config)
    fresh = tradeoff(OmegaConf.merge(config, {"folder": str(tmp_path_factory.mktemp("fresh"))}))
    assert without_seconds(resumed) == without_seconds(fresh)


def test_a_finished_run_needs_no_checkpoint(config, tmp_path):
    config.update(compare_standard=False, seeds=[1])
    whole = tradeoff(config)
    for folder in (tmp_path / "study").glob("*/checkpoints"):
        shutil.rmtree(folder)
    assert tradeoff(OmegaConf.merge(config, {"eval_batch_size": 32})) == whole
    assert Watch.batches == 2 * CYCLIC


def test_a_name_alone_is_an_algorithm(config):
    config.update(compare_standard=False, seeds=[1])
    config.arms.named = {"algorithms": "label_smoothing"}
    points = tradeoff(config)
    values = {arm: [point.value for point in points if point.arm == arm] for arm in config.arms}
    assert values["named"] == values["smoothed"] != values["baseline"]


def test_finished_runs_leave_the_memory(config):
    def models():
        gc.collect()
        return sum(issubclass(type(thing), ComposerModel) for thing in gc.get_objects())

    before = models()
    tradeoff(config)
    assert models() <= before


def test_a_plain_recipe_may_draw_the_curve_too(config, tmp_path):
    plain = {key: value for key, value in config.items() if key not in ("seeds", "compare_standard", "window", "arms")}
    result = train(plain | {"algorithms": {"tradeoff_curve": {}}})
    assert [record["batch"] for record in result.records if "tradeoff/cycle" in record] == [6, 12]
    with pytest.raises(ConfigError, match=r"algorithms\.tradeoff_curve: .* must be a MultiplicativeCyclicScheduler"):
        train(plain | {"algorithms": {"tradeoff_curve": {}}, "scheduler": {"constant": {}}, "run_name": "other"})


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("kill_at", [6, 11, 13, 20, 24])
def test_killed_at_any_time_it_goes_on(config, kill_at, tmp_path_factory):
    config.update(compare_standard=False, seeds=[1], save_interval="2ba")
    whole = tradeoff(config)
    config.folder, Watch.batches, Watch.kill_at = str(tmp_path_factory.mktemp("killed")), 0, kill_at
    with pytest.raises(KeyboardInterrupt):
        tradeoff(config)
    resumed = tradeoff(config)
    assert without_seconds(resumed) == without_seconds(whole)
    assert all(a.seconds < b.seconds for a, b in zip(resumed[::2], resumed[1::2], strict=True))
    assert 2 * CYCLIC <= Watch.batches <= 2 * CYCLIC + 2


def test_a_damaged_result_is_made_again_from_the_checkpoint(config, tmp_path):
    config.update(compare_standard=False, seeds=[1])
    whole = tradeoff(config)
    (tmp_path / "study" / "baseline-seed1" / "results.json").write_text("{")
    assert tradeoff(config) == whole
    assert Watch.batches == 2 * CYCLIC


def test_it_is_logged_to_wandb(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config.update(compare_standard=False, seeds=[1], arms={"baseline": {}}, loggers={"wandb": {"project": "p"}})
    points = tradeoff(config)
    (run,) = (tmp_path / "study").glob("wandb/offline-run-*")
    (table,) = run.glob("files/media/table/tradeoff*.table.json")
    assert list(run.glob("files/media/table/budget*.table.json"))
    contents = json.loads(table.read_text())
    assert [dict(zip(contents["columns"], row, strict=True)) for row in contents["data"]] == [vars(p) for p in points]
    (figure,) = run.glob("files/media/images/*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "study" / "baseline-seed1").glob("wandb/offline-run-*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arms=null"], "command line: arms: missing; expected names"),
        (["arms=[a,b]"], "command line: arms: "),
        (["arms.smoothed=3"], "command line: arms.smoothed: 3 given; expected what it changes as a mapping"),
        (["arms.baseline=false", "arms.smoothed=false"], "command line: arms: each of them is false"),
        (["arms.a/b={}"], "arms.a/b: expected a name of up to 100 letters"),
        (["arms.smoothed.algorithms={label_smothing: {}}"], "arms.smoothed.algorithms.label_smothing: unknown name"),
        (
            ["arms.list={algorithms: [label_smoothing]}"],
            "arms.list.algorithms: ['label_smoothing'] given; expected names",
        ),
        (
            ["arms.smoothed.algorithms.label_smoothing.smoothing=2"],
            "command line: arms.smoothed.algorithms.label_smoothing: LabelSmoothing: smoothing must lie in [0, 1]",
        ),
        (["arms.smoothed.max_duraton=4ep"], "arms.smoothed.max_duraton: unknown key; did you mean max_duration?"),
        (["arms.smoothed.max_duration=8ep"], "arms.smoothed: its cycles do not end where those of baseline do"),
        (["arms.smoothed.algorithms={progressive_resizing: {}}"], "follows the length of the whole run"),
        (
            ["arms.smoothed.algorithms={ema: {half_life: 10ba, ema_start: 0.5dur}}"],
            "algorithms.ema: follows the length",
        ),
        (["arms.smoothed.eval_data=null"], "arms.smoothed.eval_data: missing; a curve is made of evaluations"),
        (["arms.smoothed.seed=7"], "arms.smoothed.seed: the study sets it for every run; leave it out"),
        (["arms.smoothed.model={resnet_cifar: {depth: '???'}}"], "arms.smoothed.model.resnet_cifar.depth: missing"),
        (["arms.smoothed.model={resnet_cifar: {depth: 9}}"], "arms.smoothed.model.resnet_cifar: "),
        (["arms.smoothed.optimizer={decoupled_sgdw: {lr: -1}}"], "arms.smoothed.optimizer.decoupled_sgdw: "),
        (["scale_schedule_ratio=0.5"], "command line: scale_schedule_ratio: stretches the cycles"),
        (["seed=3"], "command line: seed: a study has several; give seeds"),
        (["seeds=[]"], "command line: seeds: [] given; expected different whole numbers"),
        (["seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["seeds=['17']"], "seeds: ['17'] given; expected different whole numbers"),
        (["seeds=3"], "command line: seeds: 3 given"),
        (["seeds=[-1]"], "seed: -1 given; expected a whole number from 0"),
        (["window=3ba"], "command line: window: 3ba given; expected the unit of max_duration"),
        (["window=near"], "command line: window: 'near' given; expected a time string"),
        (["window=5"], "command line: window: 5 given; expected a time string"),
        (["window=-1ep"], "command line: window: '-1ep' given; expected a time string"),
        (["compare_standard=perhaps"], "command line: compare_standard: 'perhaps' given; expected true or false"),
        (["max_duration=5ep"], "max_duration=5ep ends inside a cycle, at a high learning rate; use 4ep or 8ep"),
        (["max_duration=1ep"], "max_duration=1ep is shorter than a cycle; use 2ep"),
        (["max_duration=12ba"], "command line: max_duration: 12ba given; expected it in ep, as t_period is"),
        (["scheduler={cosine_annealing: {}}"], "command line: scheduler: expected multiplicative_cyclic"),
        (["scheduler.multiplicative_cyclic.growth=0.5"], "growth must be finite and at least 1, got 0.5"),
        (["scheduler.multiplicative_cyclic.t_period=0ep"], "t_period must be"),
        (["scheduler.multiplicative_cyclic.growth=1.5"], "scheduler: a cycle ends after 3.5 epochs"),
        (["scheduler.multiplicative_cyclic={t_warmup: 0.5dur, t_period: 0.5dur}"], "scheduler: its times are in dur"),
        (["metric=Precision"], "command line: metric: no metric is 'Precision'"),
        (["metric=CrossEntropy"], "command line: metric: "),
        (["run_name=null"], "command line: run_name: missing"),
        (["model={resnet_cifr: {}}"], "command line: model.resnet_cifr: unknown name"),
    ],
)
def test_mistakes_are_one_line(config, overrides, message, tmp_path, capsys):
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
        (
            "arms.smoothed.algorithms.label_smoothing.smoothing=0.2",
            "arms.smoothed.algorithms.label_smoothing.smoothing: 0.2 given, but the run in",
        ),
        ("max_duration=2ep", "max_duration: 2ep given, but the run in"),
        ("run_name=study/baseline-seed1", "run_name: "),
    ],
)
def test_what_is_in_the_folder_is_not_falsified(config, override, message, capsys, tmp_path):
    config.update(compare_standard=False, seeds=[1])
    tradeoff(config)
    saved = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix in (".yaml", ".json", ".csv")}
    file = tmp_path / "study.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(SystemExit):
        main([str(file), override])
    assert f"command line: {message}" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in saved.items())
