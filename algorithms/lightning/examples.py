"""ForgettingEvents in a training by Lightning's Trainer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..examples.forgetting import Forgetting
from ..progress import Moment
from ..validation import check
from .snapshots import KeepsWeights


class ForgettingEvents(KeepsWeights):
    """Count how often the training unlearns each example, which it had classified correctly before.

        forgetting = ForgettingEvents(DataLoader(train_set, 1000))
        Trainer(..., callbacks=[forgetting]).fit(module, train)
        forgetting.forgetting.events

    All examples are looked at in evaluation mode where an interval ends, first one interval after the beginning:
    `forgetting` is the `Forgetting` that holds what was found, and says what counts. In the folder stands
    `forgetting.safetensors`, the scores by the last look. Of several ranks each may have a share of the data, by a
    `DistributedSampler`, or all of them. Nothing of the training is changed.

    Args:
        data: a DataLoader over the examples in their order, not shuffled and not augmented. The logits are what the
            module's `predict_step` gives for a batch of it: by default, what its `forward` gives.
        interval: in ep, ba (updates) or dur; an end that lies within an update is that update's.
        target_key: where a batch holds the classes; in a mapping the default means "labels".
        save_folder: where; by default in `forgetting` in the Trainer's `default_root_dir`.
    """

    folder = "forgetting"

    def __init__(self, data: Iterable[Any], interval: str = "1ep", target_key: Any = 1, save_folder: str | None = None):
        name = type(self).__name__
        check(name, "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self.data, self.interval, self.target_key = data, interval, target_key
        super().__init__(save_folder)
        counted = self.forgetting.interval.unit in ("ep", "ba", "dur")
        check(name, "interval", counted, "in ep, ba or dur, which Lightning counts", interval)

    def new_writer(self, folder: Path) -> Any:
        file = folder / "forgetting.safetensors"
        return Forgetting(self.data, self.interval, target_key=self.target_key, file=file, owner=type(self).__name__)

    @property
    def forgetting(self) -> Forgetting:
        writer: Any = self._writer
        return writer

    @property
    def moments(self) -> Iterable[Moment]:
        return [self.forgetting.interval]

    def due(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        def outputs(module: Any, batch: Any) -> Any:
            with trainer.precision_plugin.predict_step_context():
                return module.predict_step(trainer.precision_plugin.convert_input(batch), 0)

        return self.forgetting.is_correct(pl_module, outputs)
