"""Whole studies of `distillation` on the real digits: what they leave, kill and resume, more of anything, mistakes."""

import shutil

import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf
from studies import lines, outcome, table, without_seconds

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.run.results import Result
from accelerando.recipes.studies.driver import dry_run, report_only
from accelerando.recipes.studies.plan import plan

YAML = """
run_name: study
study:
  distillation:
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
METRIC = "metrics/eval/MulticlassAccuracy"
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
def watch():
    Watch.batches, Watch.kill_at, Watch.starts = 0, -1, []


@pytest.fixture
def config(tmp_path):
    return OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(tmp_path)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study's folder, its rows, and how each of its runs started."""
    Watch.batches, Watch.starts = 0, []
    folder = tmp_path_factory.mktemp("whole")
    rows = outcome(OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(folder)})).rows
    assert Watch.batches == TEACHERS + 2 * STUDENT * (1 + 4)
    return folder / "study", rows, Watch.starts


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "study", symlinks=True)
    return whole[1]


def taught_by(row):
    return row["arm"], row.tags.get("teachers", "")


def test_a_study_and_what_it_leaves(whole):
    folder, _, _ = whole
    rows = table(folder)
    assert len(rows) == 2 + 4 * (1 + 4)
    assert [(*taught_by(row), row.batches) for row in rows[:2]] == [("teacher", "able", 30), ("teacher", "dull", 2)]
    assert rows[0]["seed"] == 5 and rows[1]["seed"] not in (1, 2, 5)
    # Arms take turns within a length, and lengths within a seed.
    order = [("none", 0.0), *((arm, 0.5) for arm in ARMS)]
    assert [(row["arm"], row["window"], row["length"], row["seed"]) for row in rows[2:]] == [
        (*one, length, seed) for seed in (1, 2) for length in ("2ba", "4ba") for one in order
    ]
    assert rows[0].metrics[METRIC] > rows[1].metrics[METRIC]
    expected = {"none": "", "best": "able", "poorest": "dull"}
    for row in rows[2:]:
        assert taught_by(row)[1] == expected.get(row["arm"], "able+dull")
        assert row.samples == 64 * row.batches and f"{row.batches}ba" == row["length"]
    found = lines(folder / "speedup.csv")
    assert [(row["arm"], float(row["window"]), row["length"]) for row in found] == [
        (*one, length) for one in order for length in ("2ba", "4ba", "all")
    ]
    for row in found:
        assert float(row["total"]) <= float(row["speedup"]) or row["speedup"] == "nan"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert OmegaConf.load(folder / "config.yaml").study.distillation.teachers.dull.max_duration == "2ba"
    page = (folder / "report.md").read_text()
    assert "speed-up at equal quality" in page and "with teachers' training" in page and "trained for" in page
    claims = (folder / "claims.md").read_text()
    assert claims.count("the teachers' own training counted") == 2 and "the data that this is reported on" in claims


def test_each_arm_is_the_run_that_it_says(whole):
    folder, rows, _ = whole
    configs = {path.parent.name: OmegaConf.load(path) for path in folder.glob("*/config.yaml")}
    assert configs.keys() == {row.node for row in rows}
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
    one = [row.metrics["metrics/eval/CrossEntropy"] for row in rows if row.node.endswith("-4ba-seed1")]
    # Drawn for two steps, a random one may be the same teacher twice.
    assert len(one) == 5 and len(set(one)) >= 4


def test_students_of_a_seed_start_alike_and_unlike_their_teachers(whole):
    starts = {name.rpartition("/")[2]: start for name, start in whole[2]}
    first, second = starts["none-2ba-seed1"], starts["none-2ba-seed2"]
    for name, start in starts.items():
        if "-seed" in name:
            assert torch.equal(start, first if name.endswith("seed1") else second)
    assert not any(torch.equal(starts["teacher-able"], start) for start in (first, second))


def test_what_is_done_is_not_done_again_and_what_is_new_is(copied, config):
    own = config.study.distillation
    assert without_seconds(outcome(config).rows) == without_seconds(copied)
    assert Watch.batches == 0
    own.seeds, own.lengths = [2, 3], ["4ba"]
    again = outcome(config).rows
    assert Watch.batches == 4 * (1 + 4)
    known = [row for row in copied if (row["seed"], row["length"]) == (2, "4ba")]
    assert [row for row in again if row["seed"] == 2] == known
    Watch.batches, own.seeds, own.windows = 0, [2], [0.5, 1]
    assert [row for row in outcome(config).rows if row["seed"] == 2 and row["window"] < 1] == known
    assert Watch.batches == 4 * 4
    # A better teacher makes new students of the best and of the ensembles; the poorest one's stay.
    Watch.batches, own.windows = 0, [0.5]
    own.teachers.abler = {"max_duration": "60ba"}
    better = outcome(config).rows
    assert Watch.batches == 60 + 4 * 3
    assert dict(map(taught_by, better[3:])) == {
        "none": "",
        "best": "abler",
        "poorest": "dull",
        "ensemble": "able+abler+dull",
        "random": "able+abler+dull",
    }
    # Without it all is as before, whatever the order.
    Watch.batches, own.teachers = 0, {"dull": own.teachers.dull, "able": own.teachers.able}
    assert [row for row in outcome(config).rows if row["arm"] != "teacher"] == known and Watch.batches == 0


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_killed_at_any_time_it_goes_on(whole, config):
    config.merge_with({"save_interval": "1ba", "study": {"distillation": {"seeds": [1], "lengths": ["4ba"]}}})
    for kill_at in (31, TEACHERS + 2, TEACHERS + 4 * 3 - 1):
        Watch.kill_at = kill_at
        with pytest.raises(KeyboardInterrupt):
            outcome(config)
    resumed = outcome(config).rows
    kept = [row for row in whole[1] if row["arm"] == "teacher" or (row["seed"], row["length"]) == (1, "4ba")]
    assert without_seconds(resumed) == without_seconds(kept)
    assert TEACHERS + 4 * 5 <= Watch.batches <= TEACHERS + 4 * 5 + 3


def test_a_single_teacher_is_the_best_one(config, capsys):
    config.study.distillation.seeds = [1]
    del config.study.distillation.teachers.dull
    found = outcome(config)
    assert list(map(taught_by, found.rows)) == [("teacher", "able"), *[("none", ""), ("best", "able")] * 2]
    out, err = capsys.readouterr()
    assert "run 2 of 5: none-2ba-seed1: " in err and "run 3 of 5: able-" in err and "accuracy 0." in err
    assert "speed-up at equal quality" in out and "with teachers' training" in out
    assert {claim.verdict for claim in found.claims} == {"cannot be told here"}  # of one seed


def test_another_teacher_in_the_folder_is_refused_and_makes_new_students(copied, config, tmp_path):
    own = config.study.distillation
    own.update(seeds=[1], lengths=["2ba"])
    own.teachers.dull.max_duration = "3ba"
    with pytest.raises(ConfigError, match=r"teachers.dull.max_duration: 3ba given, but the run in .* has 2ba"):
        outcome(config)
    own.teachers.dull.update(max_duration="2ba", optimizer={"decoupled_sgdw": {"lr": 0.2}})
    with pytest.raises(ConfigError, match=r"teachers.dull.optimizer.decoupled_sgdw.lr: 0.2 given, but the run in"):
        outcome(config)
    assert Watch.batches == 0
    shutil.rmtree(tmp_path / "study" / "teacher-dull")
    outcome(config)
    assert Watch.batches == 2 + 2 * 3  # all but those without a teacher and with the able one


def test_what_is_known_before_the_teachers_are(config, copied, tmp_path):
    shutil.rmtree(tmp_path / "study/teacher-able")
    config.study.distillation.baseline_lengths = ["8ba", "1ba"]
    found = plan(config)
    names = [node.name for node in found.nodes({})]
    assert names[:4] == ["teacher-able", "teacher-dull", "none-1ba-seed1", "none-2ba-seed1"]
    assert names[4:8] == [f"{arm}-first0.5-2ba-seed1" for arm in ARMS] and len(names) == 2 + 2 * (4 + 2 * 4)
    listed = dry_run(found)
    assert listed.count("known later") == 16 and "26 runs, " in listed and " times 4ba; " in listed
    assert {row["arm"] for row in report_only(found).rows} == {"teacher", "none"} and Watch.batches == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["@teachers=null"], "command line: @teachers: null given"),
        (["@teachers=[a]"], "command line: @teachers: "),
        (
            ["@teachers.able=false", "@teachers.dull=false"],
            "command line: @teachers: each of them is false",
        ),
        (["@teachers.a/b={}"], "teachers.a/b: expected a name of up to 100 letters"),
        (
            ["@teachers.able.max_duraton=4ba"],
            "command line: @teachers.able.max_duraton: unknown key; did you mean",
        ),
        (["@teachers.able.run_name=x"], "teachers.able.run_name: the study sets it for every run"),
        (
            ["@teachers.able.seed=1"],
            "teachers.able.seed: 1 is that of a student, which would begin alike",
        ),
        (
            ["@teachers.able.max_duration=2ep"],
            "teachers.able.max_duration: 2ep given; expected the unit of lengths",
        ),
        (
            ["@teachers.able.model={resnet_cifar: {depth: 9}}"],
            "teachers.able.model.resnet_cifar: depth must be",
        ),
        (
            ["@teachers.able.eval_data=null"],
            "teachers.able.eval_data: missing; the teachers are ranked",
        ),
        (
            ["@teachers.dull.algorithms={label_smothing: {}}"],
            "teachers.dull.algorithms.label_smothing: unknown name",
        ),
        (["@lengths=null"], "command line: @lengths: null given"),
        (
            ["@lengths=[]"],
            "command line: @lengths: [] given; expected different ones, each a time string",
        ),
        (["@lengths=[4ba,4ba]"], "lengths: ['4ba', '4ba'] given; expected different ones"),
        (["@lengths=[4ba,1ep]"], "lengths: ['4ba', '1ep'] given; expected different ones"),
        (["@lengths=[4]"], "lengths: [4] given"),
        (["@lengths=[0ba]"], "lengths: ['0ba'] given; expected different ones"),
        (["@lengths=[4tok]"], "lengths.max_duration: 4tok given"),
        (
            ["@baseline_lengths=[4ba]"],
            "baseline_lengths: ['2ba', '4ba', '4ba'] given; expected different ones",
        ),
        (
            ["@baseline_lengths=[1ep]"],
            "baseline_lengths: ['2ba', '4ba', '1ep'] given; expected different ones",
        ),
        (
            ["@teachers.dull.model={resnet_cifar: {num_classes: 12}}"],
            "teachers.dull.model: makes logits of 12 classes, where the student's have 10",
        ),
        ([f"@teachers.{'a' * 101}={{}}"], "expected a name of up to 100 letters"),
        (["@windows=[0.33333333,0.333333331]"], "expected different shares"),
        (["@windows=[0,1]"], "windows: [0.0, 1.0] given; expected different shares of the training"),
        (["@windows=[0.5,1.5]"], "windows: [0.5, 1.5] given; expected"),
        (["@windows=[1,1.0]"], "windows: [1.0, 1.0] given; expected different"),
        (["@seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["seed=3"], "command line: seed: a study has several"),
        (
            ["@distillation.temprature=2"],
            "command line: @distillation.temprature: unknown argument; did you mean temperature",
        ),
        (
            ["@distillation.temperature=hot"],
            "command line: @distillation.temperature: 'hot' given; expected a number",
        ),
        (
            ["@distillation.temperature=-1"],
            "distillation: Distillation: temperature must be finite and above 0",
        ),
        (
            ["@distillation.end=0.3dur"],
            "distillation.end: the study sets it for every arm; leave it out",
        ),
        (["algorithms.distillation={teachers: [x]}"], "algorithms.distillation: the study adds it to its students"),
        (["eval_data=null"], "command line: eval_data: missing; quality is what is evaluated there"),
        (["@metric=Precision"], "command line: @metric: no metric is 'Precision'"),
        (["optimizer={decoupled_sgdw: {lr: -1}}"], "command line: optimizer.decoupled_sgdw: "),
        (
            ["scheduler={multiplicative_cyclic: {t_warmup: 1ba, t_period: 1ba}}"],
            "scheduler: MultiplicativeCyclicScheduler: max_duration=30ba",
        ),
        (["run_name=a_run"], "a_run is the folder of a training run; choose another one"),
        (["model={resnet_cifr: {}}"], "command line: model.resnet_cifr: unknown name"),
    ],
)
def test_mistakes_are_one_line(config, overrides, message, tmp_path):
    (tmp_path / "a_run" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "study.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(ConfigError) as refused:
        plan(*load(file, [override.replace("@", "study.distillation.") for override in overrides]))
    error = str(refused.value)
    assert message.replace("@", "study.distillation.") in error and "\n" not in error
    assert Watch.batches == 0 and not (tmp_path / "study").exists()


def test_of_a_loss_less_is_better(config, tmp_path):
    config.study.distillation.update(metric="CrossEntropy", seeds=[1], lengths=["2ba"])
    config.train_data, config.validation_data = ({"digits": {"split": f"train[{part}]"}} for part in (":80%", "80%:"))
    found = outcome(config)
    able, dull = (row.metrics["metrics/eval/CrossEntropy"] for row in found.rows[:2])
    assert able < dull and [taught_by(row)[1] for row in found.rows if row["arm"] == "best"] == ["able"]
    assert (tmp_path / "study" / "figure.png").is_file()
    assert not any("was chosen on the data" in claim.why for claim in found.claims)
