"""From a YAML file and dotted overrides to a checked `Recipe`, or to one `ConfigError` that names the key.

Under a section, a name is the snake_case of a class or function in the section's modules, or an import path
``package.module:Name``, whose module is imported, but nothing in it called, before it is found to be of the kind that
belongs there; its arguments are checked against its signature. Underscores and case do not matter, and ``name: false``
leaves the entry out. A top-level key that is no section is an argument of `composer.Trainer`, but for
`variables`, to which other values refer as ``${variables.name}``; ``???`` is for the command line to fill in.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from accelerando.recipes.names import (
    REFUSALS,
    ArgumentError,
    ConfigError,
    Namespace,
    Source,
    check_arguments,
    check_inside,
    check_path,
    check_value,
    import_path,
    nearest,
    parameters,
    show,
)
from accelerando.recipes.plain_yaml import refuse_surprises

DATA = ("accelerando.recipes.images", "accelerando.recipes.text")
SECTIONS = {
    "model": Namespace(("accelerando.recipes.models",), makes="composer:ComposerModel"),
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
MANY = ("algorithms", "callbacks", "loggers")
OWN_KEYS = {"run_name": str, "folder": str, "global_batch_size": int, "eval_batch_size": int}
MADE_HERE = ("scheduler", "teachers")
DURATIONS = ("ep", "ba", "sp")
# The least whole number, and what else is allowed.
RANGES = {
    "seed": (0, ()),
    "train_subset_num_batches": (1, (-1,)),
    "device_train_microbatch_size": (1, ("auto", None)),
}
SAVED_AS = ("save_filename", "save_latest_filename")
REQUIRED = ("run_name", "max_duration", "global_batch_size", "model", "train_data", "optimizer")
RENAMED = {
    "train_dataloader": "train_data",
    "eval_dataloader": "eval_data",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "save_folder": "folder",
}
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
LEFT_TO_YOU = "missing; the file leaves it to you, as KEY=VALUE on the command line"


@dataclass(frozen=True)
class Part:
    """A class or function found by name, with its checked arguments."""

    source: Source
    key: str
    target: Callable[..., Any]
    arguments: dict[str, Any]
    makes: str = ""  # import path of the class of what it makes, where a function may make anything

    def build(self, *supplied: Any) -> Any:
        with self.source.blame(self.key, Exception, SystemExit):
            made = self.target(*supplied, **self.arguments)
        if self.makes and not isinstance(made, kind := import_path(self.makes)):
            raise self.source.error(self.key, f"makes a {type(made).__name__}; expected a {kind.__name__}")
        return made


@dataclass(frozen=True)
class Recipe:
    """A checked config. Batch sizes are per rank, `folder` is the run's own, `config` is the resolved YAML.

    The parts of the data are the `build` of sources that have found their data.
    """

    source: Source
    config: dict[str, Any]
    run_name: str
    folder: Path
    batch_size: int
    eval_batch_size: int
    model: Part
    train_data: Part
    eval_data: Part | None
    optimizer: Part
    scheduler: Part | None
    algorithms: list[Part]
    callbacks: list[Part]
    loggers: list[Part]
    trainer: dict[str, Any]


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[DictConfig, Source]:
    """Reads a YAML file, on disk or shipped in `accelerando.yamls`, and applies ``key=value`` overrides."""
    file = str(path)
    try:
        text = _find(file).read_text(encoding="utf-8")
        refuse_surprises(text, file)
        config = OmegaConf.load(io.StringIO(text))
    except UNREADABLE as error:
        raise ConfigError(file, "", f"not readable as YAML; {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(file, "", "expected a mapping of keys to values")
    keys = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise ConfigError("command line", override, "expected key=value, such as max_duration=10ep")
        try:
            refuse_surprises(value, "command line", key)
            update = OmegaConf.from_dotlist([override])
            for name in missing(OmegaConf.to_container(update)):
                if not name.startswith("variables."):
                    raise ConfigError("command line", name, "missing; expected a value, as ??? is for you to fill in")
            config = merge(config, update)
        except UNREADABLE as error:
            raise ConfigError("command line", key, f"not readable as a YAML value; {error}") from error
        except TypeError as error:  # a list for a mapping
            raise ConfigError("command line", key, f"{error}; expected what the file has there, a mapping") from error
        keys.append(key)
    return config, Source(file, frozenset(keys))


def _find(file: str) -> Path:
    shipped = Path(inspect.getfile(importlib.import_module("accelerando.yamls"))).parent
    inside = file.removeprefix("yamls/")
    for candidate in (Path(file), shipped / inside):
        if candidate.is_file():
            return candidate
    names = [path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml")]
    raise ConfigError(file, "", f"no such file{nearest(inside, names)}")


def merge(config: DictConfig, update: DictConfig) -> DictConfig:
    """The update wins; where it names another model (optimizer, ...), that one replaces the old one."""
    config, update = copy.deepcopy(config), copy.deepcopy(update)
    for part in (config, update):
        for key in SECTIONS:
            if not OmegaConf.is_interpolation(part, key) and isinstance(name := part.get(key), str):
                part[key] = {name: {}}
    for key in SECTIONS.keys() - MANY:
        old, new = (OmegaConf.select(part, key, throw_on_resolution_failure=False) for part in (config, update))
        if isinstance(old, DictConfig) and isinstance(new, DictConfig) and not old.keys() & new.keys():
            del config[key]
    merged = OmegaConf.merge(config, update)
    assert isinstance(merged, DictConfig)
    return merged


def check(config: Mapping[str, Any] | DictConfig, source: Source | None = None) -> Recipe:
    """Checks every key. Of what the config describes it builds only the data sources, which look for their data."""
    source = source or Source()
    config = _resolve(config, source)
    refuse_unknown(source, config)
    for key in REQUIRED:
        if config.get(key) is None:
            raise source.error(key, "missing; every run needs it")
    config = {"folder": "runs", "eval_batch_size": config["global_batch_size"], "seed": 17} | config
    with source.blame(""):
        for key, kind in OWN_KEYS.items():
            check_value(key, kind, config[key])
        check_inside("run_name", config["run_name"], "the name of a folder inside `folder`")
        check_path("folder", config["folder"], "a folder of this machine")
    entries = {key: _entries(source, key, config.get(key)) for key in SECTIONS}
    ranks = _check_ranks(source, config)
    trainer = _check_trainer(source, {key: config[key] for key in config if key not in {*OWN_KEYS, *SECTIONS}})
    parts = {key: _check_parts(source, key, entries[key]) for key in SECTIONS}
    counts_tokens = "seq_len" in inspect.signature(parts["train_data"][0].target).parameters
    _check_duration(source, trainer["max_duration"], (*DURATIONS, "tok") if counts_tokens else DURATIONS)
    return Recipe(
        source=source,
        config=config,
        run_name=config["run_name"],
        folder=Path(config["folder"], config["run_name"]),
        batch_size=config["global_batch_size"] // ranks,
        eval_batch_size=config["eval_batch_size"] // ranks,
        model=parts["model"][0],
        train_data=_check_data(parts["train_data"][0]),
        eval_data=_check_data(parts["eval_data"][0]) if parts["eval_data"] else None,
        optimizer=parts["optimizer"][0],
        scheduler=parts["scheduler"][0] if parts["scheduler"] else None,
        algorithms=parts["algorithms"],
        callbacks=parts["callbacks"],
        loggers=parts["loggers"],
        trainer=trainer,
    )


def refuse_unknown(source: Source, given: Iterable[Any], own: Collection[str] = ()) -> None:
    """An error at the first of the given keys that is neither one of a run nor of the caller's `own`."""
    from composer import Trainer

    known = {*inspect.signature(Trainer).parameters, *OWN_KEYS, *SECTIONS, "variables", *own} - RENAMED.keys()
    for key in map(str, given):
        if key in RENAMED:
            raise source.error(key, f"the recipe fills it in; use {RENAMED[key]} instead")
        if key not in known:
            raise source.error(key, f"unknown key{nearest(key, known)}")


def _resolve(config: Mapping[str, Any] | DictConfig, source: Source) -> dict[str, Any]:
    """Plain data, with interpolations replaced by what they stand for and without the `variables` made for them."""
    with resolving(source):
        node = OmegaConf.create(config)  # type: ignore[arg-type]
        plain = OmegaConf.to_container(node, resolve=True)
        absent = sorted(OmegaConf.missing_keys(node))
    for key in absent:
        if not key.startswith("variables."):
            raise source.error(key, LEFT_TO_YOU)
    assert isinstance(plain, dict)
    check_numbers(source, plain)
    return {str(key): value for key, value in plain.items() if key != "variables"}


@contextmanager
def resolving(source: Source) -> Iterator[None]:
    """Turns what OmegaConf says, where an interpolation leads nowhere, into an error at its key."""
    try:
        yield
    except InterpolationToMissingValueError as error:
        raise source.error(str(error).partition("\n")[0].rpartition(" ")[2], LEFT_TO_YOU) from error
    except MissingMandatoryValue as error:
        raise source.error(error.full_key or "", LEFT_TO_YOU) from error
    except OmegaConfBaseException as error:
        raise source.error(error.full_key or "", str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise source.error("", "its interpolations, or mappings, are nested without an end") from error


def missing(value: Any, key: str = "") -> Iterator[str]:
    """The keys in plain data that are for the command line to fill in; merged, they leave what was there."""
    if value == "???":
        yield key
    for name, inner in value.items() if isinstance(value, dict) else []:
        yield from missing(inner, f"{key}.{name}" if key else str(name))


def check_numbers(source: Source, value: Any, key: str = "") -> None:
    """An error at the first number, anywhere in plain data, that is not finite or does not fit into 64 bits."""
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            check_numbers(source, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, float) and not math.isfinite(value):
        raise source.error(key, f"{value} given; expected a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise source.error(key, f"{str(value)[:40]} given; expected a number of 64 bits")


def _entries(source: Source, key: str, value: Any) -> dict[str, dict[str, Any]]:
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
    if key not in MANY and (len(entries) > 1 or (key in REQUIRED and not entries)):
        raise source.error(key, f"expected one name, found {', '.join(entries) or 'none'}")
    return entries


def _check_ranks(source: Source, config: dict[str, Any]) -> int:
    from composer.utils import dist

    ranks = dist.get_world_size()
    for key in ("global_batch_size", "eval_batch_size"):
        if config[key] < 1 or config[key] % ranks:
            raise source.error(key, f"{config[key]} given; expected a positive multiple of the {ranks} rank(s)")
    return ranks


def _check_trainer(source: Source, arguments: dict[str, Any]) -> dict[str, Any]:
    from composer import Trainer
    from composer.core import Precision
    from composer.core.precision import _validate_precision
    from composer.utils import get_device

    with source.blame(""):
        arguments = check_arguments(Trainer.__init__, arguments, supplied=2)
        for key in SAVED_AS:
            _check_saved_as(key, arguments.get(key))
    for key in RANGES.keys() & arguments.keys():
        value, (least, others) = arguments[key], RANGES[key]
        if value not in others and not (type(value) is int and least <= value < 2**32):
            expected = " or ".join([f"a whole number from {least} to {2**32 - 1}", *map(show, others)])
            raise source.error(key, f"{show(value)} given; expected {expected}")
    with source.blame("device", *REFUSALS):
        device = get_device(arguments.get("device"))
    if arguments.get("precision") is not None:
        with source.blame("precision", ValueError):
            _validate_precision(Precision(arguments["precision"]), device)
    return arguments


def _check_saved_as(name: str, value: str | None) -> None:
    """A checkpoint's name, which Composer formats."""
    from composer.core import Timestamp
    from composer.utils.file_helpers import format_name_with_dist_and_time

    if value is not None:
        try:
            file = format_name_with_dist_and_time(value, "run", Timestamp())
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ArgumentError(name, f"{value!r} given, which cannot be formatted; {error!r}") from error
        check_inside(name, file, "the name of a file in the run's checkpoints")
        if "/" in file:
            raise ArgumentError(name, f"{value!r} given; expected a name without /")


def _check_duration(source: Source, value: Any, units: tuple[str, ...]) -> None:
    """In a unit that the run counts: in another it would never end."""
    from composer.core import Time, TimeUnit

    with source.blame("max_duration", *REFUSALS):
        duration = Time.from_input(value, TimeUnit.EPOCH)
    if duration.value <= 0 or duration.unit.value not in units:
        hint = f"expected a time string such as 10ep, above zero and in {', '.join(units)}"
        raise source.error("max_duration", f"{value} given; {hint}")


def _check_parts(source: Source, section: str, entries: dict[str, dict[str, Any]]) -> list[Part]:
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
            from accelerando.recipes.teachers import check_references

            references = {made: check_references(source, f"{key}.{made}", arguments.get(made))}
        with source.blame(key, TypeError, ValueError):
            supplied = 1 if section == "optimizer" or made else 0
            given = {name: value for name, value in arguments.items() if name not in references}
            checked = check_arguments(target, given, supplied)
        parts.append(Part(source, key, target, checked | references, SECTIONS[section].makes))
    return parts


def check_section(source: Source, section: str, value: Any) -> list[Part]:
    """The parts of a section that stands elsewhere than at the top of a config."""
    return _check_parts(source, section, _entries(source, section, value))


def build_algorithms(recipe: Recipe, scheduler: Any) -> list[Any]:
    """Those of the recipe, given its scheduler or the teachers that they name, where that is their first parameter.

    What they save is saved in the run's folder, unless they say where; a `ticket` may lie in `folder`.
    """
    from accelerando.recipes.teachers import build_teachers

    algorithms = []
    for part in recipe.algorithms:
        made: dict[str, Any] = {}
        match made_here(part.target, part.arguments):
            case "scheduler":
                made = {"scheduler": scheduler}
            case "teachers":
                made = {"teachers": build_teachers(recipe, part.arguments["teachers"])}  # type: ignore[arg-type]
        names = [parameter.name for parameter in parameters(part.target)]
        if "save_folder" in names and not part.arguments.get("save_folder"):
            made["save_folder"] = str(recipe.folder / "tickets")
        file = part.arguments.get("ticket")
        if isinstance(file, str) and (inside := Path(recipe.config["folder"], file)).is_file():
            made["ticket"] = str(inside)
        algorithms.append(replace(part, arguments=part.arguments | made).build())
    return algorithms


def made_here(target: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """What the recipe makes for an algorithm, by the name of its first parameter: one of `MADE_HERE`, if any.

    A `scheduler` that is text, or that the YAML gives, is an argument like others.
    """
    first = next(iter(parameters(target)), None)
    if first is None or first.name not in MADE_HERE or first.annotation in (str, "str"):
        return None
    return None if first.name == "scheduler" and "scheduler" in arguments else first.name


def _check_data(part: Part) -> Part:
    data = part.build()
    with part.source.blame(part.key, *REFUSALS):
        data.check()
    return replace(part, target=data.build, arguments={})
