"""What arguments of sources and models must be: numbers, folders, names on the hub."""

import re
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from ..config.errors import ArgumentError, show


def check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")


def check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected {content}")


def check_hub_name(name: str) -> None:
    """Raise if the name can only be a local folder, and is none."""
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
