"""Snapshots of a training by Lightning's Trainer."""

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ..checkpoints import some
from ..progress import Moment
from ..snapshots import SnapshotWriter, copied_weights
from ..validation import check
from ..whole_files import written_whole
from .counted import Counted
from .host import common_seed, progress_of, refuse_untold


class KeepsWeights(Counted):
    """The base of what keeps the module's weights and buffers at moments of a training, by a `SnapshotWriter`.

    They are kept as the updates before a moment have left them, and before any checkpoint of it, so that a training
    which goes on after a kill has every file.
    """

    late: ClassVar[int] = 2
    folder: ClassVar[str]  # in the Trainer's `default_root_dir`, where none is given

    def __init__(self, save_folder: str | None):
        super().__init__()
        self.save_folder, self._resumes, self._seed = save_folder, False, 0
        self._writer = self.new_writer(Path(save_folder or ""))

    def new_writer(self, folder: Path) -> SnapshotWriter:
        """Makes what keeps them in a folder."""
        raise NotImplementedError

    def due(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Returns what the writer is given where something is due: by default copies of weights and buffers by name."""
        return copied_weights(pl_module)

    @property
    def moments(self) -> Iterable[Moment]:
        """When something is due; or how long an interval is, where something is due at the end of each."""
        return self._writer.at.values()

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
            self._writer = self.new_writer(Path(self.save_folder or Path(trainer.default_root_dir, self.folder)))
            self._resumes = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._resumes:
            self._seed = common_seed(trainer, None)
        self.begin(trainer, pl_module)
        self.keep(trainer, pl_module)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When the length of the training is known, and a checkpoint has been loaded."""
        refuse_untold(self, trainer, *self.moments)
        self._writer.begin(pl_module.state_dict(), progress_of(trainer))

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer, pl_module)

    def keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is due."""
        self._writer.keep(partial(self.due, trainer, pl_module), progress_of(trainer), seed=self._seed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (missing := self._writer.missing) and trainer.is_global_zero:
            text = f"the training has ended after {trainer.global_step}ba, before {some(missing)}"
            warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)


class Snapshots(KeepsWeights):
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

    folder = "snapshots"

    def __init__(self, at: Sequence[str], full: bool = False, save_folder: str | None = None):
        check("Snapshots", "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self._at, self.full, self._written = at, full, -1
        super().__init__(save_folder)
        units = {time.unit for time in self.at.values()}
        check("Snapshots", "at", units <= {"ep", "ba", "dur"}, "in ep, ba or dur, which Lightning counts", at)

    def new_writer(self, folder: Path) -> SnapshotWriter:
        return SnapshotWriter(folder, self._at, owner="Snapshots")

    @property
    def at(self) -> dict[str, Moment]:
        return self._writer.at

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self._written = -1

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().begin(trainer, pl_module)
        if trainer.global_step in self.kept.values():
            self._written = trainer.global_step

    def keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().keep(trainer, pl_module)
        now = trainer.global_step
        if not self.full or now == self._written or now not in self.kept.values():
            return
        self._written = now
        with written_whole(self._writer.file(now).with_suffix(".pt"), here=trainer.is_global_zero) as file:
            trainer.save_checkpoint(file)
