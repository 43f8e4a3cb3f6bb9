"""Snapshots of a training by Lightning's Trainer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ..checkpoints import some
from ..progress import Moment
from ..snapshots import SnapshotWriter, copied_weights
from ..validation import check
from ..whole_files import written_whole
from .counted import Counted
from .host import common_seed, progress_of


class Snapshots(Counted):
    """Keep the module's weights and buffers at these moments, as the updates before them have left it.

    Whatever another technique changes at the next update's beginning, such as what it prunes there, comes later. A file
    is written whole or not at all, before any checkpoint of the same moment, so that a training which goes on after a
    kill has every one of them. A moment that lies within an update is that update's end.

    The files are `ba500.safetensors` and so on, by the number of updates; `find_snapshot` knows them by moment too.

    Args:
        at: moments of the whole training in ep, ba or dur; `0ba` is before the first update, `1dur` the end.
        full: keep beside each a checkpoint of Lightning's (`ba500.pt`), from which `fit(ckpt_path=...)` goes on.
        save_folder: where; by default in `snapshots` in the Trainer's `default_root_dir`.
    """

    late: ClassVar[int] = 2

    def __init__(self, at: Sequence[str], full: bool = False, save_folder: str | None = None):
        super().__init__()
        check("Snapshots", "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self._writer = SnapshotWriter(save_folder or "", at, owner="Snapshots")
        units = {time.unit for time in self._writer.at.values()}
        check("Snapshots", "at", units <= {"ep", "ba", "dur"}, "in ep, ba or dur, which Lightning counts", at)
        self.full, self.save_folder = full, save_folder
        self._resumes, self._written, self._seed = False, -1, 0

    @property
    def at(self) -> dict[str, Moment]:
        return self._writer.at

    @property
    def kept(self) -> dict[str, int]:
        """The batch (update) of each moment."""
        return self._writer.kept

    def state_dict(self) -> dict[str, Any]:
        return {**self._writer.state_dict(), "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._writer.load_state_dict(state_dict)
        self._seed, self._resumes = state_dict["seed"], True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            folder = self.save_folder or Path(trainer.default_root_dir, "snapshots")
            self._writer = SnapshotWriter(folder, [*self.at], owner="Snapshots")
            self._resumes, self._written = False, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._resumes:
            self._seed = common_seed(trainer, None)
        self._writer.begin(pl_module.state_dict(), progress_of(trainer))
        if trainer.global_step in self.kept.values():
            self._written = trainer.global_step
        self._keep(trainer, pl_module)

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writer.keep(lambda: copied_weights(pl_module), progress_of(trainer), seed=self._seed)
        now = trainer.global_step
        if not self.full or now == self._written or now not in self.kept.values():
            return
        self._written = now
        with written_whole(self._writer.file(now).with_suffix(".pt"), here=trainer.is_global_zero) as file:
            trainer.save_checkpoint(file)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (missing := self._writer.missing) and trainer.is_global_zero:
            text = f"the training has ended after {trainer.global_step}ba, before {some(missing)}"
            warnings.warn(f"Snapshots: {text}.", stacklevel=2)
