"""The figure of `bert_tickets`: each task's metric over sparsity, and how each mask does on each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from accelerando.algorithms.figures import COLOURS, house_look

from ..run.results import label, percent
from .bert_tickets_cells import FROM, LATER, ONE_SHOT, RANDOM, SCRATCH, TICKETS, Task
from .density import DENSE, Mean, by_arm, dense_of
from .plotting import deviation_entry

LOOKS: dict[str, dict[str, Any]] = {
    TICKETS: {"color": COLOURS[0], "marker": "o"},
    LATER: {"color": COLOURS[2], "marker": "s", "ls": (0, (4, 1.5))},
    ONE_SHOT: {"color": COLOURS[4], "marker": "D", "ls": ""},
    RANDOM: {"color": COLOURS[1], "marker": "^", "ls": ""},
    SCRATCH: {"color": "0.3", "lw": 1.2, "ls": (0, (1, 1.2))},
    DENSE: {"color": "0.3", "lw": 1.2, "ls": (0, (6, 3))},
}
NAMES = {LATER: "rewound later", ONE_SHOT: "one-shot, of theta_0", SCRATCH: "dense, from random weights"}
COLUMNS = 3


def draw(means: Mapping[Task, Sequence[Mean]], matrix: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A panel for each task, with a band of one standard deviation about its dense networks, and the matrix below.

    What matches is filled. In the matrix colours are differences to the dense network, in points.
    """
    rows = -(-len(means) // COLUMNS)
    targets, sources = ([*dict.fromkeys(line[name] for line in matrix)] for name in ("target", "source"))
    tall = 0.9 + 0.36 * len(sources) if matrix else 0.0
    figure = Figure(figsize=(11, 2.6 * rows + tall + 0.8), dpi=150, layout="constrained")
    figure.suptitle(title)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.6 * rows, tall)) if matrix else [figure]
    above, *below = parts
    grid = above.subplots(rows, min(COLUMNS, len(means)), squeeze=False)
    shown: dict[str, Any] = {}
    for axes, (task, found) in zip(grid.flat, means.items(), strict=False):
        shown |= _draw_task(axes, task, found)
    for axes in [*grid.flat][len(means) :]:
        axes.set_visible(False)
    above.supxlabel("sparsity of the pruned matrices (%)", fontsize="medium")
    order = [arm for arm in LOOKS if arm in shown]
    looks: list[Any] = [{"ls": "-", "ms": 5, **LOOKS[arm]} for arm in order]
    legend = {NAMES.get(arm, arm): Line2D([], [], **look) for arm, look in zip(order, looks, strict=True)}
    legend |= deviation_entry(figure)
    above.legend([*legend.values()], [*legend], loc="outside right upper", frameon=False)
    if below:
        _draw_matrix(below[0].subplots(), matrix, sources, targets)
    return figure


def _draw_task(axes: Axes, task: Task, found: Sequence[Mean]) -> dict[str, Any]:
    arms, dense = by_arm(found), dense_of(found)
    drawn = dict[str, Any]()
    for arm, own in arms.items():
        if arm.startswith(FROM):
            continue
        drawn[arm] = True
        look = {"lw": 1.4, **LOOKS[arm]}
        if arm == SCRATCH:
            axes.axhline(own[0].value, **look)
            continue
        x, y, deviation = np.array([(100 * (1 - mean.density), mean.value, mean.deviation) for mean in own]).T
        axes.errorbar(x, y, yerr=np.nan_to_num(deviation), elinewidth=0.7, **{**look, "marker": ""})
        for mean, place in zip(own, x, strict=True):
            face = look["color"] if mean.matches else "white"
            axes.plot(place, mean.value, **{**look, "ls": "", "ms": 4.5, "mfc": face}, clip_on=False, zorder=3)
    if dense and math.isfinite(dense.value):
        drawn[DENSE] = True
        axes.axhline(dense.value, **LOOKS[DENSE])
        if math.isfinite(dense.deviation):
            axes.axhspan(dense.value - dense.deviation, dense.value + dense.deviation, color="0.3", alpha=0.12, lw=0)
    axes.set_title(task.name, fontsize="medium")
    axes.set_ylabel(label(task.metric), fontsize="small")
    axes.set_xticks(range(0, 100, 10))
    house_look(axes)
    return drawn


def _draw_matrix(
    axes: Axes, matrix: Sequence[Mapping[str, Any]], sources: Sequence[str], targets: Sequence[str]
) -> None:
    cells = {(line["source"], line["target"]): line for line in matrix}
    points = np.array([[100 * cells.get((s, t), {}).get("over_dense", math.nan) for t in targets] for s in sources])
    reach = np.nanmax(np.abs(points)) if np.isfinite(points).any() else 1.0
    image = axes.imshow(points, cmap="RdBu", vmin=-reach or -1.0, vmax=reach or 1.0, aspect="auto")
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            if line := cells.get((source, target)):
                deep = abs(points[row, column]) > 0.6 * reach
                text = f"{line['value']:.3f}{'*' if line['matches'] else ''}"
                axes.text(column, row, text, ha="center", va="center", fontsize="small", color="w" if deep else "k")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(sources)), sources)
    axes.set_xlabel("trained on")
    axes.set_ylabel("masks of")
    density = next((line["density"] for line in matrix if line["source"] != DENSE), 1.0)
    axes.set_title(f"at {percent(density)} of the weights; * matches the dense network", fontsize="medium")
    axes.figure.colorbar(image, ax=axes, label="points over the dense network")
