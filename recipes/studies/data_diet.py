"""Lottery tickets on a data diet: on which data, and for how many steps, a network must be trained to hold tickets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

from ..config.errors import show
from ..config.keys import Holds
from ..run.results import percent
from .claims import Claim
from .core import Base, TicketArguments, Train
from .data_diet_cells import INITIAL, LADDER, ORIGIN, SCORES, Ticket, arm_of, examples_of, midpoint_before, tickets_of
from .data_diet_claims import Judged, claims_of
from .data_diet_starts import Diet, check_counted_in_batches, checked_ladders, checked_starts, origins_of
from .data_diet_tables import lines_of_midpoints, lines_of_needed, lines_of_predictors, lines_of_starts, table
from .density import DENSE, Mean
from .landscape import HESSIAN, check_hessian
from .landscape_cells import curvature_of
from .lengths import duration
from .paths import check_steps
from .stability_cells import COPY
from .stability_checks import check_copies
from .table import Row
from .twins import PATHS, StudyOfTwins, pairs_of, twins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

MEASURES = "accelerando.recipes.studies.data_diet_measures"
BEGINS, EXAMPLES = f"{MEASURES}:BeginsSchedule", f"{MEASURES}:ExamplesOfTwins"
MIDPOINTS = f"{MEASURES}:MidpointsOfLevels"
SCORERS = 2_000_003  # from a run's seed to those of the networks that score its examples


@dataclass(kw_only=True)
class DataDiet(StudyOfTwins):
    """The base run is the dense training on all data, of length T in batches.

    From the same initial weights a network is pre-trained for k batches on each of several data, of which a small set
    is passed over as often as need be, by the base run's schedule. From its weights W_k there begin, on all data and
    with the schedule's place k, a ladder of iterative magnitude pruning, which is rewound to W_k; and dense copies with
    different noise, the seed of the data's order and augmentation, which tell how many training examples are linearly
    connected. All starts see the same batches from k on. At k = 0 there is one ladder for all starts.

    Args:
        steps: the k, in ba, 0ba among them.
        starts: what the pre-training's data are, by name; one of them is {}, all data. Others have a `count` of
            examples; `keep`, the `easiest`, the `hardest` or `random` ones, by default; `offset`, how many of these are
            left out first; `balanced`, as many of each class; and the share of `wrong_labels`.
        score_at: the moment, in ba, at which networks with other seeds score the examples by EL2N.
        replicates: how many networks do.
        ladder: arguments of LotteryTicket, such as {levels: 6, fraction: 0.4}.
        density: that of the tickets which are compared, the share of the weights at one of the ladder's levels.
        copies: how many of each W_k; a path is measured for each pair.
        points: of each path, with both ends.
        path_examples: on how many of the training and of the evaluation data a path is measured, and the statistics of
            batch norm are recomputed, at most; null for all. The connected examples are counted among all.
        connected_below: the barrier below which an example is connected, in units of the loss.
        hessian: measured of each copy, with how many `examples`, `probes`, `eigenvalues`, and vectors `at_once`, such
            as {probes: 50}, as `landscape_measures.HessianAtEnd` tells; null to leave it out.
    """

    about: ClassVar[str] = (
        "A network is pre-trained for k batches on all data, or on few of them: as many at random, the easiest or the "
        "hardest by EL2N, the mean over several networks at an early step. From there iterative magnitude pruning goes "
        "on all data, each level rewound to step k (arXiv 2206.01278). A ticket matches if it is worse than the same "
        "seed's dense training from initial weights by `tolerance` at most, a start at a step if its tickets do on "
        "average. An example is linearly connected if its loss midway between two dense copies, trained from step k "
        "with different noise, exceeds the mean of its losses at both ends by less than `connected_below`. It is told "
        "with the running statistics of batch norm interpolated, as in the authors' code, and with these recomputed "
        "from training data."
    )
    steps: list[str] = field(default_factory=lambda: ["0ba"])
    starts: Annotated[dict[str, Any], Holds("", by_name=True, also=get_type_hints(Diet))] = field(default_factory=dict)
    score_at: str | None = None
    replicates: int = 10
    ladder: TicketArguments = field(default_factory=dict)
    density: float = 0.0
    copies: int = 2
    points: int = 5
    path_examples: int | None = None
    connected_below: float = 0.1
    hessian: dict[str, Any] | None = None

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        check_copies(base, self)
        check_hessian(base, self.hessian)
        check_counted_in_batches(base.recipe)
        for key, fits, expected in (
            ("connected_below", self.connected_below > 0, "a loss above 0"),
            ("replicates", self.replicates > 0, "1 or more"),
        ):
            if not fits:
                raise source.error(key, f"{getattr(self, key)} given; expected {expected}")
        self.steps = check_steps(source, self.steps, base.recipe)
        if self.steps[0] != "0ba" or len(self.steps) < 2:
            hint = "expected 0ba, from where pruning may fail, and later ones, all in ba"
            raise source.error("steps", f"{show(self.steps)} given; {hint}")
        self._length = int(duration(base.recipe).value)
        self._diets = checked_starts(base, self.starts, (INITIAL, DENSE))
        self._check_scoring(base)
        self._ladders = checked_ladders(base, self.ladder, self.steps, self.density)
        shares = [*map(percent, self._ladders["0ba"].densities)]
        self._level = shares.index(percent(self.density), 1)  # which small layers reach but for rounding

    def _check_scoring(self, base: Base) -> None:
        at, error = self.score_at, base.source.error
        if not any(diet.is_scored for diet in self._diets.values()):
            if at is not None:
                raise error("score_at", "given, but no start keeps the easiest or the hardest examples; leave it out")
        elif at is None or not 0 < _batches(at) <= self._length:
            hint = f"expected a moment from 1ba to {self._length}ba, as starts keep examples by their scores"
            raise error("score_at", f"{show(at)} given; {hint}" if at else f"missing; {hint}")

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            scorers = [self._scorer(seed, number) for number in range(self.replicates if self.score_at else 0)]
            yield from scorers
            yield from self._from(base, seed, INITIAL, "0ba", None)
            for start in self._diets:
                yield (origin := self._pretraining(base, seed, start, scorers))
                for step in self.steps[1:]:
                    yield from self._from(base, seed, start, step, origin)

    def _begins(self, at: str, **algorithms: Any) -> dict[str, Any]:
        """What a run sets that is the beginning of the base run up to that moment."""
        return {"max_duration": at, "algorithms": {BEGINS: {"length": f"{self._length}ba"}, **algorithms}}

    def _scorer(self, seed: int, number: int) -> Train:
        """A beginning of the base run, with other seeds, that scores the examples where it ends."""
        assert self.score_at is not None
        return Train(
            name=f"{SCORES}-{number}-seed{seed}",
            sets={
                "seed": (seed + SCORERS * (number + 1)) % 2**32,
                **self._begins(self.score_at, example_scores={"at": [self.score_at]}),
            },
            made_from={"algorithms.example_scores": "score_at", "max_duration": "score_at"},
            cost=_batches(self.score_at) / self._length,
            tags={"role": SCORES, "arm": SCORES, "seed": seed, "level": 0},
        )

    def _pretraining(self, base: Base, seed: int, start: str, scorers: Sequence[Train]) -> Train:
        """From initial weights to the last step; the weights of all steps are kept."""
        diet, last, data = self._diets[start], self.steps[-1], dict[str, Any]()
        scorers = scorers if diet.is_scored else ()
        if not diet.is_whole:
            files = [f"{base.name}/{one.name}/scores/ba{_batches(self.score_at)}.safetensors" for one in scorers]
            data = {"train_data": diet.of(base.recipe.config["train_data"], seed, files)}
        return Train(
            name=f"{ORIGIN}-{start}-seed{seed}",
            sets={"seed": seed, **data, **self._begins(last, snapshots={"at": self.steps[1:], "full": False})},
            made_from={**origins_of(start), "max_duration": "steps", "algorithms.snapshots.at": "steps"},
            after=tuple(one.name for one in scorers),
            cost=_batches(last) / self._length,
            tags={"role": ORIGIN, "arm": start, "start": start, "seed": seed, "level": 0},
        )

    def _from(self, base: Base, seed: int, start: str, step: str, origin: Train | None) -> Iterator[Train]:
        """The ladder and the copies from the weights of a start at a step."""
        ladder, k, T = self._ladders[step], _batches(step), self._length
        name, sets, after = start, {"seed": seed}, ()
        if origin is not None:
            name, after = f"{start}-{step}", (origin.name,)
            begin = {"run": f"{base.name}/{origin.name}", "at": step, "schedule": "continue", "data": "restart"}
            sets = {**sets, "start": begin}
        place = {"arm": arm_of(start, step), "start": start, "step": step, "k": k, "share": k / T, "seed": seed}
        node = Train(name=name, sets=sets, made_from={"start.at": "steps"}, after=after, cost=1 - k / T, tags=place)
        ends = [f"{T + level * (T - k)}ba" for level in range(ladder.levels + 1)]
        most = {} if self.path_examples is None else {"most_examples": self.path_examples}
        algorithms = {"lottery_ticket": ladder.arguments, "snapshots": {"at": ends, "full": False}, MIDPOINTS: most}
        yield replace(
            node,
            name=f"{LADDER}-{name}-seed{seed}",
            sets={**sets, "algorithms": algorithms},
            made_from={**node.made_from, **ladder.made_from},
            cost=len(ends) * node.cost,
            tags={**place, "role": LADDER},
        )
        dense = replace(node, tags={**place, "role": COPY, "level": 0})
        for copy in twins(dense, name, self.copies, base.name, self.points, self.path_examples):
            algorithms = dict(copy.sets["algorithms"])
            if before := algorithms.get(PATHS):
                algorithms[EXAMPLES] = {"twins": before["twins"], "connected_below": self.connected_below, **most}
            if self.hessian is not None:
                algorithms[HESSIAN] = self.hessian
            made_from = {**copy.made_from, f"algorithms.{HESSIAN}": "hessian"}
            yield replace(copy, sets={**copy.sets, "algorithms": algorithms}, made_from=made_from)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each training, of a ladder for each level; and one for each pair of copies, which costs nothing.

        A ladder's have what was measured midway from the level before, copies the trace of their Hessian and more, and
        pairs the share of connected examples. The dense network is level 0 of the ladder from initial weights.
        """
        role = node.tags["role"]
        for row in super().rows(base, node, result):
            tags, metrics = dict(row.tags), dict(row.metrics)
            if role == LADDER:
                tags["arm"] = node.tags["arm"] if row["level"] or node.tags["k"] else DENSE
                metrics |= midpoint_before(result, row["level"])
            elif role == COPY:
                metrics |= curvature_of(result)
            yield (row := replace(row, tags=tags, metrics=metrics))
            for place, pair in enumerate(pairs_of(row, result)):
                yield replace(pair, metrics={**pair.metrics, **examples_of(result, place)})

    def means(self, rows: Sequence[Row]) -> list[Mean]:
        """Those of ladders alone, whose arms others bear too."""
        return super().means([row for row in rows if row["role"] == LADDER])

    def tickets(self, rows: Sequence[Row]) -> list[Ticket]:
        """Those of each start at each step, at `density`."""
        chosen = self.chosen_by or self.metric or ""
        margin = next((mean.tolerance for mean in self.means(rows) if mean.arm != DENSE), math.nan)
        return tickets_of(rows, self.cells(rows), self.metric or "", chosen, self._level, margin)

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`density.csv` and `midpoints.csv` of ladders; `starts.csv`, `needed.csv`, `predictors.csv` of tickets."""
        tickets = self.tickets(rows)
        found = {"starts": lines_of_starts(tickets), "needed": lines_of_needed(tickets, self._diets)}
        found |= {"predictors": lines_of_predictors(tickets), "midpoints": lines_of_midpoints(rows)}
        return {**super().summaries(base, rows), **{name: lines for name, lines in found.items() if lines}}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        if not (tickets := self.tickets(rows)):
            return "no ladder is finished yet"
        return f"{super().text(base, rows)}\n\n{table(tickets, rows, self.metric or '', self.density, [*self._diets])}"

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .data_diet_figure import draw

        tickets, starts = self.tickets(rows), [*self._diets]
        shown = self.metric or "", self.density, base.folder.name
        return draw(self.means(rows), tickets, starts, *shown) if tickets else None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        right = {name: diet for name, diet in self._diets.items() if diet.count is not None and not diet.wrong_labels}
        random = {diet.count: name for name, diet in right.items() if not diet.is_scored}
        judged = Judged(
            all_data=next(name for name, diet in self._diets.items() if diet.is_whole),
            random=[name for name, diet in right.items() if not diet.is_scored],
            easy={name: random.get(diet.count, "") for name, diet in right.items() if diet.keep == "easiest"},
            tolerance=self.margin(rows),
            density=self.density,
            choice=self.choice,
        )
        yield from claims_of(self.tickets(rows), judged)


def _batches(time: str | None) -> int:
    """The number of batches in ba; 0 of another unit."""
    from accelerando.algorithms.progress import moment

    found = moment(time) if time else None
    return int(found.value) if found and found.unit == "ba" else 0
