"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from accelerando.algorithms.whole_files import written_whole


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; one that is so already is left alone, as its folder may be closed by now."""
    if path.is_file() and path.read_bytes() == content:
        return
    with written_whole(path) as file:
        file.write_bytes(content)


def write_yaml(path: Path, config: Mapping[str, Any]) -> None:
    """Writes a config whole or not at all."""
    write(path, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())


def write_csv(rows: Iterable[Any], path: Path) -> None:
    """Writes dataclasses or dicts with the same fields, a line each, under the fields' names."""
    rows = [row if isinstance(row, dict) else asdict(row) for row in rows]
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows([*rows[:1], *(row.values() for row in rows)])
    write(path, text.getvalue().encode())
