"""A run's folder: whether it holds this very run, finished or to be gone on with, and what is in the way of that."""

from __future__ import annotations

import json
import re
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from accelerando.recipes.config import UNREADABLE, ConfigError, Recipe
from accelerando.recipes.names import REFUSALS

if TYPE_CHECKING:
    from accelerando.recipes.report import Result

# What may differ between a run and its continuation: how long, how it is watched, where it runs.
MAY_CHANGE = re.compile(
    r"max_duration|folder|callbacks|loggers|eval_interval|eval_subset_num_batches|eval_batch_size|progress_bar"
    r"|device|device_train_microbatch_size|dist_timeout|python_log_level|autoresume|(save|log|console)_\w+"
)

# A LotteryTicket that is given more levels goes on after its last one.
LEVELS = re.compile(r"algorithms\.(.*:)?lottery_?ticket\.levels", re.IGNORECASE)

ANOTHER = "choose another run_name, or delete the folder"


def has_checkpoint(recipe: Recipe) -> bool:
    """Whether there is a link to the latest checkpoint."""
    with recipe.source.blame("folder", OSError):
        return _as_rank_zero_finds(_mend_link, recipe)


def _as_rank_zero_finds(find: Callable[[Recipe], Any], recipe: Recipe) -> Any:
    """Ranks that disagreed would wait for each other."""
    from composer.utils import dist

    found = [find(recipe) if dist.get_global_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


def _links(recipe: Recipe) -> list[Path]:
    return [path for path in recipe.folder.glob("checkpoints/*") if path.is_symlink()]


def _mend_link(recipe: Recipe) -> bool:
    """Composer removes the link once the new checkpoint is whole, then links that: a kill in between leaves no link.

    Without one, a checkpoint older than config.yaml belongs to a run that was there before this one.
    """
    from composer.utils.file_helpers import format_name_with_dist

    links, saved = _links(recipe), recipe.folder / "config.yaml"
    if any(link.exists() for link in links):
        return True
    since = saved.stat().st_mtime if saved.exists() and not links else 0.0
    # A kill may also leave half a file, which lacks the directory that ends a zip.
    files = [path for path in recipe.folder.glob("checkpoints/*.pt") if path.is_file() and zipfile.is_zipfile(path)]
    files = sorted((file for file in files if file.stat().st_mtime >= since), key=lambda file: file.stat().st_mtime)
    for link in links:
        link.unlink()
    name = recipe.trainer.get("save_latest_filename", "latest-rank{rank}.pt")
    if files and name:
        (recipe.folder / "checkpoints" / format_name_with_dist(name, recipe.run_name)).symlink_to(files[-1].name)
    return bool(files and name)


def finished(recipe: Recipe) -> Result | None:
    """What this very run has done, if it is in the folder already."""
    return _as_rank_zero_finds(_load_finished, recipe)


def _load_finished(recipe: Recipe) -> Result | None:
    from accelerando.recipes.report import Result

    try:
        was = _saved_config(recipe)
        if was is None or _changes(was, recipe.config) or _length(was) != _length(recipe.config):
            return None
        result = Result.load(recipe.folder)
        return result if isinstance(result.batches, int) and result.records and result.metrics else None
    except (OSError, ValueError, TypeError, ConfigError):  # training goes on from the checkpoint, or says what is wrong
        return None


def refuse_another_run(recipe: Recipe, as_long: bool = False) -> None:
    """The checkpoints in the folder must come from this config; with `as_long` from a run of its length, too."""
    was = _saved_config(recipe) or {}
    changes = _changes(was, recipe.config) if was else []
    if as_long and was and was.get("max_duration") != recipe.config["max_duration"]:
        changes.append(("max_duration", was.get("max_duration", "absent"), recipe.config["max_duration"]))
    for key, there, here in changes:
        raise recipe.source.error(key, f"{here} given, but the run in {recipe.folder} has {there}; {ANOTHER}")


def identity(recipe: Recipe) -> str:
    """A text that is the same for this very run alone, wherever it lies and however it is watched."""
    kept = {
        key: value
        for key, value in _flatten(recipe.config).items()
        if key == "max_duration" or not MAY_CHANGE.fullmatch(key.partition(".")[0])
    }
    return json.dumps(kept, sort_keys=True, default=str)


def refuse_a_shorter_run(recipe: Recipe, elapsed: Any) -> None:
    """`elapsed` is the checkpoint's share of max_duration; a finished run's may be above 1, if it counts samples."""
    was, given = _saved_config(recipe) or {}, recipe.config["max_duration"]
    if elapsed is not None and elapsed > 1 and was.get("max_duration", given) != given:
        raise recipe.source.error("max_duration", f"{given} given, but the run in {recipe.folder} is longer; {ANOTHER}")


def _changes(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys that make it another run, and what they were and are."""
    old, new = _flatten(was), _flatten(now)
    return [
        (key, old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not MAY_CHANGE.fullmatch(key.partition(".")[0])
        if not (LEVELS.fullmatch(key) and _is_more(old.get(key), new.get(key)))
    ]


def _is_more(was: Any, now: Any) -> bool:
    return isinstance(was, int) and isinstance(now, int) and now > was


def _length(config: dict[str, Any]) -> dict[str, Any]:
    """What says how long a run is."""
    return {key: v for key, v in _flatten(config).items() if key == "max_duration" or LEVELS.fullmatch(key)}


def _saved_config(recipe: Recipe) -> dict[str, Any] | None:
    saved = recipe.folder / "config.yaml"
    if not saved.exists():
        return None
    try:
        was = OmegaConf.to_container(OmegaConf.load(saved))
        if not (isinstance(was, dict) and was):
            raise ValueError("expected a mapping of keys to values")
    except UNREADABLE as error:
        hint = "delete it if the checkpoints beside it are of this config, or the folder to start anew"
        raise ConfigError(str(saved), "", f"unreadable; {hint}; {error}") from error
    return {str(key): value for key, value in was.items()}


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys. An entry of a section stands for itself too, so that one without arguments counts."""
    if not isinstance(value, dict):
        return {key: value}
    itself = {key: "present"} if "." in key else {}
    return itself | {k: v for name in value for k, v in _flatten(value[name], f"{key}.{name}" if key else name).items()}


def write_config(recipe: Recipe, resumes: bool) -> None:
    from composer.utils import dist

    from accelerando.recipes.report import write_yaml

    if dist.get_global_rank() == 0:
        with recipe.source.blame("folder", OSError):
            # From here on the folder is this run's: a kill must not leave it with the checkpoint of another.
            for link in [] if resumes else _links(recipe):
                link.unlink()
            if not resumes or _saved_config(recipe) != recipe.config:
                (recipe.folder / "results.json").unlink(missing_ok=True)
            write_yaml(recipe.folder / "config.yaml", recipe.config)
    dist.barrier()


@contextmanager
def blame_checkpoint(recipe: Recipe, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Says which file could not be loaded, and what to do; other errors pass."""
    try:
        yield
    except REFUSALS as error:
        if "load_checkpoint" not in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            raise
        message = f"cannot be loaded; {type(error).__name__}: {error}"
        if not arguments["autoresume"]:
            raise recipe.source.error("load_path", f"{arguments['load_path']} {message}") from error
        file = next((link.resolve() for link in _links(recipe)), recipe.folder / "checkpoints")
        hint = f"delete it to go on from another one, or {recipe.folder} to start anew"
        raise ConfigError(str(file), "", f"{message}; {hint}") from error
