"""The sections of a config, such as `model` and `algorithms`: names with arguments, which become checked `Part`s.

Under a section, a name is the snake_case of a class or function in the section's modules, or an import path
``package.module:Name``, whose module is imported, but nothing in it called, before it is found to be of the kind that
belongs there; its arguments are checked against its signature. Underscores and case do not matter, and ``name: false``
leaves the entry out. What an argument that is annotated as a `Part` holds is a section too, of `INNER`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .arguments import check_arguments, parameters
from .errors import Source, show
from .groups import OptimizerPart, check_optimizer
from .lookup import Namespace, Part
from .references import check_references

if TYPE_CHECKING:
    from accelerando.algorithms.composer.for_recipes import Folder, Supply

TECHNIQUES = "accelerando.algorithms.composer"
BUILDERS = ("builders", "hugging_face", "distilling", "several", "own")
MODELS = tuple(f"accelerando.recipes.models.{module}" for module in BUILDERS)
SOURCES = ("images", "image_files", "text", "python_docs", "squad", "noise", "subset", "distilled", "several")
DATA = tuple(f"accelerando.recipes.data.{module}" for module in SOURCES)
OF_DATA = Namespace(
    modules=DATA,
    methods=("check", "build"),
    adapted="accelerando.recipes.data.own:own_data",
    hint=" that gives a Dataset, a DataLoader or Composer's DataSpec, or a class with check() and build()",
)
SECTIONS = {
    "model": Namespace(
        modules=MODELS,
        makes="composer:ComposerModel",
        hint="; of a plain nn.Module, {classifier: {module: {package.module:Net: {}}, num_classes: 10}} makes one",
    ),
    "train_data": OF_DATA,
    "eval_data": OF_DATA,
    "validation_data": OF_DATA,
    "optimizer": Namespace(modules=("composer.optim", "torch.optim"), base="torch.optim:Optimizer"),
    "scheduler": Namespace(
        modules=(TECHNIQUES, "composer.optim"),
        base="composer.optim:ComposerScheduler",
        suffix="Scheduler",
    ),
    "algorithms": Namespace(modules=(TECHNIQUES, "composer.algorithms"), base="composer.core:Algorithm"),
    "callbacks": Namespace(modules=("composer.callbacks",), base="composer.core:Callback"),
    "loggers": Namespace(modules=("composer.loggers",), base="composer.loggers:LoggerDestination", suffix="Logger"),
}
INNER = {"module": Namespace(modules=(), makes="torch.nn:Module")}
STUDY_KEYS = {"study", "executor"}  # which recipes/study.py reads
MANY = ("algorithms", "callbacks", "loggers")
REQUIRED_SECTIONS = ("model", "train_data", "optimizer")
NEEDED = (*REQUIRED_SECTIONS, *INNER)


def entries_of(source: Source, key: str, value: Any) -> dict[str, dict[str, Any]]:
    """The names in a section and their arguments, but for those that are false, however they are spelled there."""
    if value is None or value is False:
        value = {}
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict):
        raise source.error(key, f"{show(value)} given; expected names with their arguments, such as {{name: {{}}}}")
    names = (SECTIONS | INNER)[key]
    left_out = {names.plain(str(name)): str(name) for name, arguments in value.items() if arguments is False}
    entries = {str(name): arguments for name, arguments in value.items() if names.plain(str(name)) not in left_out}
    for name in left_out.values():
        if ":" not in name:
            with source.blame(f"{key}.{name}", LookupError):
                names.find(name)
    for name, arguments in entries.items():
        if not isinstance(arguments, dict):
            hint = "its arguments as a mapping, {} for none, or false to leave it out"
            raise source.error(f"{key}.{name}", f"{show(arguments)} given; expected {hint}")
    if key not in MANY and (len(entries) > 1 or (key in NEEDED and not entries)):
        hint = "; on the command line, := in the place of = replaces what the file has" if entries else ""
        raise source.error(key, f"expected one name, found {', '.join(entries) or 'none'}{hint}")
    return entries


def check_parts(source: Source, section: str, entries: dict[str, dict[str, Any]]) -> list[Part]:
    """Each entry as the thing of that name, with its arguments against the signature."""
    from accelerando.algorithms.composer.for_recipes import Supply

    parts: list[Part] = []
    names = (SECTIONS | INNER)[section]
    for name, arguments in entries.items():
        key = f"{section}.{name}"
        with source.blame(key, LookupError):
            target = names.find(name)
        if any(part.target is target for part in parts):
            raise source.error(key, f"{target.__name__} is given twice; expected once")
        with source.blame(key, TypeError, ValueError):  # of a thing that has no signature
            supplied = supplied_to(target) if section == "algorithms" else {}
            named = parameters(target)
        references: dict[str, Any] = {
            name: check_references(source, f"{key}.{name}", arguments.get(name), check_section)
            for name, supply in supplied.items()
            if supply is Supply.NETWORKS
        }
        for inner in [p.name for p in named if p.name in INNER and p.annotation is Part]:
            inside = source.inside(key, [inner])
            references[inner] = check_section(inside, inner, arguments.get(inner))[0]
        with source.blame(key, TypeError, ValueError):
            whole = (Supply.SCHEDULER, Supply.TRANSFORM, Supply.EXAMPLES, Supply.TRAINING_DATA)
            made = [name for name, supply in supplied.items() if supply in whole]
            given = {name: value for name, value in arguments.items() if name not in references}
            if ":" in name and (adapter := names.adapter(target)):
                target, checked = adapter(name, target, given)
            elif section == "optimizer":
                checked = check_optimizer(target, given)
            else:
                checked = check_arguments(target, given, made=[*made, *references])
        kind, made_here = OptimizerPart if section == "optimizer" else Part, checked | references
        of_kind = {"makes": names.makes, "hint": names.hint}
        parts.append(kind(source=source, key=key, target=target, arguments=made_here, **of_kind))
    return parts


def check_section(source: Source, section: str, value: Any) -> list[Part]:
    """The parts of a section that stands elsewhere than at the top of a config."""
    return check_parts(source, section, entries_of(source, section, value))


def supplied_to(target: Callable[..., Any]) -> dict[str, Supply | Folder]:
    """What a recipe makes for an algorithm, by those parameters for which its class declares it."""
    from accelerando.algorithms.composer.for_recipes import declared_by

    names = {parameter.name for parameter in parameters(target)}
    return {name: supply for name, supply in declared_by(target).supplied.items() if name in names}
