"""Kills a study again and again, at random moments, and compares its table with that of one trained in turn in peace.

    python tests/kill_studies.py [--executor 'processes: {at_once: 2}'] [--kills 50] [--within 60] [--seed 0]

The driver is a fork of this process, which has imported everything. By a coin SIGKILL comes to the driver, which then
begins again, or to a run that an executor has started, which the driver tells of and its next call trains again. What a
driver has started ends with it (processes) or goes on without it (SLURM, submitit's local executor). When a study is
whole it is compared, and the next one begins, until so many kills are done. Exit code 1 where a table differs. The next
kill comes within so many seconds, by default those that the study takes in turn; an executor's runs, each of which
imports Composer first, take longer.
"""

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "recipes" / "studies")]

import psutil  # noqa: E402
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


def ended_within(driver, seconds):
    """The exit code of a driver that ends in this time by itself, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, code = os.waitpid(driver, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    return None


def runs_of(folder):
    """The processes in which executors train runs of the study in the folder."""
    recipes = {str(file) for file in folder.glob("study/*/recipe.yaml")}
    return [one for one in psutil.process_iter(["cmdline"]) if recipes & set(one.info["cmdline"] or [])]


def trained(folder, executor, moments=None, within=0.0, most=0):
    """Trains the study, with up to so many kills; returns what was killed, and its rows unless it has failed."""
    killed, failures, driver = [], 0, begin(folder, executor)
    while True:
        code = ended_within(driver, moments.uniform(0, within) if len(killed) < most else math.inf)
        if code is None:
            runs = runs_of(folder)
            if runs and moments.random() < 0.5:
                moments.choice(runs).kill()
                killed.append("run")
            else:
                os.kill(driver, signal.SIGKILL)
                os.waitpid(driver, 0)
                killed.append("driver")
            print(f"killed: {killed[-1]}", flush=True)
            if killed[-1] == "run":
                continue
        elif code == 1 and failures < killed.count("run"):
            failures += 1
        else:
            return killed, without_seconds(read_table(folder / "study/table.csv")) if code == 0 else None
        driver = begin(folder, executor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", type=yaml.safe_load, default=None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--within", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    executor = {"executor": given.executor} if given.executor else {}
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    moments, root, begun = random.Random(given.seed), Path(tempfile.mkdtemp()), time.monotonic()
    _, expected = trained(root / "in-turn", {})
    assert expected, (root / "in-turn.log").read_text()
    within = given.within or time.monotonic() - begun
    kills, studies, wrong = [], 0, 0
    while len(kills) < given.kills:
        folder, studies = root / str(studies), studies + 1
        killed, rows = trained(folder, executor, moments, within, given.kills - len(kills))
        kills, wrong = kills + killed, wrong + (rows != expected)
        told = "the same table" if rows == expected else f"ANOTHER table; see {folder}.log"
        print(f"study {studies}: killed {len(killed)} times, {told}", flush=True)
    told = f"{kills.count('driver')} kills of the driver and {kills.count('run')} of runs"
    print(f"{told}, within {within:.1f} s each, {studies} studies, {wrong} tables that differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
