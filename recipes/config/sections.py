"""The sections of a config, such as `model` and `algorithms`: names with arguments, which become checked `Part`s.

Under a section, a name is the snake_case of a class or function in the section's modules, or an import path
``package.module:Name``, whose module is imported, but nothing in it called, before it is found to be of the kind that
belongs there; its arguments are checked against its signature. Underscores and case do not matter, and ``name: false``
leaves the entry out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .arguments import check_arguments, parameters
from .errors import Source, show
from .lookup import Namespace, Part
from .references import check_references

DATA = ("accelerando.recipes.data.images", "accelerando.recipes.data.text")
SECTIONS = {
    "model": Namespace(("accelerando.recipes.models.builders",), makes="composer:ComposerModel"),
    "train_data": Namespace(DATA, methods=("check", "build")),
    "eval_data": Namespace(DATA, methods=("check", "build")),
    "optimizer": Namespace(("composer.optim", "torch.optim"), "torch.optim:Optimizer"),
    "scheduler": Namespace(
        ("accelerando.algorithms", "composer.optim"), "composer.optim:ComposerScheduler", suffix="Scheduler"
    ),
    "algorithms": Namespace(("accelerando.algorithms", "composer.algorithms"), "composer.core:Algorithm"),
    "callbacks": Namespace(("composer.callbacks",), "composer.core:Callback"),
    "loggers": Namespace(("composer.loggers",), "composer.loggers:LoggerDestination", suffix="Logger"),
}
STUDY_KEYS = {"study", "executor"}  # which recipes/study.py reads
MANY = ("algorithms", "callbacks", "loggers")
REQUIRED_SECTIONS = ("model", "train_data", "optimizer")
MADE_HERE = ("scheduler", "teachers")


def entries_of(source: Source, key: str, value: Any) -> dict[str, dict[str, Any]]:
    """The names in a section and their arguments."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict):
        raise source.error(key, f"{show(value)} given; expected names with their arguments, such as {{name: {{}}}}")
    entries = {str(name): arguments for name, arguments in value.items() if arguments is not False}
    for name, arguments in entries.items():
        if not isinstance(arguments, dict):
            hint = "its arguments as a mapping, {} for none, or false to leave it out"
            raise source.error(f"{key}.{name}", f"{show(arguments)} given; expected {hint}")
    if key not in MANY and (len(entries) > 1 or (key in REQUIRED_SECTIONS and not entries)):
        raise source.error(key, f"expected one name, found {', '.join(entries) or 'none'}")
    return entries


def check_parts(source: Source, section: str, entries: dict[str, dict[str, Any]]) -> list[Part]:
    """Each entry as the thing of that name, with its arguments against the signature."""
    parts: list[Part] = []
    for name, arguments in entries.items():
        key = f"{section}.{name}"
        with source.blame(key, LookupError):
            target = SECTIONS[section].find(name)
        if any(part.target is target for part in parts):
            raise source.error(key, f"{target.__name__} is given twice; expected once")
        with source.blame(key, TypeError, ValueError):  # of a thing that has no signature
            made = made_here(target, arguments) if section == "algorithms" else None
        references = {}
        if made == "teachers":
            references = {made: check_references(source, f"{key}.{made}", arguments.get(made), check_section)}
        with source.blame(key, TypeError, ValueError):
            supplied = 1 if section == "optimizer" or made else 0
            given = {name: value for name, value in arguments.items() if name not in references}
            checked = check_arguments(target, given, supplied)
        parts.append(Part(source, key, target, checked | references, SECTIONS[section].makes))
    return parts


def check_section(source: Source, section: str, value: Any) -> list[Part]:
    """The parts of a section that stands elsewhere than at the top of a config."""
    return check_parts(source, section, entries_of(source, section, value))


def made_here(target: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """What the recipe makes for an algorithm, by the name of its first parameter: one of `MADE_HERE`, if any.

    A `scheduler` that is text, or that the YAML gives, is an argument like others.
    """
    first = next(iter(parameters(target)), None)
    if first is None or first.name not in MADE_HERE or first.annotation in (str, "str"):
        return None
    return None if first.name == "scheduler" and "scheduler" in arguments else first.name
