"""Accuracy over training time of several arms, each from one run with cyclic learning rates: check, train, compare.

    composer [-n N] recipes/tradeoff.py FILE.yaml key=value ...

The file is that of recipes/train.py with a `multiplicative_cyclic` scheduler, and

    arms: {NAME: {...}, ...}   what each arm changes in the file; the first one is the baseline; false leaves one out
    seeds: [17, 18]            every arm is trained once with each
    compare_standard: true     trains the independent run of every cycle's length too, and tells how far both differ
    window: 5ep                the best accuracy so near to a cycle's end is compared too, as the paper's authors do
    metric: NAME               by default the first accuracy there is; the higher, the better

The study's folder, ``{folder}/{run_name}``, then holds `tradeoff.csv`, `tradeoff.png`, where compared `comparison.csv`,
and every run's folder. The same command goes on after a kill, and trains only what is new after a change of arms or
seeds, or for a longer max_duration. An error in any arm is one line and exit code 2, before anything is trained; what
only the data can tell, such as that they are fewer than a batch, comes when it is the arm's turn.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.errors import Source
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.folder import finished, held
from accelerando.recipes.run.loggers import log_study
from accelerando.recipes.run.training import join_ranks, train
from accelerando.recipes.tradeoff_plan import Study, plan

if TYPE_CHECKING:
    from accelerando.recipes.curves import Point


def tradeoff(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Point]:
    """Trains what the config describes and its folder does not hold yet, and reports; returns all points."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]
    join_ranks(study.runs[0].recipe)
    with held(study.folder, study.source):
        return _do(study)


def _do(study: Study) -> list[Point]:
    from accelerando.recipes.curves import points_of
    from accelerando.recipes.run.progress import Progress

    progress = Progress(sum(run.duration.value for run in study.runs))
    points: list[Point] = []
    for number, run in enumerate(study.runs, 1):
        if result := finished(run.recipe):
            progress.skip(run.duration.value)
        else:
            alone = f", alone for {study.ends[run.cycle]}" if run.schedule == "standard" else ""
            place = f"run {number} of {len(study.runs)}: {run.arm}, seed {run.seed}{alone}"
            progress.start(place, run.duration.value, 1 if alone else len(study.ends))
            result = train(run.recipe, watch=progress)
        names = {"arm": run.arm, "seed": run.seed, "schedule": run.schedule, "first_cycle": run.cycle}
        window = round(study.window * result.batches / run.duration.value)
        with run.recipe.source.blame("", ValueError):
            points += points_of(result.records, study.metric, study.ends, window, **names)
    progress.finish()
    _report(study, points)
    return points


def _report(study: Study, points: list[Point]) -> None:
    from composer.utils import dist

    from accelerando.recipes.curves import budget_table, budgets, comparison_table, comparisons, draw
    from accelerando.recipes.run.files import write_csv, write_yaml

    folder, baseline, metric = study.folder, study.runs[0].arm, study.metric
    pixels: list[Any] = [None]
    if dist.get_global_rank() == 0:
        with study.source.blame("folder", OSError):
            write_yaml(folder / "config.yaml", study.config)
            write_csv(points, folder / "tradeoff.csv")
            pixels = [draw(points, metric, folder / "tradeoff.png", folder.name)]
            compared = comparisons(points, baseline)
            (folder / "comparison.csv").unlink(missing_ok=True)
            if compared:
                write_csv(compared, folder / "comparison.csv")
        print(f"\n{budget_table(points, metric, baseline)}\n")
        if compared:
            print(f"{comparison_table(points, metric, baseline)}\n")
        files = "config.yaml, tradeoff.csv, tradeoff.png" + (", comparison.csv" if compared else "")
        print(f"{folder}: {files}, a folder for each run", flush=True)
    dist.broadcast_object_list(pixels)
    tables = {"tradeoff": [asdict(point) for point in points], "budget": budgets(points, baseline)}
    log_study(study.runs[0].recipe, study.config, tables, pixels[0])


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, tradeoff)


if __name__ == "__main__":
    main(sys.argv[1:])
