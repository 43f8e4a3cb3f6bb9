"""Trains the runs of a study, reports what they show, and judges what papers say of it.

    composer [-n N] recipes/study.py FILE.yaml key=value ... [--dry-run | --report[=PAGE.md]]
    python -m accelerando.recipes.study --help NAME    of a study, such as tickets, of a key, or of a name in a section

The file, and what follows it, are those of recipes/train.py, which describes the base run, and

    study: {NAME: {...}}            one of accelerando.recipes.studies, such as tickets, or package.module:Class
    executor: {processes: {...}}    several runs at once, each a process; or {slurm: {...}}, each a job of SLURM;
                                    without it one run after the other, under the launcher's ranks

The study's folder, ``{folder}/{run_name}``, then holds `table.csv` with a row for everything that was measured, its
summaries, `figure.png`, `claims.md`, `report.md` with all of that on a page, and every run's folder. The same command
goes on after a kill, and trains only what is new. `--dry-run` lists the runs, and `--report` reports from those that
are finished, with a page for a repository's docs if its file is given; neither trains anything. An error in the file is
one line and exit code 2, before anything is trained; a run that fails later is told of with its log, the others go on,
the exit code is 1, and the next call tries it again.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.studies.driver import dry_run, report_only, run
from accelerando.recipes.studies.plan import EXECUTORS, STUDIES, plan

FLAG = re.compile(r"--dry-run|--report(=.+\.md)?|--help")


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config, with 1 if a run has failed."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    if len(flags) > 1 or not all(map(FLAG.fullmatch, flags)):
        print(f"{' '.join(flags)}: expected one of --dry-run, --report and --report=PAGE.md", file=sys.stderr)
        sys.exit(2)
    flag, _, page = flags[0].partition("=") if flags else ("", "", "")
    failed = False

    def do(config, source) -> None:
        nonlocal failed
        found = plan(config, source)
        if flag == "--dry-run":
            listed = dry_run(found)
            if os.environ.get("RANK", "0") == "0":
                print(listed)
        elif flag == "--report":
            report_only(found, Path(page) if page else None)
        else:
            failed = bool(run(found).failures)

    words = [word for word in arguments if word not in flags or word == "--help"]
    command_line(words, __doc__, do, {"study": STUDIES, "executor": EXECUTORS})
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
