"""Jobs of SLURM: what one runs on each of its nodes, and what becomes of it."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .interface import Job
from .launch import Launch

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

# Seconds after the end of a job in which a shared file system may not yet show what another machine wrote.
LATE = 5.0


class RunFailed(Exception):
    """Carries the last words of a run from the node where it ran."""


@dataclass(frozen=True, kw_only=True)
class OnNode:
    """What SLURM runs on each of the nodes of a job."""

    recipe: Path
    log: Path
    processes: int

    def __call__(self) -> None:
        from submitit import JobEnvironment

        here = JobEnvironment()
        log = self.log.with_name(f"log-node{here.node}.txt") if here.node else self.log
        companions = _companions(self.processes) if here.num_nodes > 1 else ()
        # SLURM sends the signal that precedes the time limit to every process of the job; it is meant for this one.
        announced = {getattr(signal, f"SIG{here.USR_SIG}")}
        signal.pthread_sigmask(signal.SIG_BLOCK, announced)
        run = Launch(self.recipe, log=log, processes=self.processes, of_this_node=companions)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, announced)
            run.wait()
        finally:
            run.stop()
        if problem := run.problem():
            raise RunFailed(problem)

    def checkpoint(self) -> DelayedSubmission:
        """Returns what a requeued job runs: the same, which goes on from the run's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _companions(processes: int) -> list[str]:
    """Returns the arguments by which ``composer`` finds its companions on the other nodes of the job."""
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.pop("MASTER_PORT", None)
    job = TorchDistributedEnvironment()
    world = ["--world_size", str(job.world_size * processes), "--node_rank", str(job.rank)]
    return [*world, "--master_addr", job.master_addr, "--master_port", str(job.master_port)]


def asked(*command: str) -> str:
    """Returns SLURM's answer to a command of its own.

    Raises:
        OSError: it does not answer.
        SubprocessError: it does not answer within a minute.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def submitit_folder(job: Job) -> Path:
    """Returns the folder by which a job is known: SLURM tells where the script of each lies that it has."""
    return job.folder.resolve() / "submitit"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A job that did not come into the queue."""

    words: str

    def ended(self) -> bool:
        return True

    def problem(self) -> str:
        return self.words


class Submitted:
    """A job by its number, which the `queue` holds until it is over; a `local` one is a process of this machine."""

    def __init__(self, job: Job, number: str, *, queue: Callable[[], dict[Path, str]], local: bool):
        self._job, self._number, self._queue, self._local = job, number, queue, local
        self._gone: float | None = None

    def ended(self) -> bool:
        if self._gone is None:
            try:
                if self._number in self._queue().values():
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
                return words.partition(f"{RunFailed.__name__}: ")[2] or f"{words}; see {self._log()}"
        return None if "0" in results else f"{self._death()}; see {self._log()}"

    def _results(self) -> dict[str, tuple[str, str]]:
        """Returns outcome and traceback, by the node, of those that came to an end of their own."""
        folder = submitit_folder(self._job)
        # A list of the folder is of now, where a question for one file may be answered from what was known before.
        files = [re.fullmatch(rf"{self._number}_(\d+)_result\.pkl", name) for name in os.listdir(folder)]
        return {file[1]: pickle.loads((folder / file[0]).read_bytes()) for file in files if file}

    def _death(self) -> str:
        if self._local:
            return f"process {self._number} was killed"
        answer = ""
        with suppress(OSError, subprocess.SubprocessError):  # it forgets a job some minutes after its end
            answer = asked("scontrol", "--oneliner", "show", "job", self._number)
        told = dict(re.findall(r"(JobState|Reason|ExitCode)=(\S+)", answer))
        how = f"as {told['JobState']}, {told['Reason']}, exit code {told['ExitCode']}" if len(told) == 3 else "unseen"
        return f"SLURM's job {self._number} ended {how}"

    def _log(self) -> Path:
        log = self._job.log
        return log if log.exists() else submitit_folder(self._job) / f"{self._number}_0_log.err"
