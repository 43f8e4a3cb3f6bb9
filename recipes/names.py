"""Things by name: a class or function from the snake_case of its name, and its arguments against its signature."""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

TIME_HINT = "a time string such as 10ep, 500ba or 0.5dur"
TIME_NAMES = re.compile(r"t_\w+|start|end|half_life|\w+_(start|end|interval|duration)")
DESCRIPTIONS = {"NoneType": "null", "Time": TIME_HINT, "bool": "true or false", "float": "a number", "str": "text"}


class ArgumentError(ValueError):
    """What is wrong with the argument `name`."""

    def __init__(self, name: str, message: str):
        self.name, self.message = name, message
        super().__init__(f"{name}: {message}")


@dataclass(frozen=True)
class Namespace:
    """Modules in which a name is looked up, in this order, and which of the things found there count."""

    modules: tuple[str, ...]
    base: str = ""  # import path of the class they derive from; empty: what the module itself defines
    suffix: str = ""  # may be left out of the name

    def find(self, name: str) -> Any:
        """The class or function called `name`, or at the import path ``package.module:Name``."""
        if ":" in name:
            return import_path(name)
        known: list[str] = []
        for module in self.modules:
            things = self._things(module)
            for candidate, thing in things.items():
                if _plain(name).removesuffix(self.suffix.lower()) == _plain(candidate):
                    return thing
            known += things
        raise LookupError(f"unknown name{nearest(name, known)}")

    def _things(self, module: str) -> dict[str, Any]:
        base = import_path(self.base) if self.base else None
        return {
            _snake(name.removesuffix(self.suffix)): thing
            for name, thing in vars(importlib.import_module(module)).items()
            if not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing))
            if (base in getattr(thing, "__mro__", ())[1:] if base else thing.__module__ == module)
        }


def import_path(path: str) -> Any:
    """The thing at ``package.module:Name``."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise LookupError(f"the module {module} has no {name}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name that was probably meant, else all of them."""
    spellings = {_plain(candidate): candidate for candidate in known}
    if close := difflib.get_close_matches(_plain(name), spellings, n=1):
        return f"; did you mean {spellings[close[0]]}?"
    return f"; expected one of {', '.join(sorted(spellings.values()))}" if spellings else "; expected none"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _snake(name: str) -> str:
    return re.sub(r"(?<=[^_])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})", "_", name).lower()


def check_arguments(target: Any, arguments: Mapping[str, Any], supplied: int = 0) -> dict[str, Any]:
    """The arguments as `target` wants them, or an ArgumentError. The caller supplies the first few parameters."""
    parameters = list(inspect.signature(target).parameters.values())[supplied:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if name not in named:
                raise ArgumentError(name, f"unknown argument{nearest(str(name), named)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ArgumentError(name, "missing; it has no default")
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a name that exists for type checkers only: leave the values to the constructor
        hints = {}
    return {name: check_value(name, hints.get(name, Any), value) for name, value in arguments.items()}


def check_value(name: str, annotation: Any, value: Any) -> Any:
    """The value as its annotation wants it (a list may become a tuple; text, no number), or an ArgumentError."""
    members = _members(annotation)
    timed = any(getattr(member, "__name__", "") == "Time" for member in members)
    if isinstance(value, str) and (timed or (str in members and TIME_NAMES.fullmatch(name))):
        _check_time(name, value)
    kinds = [member for member in members if inspect.isclass(member) and issubclass(member, enum.Enum)]
    choices = [choice.value for kind in kinds for choice in kind]
    if isinstance(value, str) and choices and value.lower() not in choices:
        raise ArgumentError(name, f"{value!r} given; expected one of {', '.join(choices)}")
    described = dict.fromkeys(_describe(member) for member in members if not (timed and member is str))
    wrong = ArgumentError(name, f"{show(value)} given; expected {' or '.join(described)}")
    try:
        result = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        raise wrong from None
    except PydanticSchemaGenerationError:
        return value
    converted = type(result) in (bool, int, float, str) and type(result) is not type(value)
    if converted and (type(value), type(result)) != (int, float):
        raise wrong
    return result


def _check_time(name: str, value: str) -> None:
    from composer.core import Time

    try:
        Time.from_timestring(value)
        unit_missing = value[-1:].isdigit()  # Composer would take "1" for ten seconds
    except (ValueError, TypeError):
        unit_missing = True
    if unit_missing:
        raise ArgumentError(name, f"{value!r} given; expected {TIME_HINT}")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for argument in typing.get_args(annotation) for member in _members(argument))
    return (annotation,)


def show(value: Any) -> str:
    """The value as YAML spells it."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _describe(member: Any) -> str:
    name = "" if typing.get_args(member) else getattr(member, "__name__", "")
    return DESCRIPTIONS.get(name) or name or str(member).replace("typing.", "")
