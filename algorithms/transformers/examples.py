"""ForgettingEvents in Hugging Face's Trainer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..examples.forgetting import Forgetting
from .host import Run
from .snapshots import KeepsWeights


class ForgettingEvents(KeepsWeights):
    """Counts how often the training unlearns each example, which it had classified correctly before.

        forgetting = ForgettingEvents(DataLoader(train_set, 1000, collate_fn=default_data_collator))
        Trainer(model, args, callbacks=[forgetting], ...).train()
        forgetting.forgetting.events

    All examples are looked at in evaluation mode where an interval ends, first one interval after the beginning:
    `forgetting` is the `Forgetting` that holds what was found, and says what counts. In the folder stands
    `forgetting.safetensors`, the scores by the last look. Of several ranks each may have a share of the data, by a
    `DistributedSampler`, or all of them. Nothing of the training is changed.

    Args:
        data: a DataLoader over the examples in their order, not shuffled, whose batches the model takes by name.
        interval: in ep, ba (updates) or dur; an end that lies within an update is that update's.
        save_folder: where; by default in `{output_dir}/forgetting`.
    """

    folder = "forgetting"

    def __init__(self, data: Iterable[Any], interval: str = "1ep", save_folder: str | None = None):
        self.data, self.interval = data, interval
        super().__init__(save_folder)
        self.counted([self.forgetting.interval])

    def new_writer(self, folder: Path, run: Run | None) -> Any:
        def outputs(model: Any, batch: Any) -> Any:
            assert run
            with run.autocast():
                return model(**batch)

        file = folder / "forgetting.safetensors"
        return Forgetting(self.data, self.interval, forward=outputs, file=file, owner=self.name)

    @property
    def forgetting(self) -> Forgetting:
        writer: Any = self._writer
        return writer

    def start(self, run: Run) -> None:
        self.forgetting.begin({}, run.progress())
