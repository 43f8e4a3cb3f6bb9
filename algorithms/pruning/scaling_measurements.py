"""Measured errors of pruned networks, anybody's, from a CSV file too: what a scaling law is fitted to."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..validation import check

SHARES = ("density", "error", "dense_error")
SIZES = ("depth", "width")
TELL_APART = (*SIZES, "examples")  # configurations that have no names


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Errors of pruned networks; arrays (points,). Errors are fractions, and so is the density, of prunable weights.

    A `configuration` is a network of one depth and width, with one number of training examples, at several densities;
    that of 1, the dense network, is given by its error and is none of the points. ValueError where a number cannot be.
    """

    configuration: np.ndarray
    density: np.ndarray
    error: np.ndarray
    dense_error: np.ndarray
    depth: np.ndarray
    width: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.error)
        object.__setattr__(self, "configuration", np.asarray(self.configuration))
        check("Measurements", "error", size, "of one point or more", size)
        names = self.configuration.shape
        check("Measurements", "configuration", names == (size,), f"{size} names, as of error", names)
        for name in (*SHARES, *SIZES):
            values = np.asarray(getattr(self, name), dtype=float)
            object.__setattr__(self, name, values)
            check("Measurements", name, values.shape == (size,), f"{size} numbers, as of error", values.shape)
            wrong = values[~_can_be(name, values)]
            check("Measurements", name, not len(wrong), _expected(name), wrong[:1].tolist())

    @classmethod
    def of_points(cls, points: Iterable[tuple[Any, ...]]) -> Measurements:
        """Of each point the configuration, density, error, dense error, depth and width."""
        names = (field.name for field in fields(cls))
        return cls(**{name: np.array(column) for name, column in zip(names, zip(*points, strict=True), strict=True)})

    def __len__(self) -> int:
        return len(self.error)

    def of(self, configurations: Iterable[str]) -> Measurements:
        """The points of these configurations."""
        mask = np.isin(self.configuration, [*configurations])
        return Measurements(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    @property
    def configurations(self) -> list[str]:
        """Their names, in order."""
        return [*dict.fromkeys(self.configuration.tolist())]

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        """What a law's `error` takes."""
        return self.dense_error, self.density, self.depth, self.width


def read_measurements(path: str | os.PathLike[str]) -> Measurements:
    """Anybody's measurements, from a CSV file that begins with a line of names.

    Each further line is a network at a density, with the columns `density` (share of the prunable weights that is kept)
    and `error` (a fraction: 1 - accuracy); and, where they are needed, `dense_error`, of the unpruned network, without
    which each configuration needs a line of density 1; `depth` and `width`, in any units, for several configurations;
    `configuration`, a name, by default told from `depth`, `width` and `examples` (how many the training data have).
    Lines of one configuration and density, such as those of several seeds, are averaged. Other columns are left aside.

    Raises ValueError, in one line with the file, and the line in it, for what is no such file.
    """
    cells: dict[str, dict[float, list[dict[str, float]]]] = {}
    for name, values in _lines(path):
        cells.setdefault(name, {}).setdefault(values.pop("density"), []).append(values)
    if not cells:
        raise ValueError(f"{path}: no line below the names")
    points = []
    for name, by_density in cells.items():
        if len({tuple(one[key] for key in SIZES if key in one) for own in by_density.values() for one in own}) > 1:
            raise ValueError(f"{path}: {name or 'the network'} has several depths or widths; expected one of each")
        means = {d: {key: float(np.mean([v[key] for v in own])) for key in own[0]} for d, own in by_density.items()}
        for density, mean in sorted(means.items(), reverse=True):
            if len(cells) > 1 and not {*SIZES} <= mean.keys():
                raise ValueError(f"{path}: {len(cells)} configurations; expected columns depth and width")
            if "dense_error" not in mean and 1.0 not in means:
                raise ValueError(f"{path}: {name or 'the network'} has no line of density 1, and no dense_error")
            dense = mean["dense_error"] if "dense_error" in mean else means[1.0]["error"]
            if density < 1:
                points.append((name, density, mean["error"], dense, *(mean.get(key, 1.0) for key in SIZES)))
    if not points:
        raise ValueError(f"{path}: every density is 1; expected pruned networks too")
    return Measurements.of_points(points)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """The configuration's name and the numbers of each line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            header = [name.strip() for name in lines.fieldnames or ()]
            lines.fieldnames = header
            for name in ("density", "error"):
                if name not in header:
                    raise ValueError(f"{path}: no column {name}; expected density, error, dense_error, depth, width")
            for line in lines:
                place = f"{path}, line {lines.line_num}"
                if None in line or None in line.values():
                    raise ValueError(f"{place}: has another number of columns than the first line")
                values = {name: _number(line, name, place) for name in (*SHARES, *SIZES) if name in header}
                if "configuration" in header:
                    name = line["configuration"].strip()
                else:  # by their numbers, as 8 and 8.0 are one depth
                    known = {key: _number(line, key, place) for key in TELL_APART if key in header}
                    name = ", ".join(f"{key} {value:.15g}" for key, value in known.items())
                yield name, values
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV file; {error}") from error


def _number(line: Mapping[str, Any], name: str, place: str) -> float:
    try:
        value = float(line[name])
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {name} is {line[name]!r}; expected a number") from None
    if not _can_be(name, value):
        raise ValueError(f"{place}: {name} is {value:g}; expected a number {_expected(name)}")
    return value


def _can_be(name: str, value: Any) -> Any:  # a number, or an array of them
    return (value > 0) & (value <= 1 if name in SHARES else value < math.inf)


def _expected(name: str) -> str:
    return "above 0 and up to 1" if name in SHARES else "above 0"
