"""Whole studies of `tradeoff` on the real digits: what they leave, kill and resume, new arms and seeds, mistakes."""

import gc
import shutil

import pytest
import torch
from composer import Callback, ComposerModel
from omegaconf import OmegaConf
from studies import lines, outcome, results, table, weights, without_seconds

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.studies.driver import dry_run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.train import train

YAML = """
run_name: study
study:
  tradeoff:
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
ACCURACY = "metrics/eval/MulticlassAccuracy"


class Watch(Callback):
    """Counts the batches of all runs, and may kill the process at one of them."""

    batches = 0
    kill_at = -1

    def batch_end(self, state, logger):
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def watch():
    Watch.batches, Watch.kill_at = 0, -1


def config(folder, seeds=(1,), compare_standard=False, arms=None, **changes):
    """The study above, by default of its cyclic runs with one seed; `arms` are further ones."""
    given = OmegaConf.merge(OmegaConf.create(YAML), {"folder": str(folder)}, changes)
    given.study.tradeoff.update(seeds=list(seeds), compare_standard=compare_standard)
    given.study.tradeoff.arms.update(arms or {})
    return given


def test_the_listing_shows_what_each_arm_changes(tmp_path):
    both = {"label_smoothing": {"smoothing": 0.2}, "mix_up": {"alpha": 0.5}, "channels_last": {}}
    listed = dry_run(plan(config(tmp_path, seeds=(1, 2), arms={"all": {"algorithms": both}}))).splitlines()
    heads = [word.strip() for word in listed[0].split("  ") if word.strip()]
    assert heads == ["run", "changes of the base run", "begins after", "length", "done"]
    one = next(line for line in listed if line.startswith("smoothed-seed2"))
    assert one.split() == ["smoothed-seed2", "algorithms.label_smoothing.smoothing=0.1,", "seed=2", "4ep"]
    start = next(i for i, line in enumerate(listed) if line.startswith("all-seed1"))
    first, second = (line.split() for line in listed[start : start + 2])
    smoothing, mixing = "algorithms.label_smoothing.smoothing=0.2,", "algorithms.mix_up.alpha=0.5,"
    assert first == ["all-seed1", smoothing, mixing, "4ep"]
    assert second == ["algorithms.channels_last={},", "seed=1"]
    assert listed[-2] == "each of them: algorithms.tradeoff_curve={}"
    assert listed[-1] == "6 runs, 6 times 4ep; 6 left, 6 times; how long that takes can be told when one is finished"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    Watch.batches, Watch.kill_at = 0, -1
    outcome(config(folder, seeds=(1, 2), compare_standard=True))
    assert Watch.batches == 4 * (CYCLIC + ALONE)
    return folder / "study"


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "study", symlinks=True)
    return tmp_path


def cyclic(rows):
    """Those of the cyclic runs with the first seed."""
    return [row for row in rows if row["seed"] == 1 and row["schedule"] == "cyclic"]


CYCLIC, ALONE = 12, 6 + 12  # batches of one arm and seed


def test_a_study_and_what_it_leaves(whole):
    names = ["baseline-seed1", "baseline-seed1-alone-2ep", "baseline-seed1-alone-4ep"]
    assert sorted(path.name for path in whole.glob("baseline-seed1*")) == names
    rows = table(whole)
    assert [(row.node, row["schedule"], row["cycle"], row["end"], row.batches) for row in rows[:4]] == [
        (names[0], "cyclic", 0, "2ep", 6),
        (names[0], "cyclic", 1, "4ep", 12),
        (names[1], "standard", 0, "2ep", 6),
        (names[2], "standard", 1, "4ep", 12),
    ]
    assert len(rows) == 16
    for row in rows:
        evaluated = {r["batch"]: r[ACCURACY] for r in results(whole / row.node)["records"] if ACCURACY in r}
        assert sorted(evaluated) == [3, 6, 9, 12][: max(evaluated) // 3]
        assert row[ACCURACY] == evaluated[row.batches] and row.samples == 64 * row.batches
        near = [value for batch, value in evaluated.items() if 0 <= row.batches - batch <= 3]
        assert row["best"] == max(near)
    a, b = weights(whole / names[0]), weights(whole / names[2])
    assert any(not torch.equal(a[name], b[name]) for name in a)
    compared = {line["arm"]: line for line in lines(whole / "comparison.csv")}
    assert compared["pooled"]["first_equal"] == compared["pooled"]["first_pairs"] == "4"
    assert float(compared["baseline"]["cost_batches"]) == pytest.approx(18 / 12)
    assert lines(whole / "budget.csv")[0]["arm"] in ("baseline", "smoothed")
    assert (whole / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (whole / "report.md").read_text()
    assert "over baseline" in page and "pooled" in page and page.count("arXiv 2206.00832") > 3


def test_an_independent_run_is_the_run_by_itself(whole, tmp_path):
    alone = config(tmp_path, run_name="alone", seed=2, max_duration="4ep", algorithms={"label_smoothing": {}})
    del alone["study"]
    alone.algorithms.label_smoothing.smoothing = 0.1
    alone.scheduler.multiplicative_cyclic.t_period = "3ep"
    train(alone)
    a, b = weights(tmp_path / "alone"), weights(whole / "smoothed-seed2-alone-4ep")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_new_is_trained_and_nothing_else(copied, whole, capsys):
    arms = {"cold": {"optimizer": {"decoupled_sgdw": {"lr": 0.01}}}, "named": {"algorithms": "label_smoothing"}}
    first = cyclic(table(whole))
    rows = outcome(config(copied, seeds=(1, 5), arms=arms)).rows
    assert Watch.batches == (2 + 4) * CYCLIC
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 * 6 and told[-1].startswith("run 8 of 8: named-seed5, cycle 2 of 2: accuracy ")
    assert told[-1].endswith("(100%, 00:00 left)")
    assert [row for row in rows if row["seed"] == 1 and row["arm"] in ("baseline", "smoothed")] == first
    values = {row["arm"]: row[ACCURACY] for row in rows if row["seed"] == 1}
    assert values["named"] == values["smoothed"] != values["baseline"] != values["cold"]


def test_a_prolonged_study_goes_on_where_it_was_also_after_a_kill(copied, whole, tmp_path_factory):
    Watch.kill_at = CYCLIC + 2  # of the two arms' other halves
    with pytest.raises(KeyboardInterrupt):
        outcome(config(copied, max_duration="8ep"))
    prolonged = outcome(config(copied, max_duration="8ep")).rows
    fresh = outcome(config(tmp_path_factory.mktemp("fresh"), max_duration="8ep")).rows
    assert [row for row in prolonged if row["end"] != "8ep"] == cyclic(table(whole))
    assert without_seconds(prolonged) == without_seconds(fresh)


def test_a_finished_run_needs_no_checkpoint_and_one_without_a_result_no_training(copied, whole):
    for folder in (copied / "study").glob("smoothed*/checkpoints"):
        shutil.rmtree(folder)
    (copied / "study/baseline-seed1/results.json").write_text("{")
    assert outcome(config(copied, eval_batch_size=32)).rows == cyclic(table(whole))
    assert Watch.batches == 0


def test_finished_runs_leave_the_memory(tmp_path):
    def models():
        gc.collect()
        return sum(issubclass(type(thing), ComposerModel) for thing in gc.get_objects())

    before = models()
    outcome(config(tmp_path))
    assert models() <= before


def test_a_plain_recipe_may_draw_the_curve_too(tmp_path):
    plain = OmegaConf.to_container(config(tmp_path))
    del plain["study"]
    result = train(plain | {"algorithms": {"tradeoff_curve": {}}})
    assert [record["batch"] for record in result.records if "tradeoff/cycle" in record] == [6, 12]
    with pytest.raises(ConfigError, match=r"algorithms\.tradeoff_curve: .* must be a MultiplicativeCyclicScheduler"):
        train(plain | {"algorithms": {"tradeoff_curve": {}}, "scheduler": {"constant": {}}, "run_name": "other"})


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("kill_at", [6, 13, 20])
def test_killed_at_any_time_it_goes_on(whole, tmp_path, kill_at):
    Watch.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        outcome(config(tmp_path, save_interval="2ba"))
    resumed = outcome(config(tmp_path, save_interval="2ba")).rows
    assert without_seconds(resumed) == without_seconds(cyclic(table(whole)))
    assert all(a.seconds < b.seconds for a, b in zip(resumed[::2], resumed[1::2], strict=True))
    assert 2 * CYCLIC <= Watch.batches <= 2 * CYCLIC + 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arms=null"], "arms: null given"),
        (["arms=[a,b]"], "arms: "),
        (["arms.smoothed=3"], "arms.smoothed: 3 given; expected a mapping"),
        (["arms.baseline=false", "arms.smoothed=false"], "arms: each of them is false"),
        (["arms.a/b={}"], "arms.a/b: expected a name of up to 100 letters"),
        (["arms.smoothed.algorithms={label_smothing: {}}"], "arms.smoothed.algorithms.label_smothing: unknown name"),
        (
            ["arms.list={algorithms: [label_smoothing]}"],
            "arms.list.algorithms: ['label_smoothing'] given; expected names",
        ),
        (
            ["arms.smoothed.algorithms.label_smoothing.smoothing=2"],
            "arms.smoothed.algorithms.label_smoothing: LabelSmoothing: smoothing must be in [0, 1]",
        ),
        (["arms.smoothed.max_duraton=4ep"], "arms.smoothed.max_duraton: unknown key; did you mean max_duration?"),
        (["arms.smoothed.max_duration=8ep"], "arms.smoothed: its cycles do not end where those of baseline do"),
        (["arms.smoothed.algorithms={progressive_resizing: {}}"], "follows the length of the whole run"),
        (
            ["arms.smoothed.algorithms={ema: {half_life: 10ba, ema_start: 0.5dur}}"],
            "arms.smoothed.algorithms.ema: follows the length",
        ),
        (["arms.smoothed.eval_data=null"], "arms.smoothed.eval_data: missing; a curve is made of evaluations"),
        (["arms.smoothed.seed=7"], "arms.smoothed.seed: the study sets it for every run; leave it out"),
        (["arms.smoothed.model={resnet_cifar: {depth: '???'}}"], "arms.smoothed.model.resnet_cifar.depth: missing"),
        (["arms.smoothed.model={resnet_cifar: {depth: 9}}"], "arms.smoothed.model.resnet_cifar: "),
        (["arms.smoothed.optimizer={decoupled_sgdw: {lr: -1}}"], "arms.smoothed.optimizer.decoupled_sgdw: "),
        (["seeds=[]"], "seeds: [] given; expected different whole numbers"),
        (["seeds=[1,1]"], "seeds: [1, 1] given; expected different whole numbers"),
        (["seeds=['17']"], "seeds: ['17'] given"),
        (["seeds=3"], "seeds: 3 given"),
        (["seeds=[-1]"], "seeds: -1 given; expected a whole number from 0"),
        (["window=3ba"], "window: 3ba given; expected the unit of max_duration"),
        (["window=near"], "window: 'near' given; expected a time string"),
        (["window=5"], "window: 5 given; expected text"),
        (["window='5'"], "window: '5' given; expected a time string"),
        (["window=-1ep"], "window: '-1ep' given; expected a time string"),
        (["compare_standard=perhaps"], "compare_standard: 'perhaps' given; expected true or false"),
        (["metric=Precision"], "metric: no metric is 'Precision'"),
        (["metric=CrossEntropy"], "metric: "),
    ],
)
def test_mistakes_in_its_keys_are_one_line(overrides, message, tmp_path):
    given = [f"study.tradeoff.{override}" for override in overrides]
    assert message in refusal(given, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scale_schedule_ratio=0.5"], "scale_schedule_ratio: stretches the cycles"),
        (["seed=3"], "seed: a study has several; give seeds"),
        (["max_duration=5ep"], "max_duration=5ep ends inside a cycle, at a high learning rate; use 4ep or 8ep"),
        (["max_duration=1ep"], "max_duration=1ep is shorter than a cycle; use 2ep"),
        (["max_duration=12ba"], "max_duration: 12ba given; expected it in ep, as t_period is"),
        (["scheduler={cosine_annealing: {}}"], "scheduler: expected multiplicative_cyclic"),
        (["scheduler.multiplicative_cyclic.growth=0.5"], "growth must be finite and at least 1, got 0.5"),
        (["scheduler.multiplicative_cyclic.t_period=0ep"], "t_period must be"),
        (["scheduler.multiplicative_cyclic.growth=1.5"], "scheduler: a cycle ends after 3.5 epochs"),
        (["scheduler.multiplicative_cyclic={t_warmup: 0.5dur, t_period: 0.5dur}"], "scheduler: its times are in dur"),
        (["run_name=null"], "run_name: missing"),
        (["model={resnet_cifr: {}}"], "model.resnet_cifr: unknown name"),
    ],
)
def test_mistakes_in_the_base_run_are_one_line(overrides, message, tmp_path):
    assert message in refusal(overrides, tmp_path)


def refusal(overrides, folder):
    """What is said against the study, from its file and before anything is trained."""
    (folder / "study.yaml").write_text(OmegaConf.to_yaml(config(folder, seeds=(1, 2), compare_standard=True)))
    with pytest.raises(ConfigError) as refused:
        plan(*load(folder / "study.yaml", overrides))
    assert "\n" not in str(refused.value) and str(refused.value).startswith("command line: ")
    assert Watch.batches == 0
    return str(refused.value)


def test_what_is_in_the_folder_is_not_falsified(copied):
    saved = {path: path.read_bytes() for path in copied.rglob("*.*") if path.suffix in (".yaml", ".json", ".csv")}
    key = "arms.smoothed.algorithms.label_smoothing.smoothing"
    said = refusal([f"study.tradeoff.{key}=0.2"], copied)
    assert f"study.tradeoff.{key}: 0.2 given, but the run in" in said
    assert "run_name: " in refusal(["run_name=study/baseline-seed1"], copied)
    failures = outcome(config(copied, max_duration="2ep")).failures
    assert list(failures) == ["baseline-seed1", "smoothed-seed1"]
    assert all("max_duration: 2ep given, but the run in" in failure for failure in failures.values())
    assert all(path.read_bytes() == content for path, content in saved.items())
