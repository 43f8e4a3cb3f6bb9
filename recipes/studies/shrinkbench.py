"""ShrinkBench: methods of pruning compared as Blalock et al. ask for it, with the checklist of their paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ..config.errors import REFUSALS, show
from ..config.keys import Holds
from ..config.recipe import Recipe
from .claims import Claim
from .core import FIXED, Base, Changes, NamedChanges, Study, Train, named, refuse_twice, row_of
from .density import DENSE
from .lengths import duration, relative_length
from .pruning import UNPRUNED, number, refuse_what_prunes, with_size
from .pruning_checks import check_weights
from .shrinkbench_checklist import told
from .shrinkbench_table import entries_of, means, read_results, text
from .table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result
    from .shrinkbench_methods import Method

OF_PAIR = ("model", "eval_data", "validation_data")  # the same for whatever is trained of it
FROM_END = {"at": None, "optimizer": "fresh", "schedule": "restart", "data": "restart"}


OF_A_METHOD = {"method": str, "options": dict}  # by an import path


@dataclass(kw_only=True)
class ShrinkBench(Study):
    """The base run trains an initial model. It is pruned at once, by each method to each ratio, and trained on.

    Args:
        pairs: what each pair of model and data changes in the base run, by name; false leaves one out.
        initials: what the training of each initial model of a pair changes, by name; by default there is one.
        initial_seed: of the initial models, which all `seeds` of the runs after them share.
        methods: arguments of the algorithm PruneAtInit, whose criterion is the name unless given; or, with an entry
            `method`, those of `shrinkbench_methods.PrunedBy`, such as {method: "torch.nn.utils.prune:LnStructured",
            options: {n: 2, dim: 0}}; false leaves one out.
        pruning: what all share: include, exclude, classifier, scope.
        compressions: ratios of all parameters, biases and norms too, to those that are left.
        fine_tuning: what the training after pruning changes in the pair's.
        published: a CSV of somebody else's with the columns of ShrinkBench's own results, to be told beside these.
    """

    pairs: NamedChanges = field(default_factory=dict)
    initials: NamedChanges = field(default_factory=lambda: {"initial": {}})
    initial_seed: int = 17
    methods: Annotated[dict[str, Any], Holds("algorithms.prune_at_init", by_name=True, also=OF_A_METHOD)] = field(
        default_factory=dict
    )
    pruning: Annotated[dict[str, Any], Holds("algorithms.prune_at_init")] = field(default_factory=dict)
    compressions: list[float] = field(default_factory=lambda: [2, 4, 8, 16, 32])
    fine_tuning: Changes = field(default_factory=dict)
    published: str | None = None

    about: ClassVar[str] = (
        "Trained networks are pruned at once and trained on, all methods from the same initial models, to the same "
        "compression ratios, which are those of all parameters. A speed-up is that of multiply-adds, and theoretical "
        "(arXiv 2003.03033). What is told is the end of each training, none is chosen."
    )

    def prepare(self, base: Base) -> None:
        from .shrinkbench_methods import checked_method

        source = base.source
        self._pairs = named(source, "pairs", self.pairs, FIXED)
        self._initials = named(source, "initials", self.initials, (*FIXED, *OF_PAIR))
        for inner in {*FIXED, *OF_PAIR, "start"} & self.fine_tuning.keys():
            raise source.error(f"fine_tuning.{inner}", "the study sets it for every run; leave it out")
        algorithms = self.fine_tuning.get("algorithms", {})
        if not isinstance(algorithms, Mapping):
            hint = "expected names with their arguments, or with false to leave out one of the pair's"
            raise source.error("fine_tuning.algorithms", f"{show(algorithms)} given; {hint}")
        given = self.compressions
        fits = 0 < len(given) == len({f"{ratio:g}" for ratio in given}) and all(ratio > 1 for ratio in given)
        refuse_twice(given, source, "compressions", fits, "above 1, that differ in their first six digits")
        methods = named(source, "methods", self.methods)
        if DENSE in methods:
            raise source.error(f"methods.{DENSE}", "is what the study calls something else; choose another name")
        self._methods = [checked_method(base, name, self.pruning, own) for name, own in methods.items()]
        self._theirs: list[dict[str, Any]] = []
        if self.published is not None:
            with source.blame("published", *REFUSALS):
                self._theirs = means(read_results(self.published), Path(self.published).stem)
        self._density, self._lengths = dict[tuple[str, str, float], float](), dict[tuple[str, str], float]()
        self._recipes: dict[str, Recipe] = {}
        for pair in self._pairs:
            self._recipes[pair] = recipe = base.recipe_of(self._bare(pair))
            base.needs_evaluation(recipe, "accuracies are measured on it")
            refuse_what_prunes(base, recipe)
            tuned = replace(self._bare(pair), sets=self.fine_tuning, made_from=_from("fine_tuning", self.fine_tuning))
            refuse_what_prunes(base, base.recipe_of(tuned), "fine_tuning.")
            for initial in self._initials:
                refuse_what_prunes(base, base.recipe_of(self._initial(base, pair, initial)), f"initials.{initial}.")
            self.metric = base.metric_of(recipe, self.metric, errors=False)  # one for all pairs
            self._choose_densities(base, pair)

    def _bare(self, pair: str) -> Train:
        return Train(name=pair, changes=self._pairs[pair], key=f"pairs.{pair}")

    def _choose_densities(self, base: Base, pair: str) -> None:
        """The shares of the prunable weights at which each ratio is reached; an error where one cannot be."""
        from .shrinkbench_methods import try_out

        arguments = {f"methods.{method.name}": method.arguments for method in self._methods}
        sizes = check_weights(base, arguments, self._recipes[pair]).values()
        for method, (prunable, parameters) in zip(self._methods, sizes, strict=True):
            others = parameters - prunable
            for ratio in self.compressions:
                left = parameters / ratio - others
                if left < 1:
                    most = math.floor(100 * parameters / (others + 1)) / 100
                    hint = f"{others:,} of the {parameters:,} parameters of {pair} are not pruned by {method.name}"
                    raise base.source.error("compressions", f"{ratio:g} given, but at most {most:g} is reached: {hint}")
                self._density[pair, method.name, ratio] = left / prunable
            try_out(base, method, self._recipes[pair], self._density[pair, method.name, self.compressions[0]])

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for pair, initial in product(self._pairs, self._initials):
            dense = self._initial(base, pair, initial)
            yield dense
            for seed, ratio, method in product(self.seeds, sorted(self.compressions), self._methods):
                yield self._pruned(base, dense, method, ratio, seed)

    def _initial(self, base: Base, pair: str, initial: str) -> Train:
        recipe, changes = self._recipes[pair], self._initials[initial]
        names = {"model": recipe.model, "data": recipe.train_data}
        tags = {"pair": pair, **{name: part.key.partition(".")[2] for name, part in names.items()}, "initial": initial}
        node = replace(
            self._bare(pair),
            name=f"{pair}-{initial}",
            sets={**changes, "seed": self.initial_seed},
            made_from=_from(f"initials.{initial}", changes),
            tags={**tags, "method": DENSE, "asked": 1.0, "seed": self.initial_seed},
        )
        return self._of_its_length(base, node, (pair, initial))

    def _pruned(self, base: Base, dense: Train, method: Method, ratio: float, seed: int) -> Train:
        pair, tuned, place = dense.tags["pair"], self.fine_tuning, f"algorithms.{method.algorithm}"
        arguments = {**method.arguments, "density": self._density[pair, method.name, ratio]}
        own = {"method": method.name, "asked": ratio, "seed": seed}
        places = {f"{place}.density": "compressions", "start": "initials"}
        node = replace(
            self._bare(pair),
            name=f"{dense.name}-{method.name}-{ratio:g}x-seed{seed}",
            sets={
                **tuned,
                "seed": seed,
                "start": {"run": f"{base.name}/{dense.name}", **FROM_END},
                "algorithms": {**tuned.get("algorithms", {}), method.algorithm: arguments},
            },
            made_from={**_from("fine_tuning", tuned), **method.made_from, **places},
            after=(dense.name,),
            tags={**dense.tags, **own, **({"baseline": method.baseline} if method.baseline else {})},
        )
        return self._of_its_length(base, node, (pair, ""))

    def _of_its_length(self, base: Base, node: Train, kind: tuple[str, str]) -> Train:
        """All of a kind are as long as its first one, in trainings of the base run, if these have the same unit."""
        if kind not in self._lengths:
            own, whole = duration(base.recipe_of(node)), duration(base.recipe)
            self._lengths[kind] = relative_length(own, whole)
        return replace(node, cost=self._lengths[kind])

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each training; of a pruned network also what its initial model has in all."""
        size = result.found.get("size")
        row = with_size(row_of(node, result), size or UNPRUNED)
        whole = {name: number(size[name]) for name in ("parameters", "multiply_adds")} if size else {}
        yield replace(row, metrics={**row.metrics, **whole})

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`shrinkbench.csv`, the means of each initial model, method and ratio, somebody else's too."""
        return {"shrinkbench": self._means(rows)}

    def _means(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [*means(entries_of(rows, self.metric or "")), *self._theirs]

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The means, and the paper's checklist."""
        parts = []
        tables = {"these runs": means(entries_of(rows, self.metric or "")), self.published: self._theirs}
        for name, lines in tables.items():
            parts += [text(lines), told(lines, str(name))] if lines else []
        return "\n\n".join(parts)

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .shrinkbench_figure import draw

        return draw(lines, base.folder.name) if (lines := self._means(rows)) else None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        from .shrinkbench_claims import claims_of

        yield from claims_of(entries_of(rows, self.metric or ""))


def _from(place: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Where in the study's block these keys of a run stand."""
    return {name: f"{place}.{name}" for name in changes}
