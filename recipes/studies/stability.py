"""Linear mode connectivity: from which step on a network, dense or pruned, is stable to the noise of SGD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from .claims import Claim
from .core import Base, TicketArguments, Train, refuse_twice
from .density import DENSE
from .paths import check_steps
from .pruning_checks import check_seeds_matter, check_weights
from .stability_cells import COPY, TICKETS, means_of, table
from .stability_checks import check_copies, check_densities
from .stability_claims import Judged, claims_of
from .table import Row
from .tickets import REINITIALIZED, Control, Ladder, checked_ladder, other_weights
from .twins import StudyOfTwins, is_reached, pairs_of, pruned, twins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

ORIGIN, OTHER = "origin", "other weights"  # runs from whose step k others start


@dataclass(kw_only=True)
class Stability(StudyOfTwins):
    """The base run is the dense training, of length T. Its weights W_k are kept at each step k.

    Copies are trained from W_k to T with different noise: the seed of the data's order and augmentation. All else is
    the same: weights and buffers, mask, place in the schedule and in the data, and all that `seed` draws, such as
    dropout. There are copies of the dense network; of tickets, by the masks of iterative magnitude pruning that is
    rewound to k; and of their controls: as many weights at random, or the ticket's masks in the step k of a run with
    other initial weights (`reinitialize`), or shuffled in each layer (`shuffle`).

    Args:
        steps: the k, all in ep or all in ba.
        copies: how many of each network; a path is measured for each pair.
        densities: shares of the weights that a ladder keeps at one of its levels.
        ladder: arguments of LotteryTicket, such as {fraction: 0.2}. A ladder begins at k itself.
        controls: what the tickets are compared with.
        optimizer: whether the optimizer's state at k is `fresh`, as in the paper's algorithm, or `keep` that of k, in
            ladders and copies alike; of a pruned network as far as its weights are kept.
        points: of each path, with both ends.
        path_examples: on how many of the training and of the evaluation data a path is measured, at most; null for all.
        stable_below: the barrier below which a network is stable, in points of error.
        setting: whether the base run counts as the paper's `small` setting, LeNet on MNIST, or a `harder` one.
    """

    about: ClassVar[str] = (
        "Copies of a network are trained from its step k to the end with different noise: the data's order and "
        "augmentation. A barrier is the highest error on the straight line between two copies less the mean of their "
        "own, in points; a network is stable if it is below `stable_below` (arXiv 1912.05671). It is told with the "
        "running statistics of batch norm interpolated, and with these recomputed from training data at each point. A "
        "pruned network matches if the mean of its copies is worse than that of the same seed's dense trainings by "
        "`tolerance` at most; where that is null, by one standard deviation of the latter over seeds."
    )
    steps: list[str] = field(default_factory=lambda: ["0ba"])
    copies: int = 2
    densities: list[float] = field(default_factory=list)
    ladder: TicketArguments = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    optimizer: Literal["fresh", "keep"] = "fresh"
    points: int = 30
    path_examples: int | None = None
    stable_below: float = 2.0
    setting: Literal["small", "harder"] = "harder"

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        check_copies(base, self)
        self.steps = check_steps(source, self.steps, base.recipe)
        refuse_twice(self.controls, source, "controls", True, f"of {', '.join(get_args(Control))}")
        if not self.densities and (self.controls or self.ladder):
            given = "controls" if self.controls else "ladder"
            raise source.error(given, "given without densities; expected those at which networks are pruned")
        self._ladders, self._checked = dict[str, Ladder](), set[str]()  # by step; files of masks
        if self.densities:
            self._levels = check_densities(base, self.densities, self.ladder)
            self.densities = [*self._levels]
            for step in self.steps:
                own = {**self.ladder, "levels": max(self._levels.values()), "rewind_to": step}
                self._ladders[step] = checked_ladder(base, f"ladder-{step}", {"ladder": own})
            arguments = self._ladders[self.steps[0]].arguments
            check_weights(base, {"ladder": arguments})
            if "reinitialize" in self.controls:
                check_seeds_matter(base, "controls", arguments)

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            origin, other = (self._origin(seed, arm) for arm in (DENSE, OTHER))
            yield origin
            if "reinitialize" in self.controls:
                yield other
            for step in self.steps:
                dense = self._copy(base, origin, seed, step)
                yield from self._twins(base, dense, f"{DENSE}-{step}")
                if not self.densities:
                    continue
                ladder = self._ladders[step].node(seed)
                cost = ladder.cost - self._ladders[step].rewind  # as level 0 begins at k too
                ladder = replace(ladder, tags={**ladder.tags, "role": "ladder", "arm": TICKETS})
                yield self._from(base, ladder, origin, step, cost)
                found = done.get(ladder.name)
                for density, level in self._levels.items():
                    for arm in (TICKETS, *self.controls):
                        start = other if arm == "reinitialize" else origin
                        copy = self._copy(base, start, seed, step)
                        copy = replace(copy, name=f"{arm}-{step}-{density:g}", tags={**copy.tags, "arm": arm})
                        if is_reached(arm, level, found):
                            copy = pruned(base, copy, self._ladders[step], level, step, found, self._checked)
                            yield from self._twins(base, copy, copy.name)

    def _origin(self, seed: int, arm: str) -> Train:
        other = other_weights(seed) if arm == OTHER else {}
        kept = {"at": self.steps, "full": self.optimizer == "keep"}
        return Train(
            name=f"{arm.replace(' ', '-')}-seed{seed}",
            sets={"seed": seed, **other, "algorithms": {"snapshots": kept}},
            made_from={"algorithms.snapshots.at": "steps", "algorithms.snapshots.full": "optimizer", **REINITIALIZED},
            tags={"role": ORIGIN, "arm": arm, "seed": seed, "level": 0},
        )

    def _from(self, base: Base, node: Train, origin: Train, step: str, cost: float) -> Train:
        """The training, but from the step k of its origin."""
        start = {"run": f"{base.name}/{origin.name}", "at": step, "optimizer": self.optimizer}
        return replace(
            node,
            sets={**node.sets, "start": start},
            made_from={**node.made_from, "start.at": "steps", "start.optimizer": "optimizer"},
            after=(*node.after, origin.name),
            cost=cost,
            tags={**node.tags, "step": step},
        )

    def _copy(self, base: Base, origin: Train, seed: int, step: str) -> Train:
        """What all copies of a network have in common: a dense one's, before anything is pruned."""
        rewind = self._ladders[step].rewind if self._ladders else 0.0
        node = Train(name="", sets={"seed": seed}, tags={"role": COPY, "arm": DENSE, "seed": seed, "level": 0})
        return self._from(base, node, origin, step, 1 - rewind)

    def _twins(self, base: Base, node: Train, name: str) -> Iterator[Train]:
        yield from twins(node, name, self.copies, base.name, self.points, self.path_examples)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each training, of a ladder for each level; and one for each path, which cost nothing in training.

        A copy's and a path's have also `k`, the batches before it, and `share`, of T.
        """
        place = {}
        if node.tags["role"] == COPY:
            k = result.begun.get("batch", 0)
            place = {"k": k, "share": k / (k + result.batches)}
        for row in super().rows(base, node, result):
            row = replace(row, tags={**row.tags, **place})
            yield row
            yield from pairs_of(row, result)

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`stability.csv`: each network at each step, over seeds."""
        return {"stability": means_of(self.cells(rows), self.stable_below)}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        return table(self.cells(rows), self.metric or "", self.stable_below)

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .stability_figure import draw

        cells = self.cells(rows)
        return draw(cells, rows, self.metric or "", self.stable_below, base.folder.name) if cells else None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        judged = Judged(stable_below=self.stable_below, steps=self.steps, setting=self.setting)
        yield from claims_of(self.cells(rows), judged)
