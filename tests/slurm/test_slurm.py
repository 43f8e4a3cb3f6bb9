"""Jobs of a real SLURM, which start.sh starts: killed, requeued, found again by another driver, and on two nodes.

`make test-programs` runs it; it needs Debian's packages slurm-wlm and munge, and root.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from studies import config, outcome, table, without_seconds

from accelerando.recipes.executors import Slurm
from executor_jobs import (
    attempts,
    drill,
    ended,
    make_job,
    on_the_path,  # noqa: F401
    until,
    whole,  # noqa: F401
)

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("on_the_path")]

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def slurm(tmp_path_factory):
    """A cluster of two nodes, both of which are this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    conf = subprocess.run([HERE / "start.sh", folder], capture_output=True, text=True, check=True).stdout.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", conf)
        assert subprocess.run([HERE / "start.sh", folder], capture_output=True, text=True).stdout.strip() == conf
        yield
    subprocess.run([HERE / "stop.sh", folder], check=True)


def command(*words):
    return lambda number: subprocess.run([*words, number], check=True)


def test_jobs_are_found_again_and_go_on(whole, tmp_path):  # noqa: F811
    """One job is killed; one is requeued by SLURM, and one requeues itself, as at its time limit."""
    drill(
        tmp_path,
        whole,
        kill=command("scancel", "--signal=KILL"),
        requeue={
            "requeued": command("scontrol", "requeue"),
            "out-of-time": command("scancel", "--signal=USR2"),
        },
        timeout_min=30,
        cpus_per_task=1,
        slurm_partition="tests",
        slurm_setup=["export OMP_NUM_THREADS=1"],
    )


def test_a_study_from_the_command_line(tmp_path, monkeypatch):
    """The driver is killed; of the next one's jobs one is killed and one requeued; the last driver finishes."""
    studies = str(HERE.parent / "recipes/studies")
    monkeypatch.syspath_prepend(studies)
    monkeypatch.setenv("PYTHONPATH", studies, prepend=":")
    in_turn = config(tmp_path / "in-turn", {"learning_rates:LearningRates": {"rates": [0.001, 0.1]}})
    outcome(in_turn)
    attempts_of_each = {"attempts:Attempts": {"folder": "${folder}/${run_name}", "wait": True}}
    given = {**in_turn, "folder": str(tmp_path), "callbacks": attempts_of_each}
    given["executor"] = {"slurm": {"timeout_min": 30, "slurm_setup": ["export OMP_NUM_THREADS=1"]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(given))
    runs = {name: tmp_path / "study" / name for name in ("lr0.001-seed17", "lr0.1-seed17")}
    killed, requeued = runs.values()

    first = started(tmp_path / "first.txt")
    until(lambda: all((run / "waits").exists() for run in runs.values()))
    first.kill()
    first.wait()
    queue = Slurm(timeout_min=30).queue()
    second = started(tmp_path / "second.txt")
    until(lambda: (tmp_path / "second.txt").read_text().count(": begun") == 2)
    command("scancel", "--signal=KILL")(queue[killed / "submitit"])
    command("scontrol", "requeue")(queue[requeued / "submitit"])
    assert second.wait(timeout=600) == 1
    said = (tmp_path / "second.txt").read_text()
    assert "lr0.001-seed17: failed: " in said and f"see {killed}/log.txt" in said
    assert "lr0.1-seed17: failed" not in said

    third = started(tmp_path / "third.txt")
    assert third.wait(timeout=600) == 0, (tmp_path / "third.txt").read_text()
    assert without_seconds(table(tmp_path / "study")) == without_seconds(table(tmp_path / "in-turn/study"))
    assert [attempts(run) for run in runs.values()] == [[0, 3]] * 2


def started(output):
    """The command that trains the study in the folder of the file to which its output goes."""
    with output.open("w") as file:
        words = [sys.executable, "-m", "accelerando.recipes.study", output.parent / "study.yaml"]
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def test_two_nodes_and_what_slurm_refuses(tmp_path):
    job = make_job(tmp_path, "two-nodes")
    executor = Slurm(timeout_min=30, nodes=2, slurm_additional_parameters={"begin": "now+3"})
    waiting = executor.start(job)  # in the queue, where another driver finds it
    (submitted,) = job.folder.glob("submitit/*_submitted.pkl")
    submitted.rename(submitted.with_name("0123456789abcdef0123456789abcdef.pkl"))  # as if killed before it was named
    running = Slurm(timeout_min=30, nodes=2).start(job)
    cancelled = make_job(tmp_path, "cancelled")
    held = executor.start(cancelled)
    (number,) = [number for folder, number in executor.queue(anew=True).items() if folder.parent == cancelled.folder]
    subprocess.run(["scancel", number], check=True)
    refused = Slurm(timeout_min=30, slurm_partition="nowhere").start(make_job(tmp_path, "refused"))
    assert refused.ended() and str(refused.problem()).startswith("cannot be submitted; ")
    assert "invalid partition specified: nowhere" in str(refused.problem())
    ended(running, waiting, held)
    assert running.problem() is waiting.problem() is None
    assert attempts(job.folder) == [0] and len(list(job.folder.glob("submitit/*_submitted.pkl"))) == 1
    assert json.loads((job.folder / "results.json").read_text())["samples"] == 256
    log = tmp_path / f"cancelled/submitit/{number}_0_log.err"
    assert str(held.problem()).startswith(f"SLURM's job {number} ended as CANCELLED, ")
    assert str(held.problem()).endswith(f"; see {log}")
