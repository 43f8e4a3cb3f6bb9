"""What is wrong with a config, in one line: a `ConfigError`, to which a `Source` gives the place."""

from __future__ import annotations

import pickle
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

# What somebody else's constructor raises over arguments, files and checkpoints that it cannot work with.
REFUSALS = (OSError, TypeError, ValueError, RuntimeError, LookupError, EOFError, pickle.UnpicklingError)
EXTRAS = {"transformers": "nlp", "datasets": "nlp", "tokenizers": "nlp", "streaming": "streaming", "wandb": "wandb"}


FRAME = re.compile(r'File "(.+?)", line (\d+).*\n(?! *File ") +(\S.*)')
OURS = Path(__file__).resolve().parents[2]
OF_OTHERS = (Path(sysconfig.get_path("stdlib")).resolve(), OURS / "algorithms", OURS / "recipes")
INSTALLED = {"site-packages", "dist-packages"}


class ArgumentError(ValueError):
    """What is wrong with the argument `name`."""

    def __init__(self, name: str, message: str):
        self.name, self.message = name, message
        super().__init__(f"{name}: {message}")


class ConfigError(Exception):
    """What is wrong with a config, in one line: the file (or ``command line``), the key, and what was expected."""

    def __init__(self, file: str, key: str, message: str):
        self.file, self.key, self.message = file, key, " ".join(message.split())
        # A key may be text of several lines.
        super().__init__(": ".join(part for part in (file, " ".join(key.split()), self.message) if part))


@dataclass(frozen=True)
class Source:
    """Where a config came from, so that an error can point there."""

    file: str = "config"
    _: KW_ONLY
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
            frame = own_frame(error)
            poor = frame or isinstance(error, KeyError) or not isinstance(error, REFUSALS) or not str(error)
            raise self.error(key, f"{said(error)}{frame}" if poor else str(error)) from error


def said(error: BaseException) -> str:
    """The error in one line; of one in a process of a loader, which brings its whole traceback, its last line."""
    text = str(error)
    if "Original Traceback (most recent call last)" in text:
        return text.strip().rpartition("\n")[2]
    return " ".join(f"{type(error).__name__}: {text}".split())


def own_frame(error: BaseException) -> str:
    """The last place that the error came through in somebody's own code, to be added to a line; empty if in none."""
    here = Path.cwd()
    for name, line, code in reversed(FRAME.findall("".join(traceback.format_exception(error, chain=False)))):
        file = Path(name).resolve()
        installed = name.startswith("<") or not INSTALLED.isdisjoint(file.parts)
        if not installed and not any(file.is_relative_to(place) for place in OF_OTHERS):
            return f"; at {file.relative_to(here) if file.is_relative_to(here) else file}:{line}: {code.strip()}"
    return ""


def show(value: Any) -> str:
    """The value as YAML spells it."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
