"""Pruning at initialization: criteria, their ablations and pruning after training compared, over density."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..config.keys import Holds
from ..config.lookup import nearest
from ..run.results import percent
from .claims import Claim
from .core import Base, NamedCriteria, TicketArguments, Train, named, refuse_twice
from .density import DENSE, UNKNOWN
from .pruning import Cell, PruningStudy
from .pruning_checks import WHICH, arguments_of, check_rewind, check_weights, origins
from .statistics import paired
from .table import Row

if TYPE_CHECKING:
    from ..run.results import Result

Ablation = Literal["shuffle", "reinitialize", "invert"]
ABLATIONS = typing.get_args(Ablation)
AFTER, AFTER_FOLDER = "magnitude after training", "after_training"
SOURCE = "arXiv:2009.08576, abstract"
COSTS_NOTHING = {"shuffle": "shuffling their masks in each layer", "reinitialize": "drawing the weights anew"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What prunes in its runs: an algorithm's name in a YAML, and its arguments but for the density."""

    name: str
    folder: str  # begins the names of its runs
    algorithm: str
    arguments: dict[str, Any]
    made_from: dict[str, str]
    cost: float = 1.0  # the length of its runs, in T

    def node(self, seed: int, density: float, level: int) -> Train:
        own = {"density": density} if self.algorithm == "prune_at_init" else _one_shot(density)
        return Train(
            name=f"{self.folder}-{density:g}-seed{seed}",
            sets={"seed": seed, "algorithms": {self.algorithm: self.arguments | own}},
            made_from=self.made_from,
            cost=self.cost,
            tags={"arm": self.name, "seed": seed, "level": level},
        )


@dataclass(kw_only=True)
class PruneAtInit(PruningStudy):
    """The base run is the dense training, of length T.

    Args:
        criteria: arguments of the algorithm PruneAtInit, whose criterion is the name unless given; false: none.
        pruning: what all share: include, exclude, classifier, scope.
        densities: shares of the weights that are kept, each trained with each criterion.
        ablations: of which each criterion but random gets a further arm.
        after_training: arguments of LotteryTicket, by default {rewind: learning_rate}, for an arm that is trained,
            pruned at once by magnitude, and trained again; false leaves it out.
    """

    criteria: NamedCriteria = field(default_factory=dict)
    pruning: Annotated[dict[str, Any], Holds("algorithms.prune_at_init")] = field(default_factory=dict)
    densities: list[float] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    after_training: TicketArguments | bool = True

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source, given = base.source, self.densities
        fits = 0 < len(given) == len({percent(share) for share in given}) and all(0 < share < 1 for share in given)
        refuse_twice(given, source, "densities", fits, "above 0 and below 1, that differ in their first three digits")
        self.densities = sorted(given, reverse=True)
        refuse_twice(self.ablations, source, "ablations", True, f"of {', '.join(ABLATIONS)}")
        for name in self.pruning:
            if name not in WHICH:
                raise source.error(f"pruning.{name}", f"unknown argument{nearest(str(name), WHICH)}")
        criteria = named(source, "criteria", self.criteria)
        self._arms = [arm for name, own in criteria.items() for arm in self._arms_of(base, name, own)]
        if self.after_training is not False:
            self._arms.append(self._after(base, {} if self.after_training is True else self.after_training))
        check_weights(base, {arm.made_from[f"algorithms.{arm.algorithm}"]: arm.arguments for arm in self._arms})
        names = [arm.folder for arm in self._arms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise source.error("criteria", f"several of their runs would be called {twice[0]}; choose other names")

    def _arms_of(self, base: Base, name: str, given: Mapping[str, Any]) -> Iterator[Arm]:
        """The criterion's own and those of its ablations."""
        key = f"criteria.{name}"
        if name in (DENSE, AFTER_FOLDER):
            raise base.source.error(key, "is what the study calls something else; choose another name")
        places = {"pruning": self.pruning, key: given}
        for ablation in (None, *(self.ablations if given.get("criterion", name) != "random" else [])):
            labels = [name, ablation] if ablation else [name]
            yield Arm(
                name=", ".join(labels),
                folder="-".join(labels),
                algorithm="prune_at_init",
                arguments=checked_criterion(base, name, places, self.densities[0], ablation),
                made_from=origins("prune_at_init", places),
            )

    def _after(self, base: Base, given: Mapping[str, Any]) -> Arm:
        from accelerando.algorithms import LotteryTicket

        source, key = base.source, "after_training"
        places = {"pruning": self.pruning, key: given}
        added = {"rewind": given.get("rewind", "learning_rate"), **_one_shot(self.densities[0])}
        taken = ("levels", "fraction", "schedule", "save_folder")
        arguments = arguments_of(LotteryTicket, source, places, added, taken)
        cost = 2 - check_rewind(source, key, arguments, base.recipe)
        return Arm(
            name=AFTER,
            folder=AFTER_FOLDER,
            algorithm="lottery_ticket",
            arguments=arguments,
            made_from=origins("lottery_ticket", places),
            cost=cost,
        )

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            yield self.dense(seed)
            for level, density in enumerate(self.densities, 1):
                yield from (arm.node(seed, density, level) for arm in self._arms)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """The last level of each; the level is the place of its density, from 1."""
        for row in [*super().rows(base, node, result)][-1:]:  # before it is the dense network's, if any
            yield replace(row, tags={**row.tags, "level": node.tags["level"]})

    @property
    def random_arm(self) -> str:
        given = {name: own for name, own in self.criteria.items() if own is not False}
        return next((name for name, own in given.items() if (own or {}).get("criterion", name) == "random"), "random")

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        arms, random = {row["arm"] for row in rows}, self.random_arm
        own = [name for name, given in self.criteria.items() if given is not False and name in arms and name != random]
        shares = {percent(row["density"]): row["density"] for row in rows if row["arm"] != DENSE}
        for share, density in sorted(shares.items(), key=lambda item: -item[1]):

            def beside(other: str, reverse: bool = False, density: float = density) -> dict[str, tuple[Cell, Cell]]:
                """By criterion its own network, and that of its other arm."""
                there = {name: other.format(name) for name in own if other.format(name) in arms}
                cells = {name: ((name, density), (arm, density)) for name, arm in there.items()}
                return {name: (second, first) for name, (first, second) in cells.items()} if reverse else cells

            if cells := beside(random):
                claim = f"At {share}, criteria at initialization are better than random pruning."
                yield self.judge(claim, SOURCE, rows, cells, contrast=None)
            if cells := beside(AFTER, reverse=True):
                yield self.judge(f"At {share}, they trail magnitude pruning after training.", SOURCE, rows, cells)
            for ablation, what in COSTS_NOTHING.items():
                if cells := beside(f"{{}}, {ablation}", reverse=True):
                    yield self._costs_nothing(f"At {share}, {what} costs nothing", rows, cells)
            if cells := beside("{}, invert"):
                claim = f"At {share}, inverting their scores harms."
                yield self.judge(claim, "arXiv:2009.08576", rows, cells, contrast=None)

    def _costs_nothing(self, claim: str, rows: Sequence[Row], cells: Mapping[str, tuple[Cell, Cell]]) -> Claim:
        """Which no test can show: it shows at most that what is lost would still match."""
        margin = self.margin(rows)
        claim, unknown = f"{claim}, or less than {margin:.4f}.", "" if math.isfinite(margin) else UNKNOWN
        judged = self.judge(claim, SOURCE, rows, cells, contrast=1, precondition=unknown, at_least=-margin)
        each = [paired(*(self.values(rows, *network) for network in cell)) for cell in cells.values()]
        told = [one for one in each if one.pairs > 1]
        if not told:
            return judged
        most, shown = max(max(abs(one.low), abs(one.high)) for one in told), max(one.detectable for one in told)
        seeds = min(one.pairs for one in told)
        hint = f"differs by at most {most:.4f}, where {seeds} seeds could show {shown:.4f}"
        return replace(judged, measured=f"{judged.measured}; {hint}")


def checked_criterion(
    base: Base, name: str, places: Mapping[str, Mapping[str, Any]], density: float, ablation: str | None = None
) -> dict[str, Any]:
    """The arguments of PruneAtInit at these keys of the study, of which the last one's is the criterion's own."""
    from accelerando.algorithms import PruneAtInit as Algorithm
    from accelerando.algorithms.pruning.criteria import CRITERIA

    key, given = [*places.items()][-1]
    if (criterion := given.get("criterion", name)) not in CRITERIA:
        where = f"{key}.criterion" if "criterion" in given else key
        raise base.source.error(where, f"unknown criterion{nearest(str(criterion), CRITERIA)}")
    _refuse_text(base, key, criterion, given)
    added = {"criterion": criterion, "density": density} | ({ablation: True} if ablation else {})
    return arguments_of(Algorithm, base.source, places, added, ("density", "ticket", *ABLATIONS))


def _refuse_text(base: Base, key: str, criterion: str, arguments: Mapping[str, Any]) -> None:
    """What cannot work with a model that computes its loss itself, from batches by name."""
    from composer.models import HuggingFaceModel

    if criterion != "synflow" and arguments.get("temperature", 1) == 1:
        return
    if isinstance(base.recipe.model.build(), HuggingFaceModel):
        if criterion == "synflow":
            raise base.source.error(key, "synflow feeds images of ones, which this model of text does not take")
        raise base.source.error(f"{key}.temperature", "must be 1 for a model that computes its loss itself")


def _one_shot(density: float) -> dict[str, Any]:
    """Arguments of the LotteryTicket that prunes to this density at once; the arithmetic schedule does it exactly."""
    return {"levels": 1, "fraction": round(1 - density, 12), "schedule": "arithmetic"}
