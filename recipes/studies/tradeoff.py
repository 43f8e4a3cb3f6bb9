"""Accuracy over training time of several arms, each from one run with cyclic learning rates.

A longer max_duration goes on with the cyclic runs where they ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from ..config.arguments import TIME_HINT
from ..config.errors import show
from ..config.recipe import Recipe
from .budgets import budget_table, budgets, draw, rows_of
from .claims import Claim
from .comparison import PAPER, claims_of, comparison_table, comparisons
from .core import FIXED, Base, NamedChanges, Study, Train, named
from .lengths import as_time, duration, has_times_in_dur
from .table import Row

if TYPE_CHECKING:
    from composer.core import Time
    from matplotlib.figure import Figure

    from accelerando.algorithms import MultiplicativeCyclicScheduler

    from ..run.results import Result


@dataclass(kw_only=True)
class Tradeoff(Study):
    """The base run has a `multiplicative_cyclic` scheduler.

    Args:
        arms: what each changes of the base run, by name; the first is the baseline, and false leaves one out.
        compare_standard: train the independent run of every cycle's length too, and tell how far both differ.
        window: the best value so near to a cycle's end is compared too, as the paper's authors do.
        metric: what is reported, the higher, the better; by default the first accuracy there is.
    """

    arms: NamedChanges = field(default_factory=dict)
    compare_standard: bool = False
    window: str = "5ep"

    may_be_prolonged: ClassVar[bool] = True
    about: ClassVar[str] = (
        "One run with cyclic learning rates passes through the ends of runs of many lengths: at the end of each cycle "
        f"it stands for an independent run of that length ({PAPER})."
    )

    def prepare(self, base: Base) -> None:
        """Checks every arm; their cycles must end together."""
        source, metric = base.source, self.metric
        self.changes, self.ends = named(source, "arms", self.arms, FIXED), list[str]()
        for arm in self.changes:
            recipe = self._arm(base, arm)
            if recipe.start and recipe.start.continues_schedule:
                hint = "a curve is of one schedule from its beginning; expected schedule: restart"
                raise recipe.source.error("start.schedule", f"continue, given or by default, but {hint}")
            _check(base, recipe)
            ends = _ends(recipe)
            if self.ends and ends != self.ends:
                raise source.error(f"arms.{arm}", f"its cycles do not end where those of {self.baseline} do")
            self.ends, metric = ends, base.metric_of(recipe, metric, errors=False)
        self.metric = metric
        if _window(base, self.window).unit != as_time(self.ends[-1]).unit:
            raise source.error("window", f"{self.window} given; expected the unit of max_duration")

    @property
    def baseline(self) -> str:
        """The first arm."""
        return next(iter(self.changes))

    def _arm(self, base: Base, arm: str) -> Recipe:
        """The base run with the arm's changes alone."""
        return base.recipe_of(Train(name=arm, changes=self.changes[arm], key=f"arms.{arm}"))

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        """Arm by arm and seed by seed, the cyclic run before the independent ones."""
        for arm, seed in product(self.changes, self.seeds):
            train = partial(Train, changes=self.changes[arm], key=f"arms.{arm}")
            name, tags = f"{arm}-seed{seed}", {"arm": arm, "seed": seed, "schedule": "cyclic"}
            sets = {"seed": seed, "algorithms": {"tradeoff_curve": {}}}
            yield train(name=name, sets=sets, tags=tags)
            for cycle, end in enumerate(self.ends if self.compare_standard else []):
                own = {**tags, "schedule": "standard", "cycle": cycle, "end": end}
                alone = {**sets, **_alone(self._arm(base, arm), end)}
                cost = as_time(end).value / as_time(self.ends[-1]).value
                yield train(name=f"{name}-alone-{end}", sets=alone, cost=cost, tags=own)

    def rows(self, base: Base, node: Train, result: Result) -> list[Row]:
        """One for the end of each cycle."""
        recipe = base.recipe_of(node)
        window = round(as_time(self.window).value * result.batches / duration(recipe).value)
        with recipe.source.blame("", ValueError):
            return rows_of(node.name, node.tags, result.records, str(self.metric), self.ends, window)

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What is best at each budget, and, where compared, how far cyclic and independent runs differ."""
        given = rows, str(self.metric), self.baseline
        tables = {"budget": budgets(*given), "comparison": comparisons(*given)}
        return {name: lines for name, lines in tables.items() if lines}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """Both summaries."""
        given = rows, str(self.metric), self.baseline
        return "\n\n".join(filter(None, (budget_table(*given), comparison_table(*given))))

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure:
        """Accuracy over training time."""
        return draw(rows, str(self.metric), base.folder.name)

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        """Those on what the independent runs show, where there are some; which arm is best at a budget is no claim."""
        return claims_of(rows, str(self.metric), self.baseline)


def _window(base: Base, value: str) -> Time:
    try:
        window = as_time(value)
    except (ValueError, TypeError):
        window = None
    if window is None or window.value < 0 or value[-1:].isdigit():
        raise base.source.error("window", f"{show(value)} given; expected {TIME_HINT}, not below zero")
    return window


def _check(base: Base, recipe: Recipe) -> None:
    from accelerando.algorithms import TradeoffCurve
    from accelerando.algorithms.composer.host import bound_to_the_length

    base.needs_evaluation(recipe, "a curve is made of evaluations")
    if recipe.trainer.get("scale_schedule_ratio", 1) != 1:
        hint = "stretches the cycles; give max_duration and t_period as they shall be"
        raise recipe.source.error("scale_schedule_ratio", hint)
    for part, algorithm in zip(recipe.algorithms, base.algorithms_of(recipe), strict=True):
        bound = bound_to_the_length(algorithm) or has_times_in_dur(part.arguments)
        if bound and not isinstance(algorithm, TradeoffCurve):
            hint = "follows the length of the whole run, so the end of a cycle is not that of a run of its own"
            raise recipe.source.error(part.key, hint)


def _scheduler(recipe: Recipe) -> MultiplicativeCyclicScheduler:
    from accelerando.algorithms import MultiplicativeCyclicScheduler

    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    if not isinstance(scheduler, MultiplicativeCyclicScheduler):
        raise recipe.source.error("scheduler", "expected multiplicative_cyclic, whose cycles are what is compared")
    return scheduler


def _ends(recipe: Recipe) -> list[str]:
    """Where each of its cycles ends."""
    scheduler, source, length = _scheduler(recipe), recipe.source, duration(recipe)
    unit = scheduler.unit.value
    if unit == "dur":
        raise source.error("scheduler", "its times are in dur; give them as max_duration is, in ep, ba, sp or tok")
    if scheduler.unit != length.unit:
        given = length.to_timestring()
        raise source.error("max_duration", f"{given} given; expected it in {unit}, as t_period is")
    ends = [*takewhile(lambda end: math.ceil(end) <= length.value, scheduler.cycle_ends())]
    if unit == "ep" and (parts := [end for end in ends if end != math.ceil(end)]):
        hint = "Composer's runs last whole ones; give max_duration and the scheduler's times in ba"
        raise source.error("scheduler", f"a cycle ends after {float(parts[0]):g} epochs, but {hint}")
    with source.blame("max_duration", ValueError):
        scheduler.check_duration(length)
    return [f"{math.ceil(end)}{unit}" for end in ends]


def _alone(recipe: Recipe, end: str) -> dict[str, Any]:
    """What makes of the cyclic run an independent one: its own scheduler, in its first and only cycle."""
    (name,) = recipe.config["scheduler"]
    period = as_time(end).value - _scheduler(recipe).t_warmup.value
    unit = duration(recipe).unit.value
    return {"max_duration": end, "scheduler": {name: {"t_period": f"{period}{unit}"}}}
