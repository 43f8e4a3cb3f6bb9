"""Parts of a data set by name, or slices of them as TensorFlow Datasets writes them: ``train``, ``train[:80%]``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..config.errors import ArgumentError, show

SLICE = re.compile(r"(\w+)(?:\[(\d{1,9}%?)?:(\d{1,9}%?)?\])?")


def part_of(split: str, sizes: Mapping[str, int]) -> tuple[str, range]:
    """The name of the part, and which of its examples, of which it has `sizes`; ArgumentError where there are none."""
    found = SLICE.fullmatch(split)
    expected = f"expected {' or '.join(sizes)}, or a slice such as {next(iter(sizes))}[:80%]"
    if not found or found[1] not in sizes:
        raise ArgumentError("split", f"{show(split)} given; {expected}")
    size = sizes[found[1]]
    start, stop = _place(found[2], size, 0), _place(found[3], size, size)
    if not start < stop <= size:
        raise ArgumentError("split", f"{show(split)} given, but {found[1]} has {size} examples; {expected}")
    return found[1], range(start, stop)


def _place(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    return round(int(text[:-1]) / 100 * size) if text.endswith("%") else int(text)


def overlap(one: tuple[str, range], other: tuple[str, range]) -> bool:
    """Whether both hold some of the same examples."""
    a, b = one[1], other[1]
    return one[0] == other[0] and max(a.start, b.start) < min(a.stop, b.stop)
