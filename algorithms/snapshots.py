"""Snapshots: the weights of chosen moments of a training, kept as files from which other runs start.

Rewinding, instability analysis and paths between networks stand on them: Frankle et al., "Linear Mode Connectivity and
the Lottery Ticket Hypothesis" (arXiv 1912.05671).

    writer = SnapshotWriter("snapshots", at=["0ba", "500ba", "1dur"], steps=6400)
    writer(model, 0)
    for step in range(6400):
        ...
        optimizer.step()
        writer(model, step + 1)

    snapshot = find_snapshot("snapshots", "500ba")
    model.load_state_dict(snapshot.weights())
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import load_weights, oddity, read_content, read_metadata, read_weights, some, write_safetensors
from .generators import generator_states, set_generator_states
from .progress import COUNTS, Moment, Progress, moment
from .ranks import gathered, rank
from .shown import Shown
from .validation import check
from .whole_files import written_whole

_GENERATORS = "generators"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is kept of one moment: `file` with the weights, `full` with all else, if it was asked for.

    `place` counts what the run had trained on: `epoch`, `batch`, `sample` and `token` in all, and within the epoch as
    `batch_in_epoch` and so on, as far as somebody counted; `place_before` counts it one batch earlier. `seed` is the
    run's, and `shift` how many batches its data were ahead of these counts, as the loader's sampler tells by an
    attribute of that name.
    """

    file: Path
    full: Path | None
    at: tuple[str, ...]
    place: dict[str, int]
    place_before: dict[str, int]
    seed: int
    shift: int

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers by the names of the network that was given, on the CPU."""
        return read_weights(self.file)

    def restore(self, model: nn.Module, **parts: Any) -> int:
        """Loads the weights into `model`; and of what a `SnapshotWriter` has kept beside them, the state of each of
        these parts by name, and the global random generators. Returns how many updates were made.

        Raises ValueError for a file that does not fit, or does not hold those parts.
        """
        held = read_content(self.full) if self.full else {}
        if lacking := [name for name in parts if name not in held]:
            raise ValueError(f"{self.file} has no {some(lacking)} beside it; give SnapshotWriter all as full={{...}}")
        load_weights(model, self.file)
        for name, part in parts.items():
            part.load_state_dict(held[name])
        if _GENERATORS in held:
            set_generator_states(held[_GENERATORS])
        return self.place["batch"]


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


def _is_at(snapshot: Snapshot, time: Moment) -> bool:
    if time.unit == "ep" and snapshot.place["batch_in_epoch"]:
        return False
    unit = {"ep": "epoch", "ba": "batch", "sp": "sample", "tok": "token"}.get(time.unit, "")
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


class SnapshotWriter(Shown):
    """Keeps the weights and buffers of a model at these moments of its training.

    To be called with the model and the number of updates so far, or a `Progress`, before the first update and after
    each, by every rank; the first one writes. A file is written whole or not at all. The files are `ba500.safetensors`
    and so on, by the number of updates; `find_snapshot` knows them by moment too.

    Args:
        folder: where.
        at: moments in ep, ba, sp, tok or dur; `0ba` is before the first update, `1dur` the end. One that lies within a
            batch is that batch's end.
        steps: updates in all, for moments in dur.
        batches_per_epoch: for moments in ep.
        full: keep beside each (`ba500.pt`) all else of which a start needs the state: objects with a `state_dict`, by
            name, or a function that returns such a mapping, or states; and the first rank's global random generators.
            It can be loaded with `weights_only=True`, and `Snapshot.restore` brings it back.

    Raises ValueError for other arguments; and, when it is first called, for moments beyond the end or that the progress
    does not tell, and for a model whose state_dict holds what is no plain tensor, such as weights that FSDP splits.
    """

    argument = "at"  # what errors call the moments

    def __init__(
        self,
        folder: str | PathLike[str],
        at: Sequence[str],
        steps: int | None = None,
        batches_per_epoch: int | None = None,
        full: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        owner: str = "SnapshotWriter",
    ):
        several = not isinstance(at, str) and isinstance(at, Sequence) and len(at) > 0
        check(owner, "at", several, "a list of moments, such as ['0ba', '1ep']", at)
        times = {text: moment(text) if isinstance(text, str) else None for text in at}
        wrong = [text for text, time in times.items() if time is None]
        check(owner, "at", not wrong, "moments in ep, ba, sp, tok or dur", wrong or at)
        check(owner, "at", len(times) == len(at), "different moments", at)
        self.folder, self.steps, self.batches_per_epoch, self.full = Path(folder), steps, batches_per_epoch, full
        self.at: dict[str, Moment] = {text: time for text, time in times.items() if time is not None}
        self.kept: dict[str, int] = {}  # the batch of each moment
        self.passed: list[str] = []  # before the training began, or began to keep them
        self.owner = owner
        self._place: dict[str, int] = {}
        self._before: dict[str, int] = {}  # the place before the last update
        self._begun = False

    def __call__(self, model: nn.Module, progress: int | Progress) -> None:
        progress = self._progress(progress) if isinstance(progress, int) else progress
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        if not self._begun:
            self.begin(model.state_dict(), progress)
        self.keep(lambda: copied_weights(model), progress, seed=torch.initial_seed())

    def state_dict(self) -> dict[str, Any]:
        return {"kept": {**self.kept}, "before": self._before, "place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept, self._before, self._place = dict(state["kept"]), dict(state["before"]), dict(state.get("place", {}))

    @property
    def missing(self) -> list[str]:
        """The moments that have not come."""
        return [text for text in self.at if text not in {*self.kept, *self.passed}]

    def file(self, batch: int) -> Path:
        return self.folder / f"ba{batch}.safetensors"

    def begin(self, weights: Mapping[str, Any], progress: Progress, gone: bool = False) -> None:
        """Checks the weights and the moments, and finds which are kept already, and which have passed.

        Those that are now have passed as well if the weights of now are `gone`.
        """
        for text, time in self.at.items():
            late = (progress.share(time) or 0) > 1
            check(self.owner, self.argument, not late, f"within the training, which lasts {progress.length}", text)
        if odd := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{self.owner}: {some(odd)} of the model's state_dict is no tensor, and cannot be kept.")
        if odd := [f"{name} ({why})" for name, value in weights.items() if (why := oddity(value))]:
            raise ValueError(f"{self.owner}: {some(odd)} of the model's state_dict is no plain tensor; use DDP.")
        # In another folder, or of another length, the run may have to keep a moment again.
        kept = {t: b for t, b in self.kept.items() if t in self.at and progress.reached(self.at[t])}
        self.kept = gathered({text: batch for text, batch in kept.items() if self.file(batch).is_file()})[0]
        over = [text for text, time in self.at.items() if text not in self.kept and progress.reached(time)]
        self.passed = [text for text in over if gone or progress.passed(self.at[text])]
        if self.passed:
            self.tell_passed(f"{some(self.passed)} had passed at {progress.batch}ba, where the run goes on")
        self._begun = True
        self.note(progress.counts)

    def tell_passed(self, text: str) -> None:
        """Says which moments have passed; called by all ranks."""
        if rank() == 0:
            warnings.warn(f"{self.owner}: {text}; it is not kept.", stacklevel=4)

    def note(self, place: dict[str, int]) -> None:
        """Takes down where the training is; as often as it is called, it remembers the place one batch earlier."""
        if not self._before or (self._place and place["batch"] != self._place["batch"]):
            self._before = self._place or place
        self._place = place

    def keep(
        self, weights: Callable[[], Mapping[str, Tensor]], progress: Progress, *, seed: int, shift: int = 0
    ) -> None:
        """Writes a snapshot if one is due, for which it asks for the weights."""
        self.note(progress.counts)
        due = [text for text in self.missing if progress.reached(self.at[text])]
        if not due:
            return
        self.kept |= dict.fromkeys(due, progress.batch)
        at = [text for text, batch in self.kept.items() if batch == progress.batch]
        about = {"at": at, "place": self._place, "place_before": self._before}
        texts = {"seed": str(seed), "shift": str(shift)}
        self.write(weights, progress.batch, texts | {name: json.dumps(value) for name, value in about.items()})

    def write(self, weights: Callable[[], Mapping[str, Tensor]], batch: int, texts: dict[str, str]) -> None:
        """Writes what is kept after so many updates, with these metadata; called by all ranks."""
        if rank() != 0:
            return
        file = self.file(batch)
        if self.full is not None:
            with written_whole(file.with_suffix(".pt")) as path:
                torch.save({**_states(self.full), _GENERATORS: generator_states()}, path)
        write_safetensors(file, weights(), {"format": "pt", **texts})

    def _progress(self, step: int) -> Progress:
        told = {"ba": True, "dur": self.steps is not None, "ep": self.batches_per_epoch is not None}
        if untold := [text for text, time in self.at.items() if not told.get(time.unit)]:
            hint = "give steps for dur, batches_per_epoch for ep, and call it with a Progress for sp and tok"
            raise ValueError(f"{self.owner}: a number of updates does not tell when {some(untold)} is; {hint}.")
        return Progress.after(step, self.steps, self.batches_per_epoch)


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns weights and buffers by name; tied ones, which are one tensor under several names, are several here."""
    return {name.replace("_orig_mod.", ""): value.clone() for name, value in model.state_dict().items()}


def _states(full: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    parts = full() if callable(full) else full
    return {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
