"""Variants of one base run, each trained with several seeds, and compared to the first one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..config.recipe import Recipe
from .claims import Claim, judge
from .core import FIXED, Base, NamedChanges, Study, Train, named
from .lengths import as_time, duration, relative_length
from .statistics import mean_and_deviation, paired
from .table import Row, by_seed, groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

SOURCE = "the study itself"


@dataclass(kw_only=True)
class Variants(Study):
    """Each is compared to the first one, seed by seed.

    Args:
        variants: what each changes of the base run, by name; the first is what the others are compared to, and false
            leaves one out.
    """

    variants: NamedChanges = field(default_factory=dict)

    about: ClassVar[str] = (
        "Variants of one run are trained with the same seeds. Differences from the first variant are taken seed by "
        "seed, and told by a paired t test, which is not corrected for the number of variants."
    )

    def prepare(self, base: Base) -> None:
        """Checks every variant; all must evaluate the metric."""
        self.changes = named(base.source, "variants", self.variants, FIXED)
        if len(self.changes) < 2:
            raise base.source.error("variants", f"{[*self.changes]} given; expected two or more")
        for name in self.changes:
            recipe = base.recipe_of(self._node(name))
            base.needs_evaluation(recipe, "the variants are compared by it")
            self.metric = base.metric_of(recipe, self.metric)

    def _node(self, name: str) -> Train:
        return Train(name=name, changes=self.changes[name], key=f"variants.{name}")

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        """Seed by seed, so that all variants have as many at any time."""
        costs = {name: _cost(base.recipe_of(self._node(name)), base) for name in self.changes}
        for seed, name in product(self.seeds, self.changes):
            own = {"name": f"{name}-seed{seed}", "sets": {"seed": seed}, "tags": {"variant": name, "seed": seed}}
            yield replace(self._node(name), cost=costs[name], **own)

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """A line for each variant: its mean and deviation over seeds, and the difference from the first one."""
        return {"means": self._means(rows)}

    def _means(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        lines, values, first = [], self._values(rows), next(iter(self.changes))
        for name, own in values.items():
            mean, deviation = mean_and_deviation([*own.values()])
            seconds, _ = mean_and_deviation([row.seconds for row in rows if row["variant"] == name])
            line = {"variant": name, "seeds": len(own), "mean": mean, "deviation": deviation, "seconds": seconds}
            over = paired(own, values.get(first, {}) if name != first else {})
            told = over if over.pairs else None
            lines.append({**line, "difference": told and told.mean, "p": told and told.p})
        return lines

    def _values(self, rows: Sequence[Row]) -> dict[str, dict[Any, float]]:
        """Of each variant that has been trained, the metric by seed."""
        own = {name: by_seed(each, str(self.metric)) for (name,), each in groups(rows, "variant").items()}
        return {name: own[name] for name in self.changes if name in own}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The means."""
        from ..run.results import aligned, label

        cells = [("variant", "seeds", label(str(self.metric)), f"over {next(iter(self.changes))}", "p", "seconds")]
        for line in self._means(rows):
            value = _number(line["mean"], "{:.4f}") + (f" ± {d:.4f}" if math.isfinite(d := line["deviation"]) else "")
            over = _number(line["difference"], "{:+.4f}"), _number(line["p"], "{:.2g}")
            cells.append((line["variant"], str(line["seeds"]), value, *over, f"{line['seconds']:.1f}"))
        note = "mean ± standard deviation over seeds; p of the paired t test; seconds of training"
        return f"{aligned(cells, left=('variant',), blank='nothing to compare, or one seed')}\n{note}"

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure:
        """The metric of every seed, and each variant's mean with its standard deviation."""
        from matplotlib.figure import Figure

        from ..run.figures import house_look
        from ..run.results import label

        own = {name: [*values.values()] for name, values in self._values(rows).items()}
        figure = Figure(figsize=(2 + 1.1 * len(own), 3.6), dpi=150, layout="constrained")
        axes = figure.subplots()
        for place, values in enumerate(own.values()):
            mean, deviation = mean_and_deviation(values)
            axes.errorbar(place, mean, yerr=deviation if math.isfinite(deviation) else None, fmt="o", color="C0", ms=6)
            axes.scatter([place + 0.15] * len(values), values, s=12, color="0.5", marker="x")
        axes.set_xticks(range(len(own)), [*own])
        axes.set(ylabel=label(str(self.metric)), xlim=(-0.6, len(own) - 0.4))
        axes.set_title("mean ± standard deviation; x: one seed", fontsize="small")
        figure.suptitle(base.folder.name)
        house_look(axes)
        return figure

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        """That each variant is better than the first one."""
        first, less, values = next(iter(self.changes)), lower_is_better(str(self.metric)), self._values(rows)
        for name in (name for name in values if name != first):
            pair = values[name], values.get(first, {})
            yield judge(f"{name} is better than {first}.", SOURCE, paired(*(pair[::-1] if less else pair)))


def _cost(recipe: Recipe, base: Base) -> float:
    """Its length, in trainings of the base run."""
    given = base.config.get("max_duration")
    return 1.0 if given is None else relative_length(duration(recipe), as_time(given))


def _number(value: float | None, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else form.format(value)
