"""MagnitudePruning: the weights of least magnitude go, at once or little by little, while the network trains.

Sources: Han et al., "Learning both Weights and Connections" (arXiv 1506.02626); the cubic schedule is that of Zhu and
Gupta, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from composer.core import State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

from ..checkpoints import some
from ..host import elapsed, moment, share_of_training
from .criteria import magnitude
from .masks import Scope, keep_highest, kept_counts, layer_shares, rounded, size
from .sparsity import Pruning

_SURELY = 1 - 1e-9  # 0.3 of ten batches may come out as a little more than three


def gradual_density(
    progress: float, density: float, schedule: Literal["linear", "cubic"] = "cubic", initial: float = 1.0
) -> float:
    """`density + (initial - density) (1 - progress)^n`, after a share `progress`, in [0, 1], of the pruning.

    `n` is 1 or 3; with 3 most is pruned early, when most can be spared.
    """
    return density + (initial - density) * (1 - progress) ** {"linear": 1, "cubic": 3}[schedule]


class MagnitudePruning(Pruning):
    """Prune the weights of least magnitude, at `start`, or gradually from then to `end`.

    What is zero at `start` counts as pruned, as in a network that was pruned before: the density goes from what it is
    there to what is asked for, and never rises; what is sparser already stays so. That is the density of all weights,
    or of each layer, where `scope` or the shares are by layer. ValueError is raised where a whole layer is zero before
    the first update: it may have been initialized so, and would never be trained.

    Args:
        density: share of the weights that is kept in the end, in (0, 1); or shares by patterns of the layers' names.
        start: when it begins: ep, ba, sp, tok or dur. What is due after an update is done before its evaluation.
        end: when it ends; None to prune all at once. A warning tells of a training that ends before.
        interval: time from one step of gradual pruning to the next; by default a hundredth of the time from start to
            end. The three may differ in unit where batches tell what they are, as they do not of samples and tokens.
        schedule: `linear`, or `cubic`, with the large steps first.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    def __init__(
        self,
        density: float | dict[str, float],
        start: str = "0dur",
        end: str | None = None,
        interval: str | None = None,
        schedule: Literal["linear", "cubic"] = "cubic",
        scope: Scope = "global",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        super().__init__(include, exclude, classifier)
        self.check_density(density)
        self.check("scope", scope in ("global", "layerwise"), "'global' or 'layerwise'", scope)
        self.check("schedule", schedule in ("linear", "cubic"), "'linear' or 'cubic'", schedule)
        self.density = density
        self.schedule: Literal["linear", "cubic"] = schedule
        self.scope: Scope = scope
        self.times = {"start": self._moment("start", start)}
        self.check("start", str(self.times["start"]) != "1.0dur", "before the end of the training", start)
        if end is not None:
            self.times["end"] = self._moment("end", end)
            if not self.times["start"].value:  # which is the same in every unit
                self.times["start"] = Time(0, self.times["end"].unit)
        if interval is not None:
            self.check("interval", end is not None, "left out where there is no end", interval)
            self.times["interval"] = self._moment("interval", interval)
            self.check("interval", self.times["interval"].value > 0, "above 0", interval)
        if len({time.unit for time in self.times.values()}) == 1:
            self._check_order(*(time.value for time in self.times.values()))
        self._initial: dict[str, int] = {}  # how many of each layer's weights were not zero at the start
        self._length: Time | None = None  # of the training as planned, which may be stopped before
        self._kept: int | dict[str, int] | None = None

    def _moment(self, name: str, value: str) -> Time:
        self.check(name, time := moment(value), "a time such as 10ep, 500ba or 0.5dur", value)
        assert time is not None
        return time

    def _check_order(self, start: float, end: float | None = None, interval: float | None = None) -> None:
        given = {name: str(time) for name, time in self.times.items()}
        self.check("end", end is None or end > start, f"after start={given['start']}", given.get("end"))
        fits = end is None or interval is None or interval * _SURELY <= end - start
        self.check("interval", fits, "up to the time from start to end", given.get("interval"))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        try:
            self._initial = state["initial"]
        except KeyError as error:
            raise ValueError(f"MagnitudePruning: the checkpoint is of another algorithm; it lacks {error}") from error

    def plan(self) -> dict[str, Any]:
        times = {name: str(self.times[name]) if name in self.times else None for name in ("start", "end", "interval")}
        return {**super().plan(), **times, "density": self.density, "schedule": self.schedule, "scope": self.scope}

    def begin(self, state: State) -> None:
        self._initial, self._length, self._kept = {}, None, None

    def start(self, state: State) -> None:
        self._length = state.max_duration
        for name in self.times.keys() & {"start", "end"}:
            fits = (share_of_training(self.times[name], state) or 0) <= 1
            self.check(name, fits, f"within the training, which lasts {state.max_duration}", str(self.times[name]))
        if (values := self._in_one_unit(state)) is None:
            given = ", ".join(f"{name}={time}" for name, time in self.times.items())
            hint = "give them in one unit, or in ep, ba and dur of data whose length is known"
            raise ValueError(f"MagnitudePruning: {given} cannot be compared; {hint}.")
        self._check_order(*values[1:])

    def _in_one_unit(self, state: State) -> list[float] | None:
        """Now, start, and end and interval where they are given; None where their units cannot be compared."""
        length: Time = self._length or state.max_duration  # type: ignore[assignment]
        times = [(time.value, time.unit) for time in self.times.values()]
        times = [(v * length.value, length.unit) if unit == TimeUnit.DURATION else (v, unit) for v, unit in times]
        if len(units := {unit for _, unit in times}) == 1:
            return [elapsed(state, units.pop()), *(value for value, _ in times)]
        batches = {TimeUnit.BATCH: 1, TimeUnit.EPOCH: int(state.dataloader_len or 0)}
        if not all(batches.get(unit) for unit in units):
            return None
        return [state.timestamp.batch.value, *(value * batches[unit] for value, unit in times)]

    def is_due_before(self, state: State) -> bool:
        return state.max_duration is not None and _sum(self.kept(self.progress(state))) < self.remaining()

    def progress(self, state: State) -> float | None:
        """The share of the pruning that is due by now; None before its start."""
        now, start, *rest = self._in_one_unit(state) or (0.0, 1.0)
        if now < start * _SURELY:
            return None
        if not rest or now >= rest[0] * _SURELY:
            return 1.0
        length = rest[0] - start
        interval = rest[1] if len(rest) > 1 else length / 100
        return int((now - start) / interval / _SURELY) * interval / length

    def kept(self, progress: float | None) -> int | dict[str, int]:
        """How many weights are kept then, of all or of each layer."""
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        initial = self._initial or sizes

        def due(share: float, first: float) -> float:
            return 1.0 if progress is None else gradual_density(progress, min(share, first), self.schedule, first)

        if isinstance(self.density, dict) or self.scope == "layerwise":
            shares = layer_shares(sizes, self.density)
            goals = {name: due(shares[name], initial[name] / sizes[name]) for name in sizes}
            return {name: rounded(goals[name] * sizes[name]) for name in sizes}
        return kept_counts(sizes, due(self.density, sum(initial.values()) / sum(sizes.values())))

    def before_update(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 0:
            self.after_update(state, logger)

    def after_update(self, state: State, logger: Logger) -> None:
        if (progress := self.progress(state)) is None:
            return
        if not self._initial:
            self._initial = {name: size(weight) for name, weight in self.weights.items()}
            zero = [name for name, count in self._initial.items() if not count]
            if zero and state.timestamp.batch.value == 0:
                hint = "begin later (start), when it has been trained, or exclude it"
                raise ValueError(f"MagnitudePruning: all of {some(zero)} is zero, and would never be trained; {hint}.")
        if (kept := self.kept(progress)) == self._kept:
            return
        self._kept = kept
        if _sum(kept) < self.remaining():
            masks = self.masks or {name: weight != 0 for name, weight in self.weights.items()}
            self.prune(keep_highest(magnitude(self.weights), kept, masks), state, logger)

    def finish(self, state: State, logger: Logger) -> None:
        if (left := self.remaining()) > (wanted := _sum(self.kept(1.0))) and dist.get_global_rank() == 0:
            name = "end" if "end" in self.times else "start"
            text = f"before {name}={self.times[name]}, so that {left} weights are left, not {wanted}"
            text = f"MagnitudePruning: the training has ended after {state.timestamp.batch}, {text}."
            warnings.warn(text, stacklevel=2)


def _sum(kept: int | dict[str, int]) -> int:
    return kept if isinstance(kept, int) else sum(kept.values())
