"""Masks that were found on one task, in the network of another, whose head and matrices may be others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from composer.core import State
from composer.loggers import Logger

from accelerando.algorithms.composer.for_recipes import Supply
from accelerando.algorithms.composer.pruning.sparsity import Pruning
from accelerando.algorithms.pruning import keep_highest, kept_counts
from accelerando.algorithms.pruning.at_init import masks_of_ticket
from accelerando.algorithms.pruning.criteria import magnitude
from accelerando.algorithms.pruning.masks import Masks, digest
from accelerando.algorithms.pruning.pruner import check_density

TRANSFERRED = f"{__name__}:TransferredTicket"


class TransferredTicket(Pruning):
    """Prunes before the first update by the masks of a file, as far as both networks have the same weights.

    Of each weight that has no mask there, as BERT's pooler has none that was found by masked language modelling, so
    many of greatest magnitude are kept as `density` says.

    Args:
        ticket: a file of masks (see `save_masks`).
        density: that of the masks.
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    supplied: ClassVar = {"ticket": Supply.FILE}

    def __init__(
        self,
        ticket: str,
        density: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        super().__init__(include, exclude, classifier)
        self.check("ticket", Path(ticket).is_file(), "a file of masks", ticket)
        check_density(self._name, density)
        self.ticket, self.density = ticket, density
        self._digest: str | None = None  # of the masks that the file has for this network

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "density": self.density, "ticket": self._digest}

    def measure(self, state: State) -> None:
        # What is wrong with a ticket must not come up after hours.
        self._digest = digest(self._load())

    def _load(self) -> Masks:
        return masks_of_ticket(self._name, self.ticket, self.weights, partial=True) or {}

    def is_due_before(self, state: State) -> bool:
        return state.timestamp.batch > 0

    def chosen(self) -> Masks:
        """The masks of all weights."""
        masks = self._load()
        if rest := {name: weight for name, weight in self.weights.items() if name not in masks}:
            sizes = {name: weight.numel() for name, weight in rest.items()}
            masks |= keep_highest(magnitude(rest), kept_counts(sizes, self.density, "layerwise"))
        return masks

    def before_update(self, state: State, logger: Logger) -> None:
        if not self.masks and state.timestamp.batch == 0:
            self.prune(self.chosen(), state, logger)
