"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; one that is so already is left alone, as its folder may be closed by now."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, its part too takes room
        raise


def write_yaml(path: Path, config: Mapping[str, Any]) -> None:
    """Writes a config whole or not at all."""
    write(path, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
