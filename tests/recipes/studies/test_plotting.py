"""What the figures of several studies share: ticks, deviations and their place in the legend."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from accelerando.recipes.studies.plotting import (
    DEVIATION,
    deviation_entry,
    draw_deviation,
    limits,
    round_ticks,
    ticks_at,
)

NAN = math.nan


@pytest.mark.parametrize("span", [(0.5, 16), (1.1, 9.9), (2.1, 42), (1.4, 2.9), (0.02, 0.19), (3, 1000), (1.2, 1.3)])
def test_a_logarithmic_axis_has_round_ticks_enough(span):
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=span)
    round_ticks(axes.xaxis, span)
    inside = [tick for tick in axes.get_xticks() if span[0] <= tick <= span[1]]
    assert 4 <= len(inside) <= 9 and all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in inside)


@pytest.mark.parametrize("columns", [1, 3])
def test_the_numbers_of_twenty_densities_do_not_touch(columns):
    figure = Figure(figsize=(2 + 2.7 * columns, 3.3), dpi=150, layout="constrained")
    grid = np.atleast_1d(figure.subplots(1, columns))
    span = (130, 0.9)
    for axes in grid:
        axes.set(xscale="log", xlim=span)
        ticks_at(axes.xaxis, [100 * 0.8**level for level in range(21)], span)
    figure.supylabel("evaluation accuracy")
    FigureCanvasAgg(figure).draw()
    for axes in grid:
        boxes = sorted((text.get_window_extent() for text in axes.get_xticklabels()), key=lambda box: box.x0)
        assert len(boxes) >= 3 and all(right.x0 - left.x1 > 4 for left, right in itertools.pairwise(boxes))


def bars_of(axes):
    found = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    return [segment.tolist() for one in found for lines in one.lines[2] for segment in lines.get_segments()]


@pytest.mark.parametrize(
    ("y", "deviation", "band", "bars"),
    [
        ([0.5, 0.6, 0.7], [0.1, 0.2, 0.1], True, []),
        ([0.5], [0.1], False, [[[1, 0.4], [1, 0.6]]]),
        ([0.5, NAN, 0.75], [0.25, NAN, 0.25], False, [[[1, 0.25], [1, 0.75]], [[3, 0.5], [3, 1.0]]]),
        ([0.5, 0.6, NAN, 0.75], [0.1, 0.1, NAN, 0.25], True, [[[4, 0.5], [4, 1.0]]]),
        ([0.5, 0.6], [NAN, NAN], False, []),
        ([], [], False, []),
    ],
    ids=["a band", "one point", "points alone", "both", "one seed", "nothing"],
)
def test_deviations_are_bands_or_bars_and_the_legend_explains_them(y, deviation, band, bars):
    figure = Figure()
    axes = figure.subplots()
    draw_deviation(axes, range(1, len(y) + 1), np.array(y), np.array(deviation), "#0072B2")
    assert np.allclose(bars_of(axes), bars)
    entry = deviation_entry(figure)
    assert [*entry] == ([DEVIATION] if band or bars else [])
    assert band == any(isinstance(mark, Patch) for mark in entry.values())


def test_bars_without_a_length_are_not_explained():
    axes = (figure := Figure()).subplots()
    axes.errorbar([1, 2], [3, 4], [0, 0])
    assert deviation_entry(figure) == {}


def test_limits_hold_the_deviations_of_what_is_shown():
    times, values = np.array([1.0, 2, 3, 4]), np.array([0.1, 0.90, 0.92, NAN])
    (left, _), (bottom, top) = limits(times, values, np.array([0.1, 0.05, NAN, NAN]))
    assert 1 < left < 2 and 0.84 < bottom < 0.85 and 0.95 < top < 0.96
