"""MagnitudePruning in a training by Lightning's Trainer."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ...progress import Moment
from ...pruning.magnitude_pruning import MagnitudePruner, Schedule
from ...pruning.masks import Scope
from ..host import progress_of, refuse_untold
from .sparsity import Pruning


class MagnitudePruning(Pruning):
    """Prune the weights of least magnitude, at `start`, or gradually from then to `end`; see `MagnitudePruner`.

    What is zero at `start` counts as pruned, and stays so.

    Args:
        density: share of the weights that is kept in the end, in (0, 1); or shares by patterns of the layers' names.
        start: when it begins: ep, ba (updates) or dur. What is due after an update is done before its validation.
        end: when it ends; None to prune all at once. A warning tells of a training that ends before.
        interval: time from one step of gradual pruning to the next; by default a hundredth of the time from start to
            end. The three may differ in unit where the data have a length.
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
        schedule: Schedule = "cubic",
        scope: Scope = "global",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        classifier: bool = True,
    ):
        steps = None  # which the Trainer knows
        self.gradual = MagnitudePruner(
            None, (), density, start, end, interval, schedule, scope, steps, include, exclude, classifier,
            name=type(self).__name__,
        )  # fmt: skip
        super().__init__(self.gradual)
        for argument, value in {"start": start, "end": end, "interval": interval}.items():
            if value is not None:
                self.counted_moment(argument, value, ("ep", "ba", "dur"))

    def measure(self, trainer: Trainer) -> None:
        refuse_untold(self, trainer, *self._times())
        self.gradual.check_times(progress_of(trainer))

    def _times(self) -> list[Moment]:
        times = self.gradual.times
        start, end = times["start"], times.get("end")
        if end is None or "interval" in times or start.unit != end.unit:
            return [*times.values()]
        return [start, end, Moment((end.value - start.value) / 100, end.unit)]

    def is_due_before(self, trainer: Trainer) -> bool:
        return self.gradual.left_at(progress_of(trainer)) < self.remaining()

    def before_update(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if trainer.global_step == 0:
            self.after_update(trainer, pl_module)

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if masks := self.gradual.due(trainer.global_step if self.gradual.complete else progress_of(trainer)):
            self.prune(masks, trainer)

    def finish(self, trainer: Trainer) -> None:
        self.gradual.finish()
