"""What distillation is worth: quality over training time without it, and with whom and for how long it is done.

    composer [-n N] recipes/distillation.py FILE.yaml key=value ...

The file is that of recipes/train.py, which describes a student, and

    teachers: {NAME: {...}, ...}   what each changes in the file, such as model and max_duration; false leaves one out
    lengths: [4ep, 8ep]            every student is trained for each
    baseline_lengths: [2ep, 16ep]  only those without a teacher: what others reach must lie within their curve
    windows: [0.2, 0.5, 1.0]       share of the training, from its start, in which is distilled
    seeds: [17, 18]                every student is trained with each; a teacher has a seed of its own
    distillation: {...}            arguments of Distillation, such as {temperature: 4.0}
    metric: NAME                   by default the first accuracy there is; of errors and losses, less is better

Teachers are trained first, each once. Students have no teacher, the best or the poorest one, all of them, or one of all
that is drawn anew at each step. The study's folder, ``{folder}/{run_name}``, then holds `distillation.csv` with every
run, `speedup.csv`, `distillation.png`, and every run's folder. The same command goes on after a kill, and trains only
what is new after a change of teachers, lengths, windows or seeds. An error in any of it is one line and exit code 2,
before anything is trained.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.errors import Source
from accelerando.recipes.config.recipe import Recipe
from accelerando.recipes.distillation_plan import Student, Study, plan
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.folder import finished, held
from accelerando.recipes.run.loggers import log_study
from accelerando.recipes.run.training import join_ranks, train
from accelerando.recipes.variants import duration

if TYPE_CHECKING:
    from accelerando.recipes.run.progress import Progress
    from accelerando.recipes.run.results import Result
    from accelerando.recipes.speedup import Point


def distillation(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Point]:
    """Trains what the config describes and its folder does not hold yet, and reports; returns all points."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]
    join_ranks(next(iter(study.teachers.values())))
    with held(study.folder, study.source):
        return _do(study)


def _do(study: Study) -> list[Point]:
    from composer.utils import dist

    from accelerando.recipes.curves import lower_is_better
    from accelerando.recipes.run.progress import Progress
    from accelerando.recipes.speedup import Point, rank

    durations = [duration(recipe).value for recipe in study.teachers.values()]
    durations += [duration(student.recipe).value for student in study.students([*study.teachers])]
    progress, numbers = Progress(sum(durations)), itertools.count(1)

    def done(recipe: Recipe, place: str) -> Result:
        return _done(recipe, f"run {next(numbers)} of {len(durations)}: {place}", study.metric, progress)

    taught = {name: done(recipe, f"teacher {name}") for name, recipe in study.teachers.items()}
    seconds = {name: result.seconds for name, result in taught.items()}
    values = {name: _value(result, study.metric) for name, result in taught.items()}
    points: list[Point] = []
    for name, recipe in study.teachers.items():
        cost = taught[name].batches, taught[name].samples, seconds[name]
        own = name, recipe.config["seed"], recipe.config["max_duration"]
        points.append(Point("teacher", 0.0, *own, *cost, seconds[name], values[name]))
    ranked = [rank(values, lower_is_better(study.metric))]
    dist.broadcast_object_list(ranked)  # ranks that disagreed would wait for each other
    students = [*study.students(ranked[0])]
    for student in students:
        result = done(student.recipe, _place(student))
        cost = result.batches, result.samples, result.seconds, sum(seconds[name] for name in student.teachers)
        own = student.arm, student.window, "+".join(student.teachers), student.seed, student.length
        points.append(Point(*own, *cost, _value(result, study.metric)))
    progress.finish()
    _report(study, students[0].recipe, points)
    return points


def _done(recipe: Recipe, place: str, metric: str, progress: Progress) -> Result:
    """What the run has done, now or before."""
    from accelerando.recipes.run.results import label

    length = duration(recipe).value
    if result := finished(recipe):
        progress.skip(length)
        return result
    progress.start(place, length)
    result = train(recipe, watch=progress)
    progress.tell(f"{place}: {label(metric)} {_value(result, metric):.4f} after {result.seconds:.1f} s of training")
    return result


def _value(result: Result, metric: str) -> float:
    value = result.metrics.get(metric)
    return math.nan if value is None else value


def _place(student: Student) -> str:
    from accelerando.recipes.run.results import percent

    which = f" ({student.teachers[0]})" if len(student.teachers) == 1 else ""
    window = f" for {percent(student.window)}" if student.teachers else ""
    return f"{student.arm}{which}{window}, {student.length}, seed {student.seed}"


def _report(study: Study, recipe: Recipe, points: Sequence[Point]) -> None:
    from composer.utils import dist

    from accelerando.recipes.curves import lower_is_better
    from accelerando.recipes.distillation_report import draw, quality_table, speedup_table, teacher_table
    from accelerando.recipes.run.files import write_csv, write_yaml
    from accelerando.recipes.speedup import summarize

    folder, metric = study.folder, study.metric
    left: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        rows = summarize(points, "none", lower_is_better(metric))
        with study.source.blame("folder", OSError):
            write_yaml(folder / "config.yaml", study.config)
            write_csv(points, folder / "distillation.csv")
            write_csv(rows, folder / "speedup.csv")
            left = [draw(points, rows, metric, folder / "distillation.png", folder.name), list(map(asdict, rows))]
        for text in (teacher_table(points, metric), quality_table(rows, metric), speedup_table(rows)):
            print(f"\n{text}")
        files = "config.yaml, distillation.csv, speedup.csv, distillation.png"
        print(f"\n{folder}: {files}, a folder for each run", flush=True)
    dist.broadcast_object_list(left)
    tables = {"distillation": [asdict(point) for point in points], "speedup": left[1]}
    log_study(recipe, study.config, tables, left[0])


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, distillation)


if __name__ == "__main__":
    main(sys.argv[1:])
