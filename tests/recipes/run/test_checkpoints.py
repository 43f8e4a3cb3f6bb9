"""What a killed run goes on from: the newest whole checkpoint of its own, whatever else lies in its folder."""

import contextlib
import copy
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer import Callback
from composer.loggers import LoggerDestination

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.run.checkpoints import newest_checkpoint
from accelerando.recipes.run.results import Result
from accelerando.recipes.train import train
from runs import KILL, Watch, measured, same, settings, trained

FILE = "ep0-ba3-rank0.pt"


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path)


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The checkpoints of a run killed after batch 5, and of one with another seed."""
    folder = tmp_path_factory.mktemp("killed")
    for seed in (17, 3):
        with pytest.raises(KeyboardInterrupt):
            train(settings(folder / str(seed)) | {"seed": seed} | KILL)
    return folder


@pytest.fixture
def folder(killed, config, tmp_path):
    shutil.copytree(killed / "17", tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "run/checkpoints"


def rewritten(change, digest=False):
    def damage(folder, killed):
        content = torch.load(folder / FILE, weights_only=False)
        change(content["state"])
        torch.save(content, folder / FILE)
        if not digest:
            (folder / f"{FILE}.digest").unlink()

    return damage


def flipped(digest):
    def damage(folder, killed):
        content = bytearray((folder / FILE).read_bytes())
        for place in range(0, len(content) * 3 // 4, 997):  # in weights, momenta and the pickle, not in the directory
            content[place] ^= 4
        (folder / FILE).write_bytes(content)
        if not digest:
            (folder / f"{FILE}.digest").unlink()

    return damage


def foreign(folder, killed):
    for suffix in ("", ".digest"):
        shutil.copy(killed / "3/run/checkpoints" / f"{FILE}{suffix}", folder)


def truncated(length):
    return lambda folder, killed: os.truncate(folder / FILE, length)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flipped(digest=True), "damaged"),
        (flipped(digest=False), "damaged"),
        (truncated(0), "incomplete"),
        (truncated(9000), "incomplete"),
        (foreign, "of another run, with seed 3, not 17"),
        (
            rewritten(lambda state: next(iter(state["model"].values())).mul_(2), digest=True),
            "altered since it was saved",
        ),
        (rewritten(lambda state: state.pop("optimizers")), "incomplete, without optimizers"),
        (rewritten(lambda state: state.update(more=RunsCode())), "to load it would run posix.system"),
        (rewritten(lambda state: state.update(more=RunsCode()), digest=True), "to load it would run posix.system"),
        (lambda folder, killed: (folder / f"{FILE}.digest").write_text("[]"), "altered"),
    ],
)
def test_what_is_no_whole_checkpoint_of_this_run_is_one_line(killed, folder, config, monkeypatch, damage, problem):
    monkeypatch.chdir(folder)
    damage(folder, killed)
    with pytest.raises(ConfigError) as refused:
        newest_checkpoint(check(config))
    assert refused.value.file == str(folder / FILE) and problem in refused.value.message
    assert "delete it to go on from another one, or" in refused.value.message
    assert not Path("executed").exists()
    # Beside an older one that is whole it is told of, and left alone.
    shutil.copy(folder / FILE, folder / "ep9-ba9-rank0.pt")
    for suffix in ("", ".digest"):
        shutil.copy(killed / "17/run/checkpoints" / f"{FILE}{suffix}", folder)
    checkpoint = newest_checkpoint(check(config))
    assert checkpoint and checkpoint.path == str(folder / FILE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: next(iter(state["model"].values())).fill_(math.nan), "not finite: module.0.weight"),
        (lambda state: next(iter(state["model"].values())).fill_(-math.inf), "not finite: module.0.weight"),
        (lambda state: state["model"].popitem(last=False), "lacks module.0.weight"),
    ],
)
def test_weights_that_are_not_there_or_not_finite_are_one_line(killed, folder, config, change, problem):
    rewritten(change)(folder, killed)
    with pytest.raises(ConfigError, match=problem):
        train(config)


def copied(folder, killed):
    """As `cp -rL` does, and in an order that says nothing."""
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        os.utime(file, (number, number))


def half_a_newer_one(folder, killed):
    (folder / "ep1-ba6-rank0.pt").write_bytes((folder / FILE).read_bytes()[:9000])


def one_of_another_run(folder, killed):
    """With a digest that makes it the newer one."""
    shutil.copy(killed / "3/run/checkpoints" / FILE, file := folder / "ep9-ba9-rank0.pt")
    digest = {"batch": 9, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / f"{file.name}.digest").write_text(json.dumps(digest))


def without(name):
    return lambda folder, killed: (folder / name).unlink()


def half_of_the_first(folder, killed):
    half_a_newer_one(folder, killed)
    for name in (FILE, f"{FILE}.digest", "latest-rank0.pt"):
        (folder / name).unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return copy.deepcopy(trained(settings(tmp_path_factory.mktemp("whole"))))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (copied, ""),
        (without("latest-rank0.pt"), ""),
        (half_a_newer_one, "ep1-ba6-rank0.pt: incomplete"),
        (one_of_another_run, "ep9-ba9-rank0.pt: of another run, with seed 3, not 17; going on from ep0-ba3"),
        (without(f"{FILE}.digest"), "without a digest beside it"),
        (half_of_the_first, "a kill has left it so; starting anew"),
    ],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(killed, folder, config, whole, capsys, damage, told):
    damage(folder, killed)
    result, weights = trained(config)
    assert Watch.trained and same(weights, whole[1]) and measured(result) == measured(whole[0])
    assert told in (lines := capsys.readouterr().err)
    assert bool(told) == any(line.startswith(str(folder)) for line in lines.splitlines())
    left = {path.name for path in folder.iterdir()} - {"ep9-ba9-rank0.pt", "ep9-ba9-rank0.pt.digest"}
    assert left == {"ep2-ba8-rank0.pt", "ep2-ba8-rank0.pt.digest", "latest-rank0.pt"}  # nothing stale


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_load_path_that_would_run_code_is_refused(config, tmp_path, monkeypatch, weights_only):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": {"model": {}, "more": RunsCode()}}, tmp_path / "theirs.pt")
    with pytest.raises(ConfigError, match=r"load_path: .*theirs\.pt cannot be loaded; .* would run posix\.system"):
        train(config | {"load_path": str(tmp_path / "theirs.pt"), "load_weights_only": weights_only})
    assert not Path("executed").exists() and "CHECKPOINT_VALIDATION_FUNCTION" not in os.environ


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.lockf(lock, fcntl.LOCK_EX)
lock.write("process 7 on elsewhere since today")
lock.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process(config, tmp_path):
    (tmp_path / "run").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin and other.stdout and other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=r"folder: .*run is held by process 7 on elsewhere since today; wait for"):
        train(config)
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    train(config | {"max_duration": "1ep"})
    train(config | {"max_duration": "2ep"})  # one after the other in one process
    assert f"process {os.getpid()} on" in (tmp_path / "run/.lock").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"batches": "8"},
        {"records": []},
        {"records": [[1]]},
        {"records": {"batch": 1}},
        {"metrics": []},
        {"metrics": {"metrics/eval/MulticlassAccuracy": 2.0}},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"samples": 1e400},
        {"samples": 10**30},
        {"algorithms": "MixUp"},
        {"levels": 3},
        {"levels": [{"level": "0"}]},
        {"size": {"density": "high"}},
        {"more": 1},
        "[]",
        "{",
        "",
    ],
    ids=str,
)
def test_results_of_wrong_types_are_not_believed(config, tmp_path, capsys, results, change):
    from accelerando.recipes.run.folder import finished

    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    file, recipe = tmp_path / "run/results.json", check(config)
    assert finished(recipe)
    text = change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(text)
    assert finished(recipe) is None
    assert "results.json: not as it was written" in capsys.readouterr().err


def test_results_are_written_anew_from_the_checkpoint(config, tmp_path, results):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "run/results.json"
    was = json.loads(file.read_text())
    file.write_text("{}")
    (tmp_path / "run/curves.png").unlink()
    trained(config)
    assert not Watch.trained and json.loads(file.read_text()) == was | {"folder": str(tmp_path / "run")}
    assert (tmp_path / "run/curves.png").exists()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    trained(settings(folder := tmp_path_factory.mktemp("finished")))
    return folder


@pytest.mark.parametrize("limit", [50, 1000, 43_000], ids=["config.yaml", "checkpoint's head", "its middle"])
def test_a_full_disk_is_one_line_and_costs_nothing(killed, folder, config, whole, limit):
    with writing_at_most(limit), pytest.raises(ConfigError) as refused:
        train(config)
    hint = "make room, and the same command goes on from what was saved before"
    assert refused.value.message == f"cannot be written, File too large; {hint}"
    result, weights = trained(config)
    assert same(weights, whole[1]) and measured(result) == measured(whole[0])


@contextlib.contextmanager
def writing_at_most(size):
    """As a full disk, no file takes more bytes than these."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_one_line(config, place):
    with pytest.raises(ConfigError, match=f"folder: {place}.* cannot be written, .*; make it a folder that"):
        train(config | {"folder": place})


def test_a_finished_run_is_reported_where_nothing_can_be_written(config, tmp_path, results, capsys):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    with writing_at_most(0):
        result = train(config)
    assert result.batches == 8 and result.folder == str(tmp_path / "run")
    assert "accuracy" in capsys.readouterr().out


class KillIn(Callback):
    """Kills the run in an event after its last batch."""

    def __init__(self, event: str):
        self.event = event

    def run_event(self, event, state, logger):
        if event.value == self.event and state.timestamp.batch == 8:
            raise KeyboardInterrupt


class KillBesideTheFigure(LoggerDestination):
    def log_images(self, *images, **options):
        raise KeyboardInterrupt


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    ("kill", "interval"),
    [
        ({"callbacks": {f"{__name__}:KillIn": {"event": "epoch_end"}}}, "8ba"),
        ({"callbacks": {f"{__name__}:KillIn": {"event": "eval_batch_start"}}}, "1ep"),
        ({"callbacks": {f"{__name__}:KillIn": {"event": "fit_end"}}}, "8ba"),
        ({"loggers": {f"{__name__}:KillBesideTheFigure": {}}}, "1ep"),
    ],
)
def test_a_run_killed_after_its_last_batch_is_completed(config, tmp_path, whole, kill, interval):
    config["save_interval"] = interval
    with pytest.raises(KeyboardInterrupt):
        train(config | kill)
    assert not (tmp_path / "run/results.json").exists()
    assert measured(train(config)) == measured(whole[0]) == measured(Result.load(tmp_path / "run"))
    assert (tmp_path / "run/curves.png").exists()


class Fails(Callback):
    def after_forward(self, state, logger):
        torch.zeros(2) @ torch.zeros(3)


def test_what_goes_wrong_in_the_first_batch_is_one_line_and_a_file(config, tmp_path):
    with pytest.raises(ConfigError) as refused:
        train(config | {"callbacks": {f"{__name__}:Fails": {}}})
    file = tmp_path / "run/error.txt"
    assert re.fullmatch(
        f"config: training failed after batch 0; RuntimeError: .*size.*; where it did is told in {file}",
        str(refused.value),
    )
    assert "in after_forward\n" in file.read_text()
    train(config | {"max_duration": "1ep"})
    assert not file.exists()


@pytest.mark.parametrize(("fsdp", "version"), [({"state_dict_type": "sharded"}, "1"), ({}, "2")])
def test_checkpoints_of_many_files_are_refused(config, fsdp, version, monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(ConfigError, match=r"fsdp.state_dict_type: a run cannot go on from sharded checkpoints"):
        train(config | {"parallelism_config": {"fsdp": fsdp}})
