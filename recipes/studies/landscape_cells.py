"""What the study `landscape` has of planes and Hessians: figures in the table, points and bins as lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ..run.results import aligned
from .core import Base
from .pruning import number
from .stability_cells import COPY, HESSIAN, Cell, by_place
from .statistics import mean_and_deviation
from .table import Row, groups

if TYPE_CHECKING:
    from ..run.results import Result

TRACE, ERROR, MEAN, LARGEST, NEGATIVE = (
    f"{HESSIAN}{name}" for name in ("trace", "trace error", "trace by weight", "largest eigenvalue", "negative")
)
COLUMNS = {
    TRACE: "trace",
    ERROR: "its error",
    MEAN: "by weight",
    LARGEST: "largest eigenvalue",
    NEGATIVE: "below 0",
}
Found = tuple[Row, dict[str, Any]]  # a copy's row, and what it has left


def curvature_of(result: Result) -> dict[str, float]:
    """Of what a copy has left of its Hessian, if it has: the figures that stand in the table."""
    if (found := result.found.get("hessian")) is None:
        return {}
    trace = number(found["trace"])
    return {
        TRACE: trace,
        ERROR: number(found["trace_error"]),
        MEAN: trace / found["weights"],
        LARGEST: number(found["eigenvalues"][0]),
        NEGATIVE: 100 * number(found["negative"]),
    }


def curvature_table(cells: Sequence[Cell]) -> str:
    """Means and standard deviations over seeds of each network."""
    lines = [["network", "weights", *COLUMNS.values()]]
    for (arm, density, _), own in by_place(cells).items():
        found = ([cell.measured.get(name, math.nan) for cell in own] for name in COLUMNS)
        lines.append([arm, density, *(_text(*mean_and_deviation(values)) for values in found)])
    kind = "Hessian of the training loss at the ends; below 0: % of its diagonal, by more than two standard errors"
    return f"{kind}\n{aligned(lines, left=('network',))}"


def _text(mean: float, deviation: float) -> str:
    return f"{mean:.3g}" + (f" ± {deviation:.2g}" if math.isfinite(deviation) else "")


def planes_of(base: Base, rows: Sequence[Row]) -> list[Found]:
    """The planes, each with the row of the copy that has measured it."""
    return [*_left(base, rows, "plane")]


def _left(base: Base, rows: Iterable[Row], name: str) -> Iterator[Found]:
    for row in rows:
        if row["role"] == COPY:
            found = json.loads((base.folder / row.node / "results.json").read_bytes())["found"]
            if found.get(name):
                yield row, found[name]


def points_of(planes: Iterable[Found]) -> list[dict[str, Any]]:
    """A line for each point of each grid, and for each network, which has a number from 0, where it is nearest to."""
    lines = []
    for row, plane in planes:
        where = {name: row[name] for name in ("arm", "density", "seed")}
        places = [(x, y, None) for y in plane["y"] for x in plane["x"]]
        places += [(x, y, copy) for copy, (x, y) in enumerate(plane["coordinates"])]
        values = {name: [*chain(*grid), *plane["networks"][name]] for name, grid in plane["grid"].items()}
        for i, (x, y, copy) in enumerate(places):
            lines.append({**where, "x": x, "y": y, "copy": copy, **{name: own[i] for name, own in values.items()}})
    return lines


def histograms_of(base: Base, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each bin of each network: the share of the diagonal's values, of all copies and seeds."""
    lines = []
    found: Mapping[str, Any] = {row.node: hessian for row, hessian in _left(base, rows, "hessian")}
    of_copies = groups((row for row in rows if row.node in found and row["role"] == COPY), "arm", "level")
    for (arm, _), own in of_copies.items():
        histograms = [found[row.node]["histogram"] for row in own]
        counts = np.sum([histogram["counts"] for histogram in histograms], axis=0)
        edges = histograms[0]["edges"]
        for low, high, share in zip(edges[:-1], edges[1:], counts / counts.sum(), strict=True):
            lines.append({"arm": arm, "density": own[0]["density"], "low": low, "high": high, "share": float(share)})
    return lines
