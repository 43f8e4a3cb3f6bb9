"""Jobs of a real SLURM, which start.sh starts: killed, requeued, found again by another driver, and on two nodes.

`make test-slurm` runs it; it needs Debian's packages slurm-wlm and munge, and root.
"""

import json
import subprocess
from pathlib import Path

import pytest

from accelerando.recipes.studies.executors import Slurm
from executor_jobs import (
    attempts,
    drill,
    ended,
    make_job,
    on_the_path,  # noqa: F401
    whole,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("on_the_path")

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


def test_two_nodes_and_what_slurm_refuses(tmp_path):
    job = make_job(tmp_path, "two-nodes")
    executor = Slurm(timeout_min=30, nodes=2, slurm_additional_parameters={"begin": "now+3"})
    waiting = executor.start(job)  # in the queue, where another driver finds it
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
