"""Whole studies of `distillation` on the real digits: what they leave, kill and resume, more of anything, mistakes."""

import csv
import math
import shutil
from functools import partial

import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf

from accelerando.recipes import speedup
from accelerando.recipes.config.errors import ConfigError, Source
from accelerando.recipes.distillation import distillation, main
from accelerando.recipes.distillation_plan import plan
from accelerando.recipes.run.results import Result
from accelerando.recipes.speedup import rank

YAML = """
run_name: study
teachers:
  able: {max_duration: 30ba, seed: 5}
  dull: {model: {resnet_cifar: {width: 3}}, max_duration: 2ba}
lengths: [4ba, 2ba]
windows: [0.5]
seeds: [1, 2]
distillation: {temperature: 2.0}
max_duration: 4ba
global_batch_size: 64
eval_batch_size: 360
eval_interval: 1dur
model: {resnet_cifar: {depth: 8, width: 4, in_channels: 1}}
train_data: {digits: {}}
eval_data: {digits: {split: test}}
optimizer: {decoupled_sgdw: {lr: 0.1, momentum: 0.9}}
algorithms: {label_smoothing: {smoothing: 0.1}}
device: cpu
"""
YAML += f'callbacks: {{"{__name__}:Watch": {{}}}}\n'
TEACHERS, STUDENT = 30 + 2, 2 + 4  # batches, of a student of both lengths
ARMS = ["best", "poorest", "ensemble", "random"]


class Watch(Callback):
    """Counts the batches of all runs, keeps what they start from, and may kill the process at one of the batches."""

    batches = 0
    kill_at = -1
    starts: list[tuple[str, torch.Tensor]]

    def fit_start(self, state, logger):
        Watch.starts.append((state.run_name, next(state.model.parameters()).detach().clone()))

    def batch_end(self, state, logger):
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def watch(monkeypatch):
    Watch.batches, Watch.kill_at, Watch.starts = 0, -1, []
    monkeypatch.setattr(speedup, "summarize", partial(speedup.summarize, resamples=20))


@pytest.fixture
def config(tmp_path):
    return OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(tmp_path)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, its points, and how each of its runs started."""
    Watch.batches, Watch.starts = 0, []
    folder = tmp_path_factory.mktemp("whole")
    points = distillation(OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(folder)}))
    assert Watch.batches == TEACHERS + 2 * STUDENT * (1 + 4)
    return folder / "study", points, Watch.starts


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "study", symlinks=True)
    return whole[1]


def without_seconds(points):
    return [{name: value for name, value in vars(p).items() if "seconds" not in name} for p in points]


def test_a_study_and_what_it_leaves(whole):
    folder, points, _ = whole
    with (folder / "distillation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points) == 2 + 4 * (1 + 4)
    assert [(row["arm"], row["teachers"], row["batches"]) for row in rows[:2]] == [
        ("teacher", "able", "30"),
        ("teacher", "dull", "2"),
    ]
    assert rows[0]["seed"] == "5" and rows[1]["seed"] not in "125"
    # Arms take turns within a length, and lengths within a seed.
    order = [("none", "0.0"), *((arm, "0.5") for arm in ARMS)]
    assert [(row["arm"], row["window"], row["length"], row["seed"]) for row in rows[2:]] == [
        (*one, length, seed) for seed in "12" for length in ("2ba", "4ba") for one in order
    ]
    able, dull = (point.seconds for point in points[:2])
    assert points[0].value > points[1].value
    expected = {"none": ("", 0.0), "best": ("able", able), "poorest": ("dull", dull)}
    for point in points[2:]:
        assert (point.teachers, point.teacher_seconds) == expected.get(point.arm, ("able+dull", able + dull))
        assert point.samples == 64 * point.batches and f"{point.batches}ba" == point.length
    with (folder / "speedup.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["window"], row["length"]) for row in rows] == [
        (*one, length) for one in order for length in ("2ba", "4ba", "all")
    ]
    assert (folder / "distillation.png").read_bytes().startswith(b"\x89PNG")
    assert OmegaConf.load(folder / "config.yaml").teachers.dull.max_duration == "2ba"


def test_each_arm_is_the_run_that_it_says(whole):
    folder, points, _ = whole
    configs = {path.parent.name: OmegaConf.load(path) for path in folder.glob("*/config.yaml")}
    assert len(configs) == len(points)
    for name, config in configs.items():
        assert config.algorithms.label_smoothing.smoothing == 0.1
        ours = config.algorithms.get("distillation")
        kind = name.split("-")[0]
        assert (ours is None) == (kind in ("none", "teacher"))
        if ours is not None:
            both = ["study/teacher-able", "study/teacher-dull"]
            assert ours.teachers == (both if kind in ("ensemble", "random") else [f"study/teacher-{kind}"])
            assert ours.get("teachers_per_step") == (1 if kind == "random" else None)
            assert ours.temperature == 2.0 and f"-first{ours.end.removesuffix('dur')}-" in name
            assert Result.load(folder / name).algorithms == ["LabelSmoothing", "Distillation"]
    entropies = {name: Result.load(folder / name).metrics["metrics/eval/CrossEntropy"] for name in configs}
    one = {name: entropy for name, entropy in entropies.items() if name.endswith("-4ba-seed1")}
    # Drawn for two steps, a random one may be the same teacher twice.
    assert len(one) == 5 and len(set(one.values())) >= 4


def test_students_of_a_seed_start_alike_and_unlike_their_teachers(whole):
    starts = {name.rpartition("/")[2]: start for name, start in whole[2]}
    first, second = starts["none-2ba-seed1"], starts["none-2ba-seed2"]
    for name, start in starts.items():
        if "-seed" in name:
            assert torch.equal(start, first if name.endswith("seed1") else second)
    assert not any(torch.equal(starts["teacher-able"], start) for start in (first, second))


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, config):
    assert without_seconds(distillation(config)) == without_seconds(copied)
    assert Watch.batches == 0
    config.seeds, config.lengths = [2, 3], ["4ba"]
    again = distillation(config)
    assert Watch.batches == 4 * (1 + 4)
    known = [point for point in copied if (point.seed, point.length) == (2, "4ba")]
    assert [point for point in again if point.seed == 2] == known
    Watch.batches, config.seeds, config.windows = 0, [2], [0.5, 1]
    assert [point for point in distillation(config) if point.seed == 2 and point.window < 1] == known
    assert Watch.batches == 4 * 4
    # A better teacher makes new students of the best and of the ensembles; the poorest one's stay.
    Watch.batches, config.windows = 0, [0.5]
    config.teachers.abler = {"max_duration": "60ba"}
    better = distillation(config)
    assert Watch.batches == 60 + 4 * 3
    assert {point.arm: point.teachers for point in better[3:]} == {
        "none": "",
        "best": "abler",
        "poorest": "dull",
        "ensemble": "able+abler+dull",
        "random": "able+abler+dull",
    }
    # Without it all is as before, whatever the order.
    Watch.batches, config.teachers = 0, {"dull": config.teachers.dull, "able": config.teachers.able}
    assert [p for p in distillation(config) if p.arm != "teacher"] == known and Watch.batches == 0


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("kill_at", [31, TEACHERS + 2, TEACHERS + 4 * 3 - 1])
def test_killed_at_any_time_it_goes_on(whole, config, kill_at):
    config.update(seeds=[1], lengths=["4ba"], save_interval="1ba")
    Watch.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        distillation(config)
    resumed = distillation(config)
    kept = (p for p in whole[1] if p.arm == "teacher" or (p.seed, p.length) == (1, "4ba"))
    assert without_seconds(resumed) == without_seconds(kept)
    assert TEACHERS + 4 * 5 <= Watch.batches <= TEACHERS + 4 * 5 + 2


def test_a_single_teacher_is_the_best_one(config, capsys):
    config.update(seeds=[1])
    del config.teachers.dull
    points = distillation(config)
    assert [(point.arm, point.teachers) for point in points] == [
        ("teacher", "able"),
        *[("none", ""), ("best", "able")] * 2,
    ]
    out, err = capsys.readouterr()
    assert (
        "run 2 of 5: none, 2ba, seed 1: accuracy 0." in err and "run 3 of 5: best (able) for 50 %, 2ba, seed 1:" in err
    )
    assert "speed-up at equal quality" in out and "with teachers' training" in out


def test_another_teacher_in_the_folder_is_refused_and_makes_new_students(copied, config, tmp_path):
    config.update(seeds=[1], lengths=["2ba"])
    config.teachers.dull.max_duration = "3ba"
    with pytest.raises(ConfigError, match=r"teachers.dull.max_duration: 3ba given, but the run in .* has 2ba"):
        distillation(config)
    config.teachers.dull.update(max_duration="2ba", optimizer={"decoupled_sgdw": {"lr": 0.2}})
    with pytest.raises(ConfigError, match=r"teachers.dull.optimizer.decoupled_sgdw.lr: 0.2 given, but the run in"):
        distillation(config)
    assert Watch.batches == 0
    shutil.rmtree(tmp_path / "study" / "teacher-dull")
    distillation(config)
    assert Watch.batches == 2 + 2 * 3  # all but those without a teacher and with the able one


def test_ranking():
    values = {"a": 0.5, "b": 0.75, "c": math.nan, "d": 0.75, "e": 0.25}
    assert rank(values) == ["b", "d", "a", "e", "c"]
    assert rank(values, lower=True) == ["e", "a", "b", "d", "c"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teachers=null"], "command line: teachers: missing; expected names"),
        (["teachers=[a]"], "command line: teachers: "),
        (["teachers.able=false", "teachers.dull=false"], "command line: teachers: each of them is false"),
        (["teachers.a/b={}"], "teachers.a/b: expected a name of up to 100 letters"),
        (["teachers.able.max_duraton=4ba"], "command line: teachers.able.max_duraton: unknown key; did you mean"),
        (["teachers.able.run_name=x"], "teachers.able.run_name: the study sets it for every run"),
        (["teachers.able.seed=1"], "teachers.able.seed: 1 is that of a student, which would begin alike"),
        (["teachers.able.max_duration=2ep"], "teachers.able.max_duration: 2ep given; expected the unit of lengths"),
        (["teachers.able.model={resnet_cifar: {depth: 9}}"], "teachers.able.model.resnet_cifar: depth must be"),
        (["teachers.able.eval_data=null"], "teachers.able.eval_data: missing; the teachers are ranked"),
        (["teachers.dull.algorithms={label_smothing: {}}"], "teachers.dull.algorithms.label_smothing: unknown name"),
        (["lengths=null"], "command line: lengths: null given"),
        (["lengths=[]"], "command line: lengths: [] given; expected different ones, each a time string"),
        (["lengths=[4ba,4ba]"], "lengths: ['4ba', '4ba'] given; expected different ones"),
        (["lengths=[4ba,1ep]"], "lengths: ['4ba', '1ep'] given; expected different ones"),
        (["lengths=[4]"], "lengths: [4] given; expected different ones"),
        (["lengths=[0ba]"], "lengths: ['0ba'] given; expected different ones"),
        (["lengths=[4tok]"], "lengths.max_duration: 4tok given"),
        (["baseline_lengths=[4ba]"], "baseline_lengths: ['2ba', '4ba', '4ba'] given; expected different ones"),
        (["baseline_lengths=[1ep]"], "baseline_lengths: ['2ba', '4ba', '1ep'] given; expected different ones"),
        (
            ["teachers.dull.model={resnet_cifar: {num_classes: 12}}"],
            "teachers.dull.model: makes logits of 12 classes, where the student's have 10",
        ),
        ([f"teachers.{'a' * 101}={{}}"], "expected a name of up to 100 letters"),
        (["windows=[0.33333333,0.333333331]"], "expected different shares"),
        (["windows=[0,1]"], "windows: [0, 1] given; expected different shares of the training"),
        (["windows=[0.5,1.5]"], "windows: [0.5, 1.5] given; expected"),
        (["windows=[1,1.0]"], "windows: [1, 1.0] given; expected different"),
        (["seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["seed=3"], "command line: seed: a study has several"),
        (
            ["distillation.temprature=2"],
            "command line: distillation.temprature: unknown argument; did you mean temperature",
        ),
        (["distillation.temperature=hot"], "command line: distillation.temperature: 'hot' given; expected a number"),
        (["distillation.temperature=-1"], "distillation: Distillation: temperature must be finite and above 0"),
        (["distillation.end=0.3dur"], "distillation.end: the study sets it for every arm; leave it out"),
        (["algorithms.distillation={teachers: [x]}"], "algorithms.distillation: the study adds it to its students"),
        (["eval_data=null"], "command line: eval_data: missing; quality is what is evaluated there"),
        (["metric=Precision"], "command line: metric: no metric is 'Precision'"),
        (["optimizer={decoupled_sgdw: {lr: -1}}"], "command line: optimizer.decoupled_sgdw: "),
        (
            ["scheduler={multiplicative_cyclic: {t_warmup: 1ba, t_period: 1ba}}"],
            "scheduler: MultiplicativeCyclicScheduler: max_duration=30ba",
        ),
        (["run_name=a_run"], "a_run is the folder of a training run; choose another one"),
        (["model={resnet_cifr: {}}"], "command line: model.resnet_cifr: unknown name"),
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


def test_a_plan_trains_nothing(config):
    study = plan(config, Source("f.yaml"))
    assert study.lengths == ["2ba", "4ba"] and study.metric == "metrics/eval/MulticlassAccuracy"
    names = [student.recipe.run_name for student in study.students(["able", "dull"])]
    assert len(set(names)) == len(names) == 20 and Watch.batches == 0
    config.baseline_lengths = ["8ba", "1ba"]
    more = [student.recipe.run_name for student in plan(config, Source("f.yaml")).students(["able", "dull"])]
    assert set(more) - set(names) == {f"study/none-{length}-seed{seed}" for length in ("1ba", "8ba") for seed in (1, 2)}
    assert set(names) < set(more)
    config.algorithms.distillation = False
    assert plan(config, Source("f.yaml")).lengths == ["2ba", "4ba"]


def test_of_a_loss_less_is_better(config, tmp_path):
    config.update(metric="CrossEntropy", seeds=[1], lengths=["2ba"], baseline_lengths=[])
    points = distillation(config)
    able, dull = (point.value for point in points[:2])
    assert able < dull and [point.teachers for point in points if point.arm == "best"] == ["able"]
    assert (tmp_path / "study" / "distillation.png").is_file()
