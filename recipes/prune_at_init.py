"""Pruning at initialization: criteria, their ablations and pruning after training compared, over density.

    composer [-n N] recipes/prune_at_init.py FILE.yaml key=value ...

The file is that of recipes/train.py, which describes the dense training of length T, and

    criteria: {NAME: {...}, ...}   arguments of PruneAtInit, whose criterion is NAME unless given; false leaves one out
    pruning: {...}                 what all share: include, exclude, classifier, scope
    densities: [0.5, 0.2]          shares of the weights that are kept, each trained with each criterion
    ablations: [shuffle, ...]      of which each criterion but random gets a further arm: shuffle, reinitialize, invert
    after_training: {...}          arguments of LotteryTicket, by default {rewind: learning_rate}, for an arm that is
                                   trained, pruned at once by magnitude, and trained again; false leaves it out
    seeds: [17, 18]                everything is trained with each
    tolerance: 0.002               a subnetwork matches whose mean is so much worse than the dense network's at most, in
                                   the metric's own units; null: by one standard deviation over the seeds
    metric: NAME                   by default the first accuracy there is; of errors and losses, less is better

The study's folder, ``{folder}/{run_name}``, then holds `prune_at_init.csv` with every point, `density.csv` with the
means, `prune_at_init.png`, and every run's folder. The same command goes on after a kill, and trains only what is new
after a change of criteria, densities, ablations or seeds. An error in any of it is one line and exit code 2, before
anything is trained; what only the data can tell, such as that they lack labels, comes when it is the arm's turn.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.errors import Source
from accelerando.recipes.config.lookup import nearest
from accelerando.recipes.config.recipe import Recipe
from accelerando.recipes.pruning_plan import (
    DEFAULTS,
    KEYS,
    WHICH,
    Base,
    Runs,
    arguments_of,
    check_base,
    check_rewind,
    check_weights,
    origins,
    points_of,
    refuse_twice,
    report,
)
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.folder import held
from accelerando.recipes.run.training import join_ranks
from accelerando.recipes.variants import own_keys

if TYPE_CHECKING:
    from accelerando.recipes.density_curves import Point

OWN_KEYS = {
    "criteria": dict,
    "pruning": dict,
    "densities": list,
    "ablations": list,
    "after_training": dict | bool,
    **KEYS,
}
OWN_DEFAULTS = {"pruning": {}, "densities": [], "ablations": [], "after_training": {}, **DEFAULTS}
ABLATIONS = ("shuffle", "reinitialize", "invert")
AFTER, AFTER_FOLDER = "magnitude after training", "after_training"


@dataclass(frozen=True)
class Arm:
    """What prunes in its runs: an algorithm's name in a YAML, and its arguments but for the density."""

    name: str
    folder: str  # begins the names of its runs
    algorithm: str
    arguments: dict[str, Any]
    made_from: dict[str, str]
    trainings: float = 1.0  # the length of its runs, in T

    def at(self, density: float) -> dict[str, Any]:
        if self.algorithm == "prune_at_init":
            return {self.algorithm: self.arguments | {"density": density}}
        return {self.algorithm: self.arguments | _one_shot(density)}


@dataclass(frozen=True)
class Study:
    """A checked study."""

    base: Base
    arms: list[Arm]
    densities: list[float]  # falling

    def runs(self, seed: int) -> Iterator[tuple[Arm, int, float, Recipe]]:
        """In all arms by density, whose place, from 1, is the level of its points."""
        for level, density in enumerate(self.densities, 1):
            for arm in self.arms:
                name = f"{arm.folder}-{density:g}"
                yield arm, level, density, self.base.run(name, seed, arm.at(density), arm.made_from)

    def dense(self, seed: int) -> Recipe:
        return self.base.run("dense", seed, {}, {})


def prune_at_init(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Point]:
    """Trains what the config describes and its folder does not hold yet, and reports; returns all points."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]
    join_ranks(study.base.recipe)
    with held(study.base.folder, study.base.source):
        return _do(study)


def _do(study: Study) -> list[Point]:
    from accelerando.recipes.run.results import percent

    base, densities = study.base, len(study.densities)
    count, trainings = 1 + densities * len(study.arms), 1 + densities * sum(arm.trainings for arm in study.arms)
    runs = Runs(base, len(base.seeds) * count, len(base.seeds) * trainings)
    points: list[Point] = []
    for seed in base.seeds:
        points += points_of("dense", seed, 0, runs.do(study.dense(seed), f"dense, seed {seed}"), base.metric)
        for arm, level, density, recipe in study.runs(seed):
            result = runs.do(recipe, f"{arm.name}, {percent(density)}, seed {seed}", arm.trainings)
            *_, point = points_of(arm.name, seed, level, result, base.metric)  # before it the dense network's, if any
            points.append(replace(point, level=level))
    runs.progress.finish()
    report(base, points, "prune_at_init")
    return points


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every run, and builds what prunes in it."""
    own = own_keys(config, source, OWN_KEYS, OWN_DEFAULTS, named="criteria")
    base = check_base(config, source, own, OWN_KEYS)
    densities = sorted(_densities(own["densities"], source), reverse=True)
    fits = {str(ablation) for ablation in own["ablations"]} <= {*ABLATIONS}
    refuse_twice(own["ablations"], source, "ablations", fits, f"of {', '.join(ABLATIONS)}")
    for name in own["pruning"]:
        if name not in WHICH:
            raise source.error(f"pruning.{name}", f"unknown argument{nearest(str(name), WHICH)}")
    arms = [arm for name, given in own["criteria"].items() for arm in _arms(base, name, given, own, densities)]
    if own["after_training"] is not False:
        given = own["after_training"] if isinstance(own["after_training"], dict) else {}
        arms.append(_after_training(base, given, own["pruning"], densities))
    check_weights(base, {arm.made_from[f"algorithms.{arm.algorithm}"]: arm.arguments for arm in arms})
    names = [arm.folder for arm in arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise source.error("criteria", f"several of their runs would be called {twice[0]}; choose other names")
    study = Study(base, arms, densities)
    for seed in base.seeds:
        study.dense(seed)
        for _ in study.runs(seed):
            pass
    return study


def _densities(given: Sequence[Any], source: Source) -> list[float]:
    from accelerando.recipes.run.results import percent

    numbers = [float(share) for share in given if type(share) is float and 0 < share < 1]
    fits = 0 < len(numbers) == len(given) == len({percent(share) for share in numbers})
    refuse_twice(given, source, "densities", fits, "above 0 and below 1, that differ in their first three digits")
    return numbers


def _arms(
    base: Base, name: str, given: Mapping[str, Any], own: Mapping[str, Any], densities: Sequence[float]
) -> list[Arm]:
    """The criterion's own and those of its ablations."""
    from accelerando.algorithms import PruneAtInit
    from accelerando.algorithms.pruning.at_init import Criterion

    source, key = base.source, f"criteria.{name}"
    if name in ("dense", AFTER_FOLDER):
        raise source.error(key, "is what the study calls something else; choose another name")
    known = typing.get_args(Criterion)
    if (criterion := given.get("criterion", name)) not in known:
        where = f"{key}.criterion" if "criterion" in given else key
        raise source.error(where, f"unknown criterion{nearest(str(criterion), known)}")
    _refuse_text(base, key, criterion, given)
    places = {"pruning": own["pruning"], key: given}
    arms = []
    for ablation in (None, *(own["ablations"] if criterion != "random" else [])):
        flags = {ablation: True} if ablation else {}
        added = {"criterion": criterion, "density": densities[0], **flags}
        taken = ("density", "ticket", *ABLATIONS)
        arguments = arguments_of(PruneAtInit, source, places, added, taken)
        labels = [name, ablation] if ablation else [name]
        made_from = origins("prune_at_init", places)
        arms.append(Arm(", ".join(labels), "-".join(labels), "prune_at_init", arguments, made_from))
    return arms


def _refuse_text(base: Base, key: str, criterion: str, arguments: Mapping[str, Any]) -> None:
    """What cannot work with a model that computes its loss itself, from batches by name."""
    from composer.models import HuggingFaceModel

    if criterion != "synflow" and arguments.get("temperature", 1) == 1:
        return
    if isinstance(base.recipe.model.build(), HuggingFaceModel):
        if criterion == "synflow":
            raise base.source.error(key, "synflow feeds images of ones, which this model of text does not take")
        raise base.source.error(f"{key}.temperature", "must be 1 for a model that computes its loss itself")


def _after_training(base: Base, given: Mapping[str, Any], shared: Mapping[str, Any], densities: Sequence[float]) -> Arm:
    from accelerando.algorithms import LotteryTicket

    source, key = base.source, "after_training"
    places = {"pruning": shared, key: given}
    added = {"rewind": given.get("rewind", "learning_rate"), **_one_shot(densities[0])}
    taken = ("levels", "fraction", "schedule", "save_folder")
    arguments = arguments_of(LotteryTicket, source, places, added, taken)
    trainings = 2 - check_rewind(source, key, arguments, base.recipe)
    return Arm(AFTER, AFTER_FOLDER, "lottery_ticket", arguments, origins("lottery_ticket", places), trainings)


def _one_shot(density: float) -> dict[str, Any]:
    """Arguments of the LotteryTicket that prunes to this density at once; the arithmetic schedule does it exactly."""
    return {"levels": 1, "fraction": round(1 - density, 12), "schedule": "arithmetic"}


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, prune_at_init)


if __name__ == "__main__":
    main(sys.argv[1:])
