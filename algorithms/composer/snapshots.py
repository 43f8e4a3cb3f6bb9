"""Snapshots of a run of Composer's Trainer."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from composer.algorithms import EMA
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.checkpoint import save_checkpoint
from torch import Tensor
from torch.optim import Optimizer

from ..checkpoints import some
from ..progress import Moment
from ..snapshots import SnapshotWriter, copied_weights
from ..validation import check
from ..whole_files import written_whole
from .bases import EventAlgorithm
from .for_recipes import Folder, ForRecipes
from .host import composer_model, progress_of


class KeepsWeights(ForRecipes, EventAlgorithm):
    """The base of what keeps the network's weights and buffers at moments of a run, by a `SnapshotWriter`.

    They are kept as the updates before a moment have left them, and before any checkpoint of it, so that a run which
    goes on after a kill has every file. Whatever another algorithm changes at the next update's beginning, such as what
    it prunes there, comes later; what EMA averages is left out.
    """

    steps: ClassVar = {
        Event.INIT: "_begin",
        Event.AFTER_LOAD: "_come_last",
        Event.FIT_START: "_start",
        Event.BATCH_END: "_end_batch",
        Event.EPOCH_END: "_keep",
        Event.FIT_END: "_finish",
    }

    def __init__(self, save_folder: str | None):
        self.save_folder, self._resumes = save_folder, False
        self._writer = self.new_writer(save_folder or "")

    def new_writer(self, folder: str) -> SnapshotWriter:
        """Makes what keeps them in a folder."""
        raise NotImplementedError

    def due(self, state: State) -> Any:
        """Returns what the writer is given where something is due: by default copies of weights and buffers by name."""
        return trained_weights(state)

    @property
    def kept(self) -> dict[str, int]:
        """The batch of each moment."""
        return self._writer.kept

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._writer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._writer.load_state_dict(state)
        self._resumes = True

    def _begin(self, state: State, logger: Logger) -> None:
        if state.fsdp_config is not None or state.tp_config is not None:
            name = type(self).__name__
            raise ValueError(f"{name} does not keep weights that FSDP or tensor parallelism split; use DDP.")
        self._writer = self.new_writer(
            self.save_folder or f"{state.run_name}/{type(self).supplied['save_folder'].name}"
        )
        self._resumes = False

    def _come_last(self, state: State, logger: Logger) -> None:
        """Whatever others, such as masks, make of the weights at the same event is then kept."""
        state.algorithms.remove(self)
        state.algorithms.append(self)

    def _start(self, state: State, logger: Logger) -> None:
        gone = self._resumes and not _ends_epoch(state)
        if not self._resumes:
            self._writer.note(progress_of(state, state.previous_timestamp).counts)
        self._writer.begin(composer_model(state).state_dict(), progress_of(state), gone)
        if not self._resumes:
            self._keep(state, logger)

    def _end_batch(self, state: State, logger: Logger) -> None:
        """At the end of an epoch, others may still change the weights."""
        if _ends_epoch(state):
            self._writer.note(progress_of(state).counts)
        else:
            self._keep(state, logger)

    def _keep(self, state: State, logger: Logger) -> None:
        shift = getattr(getattr(state.train_dataloader, "sampler", None), "shift", 0)
        self._writer.keep(partial(self.due, state), progress_of(state), seed=state.rank_zero_seed, shift=int(shift))

    def _finish(self, state: State, logger: Logger) -> None:
        if (missing := self._writer.missing) and is_first():
            text = f"the training has ended after {state.timestamp.batch}, before {some(missing)}"
            warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)


class Snapshots(KeepsWeights):
    """Keep the network's weights and buffers at these moments, as the updates before them have left it.

    Whatever another algorithm changes at the next update's beginning, such as what it prunes there, comes later; what
    EMA averages is left out. A file is written whole or not at all, before any checkpoint of the same moment, so that a
    run which goes on after a kill has every one of them, as the uninterrupted run does. A moment in samples, tokens or
    dur that lies within a batch is that batch's end.

    The files are `ba500.safetensors` and so on, by the number of updates; `find_snapshot` knows them by moment too.

    Args:
        at: moments of the whole run in ep, ba, sp, tok or dur; `0ba` is before the first update, `1dur` the end.
        full: keep beside each a checkpoint of Composer's (`ba500.pt`) with optimizers, generators and the state of the
            algorithms, from which a run goes on bit for bit.
        save_folder: where; by default in `{run_name}/snapshots`, as Composer's checkpoints are in theirs.
    """

    steps: ClassVar = {
        **KeepsWeights.steps,
        Event.BATCH_CHECKPOINT: "_keep_full",
        Event.EPOCH_CHECKPOINT: "_keep_full",
    }
    supplied: ClassVar = {"save_folder": Folder(name="snapshots")}

    def __init__(self, at: Sequence[str], full: bool = False, save_folder: str | None = None):
        check("Snapshots", "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self._at, self.full, self._written = at, full, -1
        super().__init__(save_folder)

    def new_writer(self, folder: str) -> SnapshotWriter:
        return SnapshotWriter(folder, self._at, owner="Snapshots")

    @property
    def at(self) -> dict[str, Moment]:
        return self._writer.at

    def _begin(self, state: State, logger: Logger) -> None:
        super()._begin(state, logger)
        self._written = -1

    def _start(self, state: State, logger: Logger) -> None:
        super()._start(state, logger)
        if not self._resumes:
            self._keep_full(state, logger)

    def _keep_full(self, state: State, logger: Logger) -> None:
        now = state.timestamp.batch.value
        if not self.full or _ends_epoch(state) or now == self._written or now not in self.kept.values():
            return
        self._written = now
        with (
            trained(state),
            _untouched_before_updates(state.optimizers),
            written_whole(self._writer.file(now).with_suffix(".pt"), here=is_first()) as file,
        ):
            # It fills in braces.
            save_checkpoint(state, str(file).replace("{", "{{").replace("}", "}}"))


def trained_weights(state: State) -> dict[str, Tensor]:
    """Copies of the weights and buffers that are trained, also where EMA has put its averages in their place."""
    with trained(state):
        return copied_weights(composer_model(state))


def is_first() -> bool:
    return dist.get_global_rank() == 0


def _ends_epoch(state: State) -> bool:
    """Whether the batch was the epoch's last, whose end is still to come."""
    return state.dataloader_len is not None and state.timestamp.batch_in_epoch == int(state.dataloader_len)


@contextmanager
def _untouched_before_updates(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """To save an optimizer that has made no update, torch has it make one without gradients, of which nothing stays."""
    fresh = [optimizer for optimizer in optimizers if not optimizer.state]
    options = [[{**group, "params": [*group["params"]]} for group in optimizer.param_groups] for optimizer in fresh]
    yield
    for optimizer, groups in zip(fresh, options, strict=True):
        optimizer.state.clear()
        for group, was in zip(optimizer.param_groups, groups, strict=True):
            group.update(was)


@contextmanager
def trained(state: State) -> Iterator[None]:
    """The model holds the trained weights, also where EMA has put its averages in their place for a checkpoint."""
    swapped = [
        algorithm for algorithm in state.algorithms if isinstance(algorithm, EMA) and algorithm.ema_weights_active
    ]
    for ema in swapped:
        ema._ensure_training_weights_active(state)
    try:
        yield
    finally:
        for ema in swapped:
            ema._ensure_ema_weights_active(state)
