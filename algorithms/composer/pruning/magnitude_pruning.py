"""MagnitudePruning in a run of Composer's Trainer."""

from collections.abc import Sequence
from typing import Literal

from composer.core import State, Time
from composer.loggers import Logger

from ...pruning.magnitude_pruning import MagnitudePruner
from ...pruning.masks import Scope
from ..host import progress_of
from .sparsity import Pruning


class MagnitudePruning(Pruning):
    """Prune the weights of least magnitude, at `start`, or gradually from then to `end`; see `MagnitudePruner`.

    What is zero at `start` counts as pruned, and stays so.

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
        steps = None  # which the Trainer knows
        self.pruner = self.gradual = MagnitudePruner(
            None, (), density, start, end, interval, schedule, scope, steps, include, exclude, classifier,
            name=self._name,
        )  # fmt: skip
        self.density, self.schedule, self.scope = density, schedule, scope
        self.times = {name: Time(time.value, time.unit) for name, time in self.gradual.times.items()}

    def start(self, state: State) -> None:
        self.gradual.check_times(progress_of(state))

    def is_due_before(self, state: State) -> bool:
        return state.max_duration is not None and self.gradual.left_at(progress_of(state)) < self.remaining()

    def progress(self, state: State) -> float | None:
        """The share of the pruning that is due by now; None before its start."""
        return self.gradual.share_due(progress_of(state))

    def kept(self, progress: float | None) -> int | dict[str, int]:
        """How many weights are kept then, of all or of each layer."""
        return self.gradual.kept(progress)

    def acts_before(self, state: State) -> bool:
        return state.timestamp.batch.value == 0 or type(self).before_update is not MagnitudePruning.before_update

    def before_update(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 0:
            self.after_update(state, logger)

    def after_update(self, state: State, logger: Logger) -> None:
        now = state.timestamp.batch.value if self.gradual.complete else progress_of(state)
        if masks := self.gradual.due(now):
            self.prune(masks, state, logger)

    def finish(self, state: State, logger: Logger) -> None:
        self.gradual.finish()
