"""Arguments against a signature: what is wrong with one becomes an `ArgumentError`."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from .errors import ArgumentError, show
from .lookup import nearest

TIME_HINT = "a time string such as 10ep, 500ba or 0.5dur"
TIME_NAMES = re.compile(r"t_\w+|start|end|half_life|\w+_(start|end|interval|duration)")
DESCRIPTIONS = {
    "NoneType": "null",
    "Time": TIME_HINT,
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}


def parameters(target: Any) -> list[inspect.Parameter]:
    """Those that a YAML can name; of a class that takes ``**kwargs`` also those of the bases to which these may go."""
    named: dict[str, inspect.Parameter] = {}
    for callee in callees(target):
        for parameter in inspect.signature(callee).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                # What a base needs, the class may give it.
                optional = parameter if callee is target else parameter.replace(default=None)
                named.setdefault(parameter.name, optional)
    return sorted(named.values(), key=lambda parameter: parameter.kind)


def callees(target: Any) -> list[Any]:
    """The target, and the bases' constructors to which its ``**kwargs`` may go."""
    bases = [base for base in getattr(target, "__mro__", ()) if "__init__" in vars(base) and base is not object]
    callees = [target]
    for base in bases[1:]:
        if inspect.Parameter.VAR_KEYWORD not in kinds_of(callees[-1]):
            break
        callees.append(base)
    return callees


def kinds_of(callee: Any) -> set[Any]:
    return {parameter.kind for parameter in inspect.signature(callee).parameters.values()}


def open_to(target: Any) -> list[tuple[str, str]]:
    """Each ``**kwargs`` that takes more than signatures tell, by its name, and the docstring beside it."""
    found = []
    for callee in callees(target):
        rest = [p.name for p in inspect.signature(callee).parameters.values() if p.kind is p.VAR_KEYWORD]
        # Composer's own bases take anything, and drop it.
        if rest and kinds_of(callee) != {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            found.append((rest[0], f"{callee.__doc__} {callee.__init__.__doc__ if inspect.isclass(callee) else ''}"))
    return found


def _documents(target: Any, name: str) -> bool:
    """Whether what goes into ``**kwargs`` is known to the docstring beside them, by this name or by theirs."""
    pattern = rf"\*\*{{rest}}\b|\b({{rest}}|{re.escape(name)})`*\s*[:(=]"
    return any(re.search(pattern.format(rest=rest), text) for rest, text in open_to(target))


def check_arguments(
    target: Any, arguments: Mapping[str, Any], supplied: int = 0, made: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments as `target` wants them, or an ArgumentError.

    The caller supplies the first few parameters, and those whose names are `made`.
    """
    named = {parameter.name: parameter for parameter in parameters(target)[supplied:] if parameter.name not in made}
    for name in arguments.keys() & set(made):
        raise ArgumentError(name, "the recipe makes it; leave it out")
    for name in map(str, arguments):
        if name not in named and not _documents(target, name):
            hidden = inspect.Parameter.VAR_KEYWORD in kinds_of(target)
            where = ", which neither signature nor docstring has" if hidden else ""
            raise ArgumentError(name, f"unknown argument{where}{nearest(name, named)}")
    from torch.optim.optimizer import required  # by which optimizers mark an argument that has no default

    for name, parameter in named.items():
        if (parameter.default is parameter.empty or parameter.default is required) and name not in arguments:
            raise ArgumentError(name, "missing; it has no default")
    hints, times = hints_of(target), names_times(target)
    return {name: check_value(name, hints.get(name, Any), value, times) for name, value in arguments.items()}


def hints_of(target: Any, extras: bool = False) -> dict[str, Any]:
    """The annotations of its parameters, with `extras` those that are `Annotated` whole."""
    hints: dict[str, Any] = {}
    for callee in reversed(callees(target)):
        # A name may exist for type checkers only: leave the values to the constructor.
        with suppress(NameError, TypeError):
            own = callee.__init__ if inspect.isclass(callee) and not dataclasses.is_dataclass(callee) else callee
            hints |= typing.get_type_hints(own, include_extras=extras)
    return hints


def names_times(target: Any) -> bool:
    """Whether its texts that are called `start` and the like are times; elsewhere they may be anything."""
    return str(getattr(target, "__module__", "")).partition(".")[0] in ("composer", "accelerando")


def is_time(name: str, annotation: Any, times: bool = True) -> bool:
    """Whether its texts are held to be time strings; with `times` also those that bear Composer's names for times."""
    named = times and str in _members(annotation) and TIME_NAMES.fullmatch(name) is not None
    return named or _takes_times(annotation)


def _takes_times(annotation: Any) -> bool:
    return any(getattr(member, "__name__", "") == "Time" for member in _leaves(annotation))


def check_value(name: str, annotation: Any, value: Any, times: bool = True) -> Any:
    """The value as its annotation wants it (a list may become a tuple; text, no number), or an ArgumentError.

    With `times`, texts that bear one of Composer's names for times are held to be time strings.
    """
    members = _members(annotation)
    if is_time(name, annotation, times):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_time(name, text)
    kinds = [member for member in members if inspect.isclass(member) and issubclass(member, enum.Enum)]
    choices = [choice.value for kind in kinds for choice in kind]
    if isinstance(value, str) and choices and value.lower() not in choices:
        raise ArgumentError(name, f"{value!r} given; expected one of {', '.join(choices)}")
    timed = _takes_times(annotation)
    described = dict.fromkeys(_describe(member) for member in members if not (timed and member is str))
    wrong = ArgumentError(name, f"{show(value)} given; expected {' or '.join(described)}")
    try:
        result = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except (ValidationError, TypeError):  # the latter, of an enumeration that looks up what it is given
        raise wrong from None
    except PydanticSchemaGenerationError:
        return value
    if _converted(value, result):
        raise wrong
    return result


def _converted(value: Any, result: Any) -> bool:
    """Whether any of it has become another thing, such as true a 1; a whole number may become a fractional one."""
    if isinstance(value, list | tuple) and isinstance(result, list | tuple):
        return any(map(_converted, value, result))
    if isinstance(value, dict) and isinstance(result, dict):
        return any(map(_converted, [*value, *value.values()], [*result, *result.values()]))
    pair = type(value), type(result)
    return type(result) in (bool, int, float, str) and pair[0] is not pair[1] and pair != (int, float)


def check_path(name: str, value: str, expected: str) -> None:
    """A path that the file system takes as it is, and in which Composer finds nothing to fill in; or ArgumentError."""
    parts = [len(part.encode(errors="replace")) for part in value.split("/")]
    wrong = not value.isprintable() or not {*"{}"}.isdisjoint(value) or max(parts) > 200 or value[:1] == "~"
    if wrong or not value or value != value.strip() or re.match(r"\w{2,}:/", value):
        hint = "without {, }, ~ at the start, control characters, spaces at an end or parts of more than 200 bytes"
        raise ArgumentError(name, f"{value[:80]!r} given; expected {expected} {hint}")


def check_inside(name: str, value: str, expected: str) -> None:
    """A path that leads to a place inside of where it starts, or ArgumentError."""
    if not {"", ".", ".."}.isdisjoint(value.split("/")):
        raise ArgumentError(name, f"{value[:80]!r} given; expected {expected}, and not one of a place outside of it")
    check_path(name, value, expected)


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


def _leaves(annotation: Any) -> list[Any]:
    """The members, and the members of the lists among them."""
    arguments = typing.get_args(annotation)
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [annotation]


def _describe(member: Any) -> str:
    name = "" if typing.get_args(member) else getattr(member, "__name__", "")
    return DESCRIPTIONS.get(name) or name or str(member).replace("typing.", "")
