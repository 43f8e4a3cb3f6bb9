"""The idx format of MNIST and its like: big-endian sizes, then bytes (http://yann.lecun.com/exdb/mnist).

torchvision's reader takes no gzipped file, and a truncated one ends in an error of its tensors' shapes.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GZIP = b"\x1f\x8b"
UNSIGNED_BYTES = 0x800  # and the number of dimensions


def find_idx(name: str, folders: Sequence[Path], hint: str) -> Path:
    """The file of that name, or that name with .gz, in the first folder that has one; FileNotFoundError if none has."""
    candidates = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")]
    if found := next((file for file in candidates if file.is_file()), None):
        return found
    looked = " and ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"found no {name}, nor {name}.gz, in {looked}; {hint}")


def read_idx(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Bytes of that shape; ValueError for a file that holds anything else."""
    header = np.array([UNSIGNED_BYTES + len(shape), *shape], dtype=">i4").tobytes()
    try:
        with file.open("rb") as stream:
            zipped = stream.read(len(GZIP)) == GZIP  # whatever its name says
        with gzip.open(file) if zipped else file.open("rb") as stream:
            content = stream.read(len(header) + math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    size = " x ".join(map(str, shape))
    if (begin := content[: len(header)]) != header:
        raise ValueError(f"{file} is no idx file of {size} bytes: it begins with {begin.hex()}, not {header.hex()}")
    if (length := len(content) - len(header)) != math.prod(shape):
        found = f"{length} bytes" if length < math.prod(shape) else "more"
        raise ValueError(f"{file} is damaged: it has {found} after its header, not {size}; get it anew")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header)).view(shape)
