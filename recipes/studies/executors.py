"""Who runs the runs of a study: processes of this machine, or jobs of SLURM.

A job is one run by its checked YAML file. ``train`` goes on from the last checkpoint when it is called again, so
whatever ends a job, the next one finishes the run with the same weights. No process outlives the one that started it:
``python -m accelerando.recipes.studies.executors MODULE ARGUMENT...`` runs a module on a leash, which is its stdin.
"""

from __future__ import annotations

import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

LEASH = ["-m", "accelerando.recipes.studies.executors"]

# Of the launcher's one rank: with its port, and as part of its group, the runs would meet one another.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")

# Seconds between two questions to SLURM, for all jobs together.
POLL = 3.0

# Seconds after the end of a job in which a shared file system may not yet show what another machine wrote.
LATE = 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run by its checked YAML file and its folder, to whose ``log.txt`` its output is added."""

    name: str
    recipe: Path
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class Running(Protocol):
    """A job that was started."""

    def ended(self) -> bool:
        """Tells whether the job is over; it is asked again and again, and answers at once."""
        ...

    def problem(self) -> str | None:
        """Tells, after the end, in one line why the run failed and where its log is, or None if it succeeded."""
        ...


class Executor(Protocol):
    """Starts jobs. A YAML finds those that derive from this class, by their names."""

    def at_once(self) -> int:
        """Tells how many jobs may run at a time."""
        ...

    def start(self, job: Job) -> Running:
        """Starts the job, or finds the one that an earlier process started, if that is still queued or running."""
        ...

    def close(self) -> None:
        """Ends the jobs that must not outlive this process."""
        ...


class Processes(Executor):
    """Runs several jobs at a time on this machine, in processes that end when this one does, however it ends.

    Args:
        gpus: GPUs for each run, of those that there are in turn, which CUDA_VISIBLE_DEVICES may restrict; several run
            under ``composer``. On a machine without GPUs a run has as many processes.
        at_once: runs at a time; by default one on each GPU, or on each group of `gpus`, and without GPUs one.

    Raises:
        ValueError: an argument is below 1, or there are fewer GPUs here than a run needs.
    """

    def __init__(self, gpus: int = 1, at_once: int | None = None):
        self._gpus = _at_least(1, "gpus", gpus)
        self._slots = slots(visible_gpus(), gpus, at_once if at_once is None else _at_least(1, "at_once", at_once))
        self._running: dict[int, _Process] = {}  # by the number of the slot

    def at_once(self) -> int:
        return len(self._slots)

    def start(self, job: Job) -> Running:
        taken = [slot for slot, process in self._running.items() if not process.ended()]
        free = next((slot for slot in range(len(self._slots)) if slot not in taken), None)
        if free is None:
            raise RuntimeError(f"{job.name}: cannot start; {len(taken)} runs are at it, as many as may at once")
        self._running[free] = process = _Process(job.log, _command(job.recipe, self._gpus), self._slots[free])
        return process

    def close(self) -> None:
        for process in self._running.values():
            process.stop()


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]  # CUDA ends the list at a name that it does not know


def slots(names: Sequence[str], gpus: int, at_once: int | None) -> list[dict[str, str]]:
    """Returns what the environment of each run at a time adds: `gpus` of the GPUs of these names, group by group."""
    if not names:
        return [{} for _ in range(at_once or 1)]
    if gpus > len(names):
        raise ValueError(f"gpus: {gpus} given; expected at most {len(names)}, as many as this machine has")
    groups = [",".join(names[i : i + gpus]) for i in range(0, len(names) - gpus + 1, gpus)]
    return [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} for i in range(at_once or len(groups))]


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
        of_submitit = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "cluster", "at_once", "slurm_max_num_timeout") and value is not None
        }
        for name, least in {"timeout_min": 1, "nodes": 1, "gpus_per_node": 0, "slurm_signal_delay_s": 1}.items():
            _at_least(least, name, of_submitit[name])
        if cpus_per_task is not None:
            _at_least(1, "cpus_per_task", cpus_per_task)
        if mem_gb is not None and not mem_gb > 0:
            raise ValueError(f"mem_gb: {mem_gb} given; expected more than 0")
        _refuse_cluster(cluster, nodes)
        srun_args = list(slurm_srun_args or ())
        if cpus_per_task is not None:
            srun_args.append(f"--cpus-per-task={cpus_per_task}")  # srun does not take it over from sbatch, since 22.05
        if nodes > 1:
            srun_args.append("--kill-on-bad-exit=1")  # else the other nodes would wait for the one that failed
        of_submitit |= {"tasks_per_node": 1, "slurm_srun_args": srun_args}
        if gpus_per_node == 0:
            del of_submitit["gpus_per_node"]
        self._parameters = of_submitit
        self._max_num_timeout = _at_least(0, "slurm_max_num_timeout", slurm_max_num_timeout)
        self._at_once = _at_least(1, "at_once", at_once)
        self._processes = max(1, gpus_per_node)
        self.cluster = cluster
        self._queue: dict[Path, str] = {}
        self._asked = float("-inf")

    def at_once(self) -> int:
        return self._at_once

    def start(self, job: Job) -> Running:
        """Submits the job, unless it is queued or running already; one that SLURM refuses is over at once."""
        import submitit

        folder = _submitit_folder(job)
        try:
            number = self.queue(anew=True).get(folder)
            if number is None:
                for stale in folder.glob("*_result.pkl"):
                    stale.unlink()
                executor = submitit.AutoExecutor(
                    folder=folder, cluster=self.cluster, slurm_max_num_timeout=self._max_num_timeout
                )
                executor.update_parameters(name=job.name, **self._parameters)
                number = executor.submit(_Launch(job.recipe.resolve(), job.log.resolve(), self._processes)).job_id
                self._asked = float("-inf")
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            return _Refused(f"cannot be submitted; {' '.join(str(error).split())}")
        return _Submitted(self, job, number)

    def close(self) -> None:
        """Leaves the jobs alone, which go on without this process."""

    def queue(self, anew: bool = False) -> dict[Path, str]:
        """Returns the numbers of the jobs that are queued or running, by submitit's folder, as of some seconds ago.

        Raises:
            OSError: SLURM does not answer.
            SubprocessError: it does not answer within a minute.
        """
        if anew or time.monotonic() - self._asked > POLL:
            self._queue = _queue_of_slurm() if self.cluster == "slurm" else _queue_of_this_machine()
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


def _submitit_folder(job: Job) -> Path:
    """Returns the folder by which a job is known: SLURM tells where the script of each lies that it has."""
    return job.folder.resolve() / "submitit"


def _asked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def _queue_of_slurm() -> dict[Path, str]:
    answer = _asked("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %o")
    jobs = [line.strip().split(" ", 1) for line in answer.splitlines()]
    return {Path(job[1]).parent: job[0] for job in jobs if len(job) == 2}


def _queue_of_this_machine() -> dict[Path, str]:
    import psutil

    processes = [(str(process.pid), process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return {Path(words[-1]): pid for pid, words in processes if words[-3:-1] == ["-m", "submitit.local._local"]}


@dataclass(frozen=True)
class _Refused:
    """A job that did not come into the queue."""

    words: str

    def ended(self) -> bool:
        return True

    def problem(self) -> str:
        return self.words


class _Submitted:
    """A job of SLURM's, by its number."""

    def __init__(self, executor: Slurm, job: Job, number: str):
        self._executor, self._job, self._number = executor, job, number
        self._gone: float | None = None

    def ended(self) -> bool:
        if self._gone is None:
            try:
                if self._number in self._executor.queue().values():
                    return False
            except (OSError, subprocess.SubprocessError):
                return False  # a controller that is too busy to answer says nothing of the job
            self._gone = time.monotonic()
        return "0" in self._results() or time.monotonic() - self._gone > LATE

    def problem(self) -> str | None:
        results = self._results()
        for outcome, trace in results.values():
            if outcome == "error":
                words = trace.strip().splitlines()[-1]
                return words.partition(f"{_RunFailed.__name__}: ")[2] or f"{words}; see {self._log()}"
        return None if "0" in results else f"{self._death()}; see {self._log()}"

    def _results(self) -> dict[str, tuple[str, str]]:
        """Returns outcome and traceback, by the node, of those that came to an end of their own."""
        folder = _submitit_folder(self._job)
        # A list of the folder is of now, where a question for one file may be answered from what was known before.
        files = [re.fullmatch(rf"{self._number}_(\d+)_result\.pkl", name) for name in os.listdir(folder)]
        return {file[1]: pickle.loads((folder / file[0]).read_bytes()) for file in files if file}

    def _death(self) -> str:
        if self._executor.cluster == "local":
            return f"process {self._number} was killed"
        answer = ""
        with suppress(OSError, subprocess.SubprocessError):  # it forgets a job some minutes after its end
            answer = _asked("scontrol", "--oneliner", "show", "job", self._number)
        told = dict(re.findall(r"(JobState|Reason|ExitCode)=(\S+)", answer))
        how = f"as {told['JobState']}, {told['Reason']}, exit code {told['ExitCode']}" if len(told) == 3 else "unseen"
        return f"SLURM's job {self._number} ended {how}"

    def _log(self) -> Path:
        log = self._job.log
        return log if log.exists() else _submitit_folder(self._job) / f"{self._number}_0_log.err"


class _RunFailed(Exception):
    """Carries the last words of a run from the node where it ran."""


@dataclass(frozen=True)
class _Launch:
    """What SLURM runs on each of the nodes of a job."""

    recipe: Path
    log: Path
    processes: int

    def __call__(self) -> None:
        from submitit import JobEnvironment

        here = JobEnvironment()
        log = self.log.with_name(f"log-node{here.node}.txt") if here.node else self.log
        command = _command(self.recipe, self.processes, *(_of_this_node(self.processes) if here.num_nodes > 1 else ()))
        # SLURM sends the signal that precedes the time limit to every process of the job; it is meant for this one.
        announced = {getattr(signal, f"SIG{here.USR_SIG}")}
        signal.pthread_sigmask(signal.SIG_BLOCK, announced)
        process = _Process(log, command, {})
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, announced)
            process.wait()
        finally:
            process.stop()
        if problem := process.problem():
            raise _RunFailed(problem)

    def checkpoint(self) -> DelayedSubmission:
        """Returns what a requeued job runs: the same, which goes on from the run's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _of_this_node(processes: int) -> list[str]:
    """Returns the arguments by which ``composer`` finds its companions on the other nodes of the job."""
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.pop("MASTER_PORT", None)
    job = TorchDistributedEnvironment()
    world = ["--world_size", str(job.world_size * processes), "--node_rank", str(job.rank)]
    return [*world, "--master_addr", job.master_addr, "--master_port", str(job.master_port)]


def _command(recipe: Path, processes: int, *of_this_node: str) -> list[str]:
    run = [*LEASH, "accelerando.recipes.train", str(recipe)]
    if processes == 1 and not of_this_node:
        return [sys.executable, *run]
    return [sys.executable, *LEASH, "composer.cli", "-n", str(processes), *of_this_node, *run]


class _Process:
    """A run in a process of this machine, or in a launcher and its ranks, all of them on one leash."""

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str]):
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        self._log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
            )

    def ended(self) -> bool:
        if self._process.poll() is None:
            return False
        self.stop()
        return True

    def problem(self) -> str | None:
        if self._process.returncode == 0:
            return None
        said = self._log.read_bytes()[self._begin :].decode(errors="replace")
        return f"{last_words(said, self._process.returncode)}; see {self._log}"

    def wait(self) -> None:
        self._process.wait()

    def stop(self) -> None:
        """Drops the leash, which ends the run, if it is not over, and waits for that."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def last_words(said: str, returncode: int) -> str:
    """Returns why a run failed, in one line, from what it said: under ``composer`` the words of the rank that did."""
    who = ""
    if crash := re.search(r"^.*Rank (\d+) crashed with exit code (-?\d+)", said, re.MULTILINE):
        who, returncode = f"rank {crash[1]} ", int(crash[2])
        of_rank = rf"-Begin global rank {crash[1]} \w+-+\n(.*?)\n-+End global rank"
        told = re.search(of_rank, said, re.DOTALL)
        said = told[1] if told else said[: crash.start()]
    if returncode < 0:
        return f"{who}killed by signal {-returncode}"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{who}ended with exit code {returncode}, without a word"


def _at_least(least: int, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: {value} given; expected an integer of at least {least}")
    return value


def _end_with_the_parent() -> None:
    # Nobody writes here: it is read to the end when the other process closes it, or is gone, however it ended.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
