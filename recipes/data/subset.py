"""Some of the examples of another source: the easiest or the hardest by their scores, or as many at random."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from accelerando.algorithms.examples.files import data_digest, load_scores
from accelerando.algorithms.examples.scores import easiest_first

from ..config.errors import REFUSALS, ArgumentError, show
from .wrapped import Examples, Wrapped


@dataclass
class Subset(Wrapped):
    """Some of the data of another source, by scores of its examples, whose lowest are the easiest, or at random.

    The scores are files, of which each must tell by a digest that they are of these very data; several are replicates,
    which are averaged before the examples are ranked. The algorithms ExampleScores and ForgettingEvents leave such
    files of a run, and `save_scores` anybody's. The examples stay in their order. A run of so many batches passes over
    them as often as need be; there must be enough for one batch. The source must hold its examples in memory, in a
    folder of images or in MDS shards, which are then no longer read in Streaming's order, shard by shard.
    """

    count: int = 512  # how many examples
    keep: Literal["easiest", "hardest", "random"] = "random"  # which: by their scores, or drawn
    scores: str | list[str] | None = None  # a file (it may lie in the folder of all runs), or one of each replicate
    by: str | None = None  # the name of the scores, where a file holds several
    offset: int = 0  # how many to leave out first: with 100, the easiest are those from the 101st on
    balanced: bool = False  # as many of each class, but for one; the easiest, and so on, of each
    seed: int | None = None  # of what is drawn, by default 0

    def check(self) -> None:
        for name, least in (("count", 1), ("offset", 0)):
            if getattr(self, name) < least:
                raise ArgumentError(name, f"{getattr(self, name)} given; expected a whole number from {least}")
        drawn = self.keep == "random"
        if drawn == bool(self.scores):
            given = show(self.scores) if drawn else "none"
            raise ArgumentError("scores", f"{given} given; expected {'none' if drawn else 'files'} for {self.keep}")
        for name, acts in (("by", not drawn), ("seed", drawn)):
            if getattr(self, name) is not None and not acts:
                raise ArgumentError(name, f"{show(getattr(self, name))} given, which has no effect for {self.keep}")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ArgumentError("seed", f"{self.seed} given; expected a whole number from 0 to {2**32 - 1}")
        super().check()

    def change(self, examples: Examples) -> None:
        size = len(examples.dataset)
        if self.offset + self.count > size:
            wanted = f"{self.count} after {self.offset}" if self.offset else self.count
            raise ArgumentError("count", f"{wanted} given, but {examples.source} has {size} examples")
        order = self._order(examples, size)
        if self.balanced:
            order = _in_turn(order, examples.labels)
        rows = order[self.offset : self.offset + self.count].sort().values
        if self.balanced:
            held = examples.labels[rows].bincount(minlength=examples.facts.classes or 0)
            if held.max() - held.min() > 1 + bool(self.offset):
                few = f"class {int(held.argmin())} has {int(held.min())} of them, others {int(held.max())}"
                raise ArgumentError("balanced", f"true given, but of {self.count} examples {few}; expected fewer")
        try:
            examples.take(rows.tolist())
        except ValueError as error:
            raise ArgumentError("count", f"{self.count} given, but {error}") from error

    def _order(self, examples: Examples, size: int) -> Tensor:
        """The places of all examples, the first to be taken first."""
        if self.keep == "random":
            return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed or 0))
        assert self.scores
        given = [self.scores] if isinstance(self.scores, str) else self.scores
        # Looked for only now, as a study checks a run before those are done that leave its scores.
        files = [inside if (inside := self._runs / file).is_file() else file for file in given]
        try:
            scores = load_scores(files, data_digest(examples.dataset), size, self.by)
            return easiest_first(scores if self.keep == "easiest" else -scores)
        except REFUSALS as error:
            raise ArgumentError("scores", str(error)) from error


def _in_turn(order: Tensor, labels: Tensor) -> Tensor:
    """The same places, so that of each class comes the first, then of each the second, and so on."""
    turns = torch.zeros_like(order)
    for label in labels.unique():
        own = labels[order] == label
        turns[own] = torch.arange(int(own.sum()))
    return order[turns.argsort(stable=True)]
