"""Tiny jobs for the tests of executors, which wait to be killed where told, and what these tests do with them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from accelerando.recipes.executors import Job, Running, Slurm

HERE = Path(__file__).parent


def attempts(folder: Path) -> list[int]:
    """The batch from which each attempt went on."""
    return [int(line) for line in (folder / "attempts").read_text().split()]


def make_job(folder: Path, name: str, wait: bool = False, **changes: Any) -> Job:
    """A job of eight batches with a checkpoint after each third; of one seed, whatever its name."""
    from runs import settings  # Composer takes long to import, and drivers do without

    config = settings(folder) | {
        "run_name": name,
        "max_duration": "8ba",
        "train_subset_num_batches": -1,
        "scheduler": None,
        "algorithms": {"mix_up": {}},
        "callbacks": {"attempts:Attempts": {"folder": str(folder / name), "wait": wait}},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "recipe.yaml").write_text(json.dumps(config | changes))
    return Job(name=name, recipe=folder / name / "recipe.yaml", folder=folder / name)


WRONG = {"model": {"resnet_cifra": {}}}


def is_wrong(problem: str | None, job: Job) -> bool:
    """Whether the job that was made with `WRONG` is told of in one line, with the words of the run and its log."""
    told = f"{job.recipe}: model.resnet_cifra: unknown name; did you mean resnet_cifar?; see {job.folder}/log.txt"
    return problem == told


def weights(job: Job) -> dict[str, torch.Tensor]:
    return torch.load(job.folder / "checkpoints/latest-rank0.pt", weights_only=False)["state"]["model"]


def same_weights(job: Job, other: Job) -> bool:
    ours, others = weights(job), weights(other)
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def until(condition: Callable[[], Any], seconds: int = 300) -> None:
    """Waits for the condition, or fails."""
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def waits(*jobs: Job) -> None:
    until(lambda: all((job.folder / "waits").exists() for job in jobs))


def ended(*running: Running) -> None:
    until(lambda: all([one.ended() for one in running]))


def driver(program: str) -> "subprocess.Popen[str]":
    """A process that starts what the program says; it is back when that is done, and waits to be killed."""
    imports = "import time\nfrom pathlib import Path\nfrom accelerando.recipes.executors import *\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{imports}{program}\nprint('started', flush=True)\ntime.sleep(600)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "started\n"
    return process


def kill_driver(process: "subprocess.Popen[str]") -> None:
    """Kills it without a word; what it left behind may go on, and hold its output open."""
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


@pytest.fixture
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processes of jobs import the callback."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, [str(HERE), *sys.path])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that was trained without interruption, in this process."""
    from accelerando.recipes.train import train

    job = make_job(tmp_path_factory.mktemp("undisturbed"), "whole")
    train(job.recipe)
    return job


def drill(
    folder: Path, whole: Job, kill: Callable[[str], Any], requeue: Mapping[str, Callable[[str], Any]], **parameters: Any
) -> None:
    """A driver submits and is killed; another one finds its jobs; of these one is killed, the others are requeued."""
    jobs = {name: make_job(folder, name, wait=True) for name in ("killed", *requeue)}
    said = f"jobs = {list(jobs.values())!r}".replace("PosixPath", "Path")
    first = driver(f"{said}\nexecutor = Slurm(**{parameters!r})\nfor job in jobs:\n    executor.start(job)")
    kill_driver(first)

    executor = Slurm(**parameters)
    wrong = make_job(folder, "wrong", **WRONG)
    queue = dict(executor.queue())
    running = {name: executor.start(job) for name, job in jobs.items()}
    failing = executor.start(wrong)
    waits(*jobs.values())
    for name, job in jobs.items():
        assert len(list(job.folder.glob("submitit/*_submitted.pkl"))) == 1
        {"killed": kill, **requeue}[name](queue[job.folder / "submitit"])
    ended(*running.values(), failing)
    assert is_wrong(failing.problem(), wrong)
    problem = running.pop("killed").problem()
    assert problem and "\n" not in problem and f"{folder}/killed/log.txt" in problem
    assert [one.problem() for one in running.values()] == [None] * len(requeue)

    again = executor.start(jobs["killed"])
    ended(again)
    executor.close()
    assert again.problem() is None
    for job in jobs.values():
        assert attempts(job.folder) == [0, 3]
        assert same_weights(job, whole)
