"""What runs of `data_diet` have besides: the beginning of a longer schedule, and what is measured where they end."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from composer.core import Algorithm, DataSpec, Event, State
from composer.core.precision import get_precision_context
from composer.devices import Device
from composer.loggers import Logger

from accelerando.algorithms.batches import device_of
from accelerando.algorithms.composer.for_recipes import FinishedRun, Folder, ForRecipes, Supply
from accelerando.algorithms.composer.pruning.lottery import LotteryTicket
from accelerando.algorithms.composer.pruning.rewound import RewoundScheduler
from accelerando.algorithms.composer.pruning.sparsity import plain_forward
from accelerando.algorithms.connectivity import example_barriers, linear_path
from accelerando.algorithms.examples.files import data_digest, save_scores
from accelerando.algorithms.examples.scores import score_examples
from accelerando.algorithms.ranks import rank
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.algorithms.untouched import copied

from .lengths import as_time
from .measured_paths import END, AtEnd, check_paths, network_of

EXAMPLES, MIDPOINTS = "examples", "midpoints"  # in a run's results
MIDWAY = (0.0, 0.5, 1.0)


class BeginsSchedule(ForRecipes, Algorithm):
    """Has the learning rate of a run follow the schedule of a longer one, of which it is the beginning.

    Args:
        length: that of the longer one, as a time string.
    """

    def __init__(self, length: str):
        self.length = as_time(length)

    def match(self, event: Event, state: State) -> bool:
        return False

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Nothing is done in training."""

    def wrap(self, scheduler: Any) -> Any:
        return scheduler and RewoundScheduler(scheduler, lambda updates: (self.length, updates, None))


class ExamplesOfTwins(AtEnd):
    """At the end of a run, measures for each training example the barrier midway to each of its `twins`.

    That is its loss there less the mean of its losses at both ends (Paul et al., arXiv 2206.01278), in evaluation mode,
    not augmented. A network with batch norm is measured twice, with its statistics interpolated, as in the authors'
    code, and recomputed at each point. The barriers of all examples stand in the folder, in a file for each twin, as
    scores that the data source `subset` takes: those that are connected best come first.

    Args:
        twins: folders of snapshots.
        connected_below: an example is connected if its barrier is below that, in units of the loss.
        most_examples: on how many of the training data statistics are recomputed at most, by default all.
    """

    supplied: ClassVar = {**AtEnd.supplied, "examples": Supply.EXAMPLES, "barriers_folder": Folder(name="barriers")}

    def __init__(
        self,
        twins: list[str],
        connected_below: float = 0.1,
        most_examples: int | None = None,
        own_folder: str = "",
        barriers_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
        examples: Callable[[Device], DataSpec] | None = None,
    ):
        super().__init__(twins, most_examples, own_folder, training_batches)
        self.connected_below, self.barriers_folder, self.examples = connected_below, barriers_folder, examples

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """By twin and treatment of batch norm the share of connected examples, and the mean barrier."""
        return {EXAMPLES: [self._measure(run.state, folder) for folder in self.twins]}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_paths(found, EXAMPLES, {"twin", "barriers"})

    def _measure(self, state: State, folder: str) -> dict[str, Any]:
        twin = find_snapshot(folder, END)
        path = linear_path(
            twin.weights(), find_snapshot(self.own_folder, END).weights(), device=device_of(network_of(state))
        )
        assert self.examples is not None
        spec, barriers = self.examples(state.device), dict[str, torch.Tensor]()
        with get_precision_context(state.precision):
            for how, along in self.treatments(state, path, MIDWAY).items():
                networks = [copied(network_of(state)) for _ in MIDWAY]
                for network, place in zip(networks, MIDWAY, strict=True):
                    network.load_state_dict(along(place))
                losses = score_examples(
                    networks,
                    spec.dataloader,
                    ["loss"],
                    forward=lambda network, batch: plain_forward(
                        network, spec.microbatch_transforms(spec.batch_transforms(batch))
                    ),
                    owner=type(self).__name__,
                )["loss"]
                barriers[how] = example_barriers(*losses)
        name = Path(twin.file).parent.parent.name
        if rank() == 0:
            save_scores(Path(self.barriers_folder, f"{name}.safetensors"), barriers, data_digest(spec.dataloader))
        return {"twin": name, "barriers": {how: self._told(values) for how, values in barriers.items()}}

    def _told(self, values: torch.Tensor) -> dict[str, float]:
        values = values.double()
        connected = (values < self.connected_below).double().mean().item()
        return {"connected": connected if values.isfinite().all() else float("nan"), "mean": values.mean().item()}


class MidpointsOfLevels(AtEnd):
    """At the end of a LotteryTicket, measures midway between the ends of each level and of the next.

    That is the test error there, and the test loss, less the mean of both ends', with the masks of the earlier level;
    the run's snapshots must hold the ends of all levels. Loss and error are those of `AtEnd.curves`.

    Args:
        most_examples: how many there are of each data set at most, by default all.
    """

    def __init__(
        self,
        most_examples: int | None = None,
        own_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        super().__init__([], most_examples, own_folder, training_batches)

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """For each level but the last, by treatment of batch norm."""
        (ticket,) = (one for one in run.state.algorithms if isinstance(one, LotteryTicket))
        ends = [find_snapshot(self.own_folder, f"{level['batch']}ba").weights() for level in ticket.results]
        return {
            MIDPOINTS: [
                {"level": level, "test": self._measure(run.state, pair, ticket.masks_of(level))}
                for level, pair in enumerate(pairwise(ends))
            ]
        }

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_paths(found, MIDPOINTS, {"level", "test"})

    def _measure(self, state: State, ends: tuple[Any, Any], masks: Any) -> dict[str, Any]:
        path = linear_path(*ends, masks=masks or None, device=device_of(network_of(state)))
        curves, _ = self.curves(state, path, len(MIDWAY))
        return {
            how: {name: middle - (start + end) / 2 for name, (start, middle, end) in own.items()}
            for how, own in curves["test"].items()
        }
