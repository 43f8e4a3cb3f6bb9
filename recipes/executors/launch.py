"""A run as processes of this machine, none of which outlives the one that launched it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LEASH = ["-m", "accelerando.recipes.executors.leash"]

# Of the launcher's one rank: with its port, and as part of its group, the runs would meet one another.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


class Launch:
    """A run in a process, or in a launcher and its ranks, all of them on one leash.

    Args:
        recipe: the run's checked YAML file.
        log: file to which its output is added.
        processes: its processes on this machine; several run under ``composer``.
        of_this_node: arguments by which ``composer`` finds its companions on other nodes, if there are any.
        environment: what its environment has beyond this process's.
    """

    def __init__(
        self,
        recipe: Path,
        *,
        log: Path,
        processes: int,
        of_this_node: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        self._log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self._process = subprocess.Popen(
                _command(recipe, processes, of_this_node),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **(environment or {})},
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


def _command(recipe: Path, processes: int, of_this_node: Sequence[str]) -> list[str]:
    run = [*LEASH, "accelerando.recipes.train", str(recipe)]
    if processes == 1 and not of_this_node:
        return [sys.executable, *run]
    return [sys.executable, *LEASH, "composer.cli", "-n", str(processes), *of_this_node, *run]


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
