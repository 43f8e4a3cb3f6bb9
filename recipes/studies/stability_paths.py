"""What is measured of twins: the straight line between the ends of two trainings, as the second of them ends."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.devices import Device
from composer.loggers import Logger

from accelerando.algorithms.composer.for_recipes import FinishedRun, Folder, ForRecipes, Supply
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.composer.pruning.sparsity import Pruning, plain_forward
from accelerando.algorithms.connectivity import (
    PathMetrics,
    disagreement,
    distance,
    error_per_example,
    evaluate_path,
    linear_path,
    loss_per_example,
    recompute_statistics,
)
from accelerando.algorithms.connectivity.batch_norm import averaged_over_ranks, batch_norms
from accelerando.algorithms.connectivity.walk import evenly_spaced
from accelerando.algorithms.ranks import gathered, world_size
from accelerando.algorithms.snapshots import Snapshot, find_snapshot

from ..run.algorithms import as_seen
from .twins import MEASURED

END = "1dur"
Found = Callable[[float], dict[str, torch.Tensor]]


def _class(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.argmax(1).float()


CURVES = {"error": error_per_example, "loss": loss_per_example}
METRICS = {**CURVES, "class": _class}


class AtEnd(ForRecipes, Algorithm):
    """Something that is measured at the end of a run, of it and of its `twins`; ends are the snapshots of `1dur`."""

    supplied: ClassVar = {
        "twins": Supply.FOLDERS,
        "training_batches": Supply.TRAINING_DATA,
        "own_folder": Folder(name="snapshots"),
    }

    def __init__(
        self,
        twins: list[str],
        most_examples: int | None,
        own_folder: str,
        training_batches: Callable[[Device], Iterator[Any]] | None,
    ):
        self.twins, self.most_examples, self.own_folder = twins, most_examples, own_folder
        self._training_batches = training_batches

    def match(self, event: Event, state: State) -> bool:
        return event == Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Looks for the twins' ends: that one is missing must not come up after hours."""
        for folder in self.twins:
            find_snapshot(folder, END)

    def test(self, state: State) -> Iterator[Any]:
        """This rank's share of the first evaluation data that are measured on."""
        return first_of(as_seen(state.evaluators[0].dataloader, state.device), self.most_examples)

    def train(self, state: State) -> Iterator[Any]:
        """This rank's share of the training data, not augmented."""
        assert self._training_batches is not None
        return first_of(self._training_batches(state.device), self.most_examples)


class PathsToTwins(AtEnd):
    """At the end of a run, measures the path from the end of each of its `twins` to its own.

    Loss and error are those of the first evaluation data and of the training data, not augmented; a network with batch
    norm is measured twice, with its statistics interpolated, and recomputed at each point from these training data.
    Where the run is pruned, both ends must have its masks' support. Several ranks share the data, and average what each
    has found.

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
        if not isinstance(found.get(MEASURED), list):
            raise ValueError(f"{MEASURED} is {found.get(MEASURED)!r}; expected a list")
        for path in found[MEASURED]:
            if not {"twin", "distance", "disagreement", "curves"} <= path.keys():
                raise ValueError(f"{MEASURED} has {[*path]}; expected twin, distance, disagreement and curves")

    def _measure(self, state: State, twin: Snapshot, own: Snapshot) -> dict[str, Any]:
        """Curves are errors and losses at each point by data, treatment of batch norm, and metric."""
        model, ends = network_of(state), (twin.weights(), own.weights())
        path: Found = linear_path(*ends, masks=masks_of(state) or None, device=next(model.parameters()).device)
        curves: dict[str, dict[str, dict[str, list[float]]]] = {"test": {}, "train": {}}
        predicted: list[torch.Tensor] = []
        with get_precision_context(state.precision):
            paths: dict[str, Found] = {"interpolate": path}
            if batch_norms(model):
                recomputed = recompute_statistics(model, path, self._alphas, self.train(state), forward=plain_forward)
                paths["recompute"] = averaged_over_ranks(recomputed, self._alphas, model)
            for how, along in paths.items():
                test, train = (
                    evaluate_path(
                        model, along, self._alphas, batches, METRICS, forward=plain_forward, per_example=is_test
                    )
                    for batches, is_test in ((self.test(state), True), (self.train(state), False))
                )
                curves["test"][how], curves["train"][how] = _over_ranks(test), _over_ranks(train)
                predicted = predicted or [test.per_example["class"][end] for end in (0, -1)]
        rates = gathered(disagreement(*predicted))
        return {
            "twin": Path(twin.file).parent.parent.name,
            "distance": distance(*ends),
            "disagreement": sum(rates) / len(rates),
            "curves": curves,
        }

    @property
    def _alphas(self) -> list[float]:
        return evenly_spaced(self.points)


def network_of(state: State) -> Any:
    """The run's own module, not compiled."""
    return getattr(composer_model(state), "_orig_mod", composer_model(state))


def masks_of(state: State) -> dict[str, torch.Tensor]:
    """Those of the run, if it is pruned."""
    found: dict[str, torch.Tensor] = {}
    for pruned in (one for one in state.algorithms if isinstance(one, Pruning)):
        found |= pruned.masks
    return found


def first_of(batches: Iterable[Any], most_examples: int | None) -> Iterator[Any]:
    """This rank's share of the first examples."""
    left = sys.maxsize if most_examples is None else -(-most_examples // world_size())
    for batch in batches:
        if left <= 0:
            return
        batch = tuple(part[: min(left, len(part))] for part in batch)
        left -= len(batch[1])
        yield batch


def _over_ranks(found: PathMetrics) -> dict[str, list[float]]:
    """The means over all ranks' examples."""
    shares = gathered((found.examples, found.means))
    total = sum(examples for examples, _ in shares)
    return {
        name: [sum(n * means[name][i] for n, means in shares) / total for i in range(len(found.alphas))]
        for name in CURVES
    }
