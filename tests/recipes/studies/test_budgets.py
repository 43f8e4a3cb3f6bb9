"""Accuracy over training time: from records to points, statistics, tables and the figure."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import same_color
from PIL import Image

from accelerando.algorithms.figures import COLOURS, save_figure
from accelerando.recipes.studies.budgets import Mean, budget_table, budgets, draw, frontier, mean_curves, rows_of
from accelerando.recipes.studies.comparison import (
    apart,
    claims_of,
    comparison_table,
    comparisons,
    improvement_correlation,
)
from accelerando.recipes.studies.plotting import DEVIATION
from accelerando.recipes.studies.table import Row, read_table, to_csv

ACCURACY = "metrics/eval/MulticlassAccuracy"

# ResNet-50 on ImageNet: the authors' best accuracies (%) within 5 epochs of 16, 32, ..., 512 epochs, of independent
# runs and of one cyclic run; the hours of both; the mean and largest absolute difference of all six points, the mean
# signed one of the last five; and the correlation of "method minus baseline". Computed from curves-resnet-50-imagenet
# or printed by the notebook of github.com/jacobfulano/cyclic-learning-rate-schedules (d874a6169d), rounded as here.
AUTHORS = {
    "Baseline": (
        [70.56, 74.51, 76.39, 76.98, 76.94, 76.46],
        [70.83, 74.12, 75.98, 76.91, 77.12, 76.74],
        (76.4, 38.7),
        (0.27, 0.41, 0.084, math.nan),
    ),
    "BP": (
        [72.43, 75.56, 76.93, 77.30, 76.82, 76.42],
        [72.55, 75.22, 76.94, 77.43, 77.21, 76.57],
        (80.0, 40.6),
        (0.19, 0.39, -0.069, 0.958),
    ),
    "CL": (
        [70.63, 74.54, 76.24, 76.93, 76.73, 76.33],
        [71.08, 74.14, 76.00, 76.97, 77.17, 76.96],
        (57.1, 29.1),
        (0.37, 0.63, -0.094, 0.345),
    ),
    "LS": (
        [70.78, 74.86, 77.01, 77.91, 78.25, 77.85],
        [70.93, 74.33, 76.37, 77.45, 77.81, 77.73],
        (76.0, 38.8),
        (0.39, 0.64, 0.440, 0.971),
    ),
    "MX": (
        [69.73, 74.21, 76.54, 78.00, 78.40, 78.51],
        [69.95, 73.52, 76.14, 77.48, 78.19, 78.38],
        (76.5, 39.1),
        (0.36, 0.70, 0.393, 0.990),
    ),
    "BP+CL": (
        [72.24, 75.70, 76.84, 77.23, 76.82, 76.45],
        [72.51, 75.22, 76.85, 77.60, 77.29, 76.50],
        (61.3, 31.0),
        (0.27, 0.48, -0.080, 0.920),
    ),
    "LS+MX": (
        [69.19, 73.94, 76.54, 77.92, 78.76, 78.81],
        [69.78, 73.43, 75.95, 77.45, 78.30, 78.53],
        (76.5, 38.9),
        (0.48, 0.59, 0.461, 0.995),
    ),
    "BP+CL+LS+MX": (
        [71.46, 75.38, 77.55, 78.60, 79.07, 78.67],
        [71.63, 74.95, 77.07, 78.29, 78.83, 78.90],
        (61.3, 31.2),
        (0.31, 0.48, 0.247, 0.971),
    ),
}


def row(arm, seed, schedule, cycle, end, batches, samples, seconds, value, best):
    tags = {"arm": arm, "seed": seed, "schedule": schedule, "cycle": cycle, "end": end}
    costs = {"batches": batches, "samples": samples, "seconds": seconds}
    return Row(node=f"{arm}-seed{seed}", tags=tags, metrics={ACCURACY: value, "best": best}, **costs)


def authors_points():
    """The hours are of all six independent runs, 1008 epochs, and of the 512 epochs of the cyclic run."""
    points = []
    for arm, (*both, hours, _) in AUTHORS.items():
        for schedule, values, spent, epochs in zip(("standard", "cyclic"), both, hours, (1008, 512), strict=True):
            for cycle, value in enumerate(values):
                end = 16 * 2**cycle
                cost = (625 * end, 1_280_000 * end, 3600 * spent * end / epochs)
                points.append(row(arm, 17, schedule, cycle, f"{end}ep", *cost, value, value))
    return points


def run(arm="plain", seed=0, schedule="cyclic", values=(0.5, 0.75, 0.875), speed=1.0, best=0.0):
    """4, 8, 16, ... epochs of 10 batches, one second each at speed 1."""
    ends = [4 * 2**cycle for cycle in range(len(values))]
    return [
        row(arm, seed, schedule, cycle, f"{end}ep", 10 * end, 80 * end, end / speed, value, value + best)
        for cycle, (end, value) in enumerate(zip(ends, values, strict=True))
    ]


def record(batch, value=math.inf, **trough):
    return (
        {"batch": batch, "samples": 8 * batch, "seconds": batch / 10.0}
        | ({} if value == math.inf else {ACCURACY: value})
        | {f"tradeoff/{name}": number for name, number in trough.items()}
    )


def points_of(records, ends, window, **tags):
    tags = {"arm": "plain", "seed": 3, "schedule": "cyclic", **tags}
    return rows_of("plain-seed3", tags, records, ACCURACY, ends, window)


def test_points_stand_at_the_troughs_and_take_the_best_of_the_window():
    records = [
        record(30, 0.7),
        record(39, 0.6),
        record(40, 0.5, cycle=0, samples=319, seconds=3.5),
        record(41),
        record(42, None),
        record(43, 0.55),
        record(80, None, cycle=1, samples=640, seconds=7.0),
    ]
    points = points_of(records, ["4ep", "8ep"], 9)
    assert points[0] == row("plain", 3, "cyclic", 0, "4ep", 40, 319, 3.5, 0.5, best=0.6)
    assert points[1]["end"] == "8ep" and math.isnan(points[1][ACCURACY]) and math.isnan(points[1]["best"])
    assert [points_of(records, ["4ep", "8ep"], w)[0]["best"] for w in (0, 1, 10)] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize("window, best", [(0, [0.354, 0.8]), (50, [0.37, 0.854]), (1000, [0.4, 0.9])])
def test_the_best_of_a_cycle_is_its_own(window, best):
    """Neither what the next one reaches, soon or late, nor what was the best before."""
    records = [record(0, 0.1), record(100, 0.4), record(250, 0.37), record(280, 0.2)]
    records += [record(300, 0.354, cycle=0, samples=2400, seconds=3.0), record(301, 0.9), record(340, 0.7)]
    records += [record(680, 0.854), record(700, 0.8, cycle=1, samples=5600, seconds=7.0), record(701, 0.99)]
    assert [point["best"] for point in points_of(records, ["3ep", "7ep"], window)] == best


def test_a_standard_run_matches_the_cycle_that_it_stands_for():
    records = [record(80, cycle=0, samples=640, seconds=8.0), record(160, 0.9, cycle=1, samples=1280, seconds=16.0)]
    for given in (records, records[1:]):  # the last trough is that of the run, whatever number a short cycle gives it
        (point,) = points_of(given, ["4ep", "8ep", "16ep"], 0, schedule="standard", cycle=2)
        assert tuple(point[name] for name in ("cycle", "end", "schedule", "batches")) == (2, "16ep", "standard", 160)


@pytest.mark.parametrize(
    "records, message",
    [
        ([record(20, 0.7)], "ended before its first cycle did"),
        ([], "ended before its first cycle did"),
        ([record(40, 0.7, cycle=0, samples=320, seconds=4.0)], "ended after 1 of 2 cycles; leave out what stops it"),
        ([record(40, 0.7, cycle=2, samples=320, seconds=4.0)], "has a cycle 2, counted from 0, where 2 were expected"),
    ],
    ids=["no trough", "no record", "stopped", "one too many"],
)
def test_a_run_with_other_cycles_than_expected_is_an_error(records, message):
    with pytest.raises(ValueError, match=f"cyclic run of 'plain', seed 3, {message}"):
        points_of(records, ["4ep", "8ep"], 0)


def test_a_trough_that_was_not_evaluated_is_an_error():
    with pytest.raises(ValueError, match=f"cyclic run of 'plain', seed 3, lacks {ACCURACY} at its trough, batch 40"):
        points_of([record(40, cycle=0, samples=320, seconds=4.0)], ["4ep"], 5)


def test_curves_are_means_over_seeds_at_the_median_time():
    points = run(seed=0, values=(0.5, 0.7), speed=1.0, best=0.1) + run(seed=1, values=(0.7, 0.9), speed=0.01)
    points += run(seed=2, values=(0.6, 0.8), speed=2.0) + run("other", values=(0.5, math.nan))
    curves = mean_curves(reversed(points), ACCURACY, "cyclic")
    assert list(curves) == [("other", 0), ("plain", 0), ("other", 1), ("plain", 1)]
    mean = curves["plain", 1]
    assert (mean.end, mean.batches, mean.seconds, mean.seeds) == ("8ep", 80, 8.0, 3)
    assert mean.value == pytest.approx(0.8) and mean.deviation == pytest.approx(0.1)  # by n - 1
    assert mean.best == pytest.approx(0.8 + 0.1 / 3)
    assert math.isnan(curves["other", 0].deviation) and math.isnan(curves["other", 1].value)
    assert mean_curves(points, ACCURACY, "standard") == {}


@pytest.mark.parametrize("arm", AUTHORS)
def test_the_authors_differences(arm):
    standard, cyclic, _, (absolute, worst, signed_of_last_five, _) = AUTHORS[arm]
    whole = apart(standard, cyclic)
    assert whole.points == 6
    assert (whole.absolute, whole.worst) == pytest.approx((absolute, worst), abs=0.0101)
    assert apart(standard[1:], cyclic[1:]).signed == pytest.approx(signed_of_last_five, abs=0.01)


@pytest.mark.parametrize("arm", [arm for arm in AUTHORS if arm != "Baseline"])
def test_the_authors_correlations_are_of_all_six_points(arm):
    method, baseline, printed = AUTHORS[arm][:2], AUTHORS["Baseline"][:2], AUTHORS[arm][-1][-1]

    def pearson(first):
        return improvement_correlation(*(np.array(values)[first:] for values in (*method, *baseline)))[1]

    # Those of CL are of differences of 0.1, of which the table's rounding takes a twentieth.
    assert pearson(0) == pytest.approx(printed, abs=0.02 if arm == "CL" else 0.0025)
    if arm in ("BP", "CL", "LS", "MX", "BP+CL", "BP+CL+LS+MX"):  # LS+MX: .995 of six, .997 of five
        assert abs(pearson(1) - printed) > 2 * abs(pearson(0) - printed) and abs(pearson(1) - printed) > 0.005


def test_the_authors_costs():
    rows = {row["arm"]: row for row in comparisons(authors_points(), ACCURACY, "Baseline")}
    assert [*rows] == [*AUTHORS, "pooled"]
    for arm, (*_, hours, _) in AUTHORS.items():
        assert rows[arm]["cost_batches"] == 1008 / 512
        assert rows[arm]["cost_seconds"] == pytest.approx(hours[0] / hours[1])
    assert rows["pooled"]["cost_seconds"] == pytest.approx(1.97, abs=0.005)


def test_differences_by_hand():
    assert apart([3, 1, 4], [1, 2, 4]) == (3, pytest.approx(1 / 3), 1.0, 2.0)
    assert apart([3, math.nan, 1], [1, 2, math.nan]) == (1, 2.0, 2.0, 2.0)
    nothing = apart([], [])
    assert nothing.points == 0 and all(math.isnan(number) for number in nothing[1:])


def test_correlations_by_hand():
    zero = [0.0] * 4
    assert improvement_correlation([1, 2, 3, 4], [1, 4, 9, 100], zero, zero)[0] == pytest.approx(1)
    assert improvement_correlation([1, 2, 3, 4], [9, 7, 5, 3], zero, [1.0] * 4) == pytest.approx((-1, -1))
    spearman, pearson = improvement_correlation([1, 2, 3, math.nan], [1, 2, 0, 7], zero, zero)
    assert (spearman, pearson) == pytest.approx((-0.5, -0.5))


@pytest.mark.parametrize(
    "standard, cyclic",
    [([0.3, 0.6, 0.7], [0.2, 0.3, 0.9]), ([0.1, 0.2], [0.1, 0.3]), ([], []), ([math.nan] * 3, [1, 2, 3])],
    ids=["constant", "two points", "no points", "nothing finite"],
)
def test_where_no_correlation_exists_it_is_nan(standard, cyclic):
    baseline = np.array(standard) - 0.1  # constant but for rounding
    assert np.isnan(improvement_correlation(standard, cyclic, baseline, np.zeros(len(cyclic)))).all()
    assert np.isnan(improvement_correlation(cyclic, standard, np.zeros(len(cyclic)), baseline)).all()


def test_nothing_on_the_frontier_is_beaten():
    def mean(arm, seconds, value):
        return Mean(
            arm=arm,
            cycle=0,
            end="4ep",
            batches=40,
            seconds=seconds,
            value=value,
            best=value,
            deviation=math.nan,
            seeds=1,
        )

    dear, late, equal = mean("dear", 2.0, 0.5), mean("late", 3.0, 0.7), mean("equal", 1.0, 0.5)
    first, second, last = mean("first", 1.0, 0.5), mean("second", 2.0, 0.7), mean("last", 4.0, 0.8)
    worse, diverged = mean("worse", 1.0, 0.4), mean("diverged", 0.1, math.nan)
    curves = [last, diverged, dear, late, worse, first, second, equal]
    assert frontier(curves) == [first, second, last]
    assert frontier(reversed(curves)) == [equal, second, last]
    assert frontier([diverged]) == []


def test_the_budget_table_shows_every_arm_and_marks_what_is_best_from_when_on():
    points = run(seed=0, values=(0.5, 0.7, 0.8)) + run(seed=1, values=(0.6, 0.8, 0.9))
    points += run("quick", 0, values=(0.5, 0.7, 0.8), speed=1.6) + run("slow", values=(0.1, 0.2, 0.95), speed=0.5)
    title, *table, dash, star, over = budget_table(points, ACCURACY, "plain").splitlines()
    assert (
        title == "accuracy at the end of each cycle, mean ± standard deviation over 2 seeds, and median training time"
    )
    assert table == [
        "length  arm    after (s)           accuracy  over plain",
        "4ep     plain       4.00  * 0.5500 ± 0.0707     +0.0000",
        "4ep     quick       2.50           * 0.5000           -",
        "4ep     slow        8.00             0.1000     -0.6500",
        "8ep     plain       8.00  * 0.7500 ± 0.0707     +0.0000",
        "8ep     quick       5.00           * 0.7000     +0.0856",
        "8ep     slow       16.00             0.2000     -0.6500",
        "16ep    plain      16.00  * 0.8500 ± 0.0707     +0.0000",
        "16ep    quick      10.00           * 0.8000     +0.0178",
        "16ep    slow       32.00           * 0.9500     +0.1000",
    ]
    assert dash == "-: plain has no value in so little time"
    assert star.startswith("* best at its budget:") and over.startswith("over plain: in the same time")
    assert budget_table(run(values=[math.nan]), ACCURACY, "plain") == ""
    assert budget_table([], ACCURACY, "plain") == ""
    diverged = budget_table(run(values=[0.5]) + run("b", values=[math.nan]), ACCURACY, "plain").splitlines()
    assert diverged[0].endswith("of one seed, and median training time") and "diverged" in diverged[3]


def test_the_gain_is_over_the_baselines_line_on_the_logarithmic_axis():
    points = run("before", values=[0.1], speed=2.0) + run(values=(0.2, 0.6))
    points += run("between", values=[0.5], speed=0.5**0.5) + run("after", values=[0.9], speed=0.1)
    rows = budgets(points, ACCURACY, "plain")
    assert list(rows[0]) == ["seconds", "arm", "end", "value", "deviation", "gain"]
    assert [row["arm"] for row in rows] == ["before", "plain", "between", "plain", "after"]
    gains = [row["gain"] for row in rows]
    assert math.isnan(gains[0]) and gains[1] == gains[3] == 0.0
    assert (gains[2], gains[4]) == pytest.approx((0.5 - 0.4, 0.9 - 0.6))  # halfway between 4 and 8 s by their ratio
    gap = run(values=(0.2, math.nan, 0.4)) + run("other", values=[0.3], speed=0.5)
    gains = [row["gain"] for row in budgets(gap, ACCURACY, "plain")]
    assert [math.isnan(gain) for gain in gains] == [False, True, False]  # the line breaks too
    assert all(math.isnan(row["gain"]) for row in budgets(points, ACCURACY, "nobody"))


@pytest.mark.parametrize("factor, unit, first", [(7, "s", "28.00"), (7.5, "min", "0.50"), (1e5, "h", "111")])
def test_table_and_figure_share_the_unit_of_time(factor, unit, first):
    points = [replace(point, seconds=factor * point.seconds) for point in run(values=(0.5, 0.6))]
    _, header, row, *_ = budget_table(points, ACCURACY, "plain").splitlines()
    assert f"after ({unit})" in header and row.split()[2] == first
    axes = draw(points, ACCURACY, "").axes[0]
    assert axes.get_xlabel() == f"training time ({unit})"
    assert f"{axes.lines[0].get_xdata()[0]:.2f}".startswith(first)


def compared():
    """Two seeds of two arms. The first point agrees in three of four pairs and counts for nothing else."""
    plain = run(values=(0.5, 0.7, 0.8, 0.9), best=0.01) + run(seed=1, values=(0.5, 0.7, 0.8, 0.9), best=0.01)
    plain += run(schedule="standard", values=(0.5, 0.5, 0.9, 0.9)) + run("plain", 1, "standard", (0.1, 0.9, 0.9, 0.9))
    better = run("better", 0, values=(0.6, 0.8, 0.8, 1.2)) + run("better", 1, values=(0.6, 0.8, 0.8, 1.2))
    better += run("better", 0, "standard", (0.6, 0.8, 0.9, 1.1), 2.0)
    better += run("better", 1, "standard", (0.6, 0.8, 0.9, 1.1), 2.0)
    return plain + better


def test_comparisons_by_hand():
    plain, better, pooled = comparisons(compared(), ACCURACY, "plain")
    assert (plain["arm"], better["arm"], pooled["arm"]) == ("plain", "better", "pooled")
    assert (plain["points"], better["points"], pooled["points"]) == (6, 6, 12)
    differences = ("signed", "absolute", "worst")
    # Standard minus cyclic is -0.2, 0.1, 0 and 0.2, 0.1, 0 for plain, twice 0, 0.1, -0.1 for better.
    assert [plain[key] for key in differences] == pytest.approx([0.2 / 6, 0.6 / 6, 0.2])
    assert [plain[f"best_{key}"] for key in differences] == pytest.approx([0.14 / 6, 0.6 / 6, 0.21])
    assert [plain[f"means_{key}"] for key in differences[1:]] == pytest.approx([0.1 / 3, 0.1])
    assert [better[key] for key in differences] == pytest.approx([0.0, 0.2 / 3, 0.1])
    assert [pooled[key] for key in differences] == pytest.approx([0.2 / 12, 1 / 12, 0.2])
    assert [pooled[f"means_{key}"] for key in differences[1:]] == pytest.approx([0.3 / 6, 0.1])
    # Of the standard runs' seeds, only 0.5 and 0.9 differ.
    assert [row["seeds_absolute"] for row in (plain, better, pooled)] == pytest.approx([0.4 / 3, 0, 0.4 / 6])
    # Better minus plain: 0.1, 0, 0.2 of the standard runs and 0.1, 0, 0.3 of the cyclic one.
    assert math.isnan(plain["spearman"]) and math.isnan(plain["pearson"])
    pearson = np.corrcoef([0.1, 0, 0.2], [0.1, 0, 0.3])[0, 1]
    assert (better["spearman"], better["pearson"]) == pytest.approx((1, pearson))
    assert (pooled["spearman"], pooled["pearson"]) == pytest.approx((1, pearson))
    assert plain["cost_batches"] == better["cost_batches"] == pooled["cost_batches"] == 60 / 32
    seconds = [row["cost_seconds"] for row in (plain, better, pooled)]
    assert seconds == pytest.approx([60 / 32, 30 / 32, 90 / 64])
    assert [(row["first_equal"], row["first_pairs"]) for row in (plain, better, pooled)] == [(1, 2), (2, 2), (3, 4)]


def test_the_comparison_has_a_column_for_each_arm_and_says_why_a_cell_is_empty():
    title, *lines, dash, last = comparison_table(compared(), ACCURACY, "plain").splitlines()
    assert title == "accuracy of independent runs less that of cyclic ones, without the first point"
    assert lines[0].split() == ["plain", "better", "pooled"]
    assert [line.split()[-3] for line in lines[1:]] == [
        *("0.0333", "0.1000", "0.2000", "0.1000", "0.2100", "0.0333", "0.1000", "0.1333"),
        *("-", "-", "1.8750", "1.8750"),
    ]
    assert len({len(line) for line in lines}) == 1 and "nan" not in "".join(lines)
    assert lines[9].startswith("gains over plain: correlation of ranks ")
    assert dash == "-: too few runs to tell, or the baseline itself"
    assert last == "The first point, up to which the schedules are one, is equal in 3 of 4 pairs of runs."


def test_comparisons_of_what_little_there_is():
    assert comparisons(run(), ACCURACY, "plain") == []
    assert comparison_table(run(), ACCURACY, "plain") == ""
    alone = comparisons(run(values=[0.5]) + run(schedule="standard", values=[0.5]), ACCURACY, "plain")[0]
    assert alone["points"] == 0 and math.isnan(alone["signed"]) and math.isnan(alone["seeds_absolute"])
    assert (alone["first_equal"], alone["first_pairs"], alone["cost_batches"]) == (1, 1, 1.0)
    # A standard run that is there for the second point only, and one of a seed that has no cyclic run.
    second = run(schedule="standard")[1:2] + run(seed=9, schedule="standard")[:1]
    row = comparisons(run() + second, ACCURACY, "plain")[0]
    assert (row["points"], row["first_pairs"], row["cost_batches"]) == (1, 0, 120 / 80)
    assert math.isnan(row["seeds_absolute"])


def test_every_two_seeds_are_compared():
    points = [point for seed in range(3) for point in run("pooled", seed)]  # a name that an arm may have too
    points += [
        point for seed, last in enumerate((0.1, 0.2, 0.4)) for point in run("pooled", seed, "standard", (seed, last))
    ]
    rows = comparisons(points, ACCURACY, "pooled")
    assert [row["arm"] for row in rows] == ["pooled"] * 2 and rows[0]["points"] == 3
    assert rows[0]["seeds_absolute"] == pytest.approx((0.1 + 0.3 + 0.2) / 3)


def test_an_arm_equal_to_the_baseline_has_no_correlation():
    points = [point for schedule in ("cyclic", "standard") for point in run(schedule=schedule)]
    twins = [replace(point, tags={**point.tags, "arm": "twin"}) for point in points]
    rows = comparisons(points + twins, ACCURACY, "plain")
    assert [row["arm"] for row in rows] == ["plain", "twin", "pooled"]
    assert all(math.isnan(row["pearson"]) and row["worst"] == 0.0 for row in rows)


def pixels_of(points, file):
    return save_figure(draw(points, ACCURACY, "ResNet-50 on ImageNet"), file)


def where(pixels, colour):
    return (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)


def test_the_figure_shows_every_arm(tmp_path):
    pixels = pixels_of(authors_points(), tmp_path / "tradeoff.png")
    with Image.open(tmp_path / "tradeoff.png") as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert pixels.dtype == np.uint8 and all(where(pixels, colour).any() for colour in (*COLOURS, "#999999"))
    two = pixels_of(run() + run("other", values=(0.6, 0.7, 0.8)), tmp_path / "two.png")
    assert [where(two, colour).any() for colour in COLOURS[:3]] == [True, True, False]
    assert not np.array_equal(two, pixels_of(run(), tmp_path / "one.png"))


@pytest.mark.parametrize(
    "points",
    [
        run(values=[0.5]),
        run(values=[0.5, math.nan, 0.7]),
        run(values=[math.nan]),
        run(schedule="standard"),
        run(values=[0.9, 0.9]) + run("twin", values=[0.9, 0.9]),
        [replace(point, seconds=1e-3 * point.seconds) for point in run()],
        [point for i in range(20) for point in run(f"arm {i}")],
        run(seed=0) + run(seed=1, values=(0.4, 0.8, math.nan)),
    ],
    ids=["one point", "a gap", "nothing finite", "standard only", "equal", "milliseconds", "20 arms", "NaN in a seed"],
)
def test_the_figure_of_what_little_there_is(points, tmp_path):
    assert pixels_of(points, tmp_path / "tradeoff.png").std() > 0


def studied():
    """Two seeds of three arms; the first has independent runs, the last one's name begins as matplotlib's own do."""
    points = [point for seed in (0, 1) for point in run(seed=seed, values=(0.5 + seed / 10, 0.7, 0.8))]
    points += run(schedule="standard", values=(0.5, 0.72, 0.79)) + run("one", values=(0.6, 0.7, 0.75), speed=2.0)
    return points + [point for seed in (3, 4) for point in run("_x", seed, values=(0.4, 0.7, 0.81 + seed / 100))]


def data(line):
    return np.transpose(line.get_data()).tolist()


def test_the_figure_shows_curves_bands_frontier_and_independent_runs():
    figure = draw(studied(), ACCURACY, "a study")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_title(), axes.get_ylabel()) == ("log", "a study", "evaluation accuracy")
    curves = list(mean_curves(studied(), ACCURACY, "cyclic").values())
    lines = [line for line in axes.lines if len(line.get_xdata())]
    solid, hollow, dashed = ([line for line in lines if line.get_linestyle() == style] for style in ("-", "None", "--"))
    expected = [[[m.seconds, m.value] for m in curves if m.arm == arm] for arm in ("plain", "one", "_x")]
    assert [data(line) for line in solid] == expected
    assert len({line.get_marker() for line in solid} - {"None"}) == 3
    assert all(same_color(line.get_color(), colour) for line, colour in zip(solid, COLOURS, strict=False))
    # The arm in the middle has one seed and so no band.
    for band, arm, line in zip(axes.collections, ("plain", "_x"), (solid[0], solid[2]), strict=True):
        assert same_color(band.get_facecolor()[0][:3], line.get_color())
        corners = [(m.seconds, m.value + sign * m.deviation) for m in curves if m.arm == arm for sign in (-1, 1)]
        assert set(corners) == set(map(tuple, band.get_paths()[0].vertices.tolist())) and len(set(corners)) > 3
    assert [data(line) for line in hollow] == [[[4.0, 0.5], [8.0, 0.72], [16.0, 0.79]]]
    assert same_color(hollow[0].get_color(), COLOURS[0]) and hollow[0].get_marker() == solid[0].get_marker()
    assert [data(line) for line in dashed] == [[[m.seconds, m.value] for m in frontier(curves)]]
    assert dashed[0].get_drawstyle() == "steps-post" and dashed[0].get_marker() == "o"
    assert all(line.get_markerfacecolor() == "none" for line in hollow + dashed)
    assert dashed[0].get_markersize() > hollow[0].get_markersize() > solid[0].get_markersize()


def test_the_legend_names_every_arm_and_what_there_is():
    (legend,) = draw(studied(), ACCURACY, "").legends
    arms = ["plain", "one", "_x"]
    more = ["independent runs", "best at its budget", DEVIATION]
    assert [text.get_text() for text in legend.get_texts()] == [*arms, *more]
    assert [line.get_color() for line in legend.legend_handles[:3]] == list(COLOURS[:3])
    alone = legend.legend_handles[3]  # the mark that it has in the picture
    assert (alone.get_marker(), alone.get_color()) == (legend.legend_handles[0].get_marker(), COLOURS[0])
    assert alone.get_markerfacecolor() == "none" and alone.get_linestyle() == "None"
    figure = draw([point for point in studied() if point["schedule"] == "cyclic"], ACCURACY, "")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*arms, *more[1:]]
    assert not any(line.get_linestyle() == "None" and len(line.get_xdata()) for line in figure.axes[0].lines)


def test_of_one_length_there_are_bars_and_no_lines():
    values = {"plain": (0.5, 0.6), "other": (0.7, 0.9)}
    rows = [row for arm, own in values.items() for seed in (0, 1) for row in run(arm, seed, values=[own[seed]])]
    figure = draw(rows, ACCURACY, "")
    axes, (legend,) = figure.axes[0], figure.legends
    bars = [segment for lines in axes.collections for segment in lines.get_segments()]
    for (lower, upper), own in zip(bars, values.values(), strict=True):
        mean, deviation = np.mean(own), np.std(own, ddof=1)
        assert [lower[1], upper[1]] == pytest.approx([mean - deviation, mean + deviation])
    assert [text.get_text() for text in legend.get_texts()] == [*values, "best at its budget", DEVIATION]
    assert all(line.get_linewidth() == 0 and line.get_marker() != "None" for line in legend.legend_handles[:2])


def test_the_bands_are_whole():
    points = [p for seed in (0, 1) for p in run(seed=seed, values=(0.8 - 0.1 * seed, 0.85, 0.9 + 0.09 * seed))]
    axes = draw(points, ACCURACY, "").axes[0]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert axes.get_ylim()[0] < heights.min() < 0.7 and 1.0 < heights.max() < axes.get_ylim()[1]


@pytest.mark.parametrize("slow", [0.1, 0.25, 0.45, 0.6, 0.9, 1.0])
def test_every_marker_to_the_right_of_the_left_edge_is_in_the_figure(slow):
    points = run(values=(0.1, 0.90, 0.93, 0.94)) + run("slow", values=(0.2, 0.91, 0.94, 0.95), speed=slow)
    points += run("slow", 0, "standard", (0.1, 0.3, 0.94, 0.95), slow)
    axes = draw(points, ACCURACY, "").axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(bottom < point[ACCURACY] < top for point in points if left <= point.seconds)
    assert max(point.seconds for point in points) < right
    assert {point[ACCURACY] for point in points if point.seconds < left} <= {0.1, 0.2}


def test_a_steep_start_does_not_flatten_the_rest(tmp_path):
    """The tops of two curves, 0.01 apart, stay as far apart in the picture however bad the first point was."""

    def distance(first):
        points = run(values=(first, 0.90, 0.93, 0.94)) + run("other", values=(first, 0.91, 0.94, 0.95))
        curves = pixels_of(points, tmp_path / "tradeoff.png")[:, :900]  # without the legend
        plain, other = (np.flatnonzero(where(curves, colour).any(1)).min() for colour in COLOURS[:2])
        return plain - other

    assert distance(0.1) >= distance(0.85) > 20


def test_the_rows_can_be_read_back(tmp_path):
    rows = authors_points() + run(values=[math.nan])
    (tmp_path / "table.csv").write_text(to_csv(rows))
    read = read_table(tmp_path / "table.csv")
    assert [*map(repr, read)] == [*map(repr, rows)]
    assert comparison_table(read, ACCURACY, "Baseline") == comparison_table(rows, ACCURACY, "Baseline")


def studied_claims(noise=0.001, shift=0.0, seeds=4, course=1):
    """Gains of an arm of 0, .01, .03 and .06; every run of every seed differs by `noise`, cyclic ones by `shift`."""
    draws = np.random.default_rng(0)
    rows = []
    for arm, gains in (("plain", (0, 0, 0, 0)), ("better", (0, 0.01, 0.03, 0.06))):
        for seed in range(seeds):
            for schedule, sign in (("cyclic", course), ("standard", 1)):
                values = 0.5 + sign * np.array(gains) + noise * draws.standard_normal(4)
                rows += run(arm, seed, schedule, (values - shift * (schedule == "cyclic")).tolist())
    return rows


def verdicts(rows):
    return [claim.verdict for claim in claims_of(rows, ACCURACY, "plain")]


UNTOLD = "cannot be told here"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["holds", "holds", UNTOLD, "holds", "holds"]),
        ({"shift": 0.1}, ["holds", "fails", "fails", "holds", "holds"]),
        ({"course": -1}, ["holds", "fails", "fails", "fails", "fails"]),
        ({"noise": 0.1}, ["holds", "holds", UNTOLD, UNTOLD, UNTOLD]),
        ({"seeds": 1}, [UNTOLD] * 5),
    ],
    ids=["the same", "all are worse", "gains are losses", "noise", "one seed"],
)
def test_what_is_claimed_of_the_schedules(given, expected):
    assert verdicts(studied_claims(**given)) == expected


def test_of_what_little_there_is_little_is_claimed():
    assert verdicts(run()) == []
    both = [row for seed in (0, 1) for schedule in ("cyclic", "standard") for row in run("plain", seed, schedule)]
    assert verdicts(both[::3]) == ["holds"]  # of the cost, which the first point has too
    assert verdicts(both) == verdicts(both + run("better")) == ["holds", UNTOLD, "fails"]
    assert verdicts(both + run("better") + run("better", schedule="standard"))[3:] == [UNTOLD] * 2


def test_a_claim_names_the_cells_that_say_otherwise():
    rows = [r for seed in range(5) for r in run(seed=seed, values=(0.5, 0.7, 0.9))]
    rows += [r for seed in range(5) for r in run(seed=seed, schedule="standard", values=(0.5, 0.69 + seed / 999, 0.9))]
    _, claim, *_ = claims_of(rows, ACCURACY, "plain")
    assert "of 2 arms and lengths these differ at 5 %, not corrected for their number: plain at 8ep -0.00" in (
        claim.measured
    )


def test_where_no_gain_changes_the_claim_on_its_course_cannot_be_told():
    *_, claim = claims_of(studied_claims(noise=0.2), ACCURACY, "plain")
    assert claim.why.startswith("no method's gain changes over the lengths by more than its seeds differ")
    assert "4 seeds could show a change from 8ep to 32ep of 0." in claim.why
