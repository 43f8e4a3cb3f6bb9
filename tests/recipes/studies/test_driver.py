"""The core of all studies, tried with the small study of `learning_rates.py`."""

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from studies import command, config, lines, outcome, results, table, weights, without_seconds

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.data.loaders import TensorLoader
from accelerando.recipes.studies.driver import dry_run, report_only
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import read_table
from accelerando.recipes.train import train

HERE = str(Path(__file__).parent)
RATES = {"learning_rates:LearningRates": {"rates": [0.001, 0.1], "seeds": [17, 18]}}
NODES = ["lr0.001-seed17", "lr0.1-seed17", "lr0.001-seed18", "lr0.1-seed18"]


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        outcome(config(folder, RATES))
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_study_leaves_its_table_summaries_and_claims(whole):
    rows = table(whole / "study")
    assert [row.node for row in rows] == NODES
    assert [(row["rate"], row["seed"], row["batches"], row["samples"]) for row in rows[:2]] == [
        (0.001, 17, 8, 256),
        (0.1, 17, 8, 256),
    ]
    for row in rows:
        saved = results(whole / "study" / row.node)
        assert dict(row.metrics) == saved["metrics"] and row.seconds == saved["seconds"]
    means = lines(whole / "study/means.csv")
    values = [row.metrics["metrics/eval/MulticlassAccuracy"] for row in rows]
    assert [float(line["mean"]) for line in means] == [(values[0] + values[2]) / 2, (values[1] + values[3]) / 2]
    text = (whole / "study/claims.md").read_text()
    assert text.count("\n") == 3 and "2 seeds, paired t test" in text and "A higher rate is better." in text
    assert "| claim |" in (whole / "study/report.md").read_text()


def test_a_run_of_a_study_is_the_run_by_itself(whole, tmp_path):
    alone = config(tmp_path, None) | {
        "run_name": "alone",
        "seed": 18,
        "optimizer": {"decoupled_sgdw": {"lr": 0.1, "momentum": 0.9}},
    }
    del alone["study"]
    train(alone)
    a, b = weights(tmp_path / "alone"), weights(whole / "study/lr0.1-seed18")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_runs_may_start_from_another_run(tmp_path):
    base = config(tmp_path, RATES)
    start = base | {"start": {"run": "before", "at": "2ba"}}
    with pytest.raises(ConfigError, match=r"start\.run: before is no folder; expected the folder of a run"):
        plan(start)
    alone = {key: value for key, value in base.items() if key != "study"}
    train(alone | {"run_name": "before", "algorithms": {"snapshots": {"at": ["2ba", "3ba"]}}})
    with pytest.raises(ConfigError, match=r"start\.at: .* has no snapshot of 4ba, but of 2ba, 3ba"):
        plan(base | {"start": {"run": "before", "at": "4ba"}})
    outcome(start)
    rows = table(tmp_path / "study")
    assert [(row.node, row["batches"], row["samples"]) for row in rows] == [(name, 6, 192) for name in NODES]
    train(alone | {"run_name": "alone", "start": start["start"], "seed": 18})
    assert results(tmp_path / "alone")["metrics"] == dict(rows[3].metrics)


MEDIANS = """
from learning_rates import LearningRates

class Medians(LearningRates):
    def summaries(self, base, rows):
        return {"medians": [{"rate": rate} for rate in self.rates]}
"""


def test_a_report_leaves_nothing_of_an_earlier_one(copied, monkeypatch):
    (copied / "median_rates.py").write_text(MEDIANS)
    monkeypatch.syspath_prepend(copied)
    folder = copied / "study"
    (folder / "notes.csv").write_text("somebody's own")
    by_other_means = {"median_rates:Medians": next(iter(RATES.values()))}
    report_only(plan(config(copied, by_other_means)))
    assert not (folder / "means.csv").exists() and (folder / "medians.csv").exists() and (folder / "notes.csv").exists()
    report_only(plan(config(copied, RATES)))
    assert not (folder / "medians.csv").exists() and lines(folder / "means.csv") and len(table(folder)) == 4


def test_the_table_can_be_read_back_by_pandas(whole):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(whole / "study/table.csv")
    assert list(frame["node"]) == NODES and list(frame["rate"]) == [0.001, 0.1] * 2


def test_what_is_done_is_not_done_again(copied, capsys):
    (copied / "study/lr0.1-seed17/results.json").unlink()
    shutil.rmtree(copied / "study/lr0.1-seed17")
    before = {name: (copied / "study" / name / "results.json").stat().st_mtime_ns for name in NODES if name != NODES[1]}
    more = {"learning_rates:LearningRates": {"rates": [0.001, 0.1], "seeds": [17, 18]}}
    listed = dry_run(plan(config(copied, more)))
    assert listed.splitlines()[-1].startswith("4 runs, 4 times 2ep; 1 left, 1 times, about")
    outcome(config(copied, more))
    assert before == {name: (copied / "study" / name / "results.json").stat().st_mtime_ns for name in before}
    assert [row.node for row in table(copied / "study")] == NODES


def test_killed_at_any_time_it_goes_on(whole, tmp_path):
    expected = without_seconds(table(whole / "study"))
    for kill_at in (5, 2, 7, 1):
        with pytest.raises(KeyboardInterrupt):
            outcome(config(tmp_path, RATES, callbacks={"runs:Watch": {"kill_at": kill_at}}))
    outcome(config(tmp_path, RATES))
    assert without_seconds(table(tmp_path / "study")) == expected
    for node in NODES:
        a, b = weights(tmp_path / "study" / node), weights(whole / "study" / node)
        assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.programs
def test_runs_at_once_are_those_in_turn(whole, tmp_path):
    done = outcome(config(tmp_path, RATES, executor={"processes": {"at_once": 2}}))
    assert not done.failures
    assert without_seconds(table(tmp_path / "study")) == without_seconds(table(whole / "study"))
    assert all((tmp_path / "study" / node / "log.txt").stat().st_size for node in NODES)


def test_a_report_of_what_is_finished_trains_nothing(copied, capsys):
    shutil.rmtree(copied / "study/lr0.1-seed18")
    found = report_only(plan(config(copied, RATES)))
    assert [row.node for row in found.rows] == NODES[:3] and not (copied / "study/lr0.1-seed18").exists()
    assert "3 of 4 runs with the seeds 17, 18" in (copied / "study/report.md").read_text()
    assert found.claims[0].verdict == "cannot be told here" and "one seed" in found.claims[0].measured
    (copied / "file").touch()
    with pytest.raises(ConfigError, match=r"file/page.md: cannot be written; .*File exists"):
        report_only(plan(config(copied, RATES)), copied / "file" / "page.md")
    shutil.rmtree(copied / "study")
    with pytest.raises(ConfigError, match="nothing is finished in"):
        report_only(plan(config(copied, RATES)))


def test_a_run_that_fails_is_named_and_tried_again(tmp_path, capsys):
    first = {"learning_rates:LearningRates": {"rates": [1e30, 0.1]}}
    fails = {"callbacks": {"studies:FailsOnce": {"folder": str(tmp_path), "node": "lr1e+30-seed17"}}}
    found = outcome(config(tmp_path, first, **fails))
    assert list(found.failures) == ["lr1e+30-seed17"] and [row.node for row in found.rows] == ["lr0.1-seed17"]
    said = capsys.readouterr().err
    assert "lr1e+30-seed17: failed: " in said and "on purpose" in said and "error.txt" in said
    assert not outcome(config(tmp_path, first, **fails)).failures


def test_no_data_of_a_run_outlive_it(tmp_path):
    def loaders():
        return sum(type(one) is TensorLoader for one in gc.get_objects())

    gc.collect()
    before = loaders()
    gc.disable()  # Python's own collections, which come when they like
    try:
        outcome(config(tmp_path, RATES))
        assert loaders() == before and not gc.get_freeze_count()
    finally:
        gc.enable()


def study(arguments):
    return {"learning_rates:LearningRates": arguments}


@pytest.mark.parametrize(
    ("study", "changes", "message"),
    [
        ("tickts", {}, "study.tickts: unknown name; "),
        (["tickets"], {}, "study: ['tickets'] given; expected one name with its arguments"),
        ({"a": {}, "b": {}}, {}, "study: {'a': {}, 'b': {}} given; expected one name"),
        (
            {"learning_rates:LearningRates": [1]},
            {},
            "study.learning_rates:LearningRates: [1] given; expected its argum",
        ),
        ({"os:system": {}}, {}, "study.os:system: not of the kind that belongs here; expected a subclass of Study"),
        (
            {"learning_rates:LearningRates": {"rats": [1.0]}},
            {},
            "LearningRates.rats: unknown argument; did you mean rates?",
        ),
        (
            {"learning_rates:LearningRates": {"rates": [0.1]}},
            {},
            "LearningRates.rates: [0.1] given; expected two or more",
        ),
        (study({"rates": [0.1, "x"]}), {}, "LearningRates.rates: [0.1, 'x'] given"),
        (study({"rates": [0.1, -1.0]}), {}, "LearningRates.rates: "),
        (
            {"learning_rates:LearningRates": {"rates": [0.1, 0.1]}},
            {},
            "several of its runs would be called lr0.1-seed17",
        ),
        (
            {"learning_rates:LearningRates": {"rates": [0.1, 1.0], "seeds": [1, 1]}},
            {},
            "LearningRates.seeds: [1, 1] given",
        ),
        (
            {"learning_rates:LearningRates": {"rates": [0.1, 1.0], "metric": "x"}},
            {},
            "LearningRates.metric: no metric is 'x'",
        ),
        (RATES, {"seed": 3}, "seed: a study has several; give seeds in its block"),
        (RATES, {"model": {"resnet_cifar": {"depth": 9}}}, "model.resnet_cifar"),
        (RATES, {"executor": {"threads": {}}}, "executor.threads: unknown name"),
        (RATES, {"executor": {"job": {}}}, "executor.job: unknown name"),
        (
            RATES,
            {"executor": {"processes": {"gpu": 1}}},
            "executor.processes.gpu: unknown argument; did you mean gpus?",
        ),
        (RATES, {"executor": {"processes": {"at_once": 0}}}, "executor.processes: at_once: 0 given"),
        (RATES, {"executor": {"slurm": {"cluster": "local"}}}, "executor.slurm.timeout_min: missing"),
        (RATES, {"max_durationzz": "1ep"}, "max_durationzz: unknown key; did you mean max_duration?"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(study, changes, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        outcome(config(tmp_path, study, **changes))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_study_is_no_run_and_a_run_no_study(tmp_path):
    with pytest.raises(ConfigError, match=r"study: belongs to a study; launch it with recipes/study.py"):
        train(config(tmp_path, RATES))
    run = config(tmp_path, None)
    with pytest.raises(ConfigError, match=r"study: missing; launch a single run with recipes/train.py"):
        plan(run)


def test_the_command_line(copied):
    (copied / "study.yaml").write_text(
        "study: {learning_rates:LearningRates: {rates: [0.001, 0.1], seeds: [17, 18]}}\nextends: base.yaml\n"
    )
    base = config(copied, None)
    del base["study"]
    (copied / "base.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(base)))
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    done = command("study.yaml", "--report=docs/rates.md", cwd=copied, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "A higher rate is better." in done.stdout
    assert read_table(copied / "study/table.csv") == read_table(copied / "docs/rates.csv")
    page = (copied / "docs/rates.md").read_text()
    assert "4 runs with the seeds 17, 18" in page and "[every row](rates.csv)" in page and "rates:\n    - 0.001" in page
    assert page.replace("(rates.", "(table.") == (copied / "study/report.md").read_text()


def test_files_extend_others(tmp_path):
    (tmp_path / "a.yaml").write_text("run_name: a\noptimizer: {sgd: {lr: 1.0, momentum: 0.9}}\nmodel: {mlp: {}}\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.yaml").write_text("extends: ../a.yaml\nrun_name: b\noptimizer: {sgd: {lr: 2.0}}\n")
    (tmp_path / "c.yaml").write_text("extends: deep/b.yaml\noptimizer: {adam: {lr: 3.0}}\n")
    assert load(tmp_path / "deep/b.yaml")[0] == {
        "run_name": "b",
        "optimizer": {"sgd": {"lr": 2.0, "momentum": 0.9}},
        "model": {"mlp": {}},
    }
    assert load(tmp_path / "c.yaml")[0]["optimizer"] == {"adam": {"lr": 3.0}}
    assert load(tmp_path / "c.yaml", ["extends=x"])[0].extends == "x"  # of which the check knows nothing
    for text, message in [
        ("extends: nowhere.yaml", "extends: nowhere.yaml: no such file"),
        ("extends: [a.yaml]", "extends: ['a.yaml'] given; expected the path of a YAML file"),
        ("extends: d.yaml", "extends: d.yaml extends this file"),
        ("extends: a.yaml\noptimizer: [1]", "expected what a.yaml has there"),
    ]:
        (tmp_path / "d.yaml").write_text(text)
        with pytest.raises(ConfigError) as refused:
            load(tmp_path / "d.yaml")
        assert message in str(refused.value)
