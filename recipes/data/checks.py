"""What arguments of sources and models must be: numbers, folders, names on the hub."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from ..config.errors import ArgumentError, show

OF_FILES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")


def check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")


def check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected {content}")


def check_hub_name(name: str) -> None:
    """Raise if the name can only be a local folder, and is none; or if it is a file."""
    if Path(name).is_file() or name.endswith(OF_FILES):
        found = "is a file" if Path(name).is_file() else "is the name of a file, and there is none"
        raise FileNotFoundError(f"{name} {found}: expected the folder that it is in, or a name on the hub")
    if name.startswith(("/", "./", "../")):
        check_folder(Path(name), "what save_to_disk or save_pretrained wrote, or a name on the hub")


def check_tasks(argument: str, names: Iterable[str]) -> None:
    """Raise for what cannot be the names of tasks, of labels and of a model's parts; there must be one or more."""
    expected = "expected a task or more, such as {topic: {...}}, by names of letters, digits and _"
    if not (names := [*names]):
        raise ArgumentError(argument, f"none given; {expected}")
    for name in names:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or hasattr(nn.ModuleDict(), name):
            raise ArgumentError(argument, f"{show(name)} given, which cannot be the name of a task; {expected}")


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Inside, Hugging Face's libraries ask the hub for the name, or where it is out of reach take what is cached.

    By themselves they would try again and again, for most of a minute for each file.
    """
    from huggingface_hub import constants

    if Path(name).exists() or constants.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    read: list[Any] = [module for module in (constants, sys.modules.get("datasets.config")) if module]
    for module in read:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        hint = f"the hub, {constants.ENDPOINT}, does not answer"
        raise OSError(f"{name} is no folder here, is not cached, and {hint}") from error
    finally:
        for module in read:
            module.HF_HUB_OFFLINE = False


@cache
def _hub_answers() -> bool:
    from huggingface_hub import constants, utils

    network: Any = utils
    try:
        network.get_session().head(constants.ENDPOINT, timeout=5)  # by the proxy, if there is one
        return True
    except Exception:  # of whichever library it asks with
        return False
