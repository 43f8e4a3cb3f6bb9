"""From a config with `teachers` and `lengths` to a checked `Study`: its teachers and students, or one `ConfigError`."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import TIME_HINT, check_arguments
from accelerando.recipes.config.errors import REFUSALS, Source, show
from accelerando.recipes.config.loading import merge
from accelerando.recipes.config.recipe import Recipe, check
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.run.folder import identity, refuse_another_run
from accelerando.recipes.variants import (
    as_time,
    changed,
    duration,
    metric_of,
    own_keys,
    refuse_folder_of_a_run,
    without,
)

OWN_KEYS = {
    "teachers": dict,
    "lengths": list,
    "baseline_lengths": list,
    "windows": list,
    "seeds": list,
    "distillation": dict,
    "metric": str | None,
}
DEFAULTS = {
    "lengths": [],
    "baseline_lengths": [],
    "windows": [0.2, 0.5, 1.0],
    "seeds": [17],
    "distillation": {},
    "metric": None,
}
LENGTH = ("max_duration",)  # which for students stands at lengths
SET_BY_ARM = ("teachers", "teachers_per_step", "start", "end")


@dataclass(frozen=True)
class Student:
    """One training run: of `teachers`, by name, in the first `window` of its training."""

    arm: str
    window: float
    teachers: tuple[str, ...]
    length: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A checked study. Its students are known once its teachers are trained and can be ranked."""

    source: Source
    config: dict[str, Any]
    base: DictConfig
    folder: Path
    metric: str  # its full name
    teachers: dict[str, Recipe]
    lengths: list[str]
    baseline_lengths: list[str]  # with the others
    windows: list[float]
    seeds: list[int]
    arguments: dict[str, Any]  # of Distillation

    def students(self, ranked: Sequence[str]) -> Iterator[Student]:
        """All of them; `ranked` are the teachers, the best first.

        What slows the machine for a while shall not slow one arm more than another, so arms take turns within a length,
        and lengths within a seed: neighbours in time are what is compared.
        """
        for seed in self.seeds:
            for length in self.baseline_lengths:
                yield self._student("none", 0.0, (), length, seed)
                for window in self.windows if length in self.lengths else []:
                    for arm, teachers in arms(ranked).items():
                        yield self._student(arm, window, teachers, length, seed)

    def _student(self, arm: str, window: float, teachers: tuple[str, ...], length: str, seed: int) -> Student:
        how = "none"
        changes: dict[str, Any] = {"max_duration": length, "seed": seed}
        if teachers:
            how = f"{self._label(arm, teachers)}-first{window:g}"
            arguments = {
                "teachers": [self.teachers[name].run_name for name in teachers],
                **({"teachers_per_step": 1} if arm == "random" else {}),
                "end": f"{window:g}dur",
            }
            changes["algorithms"] = {"distillation": {**self.arguments, **arguments}}
        changes["run_name"] = f"{self.base['run_name']}/{how}-{length}-seed{seed}"
        recipe = check(merge(self.base, OmegaConf.create(changes)), self.source.inside("lengths", LENGTH))
        return Student(arm, window, teachers, length, seed, recipe)

    def _label(self, arm: str, teachers: Sequence[str]) -> str:
        """Which teachers these are and what they have been made by, as another student must not pass for this one.

        By a single teacher the best and the poorest are taught alike, so that more teachers may change who that is.
        """
        made = "".join(identity(self.teachers[name]) for name in teachers)
        return f"{arm if len(teachers) > 1 else teachers[0]}-{hashlib.sha256(made.encode()).hexdigest()[:6]}"


def arms(ranked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arms beside "none", and their teachers; of a single teacher there is one arm."""
    if len(ranked) == 1:
        return {"best": (ranked[0],)}
    everyone = tuple(sorted(ranked))  # whose order in the file must not make another run
    return {"best": (ranked[0],), "poorest": (ranked[-1],), "ensemble": everyone, "random": everyone}


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every run, and builds the parts of each kind once: what they refuse must not come up after hours."""
    own = own_keys(config, source, OWN_KEYS, DEFAULTS, named="teachers", fixed=("run_name", "folder"), at_once=["seed"])
    lengths, windows = _lengths(own["lengths"], source), _windows(own["windows"], source)
    if own["baseline_lengths"]:  # then all together, which may have another unit or one twice
        _lengths(own["baseline_lengths"], source, "baseline_lengths")
    baseline_lengths = _lengths([*lengths, *own["baseline_lengths"]], source, "baseline_lengths")
    for name in own["distillation"]:
        if name in SET_BY_ARM:
            raise source.error(f"distillation.{name}", "the study sets it for every arm; leave it out")
    base = without(config, OWN_KEYS)
    shared = check(merge(base, OmegaConf.create({"max_duration": lengths[0]})), source.inside("lengths", LENGTH))
    if (shared.config.get("algorithms") or {}).get("distillation", False) is not False:
        hint = "the study adds it to its students; give its arguments at distillation"
        raise source.error("algorithms.distillation", hint)
    if shared.eval_data is None:
        raise source.error("eval_data", "missing; quality is what is evaluated there")
    teachers = {name: _teacher(base, source, name, own, lengths[0]) for name in own["teachers"]}
    given: Any = OmegaConf.to_container(config)
    refuse_folder_of_a_run(shared.folder, source)
    metric = _build_once(shared, teachers, own)
    study = Study(
        source=source,
        config=given,
        base=base,
        folder=shared.folder,
        metric=metric,
        teachers=teachers,
        lengths=lengths,
        baseline_lengths=baseline_lengths,
        windows=windows,
        seeds=own["seeds"],
        arguments=own["distillation"],
    )
    for _ in study.students(list(teachers)):  # whoever of them will be the best
        pass
    return study


def _teacher(base: DictConfig, source: Source, name: str, own: Mapping[str, Any], length: str) -> Recipe:
    # By its name, so that it stays the same beside others; it shall not begin with a student's weights.
    seed = own["teachers"][name].get("seed", zlib.crc32(name.encode()) % 1_000_000)
    changes = {"seed": seed, "run_name": f"{base['run_name']}/teacher-{name}"}
    merged, source = changed(base, source, f"teachers.{name}", own["teachers"][name], changes)
    recipe = check(merged, source)
    if seed in own["seeds"]:
        raise source.error("seed", f"{seed} is that of a student, which would begin alike; choose another one")
    if recipe.eval_data is None:
        raise source.error("eval_data", "missing; the teachers are ranked by what is evaluated there")
    if duration(recipe).unit != as_time(length).unit:
        raise source.error("max_duration", f"{recipe.config['max_duration']} given; expected the unit of lengths")
    refuse_another_run(recipe, as_long=True)
    return recipe


def _build_once(shared: Recipe, teachers: Mapping[str, Recipe], own: Mapping[str, Any]) -> str:
    """Returns the metric, which students and teachers have."""
    from accelerando.algorithms import Distillation, MultiplicativeCyclicScheduler

    source = shared.source
    metric = metric_of(shared, own["metric"], errors=True)
    for recipe in (shared, *teachers.values()):
        metric_of(recipe, metric, errors=True)
        scheduler = recipe.scheduler.build() if recipe.scheduler else None
        build_algorithms(recipe, scheduler)
        if isinstance(scheduler, MultiplicativeCyclicScheduler):
            for length in (
                [*own["lengths"], *own["baseline_lengths"]] if recipe is shared else [recipe.config["max_duration"]]
            ):
                with recipe.source.blame("scheduler", ValueError):
                    scheduler.check_duration(length)
    wanted, models = _classes(shared.model.build()), [recipe.model.build() for recipe in teachers.values()]
    for recipe, model in zip(teachers.values(), models, strict=True):
        if (found := _classes(model)) != wanted and None not in (found, wanted):
            raise recipe.source.error("model", f"makes logits of {found} classes, where the student's have {wanted}")
    with source.blame("distillation", *REFUSALS):
        Distillation(models, **check_arguments(Distillation, own["distillation"], supplied=1))
    return metric


def _classes(model: Any) -> int | None:
    """Of its logits, as far as it tells."""
    config = getattr(model, "config", None)
    if config is None:
        return getattr(model, "num_classes", None)
    return config.vocab_size if type(model.model).__name__.endswith("LM") else config.num_labels


def _lengths(given: list[Any], source: Source, key: str = "lengths") -> list[str]:
    """From the shortest to the longest."""
    try:
        times = [as_time(length) if isinstance(length, str) else None for length in given]
    except (ValueError, TypeError):
        times = [None]
    known = [time for time in times if time is not None and time.value > 0]
    texts = {time.to_timestring() for time in known}
    if not known or len(texts) < len(given) or len({time.unit for time in known}) > 1:
        hint = f"expected different ones, each {TIME_HINT.replace(' or 0.5dur', '')}, all in one unit"
        raise source.error(key, f"{show(given)} given; {hint}")
    return [time.to_timestring() for time in sorted(known)]


def _windows(given: list[Any], source: Source) -> list[float]:
    numbers = [float(share) for share in given if type(share) in (int, float) and 0 < share <= 1]
    named = {f"{share:g}" for share in numbers}  # in the names of folders
    if not numbers or len(numbers) < len(given) or len(named) < len(numbers):
        hint = "expected different shares of the training, above 0 and at most 1"
        raise source.error("windows", f"{show(given)} given; {hint}")
    return sorted(numbers)
