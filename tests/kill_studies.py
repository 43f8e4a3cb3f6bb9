"""Kills a study again and again, at random moments, and compares its table with that of a study left in peace.

    python tests/kill_studies.py [--executor 'processes: {at_once: 2}'] [--kills 50] [--seed 0]

The driver is a fork of this process, which has imported everything, and is killed by SIGKILL; with an executor, what it
has started ends with it (processes) or goes on without it (SLURM, submitit's local executor). When a study is whole it
is compared, and the next one begins, until so many kills are done. Exit code 1 where a table differs.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "recipes" / "studies")]

import yaml  # noqa: E402
from studies import config, without_seconds  # noqa: E402

from accelerando.recipes.studies.driver import run  # noqa: E402
from accelerando.recipes.studies.plan import plan  # noqa: E402
from accelerando.recipes.studies.table import read_table  # noqa: E402

STUDY = {"learning_rates:LearningRates": {"rates": [0.001, 0.1], "seeds": [17, 18]}}


def begin(folder, executor):
    """A driver in a process of its own; returns its id."""
    if pid := os.fork():
        return pid
    try:
        silence = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silence, 1), os.dup2(silence, 2)
        outcome = run(plan(config(folder, STUDY, **executor)))
        os._exit(1 if outcome.failures else 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", type=yaml.safe_load, default=None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    executor = {"executor": given.executor} if given.executor else {}
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    moments, root = random.Random(given.seed), Path(tempfile.mkdtemp())
    begun = time.monotonic()
    assert os.waitpid(begin(root / "whole", executor), 0)[1] == 0, (root / "whole.log").read_text()
    length = time.monotonic() - begun
    expected = without_seconds(read_table(root / "whole/study/table.csv"))
    kills, studies, wrong = 0, 0, 0
    while kills < given.kills:
        folder, studies, in_this = root / str(studies), studies + 1, 0
        while True:
            pid, wait = begin(folder, executor), moments.uniform(0, length)
            end = time.monotonic() + wait
            while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < end:
                time.sleep(0.01)
            if ended[0] == 0 and kills < given.kills:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills, in_this = kills + 1, in_this + 1
                continue
            code = (ended if ended[0] else os.waitpid(pid, 0))[1]
            break
        same = code == 0 and without_seconds(read_table(folder / "study/table.csv")) == expected
        wrong += not same
        print(
            f"study {studies}: killed {in_this} times, {'the same table' if same else f'ANOTHER (exit {code})'}",
            flush=True,
        )
    print(f"{kills} kills within 0 to {length:.1f} s, {studies} studies, {wrong} tables that differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
