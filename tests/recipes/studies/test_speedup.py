"""Speed-up at equal quality, against a plain search on the baseline's curve."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accelerando.recipes.studies.distillation_claims import claims_of
from accelerando.recipes.studies.speedup import (
    Bounded,
    Grid,
    arms_of,
    baseline_curve,
    geometric_mean,
    intervals,
    limits_text,
    quotient,
    rank,
    speedups,
    summarize,
    teacher_seconds,
    time_to,
)
from accelerando.recipes.studies.table import Row, read_table, to_csv

METRIC, ERROR = "metrics/eval/MulticlassAccuracy", "metrics/eval/Error"


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
    assert texts == ["1.00 to 2.00", "1.00 or more", "2.00 or less", "any", ""]


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


def rows(arm, window, values, seconds, teachers="", metric=METRIC, spread=0.01):
    tags = {"arm": arm, "window": window} | ({"teachers": teachers} if teachers else {})
    return [
        Row(
            node=f"{arm}-{k}-{seed}",
            tags={**tags, "seed": seed, "length": f"{2**k}ep"},
            batches=10 * 2**k,
            samples=80 * 2**k,
            seconds=float(seconds[k]),
            metrics={metric: value + spread * (seed - 2)},
        )
        for seed in (1, 2, 3)
        for k, value in enumerate(values)
    ]


def teacher(name, seconds, value=0.9, metric=METRIC):
    tags = {"arm": "teacher", "window": 0.0, "teachers": name, "seed": 9, "length": "4ep"}
    return Row(node=f"teacher-{name}", tags=tags, batches=10, samples=80, seconds=seconds, metrics={metric: value})


BIG = teacher("big", 3.0)


def test_where_less_is_better_it_is_the_other_way_round():
    runs = rows("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4])
    runs += rows("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5], "big")
    errors = [replace(row, metrics={ERROR: 1 - row.metrics[METRIC]}) for row in runs]
    for row, error in zip(summarize([BIG, *runs], METRIC), summarize([BIG, *errors], ERROR), strict=True):
        assert error.value == pytest.approx(1 - row.value, nan_ok=True)
        assert (error.bound, error.deviation) == (row.bound, pytest.approx(row.deviation, nan_ok=True))
        for name in ("speedup", "low", "high", "total"):
            assert getattr(error, name) == pytest.approx(getattr(row, name))


def test_the_baseline_may_have_more_lengths():
    runs = rows("none", 0.0, [0.5, 0.6, 0.7, 0.8], [1, 2, 4, 8])
    arm = [row for row in rows("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5], "big") if row["length"] != "1ep"]
    found = summarize([BIG, *runs, *arm], METRIC, resamples=20)
    assert [row.length for row in found] == ["1ep", "2ep", "4ep", "8ep", "all", "2ep", "4ep", "all"]
    ratios = [(pytest.approx(4 / 2.5), ""), (pytest.approx(8 / 5), "")]
    assert [(row.speedup, row.bound) for row in found[5:7]] == ratios


def test_an_arm_that_failed_at_one_length_has_no_speedup_over_all():
    runs = rows("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4]) + rows("best", 0.5, [0.6, 0.7, math.nan], [1, 2, 4])
    last = summarize(runs, METRIC, resamples=20)[-1]
    assert all(math.isnan(number) for number in (last.speedup, last.low, last.high, last.total))


def test_a_line_for_each_length_and_one_for_all():
    runs = rows("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4])
    runs += rows("best", 0.5, [0.6, 0.7, 0.8], [1.25, 2.5, 5], "big")
    found = summarize([BIG, *runs], METRIC, resamples=20)
    assert [(row.arm, row.window, row.length) for row in found] == [
        (arm, window, length)
        for arm, window in (("none", 0.0), ("best", 0.5))
        for length in ("1ep", "2ep", "4ep", "all")
    ]
    first, second, third, mean = found[4:]
    assert (first.speedup, second.speedup, third.speedup) == pytest.approx((2 / 1.25, 4 / 2.5, 4 / 5))
    assert (first.bound, second.bound, third.bound, mean.bound) == ("", "", ">", ">")
    assert mean.speedup == pytest.approx((1.6 * 1.6 * 0.8) ** (1 / 3)) and math.isnan(mean.value)
    assert first.total == pytest.approx(2 / 4.25) and first.teachers == "big" and first.seeds == 3
    assert (first.value, first.deviation, first.seconds) == pytest.approx((0.6, 0.01, 1.25))
    assert first.low <= first.speedup <= first.high and first.total_low <= first.total <= first.total_high


def test_only_seeds_of_which_all_is_finished_count(tmp_path):
    runs = rows("none", 0.0, [0.5, 0.6, 0.7], [1, 2, 4]) + rows("best", 0.5, [0.6, 0.7], [1.25, 2.5], "big")
    gone = {("none", 3, "4ep"), ("best", 1, "2ep")}
    left = [row for row in runs if (row["arm"], row["seed"], row["length"]) not in gone]
    (tmp_path / "table.csv").write_text(to_csv([BIG, *left]))
    plain, best = arms_of(read_table(tmp_path / "table.csv"), METRIC)
    assert (plain.seeds, plain.runs.values.shape) == ([1, 2], (2, 3))
    assert (best.seeds, best.lengths, best.more) == ([2], ["1ep", "2ep"], 3.0)
    assert best.plain.seconds.tolist() == [[1, 2, 4]] and best.beside.seconds.tolist() == [[1, 2]]
    assert arms_of([row for row in runs if row["arm"] != "none"], METRIC) == []


def test_the_time_of_teachers_is_that_of_one_or_of_all():
    both = [teacher("a", 1.0), teacher("b", 2.0), teacher("a+b", 4.0)]
    times = [teacher_seconds(both, names) for names in ("", "a", "a+b", "a+a+b+b")]
    assert times == [0.0, 1.0, 4.0, 7.0]


def test_quotients_of_bounds():
    cells = [Bounded(3.0), Bounded(3.0, ">"), Bounded(3.0, "<")]
    assert [quotient(cell, Bounded(2.0)).bound for cell in cells] == ["", ">", "<"]
    assert [quotient(Bounded(2.0), cell).bound for cell in cells] == ["", "<", ">"]
    assert quotient(cells[1], cells[1]) == (1.0, "<>") and quotient(cells[1], cells[2]) == (1.0, ">")


def test_ranking():
    values = {"a": 0.5, "b": 0.75, "c": math.nan, "d": 0.75, "e": 0.25}
    assert rank(values) == ["b", "d", "a", "e", "c"]
    assert rank(values, lower=True) == ["e", "a", "b", "d", "c"]


def verdicts(rows, metric=METRIC):
    return {claim.claim: claim.verdict for claim in claims_of(rows, metric)}


def a_study(gain, drawn=None, cost=1.2, metric=METRIC, windows=(0.5,)):
    """Four lengths without teachers; two with them, which bring that gain, a drawn one another one at that cost."""
    runs = [teacher("a", 8.0), teacher("b", 8.0), *rows("none", 0.0, [0.5, 0.6, 0.7, 0.8], [1, 2, 4, 8], "", metric)]
    for window in windows:
        for arm, names in (("best", "a"), ("poorest", "b"), ("ensemble", "a+b"), ("random", "a+b")):
            more = gain if drawn is None or arm != "random" else drawn
            times = [(1.5 if arm == "ensemble" else cost) * seconds for seconds in (1, 2)]
            runs += rows(arm, window, [0.5 + more, 0.6 + more], times, names, metric)
    return runs


FASTER = "Distilled, the same quality is reached sooner: ResNet-50 up to 1.96, BERT up to 1.42 times as fast"
POOREST = "Distilling pays even with the poorest teacher: in the first 50 %"
COUNTED = ", the teachers' own training counted"
AS_GOOD = "One teacher drawn at each step brings the benefit of all of them."
AS_CHEAP = "One teacher drawn at each step costs what one teacher costs."


def test_claims_hold_where_the_effect_is_there_and_fail_where_it_is_not():
    good = verdicts(a_study(0.15))
    assert good[f"{FASTER}."] == good[f"{POOREST}."] == "holds"
    # 8 s of each teacher are more than all runs.
    assert good[f"{FASTER}{COUNTED}."] == good[f"{POOREST}{COUNTED}."] == "fails"
    assert good[AS_GOOD] == good[AS_CHEAP] == "holds"
    bad = verdicts(a_study(0.02, drawn=0.0, cost=1.5))
    assert bad[f"{FASTER}."] == bad[f"{POOREST}."] == bad[AS_GOOD] == bad[AS_CHEAP] == "fails"
    nothing = verdicts(a_study(0.0))
    assert nothing[AS_GOOD] == "cannot be told here"  # there is no benefit to keep


def test_bounds_are_no_values():
    """Where the plain curve ends before, a speed-up is known from below only, and one that begins later from above."""
    runs = [row for row in a_study(0.35, cost=10) if (row["arm"], row["length"]) != ("none", "8ep")]
    claim = next(claim for claim in claims_of(runs, METRIC) if claim.claim == f"{POOREST}.")
    assert claim.verdict == "cannot be told here" and "only bounds are known" in claim.why and ">" in claim.measured
    assert next(claims_of([row for row in runs if row["seed"] in (1, 9)], METRIC)).why.startswith("one seed")


def test_an_early_window_is_compared_with_the_whole_one():
    metric = "metrics/eval/MaskedAccuracy"
    runs = a_study(0.15, metric=metric) + rows("best", 1.0, [0.6, 0.7], [1.5, 3], "a", metric)
    early = "BERT is best distilled in the first 20 to 50 % only: 50 % against throughout."
    assert verdicts(runs, metric)[early] == "holds"
    whole = a_study(0.15, metric=metric) + rows("best", 1.0, [0.69, 0.79], [1.2, 2.4], "a", metric)
    assert verdicts(whole, metric)[early] == "fails"
    assert verdicts(a_study(0.15, metric=metric), metric)[early] == "cannot be told here"  # nothing to compare with
    other = [replace(row, metrics={METRIC: next(iter(row.metrics.values()))}) for row in runs]
    assert verdicts(other)[early] == "cannot be told here"  # it is said of masked language models


def test_the_whole_is_told_from_rows_of_a_real_study():
    """The verdicts on the 274 and 123 runs of the README."""
    docs = Path(__file__).parents[3] / "docs" / "studies"
    metrics = {"digits-distillation": METRIC, "python-docs-distillation": "metrics/eval/LanguageCrossEntropy"}
    found = {name: verdicts(read_table(docs / f"{name}.csv"), metric) for name, metric in metrics.items()}
    unclear = "cannot be told here"
    digits, texts = found.values()
    assert digits[f"{FASTER}."] == unclear and texts[f"{FASTER}."] == unclear
    assert [digits[f"{POOREST}."], texts[f"{POOREST}."]] == ["fails", "fails"]
    first = POOREST.replace("50 %", "20 %")
    assert [digits[f"{first}."], texts[f"{first}."]] == [unclear, "fails"]  # the first one is a bound
    assert digits[AS_CHEAP] == texts[AS_CHEAP] == "holds"
    assert digits[AS_GOOD] == texts[AS_GOOD] == unclear  # over all windows, all teachers are hardly better than none
