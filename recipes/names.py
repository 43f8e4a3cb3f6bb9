"""Things by name: a class or function from the snake_case of its name, and its arguments against its signature.

What is wrong with them becomes a `ConfigError`, to which a `Source` gives the place.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import pickle
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

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

# What somebody else's constructor raises over arguments, files and checkpoints that it cannot work with.
REFUSALS = (OSError, TypeError, ValueError, RuntimeError, LookupError, EOFError, pickle.UnpicklingError)
EXTRAS = {"transformers": "nlp", "datasets": "nlp", "tokenizers": "nlp", "streaming": "streaming", "wandb": "wandb"}


class ArgumentError(ValueError):
    """What is wrong with the argument `name`."""

    def __init__(self, name: str, message: str):
        self.name, self.message = name, message
        super().__init__(f"{name}: {message}")


class ConfigError(Exception):
    """What is wrong with a config, in one line: the file (or ``command line``), the key, and what was expected."""

    def __init__(self, file: str, key: str, message: str):
        self.file, self.key, self.message = file, key, " ".join(message.split())
        super().__init__(": ".join(part for part in (file, key, self.message) if part))


@dataclass(frozen=True)
class Source:
    """Where a config came from, so that an error can point there."""

    file: str = "config"
    overridden: frozenset[str] = frozenset()
    part: str = ""  # where in the file the top-level keys `moved` really stand
    moved: frozenset[str] = frozenset()

    def inside(self, part: str, keys: Iterable[Any]) -> Source:
        """For what stands at `part`, where the checks take these keys of it for top-level ones."""
        part = f"{self.part}.{part}" if part.partition(".")[0] in self.moved else part
        return replace(self, part=part, moved=frozenset(map(str, keys)))

    def error(self, key: str, message: str) -> ConfigError:
        if key.partition(".")[0] in self.moved:
            key = f"{self.part}.{key}"
        # To blame if it gave the key, what the key lies in, or a part of what the key holds.
        on_command_line = any(f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in self.overridden)
        return ConfigError("command line" if on_command_line else self.file, key, message)

    @contextmanager
    def blame(self, key: str, *kinds: type[BaseException]) -> Iterator[None]:
        """Turns what a constructor or a check says against its arguments into an error at `key`."""
        try:
            yield
        except ConfigError:
            raise
        except ArgumentError as error:
            raise self.error(f"{key}.{error.name}" if key else error.name, error.message) from error
        except ImportError as error:
            # Composer raises an ImportError of its own from the original one, which alone names the package.
            name = error.name or getattr(error.__cause__, "name", None) or ""
            extra = EXTRAS.get(name.partition(".")[0])
            hint = f"needs the package {name}; install it with: pip install 'accelerando[{extra}]'"
            raise self.error(key, hint if extra else str(error)) from error
        except kinds as error:
            poor = isinstance(error, KeyError) or not isinstance(error, REFUSALS) or not str(error)
            raise self.error(key, f"{type(error).__name__}: {error}" if poor else str(error)) from error


@dataclass(frozen=True)
class Namespace:
    """Modules in which a name is looked up, in this order, and which of the things found there count."""

    modules: tuple[str, ...]
    base: str = ""  # import path of the class they derive from; empty: what the module itself defines
    suffix: str = ""  # may be left out of the name
    methods: tuple[str, ...] = ()  # that a class at an import path must have
    makes: str = ""  # import path of the class of what is made, of which a class at an import path must be one

    def find(self, name: str) -> Any:
        """The class or function called `name`, or at the import path ``package.module:Name``."""
        if ":" in name:
            thing = import_path(name)
            if problem := self._problem(thing):
                raise LookupError(problem)
            return thing
        known: list[str] = []
        for module in self.modules:
            things = self._things(module)
            for candidate, thing in things.items():
                if _plain(name).removesuffix(self.suffix.lower()) == _plain(candidate):
                    return thing
            known += things
        raise LookupError(f"unknown name{nearest(name, known)}")

    def _problem(self, thing: Any) -> str:
        """Why it is not of this kind, if so. It is not called to find out: it may be anything."""
        other, is_class = "not of the kind that belongs here; expected", inspect.isclass(thing)
        if self.base:
            base = import_path(self.base)
            concrete = is_class and thing is not base and not inspect.isabstract(thing)
            return "" if concrete and issubclass(thing, base) else f"{other} a subclass of {base.__name__}"
        if self.methods:
            fits = is_class and all(callable(getattr(thing, name, None)) for name in self.methods)
            return "" if fits else f"is no data source; expected one with {'() and '.join(self.methods)}(), a class"
        if self.makes and is_class and not issubclass(thing, made := import_path(self.makes)):
            return f"{other} a subclass of {made.__name__}, or a function that makes one"
        return "" if callable(thing) else f"{other} a class or function"

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
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise LookupError("not an import path; expected package.module:Name")
    try:
        imported = importlib.import_module(module)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # whatever stands there is run
        raise LookupError(f"the module {module} fails on import; {type(error).__name__}: {error}") from error
    if not hasattr(imported, name):
        raise LookupError(f"the module {module} has no {name}")
    return getattr(imported, name)


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


def parameters(target: Any) -> list[inspect.Parameter]:
    """Those that a YAML can name; of a class that takes ``**kwargs`` also those of the bases to which these may go."""
    named: dict[str, inspect.Parameter] = {}
    for callee in _callees(target):
        for parameter in inspect.signature(callee).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                # What a base needs, the class may give it.
                optional = parameter if callee is target else parameter.replace(default=None)
                named.setdefault(parameter.name, optional)
    return sorted(named.values(), key=lambda parameter: parameter.kind)


def _callees(target: Any) -> list[Any]:
    bases = [base for base in getattr(target, "__mro__", ()) if "__init__" in vars(base) and base is not object]
    callees = [target]
    for base in bases[1:]:
        if inspect.Parameter.VAR_KEYWORD not in _kinds(callees[-1]):
            break
        callees.append(base)
    return callees


def _kinds(callee: Any) -> set[Any]:
    return {parameter.kind for parameter in inspect.signature(callee).parameters.values()}


def _documents(target: Any, name: str) -> bool:
    """Whether what goes into ``**kwargs`` is known to the docstring beside them, by this name or by theirs."""
    for callee in _callees(target):
        rest = [p.name for p in inspect.signature(callee).parameters.values() if p.kind is p.VAR_KEYWORD]
        # Composer's own bases take anything, and drop it.
        if rest and _kinds(callee) != {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            text = f"{callee.__doc__} {callee.__init__.__doc__ if inspect.isclass(callee) else ''}"
            if re.search(rf"\*\*{rest[0]}\b|\b({rest[0]}|{re.escape(name)})`*\s*[:(=]", text):
                return True
    return False


def check_arguments(target: Any, arguments: Mapping[str, Any], supplied: int = 0) -> dict[str, Any]:
    """The arguments as `target` wants them, or an ArgumentError. The caller supplies the first few parameters."""
    named = {parameter.name: parameter for parameter in parameters(target)[supplied:]}
    for name in map(str, arguments):
        if name not in named and not _documents(target, name):
            hidden = inspect.Parameter.VAR_KEYWORD in _kinds(target)
            where = ", which neither signature nor docstring has" if hidden else ""
            raise ArgumentError(name, f"unknown argument{where}{nearest(name, named)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ArgumentError(name, "missing; it has no default")
    hints: dict[str, Any] = {}
    for callee in reversed(_callees(target)):
        # A name may exist for type checkers only: leave the values to the constructor.
        with suppress(NameError, TypeError):
            hints |= typing.get_type_hints(callee.__init__ if inspect.isclass(callee) else callee)
    return {name: check_value(name, hints.get(name, Any), value) for name, value in arguments.items()}


def check_value(name: str, annotation: Any, value: Any) -> Any:
    """The value as its annotation wants it (a list may become a tuple; text, no number), or an ArgumentError."""
    members = _members(annotation)
    timed = any(getattr(member, "__name__", "") == "Time" for member in _leaves(annotation))
    if timed or (str in members and TIME_NAMES.fullmatch(name)):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_time(name, text)
    kinds = [member for member in members if inspect.isclass(member) and issubclass(member, enum.Enum)]
    choices = [choice.value for kind in kinds for choice in kind]
    if isinstance(value, str) and choices and value.lower() not in choices:
        raise ArgumentError(name, f"{value!r} given; expected one of {', '.join(choices)}")
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


def show(value: Any) -> str:
    """The value as YAML spells it."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _describe(member: Any) -> str:
    name = "" if typing.get_args(member) else getattr(member, "__name__", "")
    return DESCRIPTIONS.get(name) or name or str(member).replace("typing.", "")
