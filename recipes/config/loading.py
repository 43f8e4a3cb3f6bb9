"""From a YAML file and dotted overrides to plain data, or to one `ConfigError` that names the key."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from .errors import ConfigError, Source, show
from .lookup import meant
from .plain_yaml import refuse_surprises
from .sections import MANY, SECTIONS, STUDY_KEYS

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
LEFT_TO_YOU = "missing; the file leaves it to you, as KEY=VALUE on the command line"


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[DictConfig, Source]:
    """Reads a YAML file, on disk or shipped in `accelerando.yamls`, and applies ``key=value`` overrides.

    A mapping is merged into the one that the file has there; with ``key:=value`` it takes its place.
    A file that has ``extends: OTHER.yaml``, beside it or shipped, is merged over that one.
    """
    file, keys = str(path), []
    config = _read(file, _find(file), [])
    for override in overrides:
        given, equals, value = override.partition("=")
        key = given.removesuffix(":")
        if not (key and equals):
            hint = "or key:=value, such as algorithms:={mix_up: {}}, in the place of what the file has there"
            raise ConfigError("command line", override, f"expected key=value, such as max_duration=10ep, {hint}")
        try:
            refuse_surprises(value, "command line", key)
            update = OmegaConf.from_dotlist([f"{key}={value}"])
            for name in missing(OmegaConf.to_container(update)):
                if not name.startswith("variables."):
                    raise ConfigError("command line", name, "missing; expected a value, as ??? is for you to fill in")
            config = merge(_without(config, key) if given != key else config, update)
        except UNREADABLE as error:
            raise ConfigError("command line", key, f"not readable as a YAML value; {error}") from error
        except TypeError as error:  # a list for a mapping
            raise ConfigError("command line", key, f"{error}; expected what the file has there, a mapping") from error
        keys.append(key.replace("[", ".").replace("]", ""))  # as errors spell it
    return OmegaConf.create(_at_home(OmegaConf.to_container(config))), Source(file, overridden=frozenset(keys))


def _read(file: str, place: Path, below: list[Path]) -> DictConfig:
    """The file over all that it extends; `below` are those that extend it."""
    try:
        text = place.read_text(encoding="utf-8")
        refuse_surprises(text, file)
        config = OmegaConf.load(io.StringIO(text))
    except UNREADABLE as error:
        raise ConfigError(file, "", f"not readable as YAML; {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(file, "", "expected a mapping of keys to values")
    other = config.pop("extends", None)
    if other is None:
        return config
    if not isinstance(other, str):
        raise ConfigError(file, "extends", f"{show(other)} given; expected the path of a YAML file")
    beside = place.parent / os.path.expanduser(other)
    base = beside if beside.is_file() else _find(other, file)
    if base.resolve() in (above := [*below, place.resolve()]):
        raise ConfigError(file, "extends", f"{other} extends this file")
    try:
        return merge(_read(str(other), base, above), config)
    except TypeError as error:  # a list for a mapping
        raise ConfigError(file, "", f"{error}; expected what {other} has there, a mapping") from error


def _without(config: DictConfig, key: str) -> DictConfig:
    """The config with nothing at the key, into which a mapping could be merged."""
    config = copy.deepcopy(config)
    OmegaConf.update(config, key, None, merge=False, force_add=True)
    return config


def _find(file: str, extended_by: str = "") -> Path:
    shipped = Path(inspect.getfile(importlib.import_module("accelerando.yamls"))).parent
    inside = file.removeprefix("yamls/")
    for candidate in (Path(file), shipped / inside):
        if candidate.is_file():
            return candidate
    problem = f"no such file; {_hint(file, Path(extended_by).parent, shipped)}"
    raise ConfigError(extended_by, "extends", f"{file}: {problem}") if extended_by else ConfigError(file, "", problem)


def _hint(file: str, folder: Path, shipped: Path) -> str:
    """Which file was probably meant, beside it in the folder or shipped; else some of those that there are."""
    here, inside = sorted((folder / file).parent.glob("*.y*ml")), file.removeprefix("yamls/").removesuffix(".yaml")
    beside = {path.stem: str(Path(file).with_name(path.name)) for path in here}
    names = [path.relative_to(shipped).with_suffix("").as_posix() for path in shipped.rglob("*.yaml")]
    if close := meant(Path(file).stem, beside):
        return f"did you mean {beside[close]}?"
    if close := meant(inside, names):
        return f"did you mean {close}.yaml?"
    folders = ", ".join(sorted({f"{Path(name).parent}/" for name in names}))
    there = ", ".join([*beside.values()][:6]) + (", ..." if len(beside) > 6 else "")
    return f"{f'beside it are {there}; ' if beside else ''}those of the package are in {folders}"


def merge(config: DictConfig, *updates: DictConfig) -> DictConfig:
    """Each update wins; where it names another model (optimizer, ...), that one replaces the old one."""
    merged: Any = _with_mappings(config)
    for update in map(_with_mappings, updates):
        for key in (SECTIONS.keys() - MANY) | STUDY_KEYS:
            old, new = (OmegaConf.select(part, key, throw_on_resolution_failure=False) for part in (merged, update))
            if isinstance(old, DictConfig) and isinstance(new, DictConfig) and not old.keys() & new.keys():
                del merged[key]
        merged = OmegaConf.unsafe_merge(merged, update)  # of copies that nobody else has; `merge` would copy them again
    return merged


def _with_mappings(config: DictConfig) -> DictConfig:
    """A copy, in which a section that is one name is a mapping."""
    config = copy.deepcopy(config)
    for key in SECTIONS:
        if not OmegaConf.is_interpolation(config, key) and isinstance(name := config.get(key), str):
            config[key] = {name: {}}
    return config


def resolve(config: Mapping[str, Any] | DictConfig, source: Source) -> dict[str, Any]:
    """Plain data, with interpolations replaced by what they stand for and without the `variables` made for them.

    What begins with ``~/`` is a path in the home folder.
    """
    with resolving(source):
        node = OmegaConf.create(config)  # type: ignore[arg-type]
        plain = OmegaConf.to_container(node, resolve=True)
        absent = sorted(OmegaConf.missing_keys(node))
    for key in absent:
        if not key.startswith("variables."):
            raise source.error(key, LEFT_TO_YOU)
    plain = _at_home(plain)
    assert isinstance(plain, dict)
    check_numbers(source, plain)
    return {str(key): value for key, value in plain.items() if key != "variables"}


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _at_home(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [*map(_at_home, value)]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


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
