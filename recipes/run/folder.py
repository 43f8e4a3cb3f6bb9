"""A run's folder: whether it holds this very run, finished or to be gone on with, and what is in the way of that."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ..config.errors import REFUSALS, ConfigError, Source
from ..config.loading import UNREADABLE
from ..config.recipe import Recipe

if TYPE_CHECKING:
    from .results import Result

# What may differ between a run and its continuation: how long, how it is watched, where it runs.
MAY_CHANGE = re.compile(
    r"max_duration|folder|callbacks|loggers|eval_interval|eval_subset_num_batches|eval_batch_size|progress_bar"
    r"|device|device_train_microbatch_size|dist_timeout|python_log_level|autoresume|(save|log|console)_\w+"
    r"|train_metrics_interval"
)

ANOTHER = "choose another run_name, or delete the folder"


def checkpoint_files(folder: Path) -> list[Path]:
    """All files that may be checkpoints, whatever the links to them say: a kill or a copy may have changed these."""
    files = [path for path in folder.glob("checkpoints/**/*") if path.is_file() and not path.is_symlink()]
    return [file for file in files if file.suffix == ".pt" or digest_file(file).exists()]


def digest_file(checkpoint: Path) -> Path:
    """Beside each checkpoint, once it is whole."""
    return checkpoint.with_name(f"{checkpoint.name}.digest")


def is_begun(folder: Path) -> bool:
    """Whether there is anything of a run that its continuation, or another run, must not overwrite."""
    return bool(checkpoint_files(folder)) or (folder / "results.json").exists()


def as_rank_zero_finds(find: Callable[[], Any]) -> Any:
    """The same for all ranks, errors too: ranks that disagreed would wait for each other."""
    from composer.utils import dist

    found: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            found[0] = find()
        except ConfigError as error:
            found[1] = {"file": error.file, "key": error.key, "message": error.message}
    dist.broadcast_object_list(found)
    if found[1]:
        raise ConfigError(**found[1])
    return found[0]


@contextmanager
def held(folder: Path, source: Source) -> Iterator[None]:
    """Keeps all other processes out of the folder; the system lets go of it when this one ends, however it ends."""
    locks: list[Any] = []
    as_rank_zero_finds(lambda: locks.append(_lock(folder, source)))
    try:
        yield
    finally:
        for lock in filter(None, locks):
            lock.close()
            _HELD.discard(lock.name)


_HELD = set[str]()  # of this process, to which its own locks are open


def _lock(folder: Path, source: Source) -> Any:
    with blame_disk(folder, source):
        folder.mkdir(parents=True, exist_ok=True)
        name = str(folder.resolve() / ".lock")
        if name in _HELD:
            raise _held_by("this process", folder, source)
        try:
            lock = open(name, "a+")  # noqa: SIM115
        except OSError:
            if os.access(folder, os.W_OK):
                raise
            return None  # where nothing can be written, nobody need be kept out
    try:
        # Not flock, which workers of the data would go on holding for some seconds after a kill.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        with lock:
            lock.seek(0)
            raise _held_by(lock.read().strip() or "another process", folder, source) from None
    except OSError as error:
        print(f"{folder}: cannot be locked ({error}); see that no other process uses it", file=sys.stderr, flush=True)
    with blame_disk(folder, source):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
    _HELD.add(name)
    return lock


def _held_by(who: str, folder: Path, source: Source) -> ConfigError:
    hint = "wait for its end, or choose another folder or run_name"
    return source.error("folder", f"{folder} is held by {who}; {hint}")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def blame_disk(folder: Path, source: Source) -> Iterator[None]:
    """Turns what comes of a full disk, or of a folder that cannot be written, into one line that says what to do."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        name = getattr(error, "filename", None)
        if full := next((os.strerror(code) for one in _chain(error) for code in FULL if _tells(one, code)), ""):
            hint = "make room, and the same command goes on from what was saved before"
            raise ConfigError(str(name or folder), "", f"cannot be written, {full}; {hint}") from error
        inside = isinstance(name, str | Path) and (Path(name).is_relative_to(folder) or folder.is_relative_to(name))
        if isinstance(error, OSError) and inside:
            hint = "make it a folder that can be written, or choose another"
            raise source.error("folder", f"{name} cannot be written, {error.strerror or error}; {hint}") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came of: torch's own words for a checkpoint that could not be written hide the reason."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tells(error: BaseException, code: int) -> bool:
    return (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error)


def finished(recipe: Recipe) -> Result | None:
    """What this very run has done, if it is in the folder already."""
    return as_rank_zero_finds(lambda: _load_finished(recipe))


def _load_finished(recipe: Recipe) -> Result | None:
    from accelerando.algorithms.composer.for_recipes import declared_by

    from .results import Result

    file = recipe.folder / "results.json"
    try:
        was = _saved_config(recipe)
        if (
            was is None
            or not file.exists()
            or differences(was, recipe.config, growing := may_grow(recipe))
            or _length(was, growing) != _length(recipe.config, growing)
        ):
            return None
        result = Result.load(recipe.folder)
        for part in recipe.algorithms:
            declared_by(part.target).check_found(result.found)
        return replace(result, folder=str(recipe.folder))  # it may have been copied
    except (OSError, ValueError, TypeError) as error:
        line = " ".join(str(error).split())
        print(f"{file}: not as it was written ({line[:200]}); it is written anew", file=sys.stderr, flush=True)
    except ConfigError:  # training goes on from the checkpoint, or says what is wrong
        pass
    return None


def refuse_another_run(recipe: Recipe, as_long: bool = False) -> None:
    """The checkpoints in the folder must come from this config; with `as_long` from a run of its length, too."""
    was = _saved_config(recipe) or {}
    changes = differences(was, recipe.config, may_grow(recipe)) if was else []
    if as_long and was and was.get("max_duration") != recipe.config["max_duration"]:
        changes.append(("max_duration", was.get("max_duration", "absent"), recipe.config["max_duration"]))
    for key, there, here in changes:
        raise recipe.source.error(key, f"{here} given, but the run in {recipe.folder} has {there}; {ANOTHER}")


def identity(recipe: Recipe, growing: Collection[str] = ()) -> str:
    """A text that is the same for this very run alone, wherever it lies, however it is watched and `growing` grow."""
    kept = {
        key: value
        for key, value in _flatten(recipe.config).items()
        if key == "max_duration" or not MAY_CHANGE.fullmatch(key.partition(".")[0])
        if key not in growing
    }
    return json.dumps(kept, sort_keys=True, default=str)


def refuse_a_shorter_run(recipe: Recipe, elapsed: Any) -> None:
    """`elapsed` is the checkpoint's share of max_duration; a finished run's may be above 1, if it counts samples."""
    was, given = _saved_config(recipe) or {}, recipe.config["max_duration"]
    if elapsed is not None and elapsed > 1 and was.get("max_duration", given) != given:
        raise recipe.source.error("max_duration", f"{given} given, but the run in {recipe.folder} is longer; {ANOTHER}")


def may_grow(recipe: Recipe) -> frozenset[str]:
    """The keys whose numbers a run that goes on may have raised, as its algorithms declare."""
    from accelerando.algorithms.composer.for_recipes import declared_by

    return frozenset(f"{p.key}.{name}" for p in recipe.algorithms for name in declared_by(p.target).may_grow)


def differences(was: dict[str, Any], now: dict[str, Any], growing: Collection[str] = ()) -> list[tuple[str, Any, Any]]:
    """The keys that make it another run, and what they were and are; those that are `growing` may have grown."""
    old, new = _flatten(was), _flatten(now)
    return [
        (key, old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not MAY_CHANGE.fullmatch(key.partition(".")[0])
        if not (key in growing and _is_more(old.get(key), new.get(key)))
    ]


def _is_more(was: Any, now: Any) -> bool:
    return isinstance(was, int) and isinstance(now, int) and now > was


def _length(config: dict[str, Any], growing: Collection[str]) -> dict[str, Any]:
    """What says how long a run is."""
    return {key: v for key, v in _flatten(config).items() if key == "max_duration" or key in growing}


def folders_of_run(recipe: Recipe, name: str) -> tuple[Path, Path]:
    """Returns where a run may lie that a YAML names: in the folder of all runs, or where the name leads."""
    return Path(recipe.config["folder"], name), Path(name)


def _saved_config(recipe: Recipe) -> dict[str, Any] | None:
    hint = "delete it if the checkpoints beside it are of this config, or the folder to start anew; "
    return saved_config(recipe.folder, hint)


def saved_config(folder: Path, hint: str = "") -> dict[str, Any] | None:
    """Reads the config of the run in a folder; None where it has left none."""
    saved = folder / "config.yaml"
    if not saved.exists():
        return None
    try:
        was = OmegaConf.to_container(OmegaConf.load(saved))
        if not (isinstance(was, dict) and was):
            raise ValueError("expected a mapping of keys to values")
    except UNREADABLE as error:
        raise ConfigError(str(saved), "", f"unreadable; {hint}{error}") from error
    return {str(key): value for key, value in was.items()}


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys. An entry of a section stands for itself too, so that one without arguments counts."""
    if not isinstance(value, dict):
        return {key: value}
    itself = {key: "present"} if "." in key else {}
    return itself | {k: v for name in value for k, v in _flatten(value[name], f"{key}.{name}" if key else name).items()}


def run_id(folder: Path) -> str | None:
    """What tells this run from all others, of whatever name; it is made when the run begins."""
    file = folder / "run_id"
    return file.read_text().strip() or None if file.is_file() else None


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def begin(recipe: Recipe, name: str, resumes: bool) -> None:
    """From here on the folder is the run's of that id: a kill must not leave it with the checkpoints of another."""
    from composer.utils import dist

    from .files import write, write_yaml

    if dist.get_global_rank() == 0:
        folder = recipe.folder
        if not resumes:
            for file in [*checkpoint_files(folder), *folder.glob("checkpoints/**/*")]:
                if file.is_symlink() or file.suffix in (".pt", ".digest"):
                    file.unlink(missing_ok=True)
            for file in [file for inside in _own_folders(recipe) for file in (folder / inside).glob("*")]:
                if file.is_file():
                    file.unlink()
        if not resumes or _saved_config(recipe) != recipe.config:
            (folder / "results.json").unlink(missing_ok=True)
        for file in (folder / "error.txt", *folder.glob("error-rank*.txt")):
            file.unlink(missing_ok=True)
        write(folder / "run_id", f"{name}\n".encode())
        write_yaml(folder / "config.yaml", recipe.config)
    dist.barrier()


def _own_folders(recipe: Recipe) -> set[str]:
    """The names of the folders that this run's algorithms, or ours in a run before, may have filled."""
    from accelerando.algorithms import composer
    from accelerando.algorithms.composer.for_recipes import Folder, declared_by

    kinds = [*vars(composer).values(), *(part.target for part in recipe.algorithms)]
    return {made.name for kind in kinds for made in declared_by(kind).supplied.values() if isinstance(made, Folder)}


@contextmanager
def blame_checkpoint(recipe: Recipe, file: str | None) -> Iterator[None]:
    """Says which file could not be loaded, and what to do; other errors pass. `file` is the run's own checkpoint."""
    try:
        yield
    except REFUSALS as error:
        if "load_checkpoint" not in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            raise
        message = f"cannot be loaded; {type(error).__name__}: {error}"
        if file is None:
            raise recipe.source.error("load_path", f"{recipe.trainer['load_path']} {message}") from error
        hint = f"delete it to go on from another one, or {recipe.folder} to start anew"
        raise ConfigError(file, "", f"{message}; {hint}") from error
