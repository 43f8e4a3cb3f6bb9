"""The table of a study: one row for each thing that was measured, whatever the study; written, and read back."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COSTS = ("batches", "samples", "seconds")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a run, or a part of one such as a level or a cycle, has come to.

    Attributes:
        node: the name of the run in its study.
        tags: what tells rows apart, such as arm, seed and density; numbers and texts.
        batches, samples, seconds: what it had cost in training, evaluations left out.
        metrics: what was measured at its end, by name; NaN where that is not finite or not known.
    """

    node: str
    tags: Mapping[str, float | str]
    batches: int
    samples: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The tag, cost or metric of that name; KeyError where it has none."""
        if name in COSTS:
            return getattr(self, name)
        return self.tags[name] if name in self.tags else self.metrics[name]


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV: node, tags, costs, then metrics. Texts are in quotes, numbers are not."""
    tags = _names(row.tags for row in rows)
    metrics = _names(row.metrics for row in rows)
    lines: list[list[Any]] = [["node", *tags, *COSTS, *metrics]]
    for row in rows:
        costs = (getattr(row, name) for name in COSTS)
        lines.append([row.node, *map(row.tags.get, tags), *costs, *map(row.metrics.get, metrics)])
    csv.writer(text := io.StringIO(), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(lines)
    return text.getvalue()


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a study's `table.csv`. Raises ValueError where the file is none."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, quoting=csv.QUOTE_NONNUMERIC)
        header = [str(name) for name in next(lines, [])]
        if header[:1] != ["node"] or not {*COSTS} <= {*header}:
            raise ValueError(f"{path}: no table of a study; expected the columns node, {', '.join(COSTS)}")
        start = header.index(COSTS[0])
        tags, metrics = header[1:start], header[start + len(COSTS) :]
        return [_row(line, tags, metrics) for line in lines]


def _row(line: Sequence[Any], tags: Sequence[str], metrics: Sequence[str]) -> Row:
    node, cells = line[0], line[1:]
    own, costs, rest = cells[: len(tags)], cells[len(tags) : len(tags) + 3], cells[len(tags) + 3 :]
    return Row(
        node=node,
        tags={name: _whole(cell) for name, cell in zip(tags, own, strict=True) if cell != ""},
        batches=int(costs[0]),
        samples=int(costs[1]),
        seconds=costs[2],
        metrics={name: cell for name, cell in zip(metrics, rest, strict=True) if cell != ""},
    )


def _whole(cell: Any) -> Any:
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by the values of these tags; None where a row lacks one. Groups and rows keep their order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.tags.get(name) for name in names), []).append(row)
    return found


def by_seed(rows: Iterable[Row], value: str | Callable[[Row], float]) -> dict[Any, float]:
    """The metric of each seed's last row."""
    get = value if callable(value) else lambda row: row.metrics.get(value, math.nan)
    return {row.tags["seed"]: get(row) for row in rows}
