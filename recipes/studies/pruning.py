"""What the studies of pruning share: the base run, the arguments of what prunes, and the rows of levels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, ArgumentError, Source
from ..config.recipe import Recipe
from .core import Base, Study, Train, as_time, duration, row_of
from .table import Row

if TYPE_CHECKING:
    from ..run.results import Result

DENSE = "dense"
WHICH = ("include", "exclude", "classifier", "scope")  # arguments of all that prunes
SIZES = ("compression_ratio", "speedup")


@dataclass(kw_only=True)
class PruningStudy(Study):
    """A study whose base run is the dense training.

    Its keys besides: `tolerance`, how much worse than the dense network's mean a subnetwork's may be that matches it,
    in the metric's own units, or null for one standard deviation over the seeds; `metric`, by default the first
    accuracy there is, of errors and losses less is better.
    """

    tolerance: float | None = 0.002

    def prepare(self, base: Base) -> None:
        """Checks that the base run is evaluated, and that nothing in it prunes or follows the whole run's length."""
        from composer.core import TimeUnit

        from accelerando.algorithms.host import bound_to_the_length
        from accelerando.algorithms.pruning.sparsity import Pruning

        source, recipe = base.source, base.recipe
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise source.error("tolerance", f"{self.tolerance} given; expected 0 or more, or null for one deviation")
        if self.tolerance is None and len(self.seeds) < 2:
            raise source.error("tolerance", "null is one standard deviation over seeds; give two seeds or more")
        base.needs_evaluation(recipe, "what a subnetwork is worth is evaluated there")
        if duration(recipe).unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
            raise source.error("max_duration", f"{recipe.config['max_duration']} given; expected it in ep or ba")
        for part, algorithm in zip(recipe.algorithms, base.algorithms_of(recipe), strict=True):
            if isinstance(algorithm, Pruning):
                raise source.error(part.key, "the study adds what prunes; leave it out")
            if bound_to_the_length(algorithm) or has_times_in_dur(part.arguments):
                raise source.error(part.key, "follows the length of the whole run, which may hold several trainings")
        self.metric = base.metric_of(recipe, self.metric)

    def dense(self, seed: int) -> Train:
        """The base run itself."""
        return Train(name=f"{DENSE}-seed{seed}", sets={"seed": seed}, tags={"arm": DENSE, "seed": seed, "density": 1.0})

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """Of a LotteryTicket one for each level, level 0 being the dense network; of any other run one."""
        if (levels := result.found.get("levels")) is None:
            size = result.found.get("size") or {"density": 1.0, **dict.fromkeys(SIZES, 1.0)}
            yield with_size(row_of(node, result), size)
            return
        for level in levels:
            tags = {**node.tags, "level": level["level"]}
            cost = {"batches": int(level["batches"]), "samples": int(level["samples"]), "seconds": level["seconds"]}
            metrics = {f"metrics/{name}": number(v) for name, v in level.items() if name.startswith("eval/")}
            row = Row(node=node.name, tags=tags, **cost, metrics=metrics)
            if level["level"] == 0:
                tags["arm"], size = DENSE, {"density": 1.0, **dict.fromkeys(SIZES, 1.0)}
            else:
                size = level
            yield with_size(row, size)


def with_size(row: Row, size: Mapping[str, Any]) -> Row:
    """The row with the density among its tags, and with compression ratio and theoretical speed-up.

    Of a run whose multiply-adds nobody could count there is no speed-up; otherwise none is an infinite one.
    """
    speedup = size.get("speedup", size.get("theoretical_speedup"))
    unknown = size.get("multiply_adds", 0) is None
    ratios = {
        "compression_ratio": number(size["compression_ratio"], math.inf),
        "speedup": number(speedup, math.nan if unknown else math.inf),
    }
    costs = {"batches": row.batches, "samples": row.samples, "seconds": row.seconds}
    return Row(node=row.node, tags={**row.tags, "density": size["density"]}, **costs, metrics={**row.metrics, **ratios})


def number(value: float | None, absent: float = math.nan) -> float:
    """What a file has as null is not finite."""
    return absent if value is None else float(value)


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
        blamed = [name for name in where if f" {name} must " in str(error)]
        with source.blame(f"{where[blamed[0]]}.{blamed[0]}" if blamed else key, *REFUSALS):
            raise
    return {**arguments, **added}


def origins(name: str, places: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where the arguments of the algorithm `name` in a run's config stand in the study's block."""
    here = f"algorithms.{name}"
    each = {f"{here}.{argument}": f"{key}.{argument}" for key, given in places.items() for argument in given}
    return each | {here: list(places)[-1]}


def check_weights(base: Base, arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises an error where some of them, by the key where they stand, choose no weights that the model has."""
    from accelerando.algorithms.pruning import prunable_weights

    from ..run.teachers import as_in_training, untouched_generators

    with untouched_generators():
        model = as_in_training(base.recipe.model, base.recipe.algorithms)
    for key, given in arguments.items():
        with base.source.blame(key, ValueError):
            prunable_weights(model, **chosen_by(given))


def chosen_by(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that say which weights may be pruned."""
    return {name: arguments[name] for name in ("include", "exclude", "classifier") if name in arguments}


def check_rewind(source: Source, key: str, arguments: Mapping[str, Any], recipe: Recipe) -> float:
    """The share of the training at which a LotteryTicket's step k lies, as far as its unit tells."""
    k, length = as_time(arguments.get("rewind_to", "0ba")), duration(recipe)
    if k.unit != length.unit:
        return 0.0
    if k.value >= length.value:
        raise source.error(f"{key}.rewind_to", f"{k.to_timestring()} given; expected less than max_duration")
    return k.value / length.value


def has_times_in_dur(arguments: Mapping[str, Any]) -> bool:
    """Whether one is a share of the whole run's length, other than its beginning."""
    times = [value for value in arguments.values() if isinstance(value, str) and value.endswith("dur")]
    return any(as_time(time).value > 0 for time in times)
