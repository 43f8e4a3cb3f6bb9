"""What is measured along one training: the straight lines to its end, of all weights and of one part alone.

Also the part of a network that is put back to initial weights before a training begins.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.devices import Device
from composer.loggers import Logger

from accelerando.algorithms.batches import device_of
from accelerando.algorithms.composer.for_recipes import FinishedRun, Folder
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.connectivity import blocks_of, distance, layers_of, linear_path
from accelerando.algorithms.connectivity.interpolation import chosen
from accelerando.algorithms.connectivity.walk import evenly_spaced
from accelerando.algorithms.progress import Progress
from accelerando.algorithms.snapshots import SnapshotWriter, find_snapshot

from .interpolation_cells import BEGIN, WHOLE, alone
from .measured_paths import END, AtEnd, Curves, Found, check_paths, network_of

MEASURED, TOP = "paths", "top"  # in a run's results
KINDS = {"layers": "layer", "blocks": "block"}


class PathsOfTraining(AtEnd):
    """At the end of a run, measures the paths from its beginning, and from later moments, to its end.

    And those along which one part alone goes from its first weights to its last, with all others at one of them. The
    run's snapshots must hold these moments and `1dur`. Loss and error are those of `AtEnd.curves`.

    Args:
        steps: moments after the beginning.
        parts: `layers`, `blocks`, or both; a block of one layer is measured once.
        named_parts: patterns of the names of a part's tensors, by a name of its own.
        part_others: where the others are: at their `end`, at their `begin`, or both in turn.
        points: of a path of all weights, with both ends.
        part_points: of a part's path.
        most_examples: how many there are of each data set at most, by default all.
        keep_top: whether to keep the weights and buffers where the training loss is highest on the path from the
            beginning, as a snapshot of `0ba` from which another run starts.
    """

    supplied: ClassVar = {**AtEnd.supplied, "top_folder": Folder(name="top")}

    def __init__(
        self,
        steps: list[str] | None = None,
        parts: list[Literal["layers", "blocks"]] | None = None,
        named_parts: dict[str, list[str]] | None = None,
        part_others: list[Literal["end", "begin"]] | None = None,
        points: int = 50,
        part_points: int = 11,
        most_examples: int | None = None,
        keep_top: bool = False,
        own_folder: str = "",
        top_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        self.steps, self.parts, self.named_parts, self.points = steps or [], parts or [], named_parts or {}, points
        self.part_others = part_others or ["end"]
        self.part_points, self.keep_top, self.top_folder = part_points, keep_top, top_folder
        super().__init__([], most_examples, own_folder, training_batches)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Looks for the parts: that there is none of a name must not come up after hours."""
        parts_of(composer_model(state), self.parts, self.named_parts)

    def found(self, run: FinishedRun) -> dict[str, Any]:
        state, device = run.state, device_of(network_of(run.state))
        ends = {which: find_snapshot(self.own_folder, at).weights() for which, at in (("begin", BEGIN), ("end", END))}
        begin, end = ends.values()
        measured, top = [], {}
        for step in (BEGIN, *self.steps):
            snapshot = find_snapshot(self.own_folder, step)
            start = begin if step == BEGIN else snapshot.weights()
            path = linear_path(start, end, device=device)
            curves, _ = self.curves(state, path, self.points)
            about = {"kind": WHOLE, "part": "all", "start": step, "k": snapshot.place["batch"]}
            measured.append({**about, "distance": distance(start, end), "curves": curves})
            if step == BEGIN and self.keep_top:
                top = {TOP: self._keep_top(state, path, curves)}
        parts = parts_of(composer_model(state), self.parts, self.named_parts)
        for others, (part, (kinds, names)) in product(self.part_others, parts.items()):
            whole = len(names) == len(end)  # a part that is the network has no others
            path = linear_path(begin, end, include=names, fixed=None if whole else ends[others], device=device)
            curves, _ = self.curves(state, path, self.part_points)
            kind = kinds if others == "end" else alone(kinds)
            about = {"kind": kind, "part": part, "start": BEGIN, "k": 0}
            measured.append({**about, "distance": distance(begin, end, names), "curves": curves})
        return {MEASURED: measured, **top}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        check_paths(found, MEASURED, {"kind", "part", "start", "k", "distance", "curves"})

    def _keep_top(self, state: State, path: Found, curves: Curves) -> float:
        """Writes the snapshot, and returns its place on the path."""
        losses = curves["train"]["interpolate"]["loss"]
        place = evenly_spaced(self.points)[int(np.nanargmax(losses))]
        writer = SnapshotWriter(self.top_folder, [BEGIN])
        writer.keep(lambda: path(place), Progress(), seed=state.rank_zero_seed)
        return place


def parts_of(
    model: torch.nn.Module, kinds: list[Literal["layers", "blocks"]], named: Mapping[str, list[str]]
) -> dict[str, tuple[str, list[str]]]:
    """The kind and the tensors of each part, by its name, in the network's order; what is both is a "layer, block".

    Raises ValueError for a pattern that fits no tensor, and a name that is that of another part.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for kind in kinds:
        for name, tensors in {"layers": layers_of, "blocks": blocks_of}[kind](model).items():
            if name in found and {*found[name][1]} == {*tensors}:
                found[name] = f"{found[name][0]}, {KINDS[kind]}", tensors
            else:
                found[f"{name}.*" if name in found else name] = KINDS[kind], tensors
    for name, patterns in named.items():
        if name in found:
            raise ValueError(f"{name} is the name of another part already; expected a name of its own")
        found[name] = "named", chosen(model.state_dict(), patterns, ())
    place = {name: i for i, name in enumerate(model.state_dict())}
    return dict(sorted(found.items(), key=lambda part: place[part[1][1][0]]))


class ResetPart(Algorithm):
    """Before the first batch, puts a part of the network back to the initial weights that the run has drawn.

    So where a run starts from another one's weights, this part of them is left out.

    Args:
        include: patterns of the names of its weights and buffers.
    """

    def __init__(self, include: list[str]):
        self.include = include
        self._initial: dict[str, torch.Tensor] = {}

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.AFTER_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        own = composer_model(state).state_dict()
        if event is Event.INIT:
            self._initial = {name: own[name].clone() for name in chosen(own, self.include, ())}
        elif not state.timestamp.batch.value:  # else it goes on from a checkpoint
            with torch.no_grad():
                for name, value in self._initial.items():
                    own[name].copy_(value)
            self._initial = {}
