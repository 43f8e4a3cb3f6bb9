"""Why pruning changes how well a network generalizes: by longer training, by its smaller size, or by both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from ..config.errors import REFUSALS
from ..run.results import label, percent
from .claims import Claim
from .core import Base, NamedChanges, NamedCriteria, Train
from .density import DENSE
from .generalization_cells import (
    EXTENDED,
    LEFT_OUT,
    NARROWER,
    ONCE,
    PARAMETERS,
    Parts,
    best_level,
    left_out,
    lines_of,
    losses,
    means_over,
    optimum,
    parts_in,
    placed,
    scores_of,
)
from .generalization_checks import check_data, check_keys, checked_ladders, checked_widths, training_data
from .generalization_rounds import Rounds, name_of
from .pruning import PruningStudy, number
from .table import Row, groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

ARMS = (DENSE, EXTENDED, ONCE, NARROWER, *LEFT_OUT.values())


@dataclass(kw_only=True)
class Generalization(PruningStudy):
    """The base run is a round: every training is as long, and begins at initial weights or at another one's end.

    In a ladder each round prunes the trained weights of the one before, and trains on by the whole schedule anew
    (learning rate rewinding). The dense network is trained for as many rounds, and so are `widths`. The first ladder's
    masks are trained once, from the initial weights. Rounds of one number have the same order of the data.

    Args:
        noise: shares of the training examples whose labels are changed to wrong ones; 0 leaves all as they are.
        fraction: the share of the remaining weights that each round prunes.
        rounds: how often.
        criteria: by which, arguments of PruneAtInit by name, such as {magnitude: {}, synflow: {iterations: 1}}.
        widths: narrower dense networks by name, such as {half: {model: {lenet_300_100: {width: 150}}}}.
        improved: the share of the training examples whose loss falls most from the dense network to the first ladder's
            best level, on average over seeds: dense networks are trained without these, and without as many at random.
            null leaves them out.
        score_at: the moment of the dense networks' training at which EL2N tells how hard each example is.
        groups: how many groups of examples, by EL2N, are told of.
    """

    about: ClassVar[str] = (
        "Each round of a ladder prunes trained weights and trains on by the whole schedule, from its beginning "
        "(learning rate rewinding, arXiv 2210.13738). `extended` is the dense network after as many rounds; `once` are "
        "the first ladder's masks on the initial weights after one round; `narrower` is a dense network with as many "
        "parameters after as many rounds, interpolated between widths over the logarithm of that number. All stand at "
        "the density of the first ladder at their level. The optimum is the level whose mean over seeds is best, the "
        "dense network among them. Training loss is told in evaluation mode, without augmentation, on the given "
        "labels; groups of examples are percentiles of the dense networks' EL2N early in training."
    )
    noise: list[float] = field(default_factory=lambda: [0.0])
    fraction: float = 0.2
    rounds: int = 16
    criteria: NamedCriteria = field(default_factory=lambda: {"magnitude": {}})
    widths: NamedChanges = field(default_factory=dict)
    improved: float | None = 0.1
    score_at: str = "0.1dur"
    groups: int = 5

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        check_keys(base, self)
        densities = [(1 - self.fraction) ** level for level in range(self.rounds + 1)]
        ladders = checked_ladders(base, self.criteria, densities[1], ARMS)
        widths, self._parameters = checked_widths(base, self.widths, (*ARMS, *ladders))
        self._rounds = Rounds(
            base=base,
            ladders=ladders,
            given=self.criteria,
            widths=widths,
            data=training_data(base),
            densities=densities,
            score_at=self.score_at,
            seeds=self.seeds,
            improved=self.improved or 0,
        )
        check_data(base, self._rounds, self.noise, self.improved)
        self._parts = dict[float, Parts | None]()

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        rounds, levels = self._rounds, range(1, self.rounds + 1)
        for noise in self.noise:
            for seed in self.seeds:
                yield rounds.of(DENSE, noise, seed, 0)
                for arm in (*rounds.ladders, EXTENDED):
                    yield from (rounds.of(arm, noise, seed, level) for level in levels)
                yield from (rounds.once(noise, seed, level, done) for level in levels)
                for width in rounds.widths:
                    yield from (rounds.of(width, noise, seed, level) for level in (0, *levels))
            if self.improved is not None:
                yield from self._on_fewer(noise, done)

    def _on_fewer(self, noise: float, done: Mapping[str, Result]) -> Iterator[Train]:
        """Their changes are None until the optimum is known; there are none where that is the dense network."""
        first, metric, level = self._rounds.first, self.chosen_by or self.metric or "", None
        names = {
            at: [name_of(first if at else DENSE, noise, seed, at) for seed in self.seeds]
            for at in range(self.rounds + 1)
        }
        after = tuple(chain.from_iterable(names.values()))
        if all(name in done for name in after):
            values = {at: [number(done[name].metrics.get(metric)) for name in own] for at, own in names.items()}
            level = best_level(values, metric)
        if level != 0:
            for seed in self.seeds:
                yield from (self._rounds.without(kind, noise, seed, level, after) for kind in LEFT_OUT)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One, with how many parameters are not pruned, and the training loss and error of each part of the examples.

        Of trainings on fewer examples the latter are left out.
        """
        (row,) = super().rows(base, node, result)
        size = result.found.get("size", {}).get("nonzero", self._parameters[node.tags.get("width", "")])
        metrics = {**row.metrics, PARAMETERS: float(size)}
        if row["arm"] not in LEFT_OUT.values():
            with base.source.blame("", *REFUSALS):
                metrics |= self._losses(base, node.name, row["noise"])
        yield replace(row, metrics=metrics)

    def _losses(self, base: Base, name: str, noise: float) -> dict[str, float]:
        if noise not in self._parts:
            dense = [base.folder / name_of(DENSE, noise, seed, 0) for seed in self.seeds]
            finished = [folder for folder in dense if (folder / "results.json").is_file()]
            self._parts[noise] = parts_in(finished, self.score_at, noise, self.groups)
        if (parts := self._parts[noise]) is None:
            return {}
        scores, digest = scores_of(base.folder / name, "1dur")
        if digest != parts.digest:
            raise ValueError(f"{base.folder / name} has scores of other data than the dense networks")
        return means_over(parts.rows, scores)

    def _by_noise(self, rows: Sequence[Row]) -> Iterator[tuple[float, list[Row], list[Row]]]:
        """For each share of wrong labels its rows, and these by density."""
        for (noise,), own in groups(rows, "noise").items():
            yield noise, own, placed(own, self._rounds.first)

    def _optimum(self, rows: Sequence[Row], ladder: str) -> int:
        return optimum(rows, ladder, self.chosen_by or self.metric or "")

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`generalization.csv`: a line for each arm and level, over seeds."""
        found = (lines_of(own, noise, self.metric or "", self.chosen_by) for noise, _, own in self._by_noise(rows))
        return {"generalization": [line for lines in found for line in lines]}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        first, metric, parts = self._rounds.first, self.metric or "", []
        for noise, own, by_density in self._by_noise(rows):
            level = self._optimum(own, first)
            at = f"round {level}, {percent(self._rounds.densities[level])} of the weights" if level else "dense"
            parts.append(f"{_named(noise).upper()}\n\n{super().text(base, by_density)}")
            parts.append(f"training loss at the optimum of {first}, {self.choice}: {at}\n{losses(by_density, level)}")
            if table := left_out(own, metric):
                share = percent(self.improved or 0)
                parts.append(f"{label(metric)} without {share} of the training examples\n{table}")
        sizes = ", ".join(f"{name or DENSE} {count:,}" for name, count in self._parameters.items())
        return "\n\n".join([*parts, f"parameters: {sizes}"])

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .generalization_figure import draw

        first = self._rounds.first
        found = {
            _named(noise): (by_density, self._optimum(own, first)) for noise, own, by_density in self._by_noise(rows)
        }
        return draw(found, [*self._rounds.ladders], self.metric or "", base.folder.name)

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        from .generalization_claims import claims_of

        for noise, own, by_density in self._by_noise(rows):
            best = {ladder: self._optimum(own, ladder) for ladder in self._rounds.ladders}
            found = claims_of(own, by_density, best, self.metric or "", self.improved is not None)
            yield from (replace(one, claim=f"{one.claim.removesuffix('.')} ({_named(noise)}).") for one in found)


def _named(noise: float) -> str:
    return f"{percent(noise)} of the labels wrong" if noise else "no label wrong"
