"""Executors: runs at once, failures told, drivers and jobs killed, on this machine and with submitit's local jobs."""

import signal
from contextlib import closing

import psutil
import pytest

from accelerando.recipes.config.arguments import check_arguments
from accelerando.recipes.config.errors import ArgumentError
from accelerando.recipes.studies.executors import Processes, Slurm, last_words, slots
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

pytestmark = pytest.mark.usefixtures("on_the_path")


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
        (process,) = [one for one in psutil.Process().children() if str(killed.recipe) in one.cmdline()]
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


def test_runs_get_gpus_in_turn():
    assert slots([], 2, None) == [{}] and slots([], 1, 3) == [{}] * 3
    names = ["3", "5", "GPU-1f", "7", "8"]
    assert slots(names, 1, None) == [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    assert slots(names, 2, 3) == [{"CUDA_VISIBLE_DEVICES": group} for group in ("3,5", "GPU-1f,7", "3,5")]
    with pytest.raises(ValueError, match="gpus: 6 given; expected at most 5"):
        slots(names, 6, None)


LAUNCHED = """epoch 3
ERROR:composer.cli.launcher:Rank 1 crashed with exit code {code}.
Waiting up to 30 seconds for all training processes to terminate. Press Ctrl-C to exit immediately.
Global rank 1 (PID 7) exited with code 1
----------Begin global rank 1 STDOUT----------
first
the reason

----------End global rank 1 STDOUT----------
"""


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("first\nlast\n\n", 1, "last"),
        ("", 3, "ended with exit code 3, without a word"),
        ("epoch 3\n", -9, "killed by signal 9"),
        (LAUNCHED.format(code=1), 1, "the reason"),
        (LAUNCHED.format(code=-11), 1, "rank 1 killed by signal 11"),
        (LAUNCHED.format(code=1).replace("ank 1", "ank 0").replace("-Begin", ""), 1, "epoch 3"),
    ],
)
def test_last_words(said, code, words):
    assert last_words(said, code) == words


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"timeout_min": 0}, "timeout_min: 0 given; expected an integer of at least 1"),
        ({"nodes": 0}, "nodes: 0 given"),
        ({"gpus_per_node": -1}, "gpus_per_node: -1 given"),
        ({"mem_gb": 0.0}, "mem_gb: 0.0 given; expected more than 0"),
        ({"cluster": "sge"}, "cluster: 'sge' given; expected slurm or local"),
        ({"nodes": 2}, "nodes: 2 given; expected 1 with cluster: local"),
    ],
)
def test_what_slurm_cannot_do_is_refused(arguments, refused):
    with pytest.raises(ValueError, match=refused):
        Slurm(**{"timeout_min": 5, "cluster": "local"} | arguments)


def test_what_processes_cannot_do_is_refused():
    with pytest.raises(ValueError, match="gpus: 0 given; expected an integer of at least 1"):
        Processes(gpus=0)
    with pytest.raises(ValueError, match="at_once: 0 given; expected an integer of at least 1"):
        Processes(at_once=0)


def test_a_name_that_submitit_does_not_have_is_refused_while_checking():
    with pytest.raises(ArgumentError, match=r"slurm_partitoin.*did you mean slurm_partition"):
        check_arguments(Slurm, {"timeout_min": 5, "slurm_partitoin": "gpu"})
