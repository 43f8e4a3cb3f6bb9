"""What a run goes on from: its newest whole checkpoint, each with a digest beside it and the run's config inside."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from accelerando.algorithms.checkpoints import read_content, some, weights_in

from ..config.errors import ConfigError
from ..config.recipe import Recipe
from .files import write
from .folder import checkpoint_files, differences, digest_file, may_grow

NEEDED = ("model", "optimizers", "callbacks", "timestamp", "rank_zero_seed", "run_name")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole one of this run: its weights' `names`, `older` ones of this run, and what a kill has left `half`."""

    path: str
    names: frozenset[str]
    older: tuple[str, ...]
    half: tuple[str, ...]


def newest_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """The newest whole one of this run, by what is inside, not by file times. None where none was ever whole.

    Whatever is newer and not fit is told in one line each; a ConfigError, where only such is left.
    """
    files = sorted(checkpoint_files(recipe.folder), key=_age, reverse=True)
    problems: dict[Path, str] = {}
    for number, file in enumerate(files):
        try:
            content = _read_whole(file)
            _refuse_foreign(content, recipe)
        except ValueError as error:
            problems[file] = " ".join(str(error).split())
            continue
        names = frozenset(weights_in(content, file))
        del content
        told = [f"{newer}: {problem}; going on from {file.name}" for newer, problem in problems.items()]
        told += [] if _read_digest(file) else [f"{file}: without a digest beside it; only its content was checked"]
        print(*told, sep="\n", end="\n" if told else "", file=sys.stderr, flush=True)
        older = [older for older in files[:number:-1] if _is_ours(older, recipe)] if _rotates(recipe) else []
        half = [newer for newer in problems if not _was_whole(newer)]
        return Checkpoint(path=str(file.resolve()), names=names, older=_paths(older), half=_paths(half))
    for file, problem in problems.items():
        if _was_whole(file):
            hint = f"delete it to go on from another one, or {recipe.folder} to start anew"
            raise ConfigError(str(file), "", f"cannot be gone on from: {problem}; {hint}")
        print(f"{file}: {problem}, a kill has left it so; starting anew", file=sys.stderr, flush=True)
    return None


def _paths(files: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(file.resolve()) for file in files)


def _age(file: Path) -> tuple[int, bool]:
    """The batch, as the digest tells or what is inside; of a file and its copy, that with a digest is newer."""
    if digest := _read_digest(file):
        return digest["batch"], True
    try:
        return _batch(read_content(file)), False
    except (ValueError, OSError, LookupError, TypeError):
        return sys.maxsize, False  # newer than all: it is looked at first, and told of


def _batch(content: Mapping[str, Any]) -> int:
    return int(content["state"]["timestamp"]["Timestamp"]["batch"])


def _read_whole(file: Path) -> Mapping[str, Any]:
    """The content; ValueError where it is not what was written, or would run code."""
    digest = _read_digest(file)
    same = digest is not None and digest["sha256"] == _sha256(file)
    if not same and (damage := _damage(file)):
        raise ValueError(damage)
    content = read_content(file)
    state = content.get("state")
    held = state if isinstance(state, Mapping) else {}
    if lacking := [name for name in NEEDED if name not in held]:
        raise ValueError(f"incomplete, without {', '.join(lacking)}")
    # Unless a kill came before the digest of a later one with the same name.
    if digest_file(file).exists() and not same and not (digest and _batch(content) > digest["batch"]):
        raise ValueError("altered since it was saved: its sha256 is not the one beside it")
    return content


def _damage(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
            return f"damaged: {bad} is not what was saved" if bad else ""
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return f"incomplete: {error}"


def _refuse_foreign(content: Mapping[str, Any], recipe: Recipe) -> None:
    state = content["state"]
    saved = state["callbacks"].get("Saved", {}).get("config")
    # Those of older versions do not hold it.
    was = json.loads(saved) if saved else {"run_name": state["run_name"], "seed": state["rank_zero_seed"]}
    now = json.loads(_plain(recipe.config))
    for key, there, here in differences(was, now if saved else {key: now[key] for key in was}, may_grow(recipe)):
        raise ValueError(f"of another run, with {key} {there}, not {here}")


def _plain(config: Mapping[str, Any]) -> str:
    return json.dumps(config, default=str)


def _was_whole(file: Path) -> bool:
    """Composer links a checkpoint once it is whole; half a file lacks the directory that ends a zip."""
    linked = any(link.is_symlink() and link.resolve() == file.resolve() for link in file.parent.iterdir())
    return digest_file(file).exists() or linked or zipfile.is_zipfile(file)


def _rotates(recipe: Recipe) -> bool:
    return recipe.trainer.get("save_num_checkpoints_to_keep", 1) >= 0


def _is_ours(file: Path, recipe: Recipe) -> bool:
    try:
        _refuse_foreign(_read_whole(file), recipe)
        return True
    except ValueError:
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _read_digest(file: Path) -> dict[str, Any] | None:
    try:
        digest = json.loads(digest_file(file).read_text())
        return digest if type(digest["batch"]) is int and isinstance(digest["sha256"], str) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


class Saved(LoggerDestination):
    """Puts the config into each checkpoint and a digest beside it, and looks at what a checkpoint has brought.

    A logger, because these come after all callbacks, CheckpointSaver among them.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint | None):
        self._recipe, self._checkpoint = recipe, checkpoint
        self._written: tuple[str, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"config": _plain(self._recipe.config)}

    def after_load(self, state: State, logger: Logger) -> None:
        if state.load_path is None:
            return
        where = self._checkpoint.path if self._checkpoint else str(state.load_path)
        if bad := not_finite(state.model.named_parameters()):
            hint = "training has diverged there; change what made it, or start anew"
            raise ConfigError(where, "", f"holds weights that are not finite: {some(bad)}; {hint}")
        if self._checkpoint is None:
            return
        names = [] if state.fsdp_enabled else state.model.state_dict()
        if lacking := [name for name in names if name not in self._checkpoint.names]:
            raise ConfigError(where, "", f"incomplete: it lacks {some(lacking)}, which the model has")
        self._leave_nothing_stale(self._checkpoint, state)

    def _leave_nothing_stale(self, checkpoint: Checkpoint, state: State) -> None:
        """Of the run before the kill Composer knows nothing, and would keep all."""
        if dist.get_global_rank() != 0:
            return
        for half in checkpoint.half:
            Path(half).unlink(missing_ok=True)
        for saver in _savers(state):
            latest = saver.latest_filename and Path(saver.latest_filename.format(state)).absolute()
            ours = *checkpoint.older, checkpoint.path
            saver.saved_checkpoints[:0] = [path for path in ours if Path(path) != latest]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self._add_digest(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        self._add_digest(state)

    def _add_digest(self, state: State) -> None:
        batch = int(state.timestamp.batch)
        for saver in _savers(state):
            file = Path(saver.saved_checkpoints[-1]) if saver.saved_checkpoints else None
            if file is None or saver.last_checkpoint_batch != batch or self._written == (str(file), batch):
                continue
            write(digest_file(file), json.dumps({"batch": batch, "sha256": _sha256(file)}).encode())
            self._warn_of_code(file)
            self._written = str(file), batch
            for old in file.parent.glob(digest_file(Path("*")).name):
                if not old.with_suffix("").exists():
                    old.unlink(missing_ok=True)

    def _warn_of_code(self, file: Path) -> None:
        """Once, and early: after a kill it would be too late."""
        if self._written is None:
            try:
                read_content(file)
            except ValueError as error:
                print(f"after a kill, the run could not go on from this: {error}", file=sys.stderr, flush=True)


def not_finite(weights: Iterable[tuple[str, Any]]) -> list[str]:
    """Returns the names of the tensors that hold a number which is not finite."""
    floats = [(name, w.detach()) for name, w in weights if isinstance(w, torch.Tensor) and w.is_floating_point()]
    return [name for name, weight in floats if not torch.isfinite(weight).all()]


def _savers(state: State) -> list[CheckpointSaver]:
    return [callback for callback in state.callbacks if isinstance(callback, CheckpointSaver)]


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Whatever Composer loads inside, from wherever, is read without running code first, and refused where it would."""
    name = "CHECKPOINT_VALIDATION_FUNCTION"
    before = os.environ.get(name)
    os.environ[name] = f"{__name__}.{refuse_code.__name__}"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def refuse_code(file: str | os.PathLike[str], parts: Any = None) -> bool:
    """For Composer, which unpickles whatever it finds; ValueError says what would run. Of a shard it reads `parts`."""
    if parts is None:
        read_content(file)
    return True
