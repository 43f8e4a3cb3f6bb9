"""What is measured of twins: the straight line between the ends of two trainings, as the second of them ends."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from composer.core import State
from composer.devices import Device

from accelerando.algorithms.batches import device_of
from accelerando.algorithms.composer.for_recipes import FinishedRun
from accelerando.algorithms.connectivity import disagreement, distance, linear_path
from accelerando.algorithms.ranks import gathered
from accelerando.algorithms.snapshots import Snapshot, find_snapshot

from .measured_paths import END, AtEnd, check_paths, masks_of, network_of
from .twins import MEASURED


class PathsToTwins(AtEnd):
    """At the end of a run, measures the path from the end of each of its `twins` to its own.

    Where the run is pruned, both ends must have its masks' support. Loss and error are those of `AtEnd.curves`.

    Args:
        twins: folders of snapshots.
        points: how many, with both ends.
        most_examples: how many there are of each data set at most, by default all.
    """

    def __init__(
        self,
        twins: list[str],
        points: int = 30,
        most_examples: int | None = None,
        own_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        super().__init__(twins, most_examples, own_folder, training_batches)
        self.points = points

    def found(self, run: FinishedRun) -> dict[str, Any]:
        own = find_snapshot(self.own_folder, END)
        return {MEASURED: [self._measure(run.state, find_snapshot(folder, END), own) for folder in self.twins]}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_paths(found, MEASURED, {"twin", "distance", "disagreement", "curves"})

    def _measure(self, state: State, twin: Snapshot, own: Snapshot) -> dict[str, Any]:
        ends = twin.weights(), own.weights()
        path = linear_path(*ends, masks=masks_of(state) or None, device=device_of(network_of(state)))
        curves, predicted = self.curves(state, path, self.points)
        rates = gathered(disagreement(*predicted))
        return {
            "twin": Path(twin.file).parent.parent.name,
            "distance": distance(*ends),
            "disagreement": sum(rates) / len(rates),
            "curves": curves,
        }
