"""Things by name: a class or function from the snake_case of its name, or from its import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError, Source, own_frame, said


@dataclass(frozen=True, kw_only=True)
class Part:
    """A class or function found by name, with its checked arguments."""

    source: Source
    key: str
    target: Callable[..., Any]
    arguments: dict[str, Any]
    makes: str = ""  # import path of the class of what it makes, where a function may make anything
    hint: str = ""  # where what it makes is of another class

    def build(self, *supplied: Any) -> Any:
        with self.source.blame(self.key, Exception, SystemExit):
            made = self.target(*supplied, **self.arguments)
        if self.makes and not isinstance(made, kind := import_path(self.makes)):
            raise self.source.error(self.key, f"makes a {type(made).__name__}; expected a {kind.__name__}{self.hint}")
        return made


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """Modules in which a name is looked up, in this order, and which of the things found there count."""

    modules: tuple[str, ...]
    base: str = ""  # import path of the class they derive from; empty: what the module itself defines
    suffix: str = ""  # may be left out of the name
    methods: tuple[str, ...] = ()  # that a class at an import path has, unless it is adapted
    adapted: str = ""  # import path of a function that makes one of this kind of what else an import path names
    makes: str = ""  # import path of the class of what is made, of which a class at an import path must be one
    hint: str = ""  # where something else is found

    def find(self, name: str) -> Any:
        """The class or function called `name`, or at the import path ``package.module:Name``."""
        if ":" in name or not self.modules:
            thing = import_path(name)
            if problem := self._problem(thing):
                raise LookupError(problem)
            return thing
        known = self.things()
        for candidate, thing in known.items():
            if self.plain(name) == _plain(candidate):
                return thing
        if own := _with_a_colon(name):
            raise LookupError(f"unknown name; what is in a file of your own is written with a colon, {own}")
        raise LookupError(f"unknown name{nearest(name, known)}")

    def things(self) -> dict[str, Any]:
        """All that have a name, by that; where two modules have the same, the first one's."""
        found: dict[str, Any] = {}
        for module in self.modules:
            for name, thing in self._things(module).items():
                found.setdefault(name, thing)
        return found

    def plain(self, name: str) -> str:
        """The name, the same for all its spellings."""
        return name if ":" in name else _plain(name).removesuffix(self.suffix.lower())

    def adapter(self, thing: Any) -> Callable[..., Any] | None:
        """What makes one of this kind of the thing, called with its import path, itself and its arguments."""
        of_this_kind = inspect.isclass(thing) and all(callable(getattr(thing, name, None)) for name in self.methods)
        return None if of_this_kind or not self.adapted else import_path(self.adapted)

    def _problem(self, thing: Any) -> str:
        """Why it is not of this kind, if so. It is not called to find out: it may be anything."""
        other, is_class = "not of the kind that belongs here; expected", inspect.isclass(thing)
        if self.base:
            base = import_path(self.base)
            concrete = is_class and thing is not base and not inspect.isabstract(thing)
            return "" if concrete and issubclass(thing, base) else f"{other} a subclass of {base.__name__}"
        if self.makes and is_class and not issubclass(thing, made := import_path(self.makes)):
            return f"{other} a subclass of {made.__name__}, or a function that makes one{self.hint}"
        return "" if callable(thing) else f"{other} a class or function{self.hint}"

    def _things(self, module: str) -> dict[str, Any]:
        base = import_path(self.base) if self.base else None
        return {
            _snake(name.removesuffix(self.suffix)): thing
            for name, thing in vars(importlib.import_module(module)).items()
            if not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing))
            if (base in getattr(thing, "__mro__", ())[1:] if base else thing.__module__ == module)
            and all(callable(getattr(thing, method, None)) for method in self.methods)
        }


def import_path(path: str) -> Any:
    """The thing at ``package.module:Name``."""
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        hint = f", such as {own}" if (own := _with_a_colon(path)) else ""
        raise LookupError(f"not an import path; expected package.module:Name{hint}")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        if error.name and module.startswith(error.name):
            hint = f"looked in the current folder, {os.getcwd()}, and among what is installed"
            raise ImportError(f"{error}; {hint}", name=error.name) from error
        raise
    except (Exception, SystemExit) as error:  # whatever stands there is run
        raise LookupError(f"the module {module} fails on import; {said(error)}{own_frame(error)}") from error
    if not hasattr(imported, name):
        raise LookupError(f"the module {module} has no {name}")
    return getattr(imported, name)


def _with_a_colon(path: str) -> str:
    """The import path that was meant where a dot stands for the colon; empty where it cannot be one."""
    module, dot, name = path.rpartition(".")
    return f"{module}:{name}" if dot and all(part.isidentifier() for part in path.split(".")) else ""


def function_at(argument: str, path: str, expected: str = "") -> Callable[..., Any]:
    """The function at an import path, or an ArgumentError of the argument, which says what else was expected there."""
    hint = f"; {expected}" if expected else ""
    try:
        found = import_path(path)
    except (LookupError, ImportError) as error:
        raise ArgumentError(argument, f"{path}: {error}{hint}") from error
    if not callable(found):
        raise ArgumentError(argument, f"{path} is a {type(found).__name__}; {expected or 'expected a function'}")
    return found


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant; empty if none was."""
    spellings = {_plain(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_plain(name), spellings, n=1)
    return spellings[close[0]] if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name that was probably meant, else all of them."""
    if close := meant(name, known := [*known]):
        return f"; did you mean {close}?"
    names = {_plain(candidate): candidate for candidate in known}.values()
    return f"; expected one of {', '.join(sorted(names))}" if names else "; expected none"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _snake(name: str) -> str:
    return re.sub(r"(?<=[^_])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})", "_", name).lower()
