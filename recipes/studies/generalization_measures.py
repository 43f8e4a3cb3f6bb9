"""What a ladder's round leaves where its training ends: its masks, and by how much each example's loss has improved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from accelerando.algorithms.checkpoints import read_metadata
from accelerando.algorithms.composer.for_recipes import FinishedRun, Folder, Supply
from accelerando.algorithms.examples.files import save_scores
from accelerando.algorithms.pruning.files import save_masks
from accelerando.algorithms.pruning.masks import digest
from accelerando.algorithms.ranks import rank
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.algorithms.validation import check

from .generalization_rounds import FOLDER, IMPROVEMENT, MASKS, ROUND
from .measured_paths import END, AtEnd, masks_of


class RoundOfLadder(AtEnd):
    """At the end of a run that is pruned, keeps its masks, and the improvement of each training example's loss.

    That is the example's loss at the end of another run less that at the end of this one, as ExampleScores has left
    both: the scores `improvement`, whose lowest are the examples that have improved least.

    Args:
        twins: the folder of the other run's scores, alone in a list.
        own_folder: of the run's own scores.
        save_folder: where masks and improvement are kept.
    """

    supplied: ClassVar = {
        "twins": Supply.FOLDERS,
        "own_folder": Folder(name="scores"),
        "save_folder": Folder(name=FOLDER),
    }

    def __init__(self, twins: list[str], own_folder: str = "", save_folder: str = ""):
        super().__init__(twins, None, own_folder, None)
        check("RoundOfLadder", "twins", len(twins) == 1, "the folder of one run's scores", twins)
        self.save_folder = save_folder

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """The digest of the masks, and for how many of all examples the loss is lower than it was."""
        before, after = (find_snapshot(folder, END) for folder in (self.twins[0], self.own_folder))
        losses = [snapshot.weights()["loss"] for snapshot in (before, after)]
        of_data, theirs = (read_metadata(snapshot.file)["digest"] for snapshot in (after, before))
        check("RoundOfLadder", "twins", of_data == theirs, "scores of the data that this run has", before.file)
        improvement, masks = losses[0] - losses[1], masks_of(run.state)
        if rank() == 0:
            save_masks(Path(self.save_folder, MASKS), masks)
            save_scores(Path(self.save_folder, IMPROVEMENT), {"improvement": improvement}, of_data)
        return {ROUND: {"digest": digest(masks), "improved": int((improvement > 0).sum()), "of": len(improvement)}}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        own = found.get(ROUND)
        if not (isinstance(own, dict) and isinstance(own.get("digest"), str)):
            raise ValueError(f"{ROUND} is {own!r}; expected the digest of its masks")
