"""The figure of `interpolation`: loss and error along lines, from the beginning and from later steps, and by parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..run.figures import COLOURS, house_look
from ..run.results import label
from .interpolation_cells import BEGIN, RUN, WHOLE, curve_of, paths, sensitivity, short, treatments_of, with_treatment
from .paths import TREATMENTS
from .plotting import round_ticks
from .table import Row, groups

UNITS = {"loss": "test loss", "error": "test error (points)"}
DASHES = ("-", "--", ":", "-.")


def draw(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """Means over seeds. The panels of later steps and of parts are those of the first arm that has them."""
    treatments = treatments_of(rows)
    looks = _looks(rows)
    later = [row for row in paths(rows, WHOLE) if row["start"] != BEGIN]
    parts = paths(rows, "block") or paths(rows, "layer") or paths(rows, "named")
    panels = [(_from_beginning, metric_, how) for metric_ in UNITS for how in treatments]
    panels += [(_from_steps, metric_, treatments[0]) for metric_ in UNITS if later]
    panels += [(_by_part, metric_, treatments[0]) for metric_ in UNITS if parts]
    panels += [(_sensitivity, "", treatments[0])] if parts else []
    panels += [(_against_the_end, metric, treatments[0])]
    columns = 4 if len(panels) > 6 else 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 3.4 * columns, 0.8 + 3.1 * lines), dpi=150, layout="constrained")
    figure.suptitle(title)
    grid = [*figure.subplots(lines, columns, squeeze=False).flat]
    for axes, (paint, name, how) in zip(grid, panels, strict=False):
        paint(axes, with_treatment(rows, how), name, how, looks)
        if len(treatments) > 1 and paint is not _against_the_end:
            axes.set_title(f"{axes.get_title()}, {TREATMENTS[how]}")
        axes.title.set_fontsize("small")
        axes.xaxis.label.set_fontsize("small")
        axes.yaxis.label.set_fontsize("small")
        house_look(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    return figure


def _looks(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Of each arm: its colour, and its dashes where there are more arms than colours."""
    arms = dict.fromkeys(row["arm"] for row in rows if row["role"] == RUN)
    return {
        arm: {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)]}
        for i, arm in enumerate(arms)
    }


def _mean_curve(rows: Iterable[Row], name: str) -> np.ndarray:
    return np.mean([curve for row in rows if len(curve := curve_of(row, name))], axis=0)


def _plot(axes: Axes, curve: np.ndarray, **look: Any) -> None:
    axes.plot(np.linspace(0, 1, len(curve)), curve, lw=1.4, **look)


def _scaled(axes: Axes, metric: str) -> None:
    """Losses along a path may be huge: their axis is logarithmic."""
    axes.set(ylabel=UNITS[metric], yscale="log" if metric == "loss" else "linear")
    if metric == "loss":
        round_ticks(axes.yaxis, axes.get_ylim())


def _from_beginning(axes: Axes, rows: Sequence[Row], metric: str, how: str, looks: Mapping[str, Any]) -> None:
    for (arm,), own in groups(paths(rows, WHOLE), "arm").items():
        curve = _mean_curve([row for row in own if row["start"] == BEGIN], f"test/{metric}/{how}")
        _plot(axes, curve, label=arm, **looks[arm])
    _scaled(axes, metric)
    axes.set(title="beginning to end", xlabel="place on the path")


def _from_steps(axes: Axes, rows: Sequence[Row], metric: str, how: str, looks: Mapping[str, Any]) -> None:
    arm = next(row["arm"] for row in paths(rows, WHOLE) if row["start"] != BEGIN)
    steps = groups(paths(rows, WHOLE, arm), "start")
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(steps)))
    for ((step,), own), shade in zip(steps.items(), shades, strict=True):
        _plot(axes, _mean_curve(own, f"test/{metric}/{how}"), color=shade, label=step)
    _scaled(axes, metric)
    axes.set(title=f"{arm}: step k to end", xlabel="place on the path")
    axes.legend(title="k", frameon=False, fontsize="x-small", title_fontsize="x-small")


def _by_part(axes: Axes, rows: Sequence[Row], metric: str, how: str, looks: Mapping[str, Any]) -> None:
    kind = next(kind for kind in ("block", "layer", "named") if paths(rows, kind))
    arm = paths(rows, kind)[0]["arm"]
    parts = groups(paths(rows, kind, arm), "part")
    shades = matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(parts)))
    for ((part,), own), shade in zip(parts.items(), shades, strict=True):
        _plot(axes, _mean_curve(own, f"test/{metric}/{how}"), color=shade, label=short(part))
    _scaled(axes, metric)
    axes.set(title=f"{arm}: one {kind.replace('named', 'part')} alone", xlabel="place on its path")
    axes.legend(frameon=False, fontsize="x-small")


def _sensitivity(axes: Axes, rows: Sequence[Row], _: str, how: str, looks: Mapping[str, Any]) -> None:
    lines = sensitivity(rows, how)
    lines = [line for line in lines if "layer" in line["kind"]] or lines
    arms = [arm for arm in looks if arm in lines[0]]
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        places = np.arange(len(lines)) + (i - (len(arms) - 1) / 2) * width
        axes.bar(places, [line[arm] for line in lines], width, color=looks[arm]["color"])
    axes.set_xticks(np.arange(len(lines)), [short(line["part"]) for line in lines], rotation=60, ha="right")
    axes.tick_params(axis="x", labelsize="x-small")
    axes.set(title="one part put back", ylabel="rise of test error (points)")


def _against_the_end(axes: Axes, rows: Sequence[Row], metric: str, how: str, looks: Mapping[str, Any]) -> None:
    ends = {row.node: row.metrics[metric] for row in rows if row["role"] == RUN}
    for row in paths(rows, WHOLE):
        if row["start"] == BEGIN and row.node in ends:
            axes.plot(row[f"area/test/loss/{how}"], ends[row.node], "o", ms=4, color=looks[row["arm"]]["color"])
    axes.set(title="shape and end, each seed", xlabel="mean height of the path, in falls", ylabel=label(metric))
    axes.set_xscale("log")
    round_ticks(axes.xaxis, axes.get_xlim())
