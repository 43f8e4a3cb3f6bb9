"""Processes and local jobs of submitit, whose drivers and jobs are killed: apart, as each takes many processes."""

import signal
from contextlib import closing

import psutil
import pytest

from accelerando.recipes.executors import Processes
from executor_jobs import (
    WRONG,
    attempts,
    drill,
    driver,
    ended,
    is_wrong,
    kill_driver,
    make_job,
    on_the_path,  # noqa: F401
    same_weights,
    waits,
    whole,  # noqa: F401
)

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("on_the_path")]


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_of_processes_at_once_one_fails_and_one_is_killed(whole, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RANK", "0")  # the launcher's
    monkeypatch.setenv("WORLD_SIZE", "2")
    killed, wrong = make_job(tmp_path, "killed", wait=True), make_job(tmp_path, "wrong", **WRONG)
    with closing(Processes(at_once=2)) as executor:
        assert executor.at_once() == 2
        running = [executor.start(job) for job in (killed, wrong)]
        with pytest.raises(RuntimeError, match="killed: cannot start; 2 runs are at it"):
            executor.start(killed)
        waits(killed)
        alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
        (process,) = [one for one in alive if str(killed.recipe) in one.cmdline()]
        process.kill()
        ended(*running)
        assert running[0].problem() == f"killed by signal 9; see {tmp_path}/killed/log.txt"
        assert is_wrong(running[1].problem(), wrong)

        again = executor.start(killed)
        ended(again)
    assert again.problem() is None and same_weights(killed, whole)
    assert attempts(killed.folder) == [0, 3] and "epoch" in killed.log.read_text()


def test_no_process_outlives_the_driver_and_ranks_go_on(tmp_path):
    job = make_job(tmp_path, "ranks", wait=True)
    first = driver(f"""
Processes(gpus=2).start(Job(name="ranks", recipe=Path("{job.recipe}"), folder=Path("{job.folder}")))
""")
    waits(job)
    processes = psutil.Process(first.pid).children(recursive=True)
    assert len(processes) >= 3  # a launcher and its ranks
    kill_driver(first)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive

    with closing(Processes(gpus=2)) as executor:
        running = executor.start(job)
        ended(running)
        assert running.problem() is None and attempts(job.folder) == [0, 3]

        stopped = executor.start(make_job(tmp_path, "stopped"))
    assert stopped.ended()  # before the launcher could begin a rank, which would have said so
    assert stopped.problem() == f"ended with exit code 1, without a word; see {tmp_path}/stopped/log.txt"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit's own
def test_local_jobs_of_submitit_are_found_again_and_go_on(whole, tmp_path):  # noqa: F811
    def task(number):
        (process,) = psutil.Process(int(number)).children()
        return process

    drill(
        tmp_path,
        whole,
        kill=lambda number: task(number).kill(),
        requeue={"requeued": lambda number: task(number).send_signal(signal.SIGUSR2)},
        cluster="local",
        timeout_min=10,
    )
