"""The figure of accuracy over density: which pruned networks match the dense one, and where they leave the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from accelerando.algorithms.connectivity.curves import lower_is_better
from accelerando.algorithms.figures import COLOURS, house_look

from ..run.results import label
from .density import Mean, by_arm, dense_of
from .plotting import HANDLERS, MARKERS, deviation_entry, draw_deviation, side_by_side, ticks_at

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (6, 1.2, 1, 1.2, 1, 1.2)))
LEAVES = "leaves the picture"
MARKS: dict[str, dict[str, Any]] = {  # what the legend explains besides the arms, where it is there
    "dense network": {"color": "0.3", "lw": 1.2, "ls": (0, (6, 3))},
    "matches it": {"color": "0.3", "ls": "", "marker": "o", "ms": 5},
    "does not match": {"color": "0.3", "ls": "", "marker": "o", "ms": 5, "mfc": "white"},
    LEAVES: {"color": "0.3", "ls": "", "marker": "v", "ms": 7},
    "diverged": {"color": "0.3", "ls": "", "marker": "x", "ms": 7, "mew": 2},
}

WHOLE: dict[str, Any] = {"clip_on": False, "in_layout": False}  # for markers on the edge
FACES = {"matches it": None, "does not match": "white"}  # of the arms' own marks


def draw(means: Sequence[Mean], metric: str, title: str) -> Figure:
    """Each arm's values over density, and the dense network.

    Arms are named "criterion" or "criterion, ablation": those of one criterion share colour and marker, those of one
    ablation the dashes, or, where all are single points, the marker. More than eight are parted: one panel has those
    without ablation, and each criterion its own.
    """
    arms, dense, sign = by_arm(means), dense_of(means), -1 if lower_is_better(metric) else 1
    lines = any(len(rows) > 1 for rows in arms.values())
    looks, panels, (bottom, top) = styles(arms, lines), _panels(list(arms)), heights(means, sign)
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    size = (2 + 2.7 * columns, 0.9 + 2.4 * rows) if len(panels) > 1 else (8, max(4.5, 0.22 * (len(arms) + 6)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    grid[0, 0].set_ylim(sign * bottom, sign * top)  # better is above
    figure.supxlabel("weights remaining (%)", fontsize="medium")
    figure.supylabel(f"evaluation {label(metric)}", fontsize="medium")
    marks: set[str] = set()
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < len(panels))
        over_density(axes, (row.density for row in means))
        axes.xaxis.set_tick_params(labelbottom=i + columns >= len(panels))
    for axes, (name, shown) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(name, fontsize="medium")
        for arm in shown:
            marks |= _draw_arm(axes, arms[arm], looks[arm], bottom, sign)
        if dense and math.isfinite(dense.value):
            marks.add("dense network")
            axes.axhline(dense.value, zorder=2, **MARKS["dense network"])
            if math.isfinite(std := dense.deviation):
                axes.axhspan(dense.value - std, dense.value + std, color="0.3", alpha=0.12, lw=0)
    legend: dict[str, Any] = {name: Line2D([], [], **look) for name, look in legend_lines(looks, len(panels))}
    for arm in legend.keys() & arms.keys():
        if len(arms[arm]) == 1 == len(panels):
            legend[arm].set_linestyle("")
    legend |= {name: Line2D([], [], **MARKS[name]) for name in MARKS if name in marks}
    for name, face in FACES.items():
        shown = [looks[arm] for arm, rows in arms.items() if any(row.matches is (face is None) for row in rows)]
        if name in marks:
            legend[name] = side_by_side(shown, color="0.3", **({} if face is None else {"mfc": face}))
    legend |= deviation_entry(figure)
    options: Any = {"frameon": False, "handlelength": 3, "handler_map": HANDLERS}
    figure.legend([*legend.values()], [*legend], loc="outside right upper", **options)
    return figure


def _draw_arm(axes: Axes, rows: Sequence[Mean], look: Any, bottom: float, sign: int) -> set[str]:
    """Returns which of `MARKS` there are; the picture ends where `sign` times the value is `bottom`."""
    x, y, deviation = np.array([(100 * row.density, row.value, row.deviation) for row in rows]).T
    axes.plot(x, y, zorder=3, **look | {"marker": ""})
    draw_deviation(axes, x, y, deviation, look["color"])
    inside, hollow = sign * y >= bottom, np.array([row.matches is False for row in rows])
    for chosen, face in ((inside & hollow, "white"), (inside & ~hollow, look["color"])):
        axes.plot(x[chosen], y[chosen], zorder=4, mfc=face, **look | WHOLE | {"ls": ""})
    places = {LEAVES: exits(x, sign * y, bottom), "diverged": x[~np.isfinite(y)]}
    for name, where in places.items():
        mark_edge(axes, name, where, look["color"])
    known = {"matches it": [row.matches for row in rows], "does not match": [row.matches is False for row in rows]}
    return {name for name, there in (known | places).items() if np.any(there)}


def mark_edge(axes: Axes, name: str, where: ArrayLike, colour: Any) -> None:
    """One of `MARKS` at the lower edge, at these places."""
    where, style = np.asarray(where), MARKS[name] | {"color": colour, "transform": axes.get_xaxis_transform()}
    axes.plot(where, np.zeros(len(where)), zorder=5, **style | WHOLE)


def exits(x: np.ndarray, y: np.ndarray, edge: float) -> list[float]:
    """Where a curve (points,) over a logarithmic axis falls below `edge`, or begins, after a gap as well, below it."""
    places = []
    for i in np.flatnonzero(np.isfinite(y) & (y < edge)):
        if i == 0 or not math.isfinite(y[i - 1]):
            places.append(float(x[i]))
        elif y[i - 1] >= edge:
            share = (y[i - 1] - edge) / (y[i - 1] - y[i])
            places.append(float(x[i - 1] * (x[i] / x[i - 1]) ** share))
    return places


def styles(arms: Iterable[str], lines: bool = True) -> dict[str, dict[str, Any]]:
    """Each arm's colour, marker and dashes, for its line; without `lines` markers tell ablations apart."""
    parts = {arm: _parts(arm) for arm in arms}
    criteria, ablations = ([*dict.fromkeys(names)] for names in zip(("", ""), *parts.values(), strict=True))
    looks = {}
    for arm, (criterion, ablation) in parts.items():
        i, dashes = criteria.index(criterion) - 1, DASHES[ablations.index(ablation) % len(DASHES)]
        place = i + i // 8 if lines or not any(ablations[1:]) else ablations.index(ablation)
        colour, marker = (*COLOURS, "#999999")[i % 8], MARKERS[place % 8]
        looks[arm] = {"color": colour, "marker": marker, "ls": dashes if lines else "", "lw": 1.6, "ms": 5}
    return looks


def _parts(arm: str) -> tuple[str, str]:
    criterion, _, ablation = arm.partition(", ")
    return criterion, ablation


def _panels(arms: Sequence[str]) -> dict[str, list[str]]:
    """The arms of each panel, by its title."""
    plain = [arm for arm in arms if not _parts(arm)[1]]
    if len(arms) <= 8 or len(plain) == len(arms):
        return {"": list(arms)}
    panels = {"without ablation": plain} | {_parts(arm)[0]: [] for arm in arms}
    for arm in arms:
        panels[_parts(arm)[0]].append(arm)
    return {name: shown for name, shown in panels.items() if shown not in ([], [name])}


def legend_lines(looks: dict[str, dict[str, Any]], panels: int) -> list[tuple[str, dict[str, Any]]]:
    """The arms; of several panels the criteria, and then the ablations."""
    if panels == 1:
        return list(looks.items())
    lines = any(look["ls"] for look in looks.values())
    of_criterion, of_ablation = ({"ls": "-"}, {"marker": ""}) if lines else ({"marker": MARKERS[0]}, {})
    criteria = {_parts(arm)[0]: look | of_criterion for arm, look in looks.items()}
    ablations = {a: look | {"color": "0.3", **of_ablation} for arm, look in looks.items() if (a := _parts(arm)[1])}
    return [*criteria.items(), *ablations.items()]


def over_density(axes: Axes, densities: Iterable[float]) -> None:
    """A logarithmic axis from 100 % to the least density or 80 %, a tick at each, and the rest of the house's look."""
    told = {float(f"{100 * density:.3g}") for density in densities}  # seeds may differ a little
    sparsest = min(*told, 80.0) / 100 if told else 0.8
    left, right = 100 * sparsest**-0.05, 100 * sparsest**1.05
    axes.set(xscale="log", xlim=(left, right))
    ticks_at(axes.xaxis, told or {100.0}, (left, right))
    house_look(axes)


def heights(means: Sequence[Mean], sign: int = 1) -> tuple[float, float]:
    """From where to where `sign` times the values is shown; what collapsed leaves, so as not to flatten all the rest.

    That is what lies below the best by more than five times the range of the upper half, and than 25 tolerances.
    """
    least = 25 * max((row.tolerance for row in means if row.tolerance > 0), default=0.0)
    values, deviations = np.reshape([(row.value, row.deviation) for row in means], (-1, 2)).T
    return reach(sign * values, deviations, least)


def reach(values: np.ndarray, deviations: np.ndarray, least: float = 0.0) -> tuple[float, float]:
    """From where to where values (n,) are shown, which is down to `least` below the best at least; see `heights`.

    Deviations (n,), where they are not NaN, are shown whole, but no further down than that.
    """
    finite = np.isfinite(values)
    values, deviations = (values[finite], np.nan_to_num(deviations[finite])) if finite.any() else np.zeros((2, 1))
    top = values.max()
    below = max(5 * (top - np.median(values)), least) or np.ptp(values)
    shown = values >= top - below
    bottom = min(values[shown].min(), (values - deviations)[shown].min().clip(top - below))
    top = (values + deviations)[shown].max()
    margin = 0.08 * (top - bottom) or 0.1
    return float(bottom - margin), float(top + margin)
