"""Lottery tickets: how sparse a subnetwork still matches the dense network, found by iterative magnitude pruning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from ..config.keys import Holds
from ..run.results import percent
from .claims import Claim
from .core import Base, TicketArguments, Train, named, refuse_twice
from .density import DENSE, UNKNOWN, by_arm, dense_of
from .pruning import PruningStudy
from .pruning_checks import (
    WHICH,
    arguments_of,
    check_rewind,
    check_seeds_matter,
    check_weights,
    origins,
    ticket_of,
)
from .table import Row

if TYPE_CHECKING:
    from ..config.recipe import Recipe
    from ..run.results import Result

Control = Literal["random", "reinitialize", "shuffle"]
OTHER_SEED = 1_000_000  # from a run's own to that of other initial weights
REINITIALIZED = {"weights_seed": "seeds"}
MODERATE = (0.2, 0.5)  # densities


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The arguments of a LotteryTicket, and the share of T at which its step k lies."""

    name: str
    arguments: dict[str, Any]
    made_from: dict[str, str]
    densities: list[float]
    rewind: float

    @property
    def levels(self) -> int:
        return len(self.densities) - 1

    def node(self, seed: int) -> Train:
        return Train(
            name=f"{self.name}-seed{seed}",
            sets={"seed": seed, "algorithms": {"lottery_ticket": self.arguments}},
            made_from=self.made_from,
            cost=1 + self.levels * (1 - self.rewind),
            tags={"arm": self.name, "seed": seed},
        )


@dataclass(kw_only=True)
class Tickets(PruningStudy):
    """The base run is the dense training, of length T. A ladder is one run of T + levels (T - k), k its `rewind_to`.

    A control is a run of length T, dense up to k, that from there has as many weights as the first ladder's level:
    drawn at random (`random`), or in each layer as many as the ticket has, in random places (`shuffle`); or the
    ticket's own weights in a network with other initial weights (`reinitialize`), for which all else is drawn alike.

    Args:
        ladders: arguments of LotteryTicket by name, such as {iterative: {levels: 12}}; false leaves one out.
        ticket: arguments that all ladders share, such as {rewind_to: 1ep}.
        controls: what the first ladder's subnetworks are compared with.
        control_levels: at which of its levels; by default at all of them, and of an empty list at none.
    """

    ladders: Annotated[dict[str, Any], Holds("algorithms.lottery_ticket", by_name=True)] = field(default_factory=dict)
    ticket: TicketArguments = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    control_levels: list[int] | None = None

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        given = named(source, "ladders", self.ladders)
        for name in given:
            if name in (*get_args(Control), DENSE):
                raise source.error(f"ladders.{name}", "is what the study calls something else; choose another name")
        places = {name: {"ticket": self.ticket, f"ladders.{name}": own} for name, own in given.items()}
        self._ladders = [checked_ladder(base, name, own) for name, own in places.items()]
        self._checked, self._tells_dense = set[str](), dict[int, str]()  # files of masks; ladders by seed
        first = self._ladders[0]
        refuse_twice(self.controls, source, "controls", True, f"of {', '.join(get_args(Control))}")
        if self.controls and first.arguments.get("rewind", "weights") != "weights":
            hint = f"what they are compared with begins at step k, but {first.name} does not rewind weights"
            raise source.error("controls", f"{hint}; let the first ladder do that, or leave them out")
        if self.control_levels is not None:
            fits = all(1 <= level <= first.levels for level in self.control_levels)
            expected = f"from 1 to {first.levels}, the levels of {first.name}"
            refuse_twice(self.control_levels, source, "control_levels", fits, expected)
        check_weights(base, {f"ladders.{ladder.name}": ladder.arguments for ladder in self._ladders})
        if "reinitialize" in self.controls:
            check_seeds_matter(base, "controls", first.arguments)
            for seed in self.seeds:
                base.recipe_of(Train(name="reinitialize", sets=other_weights(seed), made_from=REINITIALIZED))

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            yield from (ladder.node(seed) for ladder in self._ladders)
            found = done.get(f"{self._ladders[0].name}-seed{seed}")
            for level in self._levels():
                for control in self.controls:
                    # What needs the masks of a level at which the ladder did not arrive is left out; `text` tells.
                    if control == "random" or found is None or level < len(found.found["levels"]):
                        yield self._control(base, control, level, seed, found)

    def _levels(self) -> list[int]:
        every = range(1, self._ladders[0].levels + 1)
        return sorted(every if self.control_levels is None else self.control_levels)

    def _control(self, base: Base, control: Control, level: int, seed: int, found: Result | None) -> Train:
        """Of the first ladder's level, by whose masks it is called; another ticket makes another run."""
        first = self._ladders[0]
        ladder, name = f"{first.name}-seed{seed}", f"{control}-{first.name}-level{level}"
        arguments = {name: first.arguments[name] for name in WHICH if name in first.arguments}
        arguments["at"], problem = first.arguments.get("rewind_to", "0ba"), ""
        if control == "random":
            arguments |= {"criterion": "random", "density": first.densities[level]}
        elif found is not None:
            name, file, problem = ticket_of(base, ladder, found, level, name, seed, self._checked)
            arguments |= {"ticket": f"{base.name}/{file}"} | ({"shuffle": True} if control == "shuffle" else {})
        other = other_weights(seed) if control == "reinitialize" else {}
        return Train(
            name=f"{name}-seed{seed}",
            changes={} if control == "random" or found else None,
            sets={"seed": seed, **other, "algorithms": {"prune_at_init": arguments}},
            made_from={"algorithms.prune_at_init": f"ladders.{first.name}", **REINITIALIZED},
            after=() if control == "random" else (ladder,),
            tags={"arm": control, "seed": seed, "level": level},
            problem=problem,
        )

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """The dense network is the same in all ladders of a seed, and is told once, by the first that is finished."""
        for row in super().rows(base, node, result):
            if row["level"] or self._tells_dense.setdefault(row["seed"], node.name) == node.name:
                yield row

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The means, and which of the first ladders ended before a level whose masks a control needs."""
        lines = [super().text(base, rows)]
        for seed in self.seeds if {*self.controls} - {"random"} else []:
            node = f"{self._ladders[0].name}-seed{seed}"
            ended = max((row["level"] for row in rows if row.node == node), default=math.inf)
            if lacking := ", ".join(str(level) for level in self._levels() if level > ended):
                lines.append(f"{node} ended after level {ended}: it has no masks for controls at level {lacking}")
        return "\n".join(lines)

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        found = self.means(rows)
        means = {arm: {percent(mean.density): mean for mean in own} for arm, own in by_arm(found).items()}
        ladders = [name for name, given in self.ladders.items() if given is not False and name in means]
        if not ladders:
            return
        first = ladders[0]
        matching = [*takewhile(lambda share: means[first][share].matches, means[first])]
        for control, words in (("random", "as many weights at random"), ("reinitialize", "other initial weights")):
            if control in means:
                nowhere = f"no ticket matches the dense network where {words} were tried"
                cells, hint = {}, nowhere if dense_of(found) else UNKNOWN
                if shares := [share for share in matching if share in means[control]]:
                    where = f"at {shares[-1]}, the sparsest compared match ({self.choice})"
                    cells = {where: ((first, cell := means[first][shares[-1]].density), (control, cell))}
                    hint = f"at {shares[-1]} {words} match too" if means[control][shares[-1]].matches else ""
                claim = f"Tickets match the dense network where {words} do not."
                contrast = None if control == "random" else 0
                source = "arXiv:1912.05671, as others quote it"
                yield self.judge(claim, source, rows, cells, contrast=contrast, precondition=hint)
        moderate = [mean.density for mean in means[first].values() if MODERATE[0] <= mean.density <= MODERATE[1]]
        cells = {percent(density): ((first, density), (DENSE, 1.0)) for density in moderate}
        claim = "With 20 to 50 % of the weights, tickets are better than the dense network."
        yield self.judge(claim, "arXiv:1803.03635, abstract", rows, cells, contrast=None)
        several = next((name for name in ladders if len(means[name]) > 1), first)
        cells = {}
        for name in ladders:
            (share, once), *more = means[name].items()
            if not more and name != several and share in means[several]:
                cells[share] = ((several, once.density), (name, once.density))
        claim = "Iterative pruning is better than pruning to as many weights at once."
        yield self.judge(claim, "arXiv:1803.03635, as others quote it", rows, cells)
        for control, words in (("shuffle", "shuffled in each layer"), ("reinitialize", "drawn anew")):
            cells = {s: ((first, mean.density), (control, mean.density)) for s, mean in means.get(control, {}).items()}
            what = "masks" if control == "shuffle" else "initial weights"
            if cells:
                claim = f"Tickets suffer where their {what} are {words}."
                yield self.judge(claim, "arXiv:2009.08576, abstract", rows, cells)


def other_weights(seed: int) -> dict[str, int]:
    """What a run of that seed sets to begin with other initial weights, and to draw all else as it would."""
    return {"seed": seed, "weights_seed": seed + OTHER_SEED}


def checked_ladder(
    base: Base, name: str, places: Mapping[str, Mapping[str, Any]], recipe: Recipe | None = None
) -> Ladder:
    """The ladder with the arguments that stand at these keys of the study, of which the last one counts.

    Its trainings are those of the recipe, by default the base run.
    """
    from accelerando.algorithms import LotteryTicket
    from accelerando.algorithms.pruning import level_densities

    arguments = arguments_of(LotteryTicket, base.source, places, {}, taken=("save_folder",))
    levels, fraction = arguments["levels"], arguments.get("fraction", 0.2)
    densities = level_densities(levels, fraction, arguments.get("schedule", "geometric"))
    rewind = check_rewind(base.source, [*places][-1], arguments, recipe or base.recipe)
    made_from = origins("lottery_ticket", places)
    return Ladder(name=name, arguments=arguments, made_from=made_from, densities=densities, rewind=rewind)
