"""What is measured of twins: the straight line between the ends of two trainings, as the second of them ends."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from composer.core import Event, State
from composer.devices import Device
from composer.loggers import Logger

from accelerando.algorithms.composer.for_recipes import FinishedRun, Supply
from accelerando.algorithms.composer.pruning.sparsity import Pruning
from accelerando.algorithms.connectivity import disagreement, distance, linear_path
from accelerando.algorithms.ranks import gathered
from accelerando.algorithms.snapshots import Snapshot, find_snapshot

from .measured_paths import END, MeasuresPaths, check_paths

MEASURED = "twins"  # in a run's results


class PathsToTwins(MeasuresPaths):
    """At the end of a run, measures the path from the end of each of its `twins` to its own.

    Their ends are the snapshots of `1dur`, theirs and its own. Where the run is pruned, both ends must have its masks'
    support. Loss and error are those that `MeasuresPaths` tells of.

    Args:
        twins: folders of snapshots.
        points: how many, with both ends.
        most_examples: how many there are of each data set at most, by default all.
    """

    supplied: ClassVar = {"twins": Supply.FOLDERS, **MeasuresPaths.supplied}

    def __init__(
        self,
        twins: list[str],
        points: int = 30,
        most_examples: int | None = None,
        own_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        self.twins = twins
        super().__init__(points, most_examples, own_folder, training_batches)

    def match(self, event: Event, state: State) -> bool:
        return event == Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Looks for the twins' ends: that one is missing must not come up after hours."""
        for folder in self.twins:
            find_snapshot(folder, END)

    def found(self, run: FinishedRun) -> dict[str, Any]:
        own = find_snapshot(self.own_folder, END)
        return {MEASURED: [self._measure(run.state, find_snapshot(folder, END), own) for folder in self.twins]}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_paths(found, MEASURED, {"twin", "distance", "disagreement", "curves"})

    def _measure(self, state: State, twin: Snapshot, own: Snapshot) -> dict[str, Any]:
        ends, masks = (twin.weights(), own.weights()), dict[str, torch.Tensor]()
        for pruned in (one for one in state.algorithms if isinstance(one, Pruning)):
            masks |= pruned.masks
        path = linear_path(*ends, masks=masks or None, device=self.device(state))
        curves, predicted = self.curves(state, path, self.points)
        rates = gathered(disagreement(*predicted))
        return {
            "twin": Path(twin.file).parent.parent.name,
            "distance": distance(*ends),
            "disagreement": sum(rates) / len(rates),
            "curves": curves,
        }
