"""What studies of paths have in common as they measure at the end of a run: on which network and data, and curves."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.devices import Device
from composer.loggers import Logger

from accelerando.algorithms.composer.for_recipes import Folder, ForRecipes, Supply
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.composer.pruning.sparsity import Pruning, plain_forward
from accelerando.algorithms.connectivity import (
    PathMetrics,
    error_per_example,
    evaluate_path,
    loss_per_example,
    recompute_statistics,
)
from accelerando.algorithms.connectivity.batch_norm import averaged_over_ranks, batch_norms
from accelerando.algorithms.connectivity.walk import evenly_spaced
from accelerando.algorithms.ranks import gathered, world_size
from accelerando.algorithms.snapshots import find_snapshot

from ..run.algorithms import as_seen

END = "1dur"
Found = Callable[[float], dict[str, torch.Tensor]]
Curves = dict[str, dict[str, dict[str, list[float]]]]


def _class(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.argmax(1).float()


CURVES = {"error": error_per_example, "loss": loss_per_example}
METRICS = {**CURVES, "class": _class}


class AtEnd(ForRecipes, Algorithm):
    """Something that is measured at the end of a run, of it and of its `twins`; ends are the snapshots of `1dur`.

    Args:
        twins: folders of snapshots.
        most_examples: how many there are of each data set at most, by default all.
        own_folder: of the run's own snapshots.
        training_batches: the training data in evaluation.
    """

    supplied: ClassVar[Mapping[str, Supply | Folder]] = {
        "twins": Supply.FOLDERS,
        "training_batches": Supply.TRAINING_DATA,
        "own_folder": Folder(name="snapshots"),
    }

    def __init__(
        self,
        twins: Sequence[str],
        most_examples: int | None,
        own_folder: str,
        training_batches: Callable[[Device], Iterator[Any]] | None,
    ):
        self.twins, self.most_examples, self.own_folder = twins, most_examples, own_folder
        self._training_batches = training_batches

    def match(self, event: Event, state: State) -> bool:
        return event is Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Looks for the twins' ends: that one is missing must not come up after hours."""
        for folder in self.twins:
            find_snapshot(folder, END)

    def test(self, state: State) -> Iterator[Any]:
        """This rank's share of the first evaluation data that are measured on."""
        return _first_of(as_seen(state.evaluators[0].dataloader, state.device), self.most_examples)

    def train(self, state: State) -> Iterator[Any]:
        """This rank's share of the training data, not augmented."""
        assert self._training_batches is not None
        return _first_of(self._training_batches(state.device), self.most_examples)

    def treatments(self, state: State, path: Found, alphas: Sequence[float]) -> dict[str, Found]:
        """The path with the statistics of batch norm interpolated, and, if there are some, recomputed at each point."""
        model = network_of(state)
        paths: dict[str, Found] = {"interpolate": path}
        if batch_norms(model):
            recomputed = recompute_statistics(model, path, alphas, self.train(state), forward=plain_forward)
            paths["recompute"] = averaged_over_ranks(recomputed, alphas, model)
        return paths

    def curves(self, state: State, path: Found, points: int) -> tuple[Curves, torch.Tensor]:
        """Errors and losses at each point by data, treatment of batch norm, and metric.

        Data are the first evaluation data and the training data, not augmented. A network with batch norm is measured
        twice, with its statistics interpolated, and recomputed at each point from these training data. Several ranks
        share the data, and average what each has found. Also the classes that the ends predict for this rank's test
        data, (2, examples).
        """
        model = network_of(state)
        curves: Curves = {"test": {}, "train": {}}
        alphas, predicted = evenly_spaced(points), list[torch.Tensor]()
        with get_precision_context(state.precision):
            for how, along in self.treatments(state, path, alphas).items():
                test, train = (
                    evaluate_path(model, along, alphas, batches, METRICS, forward=plain_forward, per_example=is_test)
                    for batches, is_test in ((self.test(state), True), (self.train(state), False))
                )
                curves["test"][how], curves["train"][how] = _over_ranks(test), _over_ranks(train)
                predicted.append(test.per_example["class"][[0, -1]])
        return curves, predicted[0]


def network_of(state: State) -> Any:
    """The run's own module, not compiled."""
    return getattr(composer_model(state), "_orig_mod", composer_model(state))


def masks_of(state: State) -> dict[str, torch.Tensor]:
    """Those of the run, if it is pruned."""
    found: dict[str, torch.Tensor] = {}
    for pruned in (one for one in state.algorithms if isinstance(one, Pruning)):
        found |= pruned.masks
    return found


def check_paths(found: Mapping[str, Any], name: str, keys: set[str]) -> None:
    """Raises ValueError unless the results hold a list of that name, of mappings with these keys."""
    if not isinstance(found.get(name), list):
        raise ValueError(f"{name} is {found.get(name)!r}; expected a list")
    for path in found[name]:
        if not keys <= path.keys():
            raise ValueError(f"{name} has {[*path]}; expected {', '.join(sorted(keys))}")


def _first_of(batches: Iterable[Any], most_examples: int | None) -> Iterator[Any]:
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
