"""The line from an earlier moment of a training to its end, measured on several data sets, each read once.

Source: Frankle, "Revisiting 'Qualitatively Characterizing Neural Network Optimization Problems'" (arXiv 2012.06898);
the classes `LinearPath` of the hosts stand on it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import device_of
from ..checkpoints import read_weights, some
from ..progress import WHOLE, Moment, Progress, moment
from ..ranks import gathered, of_first
from ..snapshots import SnapshotWriter
from ..validation import check
from .batch_norm import averaged_over_ranks, batch_norms, recompute_statistics
from .curves import PathCurves
from .interpolation import Path, State, distance, linear_path, support_mismatch
from .walk import Forward, Walk, evenly_spaced

_OWNER = "LinearPath"
BATCH_NORM = {"both": ("interpolate", "recompute"), "interpolate": ("interpolate",), "recompute": ("recompute",)}


def checked_arguments(
    start: str, points: int, batch_norm: str, batches: int | None, save_folder: str | None, units: Sequence[str]
) -> Moment:
    """Returns the moment `start`; ValueError for what cannot work among the arguments of a host's LinearPath."""
    time = moment(start) if isinstance(start, str) else None
    expected = f"a moment in {', '.join(units)} before the end, such as '0ba'"
    check(_OWNER, "start", time and time.unit in units and time != WHOLE, expected, start)
    check(_OWNER, "points", type(points) is int and points > 1, "2 or more, the ends among them", points)
    check(_OWNER, "batch_norm", batch_norm in BATCH_NORM, " or ".join(BATCH_NORM), batch_norm)
    check(_OWNER, "batches", batches is None or (type(batches) is int and batches > 0), "1 or more", batches)
    check(_OWNER, "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
    assert time is not None
    return time


class StartWriter(SnapshotWriter):
    """Keeps the weights of the moment `start`, without which there is no path.

    Raises ValueError, when it is first called, also for a start that is not before the end, or has passed and is not
    there.
    """

    argument = "start"

    def __init__(self, folder: str | PathLike[str], start: str):
        super().__init__(folder, [start], owner=_OWNER)

    def begin(self, weights: Mapping[str, Any], progress: Progress, gone: bool = False) -> None:
        for text, time in self.at.items():
            early = (progress.share(time) or 0) < 1
            check(self.owner, "start", early, f"before the end of the training, which lasts {progress.length}", text)
        super().begin(weights, progress, gone)

    def tell_passed(self, text: str) -> None:
        hint = "bring the folder back, or give a later start, or leave LinearPath out"
        raise ValueError(f"{self.owner}: start={text}, and its weights are not in {self.folder}: {hint}.")

    def read(self) -> tuple[int, dict[str, Tensor]]:
        """Returns how many updates were made at the start, and its weights and buffers by name; called by all ranks."""
        (batch,) = self.kept.values()
        file = self.file(batch)
        if not gathered(file.is_file())[0]:
            raise ValueError(
                f"{self.owner}: {file}, the weights of start={next(iter(self.at))!r}, is gone: no path is measured."
            )
        return batch, of_first(lambda: read_weights(file))


class TrainingLine:
    """The points of the line from the `start` of a training to the state of its model now, for one walk or several.

    Of a network with batch norm there are two lines, with interpolated statistics and with recomputed ones, or one of
    the two; their `places` are gone through together, so that each data set is read once.

    Args:
        model: on its device, bare of what DDP wraps around it.
        start: its weights and buffers at an earlier moment, by name.
        end: those of the end; by default the model's own.
        points: how many there are, evenly spaced, the ends among them.
        batch_norm: "both", "interpolate" or "recompute".
        statistics: gives the batches from which statistics are recomputed; those of several ranks are averaged.
        forward: a function (model, batch) -> outputs.
        masks: those that hold at the end, if the network is pruned. If the start has their support too, all points do.

    Raises ValueError for a start that is none of this model.
    """

    def __init__(
        self,
        model: nn.Module,
        start: State,
        end: State | None,
        points: int,
        batch_norm: str,
        statistics: Callable[[], Iterable[Any]],
        forward: Forward,
        masks: State | None = None,
    ):
        self.model, self._forward = model, forward
        self.alphas = evenly_spaced(points)
        names = {name.replace("_orig_mod.", ""): name for name in model.state_dict()}
        self.start, self.end = ({names.get(n, n): v for n, v in s.items()} for s in (start, end or model.state_dict()))
        masks = {names.get(name, name): mask for name, mask in (masks or {}).items()}
        self.outside = support_mismatch(self.start, self.end, masks) if masks else []
        device = device_of(model)
        path = linear_path(self.start, self.end, masks=None if self.outside else masks, device=device)
        self._paths: dict[str, Path] = {"": path}
        if batch_norms(model):
            self._paths = {f"{mode}/": path for mode in BATCH_NORM[batch_norm]}
        if "recompute/" in self._paths:
            own = recompute_statistics(model, path, self.alphas, statistics(), forward=forward)
            self._paths["recompute/"] = averaged_over_ranks(own, self.alphas, model)

    @property
    def places(self) -> int:
        """How many points all lines have together."""
        return len(self._paths) * len(self.alphas)

    def walk(
        self,
        batches: Iterable[Any],
        observe: Callable[[int, Any, Any], None],
        enter: Callable[[int], None] = lambda place: None,
    ) -> None:
        """Calls `observe(place, batch, outputs)` at each place with each batch; before its outputs, `enter(place)`.

        Afterwards the model and the global random generators are as they were.
        """
        points = [(path, alpha) for path in self._paths.values() for alpha in self.alphas]

        def at(place: float) -> dict[str, Tensor]:
            enter(int(place))
            path, alpha = points[int(place)]
            return path(alpha)

        walk = Walk(_OWNER, self.model, at, range(len(points)), self._forward)
        with walk.begin():
            for batch in walk.batches(batches):
                for place, outputs in walk.outputs(batch):
                    observe(int(place), batch, outputs)

    def curves(self, found: Mapping[str, Sequence[float]], start: int, end: int) -> PathCurves:
        """Returns what was `found`, by name a value for each place, with the numbers of updates at both ends."""
        each = len(self.alphas)
        curves = {
            prefix + name: [float(value) for value in values[line * each : (line + 1) * each]]
            for name, values in found.items()
            for line, prefix in enumerate(self._paths)
        }
        length = distance(self.start, self.end)
        return PathCurves(
            start=start, end=end, alphas=self.alphas, curves=curves, distance=length, outside=self.outside
        )


class Means:
    """Means of numbers at each place, weighted by examples, over all ranks."""

    def __init__(self, places: int):
        self.places = places
        self._sums: dict[str, list[float]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, place: int, name: str, value: float, weight: float) -> None:
        for kept, number in ((self._sums, value * weight), (self._weights, weight)):
            kept.setdefault(name, [0.0] * self.places)[place] += number

    def found(self) -> dict[str, list[float]]:
        """Returns the means by name; all ranks call it. Names are those that any rank has seen."""
        every = gathered((self._sums, self._weights))
        names = dict.fromkeys(name for sums, _ in every for name in sums)
        none = [0.0] * self.places

        def total(which: int, name: str, place: int) -> float:
            return sum(of_rank[which].get(name, none)[place] for of_rank in every)

        return {n: [total(0, n, place) / total(1, n, place) for place in range(self.places)] for n in names}


@contextmanager
def unmoved(loader: Any) -> Iterator[Any]:
    """Lends out a loader of torch's, whose order is that of epoch 0, and whose own generators are put back."""
    samplers: list[Any] = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    generators = [getattr(each, "generator", None) for each in (loader, *samplers)]
    states = [(each, each.get_state()) for each in generators if isinstance(each, torch.Generator)]
    epochs = [(each, each.epoch) for each in samplers if isinstance(getattr(each, "epoch", None), int)]
    for sampler, _ in epochs:
        sampler.epoch = 0
    try:
        yield loader
    finally:
        for generator, state in states:
            generator.set_state(state)
        for sampler, epoch in epochs:
            sampler.epoch = epoch


def say_outside(names: Sequence[str]) -> str:
    """What is to be told where the ends of a path through pruned networks have not the same support."""
    return (
        f"{_OWNER}: the start is not zero where the network is pruned at the end, in {some(names)}: the networks on "
        "the way are less sparse than the end; give a start after the pruning for a path of one support."
    )
