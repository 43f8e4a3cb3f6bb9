"""Executors: how GPUs are dealt out, a run's last words, what is refused; tests/slurm tries their processes."""

import subprocess
import sys

import pytest

from accelerando.recipes.config.arguments import check_arguments
from accelerando.recipes.config.errors import ArgumentError
from accelerando.recipes.executors import Processes, Slurm
from accelerando.recipes.executors.launch import last_words
from accelerando.recipes.executors.processes import slots


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


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


def test_a_job_of_slurm_holds_no_second_composer():
    """What submitit loads on a node is this; the run, which imports Composer, is a process of its own."""
    program = "import sys, accelerando.recipes.executors.slurm_jobs; sys.exit('composer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
