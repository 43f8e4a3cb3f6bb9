"""Tables that somebody else has written: CSV files, told by the names of their columns."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A line of a table; `place` is where it stands."""

    place: str
    cells: Mapping[str, str | None]

    def __getitem__(self, name: str) -> str:
        """The text in that column, "" where there is none."""
        return (self.cells.get(name) or "").strip()

    def number(self, name: str) -> float:
        """The number in that column, NaN where there is none; of a text such as 60 % the share."""
        text = self[name]
        try:
            return float(text.removesuffix("%") or "nan") / (100 if text.endswith("%") else 1)
        except ValueError as error:
            raise ValueError(f"{self.place}: {name} is {text!r}; expected a number") from error

    def share(self, name: str, least: float = 0) -> float:
        """The number in that column, which must be from `least` to 1, or NaN."""
        if not math.isnan(value := self.number(name)) and not least <= value <= 1:
            raise ValueError(f"{self.place}: {name} is {value:g}; expected a share, from {least} to 1")
        return value


def lines_of(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Line]:
    """The lines of a CSV that has these columns; raises OSError, or ValueError where it has not, or has no lines."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path}: has no column {lacking[0]}; expected {', '.join(columns)}")
            lines = [Line(f"{path}, line {reader.line_num}", cells) for cells in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not readable as CSV; {error}") from error
    if not lines:
        raise ValueError(f"{path}: has no lines below its columns")
    for line in lines:
        if None in line.cells or None in line.cells.values():
            raise ValueError(f"{line.place}: has another number of columns than the first line")
    return lines
