"""The loggers of a config, and what a study of many runs gives them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerando.recipes.config import Part, Recipe

if TYPE_CHECKING:
    from composer.loggers import LoggerDestination


def build_loggers(recipe: Recipe) -> list[LoggerDestination]:
    """Those of the config."""
    return [_wandb_resumes(part, recipe).build() for part in recipe.loggers]


def _wandb_resumes(part: Part, recipe: Recipe) -> Part:
    """Gives a WandBLogger a run id made of the run's name, so that a resumed run continues its W&B run."""
    from composer.loggers import WandBLogger
    from composer.utils import dist

    if part.target is not WandBLogger:
        return part
    rank = None if part.arguments.get("rank_zero_only", True) else f"rank{dist.get_global_rank()}"
    name = "-".join(filter(None, (part.arguments.get("project"), recipe.run_name, rank)))
    plain = re.sub(r"[^\w.-]", "-", name)
    ours = {
        # Other names may look the same without their slashes.
        "id": plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}",
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
    import torch
    from composer.core import Engine, Event, State
    from composer.loggers import Logger
    from composer.utils import get_device

    study = replace(recipe, run_name=config["run_name"], folder=recipe.folder.parent)
    if not (destinations := build_loggers(study)):
        return
    device = get_device(study.trainer.get("device"))
    state = State(torch.nn.Module(), 0, study.run_name, device, callbacks=destinations)
    engine = Engine(state, logger := Logger(state, destinations))
    engine.run_event(Event.INIT)
    logger.log_hyperparameters(dict(config))
    for destination in destinations:
        # Not by way of the Logger, which would give batch 0: W&B takes nothing for a step that is over.
        for name, rows in tables.items():
            destination.log_table(list(rows[0]), [list(row.values()) for row in rows], name=name)
        if pixels is not None:
            destination.log_images(pixels, name=next(iter(tables)), channels_last=True, use_table=False)
    engine.close()
