"""What the studies of pruning share: the base run, the arguments of what prunes, and the rows of levels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, ArgumentError, Source
from ..config.recipe import Recipe
from ..run.results import percent
from .claims import Claim, judge_each
from .core import Base, Study, Train, as_time, duration, has_times_in_dur, lower_is_better, on_validation_data, row_of
from .density import DENSE, Mean, dense_of, means, table
from .statistics import Difference, paired
from .table import Row, by_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

WHICH = ("include", "exclude", "classifier", "scope")  # arguments of all that prunes
SIZES = ("compression_ratio", "speedup")

Cell = tuple[str, float]  # an arm at a density


@dataclass(kw_only=True)
class PruningStudy(Study):
    """A study whose base run is the dense training.

    Its keys besides: `tolerance`, how much worse than the dense network's mean a subnetwork's may be that matches it,
    in the metric's own units, or null for one standard deviation over the seeds; `metric`, by default the first
    accuracy there is, of errors and losses less is better.
    """

    about: ClassVar[str] = (
        "A pruned network matches the dense one if its mean over seeds is worse than the dense one's by `tolerance` "
        "at most; where that is null, by one standard deviation of the dense networks over seeds."
    )
    tolerance: float | None = 0.002
    chosen_by: str | None = field(init=False, default=None)

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
        self.chosen_by = on_validation_data(recipe, self.metric)

    def dense(self, seed: int) -> Train:
        """The base run itself."""
        return Train(name=f"{DENSE}-seed{seed}", sets={"seed": seed}, tags={"arm": DENSE, "seed": seed, "level": 0})

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

    def words(self, base: Base, node: Train, result: Result) -> str:
        """The metric at the end."""
        from ..run.results import label

        metric = self.metric or ""
        return f"{label(metric)} {number(result.metrics.get(metric)):.4f}"

    def means(self, rows: Sequence[Row]) -> list[Mean]:
        """Those of each arm and density, and which of them match the dense network."""
        return means(rows, self.metric or "", self.tolerance, self.chosen_by)

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`density.csv`, the means."""
        return {"density": [asdict(mean) for mean in self.means(rows)]}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The means by density, and the sparsest match of each arm."""
        return table(self.means(rows), self.metric or "", self.tolerance is None, self.chosen_by)

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure:
        """The metric over density."""
        from .density_figure import draw

        return draw(self.means(rows), self.metric or "", base.folder.name)

    def judge(
        self,
        claim: str,
        source: str,
        rows: Sequence[Row],
        cells: Mapping[str, tuple[Cell, Cell]],
        *,
        contrast: int | None = 0,
        precondition: str = "",
        at_least: float = 0.0,
    ) -> Claim:
        """The verdict on a claim that in all cells the first network is better than the second by a paired test.

        A cell does not count where as many random weights match its network number `contrast`, and no test tells them
        apart: nothing there depends on which weights are kept. What does not count is told, too.
        """
        counted, others = dict[str, Difference](), list[str]()
        for name, cell in cells.items():
            a, b = (self.values(rows, *network) for network in cell)
            if not all(map(math.isfinite, [*a.values(), *b.values()])):
                others.append(f"{name} (not counted: a run diverged)")
            elif contrast is not None and not self.values(rows, self.random_arm, cell[contrast][1]):
                others.append(f"{name} {paired(a, b)} (not counted: as many random weights were not tried)")
            elif contrast is not None and not self._differs_from_random(rows, cell[contrast]):
                others.append(f"{name} {paired(a, b)} (not counted: not told from random weights)")
            elif a.keys() & b.keys():
                counted[name] = paired(a, b)
        if cells and not counted:
            precondition = precondition or "none of them counts"
        judged = judge_each(claim, source, counted, precondition=precondition, at_least=at_least)
        return replace(judged, measured="; ".join([*([judged.measured] if counted or not others else []), *others]))

    def _differs_from_random(self, rows: Sequence[Row], network: Cell) -> bool:
        found = paired(self.values(rows, *network), self.values(rows, self.random_arm, network[1]))
        return found.is_told or found.mean > self.margin(rows)

    @property
    def random_arm(self) -> str:
        """The arm of as many weights as another's, drawn at random."""
        return "random"

    def values(self, rows: Sequence[Row], arm: str, density: float) -> dict[Any, float]:
        """The metric by seed, or its negative where less is better."""
        sign, same = -1 if lower_is_better(self.metric or "") else 1, percent(density)
        own = [row for row in rows if row["arm"] == arm and percent(row["density"]) == same]
        return {seed: sign * value for seed, value in by_seed(own, self.metric or "").items()}

    def margin(self, rows: Sequence[Row]) -> float:
        """How much worse than the dense network in this metric may be what matches it; NaN if that is not known."""
        dense = dense_of(self.means(rows))
        return self.tolerance if self.tolerance is not None else dense.deviation if dense else math.nan

    @property
    def choice(self) -> str:
        """On which data what matches is chosen."""
        return f"chosen on {'validation data' if self.chosen_by else 'the data that it is reported on'}"


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
    from accelerando.algorithms.generators import untouched_generators
    from accelerando.algorithms.pruning import prunable_weights

    from ..run.algorithms import in_its_folders
    from ..run.teachers import as_in_training

    with untouched_generators():
        model = as_in_training(base.recipe.model, in_its_folders(base.recipe))
    for key, given in arguments.items():
        with base.source.blame(key, ValueError):
            prunable_weights(model, **selection(given))


def check_seeds_matter(base: Base, key: str, arguments: Mapping[str, Any]) -> None:
    """Raises an error where another seed draws the same weights, as of pre-trained ones: it is the same run again."""
    import torch

    from accelerando.algorithms.generators import untouched_generators
    from accelerando.algorithms.pruning import prunable_weights

    drawn = []
    with untouched_generators():
        for seed in (0, 1):
            torch.manual_seed(seed)
            drawn.append(prunable_weights(base.recipe.model.build(), **selection(arguments)))
    if same := [name for name, weight in drawn[0].items() if torch.equal(weight, drawn[1][name])]:
        hint = "are the same whatever the seed, as pre-trained ones are; leave it out"
        raise base.source.error(key, f"reinitialize draws other weights, but those of {same[0]} {hint}")


def selection(arguments: Mapping[str, Any]) -> dict[str, Any]:
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


def wrong_masks(file: Path, wanted: str) -> str:
    """Returns what is wrong with a file of masks, which must have the digest `wanted`; "" for nothing."""
    from accelerando.algorithms.checkpoints import read_weights
    from accelerando.algorithms.pruning.files import SUFFIX
    from accelerando.algorithms.pruning.masks import digest

    try:
        masks = {name.removesuffix(SUFFIX): mask for name, mask in read_weights(file).items()}
        wrong = "" if digest(masks) == wanted else "holds other masks than the ladder has found"
    except REFUSALS as error:
        wrong = f"cannot be read; {error}"
    return wrong and f"{file}: {wrong}; delete {file.parent.parent} to train it again"
