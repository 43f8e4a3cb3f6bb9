"""What a study asks of whoever runs its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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


def at_least(least: int, **arguments: int | None) -> None:
    """Raises ValueError, with the argument's name, if one is below `least`; one that is None is not given."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} given; expected an integer of at least {least}")
