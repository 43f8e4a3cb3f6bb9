"""Several runs at once on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .interface import Executor, Job, Running, at_least
from .launch import Launch


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
        at_least(1, gpus=gpus, at_once=at_once)
        self._gpus = gpus
        self._slots = slots(visible_gpus(), gpus, at_once)
        self._running: dict[int, Launch] = {}  # by the number of the slot

    def at_once(self) -> int:
        return len(self._slots)

    def start(self, job: Job) -> Running:
        taken = [slot for slot, run in self._running.items() if not run.ended()]
        free = next((slot for slot in range(len(self._slots)) if slot not in taken), None)
        if free is None:
            raise RuntimeError(f"{job.name}: cannot start; {len(taken)} runs are at it, as many as may at once")
        self._running[free] = Launch(job.recipe, log=job.log, processes=self._gpus, environment=self._slots[free])
        return self._running[free]

    def close(self) -> None:
        for run in self._running.values():
            run.stop()


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
