"""MagnitudePruning: the weights of least magnitude go, at once or little by little, while the network trains.

Sources: Han et al., "Learning both Weights and Connections" (arXiv 1506.02626); the cubic schedule is that of Zhu and
Gupta, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
"""

from collections.abc import Sequence
from typing import Any, Literal

from composer.core import State, Time
from composer.loggers import Logger

from ..host import elapsed, moment, reached, share_of_training
from .criteria import magnitude
from .masks import Scope, keep_highest, kept_counts
from .sparsity import Pruning


def gradual_density(
    progress: float, density: float, schedule: Literal["linear", "cubic"] = "cubic", initial: float = 1.0
) -> float:
    """`density + (initial - density) (1 - progress)^n`, after a share `progress`, in [0, 1], of the pruning.

    `n` is 1 or 3; with 3 most is pruned early, when most can be spared.
    """
    return density + (initial - density) * (1 - progress) ** {"linear": 1, "cubic": 3}[schedule]


class MagnitudePruning(Pruning):
    """Prune the weights of least magnitude, at `start`, or gradually from then to `end`.

    Args:
        density: share of the weights that is kept in the end, in (0, 1); or shares by patterns of the layers' names.
        start: when it begins: ep, ba, sp, tok or dur. What is due after an update is done before its evaluation.
        end: when it ends, in the unit of `start`; None to prune all at once.
        interval: time from one step of gradual pruning to the next, in the unit of `start`.
        schedule: `linear`, or `cubic`, with the large steps first.
        scope: compare the weights of all layers (`global`), or of each (`layerwise`).
        include, exclude, classifier: which weights; see `prunable_weights`.
    """

    def __init__(
        self,
        density: float | dict[str, float],
        start: str = "0dur",
        end: str | None = None,
        interval: str = "0.01dur",
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
        self.start_at, self.end, self.interval = self._moment("start", start), None, None
        self.check("start", str(self.start_at) != "1.0dur", "before the end of the training", start)
        if end is not None:
            self.end, self.interval = self._moment("end", end), self._moment("interval", interval)
            unit, length = self.start_at.unit, self.end.value - self.start_at.value
            self.check("end", self.end.unit == unit and length > 0, f"after start={start}, in its unit", end)
            fits = self.interval.unit == unit and 0 < self.interval.value <= length
            self.check("interval", fits, "above 0, up to the time from start to end, and in their unit", interval)
        self._kept: int | dict[str, int] | None = None

    def _moment(self, name: str, value: str) -> Time:
        self.check(name, time := moment(value), "a time such as 10ep, 500ba or 0.5dur", value)
        assert time is not None
        return time

    def plan(self) -> dict[str, Any]:
        times = {name: time and str(time) for name, time in (("start", self.start_at), ("end", self.end))}
        own = {"density": self.density, "interval": self.interval and str(self.interval), "schedule": self.schedule}
        return {**super().plan(), **times, **own, "scope": self.scope}

    def begin(self, state: State) -> None:
        self._kept = None

    def start(self, state: State) -> None:
        for name, time in (("start", self.start_at), ("end", self.end)):
            fits = time is None or (share_of_training(time, state) or 0) <= 1
            self.check(name, fits, f"within the training, which lasts {state.max_duration}", str(time))

    def is_due_before(self, state: State) -> bool:
        return state.max_duration is not None and _sum(self.kept(state)) < self.remaining()

    def progress(self, state: State) -> float | None:
        """The share of the pruning that is due by now; None before its start."""
        if not reached(state, self.start_at):
            return None
        if self.end is None or self.interval is None or reached(state, self.end):
            return 1.0
        steps = (elapsed(state, self.start_at.unit) - self.start_at.value) / self.interval.value
        return int(steps * (1 + 1e-9)) * self.interval.value / (self.end.value - self.start_at.value)

    def kept(self, state: State) -> int | dict[str, int]:
        """How many weights are kept by now."""
        progress = self.progress(state)
        goal: float | dict[str, float]
        if progress is None:
            goal = 1.0
        elif isinstance(self.density, dict):
            goal = {name: gradual_density(progress, share, self.schedule) for name, share in self.density.items()}
        else:
            goal = gradual_density(progress, self.density, self.schedule)
        return kept_counts({name: weight.numel() for name, weight in self.weights.items()}, goal, self.scope)

    def before_update(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 0:
            self.after_update(state, logger)

    def after_update(self, state: State, logger: Logger) -> None:
        if (kept := self.kept(state)) == self._kept:
            return
        self._kept = kept
        if _sum(kept) < self.remaining():
            self.prune(keep_highest(magnitude(self.weights), kept, self.masks), state, logger)


def _sum(kept: int | dict[str, int]) -> int:
    return kept if isinstance(kept, int) else sum(kept.values())
