"""Whether one law of density, depth, width and dense error tells the error of networks pruned by magnitude."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..config.errors import show
from ..config.keys import Holds
from .claims import Claim
from .core import FIXED, Base, TicketArguments, Train, named, refuse_twice
from .lengths import duration, relative_length
from .pruning import PruningStudy, refuse_what_prunes
from .pruning_checks import check_rewind, check_weights
from .scaling_law_cells import TOLD, Family, families_of, lines_of, table_of
from .table import Row
from .tickets import Ladder, checked_ladder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..config.recipe import Recipe
    from ..run.results import Result

LADDER = "ladder"


SIZES = dict.fromkeys(TOLD, float)  # what a configuration may tell beside its changes


@dataclass(kw_only=True)
class ScalingLaw(PruningStudy):
    """The base run is a dense training, of which each configuration changes the network, or the data.

    Of each configuration a ladder of iterative magnitude pruning is trained. The law is fitted to the errors, means
    over seeds, of some configurations, and predicts the others, of which the dense error is measured; and it is fitted
    to each alone. The networks of one model make a family, which has a law of its own.

    Args:
        ladder: arguments of LotteryTicket that all share, such as {levels: 20, fraction: 0.36, rewind_to: 1ep}.
        configurations: what each changes in the base run, by name, such as {w4: {model: {resnet_cifar: {width: 4}}}}.
            Besides, `depth`, `width` and `examples` may tell the law's l, w and n; by default the first two are the
            model's arguments of these names, and the examples of the training data are counted.
        fit_on: the configurations that the law is fitted on; by default all, and then none is predicted.
        errors: for which the smallest network is looked for.
    """

    about: ClassVar[str] = (
        "The law of arXiv 2006.10621: from the error of the dense network, which is measured, over a power law of "
        "m* = depth^phi width^psi density, to a plateau; five constants for all networks of a family, of which "
        "depth, width and the number of training examples differ. Errors are those of the evaluation data, means over "
        "seeds; deviations are relative, (predicted - measured) / measured. Intervals are those of resampled "
        "configurations. The plain power law is one of density, depth, width and dense error."
    )
    tolerance: float | None = field(init=False, default=0.0)  # here nothing has to match the dense network
    ladder: TicketArguments = field(default_factory=dict)
    configurations: Annotated[dict[str, Any], Holds("changes", by_name=True, also={**SIZES})] = field(
        default_factory=dict
    )
    fit_on: list[str] | None = None
    errors: list[float] = field(default_factory=list)

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        if lower_is_better(self.metric or "") or "Accuracy" not in (self.metric or ""):
            raise source.error("metric", f"{self.metric} given; expected an accuracy, as the law is of 1 - accuracy")
        self.chosen_by = None
        given = named(source, "configurations", self.configurations, FIXED)
        self._told = {name: {key: own.pop(key) for key in TOLD if key in own} for name, own in given.items()}
        known = ", ".join(given)
        if self.fit_on is not None:
            fits = bool(self.fit_on) and {*self.fit_on} <= given.keys()
            refuse_twice(self.fit_on, source, "fit_on", fits, f"of {known}")
        refuse_twice(self.errors, source, "errors", all(0 < error < 1 for error in self.errors), "above 0 and below 1")
        self._counted = dict[str, int]()  # examples, by the training data
        self._nodes: dict[str, tuple[Ladder, Train]] = {}
        for name, changes in given.items():
            ladder = checked_ladder(base, name, {LADDER: self.ladder})
            node = replace(ladder.node(self.seeds[0]), changes=changes, key=f"configurations.{name}")
            recipe = base.recipe_of(node)
            base.needs_evaluation(recipe, "the law is of the errors there")
            refuse_what_prunes(base, base.recipe_of(replace(node, sets={})))
            base.metric_of(recipe, self.metric)
            own, whole = duration(recipe), duration(base.recipe)
            cost = 1 + ladder.levels * (1 - check_rewind(source, LADDER, ladder.arguments, recipe))
            cost *= relative_length(own, whole)
            sizes = self._sizes(base, node, recipe, ladder)
            self._nodes[name] = ladder, replace(node, cost=cost, tags={"arm": name, **sizes})

    def _sizes(self, base: Base, node: Train, recipe: Recipe, ladder: Ladder) -> dict[str, Any]:
        """The family, l, w and n of a configuration, told or counted, and how many weights can be pruned."""
        model, told = recipe.model, self._told[ladder.name]
        defaults = {p.name: p.default for p in inspect.signature(model.target).parameters.values()}
        sizes = dict[str, Any]()
        for key in TOLD:
            if key in told:
                sizes[key], hint = told[key], f"{show(told[key])} given; expected a number above 0"
            elif key == "examples":
                sizes[key], hint = self._examples(base, node, recipe), "there are none"
            else:
                sizes[key] = model.arguments.get(key, defaults.get(key))
                hint = f"the model has no argument {key} above 0; tell the law's, such as {{{key}: 8, ...}}"
            if not isinstance(size := sizes[key], int | float) or isinstance(size, bool) or not size > 0:
                raise base.source.error(f"{node.key}.{key}", hint)
        ((weights, _),) = check_weights(base, {LADDER: ladder.arguments}, recipe).values()
        return {"family": model.key.partition(".")[2], **sizes, "weights": weights}

    def _examples(self, base: Base, node: Train, recipe: Recipe) -> int:
        """Those of the training data, which are built once for all configurations that have the same."""
        key = json.dumps(recipe.config["train_data"], default=str, sort_keys=True)
        if key not in self._counted:
            loader: Any = base.training_data(node).dataloader
            try:
                self._counted[key] = len(loader.dataset)
            except (AttributeError, TypeError) as error:
                hint = "the data do not tell how many there are; tell them, such as {examples: 50000, ...}"
                raise base.source.error(f"{node.key}.examples", hint) from error
        return self._counted[key]

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            for ladder, node in self._nodes.values():
                own = ladder.node(seed)
                yield replace(node, name=own.name, sets=own.sets, tags={**node.tags, "seed": seed})

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each level, level 0 being the dense network."""
        for row in super().rows(base, node, result):
            yield replace(row, tags={**row.tags, "arm": node.tags["arm"]})

    def _families(self, rows: Sequence[Row]) -> list[Family]:
        """With their fits, which are made once for the same rows."""
        if getattr(self, "_fitted", (None, ()))[0] is not rows:
            self._fitted = rows, families_of(rows, self.metric or "", self.fit_on, self.errors)
        return self._fitted[1]

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`points.csv`: each configuration at each density, measured and predicted, over seeds."""
        return {"points": [line for family in self._families(rows) for line in lines_of(family)]}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        return "\n\n".join(table_of(family) for family in self._families(rows))

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .scaling_law_figure import draw

        return draw(self._families(rows), base.folder.name)

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        from .scaling_law_claims import claims_of

        families = self._families(rows)
        for family in families:
            of = f" ({family.name})" if len(families) > 1 else ""
            yield from (replace(one, claim=f"{one.claim.removesuffix('.')}{of}.") for one in claims_of(family))
