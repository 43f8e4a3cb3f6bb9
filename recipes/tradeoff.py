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
seeds. An error in any arm is one line and exit code 2, before anything is trained.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config import Recipe, check, merge, takes_scheduler
from accelerando.recipes.folder import finished
from accelerando.recipes.names import Source, check_value, show
from accelerando.recipes.train import build_loggers, command_line, train

if TYPE_CHECKING:
    from composer.core import Time

    from accelerando.algorithms import MultiplicativeCyclicScheduler
    from accelerando.recipes.curves import Point
    from accelerando.recipes.report import Result

OWN_KEYS = {"arms": dict, "seeds": list[int], "compare_standard": bool, "window": str, "metric": str | None}
DEFAULTS = {"seeds": [17], "compare_standard": False, "window": "5ep", "metric": None}
# What these do follows the share of the whole run that is over, so a cycle's end is not the end of a shorter run.
BOUND_TO_THE_LENGTH = {"GyroDropout", "LayerFreezing", "ProgressiveResizing", "SeqLengthWarmup", "SWA"}


@dataclass(frozen=True)
class Run:
    """One training run of a study; a standard run is as long as the cycles up to `cycle` take."""

    arm: str
    seed: int
    schedule: str  # "cyclic" or "standard"
    cycle: int  # its first
    recipe: Recipe

    @property
    def duration(self) -> Time:
        return _time(self.recipe.trainer["max_duration"])


@dataclass(frozen=True)
class Study:
    """A checked study: its cycles' ends as time strings, and its runs arm by arm, the baseline's first."""

    source: Source
    config: dict[str, Any]
    folder: Path
    metric: str | None
    window: int  # in the unit of the ends
    ends: list[str]
    runs: list[Run]


def tradeoff(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Point]:
    """Trains what the config describes and its folder does not hold yet, and reports; returns all points."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]

    from composer.utils import dist, get_device

    from accelerando.recipes.curves import choose_metric, points_of
    from accelerando.recipes.progress import Progress

    trainer = study.runs[0].recipe.trainer
    if dist.get_world_size() > 1:
        dist.initialize_dist(get_device(trainer.get("device")), trainer.get("dist_timeout", 300.0))
    progress = Progress(sum(run.duration.value for run in study.runs))
    points: list[Point] = []
    metric = ""
    for number, run in enumerate(study.runs, 1):
        if result := _finished(run):
            progress.skip(run.duration.value)
        else:
            alone = f", alone for {study.ends[run.cycle]}" if run.schedule == "standard" else ""
            place = f"run {number} of {len(study.runs)}: {run.arm}, seed {run.seed}{alone}"
            progress.start(place, run.duration.value, 1 if alone else len(study.ends))
            result = train(run.recipe, watch=progress)
        with study.source.blame("metric", ValueError):
            metric = choose_metric(result.metrics, study.metric)
        names = {"arm": run.arm, "seed": run.seed, "schedule": run.schedule, "first_cycle": run.cycle}
        window = round(study.window * result.batches / run.duration.value)
        points += points_of(result.records, metric, study.ends, window, **names)
    progress.finish()
    _report(study, points, metric)
    return points


def _finished(run: Run) -> Result | None:
    """All ranks must agree, as they wait for each other in training."""
    from composer.utils import dist

    found = [finished(run.recipe) if dist.get_global_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every arm, and lists the runs."""
    own = _own_keys(config, source)
    base = OmegaConf.masked_copy(config, [str(key) for key in config if key not in OWN_KEYS])
    runs: list[Run] = []
    ends: dict[str, list[str]] = {}
    for arm, changes in own["arms"].items():
        for seed in own["seeds"]:
            runs.append(run := _cyclic_run(base, source, arm, changes, seed))
            ends[arm] = _ends(run)
            if own["compare_standard"]:
                runs += [_standard_run(run, cycle, end) for cycle, end in enumerate(ends[arm])]
        if ends[arm] != ends[runs[0].arm]:
            raise source.error(f"arms.{arm}", f"its cycles do not end where those of {runs[0].arm} do")
    with source.blame("window", ValueError, TypeError):
        window = _time(own["window"])
    if window.unit != runs[0].duration.unit:
        raise source.error("window", f"{own['window']} given; expected the unit of max_duration")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    folder = runs[0].recipe.folder.parent
    return Study(source, plain, folder, own["metric"], window.value, ends[runs[0].arm], runs)


def _own_keys(config: DictConfig, source: Source) -> dict[str, Any]:
    if not isinstance(config.get("run_name"), str):
        raise source.error("run_name", "missing; expected the name of the study's folder")
    given: Any = OmegaConf.to_container(config)
    own = DEFAULTS | {key: given[key] for key in OWN_KEYS if key in given}
    if not own.get("arms"):
        raise source.error("arms", "missing; expected names, each with what it changes, such as {baseline: {}, ...}")
    with source.blame(""):
        for key, kind in OWN_KEYS.items():
            check_value(key, kind, own[key])
    if not own["seeds"] or len(set(own["seeds"])) < len(own["seeds"]):
        raise source.error("seeds", f"{own['seeds']} given; expected different whole numbers")
    arms = {str(arm): {} if changes is None else changes for arm, changes in own["arms"].items()}
    own["arms"] = {arm: changes for arm, changes in arms.items() if changes is not False}
    if not own["arms"]:
        raise source.error("arms", "each of them is false; expected one at least")
    for arm, changes in own["arms"].items():
        if not isinstance(changes, dict):
            hint = "expected what it changes as a mapping, {} for nothing, or false to leave it out"
            raise source.error(f"arms.{arm}", f"{show(changes)} given; {hint}")
        if not re.fullmatch(r"\w[\w.+-]*", arm):
            raise source.error(f"arms.{arm}", "expected a name of letters, digits, _, ., + and -: it becomes a folder")
    return own


def _cyclic_run(base: DictConfig, source: Source, arm: str, changes: dict[str, Any], seed: int) -> Run:
    own = {"seed": seed, "algorithms": {"tradeoff_curve": {}}, "run_name": f"{base['run_name']}/{arm}-seed{seed}"}
    merged = merge(merge(copy.deepcopy(base), OmegaConf.create(changes)), OmegaConf.create(own))
    source = replace(source, part=f"arms.{arm}", moved=frozenset(changes))
    recipe = check(merged, source)
    scheduler = _scheduler(recipe)
    for part in recipe.algorithms:
        if part.target.__name__ in BOUND_TO_THE_LENGTH:
            hint = "follows the length of the whole run, so the end of a cycle is not that of a run of its own"
            raise source.error(part.key, hint)
        # What a constructor refuses must not come up when other arms have been trained.
        part.build(scheduler) if takes_scheduler(part.target) else part.build()
    return Run(arm, seed, "cyclic", 0, recipe)


def _scheduler(recipe: Recipe) -> MultiplicativeCyclicScheduler:
    from accelerando.algorithms import MultiplicativeCyclicScheduler

    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    if not isinstance(scheduler, MultiplicativeCyclicScheduler):
        raise recipe.source.error("scheduler", "expected multiplicative_cyclic, whose cycles are what is compared")
    return scheduler


def _ends(run: Run) -> list[str]:
    scheduler, source = _scheduler(run.recipe), run.recipe.source
    if scheduler.unit != run.duration.unit:
        given, unit = run.duration.to_timestring(), scheduler.unit.value
        raise source.error("max_duration", f"{given} given; expected it in {unit}, as t_period is")
    with source.blame("max_duration", ValueError):
        scheduler.check_duration(run.duration)
    ends = (math.ceil(end) for end in scheduler.cycle_ends())
    return [f"{end}{scheduler.unit.value}" for end in takewhile(lambda end: end <= run.duration.value, ends)]


def _standard_run(run: Run, cycle: int, end: str) -> Run:
    """With the cyclic run's own scheduler, in its first and only cycle."""
    config = run.recipe.config
    ((name, arguments),) = config["scheduler"].items()
    period = _time(end).value - _scheduler(run.recipe).t_warmup.value
    changes = {
        "run_name": f"{config['run_name']}-alone-{end}",
        "max_duration": end,
        "scheduler": {name: arguments | {"t_period": f"{period}{run.duration.unit.value}"}},
    }
    return Run(run.arm, run.seed, "standard", cycle, check(config | changes, run.recipe.source))


def _time(value: Any) -> Time:
    from composer.core import TimeUnit, ensure_time

    return ensure_time(value, TimeUnit.EPOCH)


def _report(study: Study, points: list[Point], metric: str) -> None:
    from composer.utils import dist

    from accelerando.recipes.curves import budget_table, comparison_table, comparisons, draw, write_csv
    from accelerando.recipes.report import write

    folder, baseline = study.folder, study.runs[0].arm
    pixels: list[Any] = [None]
    if dist.get_global_rank() == 0:
        with study.source.blame("folder", OSError):
            write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(study.config)).encode())
            write_csv(points, folder / "tradeoff.csv")
            pixels = [draw(points, metric, folder / "tradeoff.png", folder.name)]
            compared = comparisons(points, baseline)
            if compared:
                write_csv(compared, folder / "comparison.csv")
        print(f"\n{budget_table(points, metric, baseline)}\n")
        if compared:
            print(f"{comparison_table(points, metric, baseline)}\n")
        files = "config.yaml, tradeoff.csv, tradeoff.png" + (", comparison.csv" if compared else "")
        print(f"{folder}: {files}, a folder for each run", flush=True)
    dist.broadcast_object_list(pixels)
    _log(study, points, pixels[0])


def _log(study: Study, points: list[Point], pixels: Any) -> None:
    """The table and the figure, in a run of the study's own, by whatever loggers the config has."""
    import torch
    from composer.core import Engine, Event, State
    from composer.loggers import Logger
    from composer.utils import get_device

    recipe = replace(study.runs[0].recipe, run_name=study.config["run_name"], folder=study.folder)
    if not (destinations := build_loggers(recipe)):
        return
    device = get_device(recipe.trainer.get("device"))
    state = State(torch.nn.Module(), 0, recipe.run_name, device, callbacks=destinations)
    logger = Logger(state, destinations)
    engine = Engine(state, logger)
    engine.run_event(Event.INIT)
    logger.log_hyperparameters(study.config)
    rows = [asdict(point) for point in points]
    logger.log_table(list(rows[0]), [list(row.values()) for row in rows], name="tradeoff")
    logger.log_images(pixels, name="tradeoff", channels_last=True, use_table=False)
    engine.close()


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, tradeoff)


if __name__ == "__main__":
    main(sys.argv[1:])
