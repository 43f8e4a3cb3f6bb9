"""Snapshots of a training by Hugging Face's Trainer."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerControl, TrainerState, TrainingArguments

from .. import ranks
from ..checkpoints import some
from ..progress import Moment
from ..snapshots import SnapshotWriter
from .host import Run, Technique, output_folder


class KeepsWeights(Technique):
    """The base of what keeps the model's weights and buffers at moments of a training, by a `SnapshotWriter`."""

    folder: ClassVar[str]  # in the Trainer's `output_dir`, where none is given

    def __init__(self, save_folder: str | None):
        self.save_folder = save_folder
        self._writer = self.new_writer(Path(save_folder or ""), None)

    def new_writer(self, folder: Path, run: Run | None) -> SnapshotWriter:
        """Makes what keeps them in a folder, for a training if there is one yet."""
        raise NotImplementedError

    @property
    def kept(self) -> dict[str, int]:
        """The update of each moment."""
        return self._writer.kept

    def begin(self, run: Run) -> None:
        self._writer = self.new_writer(Path(self.save_folder or output_folder(run.args) / self.folder), run)

    def state_dict(self) -> dict[str, Any]:
        return self._writer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._writer.load_state_dict(state)

    def start(self, run: Run) -> None:
        self._writer(run.model, run.progress())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        assert self.run
        self._writer(self.run.model, self.run.progress())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if (missing := self._writer.missing) and ranks.rank() == 0:
            text = f"the training has ended after {state.global_step}ba, before {some(missing)}"
            warnings.warn(f"{self.name}: {text}.", stacklevel=2)


class Snapshots(KeepsWeights):
    """Keeps the model's weights and buffers at these moments, as the updates before them have left it.

        Trainer(model, args, callbacks=[Snapshots(["0ba", "500ba", "1dur"])], ...)

    Whatever is changed at the next update's beginning, such as what PruneAtInit prunes there, comes later. The files
    are `ba500.safetensors` and so on, by the number of updates; `find_snapshot` knows them by moment too.

    Args:
        at: moments of the training in ep, ba (updates) or dur; `0ba` is before the first update, `1dur` the end.
        full: keep beside each (`ba500.pt`) the states of "optimizer", "scheduler" and the first rank's generators,
            which `Snapshot.restore(model, optimizer=..., scheduler=...)` brings back.
        save_folder: where; by default in `{output_dir}/snapshots`.
    """

    folder = "snapshots"

    def __init__(self, at: Sequence[str], full: bool = False, save_folder: str | None = None):
        self._at, self.full = at, full
        super().__init__(save_folder)
        self.counted(self.at.values())

    def new_writer(self, folder: Path, run: Run | None) -> SnapshotWriter:
        full = {"optimizer": run.optimizer, "scheduler": run.scheduler} if self.full and run else None
        return SnapshotWriter(folder, self._at, full=full, owner=self.name)

    @property
    def at(self) -> dict[str, Moment]:
        return self._writer.at
