"""The algorithms of a recipe, built with what the recipe makes for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.arguments import parameters
from ..config.lookup import Part
from ..config.recipe import Recipe
from ..config.sections import made_here
from .teachers import build_teachers


def build_algorithms(recipe: Recipe, scheduler: Any) -> list[Any]:
    """Those of the recipe, given its scheduler or the teachers that they name, where that is their first parameter."""
    algorithms = []
    for part in in_its_folders(recipe):
        made: dict[str, Any] = {}
        match made_here(part.target, part.arguments):
            case "scheduler":
                made = {"scheduler": scheduler}
            case "teachers":
                made = {"teachers": build_teachers(recipe, part.arguments["teachers"])}  # type: ignore[arg-type]
        algorithms.append(replace(part, arguments=part.arguments | made).build())
    return algorithms


def in_its_folders(recipe: Recipe) -> list[Part]:
    """What they save is saved in the run's folder, unless they say where; a `ticket` may lie in `folder`."""
    parts = []
    for part in recipe.algorithms:
        made: dict[str, Any] = {}
        names = [parameter.name for parameter in parameters(part.target)]
        if "save_folder" in names and not part.arguments.get("save_folder"):
            made["save_folder"] = str(recipe.folder / "tickets")
        file = part.arguments.get("ticket")
        if isinstance(file, str) and (inside := Path(recipe.config["folder"], file)).is_file():
            made["ticket"] = str(inside)
        parts.append(replace(part, arguments=part.arguments | made))
    return parts
