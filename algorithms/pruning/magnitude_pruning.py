"""Magnitude pruning: the weights of least magnitude go, at once or little by little, while the network trains.

    pruner = MagnitudePruner(model, optimizer, density=0.1, start="0.1dur", end="0.7dur", steps=steps)
    ...
    pruner.step()  # after each update

Sources: Han et al., "Learning both Weights and Connections" (arXiv 1506.02626); the cubic schedule is that of Zhu and
Gupta, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
"""

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from .. import ranks
from ..checkpoints import some
from ..progress import SURELY, WHOLE, Moment, Progress, moment
from .criteria import magnitude
from .masks import Masks, Scope, keep_highest, kept_counts, layer_shares, rounded, size
from .pruner import Pruner, check_density

Schedule = Literal["linear", "cubic"]


def gradual_density(progress: float, density: float, schedule: Schedule = "cubic", initial: float = 1.0) -> float:
    """`density + (initial - density) (1 - progress)^n`, after a share `progress`, in [0, 1], of the pruning.

    `n` is 1 or 3; with 3 most is pruned early, when most can be spared.
    """
    return density + (initial - density) * (1 - progress) ** {"linear": 1, "cubic": 3}[schedule]


class MagnitudePruner(Pruner):
    """Prunes the weights of least magnitude, at `start`, or gradually from then to `end`; see also `Pruner`.

    What is zero at `start` counts as pruned, as in a network that was pruned before: the density goes from what it is
    there to what is asked for, and never rises; what is sparser already stays so. That is the density of all weights,
    or of each layer, where `scope` or the shares are by layer. ValueError is raised where a whole layer is zero before
    the first update: it may have been initialized so, and would never be trained.

    Call `step` after each update, or `update` with where the training is. What is due before the first update is done
    at once, so that the model has to have the weights that the training starts from.

    Args:
        model, optimizers, include, exclude, classifier, name: see `Pruner`.
        density: share of the weights that is kept in the end, in (0, 1); or shares by patterns of the layers' names.
        start: when it begins, such as "500ba" (updates) or "0.1dur"; what is due after an update is done by `step`.
        end: when it ends; None to prune all at once.
        interval: time from one step of gradual pruning to the next; by default a hundredth of the time from start to
            end.
        schedule: `linear`, or `cubic`, with the large steps first.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        steps: the number of updates of the training, of which `dur` is a share. Epochs, samples and tokens need an
            `update` with a Progress that counts them.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Optimizer | Iterable[Optimizer],
        density: float | dict[str, float],
        start: str = "0dur",
        end: str | None = None,
        interval: str | None = None,
        schedule: Schedule = "cubic",
        scope: Scope = "global",
        steps: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
        *,
        name: str | None = None,
    ):
        super().__init__(None, (), include, exclude, classifier, name=name)
        check_density(self.name, density)
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        self.check("schedule", schedule in ("linear", "cubic"), "'linear' or 'cubic'", schedule)
        self.check("steps", steps is None or steps >= 1, "at least 1", steps)
        self.density, self.steps = density, steps
        self.schedule: Schedule = schedule
        self.scope: Scope = scope
        self.times = {"start": self._moment("start", start)}
        self.check("start", self.times["start"] != WHOLE, "before the end of the training", start)
        if end is not None:
            self.times["end"] = self._moment("end", end)
            if not self.times["start"].value:  # which is the same in every unit
                self.times["start"] = Moment(0, self.times["end"].unit)
        if interval is not None:
            self.check("interval", end is not None, "left out where there is no end", interval)
            self.times["interval"] = self._moment("interval", interval)
            self.check("interval", self.times["interval"].value > 0, "above 0", interval)
        if len({time.unit for time in self.times.values()}) == 1:
            self._check_order(*(time.value for time in self.times.values()))
        if model is not None:
            self._start(model, optimizers)

    def _moment(self, argument: str, value: str) -> Moment:
        self.check(argument, time := moment(value), "a time such as 10ep, 500ba or 0.5dur", value)
        assert time is not None
        return time

    def _check_order(self, start: float, end: float | None = None, interval: float | None = None) -> None:
        given = {name: str(time) for name, time in self.times.items()}
        self.check("end", end is None or end > start, f"after start={given['start']}", given.get("end"))
        fits = end is None or interval is None or interval * SURELY <= end - start
        self.check("interval", fits, "up to the time from start to end", given.get("interval"))

    def clear(self) -> None:
        super().clear()
        self.updates = 0
        self._initial: dict[str, int] = {}  # how many of each layer's weights were not zero at the start
        self._length: Moment | None = None  # of the training as planned, which may be stopped before
        self._kept: int | dict[str, int] | None = None  # how many were left when it was last asked
        self._completed: float | dict[str, float] | None = None  # the density, once it is reached

    def _start(self, model: nn.Module, optimizers: Optimizer | Iterable[Optimizer]) -> None:
        super()._start(model, optimizers)
        if self.steps is not None:
            self.check_times(self._place(0))
        self.update(0)

    def check_times(self, progress: Progress) -> None:
        """Raises ValueError unless start, end and interval make sense together and in a training of that length."""
        self._length = progress.length
        for name in ("start", "end"):
            fits = name not in self.times or (progress.share(self.times[name]) or 0) <= 1
            given = str(self.times.get(name))
            self.check(name, fits, f"within the training, which lasts {progress.length}", given)
        if (values := self._in_one_unit(progress)) is None:
            given = ", ".join(f"{name}={time}" for name, time in self.times.items())
            hint = "give them in one unit, or in ep, ba and dur of data whose length is known"
            raise ValueError(f"{self.name}: {given} cannot be compared; {hint}.")
        self._check_order(*values[1:])

    def _place(self, updates: int) -> Progress:
        return Progress(batch=updates, length=None if self.steps is None else Moment(self.steps, "ba"))

    def _in_one_unit(self, progress: Progress) -> list[float] | None:
        """Now, start, and end and interval where they are given; None where their units cannot be compared."""
        times = [self._absolute(time, self._length or progress.length) for time in self.times.values()]
        if len({time.unit for time in times}) == 1:
            return [progress.elapsed(times[0].unit), *(time.value for time in times)]
        batches = {"ba": 1, "ep": progress.batches_per_epoch or 0}
        if not all(batches.get(time.unit) for time in times):
            return None
        return [progress.batch, *(time.value * batches[time.unit] for time in times)]

    def _absolute(self, time: Moment, length: Moment | None) -> Moment:
        if time.unit != "dur":
            return time
        if length is None:
            self.check("steps", time.value == 0, f"given, as {time} is a share of them", self.steps)
            return Moment(0, "ba")
        return Moment(time.value * length.value, length.unit)

    def share_due(self, progress: Progress) -> float | None:
        """Returns the share of the pruning that is due by now; None before its start."""
        now, start, *rest = self._in_one_unit(progress) or (0.0, 1.0)
        if now < start * SURELY:
            return None
        if not rest or now >= rest[0] * SURELY:
            return 1.0
        length = rest[0] - start
        interval = rest[1] if len(rest) > 1 else length / 100
        return int((now - start) / interval / SURELY) * interval / length

    def kept(self, share: float | None) -> int | dict[str, int]:
        """Returns how many weights are kept, of all or of each layer, when that share of the pruning is due."""
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        initial = self._initial or sizes

        def due(density: float, first: float) -> float:
            return 1.0 if share is None else gradual_density(share, min(density, first), self.schedule, first)

        if isinstance(self.density, dict) or self.scope == "layerwise":
            shares = layer_shares(sizes, self.density)
            goals = {name: due(shares[name], initial[name] / sizes[name]) for name in sizes}
            return {name: rounded(goals[name] * sizes[name]) for name in sizes}
        return kept_counts(sizes, due(self.density, sum(initial.values()) / sum(sizes.values())))

    def left_at(self, progress: Progress) -> int:
        """Returns how many weights are left, in all, when the training has come there."""
        return _sum(self.kept(self.share_due(progress)))

    @property
    def complete(self) -> bool:
        """Whether nothing will be due any more; then `due` only counts, and any number of updates will do."""
        return self._completed == self.density

    def step(self) -> None:
        """After an update: counts it, and prunes what is due."""
        self.update(self.updates + 1)

    def update(self, progress: int | Progress) -> None:
        """Prunes what is due after so many updates, or there in the training."""
        if masks := self.due(progress):
            self.prune(masks)

    def due(self, progress: int | Progress) -> Masks | None:
        """Returns the masks that should hold from there on, where they are others than those that hold."""
        if self.complete:
            self.updates = progress if isinstance(progress, int) else progress.batch
            return None
        if isinstance(progress, int):
            counted = {time.unit for time in self.times.values()} <= {"ba", "dur"} or not progress
            self.check("start, end and interval", counted, "in ba or dur", [*map(str, self.times.values())])
            progress = self._place(progress)
        self.updates = progress.batch
        if (share := self.share_due(progress)) is None:
            return None
        if not self._initial:
            magnitude(self.weights)  # raises for what is not finite, before it is counted
            initial = {name: size(weight) for name, weight in self.weights.items()}
            zero = [name for name, count in initial.items() if not count]
            if zero and progress.batch == 0:
                hint = "begin later (start), when it has been trained, or exclude it"
                raise ValueError(f"{self.name}: all of {some(zero)} is zero, and would never be trained; {hint}.")
            self._initial = initial
        kept = self.kept(share)
        if kept != self._kept and _sum(kept) < self.remaining():
            masks = self.masks or {name: weight != 0 for name, weight in self.weights.items()}
            return keep_highest(magnitude(self.weights), kept, masks)
        # Not before: whoever is given masks may fail to prune by them.
        self._kept, self._completed = kept, copy.copy(self.density) if share == 1 else None
        return None

    def finish(self) -> None:
        """Warns where the training has ended with more weights than planned."""
        if (left := self.remaining()) > (wanted := _sum(self.kept(1.0))) and ranks.rank() == 0:
            name = "end" if "end" in self.times else "start"
            text = f"before {name}={self.times[name]}, so that {left} weights are left, not {wanted}"
            warnings.warn(f"{self.name}: the training has ended after {self.updates}ba, {text}.", stacklevel=2)

    def plan(self) -> dict[str, Any]:
        times = {name: str(self.times[name]) if name in self.times else None for name in ("start", "end", "interval")}
        return {**super().plan(), **times, "density": self.density, "schedule": self.schedule, "scope": self.scope}

    def state_dict(self) -> dict[str, Any]:
        """Returns what Pruner's has, the weights there were at the start, and the number of updates."""
        return {**super().state_dict(), "initial": self._initial, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self._initial, self.updates = state["initial"], state.get("updates", 0)
        except KeyError as error:
            raise ValueError(f"{self.name}: the checkpoint is of another algorithm; it lacks {error}") from error
        self._kept = self._completed = None
        super().load_state_dict(state)


def _sum(kept: int | dict[str, int]) -> int:
    return kept if isinstance(kept, int) else sum(kept.values())
