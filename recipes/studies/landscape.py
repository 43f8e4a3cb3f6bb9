"""The landscape of sparse networks: how stable tickets are to the noise of SGD, found on the real data or on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from .claims import Claim
from .core import FIXED, Base, NamedChanges, TicketArguments, Train, named, refuse_twice
from .density import DENSE
from .landscape_cells import curvature_of, curvature_table, histograms_of, planes_of, points_of
from .landscape_claims import claims_of
from .lengths import duration
from .pruning_checks import arguments_of, check_seeds_matter, check_weights
from .stability_cells import COPY, TICKETS, means_of, table
from .stability_checks import check_copies
from .table import Row
from .tickets import REINITIALIZED, Control, Ladder, checked_ladder, other_weights
from .twins import StudyOfTwins, is_reached, pairs_of, pruned, twins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from accelerando.algorithms.examples.distillation import DistilledSet

    from ..config.recipe import Recipe
    from ..run.results import Result

PLANE = "accelerando.recipes.studies.landscape_measures:PlaneOfTwins"
HESSIAN = "accelerando.recipes.studies.landscape_measures:HessianAtEnd"
LADDER = "ladder"
FROM_0 = {"step": "0ba", "k": 0, "share": 0.0}  # where copies begin


@dataclass(kw_only=True)
class Landscape(StudyOfTwins):
    """The base run is the dense training on real data.

    Copies are trained on these from the same initial weights with different noise, the seed of the data's order and
    augmentation: of the dense network, which is level 0; and of the tickets that a ladder of iterative magnitude
    pruning has at some of its levels. Each level of a ladder begins anew from all initial weights and buffers. Of each
    pair of copies the straight line between their ends is measured; of three or four their plane; of each its Hessian.

    Args:
        levels: those of the ladders at which there are copies; 0 is the dense network.
        copies: how many of each network.
        ladder: arguments of LotteryTicket, such as {fraction: 0.2}.
        tickets_on: tickets that are found elsewhere than on the real data, by the name of that: what the ladder's run
            changes of the base run, such as {few: {train_data: {digits: {split: 'train[:100]'}}, max_duration: 90ep}}.
            Their copies are trained on the real data, as all are.
        controls: what the tickets are compared with: as many weights at random, the ticket's masks in a network with
            other initial weights (`reinitialize`), or shuffled in each layer (`shuffle`).
        points: of each path, with both ends.
        path_examples: on how many of the training and of the evaluation data a path is measured, at most; null for all.
        plane: `points` of each side, the `margin` beyond the networks, `batch_norm` and `most_examples`, such as
            {points: 21}, as `landscape_measures.PlaneOfTwins` tells; by default on `path_examples`. null for no planes.
        hessian: how many `examples`, `probes`, `eigenvalues`, and how many vectors `at_once`, such as {probes: 100}, as
            `landscape_measures.HessianAtEnd` tells; null to leave it out.
        stable_below: the barrier below which a network is stable, in points of error.
    """

    about: ClassVar[str] = (
        "Copies of a network are trained from its initial weights with different noise: the data's order and "
        "augmentation. A barrier is the highest error on the straight line between two copies less the mean of their "
        "own, in points: the lower it is, the more stable is the network (arXiv 1912.05671, 2310.18769). It is told "
        "with the running statistics of batch norm interpolated, as in the latter paper, and with these recomputed "
        "from training data at each point. Tickets are rewound to all initial weights and buffers. The Hessian is "
        "that of the training loss in the weights that are kept."
    )
    levels: list[int] = field(default_factory=lambda: [0, 4, 9])
    copies: int = 2
    ladder: TicketArguments = field(default_factory=dict)
    tickets_on: NamedChanges = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    points: int = 11
    path_examples: int | None = None
    plane: dict[str, Any] | None = None
    hessian: dict[str, Any] | None = None
    stable_below: float = 2.0

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        check_copies(base, self)
        refuse_twice(self.controls, source, "controls", True, f"of {', '.join(get_args(Control))}")
        fits = bool(self.levels) and min(self.levels) >= 0
        refuse_twice(self.levels, source, "levels", fits, "from 0, the dense network, such as [0, 4, 9]")
        self.levels = sorted(self.levels)
        self._check_measures(base)
        self._ladders, self._checked = dict[str, tuple[Ladder, Train]](), set[str]()  # by arm; files of masks
        self._data: tuple[int, int] | None = None
        given = next((name for name in ("ladder", "tickets_on", "controls") if getattr(self, name)), "")
        if not self.levels[-1]:
            if given:
                raise source.error(given, "given without a level above 0, at which networks are pruned")
            return
        for name in ("levels", "rewind_to", "rewind"):
            if name in self.ladder:
                hint = "every ladder goes to the last of `levels`, and rewinds to initialization; leave it out"
                raise source.error(f"ladder.{name}", hint)
        others = named(source, "tickets_on", self.tickets_on, (*FIXED, "model")) if self.tickets_on else {}
        for name, changes in {"": {}, **others}.items():
            arm, folder = (f"{TICKETS} on {name}", f"{LADDER}-on-{name}") if name else (TICKETS, LADDER)
            own = Train(name=folder, changes=changes, key=f"tickets_on.{name}" if name else "")
            self.add_ladder(base, arm, own)
        check_weights(base, {"ladder": self._ladders[TICKETS][0].arguments})
        if "reinitialize" in self.controls:
            check_seeds_matter(base, "controls", self._ladders[TICKETS][0].arguments)

    def add_ladder(self, base: Base, arm: str, own: Train, examples: int | None = None) -> None:
        """A ladder of that name, whose tickets are an arm's, with what it changes and sets of its own.

        So many are the `examples` that it trains on; by default its data are built to find out.
        """
        arguments = {**self.ladder, "levels": self.levels[-1], "rewind_to": "0ba"}
        ladder, times = checked_ladder(base, own.name, {"ladder": arguments}), 1.0
        node = ladder.node(self.seeds[0])
        sets, made_from = {**node.sets, **own.sets}, {**node.made_from, **own.made_from}
        node = replace(node, changes=own.changes, key=own.key, sets=sets, made_from=made_from)
        if arm != TICKETS:
            times = self.times_as_long(base, node, examples)
        self._ladders[arm] = ladder, replace(node, cost=times * node.cost, tags={"role": LADDER, "arm": arm})

    def times_as_long(self, base: Base, node: Train, examples: int | None = None) -> float:
        """How much longer than the base run a training is, in batches, of so many examples, by default of its data."""
        recipe = base.recipe_of(node)
        if examples is None:
            loader: Any = base.training_data(node).dataloader
            length = len(loader)
        elif not (length := examples // (batch := recipe.config["global_batch_size"])):
            raise recipe.source.error("global_batch_size", f"{batch} given, which {examples} examples do not fill")
        return _batches(recipe, length) / _batches(base.recipe, self.data_of(base)[0])

    def data_of(self, base: Base) -> tuple[int, int]:
        """How many batches an epoch of the base run has, and how many examples there are; its data are built once."""
        if self._data is None:
            loader: Any = base.training_data(Train(name="probe")).dataloader
            self._data = len(loader), len(loader.dataset)
        return self._data

    def _check_measures(self, base: Base) -> None:
        from .landscape_measures import PlaneOfTwins

        source = base.source
        if self.plane is not None:
            if self.copies not in (3, 4):
                raise source.error("plane", f"given with {self.copies} copies; a plane is that of 3 or 4")
            most = {} if self.path_examples is None else {"most_examples": self.path_examples}
            made = {"twins": []} | {name: value for name, value in most.items() if name not in self.plane}
            taken = ("twins", "own_folder", "training_batches")
            self._plane = arguments_of(PlaneOfTwins, source, {"plane": self.plane}, made, taken)
        check_hessian(base, self.hessian)

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            if 0 in self.levels:
                yield from self._copies(base, self._copy(seed, DENSE, DENSE))
            for arm, (ladder, _) in self._ladders.items():
                yield (finds := self.ladder_of(base, arm, seed, done))
                arms = (arm, *(self.controls if arm == TICKETS else ()))
                for level, of_level in ((level, one) for level in self.levels if level for one in arms):
                    found = done.get(finds.name)
                    if is_reached(of_level, level, found):
                        copy = self._copy(seed, of_level, f"{of_level.replace(' ', '-')}-level{level}")
                        yield from self._copies(base, pruned(base, copy, ladder, level, "0ba", found, self._checked))

    def ladder_of(self, base: Base, arm: str, seed: int, done: Mapping[str, Result]) -> Train:
        """The run that finds this arm's tickets."""
        ladder, first = self._ladders[arm]
        name, sets, tags = f"{ladder.name}-seed{seed}", {**first.sets, "seed": seed}, {**first.tags, "seed": seed}
        return replace(first, name=name, sets=sets, tags=tags)

    def _copy(self, seed: int, arm: str, name: str) -> Train:
        """What all copies of a network have in common, before anything is pruned; they have its name."""
        sets = other_weights(seed) if arm == "reinitialize" else {"seed": seed}
        tags = {"role": COPY, "arm": arm, "seed": seed, "level": 0}
        return Train(name=name, sets=sets, made_from=REINITIALIZED, tags=tags)

    def _copies(self, base: Base, node: Train) -> Iterator[Train]:
        """Each measures its Hessian, and the last the plane of all."""
        for copy in twins(node, node.name, self.copies, base.name, self.points, self.path_examples):
            algorithms, own = dict(copy.sets["algorithms"]), dict(copy.made_from)
            if self.hessian is not None:
                algorithms[HESSIAN] = self.hessian
                own[f"algorithms.{HESSIAN}"] = "hessian"
            if self.plane is not None and copy.tags["copy"] == self.copies - 1:
                before = [f"{base.name}/{twin}/snapshots" for twin in copy.after[-copy.tags["copy"] :]]
                algorithms[PLANE] = {**self._plane, "twins": before}
                own[f"algorithms.{PLANE}"] = "plane"
            yield replace(copy, sets={**copy.sets, "algorithms": algorithms}, made_from=own)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each training, of a ladder for each level; and one for each path, which cost nothing in training.

        The trace of a copy's Hessian and more is among its metrics.
        """
        for row in super().rows(base, node, result):
            if node.tags["role"] == LADDER:  # what others are as good as is trained on the real data
                yield replace(row, tags={**row.tags, "arm": node.tags["arm"]})
            else:
                row = replace(row, tags={**row.tags, **FROM_0}, metrics={**row.metrics, **curvature_of(result)})
                yield row
                yield from pairs_of(row, result)

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`landscape.csv`: each network, over seeds; `planes.csv`, a line a point; `diagonals.csv`, a line a bin."""
        found = {"landscape": means_of(self.cells(rows), self.stable_below)}
        found["planes"], found["diagonals"] = points_of(planes_of(base, rows)), histograms_of(base, rows)
        return {name: lines for name, lines in found.items() if lines}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        cells = self.cells(rows)
        curvature = [curvature_table(cells)] if self.hessian is not None and cells else []
        return "\n\n".join([table(cells, self.metric or "", self.stable_below), *curvature])

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .landscape_figure import draw

        if not (cells := self.cells(rows)):
            return None
        planes, diagonals = planes_of(base, rows), histograms_of(base, rows)
        sets = self.sets_of(base, rows)
        return draw(cells, planes, diagonals, self.metric or "", self.stable_below, base.folder.name, sets)

    def sets_of(self, base: Base, rows: Sequence[Row]) -> Mapping[str, DistilledSet]:
        """Distilled images to draw, by their titles."""
        return {}

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        if self._ladders:
            yield from claims_of(self.cells(rows), self.claimed())

    def claimed(self) -> list[str]:
        """The arms of tickets on other data of which the paper claims something."""
        return [arm for arm in self._ladders if arm != TICKETS]


def check_hessian(base: Base, hessian: Mapping[str, Any] | None) -> None:
    """Raises an error at the key `hessian` where `HessianAtEnd` cannot measure with these arguments; None for none."""
    from accelerando.algorithms.connectivity.curvature import MOST_EXACT

    from .landscape_measures import HessianAtEnd

    source = base.source
    if hessian is None:
        return
    if find_spec("curvlinops") is None:
        hint = "pip install 'accelerando[landscape]', or leave it out"
        raise source.error("hessian", f"needs curvlinops-for-pytorch, which is missing; {hint}")
    arguments_of(HessianAtEnd, source, {"hessian": hessian}, {}, ("own_folder", "training_batches"))
    weights = sum(p.numel() for p in base.recipe.model.build().parameters() if p.requires_grad)
    if hessian.get("probes", 0) is None and weights > MOST_EXACT:
        hint = f"beyond {MOST_EXACT:,} weights, of which there are {weights:,}, it takes too long"
        raise source.error("hessian.probes", f"null given, for the exact diagonal, but {hint}")


def _batches(recipe: Recipe, epoch: int) -> float:
    """Those of a training whose data have so many an epoch."""
    length, most = duration(recipe), recipe.trainer.get("train_subset_num_batches", -1)
    each = {"ep": min(epoch, most) if most > 0 else epoch, "sp": 1 / recipe.config["global_batch_size"]}
    return length.value * each.get(length.unit.value, 1)
