"""A study of one's own: what the learning rate is worth. ``study: {learning_rates:LearningRates: {rates: [...]}}``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerando.recipes.studies.claims import Claim, judge
from accelerando.recipes.studies.core import Base, Study, Train
from accelerando.recipes.studies.statistics import mean_and_deviation, paired
from accelerando.recipes.studies.table import Row, by_seed, groups


@dataclass(kw_only=True)
class LearningRates(Study):
    rates: list[float] = field(default_factory=list)

    def prepare(self, base: Base) -> None:
        if len(self.rates) < 2:
            raise base.source.error("rates", f"{self.rates} given; expected two or more")
        self.metric = base.metric_of(base.recipe, self.metric)

    def nodes(self, base: Base, done: Mapping[str, Any]) -> Iterator[Train]:
        (optimizer,) = base.recipe.config["optimizer"]
        for seed in self.seeds:
            for rate in self.rates:
                sets = {"seed": seed, "optimizer": {optimizer: {"lr": rate}}}
                tags, blamed = {"rate": rate, "seed": seed}, {f"optimizer.{optimizer}.lr": "rates"}
                yield Train(name=f"lr{rate:g}-seed{seed}", sets=sets, made_from=blamed, tags=tags)

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        by_rate = {rate: [*by_seed(own, self.metric).values()] for (rate,), own in groups(rows, "rate").items()}
        means = {rate: mean_and_deviation(values) for rate, values in by_rate.items()}
        return {"means": [{"rate": rate, "mean": mean, "deviation": d} for rate, (mean, d) in means.items()]}

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        first, *others = (by_seed(own, self.metric) for own in groups(rows, "rate").values())
        for other in others:  # not all need be finished
            yield judge("A higher rate is better.", "this file", paired(other, first))
