"""Trained networks for an algorithm that asks for them, such as teachers: from references to modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from accelerando.algorithms.generators import untouched_generators

from ..config.errors import REFUSALS, ConfigError, Source
from ..config.loading import UNREADABLE
from ..config.lookup import Part
from ..config.recipe import Recipe
from ..config.references import EXPECTED, Reference
from ..config.sections import check_section, supplied_to
from ..data.checks import hub_or_cache
from ..models.pretrained import find_checkpoint
from .folder import folders_of_run

if TYPE_CHECKING:
    from torch import nn

PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
NOTHING = "neither the folder of a run (with config.yaml), nor a Hugging Face folder (with config.json) or name"


def build_teachers(recipe: Recipe, references: Sequence[Reference]) -> list[nn.Module]:
    """The modules, or a ConfigError at the reference that cannot be followed. No global random generator moves."""
    with untouched_generators():
        return [_build(recipe, reference) for reference in references]


def _build(recipe: Recipe, reference: Reference) -> nn.Module:
    from accelerando.algorithms import load_teacher

    key, name, source = reference.key, reference.name, recipe.source
    if reference.is_file:
        if not Path(name).is_file():
            raise source.error(key, f"{name} is no file; expected a checkpoint or .safetensors")
        module = as_in_training(reference.model or recipe.model, reference.algorithms)
        with source.blame(key, *REFUSALS):
            return load_teacher(name, module)
    if folder := _run_folder(name, recipe):
        if not (folder / "results.json").is_file():
            raise source.error(key, f"the run in {folder} is not finished: it has no results.json")
        try:
            module = as_in_training(*_of_run(folder))
        except ConfigError as error:  # in the config.yaml there
            raise source.error(key, str(error)) from error
        with source.blame(key, *REFUSALS):
            return load_teacher(find_checkpoint(str(folder)) or folder, module)
    if Path(name).is_file():
        raise source.error(key, f"{name} is a file, which does not tell its model; {EXPECTED}")
    if not Path(name, "config.json").is_file() and _is_local(Path(name)):
        raise source.error(key, f"{name} is {NOTHING}")
    try:
        with hub_or_cache(name):
            return load_teacher(name)
    except REFUSALS as error:
        unknown = "" if Path(name).exists() else f"{name} is {NOTHING}; "
        raise source.error(key, f"{unknown}{error}") from error


def _run_folder(name: str, recipe: Recipe) -> Path | None:
    return next((folder for folder in folders_of_run(recipe, name) if (folder / "config.yaml").is_file()), None)


def _is_local(path: Path) -> bool:
    """Whether this cannot mean a name on the hub, which need not be asked for it then."""
    beside = path.parent != Path() and path.parent.is_dir()
    return path.exists() or path.is_absolute() or path.parts[0] == ".." or beside


def _of_run(folder: Path) -> tuple[Part, list[Part]]:
    """Its model and algorithms; its data may be elsewhere by now."""
    source = Source(str(folder / "config.yaml"))
    with source.blame("", *UNREADABLE):
        config: Any = OmegaConf.to_container(OmegaConf.load(source.file))
    if not (isinstance(config, dict) and config.get("model")):
        raise source.error("model", "missing")
    for section in ("model", "algorithms"):
        for key in _imported(config.get(section), section):  # somebody else's file shall not choose what is run here
            hint = "give {checkpoint: FILE, model: {...}} in your own file to use what is imported from elsewhere"
            raise source.error(key, f"refused in the folder of a teacher; {hint}")
    (model,) = check_section(source, "model", config["model"])
    return model, check_section(source, "algorithms", config.get("algorithms"))


def _imported(value: Any, key: str) -> Iterator[str]:
    """The keys in plain data that are, or that hold, import paths."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        inside = f"{key}.{name}"
        if ":" in str(name) or (isinstance(inner, str) and PATH.fullmatch(inner)):
            yield inside
        yield from _imported(inner, inside)


def as_in_training(model: Part, algorithms: Sequence[Part], optimizer: Part | None = None) -> nn.Module:
    """The model after all that these algorithms change in it, and in the `optimizer`, when a Trainer starts.

    Some of that leaves no trace in the weights, which would fit the unchanged model too and be wrong there.
    """
    import torch
    from composer.core import Event, State
    from composer.loggers import Logger
    from composer.utils import get_device

    from accelerando.algorithms.composer.for_recipes import Supply

    from .grouped import KeepsGroups

    module = model.build()
    with model.source.blame(model.key, *REFUSALS):
        # Some need one, to register new parameters.
        made = optimizer.build(module) if optimizer else torch.optim.SGD(module.parameters(), 0.1)
        state = State(module, 0, "teacher", get_device("cpu"), optimizers=made)
        groups = KeepsGroups(module, made)
    # What is given networks, a scheduler or examples leaves the model as it is.
    given = {Supply.NETWORKS, Supply.SCHEDULER, Supply.EXAMPLES}
    parts = [part for part in algorithms if given.isdisjoint(supplied_to(part.target).values())]
    state.algorithms = [part.build() for part in parts]
    for part, algorithm in zip(parts, state.algorithms, strict=True):
        with part.source.blame(part.key, *REFUSALS):
            if algorithm.match(Event.INIT, state):
                algorithm.apply(Event.INIT, state, Logger(state))
                groups.check_frozen(state.model)
    return state.model
