"""Accuracy over density: means and what matches, the sparsest match, the table and the figure."""

import csv
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
from matplotlib.colors import same_color
from PIL import Image

from accelerando.algorithms.figures import COLOURS, save_figure
from accelerando.recipes.run.files import write_csv
from accelerando.recipes.run.results import percent
from accelerando.recipes.studies import density
from accelerando.recipes.studies.density import UNKNOWN, Mean, sparsest_match, table
from accelerando.recipes.studies.density_figure import MARKS, draw, exits, heights, reach, styles
from accelerando.recipes.studies.plotting import DEVIATION
from accelerando.recipes.studies.table import Row

ACCURACY = "metrics/eval/MulticlassAccuracy"
MEANING = "sparsest match: the lowest density down to which all match"
LOSS = "metrics/eval/CrossEntropy"
VALIDATION = "metrics/eval/validation/MulticlassAccuracy"
EIGHTHS = (0.8, 0.64, 0.512)


def point(arm, seed, density, value, level=1, seconds=10.0, compression_ratio=1.0, speedup=1.0, **others):
    sizes = {"compression_ratio": compression_ratio, "speedup": speedup}
    tags = {"arm": arm, "seed": seed, "level": level, "density": density}
    metrics = {ACCURACY: value, LOSS: value, **sizes, **others}
    return Row(node=f"{arm}-{seed}", tags=tags, batches=100, samples=800, seconds=seconds, metrics=metrics)


def means(rows, lower=False, **options):
    return density.means(rows, LOSS if lower else ACCURACY, **options)


def dense(*values):
    return [point("dense", seed, 1.0, value, level=0) for seed, value in enumerate(values)]


def arm(name, *values, densities=EIGHTHS, seed=0):
    pairs = zip(densities, values, strict=False)
    return [point(name, seed, density, value, level) for level, (density, value) in enumerate(pairs, 1)]


def matches(points, **options):
    return [row.matches for row in means(points, **options) if row.arm != "dense"]


def test_means_by_hand():
    points = [
        point("ticket", 0, 0.25, 0.7, 2, seconds=9.0, compression_ratio=3.0, speedup=2.0),
        point("ticket", 1, 0.25, 0.9, 2, seconds=1.0, compression_ratio=5.0, speedup=3.0),
        point("ticket", 2, 0.25, 0.8, 2, seconds=4.0, compression_ratio=4.0, speedup=2.5),
    ]
    (row,) = means(points)
    assert row.value == pytest.approx(0.8) and row.deviation == pytest.approx(0.1)  # by n - 1
    assert (row.arm, row.level, row.density, row.seeds, row.low, row.high) == ("ticket", 2, 0.25, 3, 0.7, 0.9)
    assert (row.compression_ratio, row.speedup, row.seconds) == (4.0, 2.5, 4.0)
    assert row.matches is None and math.isnan(row.tolerance)
    (alone,) = means(points[:1])
    assert (alone.seeds, alone.value, alone.low, alone.high) == (1, 0.7, 0.7, 0.7) and math.isnan(alone.deviation)


def test_rows_are_in_the_order_of_the_points_arms_and_by_falling_density():
    points = [*arm("late", 0.1, 0.2, 0.3)[::-1], *dense(0.9), *arm("early", 0.4), *arm("late", 0.5, seed=1)]
    rows = means(points)
    assert [(row.arm, row.density, row.seeds) for row in rows] == [
        ("late", 0.8, 2),
        ("late", 0.64, 1),
        ("late", 0.512, 1),
        ("dense", 1.0, 1),
        ("early", 0.8, 1),
    ]
    assert rows[0].value == pytest.approx(0.3) and rows[-1].value == 0.4


def test_densities_that_differ_by_rounding_are_one_and_so_are_points_of_one_seed():
    points = [point("a", 0, 0.51196, 0.1), point("a", 1, 0.51204, 0.3), point("a", 1, 0.51204, 0.5)]
    (row,) = means(points)
    assert (row.seeds, row.value) == (2, pytest.approx(0.3)) and row.density == pytest.approx(0.512)
    assert len(means([*points, point("a", 0, 0.5135, 0.1)])) == 2
    texts = {1.0: "100 %", 0.8: "80 %", 0.8**3: "51.2 %", 0.8**12: "6.87 %", 0.001: "0.1 %", 0.0003162: "0.0316 %"}
    assert {density: percent(density) for density in texts} == texts


@pytest.mark.parametrize(
    "value, expected", [(0.978, True), (0.9779, False), (0.98, True), (1.0, True), (0.1, False), (math.nan, False)]
)
def test_matching_is_within_the_tolerance_or_better(value, expected):
    """0.98 - 0.978 is above 0.002 in floating point, as is 2.02 - 2.022 below it: the boundary belongs to the match."""
    assert matches([*dense(0.97, 0.98, 0.99), *arm("a", value)]) == [expected]
    assert matches([*dense(1.03, 1.02, 1.01), *arm("a", 2 - value)], lower=True) == [expected]


@pytest.mark.parametrize("lower", [False, True])
def test_a_mean_matches_not_its_seeds(lower):
    sign = -1 if lower else 1
    points = [*dense(0.0), *arm("a", sign * 0.5), *arm("a", sign * -0.502, seed=1)]
    assert matches(points, lower=lower) == [True]
    points += arm("a", sign * -0.01, seed=2)
    assert matches(points, lower=lower) == [False]
    assert matches(points, lower=lower, tolerance=0.0041) == [True]
    assert matches(points, lower=lower, tolerance=0) == [False]
    assert matches([*dense(0.5), *arm("a", 0.5)], lower=lower, tolerance=0) == [True]


def test_without_a_tolerance_one_standard_deviation_of_the_dense_network_is_within():
    network = dense(0.97, 0.98, 0.99)  # 0.01
    points = [*network, *arm("a", 0.97), *arm("b", 0.9698), *arm("c", 0.995), *arm("a", 0.97, seed=1)]
    assert matches(points, tolerance=None) == [True, False, True]
    assert matches(points, tolerance=None, lower=True) == [True, True, False]
    assert [row.tolerance for row in means(points, tolerance=None)[1:]] == pytest.approx([0.01] * 3)
    assert [row.tolerance for row in means(points)[1:]] == [0.002] * 3


@pytest.mark.parametrize(
    "network, tolerance",
    [(dense(0.9), None), ([], 0.002), (dense(math.nan), 0.002), (dense(math.inf, 0.9), 0.002), (dense(math.nan), None)],
    ids=["one seed, by its deviation", "no dense network", "it diverged", "it is infinite", "both"],
)
def test_what_cannot_be_told_is_none(network, tolerance):
    rows = means([*network, *arm("a", 0.9, math.nan)], tolerance=tolerance)
    assert all(row.matches is None and math.isnan(row.tolerance) for row in rows)
    assert sparsest_match(rows) == {"a": None}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_diverged_seed_makes_a_mean_that_does_not_match(value):
    for lower in (False, True):
        row = means([*dense(0.9), *arm("a", 0.9), *arm("a", value, seed=1)], lower=lower)[1]
        assert row.matches is False and not math.isfinite(row.value) and math.isnan(row.deviation)


def test_the_sparsest_match_is_before_the_first_gap():
    points = dense(0.9) + arm("gap", 0.9, 0.8, 0.9) + arm("all", 0.9, 0.95, 0.899) + arm("late", 0.8, 0.9, 0.9)
    points += arm("some", 0.9, 0.9, math.nan) + arm("sparse", 0.9, densities=[0.01])
    rows = means(points)
    found = sparsest_match(rows)
    assert list(found) == ["gap", "all", "late", "some", "sparse"]
    assert {name: row and row.density for name, row in found.items()} == {
        "gap": 0.8,
        "all": 0.512,
        "late": None,
        "some": 0.64,
        "sparse": 0.01,
    }
    backwards = sparsest_match(rows[::-1])  # NaN, of a single seed's deviation, is not equal to itself
    assert {name: row and row.density for name, row in backwards.items()} == {
        name: row and row.density for name, row in found.items()
    }
    assert sparsest_match(means(dense(0.9))) == {}


def studied():
    """Two seeds of two arms: one matches down to 64 %, one nowhere, and its second density is another one."""
    points = dense(0.981, 0.983)
    for seed, more in ((0, -0.001), (1, 0.001)):
        points += arm("ticket", 0.983 + more, 0.981 + 2 * more, 0.971 + more, seed=seed)
        points += arm("random", 0.9794 + more, 0.95 + more, densities=(0.8, 0.5), seed=seed)
    return points


def test_the_table_has_densities_as_rows():
    assert table(means(studied()), ACCURACY).splitlines() == [
        "accuracy, mean ± standard deviation over 2 seeds, by weights remaining",
        "dense network: 0.9820 ± .0014",
        "       weights            ticket          random",
        "          80 %  * 0.9830 ± .0014  0.9794 ± .0014",
        "          64 %  * 0.9810 ± .0028               -",
        "        51.2 %    0.9710 ± .0014               -",
        "          50 %                 -  0.9500 ± .0014",
        "sparsest match              64 %            none",
        "-: not trained at this density",
        f"* matches: mean within 0.002 of the dense network's, or better; {MEANING}",
    ]


def test_the_table_has_arms_as_rows_where_there_are_more_of_them():
    points = dense(0.2) + arm("snip", 0.2, math.nan) + arm("snip, shuffle", 0.1, 1.25) + arm("synflow", 0.3, 0.1)
    assert table(means(points, lower=True), LOSS).splitlines() == [
        "cross entropy of one seed, by weights remaining",
        "dense network: 0.2000",
        "arm                80 %      64 %  sparsest match",
        "snip           * 0.2000  diverged            80 %",
        "snip, shuffle  * 0.1000    1.2500            80 %",
        "synflow          0.3000  * 0.1000            none",
        f"* matches: mean within 0.002 of the dense network's, or better; {MEANING}",
    ]


def test_the_table_says_what_is_not_known_and_by_what_it_matches():
    assert table(means(arm("a", 0.5)), ACCURACY).splitlines()[1:] == [
        "dense network: none",
        "weights       a",
        "   80 %  0.5000",
        UNKNOWN,
    ]
    alone = table(means(dense(0.9) + arm("a", 0.9), tolerance=None), ACCURACY, by_deviation=True)
    assert alone.endswith(UNKNOWN) and "sparsest" not in alone and "*" not in alone
    network = dense(0.97, 0.98, 0.99)
    several = table(
        means(network + arm("a", 0.975) + arm("a", 0.975, seed=1), tolerance=None), ACCURACY, by_deviation=True
    )
    assert (
        several.startswith("accuracy, mean ± standard deviation over 2 to 3 seeds,") and "* 0.9750 ± .0000" in several
    )
    assert "* matches: mean within one standard deviation (0.0100) of the dense network's, or better" in several
    assert table(means(dense(0.97, 0.98)), ACCURACY).splitlines()[1] == "dense network: 0.9750 ± .0071"


def test_what_matches_may_be_chosen_by_another_metric():
    points = [point("dense", seed, 1.0, 0.9, level=0, **{VALIDATION: 0.8}) for seed in (0, 1)]
    for seed, more in ((0, 0.01), (1, -0.01)):
        points += [
            point("a", seed, 0.5, 0.5 + more, **{VALIDATION: 0.81}),
            point("b", seed, 0.5, 0.9 + more, **{VALIDATION: 0.7}),
        ]
    rows = means(points, chosen_by=VALIDATION, tolerance=0.02)
    assert [(row.value, row.matches) for row in rows] == [(0.9, None), (0.5, True), (0.9, False)]
    assert rows[1].deviation == pytest.approx(0.01 * math.sqrt(2)) and rows[1].tolerance == 0.02
    text = table(rows, ACCURACY, chosen_by=VALIDATION)
    assert "* 0.5000 ± .0141" in text and "within 0.02 of the dense network's, or better on validation data;" in text


def test_the_fields_are_the_columns_of_the_csv(tmp_path):
    rows = means(studied())
    write_csv(rows, tmp_path / "density.csv")
    with open(tmp_path / "density.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [field.name for field in fields(Mean)]
    assert read == [{k: "" if v is None else str(v) for k, v in asdict(row).items()} for row in rows]
    assert [row["matches"] for row in read] == ["", "True", "True", "False", "False", "False"]


def ticks(axes):
    low, high = sorted(axes.get_xlim())
    return [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks() if low <= tick <= high]


LADDER = [0.8**level for level in range(1, 16)]


@pytest.mark.parametrize(
    "densities, told",
    [
        ([0.8], "80"),
        ([0.3, 0.1, 0.05, 0.02], "30 10 5 2"),
        (LADDER, "80 51.2 32.8 21 13.4 8.59 5.5 3.52"),
        ([0.4, 1e-3, 1e-5], "40 0.1 0.001"),
        ([0.21, 0.2, 0.05], "21 5"),
    ],
)
def test_each_density_has_a_tick_on_a_falling_logarithmic_axis_and_a_number_where_there_is_room(densities, told):
    values = [0.5] * len(densities)
    axes = draw(means(arm("a", *values, densities=densities)), ACCURACY, "").axes[0]
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and 100 * min(densities) > right and 100 < left < 200
    assert ticks(axes) == told.split()
    places = sorted([*axes.get_xticks(), *axes.xaxis.get_minorticklocs()])
    assert places == pytest.approx(sorted(100 * density for density in densities), rel=0.005)


def plotted(axes, **wanted):
    """The lines with points, by their properties: each as a list of points."""
    lines = [line for line in axes.lines if all(getattr(line, f"get_{k}")() == v for k, v in wanted.items())]
    return [np.transpose(line.get_data()).tolist() for line in lines if len(line.get_xdata())]


def test_the_figure_shows_curves_bands_what_matches_and_the_dense_network():
    rows = means(studied())
    figure = draw(rows, ACCURACY, "a study")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "a study"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("weights remaining (%)", "evaluation accuracy")
    pruned = {name: [row for row in rows if row.arm == name] for name in ("ticket", "random")}
    curves = plotted(axes, linestyle="-")
    assert curves == [[[100 * row.density, row.value] for row in own] for own in pruned.values()]
    full = plotted(axes, linestyle="None", markerfacecolor=COLOURS[0])
    assert full == [[[100 * row.density, row.value] for row in pruned["ticket"] if row.matches]] and len(full[0]) == 2
    hollow = plotted(axes, linestyle="None", markerfacecolor="white")
    assert hollow == [[[100 * row.density, row.value] for row in own if not row.matches] for own in pruned.values()]
    assert plotted(axes, color=MARKS["dense network"]["color"]) == [[[0, rows[0].value], [1, rows[0].value]]]
    band, *bands = [axes.patches[0].get_extents(), *axes.collections]
    span = axes.transData.inverted().transform(band)[:, 1]
    assert span == pytest.approx([rows[0].value - rows[0].deviation, rows[0].value + rows[0].deviation])
    for shown, own, colour in zip(bands, pruned.values(), COLOURS, strict=False):
        corners = {(100 * row.density, row.value + sign * row.deviation) for row in own for sign in (-1, 1)}
        assert set(map(tuple, shown.get_paths()[0].vertices.tolist())) == corners
        assert same_color(shown.get_facecolor()[0][:3], colour)
    assert len(bands) == 2 and not axes.spines["top"].get_visible()


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_explains_what_there_is():
    rows = means(studied())
    there = ["ticket", "random", "dense network", "matches it", "does not match", DEVIATION]
    assert names(draw(rows, ACCURACY, "")) == there
    assert names(draw(means(arm("_x", 0.5, 0.6)), ACCURACY, "")) == ["_x"]  # of one seed, without a dense network
    gone = means(dense(0.9) + arm("a", 0.9, math.nan, 0.9) + arm("b", 0.1, 0.1, 0.1) + arm("c", 0.9, 0.9, 0.89))
    every = ["a", "b", "c", "dense network", "matches it", "does not match", "leaves the picture", "diverged"]
    figure = draw(gone, ACCURACY, "")
    assert names(figure) == every
    assert "dense network" not in names(draw(means(dense(math.nan) + arm("a", 0.9)), ACCURACY, ""))
    by_eight = at_initialization([f"arm {i}" for i in range(8)], [""])
    handles = draw(means(by_eight), ACCURACY, "").legends[0].legend_handles
    shown = {name: handles[i].get_marker() for i, name in enumerate(names(draw(means(by_eight), ACCURACY, "")))}
    assert shown["matches it"] == shown["arm 0"] == "o" and shown["does not match"] == shown["arm 1"] == "s"
    faces = [handle.get_markerfacecolor() for handle in figure.legends[0].legend_handles]
    assert faces[:3] == list(COLOURS[:3]) and faces[5] == "white" != faces[4]


def test_an_arm_of_one_point_is_a_marker_in_the_legend():
    handles = draw(means(arm("line", 0.9, 0.8) + arm("point", 0.9)), ACCURACY, "").legends[0].legend_handles
    assert [handle.get_linestyle() for handle in handles[:2]] == ["-", "None"]
    assert all(handle.get_marker() != "None" for handle in handles[:2])


def test_one_seed_has_no_bands_and_what_is_not_known_is_full():
    points = dense(0.9) + arm("a", 0.9, 0.89) + arm("b", 0.89, 0.1)
    axes = draw(means(points, tolerance=None), ACCURACY, "").axes[0]
    assert len(axes.collections) == len(axes.patches) == 0
    full = [plotted(axes, ls="None", mfc=colour) for colour in COLOURS[:2]]
    assert full == [[[[80.0, 0.9], [64.0, 0.89]]], [[[80.0, 0.89]], *plotted(axes, marker="v")]]
    assert plotted(axes, linestyle="None", markerfacecolor="white") == []


@pytest.mark.parametrize("metric, sign", [(ACCURACY, 1), (LOSS, -1)])
def test_better_is_above_and_a_collapsed_arm_is_seen_leaving(metric, sign):
    good = [0.98, 0.978, 0.97, 0.96]
    densities = [0.5, 0.2, 0.1, 0.05]
    points = dense(sign * 0.98) + arm("good", *(sign * v for v in good), densities=densities)
    points += arm("fair", *(sign * (v - 0.002) for v in good), densities=densities)
    points += arm("collapses", *(sign * v for v in (0.97, 0.9, 0.1, 0.1)), densities=densities)
    points += arm("collapsed", *(sign * v for v in (0.1, 0.1, 0.1, 0.97)), densities=densities)
    axes = draw(means(points, lower=sign < 0), metric, "").axes[0]
    bottom, top = (sign * limit for limit in axes.get_ylim())
    assert top > 0.98 and 0.95 < bottom < 0.96
    first, second = plotted(axes, marker=MARKS["leaves the picture"]["marker"])
    ((where, height),) = first
    assert 20 < where < 50 and height == 0 and second == [[50.0, 0.0]]
    colours = [line.get_color() for line in axes.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert colours == list(COLOURS[2:4])
    markers = [y for line in axes.lines if line.get_marker() in [*"osD^"] for y in line.get_ydata()]
    assert len(markers) == 10 and all(sign * y > bottom for y in markers)
    assert not any(line.get_clip_on() for line in axes.lines if line.get_marker() in [*"osD^v"])  # whole on the edge
    line = plotted(axes, color=COLOURS[2], linestyle="-")[0]  # which goes on beyond the edge
    assert line[2] == [10.0, sign * 0.1]


def test_where_a_curve_leaves():
    x = np.array([100.0, 10.0, 1.0, 0.1, 0.01, 0.001])
    assert exits(x[:2], np.array([1.0, 0.0]), 0.5) == pytest.approx([10**1.5])  # halfway, on a logarithmic axis
    assert exits(x[:2], np.array([1.0, 0.0]), 0.75) == pytest.approx([10**1.75])
    assert exits(x, np.array([0, 0, 1, 0, math.nan, 0.0]), 0.5) == pytest.approx([100, 10**-0.5, 0.001])
    assert exits(x, np.array([1, 0.5, 2, math.nan, 0.5, math.inf]), 0.5) == []


def test_diverged_runs_are_marked_at_the_edge():
    rows = means(dense(0.9) + arm("a", 0.9, math.nan, 0.88) + arm("b", math.inf, 0.9, -math.inf))
    axes = draw(rows, ACCURACY, "").axes[0]
    assert plotted(axes, marker="x") == [[[64.0, 0.0]], [[80.0, 0.0], [51.2, 0.0]]]
    assert all(math.isfinite(limit) for limit in axes.get_ylim())


def test_limits_by_hand():
    def rows(*values, **options):
        return means(dense(values[0]) + arm("a", *values[1:], densities=[0.5**i for i in range(1, 9)]), **options)

    # The median is 0.9, and so the reach 0.5: down to 0.5, and a margin of 0.08 times the range.
    assert heights(rows(1.0, 0.95, 0.9, 0.6, 0.1)) == pytest.approx((0.6 - 0.032, 1.032))
    assert heights(rows(-1.0, -0.95, -0.9, -0.6, -0.1, lower=True)) == pytest.approx((-1.0 - 0.072, -0.1 + 0.072))
    assert heights(rows(1.0, 1.05, 1.1, 1.4, 1.9, lower=True), -1) == pytest.approx((-1.4 - 0.032, -1 + 0.032))
    # Where half of all are the best, the tolerance tells what is near: 0.05.
    assert heights(rows(0.9, 0.9, 0.9, 0.86, 0.84)) == pytest.approx((0.86 - 0.0032, 0.9 + 0.0032))
    assert heights(rows(0.9, 0.9, 0.9, 0.86, 0.84, tolerance=0.003)) == pytest.approx((0.84 - 0.0048, 0.9 + 0.0048))
    assert heights(rows(0.9, 0.9, 0.9)) == pytest.approx((0.8, 1.0))
    # Deviations are shown whole, but no further down than values would be.
    spread = np.array([0.1, 0.01, math.nan, 1.0])
    assert reach(np.array([1.0, 0.95, 0.9, 0.1]), spread) == pytest.approx((0.9 - 0.016, 1.1 + 0.016))
    assert reach(np.array([1.0, 0.9]), np.array([0.0, 0.02])) == pytest.approx((0.88 - 0.0096, 1 + 0.0096))
    assert reach(np.array([1.0, 0.9]), np.array([0.0, 0.5])) == pytest.approx((0.75 - 0.052, 1.4 + 0.052))
    assert heights(rows(math.nan, math.inf)) == heights([]) == (-0.1, 0.1)


def test_variants_of_a_criterion_share_colour_and_marker_and_those_of_an_ablation_the_dashes():
    arms = ["snip", "snip, shuffle", "grasp, shuffle", "grasp", "grasp, reinitialize", "snip, reinitialize"]
    looks = styles(arms)
    assert list(looks) == arms
    family = {name: (look["color"], look["marker"]) for name, look in looks.items()}
    dashes = {name: look["ls"] for name, look in looks.items()}
    assert len({family[name] for name in arms if name.startswith("snip")}) == 1
    assert len({family[name] for name in arms if name.startswith("grasp")}) == 1
    assert family["snip"] != family["grasp"] and family["snip"][0] == COLOURS[0]
    assert dashes["snip"] == dashes["grasp"] == "-" != dashes["snip, shuffle"] == dashes["grasp, shuffle"]
    assert dashes["grasp, reinitialize"] == dashes["snip, reinitialize"]
    assert len({str(style) for style in dashes.values()}) == 3
    many = styles([str(i) for i in range(20)])
    assert len({(look["color"], look["marker"]) for look in many.values()}) == 20


def at_initialization(criteria, ablations):
    points = dense(0.93)
    for i, criterion in enumerate(criteria):
        for k, ablation in enumerate(ablations):
            points += arm(criterion + ablation, *(0.93 - 0.01 * i * j - 0.001 * k for j in range(3)))
    return points


def test_more_than_eight_arms_with_ablations_are_parted_into_panels():
    points = at_initialization(("snip", "grasp", "synflow"), ("", ", shuffle", ", reinitialize"))
    figure = draw(means(points + arm("random", 0.8, 0.7, 0.6)), ACCURACY, "ablations")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["without ablation", "snip", "grasp", "synflow"]
    assert len(figure.axes) == 6

    colours = [[line.get_color() for line in axes.lines if line.get_marker() == ""] for axes in shown]
    assert colours == [
        list(COLOURS[:4]),
        *([colour] * 3 for colour in COLOURS[:3]),
    ]
    assert all(axes.get_xlim() == shown[0].get_xlim() and axes.get_ylim() == shown[0].get_ylim() for axes in shown)
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown] == [False, True, True, True]
    assert all(plotted(axes, color=MARKS["dense network"]["color"]) for axes in shown)
    expected = ["snip", "grasp", "synflow", "random", "shuffle", "reinitialize"]
    assert names(figure)[: len(expected)] == expected
    handles = figure.legends[0].legend_handles
    assert [handle.get_color() for handle in handles[:4]] == list(COLOURS[:4])
    assert {handle.get_linestyle() for handle in handles[:4]} == {"-"}


def test_of_single_points_the_markers_tell_ablations_apart():
    criteria, ablations = ("snip", "grasp", "synflow"), ("", ", shuffle", ", reinitialize")
    points = [row for row in at_initialization(criteria, ablations) if row["level"] <= 1]
    figure = draw(means(points), ACCURACY, "")
    handles = dict(zip(names(figure), figure.legends[0].legend_handles, strict=True))
    looks = {name: (handles[name].get_marker(), handles[name].get_linestyle()) for name in [*handles][:5]}
    assert looks == dict.fromkeys(criteria, ("o", "None")) | {"shuffle": ("s", "None"), "reinitialize": ("D", "None")}
    snip = [line for line in figure.axes[1].lines if line.get_marker() in [*"osD"] and len(line.get_xdata())]
    assert {(line.get_marker(), line.get_color()) for line in snip} == {(marker, COLOURS[0]) for marker in "osD"}


def test_up_to_eight_arms_and_any_number_without_ablations_are_one_panel():
    eight = at_initialization(("snip", "grasp"), ("", ", shuffle", ", reinitialize", ", invert"))
    figure = draw(means(eight), ACCURACY, "")
    assert len(figure.axes) == 1 and names(figure)[1] == "snip, shuffle"
    twenty = draw(means(at_initialization([f"arm {i}" for i in range(20)], [""])), ACCURACY, "")
    assert [axes.get_title() for axes in twenty.axes] == [""] and names(twenty)[:20] == [f"arm {i}" for i in range(20)]
    assert twenty.get_figheight() > figure.get_figheight()


def test_there_is_no_panel_of_arms_without_ablation_where_all_have_one():
    points = at_initialization(("snip", "grasp", "synflow"), (", shuffle", ", reinitialize", ", invert"))
    figure = draw(means(points), ACCURACY, "")
    assert [axes.get_title() for axes in figure.axes] == ["snip", "grasp", "synflow"]
    # The whole line is that of the method itself.
    assert all(line.get_linestyle() != "-" for axes in figure.axes for line in axes.lines if line.get_marker() == "")


def where(pixels, colour):
    return (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)


def test_the_picture(tmp_path):
    pixels = save_figure(draw(means(studied()), ACCURACY, "a study"), tmp_path / "new" / "density.png")
    with Image.open(tmp_path / "new" / "density.png") as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert pixels.dtype == np.uint8 and pixels.shape == (675, 1200, 3)
    assert [where(pixels, colour).any() for colour in COLOURS[:3]] == [True, True, False]
    # The first level is to the left of the last one, and the better arm above.
    ticket, random = (np.argwhere(where(pixels[:, :850], colour)) for colour in COLOURS[:2])
    assert ticket[:, 0].min() < random[:, 0].min() and ticket[:, 0].max() < random[:, 0].max()


@pytest.mark.parametrize(
    "points",
    [
        dense(0.9),
        [],
        arm("a", 0.5),
        dense(0.9) + arm("a", 0.9, 0.9),
        dense(math.nan, 0.9) + arm("a", math.nan) + arm("a", 0.9, seed=1),
        dense(0.9, math.inf) + arm("a", math.inf) + arm("a", math.inf, seed=1),
        dense(0.9) + arm("a", 0.1, 0.1) + arm("b", 0.1, 0.1),
        dense(0.9, 0.91) + arm("a", 0.5, 0.4, densities=(8e-5, 6.4e-5)),
        at_initialization(("snip", "grasp", "synflow"), (", shuffle", ", reinitialize", ", invert")),
    ],
    ids=["dense only", "nothing", "one point", "equal", "NaN", "infinite", "collapsed", "very sparse", "no plain arm"],
)
@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
def test_the_figure_of_what_little_there_is(points, metric, tmp_path):
    assert save_figure(draw(means(points), metric, "little"), tmp_path / "density.png").std() > 0
    assert table(means(points), metric)
