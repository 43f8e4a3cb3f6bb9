"""What a run starts from: another run's folder, as `config/start.py` describes it, and the files of a moment there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerando.algorithms.checkpoints import read_content
from accelerando.algorithms.progress import COUNTS
from accelerando.algorithms.snapshots import find_snapshot

from ..config.errors import REFUSALS, ConfigError, Source
from ..config.recipe import Recipe
from ..config.sections import SECTIONS, check_section
from ..models.pretrained import find_checkpoint
from .folder import folders_of_run, saved_config

DATA = ("train_data", "global_batch_size", "train_subset_num_batches")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a start found in another run: files of weights and of all else, and how far that run had come.

    `shift` is how many batches further on in the data that run was than its place says, as one that was started itself
    may be; `same_data` whether this run trains on the same, in batches of the same size.
    """

    weights: Path
    full: Path | None
    place: Mapping[str, int]
    place_before: Mapping[str, int]
    seed: int
    shift: int
    same_data: bool
    continues_data: bool


def find_origin(recipe: Recipe) -> Origin:
    """Reads what the start needs but the weights, or a ConfigError at its key."""
    start, error = recipe.start, recipe.source.error
    assert start is not None
    folder = _folder(recipe, start.run)
    config = saved_config(folder) or {}  # another program has left none
    changed = [name for name in DATA if not _is_same(name, config.get(name), recipe)]
    if start.data == "continue" and config and changed:
        was, given = config.get(changed[0], "absent"), recipe.config.get(changed[0], "absent")
        hint = f"that run has another {changed[0]}, {was} and not {given}; expected restart"
        raise error("start.data", f"continue given, but {hint}")
    if start.data is None and start.at is not None and not config:
        raise error("start.data", f"missing; {folder} has no config.yaml that would tell what that run was trained on")
    same_data = not changed if config else start.data == "continue"
    data: dict[str, Any] = {
        "same_data": same_data,
        "continues_data": start.data == "continue" or (start.data is None and start.at is not None and same_data),
    }
    if start.at is None:
        return Origin(**_end_of(recipe, folder), **data)
    kept = _kept_in(folder, config)
    with recipe.source.blame("start.at", LookupError), recipe.source.blame("start.run", ValueError):
        found = find_snapshot(kept, start.at)
    if start.optimizer == "keep" and found.full is None:
        hint = "its optimizer's state was not kept; expected fresh, or Snapshots with full: true in that run"
        raise error("start.optimizer", f"keep given, but of {start.at} there is only {found.file}; {hint}")
    about = {name: getattr(found, name) for name in ("full", "place", "place_before", "seed", "shift")}
    return Origin(weights=found.file, **about, **data)


def _folder(recipe: Recipe, run: str) -> Path:
    for folder in folders_of_run(recipe, run):
        if folder.is_dir():
            if folder.resolve() == recipe.folder.resolve():
                raise recipe.source.error("start.run", f"{run} is this run itself; expected another one")
            return folder
    hint = f"expected the folder of a run, or a run_name in {recipe.config['folder']}"
    raise recipe.source.error("start.run", f"{run} is no folder; {hint}")


def _kept_in(folder: Path, config: Mapping[str, Any]) -> Path:
    """Finds where that run's snapshots are: in their own place inside its folder, or where its config says."""
    algorithms = config.get("algorithms")
    entries = algorithms.values() if isinstance(algorithms, dict) else []
    given = [entry["save_folder"] for entry in entries if isinstance(entry, dict) and entry.get("save_folder")]
    places = [folder / "snapshots", *map(Path, given), folder]
    return next((place for place in places if any(place.glob("ba*.safetensors"))), places[0])


def _is_same(name: str, given: Any, recipe: Recipe) -> bool:
    """Whether that run had the same, however it was spelled; a source need not be the same in how it is read."""
    same, sources = given == recipe.config.get(name), name in SECTIONS and isinstance(given, dict | str) and given
    # Somebody else's file shall not choose what is imported here.
    if same or not sources or any(":" in one for one in given):
        return same
    try:
        (part,) = check_section(Source(), name, given)
        theirs, ours = (one.build() for one in (part, check_section(Source(), name, recipe.config[name])[0]))
    except ConfigError:  # of a version before, or of somebody else's module
        return False
    return type(theirs) is type(ours) and _what_it_holds(theirs) == _what_it_holds(ours)


def _what_it_holds(source: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(source).items() if name not in ("num_workers", "download")}


def _end_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Finds the last checkpoint of a finished run."""
    assert recipe.start
    if not (folder / "results.json").is_file():
        hint = "expected a finished one, or at: a moment of which its algorithm Snapshots keeps the weights"
        raise recipe.source.error("start.run", f"the run in {folder} is not finished: it has no results.json; {hint}")
    if recipe.start.continues_schedule:
        hint = "continue given without at; expected at: the moment from which it goes on"
        raise recipe.source.error("start.schedule", hint)
    with recipe.source.blame("start.run", *REFUSALS):
        if (file := find_checkpoint(str(folder))) is None:
            raise FileNotFoundError(f"{folder} has no checkpoint: expected checkpoints/latest-rank0.pt")
        state = read_content(file)["state"]
        place = {name: int(state["timestamp"]["Timestamp"][name]) for name in COUNTS}
        about = {
            "seed": int(state["rank_zero_seed"]),
            "shift": state["callbacks"].get("StartedRun", {}).get("shift", 0),
        }
    return {"weights": file, "full": file, "place": place, "place_before": place, **about}


def read_full(origin: Origin) -> Mapping[str, Any]:
    """Reads the checkpoint of the origin; ValueError where it is none, or of another moment than the weights."""
    content = read_content(origin.full or origin.weights)
    held = content.get("state")
    try:
        batch, seed = held["timestamp"]["Timestamp"]["batch"], held["rank_zero_seed"]  # type: ignore[index]
        held["optimizers"], held["algorithms"]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{origin.full} is no whole checkpoint of Composer's; it lacks {error}") from error
    if (batch, seed) != (origin.place["batch"], origin.seed):
        there = f"batch {batch} of a run with seed {seed}"
        raise ValueError(f"{origin.full} is of {there}, not of the moment of {origin.weights.name} beside it")
    return content
