"""Snapshots: the weights of chosen moments of a training, kept as files from which other runs start.

Rewinding, instability analysis and paths between networks stand on them: Frankle et al., "Linear Mode Connectivity and
the Lottery Ticket Hypothesis" (arXiv 1912.05671).

    Trainer(..., algorithms=[Snapshots(at=["0ba", "500ba", "1ep", "1dur"], save_folder="snapshots")])
    snapshot = find_snapshot("snapshots", "500ba")
    model.load_state_dict(snapshot.weights())
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from composer.algorithms import EMA
from composer.core import Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.checkpoint import save_checkpoint
from torch import Tensor
from torch.optim import Optimizer

from .bases import EventAlgorithm
from .checkpoints import read_metadata, read_weights, some, write_safetensors
from .for_recipes import Folder, ForRecipes
from .host import composer_model, elapsed, moment, reached, share_of_training
from .validation import check
from .whole_files import written_whole

COUNTS = ("epoch", "batch", "sample", "token", "batch_in_epoch", "sample_in_epoch", "token_in_epoch")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is kept of one moment: `file` with the weights, `full` with all else, if it was asked for.

    `place` counts what the run had trained on: `epoch`, `batch`, `sample` and `token` in all, and within the epoch as
    `batch_in_epoch` and so on; `place_before` counts it one batch earlier. `seed` is the run's, and `shift` how many
    batches its data were ahead of these counts, as the loader's sampler tells by an attribute of that name.
    """

    file: Path
    full: Path | None
    at: tuple[str, ...]
    place: dict[str, int]
    place_before: dict[str, int]
    seed: int
    shift: int

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers by the names of the network that the Trainer was given, on the CPU."""
        return read_weights(self.file)


def find_snapshots(folder: str | PathLike[str]) -> list[Snapshot]:
    """Returns the snapshots in a folder, in the order of training; ValueError for a file there that is none."""
    found = [_read(path) for path in Path(folder).glob("ba*.safetensors")]
    return sorted(found, key=lambda snapshot: snapshot.place["batch"])


def find_snapshot(folder: str | PathLike[str], at: str) -> Snapshot:
    """Returns the snapshot of a moment, which is given as it was asked for, or by its count of ep, ba, sp or tok.

    Raises LookupError where there is none, and ValueError for a file there that is no snapshot.
    """
    there = find_snapshots(folder)
    for snapshot in there:
        if at in snapshot.at or ((time := moment(at)) is not None and _is_at(snapshot, time)):
            return snapshot
    names = [f"{snapshot.place['batch']}ba" for snapshot in there]
    raise LookupError(f"{folder} has no snapshot of {at}, but of {some(names, most=8)}" if there else _none_in(folder))


def _none_in(folder: str | PathLike[str]) -> str:
    return f"{folder} holds no snapshots, which the algorithm Snapshots keeps of moments that it is given"


def _is_at(snapshot: Snapshot, time: Time) -> bool:
    if time.unit == TimeUnit.EPOCH and snapshot.place["batch_in_epoch"]:
        return False
    unit = {"ep": "epoch", "ba": "batch", "sp": "sample", "tok": "token"}.get(time.unit.value, "")
    return snapshot.place.get(unit) == time.value


def _read(file: Path) -> Snapshot:
    try:
        about = read_metadata(file)
        place, before = (json.loads(about[name]) for name in ("place", "place_before"))
        if not all(type(counts.get(name)) is int for counts in (place, before) for name in COUNTS):
            raise ValueError("its counts are no whole numbers")
        at, seed, shift = tuple(json.loads(about["at"])), int(about["seed"]), int(about["shift"])
    except Exception as error:  # of many kinds, from damaged files
        raise ValueError(f"{file} is no snapshot: {' '.join(str(error).split())[:200]}") from error
    whole = file.with_suffix(".pt")
    full = whole if whole.is_file() else None
    return Snapshot(file=file, full=full, at=at, place=place, place_before=before, seed=seed, shift=shift)


class Snapshots(ForRecipes, EventAlgorithm):
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
        Event.INIT: "_begin",
        Event.AFTER_LOAD: "_come_last",
        Event.FIT_START: "_start",
        Event.BATCH_END: "_end_batch",
        Event.EPOCH_END: "_keep",
        Event.BATCH_CHECKPOINT: "_keep_full",
        Event.EPOCH_CHECKPOINT: "_keep_full",
        Event.FIT_END: "_finish",
    }
    supplied: ClassVar = {"save_folder": Folder(name="snapshots")}

    def __init__(self, at: Sequence[str], full: bool = False, save_folder: str | None = None):
        several = not isinstance(at, str) and isinstance(at, Sequence) and len(at) > 0
        check("Snapshots", "at", several, "a list of moments, such as ['0ba', '1ep']", at)
        times = {text: moment(text) if isinstance(text, str) else None for text in at}
        wrong = [text for text, time in times.items() if time is None]
        check("Snapshots", "at", not wrong, "moments in ep, ba, sp, tok or dur", wrong or at)
        check("Snapshots", "at", len(times) == len(at), "different moments", at)
        check("Snapshots", "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self.at: dict[str, Time] = {text: time for text, time in times.items() if time is not None}
        self.full, self.save_folder = full, save_folder
        self._clear()

    def _clear(self) -> None:
        self.kept: dict[str, int] = {}  # the batch of each moment
        self._passed: list[str] = []  # before the run began, or began to keep them
        self._before: dict[str, int] = {}  # the place before the last update
        self._resumes, self._written = False, -1

    def __repr__(self) -> str:
        return f"Snapshots(at={[*self.at]!r}, full={self.full!r}, save_folder={self.save_folder!r})"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept, "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept, self._before, self._resumes = dict(state["kept"]), dict(state["before"]), True

    def _begin(self, state: State, logger: Logger) -> None:
        if state.fsdp_config is not None or state.tp_config is not None:
            raise ValueError("Snapshots does not keep weights that FSDP or tensor parallelism split; use DDP.")
        self._clear()

    def _come_last(self, state: State, logger: Logger) -> None:
        """Whatever others, such as masks, make of the weights at the same event is then kept."""
        state.algorithms.remove(self)
        state.algorithms.append(self)

    def _start(self, state: State, logger: Logger) -> None:
        for text, time in self.at.items():
            late = (share_of_training(time, state) or 0) > 1
            check("Snapshots", "at", not late, f"within the training, which lasts {state.max_duration}", text)
        weights = composer_model(state).state_dict()
        if odd := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"Snapshots: {some(odd)} of the model's state_dict is no tensor, and cannot be kept.")
        # In another folder, or of another length, the run may have to keep a moment again.
        kept = {t: b for t, b in self.kept.items() if t in self.at and reached(state, self.at[t])}
        there: list[Any] = [{text: batch for text, batch in kept.items() if self._file(state, batch).is_file()}]
        dist.broadcast_object_list(there)
        self.kept = there[0]
        over = [text for text, time in self.at.items() if text not in self.kept and reached(state, time)]
        gone = self._resumes and not _ends_epoch(state)
        self._passed = [text for text in over if gone or _is_over(state, self.at[text])]
        if self._passed and _is_first():
            text = f"{some(self._passed)} had passed at {state.timestamp.batch}, where the run goes on"
            warnings.warn(f"Snapshots: {text}; it is not kept.", stacklevel=2)
        if not self._resumes:
            self._before = _place(state.previous_timestamp or state.timestamp)
            self._keep(state, logger)
            self._keep_full(state, logger)

    def _file(self, state: State, batch: int) -> Path:
        return Path(self.save_folder or f"{state.run_name}/snapshots", f"ba{batch}.safetensors")

    def _end_batch(self, state: State, logger: Logger) -> None:
        """At the end of an epoch, others may still change the weights."""
        self._before = _place(state.previous_timestamp)
        if not _ends_epoch(state):
            self._keep(state, logger)

    def _keep(self, state: State, logger: Logger) -> None:
        done = {*self.kept, *self._passed}
        due = [text for text, time in self.at.items() if text not in done and reached(state, time)]
        if not due:
            return
        now = state.timestamp.batch.value
        self.kept |= dict.fromkeys(due, now)
        if _is_first():
            with _trained(state):
                # Tied weights are one tensor under several names, of which a file holds each.
                weights = composer_model(state).state_dict()
                tensors = {name.replace("_orig_mod.", ""): value.clone() for name, value in weights.items()}
            at = [text for text, batch in self.kept.items() if batch == now]
            places = {"place": _place(state.timestamp), "place_before": self._before}
            shift = getattr(getattr(state.train_dataloader, "sampler", None), "shift", 0)
            about = {"at": json.dumps(at), "seed": str(state.rank_zero_seed), "shift": str(int(shift))}
            about |= {name: json.dumps(place) for name, place in places.items()}
            write_safetensors(self._file(state, now), tensors, {"format": "pt", **about})

    def _keep_full(self, state: State, logger: Logger) -> None:
        now = state.timestamp.batch.value
        if not self.full or _ends_epoch(state) or now == self._written or now not in self.kept.values():
            return
        self._written = now
        with (
            _trained(state),
            _untouched_before_updates(state.optimizers),
            written_whole(self._file(state, now).with_suffix(".pt"), here=_is_first()) as file,
        ):
            # It fills in braces.
            save_checkpoint(state, str(file).replace("{", "{{").replace("}", "}}"))

    def _finish(self, state: State, logger: Logger) -> None:
        if (lacking := [text for text in self.at if text not in {*self.kept, *self._passed}]) and _is_first():
            text = f"the training has ended after {state.timestamp.batch}, before {some(lacking)}"
            warnings.warn(f"Snapshots: {text}.", stacklevel=2)


def _is_first() -> bool:
    return dist.get_global_rank() == 0


def _ends_epoch(state: State) -> bool:
    """Whether the batch was the epoch's last, whose end is still to come."""
    return state.dataloader_len is not None and state.timestamp.batch_in_epoch == int(state.dataloader_len)


def _is_over(state: State, time: Time) -> bool:
    return elapsed(state, time.unit) > float(time.value) * (1 + 1e-9)


def _place(timestamp: Any) -> dict[str, int]:
    return {name: int(getattr(timestamp, name)) for name in COUNTS}


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
def _trained(state: State) -> Iterator[None]:
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
