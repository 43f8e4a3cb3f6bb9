"""Runs of a study as jobs of SLURM, through `submitit`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from .interface import Executor, Job, Running, at_least
from .slurm_jobs import OnNode, Refused, Submitted, asked, submitit_folder

# Seconds between two questions to SLURM, for all jobs together.
POLL = 3.0


class Slurm(Executor):
    """Runs each job as one of SLURM's, through `submitit`, after whose names for them the parameters are called.

    A job that SLURM requeues, or that comes to its time limit, goes on from its checkpoint. Jobs go on when this
    process ends; the next one finds those that are still queued or running. `submitit` keeps its files in ``submitit``
    in the run's folder, which all nodes must share. Runs of several GPUs or nodes have one ``composer`` on each node.

    Args:
        timeout_min: time limit of a job, in minutes.
        cluster: ``slurm``; or ``local``, where there is none: submitit's own processes, which begin at once, all on the
            same GPUs.
        at_once: jobs that are queued or running at a time.
        nodes: nodes of a run.
        gpus_per_node: GPUs of a run on each of its nodes; with 0, one process without a GPU.
        cpus_per_task: CPUs of a run on each of its nodes.
        mem_gb: memory of a run on each of its nodes, in GB.
        slurm_partition: partition to which the jobs go.
        slurm_account: account that pays for them.
        slurm_qos: their quality of service.
        slurm_constraint: features that a node must have.
        slurm_nodelist: nodes that a job must have.
        slurm_exclude: nodes that a job must not have.
        slurm_exclusive: whether a job shares its nodes with no other.
        slurm_setup: shell commands that come before the run, such as ``module load cuda``.
        slurm_srun_args: further arguments of ``srun``.
        slurm_signal_delay_s: seconds before the time limit at which a job is requeued.
        slurm_max_num_timeout: how often a job may come to its time limit and be requeued, before it counts as failed.
        slurm_additional_parameters: further options of ``sbatch``, by their names without the first dashes.

    Raises:
        ValueError: an argument is below its least value, local jobs have several nodes, or submitit or SLURM is
            missing.
    """

    def __init__(
        self,
        *,
        timeout_min: int,
        cluster: str = "slurm",
        at_once: int = 1000,
        nodes: int = 1,
        gpus_per_node: int = 0,
        cpus_per_task: int | None = None,
        mem_gb: float | None = None,
        slurm_partition: str | None = None,
        slurm_account: str | None = None,
        slurm_qos: str | None = None,
        slurm_constraint: str | None = None,
        slurm_nodelist: str | None = None,
        slurm_exclude: str | None = None,
        slurm_exclusive: bool | None = None,
        slurm_setup: list[str] | None = None,
        slurm_srun_args: list[str] | None = None,
        slurm_signal_delay_s: int = 90,
        slurm_max_num_timeout: int = 1000,
        slurm_additional_parameters: dict[str, Any] | None = None,
    ):
        # By submitit's names, as the parameters are; the three others are not among those that it keeps.
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        for name in ("cluster", "at_once", "slurm_max_num_timeout"):
            del given[name]
        at_least(1, timeout_min=timeout_min, at_once=at_once, nodes=nodes, cpus_per_task=cpus_per_task)
        at_least(1, slurm_signal_delay_s=slurm_signal_delay_s)
        at_least(0, gpus_per_node=gpus_per_node, slurm_max_num_timeout=slurm_max_num_timeout)
        if mem_gb is not None and not mem_gb > 0:
            raise ValueError(f"mem_gb: {mem_gb} given; expected more than 0")
        _refuse_cluster(cluster, nodes)
        srun_args = list(slurm_srun_args or ())
        if cpus_per_task is not None:
            srun_args.append(f"--cpus-per-task={cpus_per_task}")  # srun does not take it over from sbatch, since 22.05
        if nodes > 1:
            srun_args.append("--kill-on-bad-exit=1")  # else the other nodes would wait for the one that failed
        if gpus_per_node == 0:
            del given["gpus_per_node"]
        self._parameters = {**given, "tasks_per_node": 1, "slurm_srun_args": srun_args}
        self._max_num_timeout = slurm_max_num_timeout
        self._at_once = at_once
        self._processes = max(1, gpus_per_node)
        self._cluster = cluster
        self._queue: dict[Path, str] = {}
        self._asked = float("-inf")

    def at_once(self) -> int:
        return self._at_once

    def start(self, job: Job) -> Running:
        """Submits the job, unless it is queued or running already; one that SLURM refuses is over at once."""
        folder = submitit_folder(job)
        try:
            number = self.queue(anew=True).get(folder)
            if number is None:
                number = self._submit(job, folder)
            else:
                _finish_submission(folder, number)
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            return Refused(words=f"cannot be submitted; {' '.join(str(error).split())}")
        return Submitted(job, number, queue=self.queue, local=self._cluster == "local")

    def _submit(self, job: Job, folder: Path) -> str:
        """Returns the number of the job, which is in the queue now."""
        import submitit

        for stale in folder.glob("*.pkl"):
            stale.unlink()
        executor = submitit.AutoExecutor(
            folder=folder, cluster=self._cluster, slurm_max_num_timeout=self._max_num_timeout
        )
        executor.update_parameters(name=job.name, **self._parameters)
        run = OnNode(recipe=job.recipe.resolve(), log=job.log.resolve(), processes=self._processes)
        number = executor.submit(run).job_id
        self._asked = float("-inf")
        return number

    def close(self) -> None:
        """Leaves the jobs alone, which go on without this process."""

    def queue(self, anew: bool = False) -> dict[Path, str]:
        """Returns the numbers of the jobs that are queued or running, by submitit's folder, as of some seconds ago.

        Raises:
            OSError: SLURM does not answer.
            SubprocessError: it does not answer within a minute.
        """
        if anew or time.monotonic() - self._asked > POLL:
            self._queue = _queue_of_slurm() if self._cluster == "slurm" else _queue_of_this_machine()
            self._asked = time.monotonic()
        return self._queue


def _refuse_cluster(cluster: str, nodes: int) -> None:
    if cluster not in ("slurm", "local"):
        raise ValueError(f"cluster: {cluster!r} given; expected slurm or local")
    if cluster == "local" and nodes > 1:
        raise ValueError(f"nodes: {nodes} given; expected 1 with cluster: local, which is this machine")
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError("cluster: needs submitit; pip install 'accelerando[slurm]'") from error
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("squeue")):
        raise ValueError("cluster: slurm given, but there is no sbatch here; expected a machine that submits, or local")


def _finish_submission(folder: Path, number: str) -> None:
    """Gives the job what it waits for, if the process that submitted it was killed before it could."""
    submitted = folder / f"{number}_submitted.pkl"
    for pickle in folder.glob("*.pkl"):
        if "_" not in pickle.name and not submitted.exists():
            pickle.rename(submitted)


def _queue_of_slurm() -> dict[Path, str]:
    answer = asked("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %o")
    jobs = [line.strip().split(" ", 1) for line in answer.splitlines()]
    return {Path(job[1]).parent: job[0] for job in jobs if len(job) == 2}


def _queue_of_this_machine() -> dict[Path, str]:
    import psutil

    processes = [(str(process.pid), process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return {Path(words[-1]): pid for pid, words in processes if words[-3:-1] == ["-m", "submitit.local._local"]}
