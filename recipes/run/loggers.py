"""The loggers of a config, and what a study of many runs gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.lookup import Part
from ..config.recipe import Recipe
from .folder import as_rank_zero_finds, blame_disk, new_id, run_id

if TYPE_CHECKING:
    from composer.loggers import LoggerDestination


def build_loggers(recipe: Recipe, name: str) -> list[LoggerDestination]:
    """Those of the config, for the run of that id."""
    return [_wandb_resumes(part, recipe, name).build() for part in recipe.loggers]


def _wandb_resumes(part: Part, recipe: Recipe, name: str) -> Part:
    """Gives a WandBLogger the run's id: a resumed run continues its W&B run, and no other does."""
    from composer.loggers import WandBLogger
    from composer.utils import dist

    if part.target is not WandBLogger:
        return part
    ours = {
        "id": name if part.arguments.get("rank_zero_only", True) else f"{name}-rank{dist.get_global_rank()}",
        "resume": "allow",
        "dir": str(recipe.folder),
        "allow_val_change": True,  # max_duration, say, when a finished run is prolonged
    }
    return replace(part, arguments=part.arguments | {"init_kwargs": ours | (part.arguments.get("init_kwargs") or {})})


def log_study(
    recipe: Recipe, config: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], pixels: Any = None
) -> None:
    """Logs a study's tables and its figure, if any, as a run of its own, by whatever loggers the config has.

    Args:
        recipe: that of any run of the study, which lies in the study's folder.
        config: the study's own.
        tables: rows by the table's name, each row the values by column.
        pixels: the figure, (height, width, 3) of uint8; logged under the first table's name.
    """
    study = replace(recipe, run_name=config["run_name"], folder=recipe.folder.parent)
    if study.loggers:
        log_afterwards(study, as_rank_zero_finds(lambda: _lasting_id(study)), config, tables, pixels)


def _lasting_id(study: Recipe) -> str:
    if (name := run_id(study.folder)) is None:
        from .files import write

        with blame_disk(study.folder, study.source):
            write(study.folder / "run_id", f"{(name := new_id())}\n".encode())
    return name


def log_afterwards(
    recipe: Recipe,
    name: str,
    config: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pixels: Any,
) -> None:
    """Logs by the recipe's loggers, as the run of that id, what there is when nothing is trained."""
    import torch
    from composer.core import Engine, Event, State
    from composer.loggers import Logger
    from composer.utils import get_device

    destinations = build_loggers(recipe, name)
    device = get_device(recipe.trainer.get("device"))
    state = State(torch.nn.Module(), 0, recipe.run_name, device, callbacks=destinations)
    engine = Engine(state, logger := Logger(state, destinations))
    engine.run_event(Event.INIT)
    logger.log_hyperparameters(dict(config))
    for destination in destinations:
        # Not by way of the Logger, which would give batch 0: W&B takes nothing for a step that is over.
        for name, rows in tables.items():
            destination.log_table(list(rows[0]), [list(row.values()) for row in rows], name=name)
        if pixels is not None:
            destination.log_images(pixels, name=next(iter(tables), "curves"), channels_last=True, use_table=False)
    engine.close()
