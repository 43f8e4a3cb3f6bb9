"""The command line that all recipes share: ``FILE.yaml key=value ...``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from ..config.errors import ConfigError, Source
from ..config.loading import load
from ..config.lookup import Namespace


def command_line(
    arguments: Sequence[str],
    usage: str | None,
    run: Callable[[DictConfig, Source], Any],
    sections: Mapping[str, Namespace] | None = None,
) -> None:
    """Runs what ``FILE.yaml key=value ...`` describe; exits with code 2 after an error in the config.

    ``--help NAME`` tells of a key, of a section, or of what stands in one; `sections` are those beside a recipe's.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        _help(arguments[1:], usage, sections or {})
        sys.exit(0 if arguments else 2)
    find_modules_here()
    try:
        run(*load(arguments[0], arguments[1:]))
    except ConfigError as error:
        _exit(error)


def find_modules_here() -> None:
    """Lets import paths lead into the current folder first, however the recipe was launched.

    In its place Python gives a script the script's own folder, where a `data` or `models` of ours would come first.
    """
    here, of_scripts = os.getcwd(), Path(__file__).resolve().parents[1]
    others = [place for place in sys.path if place not in ("", here) and Path(place).resolve() != of_scripts]
    sys.path[:] = [here, *others]


def _help(names: Sequence[str], usage: str | None, sections: Mapping[str, Namespace]) -> None:
    if not names:
        print(usage)
    for name in names:
        from ..config.catalogue import explain

        try:
            print(explain(name, sections))
        except LookupError as error:
            print(error, file=sys.stderr)
            sys.exit(2)


def _exit(error: ConfigError) -> NoReturn:
    # All ranks find the same error. Rank 0 tells it, and the launcher, which takes the exit code of whoever ends first
    # and repeats its output, ends the others. A rank that waits in vain has an error of its own to tell.
    if os.environ.get("RANK", "0") != "0":
        time.sleep(60)
    print(error, file=sys.stderr, flush=True)
    sys.exit(2)
