"""Does one cyclic run tell the accuracy over training time as well as independent runs of each length do?

Portes et al., Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates (arXiv:2206.00832). The rows
are those of the study `tradeoff`, as `budgets.py` describes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .budgets import mean_curves
from .claims import Claim, Verdict, judge, judge_equal
from .statistics import LEVEL, bootstrap, difference, paired
from .table import Row

COMPARISON = "arm points signed absolute worst best_signed best_absolute best_worst means_absolute means_worst "
COMPARISON += "seeds_absolute spearman pearson cost_seconds cost_batches first_equal first_pairs"
IN_WORDS = {
    "signed": "mean difference",
    "absolute": "size of the difference, mean",
    "worst": "size of the difference, largest",
    "best_absolute": "of the best near the end, mean size",
    "best_worst": "of the best near the end, largest",
    "means_absolute": "of means over seeds, mean size",
    "means_worst": "of means over seeds, largest",
    "seeds_absolute": "beside it: between two seeds' independent runs",
    "spearman": "gains over {baseline}: correlation of ranks",
    "pearson": "gains over {baseline}: correlation",
    "cost_seconds": "seconds of all independent runs over the cyclic run's",
    "cost_batches": "batches of all independent runs over the cyclic run's",
}
PAPER = "arXiv 2206.00832"
NONE = math.nan, math.nan
EXACT = 6  # decimals of a metric, which is a float32: equal gains must have one rank
DRAWS = 500  # of a few seeds there are hardly as many different ones
DATA = f"{PAPER}, computed from the authors' data on ResNet-50"


class Apart(NamedTuple):
    """One minus the other over the `points` where both are finite; NaN if there are none."""

    points: int
    signed: float  # mean
    absolute: float  # mean
    worst: float  # absolute


def apart(standard: ArrayLike, cyclic: ArrayLike) -> Apart:
    """Of two arrays (points,)."""
    signed = np.subtract(standard, cyclic, dtype=float)
    n = int(np.isfinite(signed).sum())
    signed = signed[np.isfinite(signed)] if n else np.array([math.nan])
    return Apart(n, float(signed.mean()), float(abs(signed).mean()), float(abs(signed).max()))


def improvement_correlation(
    standard: ArrayLike, cyclic: ArrayLike, baseline_standard: ArrayLike, baseline_cyclic: ArrayLike
) -> tuple[float, float]:
    """Spearman's and Pearson's correlation between "method minus baseline" of the two schedules; arrays (points,).

    NaN where one of them is constant, and for fewer than three points, because any two lie on a line.
    """
    x = np.subtract(standard, baseline_standard, dtype=float)
    y = np.subtract(cyclic, baseline_cyclic, dtype=float)
    x, y = np.array([x, y])[:, np.isfinite(x + y)]
    return spearman(x, y), float(np.corrcoef(x, y)[0, 1]) if _varies(x, y) else math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of ranks; NaN where there is none."""
    x, y = np.round(x, EXACT), np.round(y, EXACT)
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]) if _varies(x, y) else math.nan


def _varies(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) > 2 and not (np.allclose(x, x[0]) or np.allclose(y, y[0]))


def comparisons(rows: Sequence[Row], metric: str, baseline: str) -> list[dict[str, Any]]:
    """Standard minus cyclic runs: a line for each arm that has both, and a last one, "pooled", for all of these.

    Differences are of single runs of the same seed, as the paper's authors have them, at the trough and of the `best`
    in the window; those of `means` are of means over seeds. `seeds_absolute`, to compare with, is how far two seeds'
    standard runs differ. Correlations are of the means' gains over `baseline`, at the trough. All these leave out the
    first point, up to which the cyclic schedule is the independent run's: there, `first_equal` of `first_pairs` pairs
    of runs agree exactly. Costs are all standard runs' over the one cyclic run's.
    """
    standard, cyclic = mean_curves(rows, metric, "standard"), mean_curves(rows, metric, "cyclic")
    means = [(standard[key], cyclic[key]) for key in cyclic if key in standard]
    of_means = [(s.arm, s.cycle, s.value, c.value) for s, c in means]
    reference = {s.cycle: (s.value, c.value) for s, c in means if s.arm == baseline}
    runs = pairs_of(rows)
    alone = [row for row in rows if row["schedule"] == "standard"]
    seeds = [(p, q) for p, q in combinations(alone, 2) if (p["arm"], p["cycle"]) == (q["arm"], q["cycle"])]
    arms = list(dict.fromkeys(s.arm for s, _ in means))
    lines = []
    for name, group in [*((arm, [arm]) for arm in arms), ("pooled", arms)] if arms else []:
        value, best, of_seeds = (
            _apart([(p["arm"], p["cycle"], p[of], q[of]) for p, q in pairs], group)
            for pairs, of in ((runs, metric), (runs, "best"), (seeds, metric))
        )
        pairs = [(s, c) for s, c in means if s.arm in group]
        later = [(s, c) for s, c in pairs if s.cycle > 0 and s.arm != baseline]
        gains = [(s.value, c.value, *reference.get(s.cycle, [math.nan] * 2)) for s, c in later]
        correlations = improvement_correlation(*np.reshape(gains, (-1, 4)).T)
        ends = {c.arm: c for _, c in pairs}.values()
        seconds = sum(s.seconds for s, _ in pairs) / sum(c.seconds for c in ends)
        batches = sum(s.batches for s, _ in pairs) / sum(c.batches for c in ends)
        equal = [s[metric] == c[metric] for s, c in runs if s["arm"] in group and s["cycle"] == 0]
        between = *value, *best[1:], *_apart(of_means, group)[2:], of_seeds.absolute
        lines.append((name, *between, *correlations, seconds, batches, sum(equal), len(equal)))
    return [dict(zip(COMPARISON.split(), line, strict=True)) for line in lines]


def pairs_of(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Each cyclic run's row at a cycle's end, behind that of the independent run of the same seed and length."""
    alone = {(row["arm"], row["cycle"], row["seed"]): row for row in rows if row["schedule"] == "standard"}
    cyclic = [row for row in rows if row["schedule"] == "cyclic"]
    return [(s, row) for row in cyclic if (s := alone.get((row["arm"], row["cycle"], row["seed"])))]


def _apart(pairs: Iterable[tuple[str, int, float, float]], arms: Sequence[str]) -> Apart:
    """Of (arm, cycle, standard, cyclic), without the first point."""
    return apart(*np.reshape([values for arm, cycle, *values in pairs if arm in arms and cycle > 0], (-1, 2)).T)


def comparison_table(rows: Sequence[Row], metric: str, baseline: str) -> str:
    """`comparisons` as text, a column for each arm, in the metric's own units; empty where there is none."""
    from ..run.results import aligned, label

    if not (lines := comparisons(rows, metric, baseline)):
        return ""
    told = [["", *(line["arm"] for line in lines)]]
    for name, words in IN_WORDS.items():
        cells = [f"{line[name]:.4f}" if math.isfinite(line[name]) else "" for line in lines]
        told += [[words.format(baseline=baseline), *cells]] if any(cells) else []
    equal, pairs = lines[-1]["first_equal"], lines[-1]["first_pairs"]
    same = f"The first point, up to which the schedules are one, is equal in {equal} of {pairs} pairs of runs."
    table = aligned(told, left=("",), blank="too few runs to tell, or the baseline itself")
    return f"{label(metric)} of independent runs less that of cyclic ones, without the first point\n{table}\n{same}"


def claims_of(rows: Sequence[Row], metric: str, baseline: str) -> Iterator[Claim]:
    """What the paper says of the two schedules, if there are runs of both. The first point counts for costs alone."""
    if not (lines := comparisons(rows, metric, baseline)):
        return
    pairs = pairs_of(rows)
    cells: dict[tuple[str, str], dict[Any, float]] = {}  # standard minus cyclic, by arm and length, then by seed
    for s, c in pairs:
        if s["cycle"] > 0:
            cells.setdefault((s["arm"], s["end"]), {})[s["seed"]] = s[metric] - c[metric]
    yield _half_the_cost(pairs, lines[-1])
    if cells:
        yield _same_values(cells, lines[-1])
        yield _less_than_a_seed(pairs, metric)
        yield from _same_gains(pairs, metric, baseline)


def _by_seed(cells: Mapping[Any, Mapping[Any, float]]) -> dict[Any, float]:
    """Each seed's mean over the cells, if it has them all."""
    seeds = dict.fromkeys(seed for cell in cells.values() for seed in cell)
    return {seed: float(np.mean([cell.get(seed, math.nan) for cell in cells.values()])) for seed in seeds}


def _same_values(cells: Mapping[tuple[str, str], Mapping[Any, float]], pooled: Mapping[str, Any]) -> Claim:
    found = difference([mean for mean in _by_seed(cells).values() if math.isfinite(mean)])
    told = {cell: one for cell, seeds in cells.items() if (one := difference([*seeds.values()])).is_told}
    each = "; ".join(f"{arm} at {end} {one.mean:+.4f}" for (arm, end), one in told.items()) or "none"
    alone = f"single runs {pooled['absolute']:.4f} in the mean, {pooled['worst']:.4f} at worst"
    others = f"of {len(cells)} arms and lengths these differ at 5 %, not corrected for their number: {each}"
    within = pooled["seeds_absolute"]
    return judge_equal(
        "One cyclic run reaches what independent runs of each length reach, up to the difference of two seeds.",
        f"{DATA}: single runs differ by .0019 to .0048 in the mean, .0070 at worst",
        found,
        within=within,
        precondition="" if within == within else "independent runs of one seed do not tell how far two seeds differ",
        measured=f"standard minus cyclic {found}; {alone}; {others}",
    )


def _less_than_a_seed(pairs: Sequence[tuple[Row, Row]], metric: str) -> Claim:
    later = [(s, c) for s, c in pairs if s["cycle"] > 0]
    here, other = dict[Any, dict[Any, float]](), dict[Any, dict[Any, float]]()
    for s, c in later:
        cell = s["arm"], s["cycle"]
        seeds = [abs(s[metric] - t[metric]) for t, _ in later if (t["arm"], t["cycle"]) == cell and t is not s]
        here.setdefault(cell, {})[s["seed"]] = abs(s[metric] - c[metric])
        other.setdefault(cell, {})[s["seed"]] = float(np.mean(seeds)) if seeds else math.nan
    found = paired(_by_seed(other), _by_seed(here))
    text = "A cyclic run differs from the independent run of its seed by less than that of another seed does."
    return judge(text, "for comparison, beside the claim above", found)


def _half_the_cost(pairs: Sequence[tuple[Row, Row]], pooled: Mapping[str, Any]) -> Claim:
    seeds: dict[Any, list[tuple[Row, Row]]] = {}
    for s, c in pairs:
        seeds.setdefault(s["seed"], []).append((s, c))
    whole = max(map(len, seeds.values()), default=0)  # arms times lengths
    ratios = [
        sum(s.seconds for s, _ in own) / sum({c["arm"]: c.seconds for _, c in own}.values())  # the last cycle's end
        for own in seeds.values()
        if len(own) == whole
    ]
    batches = pooled["cost_batches"]
    times = f"{np.mean(ratios):.3f} times as many seconds" if ratios else "no seed has all runs"
    return judge_equal(
        "Independent runs of all lengths take as many times the cyclic run's time as they have of its batches.",
        f"{DATA}: 1.97 times, 1008 epochs against 512",
        found := difference([ratio - batches for ratio in ratios]),
        within=0.1 * batches,
        measured=f"{batches:.3f} times as many batches, {times}, {found}",
    )


def _same_gains(pairs: Sequence[tuple[Row, Row]], metric: str, baseline: str) -> Iterator[Claim]:
    arms, ends, gains = gains_of(pairs, metric, baseline)
    if not arms:
        return
    n, pooled = len(gains), np.concatenate([np.empty((len(gains), 0, 2)), *np.moveaxis(gains, 1, 0)], axis=1)
    yield _correlated(
        "Cyclic runs rank the gains of all methods at all lengths over the baseline as independent runs do.",
        {"pooled": _spearman(pooled)},
        ["pooled"] if _differ(pooled) else [],
        n,
        "the gains of independent runs do not differ by more than those of their seeds (one-way ANOVA)",
    )
    changes = [difference(gains[:, i, -1, 0] - gains[:, i, 0, 0]).detectable for i in range(len(arms))]
    still = f"{n} seeds could show a change from {ends[0]} to {ends[-1]} of {min(changes):.4f} or more"
    yield _correlated(
        "A method's gain over the baseline has the same course over the lengths in cyclic and in independent runs.",
        {arm: _spearman(gains[:, i]) for i, arm in enumerate(arms)},
        [arm for i, arm in enumerate(arms) if _differ(gains[:, i])],
        n,
        f"no method's gain changes over the lengths by more than its seeds differ (one-way ANOVA); {still}",
    )


def _differ(gains: np.ndarray) -> bool:
    """Whether the gains of independent runs (seeds, points, 2) differ from point to point by more than seeds do."""
    n, points, _ = gains.shape
    return n > 1 and points > 1 and bool(stats.f_oneway(*gains[..., 0].T).pvalue < LEVEL)


def gains_of(pairs: Sequence[tuple[Row, Row]], metric: str, baseline: str) -> tuple[list[str], list[str], np.ndarray]:
    """Arms, lengths, and the gains (seeds, arms, lengths, 2) over the baseline, of independent and of cyclic runs.

    Without the first point, and of those seeds alone that have finite values everywhere.
    """
    later = {(s["seed"], s["arm"], s["end"]): (s[metric], c[metric]) for s, c in pairs if s["cycle"] > 0}
    seeds, arms, ends = (list(dict.fromkeys(key[i] for key in later)) for i in range(3))
    arms = [arm for arm in arms if arm != baseline]
    cells = [[[later.get((seed, arm, end), NONE) for end in ends] for arm in (baseline, *arms)] for seed in seeds]
    values = np.reshape(cells, (len(seeds), len(arms) + 1, len(ends), 2))
    gains = values[:, 1:] - values[:, :1]
    return arms, ends, gains[np.isfinite(gains).all(axis=(1, 2, 3))]


def _spearman(gains: np.ndarray) -> tuple[float, float, float]:
    """Of the means over seeds of gains (seeds, points, 2), with its interval."""

    def correlation(sample: np.ndarray) -> float:
        return spearman(*sample.mean(axis=0).T)

    if len(gains) < 2 or math.isnan(value := correlation(gains)):
        return math.nan, math.nan, math.nan
    return value, *bootstrap(correlation, gains, resamples=DRAWS)


def _correlated(
    claim: str, found: Mapping[str, tuple[float, float, float]], judged: Collection[str], seeds: int, still: str
) -> Claim:
    """The verdict by the correlations, with intervals, of those that are `judged`; if none can be, `still` says why."""
    words = [f"{name} {value:.2f} ({low:.2f} to {high:.2f})" for name, (value, low, high) in found.items()]
    intervals = [found[name][1:] for name in judged]
    how = f"95 % of {DRAWS} resamples of {seeds} seeds must lie above 0 for {', '.join(judged)}"
    verdict: Verdict = "cannot be told here"
    if seeds < 2:
        how = "fewer than two seeds have all runs; give more"
    elif not judged:
        how = still
    elif all(low > 0 for low, _ in intervals):
        verdict = "holds"
    elif any(high <= 0 for _, high in intervals):
        verdict = "fails"
    measured = f"Spearman's correlation {'; '.join(words)}"
    source = f"{DATA}: Pearson's correlation .92 to 1.00, of ChannelsLast .35"
    return Claim(claim=claim, source=source, measured=measured, verdict=verdict, why=how)
