"""From a config with `arms` and `seeds` to a checked `Study`: all its runs, or one `ConfigError`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import TIME_HINT
from accelerando.recipes.config.errors import Source, show
from accelerando.recipes.config.recipe import Recipe, check
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.variants import (
    as_time,
    changed,
    duration,
    has_times_in_dur,
    metric_of,
    own_keys,
    refuse_folder_of_a_run,
    without,
)

if TYPE_CHECKING:
    from composer.core import Time

    from accelerando.algorithms import MultiplicativeCyclicScheduler

OWN_KEYS = {"arms": dict, "seeds": list, "compare_standard": bool, "window": Any, "metric": str | None}
DEFAULTS = {"seeds": [17], "compare_standard": False, "window": "5ep", "metric": None}


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
        return duration(self.recipe)


@dataclass(frozen=True)
class Study:
    """A checked study: its cycles' ends as time strings, and its runs arm by arm, the baseline's first."""

    source: Source
    config: dict[str, Any]
    folder: Path
    metric: str  # its full name
    window: int  # in the unit of the ends
    ends: list[str]
    runs: list[Run]


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every arm, and lists the runs."""
    own = own_keys(config, source, OWN_KEYS, DEFAULTS, named="arms")
    base = without(config, OWN_KEYS)
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
    if (window := _window(own["window"], source)).unit != runs[0].duration.unit:
        raise source.error("window", f"{own['window']} given; expected the unit of max_duration")
    given: Any = OmegaConf.to_container(config)
    folder = runs[0].recipe.folder.parent
    refuse_folder_of_a_run(folder, source)
    return Study(source, given, folder, _metric(runs, own["metric"]), window.value, ends[runs[0].arm], runs)


def _window(value: Any, source: Source) -> Time:
    try:
        window = as_time(value) if isinstance(value, str) else None
    except (ValueError, TypeError):
        window = None
    if window is None or window.value < 0:
        raise source.error("window", f"{show(value)} given; expected {TIME_HINT}, not below zero")
    return window


def _cyclic_run(base: DictConfig, source: Source, arm: str, changes: dict[str, Any], seed: int) -> Run:
    own = {"seed": seed, "run_name": f"{base['run_name']}/{arm}-seed{seed}"}
    merged, source = changed(base, source, f"arms.{arm}", changes, own)
    config = check(merged, source).config
    algorithms = config.get("algorithms") or {}
    recipe = check(config | {"algorithms": {**algorithms, "tradeoff_curve": {}}}, source)
    if recipe.eval_data is None:
        raise source.error("eval_data", "missing; a curve is made of evaluations")
    if recipe.trainer.get("scale_schedule_ratio", 1) != 1:
        raise source.error(
            "scale_schedule_ratio", "stretches the cycles; give max_duration and t_period as they shall be"
        )
    from accelerando.algorithms.host import BOUND_TO_THE_LENGTH

    for part in recipe.algorithms:
        bound = isinstance(part.target, type) and issubclass(part.target, BOUND_TO_THE_LENGTH)
        if bound or has_times_in_dur(part):
            hint = "follows the length of the whole run, so the end of a cycle is not that of a run of its own"
            raise source.error(part.key, hint)
    return Run(arm, seed, "cyclic", 0, recipe)


def _metric(runs: list[Run], wanted: str | None) -> str:
    """The metric that all arms have; what a constructor refuses must not come up when other arms have been trained."""
    metric = ""
    for recipe in {run.arm: run.recipe for run in runs}.values():
        build_algorithms(recipe, _scheduler(recipe))
        metric = metric_of(recipe, wanted)
    return metric


def _scheduler(recipe: Recipe) -> MultiplicativeCyclicScheduler:
    from accelerando.algorithms import MultiplicativeCyclicScheduler

    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    if not isinstance(scheduler, MultiplicativeCyclicScheduler):
        raise recipe.source.error("scheduler", "expected multiplicative_cyclic, whose cycles are what is compared")
    return scheduler


def _ends(run: Run) -> list[str]:
    scheduler, source = _scheduler(run.recipe), run.recipe.source
    unit, duration = scheduler.unit.value, run.duration
    if unit == "dur":
        raise source.error("scheduler", "its times are in dur; give them as max_duration is, in ep, ba, sp or tok")
    if scheduler.unit != duration.unit:
        given = duration.to_timestring()
        raise source.error("max_duration", f"{given} given; expected it in {unit}, as t_period is")
    ends = [*takewhile(lambda end: math.ceil(end) <= duration.value, scheduler.cycle_ends())]
    if unit == "ep" and (parts := [end for end in ends if end != math.ceil(end)]):
        hint = "Composer's runs last whole ones; give max_duration and the scheduler's times in ba"
        raise source.error("scheduler", f"a cycle ends after {float(parts[0]):g} epochs, but {hint}")
    with source.blame("max_duration", ValueError):
        scheduler.check_duration(duration)
    return [f"{math.ceil(end)}{unit}" for end in ends]


def _standard_run(run: Run, cycle: int, end: str) -> Run:
    """With the cyclic run's own scheduler, in its first and only cycle."""
    config = run.recipe.config
    ((name, arguments),) = config["scheduler"].items()
    period = as_time(end).value - _scheduler(run.recipe).t_warmup.value
    changes = {
        "run_name": f"{config['run_name']}-alone-{end}",
        "max_duration": end,
        "scheduler": {name: arguments | {"t_period": f"{period}{run.duration.unit.value}"}},
    }
    return Run(run.arm, run.seed, "standard", cycle, check(config | changes, run.recipe.source))
