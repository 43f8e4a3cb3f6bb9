"""The figure of `scaling_law`: for each family predicted over measured errors, errors over density, and over m*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..run.figures import house_look
from .density_figure import over_density
from .plotting import MARKERS, round_ticks
from .scaling_law_cells import Family


def draw(families: Sequence[Family], title: str) -> Figure | None:
    """Points are means over seeds, filled where the law was fitted on them; lines are the law's."""
    if not families:
        return None
    figure = Figure(figsize=(13.5, 0.6 + 3.8 * len(families)), dpi=150, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(families), 3, squeeze=False)
    for (predicted, densities, invariants), family in zip(grid, families, strict=True):
        looks = _looks(family)
        _predicted(predicted, family, looks)
        _over_density(densities, family, looks)
        _over_invariant(invariants, family, looks)
        for axes in (predicted, densities, invariants):
            house_look(axes)
        predicted.set_title(family.name if len(families) > 1 else "", fontsize="medium")
        names = [*family.networks]
        columns = -(-len(names) // 16)
        options: Any = {"frameon": False, "fontsize": "x-small", "ncols": columns}
        invariants.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **options)
    return figure


def _looks(family: Family) -> Mapping[str, dict[str, Any]]:
    """From the smallest network to the largest in colour; those that are predicted are hollow."""
    order = sorted(family.networks, key=lambda name: family.networks[name].weights)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(order)))
    looks = {}
    for i, (name, colour) in enumerate(zip(order, colours, strict=True)):
        is_fitted = name in family.fitted_on
        face = colour if is_fitted else "white"
        looks[name] = {"color": colour, "mfc": face, "marker": MARKERS[i % 8], "ms": 4, "ls": ""}
    return looks


def _percent(axis: Any, values: np.ndarray) -> tuple[float, float]:
    span = 100 * values.min() * 0.8, 100 * values.max() * 1.25
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": span})
    round_ticks(axis, span)
    return span


def _predicted(axes: Axes, family: Family, looks: Mapping[str, dict[str, Any]]) -> None:
    measured = family.measured
    predicted = family.law.law.error(*measured.arguments) if family.law else measured.error
    both = np.concatenate([measured.error, predicted])
    span = np.array(_percent(axes.xaxis, both))
    _percent(axes.yaxis, both)
    axes.plot(span, span, color="0.3", lw=1)
    for name, look in looks.items():
        own = measured.configuration == name
        if family.law:
            axes.plot(100 * measured.error[own], 100 * predicted[own], **look)
    axes.set(xlabel="measured error (%)", ylabel="predicted error (%); hollow: not fitted on")


def _over_density(axes: Axes, family: Family, looks: Mapping[str, dict[str, Any]]) -> None:
    measured = family.measured
    sparsest = float(measured.density.min())
    for name, look in looks.items():
        own, network = measured.configuration == name, family.networks[name]
        axes.plot(100 * measured.density[own], 100 * measured.error[own], **look)
        if family.law:
            d = np.geomspace(sparsest, 1, 100)
            curve = family.law.law.error(network.dense_error, d, network.depth, network.width)
            axes.plot(100 * d, 100 * curve, color=look["color"], lw=0.9)
    over_density(axes, measured.density)
    _percent(axes.yaxis, np.concatenate([measured.error, measured.dense_error]))
    axes.set(xlabel="weights remaining (%)", ylabel="error (%)")


def _over_invariant(axes: Axes, family: Family, looks: Mapping[str, dict[str, Any]]) -> None:
    """Densest on the left, as in the panel beside it; p' stands at 1."""
    measured = family.measured
    law = family.law.law if family.law else None
    m = law.invariant(*measured.arguments[1:]) / law.p if law else measured.density
    for name, look in looks.items():
        own = measured.configuration == name
        axes.plot(m[own], 100 * measured.error[own], label=name, **look | {"ls": "-", "lw": 0.5})
    axes.set(xscale="log", xlabel="m* / p'" if law else "density", ylabel="error (%)")
    axes.invert_xaxis()
    _percent(axes.yaxis, measured.error)
