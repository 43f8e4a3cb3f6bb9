"""What the studies of pruning share: what all runs have, the arguments of what prunes, runs as points, the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import check_arguments
from accelerando.recipes.config.errors import REFUSALS, ArgumentError, ConfigError, Source, show
from accelerando.recipes.config.loading import merge
from accelerando.recipes.config.recipe import Recipe, check
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.run.folder import finished, refuse_another_run
from accelerando.recipes.run.loggers import log_study
from accelerando.recipes.run.teachers import as_in_training, untouched_generators
from accelerando.recipes.run.training import train
from accelerando.recipes.studies.core import as_time, duration, has_times_in_dur
from accelerando.recipes.variants import metric_of, refuse_folder_of_a_run, without

if TYPE_CHECKING:
    from accelerando.recipes.density_curves import Point
    from accelerando.recipes.run.results import Result

KEYS = {"seeds": list, "tolerance": float | None, "metric": str | None}
DEFAULTS = {"seeds": [17], "tolerance": 0.002, "metric": None}
WHICH = ("include", "exclude", "classifier", "scope")  # arguments of all that prunes


@dataclass(frozen=True)
class Base:
    """What all runs of a study have; `recipe` is the dense training, and its folder that of the study."""

    source: Source
    config: dict[str, Any]  # the study's own, as given
    shared: DictConfig
    recipe: Recipe
    metric: str  # its full name
    tolerance: float | None
    seeds: list[int]

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    def name(self, name: str, seed: int) -> str:
        return f"{self.recipe.run_name}/{name}-seed{seed}"

    def run(
        self, name: str, seed: int, algorithms: Mapping[str, Any], made_from: Mapping[str, str], other_seed: int = 0
    ) -> Recipe:
        """The dense training with these algorithms too; refused if the folder holds another run.

        `made_from` has the study's key for each of the run's, as that is where an error lies; `other_seed` is added to
        the seed, but not in the name.
        """
        changes = {"run_name": self.name(name, seed), "seed": seed + other_seed, "algorithms": algorithms}
        with _renamed(self.source, {**made_from, "seed": "seeds"}):
            recipe = check(merge(self.shared, OmegaConf.create(changes)), self.source)
            refuse_another_run(recipe, as_long=True)
        return recipe


@contextmanager
def _renamed(source: Source, names: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        for there, here in names.items():
            if f"{error.key}.".startswith(f"{there}."):
                raise source.error(here + error.key.removeprefix(there), error.message) from error
        raise


def check_base(config: DictConfig, source: Source, own: Mapping[str, Any], keys: Collection[str]) -> Base:
    """Builds each part of the dense training once: what they refuse must not come up after hours."""
    from composer.core import TimeUnit

    from accelerando.algorithms.host import bound_to_the_length
    from accelerando.algorithms.pruning.sparsity import Pruning

    if (tolerance := own["tolerance"]) is not None and not 0 <= tolerance < math.inf:
        raise source.error("tolerance", f"{tolerance} given; expected 0 or more, or null for one standard deviation")
    if tolerance is None and len(own["seeds"]) < 2:
        raise source.error("tolerance", "null is one standard deviation over seeds; give two seeds or more")
    recipe = check(shared := without(config, keys), source)
    if recipe.eval_data is None:
        raise source.error("eval_data", "missing; what a subnetwork is worth is evaluated there")
    if duration(recipe).unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
        raise source.error("max_duration", f"{recipe.config['max_duration']} given; expected it in ep or ba")
    refuse_folder_of_a_run(recipe.folder, source)
    algorithms = build_algorithms(recipe, recipe.scheduler.build() if recipe.scheduler else None)
    for part, algorithm in zip(recipe.algorithms, algorithms, strict=True):
        if isinstance(algorithm, Pruning):
            raise source.error(part.key, "the study adds what prunes; leave it out")
        if bound_to_the_length(algorithm) or has_times_in_dur(part.arguments):
            raise source.error(part.key, "follows the length of the whole run, which may hold several trainings")
    metric = metric_of(recipe, own["metric"], errors=True)
    given: Any = OmegaConf.to_container(config)
    return Base(source, given, shared, recipe, metric, tolerance, own["seeds"])


def arguments_of(
    kind: Any, source: Source, places: Mapping[str, Mapping[str, Any]], added: Mapping[str, Any], taken: Collection[str]
) -> dict[str, Any]:
    """The arguments that stand at one or more keys, of which the last counts; checked with those that are `added`.

    Those in `taken` may not be given. The thing is built, as its constructor has more to say.
    """
    arguments: dict[str, Any] = {}
    key, where = "", dict[str, str]()
    for key, given in places.items():
        arguments |= given
        where |= dict.fromkeys(given, key)
    for name in arguments.keys() & set(taken):
        raise source.error(f"{where[name]}.{name}", "the study sets it for every run; leave it out")
    try:
        checked = check_arguments(kind, {**arguments, **added})
    except ArgumentError as error:
        raise source.error(f"{where.get(error.name, key)}.{error.name}", error.message) from error
    try:
        kind(**checked)
    except REFUSALS as error:
        named = [name for name in where if f" {name} must " in str(error)]
        with source.blame(f"{where[named[0]]}.{named[0]}" if named else key, *REFUSALS):
            raise
    return {**arguments, **added}


def origins(name: str, places: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where the arguments of the algorithm `name` in a run's config stand in the study's."""
    here = f"algorithms.{name}"
    each = {f"{here}.{argument}": f"{key}.{argument}" for key, given in places.items() for argument in given}
    return each | {here: list(places)[-1]}


def chosen_by(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that say which weights may be pruned."""
    return {name: arguments[name] for name in ("include", "exclude", "classifier") if name in arguments}


def check_weights(base: Base, arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """That all of them, by the key where they stand, choose weights that the model has."""
    from accelerando.algorithms.pruning import prunable_weights

    with untouched_generators():
        model = as_in_training(base.recipe.model, base.recipe.algorithms)
    for key, given in arguments.items():
        with base.source.blame(key, ValueError):
            prunable_weights(model, **chosen_by(given))


def check_rewind(source: Source, key: str, arguments: Mapping[str, Any], recipe: Recipe) -> float:
    """The share of the training at which a LotteryTicket's step k lies, as far as its unit tells."""
    k, length = as_time(arguments.get("rewind_to", "0ba")), duration(recipe)
    if k.unit != length.unit:
        return 0.0
    if k.value >= length.value:
        raise source.error(f"{key}.rewind_to", f"{k.to_timestring()} given; expected less than max_duration")
    return k.value / length.value


def refuse_twice(given: Sequence[Any], source: Source, key: str, fits: bool, expected: str) -> None:
    """An error unless what is given `fits`, and each is given once."""
    if not fits or len({str(one) for one in given}) < len(given):
        raise source.error(key, f"{show(list(given))} given; expected different ones, {expected}")


class Runs:
    """Trains one run of a study after the other, unless it is done, and tells how far the study is."""

    def __init__(self, base: Base, count: int, trainings: float):
        from accelerando.recipes.run.progress import Progress

        self.metric, self.count, self.numbers = base.metric, count, itertools.count(1)
        self.progress = Progress(trainings, base.metric)

    def do(self, recipe: Recipe, place: str, trainings: float = 1.0, levels: int = 0) -> Result:
        """What the run has done, now or before; it lasts so many `trainings`. Each of the `levels` is told of."""
        from accelerando.recipes.run.results import label

        place = f"run {next(self.numbers)} of {self.count}: {place}"
        if result := is_done(recipe):
            self.progress.skip(trainings)
            return result
        self.progress.start(place, trainings, levels + 1)
        result = train(recipe, watch=self.progress)
        if not levels:
            value = _number(result.metrics.get(self.metric))
            self.progress.tell(f"{place}: {label(self.metric)} {value:.4f} after {result.seconds:.1f} s of training")
        return result


def is_done(recipe: Recipe) -> Result | None:
    """What the run has done, if it is finished and tells all that a point needs."""
    from accelerando.algorithms.pruning.sparsity import Pruning

    prunes = any(isinstance(part.target, type) and issubclass(part.target, Pruning) for part in recipe.algorithms)
    result = finished(recipe)
    return result if result and (result.size or not prunes) else None


def points_of(arm: str, seed: int, level: int, result: Result, metric: str) -> list[Point]:
    """Those of a LotteryTicket's levels, from the dense network's on; of any other run one, that of `level`."""
    if result.levels is None:
        return [_point(arm, seed, level, vars(result), result.metrics.get(metric), result.size)]
    name = metric.partition("/")[2]
    return [_point(arm, seed, own["level"], own, own.get(name), own if own["level"] else None) for own in result.levels]


def _point(
    arm: str, seed: int, level: int, cost: Mapping[str, Any], value: float | None, size: Mapping[str, Any] | None
) -> Point:
    from accelerando.recipes.density_curves import DENSE, Point

    spent = int(cost["batches"]), int(cost["samples"]), float(cost["seconds"])
    if size is None:
        return Point(DENSE, seed, 0, 1.0, *spent, _number(value), 1.0, 1.0)
    ratios = size["compression_ratio"], size.get("speedup", size.get("theoretical_speedup"))
    # Of a run whose multiply-adds nobody could count there is no speedup; otherwise none is an infinite one.
    none = math.inf, math.nan if size.get("multiply_adds", 0) is None else math.inf
    infinite = (other if ratio is None else float(ratio) for ratio, other in zip(ratios, none, strict=True))
    return Point(arm, seed, level, size["density"], *spent, _number(value), *infinite)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def report(base: Base, points: Sequence[Point], name: str) -> None:
    """Writes `name`.csv and .png and density.csv, prints what matches the dense network, and logs all that."""
    from composer.utils import dist

    from accelerando.recipes.density_curves import draw, means, table
    from accelerando.recipes.run.files import write_csv, write_yaml
    from accelerando.recipes.studies.core import lower_is_better

    folder, metric = base.folder, base.metric
    rows = means(points, lower_is_better(metric), base.tolerance)
    pixels: list[Any] = [None]
    if dist.get_global_rank() == 0:
        with base.source.blame("folder", OSError):
            write_yaml(folder / "config.yaml", base.config)
            write_csv(points, folder / f"{name}.csv")
            write_csv(rows, folder / "density.csv")
            pixels = [draw(rows, metric, folder / f"{name}.png", folder.name)]
        print(f"\n{table(rows, metric)}\n")
        print(f"{folder}: config.yaml, {name}.csv, density.csv, {name}.png, a folder for each run", flush=True)
    dist.broadcast_object_list(pixels)
    tables = {name: [asdict(point) for point in points], "density": [asdict(row) for row in rows]}
    log_study(replace(base.recipe, folder=folder / "any"), base.config, tables, pixels[0])
