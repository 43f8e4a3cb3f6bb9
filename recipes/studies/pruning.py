"""What the studies of pruning share: the base run, the arguments of what prunes, and the rows of levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..config.recipe import Recipe
from .claims import Claim, judge_each
from .core import Base, Study, Train, row_of
from .density import DENSE, Mean, dense_of, means, table, values_of
from .lengths import duration, has_times_in_dur
from .metrics import on_validation_data
from .statistics import Difference, paired
from .table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

UNPRUNED = {"density": 1.0, "compression_ratio": 1.0, "speedup": 1.0}

Cell = tuple[str, float]  # an arm at a density


@dataclass(kw_only=True)
class PruningStudy(Study):
    """A study whose base run is the dense training.

    Args:
        tolerance: how much worse than the dense network's mean a subnetwork's may be that matches it, in the metric's
            own units; or null for one standard deviation over the seeds.
        metric: what is reported; by default the first accuracy there is. Of errors and losses, less is better.
    """

    about: ClassVar[str] = (
        "A pruned network matches the dense one if its mean over seeds is worse than the dense one's by `tolerance` "
        "at most; where that is null, by one standard deviation of the dense networks over seeds."
    )
    tolerance: float | None = 0.002

    def prepare(self, base: Base) -> None:
        """Checks that the base run is evaluated, and that nothing in it prunes or follows the whole run's length."""
        self.check_tolerance(base)
        base.needs_evaluation(base.recipe, "what a subnetwork is worth is evaluated there")
        check_dense(base, base.recipe)
        self.metric = base.metric_of(base.recipe, self.metric)
        self.chosen_by = on_validation_data(base.recipe, self.metric)

    def check_tolerance(self, base: Base) -> None:
        """Raises an error where it is no difference, or one that these seeds do not tell."""
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise base.source.error(
                "tolerance", f"{self.tolerance} given; expected 0 or more, or null for one deviation"
            )
        if self.tolerance is None and len(self.seeds) < 2:
            raise base.source.error("tolerance", "null is one standard deviation over seeds; give two seeds or more")

    def dense(self, seed: int) -> Train:
        """The base run itself."""
        return Train(name=f"{DENSE}-seed{seed}", sets={"seed": seed}, tags={"arm": DENSE, "seed": seed, "level": 0})

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """Of a LotteryTicket one for each level, level 0 being the dense network; of any other run one."""
        if (levels := result.found.get("levels")) is None:
            yield with_size(row_of(node, result), result.found.get("size") or UNPRUNED)
            return
        for level in levels:
            tags = {**node.tags, "level": level["level"]}
            cost = {"batches": int(level["batches"]), "samples": int(level["samples"]), "seconds": level["seconds"]}
            metrics = {f"metrics/{name}": number(v) for name, v in level.items() if name.startswith("eval/")}
            row = Row(node=node.name, tags=tags, **cost, metrics=metrics)
            if level["level"] == 0:
                tags["arm"], size = DENSE, UNPRUNED
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

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
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
            elif contrast is not None and (problem := self._like_random(rows, cell[contrast])):
                others.append(f"{name} {paired(a, b)} (not counted: {problem})")
            elif a.keys() & b.keys():
                counted[name] = paired(a, b)
        if cells and not counted:
            precondition = precondition or "none of them counts"
        judged = judge_each(claim, source, counted, precondition=precondition, at_least=at_least)
        return replace(judged, measured="; ".join([*([judged.measured] if counted or not others else []), *others]))

    def _like_random(self, rows: Sequence[Row], network: Cell) -> str:
        """Returns why nothing tells that the network is another than one of as many random weights; "" if it is."""
        if not (random := self.values(rows, self.random_arm, network[1])):
            return "as many random weights were not tried"
        found = paired(self.values(rows, *network), random)
        return "" if found.is_told or found.mean > self.margin(rows) else "not told from random weights"

    @property
    def random_arm(self) -> str:
        """The arm of as many weights as another's, drawn at random."""
        return "random"

    def values(self, rows: Sequence[Row], arm: str, density: float) -> dict[Any, float]:
        """The metric by seed, or its negative where less is better."""
        return values_of(rows, self.metric or "", arm, density)

    def margin(self, rows: Sequence[Row]) -> float:
        """How much worse than the dense network in this metric may be what matches it; NaN if that is not known."""
        dense = dense_of(self.means(rows))
        return self.tolerance if self.tolerance is not None else dense.deviation if dense else math.nan

    @property
    def choice(self) -> str:
        """On which data what matches is chosen."""
        return f"chosen on {'validation data' if self.chosen_by else 'the data that it is reported on'}"


def check_dense(base: Base, recipe: Recipe) -> None:
    """Raises an error where something in the dense training prunes, or follows the length of the whole run."""
    from composer.core import TimeUnit

    from accelerando.algorithms.composer.host import bound_to_the_length

    if duration(recipe).unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
        raise recipe.source.error("max_duration", f"{recipe.config['max_duration']} given; expected it in ep or ba")
    refuse_what_prunes(base, recipe)
    for part, algorithm in zip(recipe.algorithms, base.algorithms_of(recipe), strict=True):
        if bound_to_the_length(algorithm) or has_times_in_dur(part.arguments):
            raise recipe.source.error(part.key, "follows the length of the whole run, which may hold several trainings")


def refuse_what_prunes(base: Base, recipe: Recipe, place: str = "") -> None:
    """Raises an error at an algorithm of the run that prunes, as the study adds one.

    The run's algorithms stand at `place` in the study's block, such as "fine_tuning.", if that is given.
    """
    from accelerando.algorithms.composer.pruning.sparsity import Pruning

    for part, algorithm in zip(recipe.algorithms, base.algorithms_of(recipe), strict=True):
        if isinstance(algorithm, Pruning):
            source = base.source if place else recipe.source
            raise source.error(f"{place}{part.key}", "the study adds what prunes; leave it out")


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
