"""Several runs at once, each in a process of its own; none of them outlives this one.

Each is ``python -m accelerando.recipes.run.parallel FILE.yaml``, which is recipes/train.py on a leash.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of the launcher's one rank: with its port, and as part of its group, the processes would meet one another.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Job:
    """A run by its config file; its output is added to `log`. It waits for the end of the job named `after`, if any."""

    name: str
    file: Path
    log: Path
    after: str | None = None


def gpus() -> list[str]:
    """The GPUs this process may use, each as CUDA_VISIBLE_DEVICES names it."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]  # CUDA ends the list at a name that it does not know


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    started: Callable[[Job], None],
    ended: Callable[[Job, str | None], None],
) -> None:
    """Runs the jobs, earlier ones first, one in each slot at a time.

    Args:
        jobs: a job may wait for one that is not among them, which counts as done.
        slots: what each adds to the environment.
        started: told when a job begins.
        ended: told when one is over, with what went wrong, or None. What waits for a job that failed is not begun.
    """
    waiting, free = list(jobs), list(slots)
    running: dict[Job, tuple[subprocess.Popen[bytes], Mapping[str, str]]] = {}
    failed: set[str] = set()
    try:
        while waiting or running:
            for job in [job for job in waiting if job.after in failed]:
                waiting.remove(job)
                failed.add(job.name)
                ended(job, f"not begun, as it starts from {job.after}")
            unfinished = {job.name for job in (*waiting, *running)}
            for job in [job for job in waiting if job.after not in unfinished][: len(free)]:
                waiting.remove(job)
                running[job] = (_start(job, slot := free.pop(0)), slot)
                started(job)
            time.sleep(0.05)
            for job, (process, slot) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    free.append(slot)
                    _let_go(process)
                    if process.returncode != 0:
                        failed.add(job.name)
                    ended(job, _last_words(job, process.returncode))
    finally:
        for process, _ in running.values():
            _let_go(process)


def _start(job: Job, slot: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerando.recipes.run.parallel", str(job.file)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, **slot},
        )


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Drops the leash, which ends the process, if it still runs, and waits for that."""
    assert process.stdin
    process.stdin.close()
    process.wait()


def _last_words(job: Job, returncode: int) -> str | None:
    if returncode == 0:
        return None
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    reason = f"killed by signal {-returncode}" if returncode < 0 else lines[-1].strip() if lines else "without a word"
    return f"{reason}; see {job.log}"


def _end_with_the_parent() -> None:
    # Nobody writes here: it is read to the end when the other process closes it, or is gone, however it ended.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from ..config.recipe import check
    from .command_line import command_line
    from .training import train

    command_line(sys.argv[1:], __doc__, lambda config, source: train(check(config, source)))
