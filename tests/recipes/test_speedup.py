"""Speed-up at equal quality, against a plain search on the baseline's curve."""

import math
from dataclasses import replace

import numpy as np
import pytest

from accelerando.recipes.speedup import (
    Bounded,
    Grid,
    Point,
    baseline_curve,
    geometric_mean,
    intervals,
    limits_text,
    speedups,
    summarize,
    time_to,
)


def grid(seconds, values):
    return Grid(np.array(seconds, dtype=float), np.array(values, dtype=float))


def plain_time_to(quality, seconds, values, steps=200_000):
    """Walks along the curve, linear over log time, until it has reached the quality."""
    logs = np.linspace(math.log(seconds[0]), math.log(seconds[-1]), steps)
    reached = np.maximum.accumulate(np.interp(logs, np.log(seconds), values)) >= quality
    return math.exp(logs[np.argmax(reached)]) if reached.any() else math.inf


@pytest.mark.parametrize("quality", [0.61, 0.7, 0.75, 0.79, 0.8, 0.83, 0.9])
def test_time_to_a_quality_is_where_a_walk_along_the_curve_meets_it(quality):
    seconds, values = np.array([1.0, 2.0, 4.0, 9.0, 16.0]), np.array([0.6, 0.7, 0.8, 0.75, 0.9])
    curve = baseline_curve(grid([seconds], [values]))
    time, bound = time_to(quality, *curve)
    # From 4 to 9 s the curve falls: the running maximum rises again from 9 s on, the plain curve only when it is back.
    assert bound == "" and time <= plain_time_to(quality, seconds, values) * 1.0001
    assert time == pytest.approx(plain_time_to(quality, seconds, np.maximum.accumulate(values)), rel=1e-4)


def test_beyond_the_curve_there_is_a_bound():
    curve = [1.0, 4.0], [0.5, 0.75]
    assert time_to(0.8, *curve) == (4.0, ">")
    assert time_to(0.75, *curve) == (4.0, "")
    assert time_to(0.625, *curve) == (pytest.approx(2.0), "")
    assert time_to(0.5, *curve) == (1.0, "")
    assert time_to(0.4, *curve) == (1.0, "<")
    assert math.isnan(time_to(math.nan, *curve).value) and math.isnan(time_to(0.5, [], []).value)


def test_the_baseline_is_medians_of_seconds_and_means_of_values():
    seconds, values = baseline_curve(grid([[4, 1, 9], [4, 1, 9], [400, 100, 9]], [[0.5, 0.25, math.nan]] * 3))
    assert seconds.tolist() == [1, 4] and values.tolist() == [0.25, 0.5]


BASELINE = grid([[1, 2, 4]] * 3, [[0.50, 0.60, 0.70], [0.52, 0.62, 0.72], [0.48, 0.58, 0.68]])


def test_the_same_runs_have_no_speedup_and_faster_ones_have_theirs():
    assert speedups(BASELINE, BASELINE) == [(1.0, "")] * 4
    twice = grid(BASELINE.seconds / 2, BASELINE.values)
    assert [ratio.value for ratio in speedups(BASELINE, twice)] == pytest.approx([2.0] * 4)
    assert [ratio.value for ratio in speedups(BASELINE, twice, 0.5)] == pytest.approx(
        [1, 4 / 3, 1.6, (4 / 3 * 1.6) ** (1 / 3)]
    )


def test_bounds_stay_bounds():
    better = grid(BASELINE.seconds, BASELINE.values + 0.05)
    assert [ratio.bound for ratio in speedups(BASELINE, better)] == ["", "", ">", ">"]
    worse = grid(BASELINE.seconds, BASELINE.values - 0.05)
    assert [ratio.bound for ratio in speedups(BASELINE, worse)] == ["<", "", "", "<"]
    assert geometric_mean([Bounded(2.0, "<"), Bounded(8.0, ">")]) == (pytest.approx(4.0), "<>")
    assert math.isnan(geometric_mean([Bounded(2.0), Bounded(math.nan)]).value)
    assert [str(Bounded(*ratio)) for ratio in ((1.5, ""), (1.5, ">"), (1.5, "<>"), (math.nan, ""))] == [
        "1.50",
        ">1.50",
        "~1.50",
        "",
    ]


def plain_intervals(baseline, arm, length, resamples, seed=0):
    """Of one length, resample by resample."""
    generator, lows, highs = np.random.default_rng(seed), [], []
    for draw in generator.integers(len(arm.values), size=(resamples, len(arm.values))):
        means = [np.mean([baseline.values[i, k] for i in draw]) for k in range(baseline.values.shape[1])]
        times = [np.median([baseline.seconds[i, k] for i in draw]) for k in range(baseline.values.shape[1])]
        quality = np.mean([arm.values[i, length] for i in draw])
        cost = np.median([arm.seconds[i, length] for i in draw])
        if quality > max(means):
            lows, highs = [*lows, times[-1] / cost], [*highs, math.inf]
        elif quality < means[0]:
            lows, highs = [*lows, 0.0], [*highs, times[0] / cost]
        else:
            ratio = plain_time_to(quality, np.array(times), np.maximum.accumulate(means), 20_000) / cost
            lows, highs = [*lows, ratio], [*highs, ratio]
    return sorted(lows)[math.ceil(0.025 * resamples) - 1], sorted(highs)[math.ceil(0.975 * resamples) - 1]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_intervals_are_those_of_a_plain_bootstrap(length):
    draw = np.random.default_rng(1)
    baseline = grid(np.array([1, 2, 4]) * draw.uniform(0.9, 1.1, (5, 3)), draw.normal([0.5, 0.6, 0.7], 0.02, (5, 3)))
    arm = grid(
        np.array([1.2, 2.4, 4.8]) * draw.uniform(0.9, 1.1, (5, 3)), draw.normal([0.48, 0.65, 0.75], 0.03, (5, 3))
    )
    ours = intervals(baseline, arm, resamples=200)[length]
    assert ours == pytest.approx(plain_intervals(baseline, arm, length, 200), rel=1e-3)


def test_an_interval_has_no_end_where_the_baseline_ends():
    better = grid(BASELINE.seconds, BASELINE.values + 0.2)
    assert intervals(BASELINE, better, resamples=50)[-2:] == [(1.0, math.inf), (pytest.approx(2.0), math.inf)]
    worse = grid(BASELINE.seconds, BASELINE.values - 0.2)
    assert intervals(BASELINE, worse, resamples=50)[0] == (0.0, 1.0)
    single = grid([[1, 2]], [[0.5, 0.6]])
    assert all(math.isnan(end) for limits in intervals(single, single) for end in limits)
    texts = [limits_text(*limits) for limits in ((1, 2), (1, math.inf), (0, 2), (0, math.inf), (math.nan, math.nan))]
    assert texts == ["1.00 to 2.00", "1.00 to", "to 2.00", "any", ""]


def test_of_a_known_effect_the_interval_tells_the_truth():
    """An arm that needs half the time to the same quality: 95 % intervals of 20 seeds hold 2 nearly always."""
    draw, held = np.random.default_rng(2), 0
    for _ in range(40):
        noise = draw.normal(0, 0.004, (2, 20, 5))
        quality = 0.5 + 0.1 * np.arange(5)
        baseline = grid(np.tile(2.0 ** np.arange(5), (20, 1)), quality + noise[0])
        arm = grid(baseline.seconds[:, 1:3], quality[2:4] + noise[1, :, :2])
        low, high = intervals(baseline, arm, resamples=200)[0]
        held += low <= 2.0 <= high
    assert held >= 34


def points(arm, window, values, seconds, teachers="", more=0.0):
    return [
        Point(arm, window, teachers, seed, f"{2**k}ep", 10, 80, seconds[k], more, value + 0.01 * (seed - 2))
        for seed in (1, 2, 3)
        for k, value in enumerate(values)
    ]


def test_where_less_is_better_it_is_the_other_way_round():
    runs = points("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4])
    runs += points("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5], "big", 3.0)
    errors = [replace(point, value=1 - point.value) for point in runs]
    for row, error in zip(summarize(runs, "none"), summarize(errors, "none", lower=True), strict=True):
        assert error.value == pytest.approx(1 - row.value, nan_ok=True)
        assert (error.bound, error.deviation) == (row.bound, pytest.approx(row.deviation, nan_ok=True))
        for name in ("speedup", "low", "high", "total"):
            assert getattr(error, name) == pytest.approx(getattr(row, name))


def test_the_baseline_may_have_more_lengths():
    runs = points("none", 0.0, [0.5, 0.6, 0.7, 0.8], [1, 2, 4, 8])
    arm = [point for point in points("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5]) if point.length != "1ep"]
    rows = summarize(runs + arm, "none", resamples=20)
    assert [row.length for row in rows] == ["1ep", "2ep", "4ep", "8ep", "all", "2ep", "4ep", "all"]
    assert [(row.speedup, row.bound) for row in rows[5:7]] == [(pytest.approx(4 / 2.5), ""), (pytest.approx(8 / 5), "")]


def test_an_arm_that_failed_at_one_length_has_no_speedup_over_all():
    runs = points("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4]) + points("best", 0.5, [0.6, 0.7, math.nan], [1, 2, 4])
    last = summarize(runs, "none", resamples=20)[-1]
    assert all(math.isnan(number) for number in (last.speedup, last.low, last.high, last.total))


def test_a_row_for_each_length_and_one_for_all():
    teacher = Point("teacher", 0.0, "big", 9, "4ep", 10, 80, 3.0, 3.0, 0.9)
    runs = points("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4])
    runs += points("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5], "big", 3.0)
    rows = summarize([teacher, *runs], "none", resamples=20)
    assert [(row.arm, row.window, row.length) for row in rows] == [
        (arm, window, length)
        for arm, window in (("none", 0.0), ("best", 0.5))
        for length in ("1ep", "2ep", "4ep", "all")
    ]
    first, second, third, mean = rows[4:]
    assert (first.speedup, second.speedup, third.speedup) == pytest.approx((2 / 1.25, 4 / 2.5, 4 / 5))
    assert (first.bound, second.bound, third.bound, mean.bound) == ("", "", ">", ">")
    assert mean.speedup == pytest.approx((1.6 * 1.6 * 0.8) ** (1 / 3)) and math.isnan(mean.value)
    assert first.total == pytest.approx(2 / 4.25) and first.teachers == "big" and first.seeds == 3
    assert (first.value, first.deviation, first.seconds) == pytest.approx((0.6, 0.01, 1.25))
    assert first.low <= first.speedup <= first.high and first.total_low <= first.total <= first.total_high
