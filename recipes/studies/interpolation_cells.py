"""What the study `interpolation` makes of curves along paths: numbers of their shape, and tables of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..run.results import aligned, label
from .paths import TREATMENTS, treatments_in
from .pruning import number
from .statistics import mean_and_deviation
from .table import Row, groups

RUN, PATH, ORIGIN = "run", "path", "origin"  # roles of rows
WHOLE = "training"
BEGIN = "0ba"
ALONE = " alone"  # ends the kind of a part that moves while all others are at their beginning
NOT_MEASURED = "not measured, or not finite"
SHAPES = {
    "fall": "start less end",
    "rise": "highest rise from a point to a later one",
    "above": "highest point less the start, at least 0",
    "high": "last point that is no lower than midway between the ends",
    "area": "mean height above the end, in falls",
}


def metrics_of_path(path: Mapping[str, Any]) -> dict[str, float]:
    """Of what a run has left of a path: its length, the `SHAPES` of each curve, and its values.

    Of errors they are in points. The names are ``rise/test/loss/interpolate``, by shape, data, metric and treatment of
    batch norm, and ``path/test/loss/interpolate/07`` for the value at a point.
    """
    found = {"distance": number(path["distance"])}
    for data, treatments in path["curves"].items():
        for how, curves in treatments.items():
            for metric, values in curves.items():
                curve = (100 if metric == "error" else 1) * np.array([number(value) for value in values])
                name = f"{data}/{metric}/{how}"
                found |= {f"{shape}/{name}": value for shape, value in shapes_of(curve).items()}
                found |= {f"path/{name}/{i:03}": float(f"{value:.6g}") for i, value in enumerate(curve)}
    return found


def shapes_of(curve: np.ndarray) -> dict[str, float]:
    """The `SHAPES` of values (points,); NaN where one of them is not finite, or where a place needs a fall."""
    from accelerando.algorithms.connectivity import largest_rise

    if not np.isfinite(curve).all():
        return dict.fromkeys(SHAPES, math.nan)
    start, end = float(curve[0]), float(curve[-1])
    falls = start > end
    midway = np.flatnonzero(curve >= (start + end) / 2)
    return {
        "fall": start - end,
        "rise": largest_rise(curve.tolist()),
        "above": float(curve.max()) - start,
        "high": float(midway[-1]) / (len(curve) - 1) if falls else math.nan,
        "area": float((curve - end).mean()) / (start - end) if falls else math.nan,
    }


def curve_of(row: Row, name: str) -> np.ndarray:
    """The values (points,) of ``test/loss/interpolate`` and the like; empty where the row has none."""
    return np.array([value for key, value in row.metrics.items() if key.startswith(f"path/{name}/")])


def paths(rows: Iterable[Row], kind: str, arm: str | None = None) -> list[Row]:
    """The rows of paths of one kind: of the whole training, or of layers, of blocks, or of named parts."""
    own = (row for row in rows if row["role"] == PATH and kind in row["kind"].split(", "))
    return [row for row in own if arm in (None, row["arm"])]


def treatments_of(rows: Iterable[Row]) -> list[str]:
    """Those of batch norm."""
    return treatments_in(name for row in rows for name in row.metrics if name.startswith("fall/"))


def with_treatment(rows: Iterable[Row], how: str) -> list[Row]:
    """Without the paths that were not measured so, as those of networks without batch norm."""
    return [row for row in rows if row["role"] != PATH or f"fall/test/loss/{how}" in row.metrics]


def alone(kinds: str) -> str:
    """The kinds of a part, such as "layer, block", as of one that moves while all others are at their beginning."""
    return ", ".join(f"{kind}{ALONE}" for kind in kinds.split(", "))


def parts_in(rows: Iterable[Row], moved: bool = False) -> list[tuple[str, str]]:
    """The parts of networks and their kinds, in their order; where others are at their end, or those `moved` alone."""
    own = ((row["part"], row["kind"]) for row in rows if row["role"] == PATH and row["kind"] != WHOLE)
    return [*dict.fromkeys((part, kind) for part, kind in own if kind.endswith(ALONE) == moved)]


def lines_of_paths(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each path of each arm: means and sample deviations over seeds."""
    lines = []
    own = [row for row in rows if row["role"] == PATH]
    names = [n for n in dict.fromkeys(name for row in own for name in row.metrics) if not n.startswith("path/")]
    for (arm, kind, part, start), seeds in groups(own, "arm", "kind", "part", "start").items():
        line: dict[str, Any] = {"arm": arm, "kind": kind, "part": part, "start": start, "k": seeds[0]["k"]}
        line["seeds"] = len(seeds)
        for name in names:
            values = [row.metrics.get(name, math.nan) for row in seeds]
            line[name], line[f"{name}, deviation"] = mean_and_deviation(values)
        lines.append(line)
    return lines


def sensitivity(rows: Sequence[Row], how: str, moved: bool = False) -> list[dict[str, Any]]:
    """A line for each part: by how many points the test error rises when this part alone is put back to its beginning.

    With `moved` by how many it falls when this part alone is moved to its end. For each arm the mean over seeds. `over
    settings` is the sample deviation of these means over arms, `over seeds` the mean of the deviations over seeds,
    which differ in their initial weights.
    """
    lines = []
    for part, kind in parts_in(rows, moved):
        own = [row for row in rows if row["role"] == PATH and (row["part"], row["kind"]) == (part, kind)]
        by_arm = {arm: [row[f"fall/test/error/{how}"] for row in seeds] for (arm,), seeds in groups(own, "arm").items()}
        told = {arm: mean_and_deviation(values) for arm, values in by_arm.items()}
        line: dict[str, Any] = {"part": part, "kind": kind}
        line |= {arm: mean for arm, (mean, _) in told.items()}
        line["over settings"] = mean_and_deviation([mean for mean, _ in told.values()])[1]
        line["over seeds"] = float(np.mean([deviation for _, deviation in told.values()]))
        lines.append(line)
    columns = dict.fromkeys(name for line in lines for name in line)
    return [{name: line.get(name, math.nan) for name in columns} for line in lines]


def short(part: str) -> str:
    """A part's name without that of the wrapper around the network."""
    return part.removeprefix("module.").removeprefix("model.")


def table(rows: Sequence[Row], metric: str) -> str:
    """The shapes of the paths from the beginning by arm, what later moments change, and the parts' sensitivity."""
    parts = []
    for how in treatments_of(rows):
        named = f", {TREATMENTS[how]}" if len(treatments_of(rows)) > 1 else ""
        own = with_treatment(rows, how)
        parts.append(f"from the beginning to the end, test loss{named}\n{_by_arm(own, metric, how)}")
        if any(row["k"] for row in own if row["role"] == PATH):
            title = f"from step k to the end: how far the test loss rises above its start{named}"
            parts.append(f"{title}\n{_by_step(own, how)}")
        for moved, what in ((False, "put back to its beginning: rise"), (True, "moved to its end: fall")):
            if not (lines := sensitivity(own, how, moved)):
                continue
            title = f"a part alone {what} of the test error, in points{named}"
            numbers = [name for name in lines[0] if name not in ("part", "kind")]
            told = [[short(line["part"]), line["kind"], *(_text(line[n], 2) for n in numbers)] for line in lines]
            parts.append(
                f"{title}\n{aligned([['part', 'kind', *numbers], *told], left=('part', 'kind'), blank=NOT_MEASURED)}"
            )
    seeds = len({row["seed"] for row in rows})
    over = f"means ± standard deviations over {seeds} seeds" if seeds > 1 else "one seed"
    words = "; ".join(f"{name}: {text}" for name, text in SHAPES.items())
    return "\n\n".join([*parts, f"{over}; places run from 0 to 1\n{words}"])


def _by_arm(rows: Sequence[Row], metric: str, how: str) -> str:
    lines = [["arm", label(metric), "start", "end", *SHAPES, "train rise", "distance"]]
    for (arm,), own in groups(paths(rows, WHOLE), "arm").items():
        first = [row for row in own if row["start"] == BEGIN]
        curves = [curve_of(row, f"test/loss/{how}") for row in first]
        ends = [row.metrics.get(metric, math.nan) for row in rows if row["role"] == RUN and row["arm"] == arm]
        values = [[curve[place] for curve in curves] for place in (0, -1)]
        values += [[row[f"{shape}/test/loss/{how}"] for row in first] for shape in SHAPES]
        values += [[row[f"rise/train/loss/{how}"] for row in first], [row["distance"] for row in first]]
        lines.append([arm, _mean(ends, 4), *(_mean(each, 2) for each in values)])
    return aligned(lines, left=("arm",), blank=NOT_MEASURED)


def _by_step(rows: Sequence[Row], how: str) -> str:
    later = [row for row in paths(rows, WHOLE) if row["start"] != BEGIN]
    steps = list(dict.fromkeys(row["start"] for row in later))
    lines = [["arm", *steps]]
    for (arm,), own in groups(later, "arm").items():
        by_step = {step: [row[f"above/test/loss/{how}"] for row in own if row["start"] == step] for step in steps}
        lines.append([arm, *(_mean(values, 2) for values in by_step.values())])
    return aligned(lines, left=("arm",), blank=NOT_MEASURED)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return _text(mean, digits) + (f" ± {deviation:.{digits}f}" if math.isfinite(deviation) else "")


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""
