"""What Blakeney et al., Reduce, Reuse, Recycle (arXiv:2211.00683, abstract) say of distillation, and what rows show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ..run.results import percent
from .claims import Claim, Verdict
from .speedup import (
    PLAIN,
    TEACHER,
    Arm,
    Bounded,
    arms_of,
    intervals,
    limits_text,
    middle,
    quotient,
    resampled,
    speedups,
)
from .statistics import LEVEL, paired
from .table import Row

SOURCE = "arXiv 2211.00683, abstract"
COUNTED = ", the teachers' own training counted"
EARLY = (0.2, 0.5)
OF_TEXT = ("languagecrossentropy", "languageperplexity", "maskedaccuracy")  # what masked language models are judged by
Cell = tuple[Bounded, tuple[float, float]]  # and its interval


def claims_of(rows: Sequence[Row], metric: str, chosen_on: str = "") -> Iterator[Claim]:
    """The verdicts; `chosen_on` is a note on the data on which the best and the poorest teacher were chosen."""
    arms = arms_of(rows, metric)
    taught = {(arm.name, arm.window): arm for arm in arms if arm.name != PLAIN}
    for counted in (False, True) if taught else ():
        yield _fastest([*taught.values()], counted, chosen_on)
    for window in [window for name, window in taught if name == "best" and EARLY[0] <= window <= EARLY[1]]:
        yield _early(taught["best", window], taught.get(("best", 1.0)), metric, chosen_on)
    for arm in [arm for (name, _), arm in taught.items() if name == "poorest"]:
        for counted in (False, True):
            sentence = f"Distilling pays even with the poorest teacher: {_during(arm)}{COUNTED * counted}."
            cell = _cell(arm, counted)
            yield _claim(sentence, _text(arm, cell), cell, len(arm.seeds), note=chosen_on)
    drawn = [window for name, window in taught if name == "random" and ("ensemble", window) in taught]
    pairs = [(taught["random", window], taught["ensemble", window]) for window in drawn]
    if pairs:
        count = len({row["teachers"] for row in rows if row["arm"] == TEACHER})
        yield _as_good(pairs)
        yield _as_cheap(*max(pairs, key=lambda pair: pair[0].window), count)


def _cell(arm: Arm, counted: bool, level: float = LEVEL) -> Cell:
    """The speed-up over all lengths."""
    more = arm.more if counted else 0.0
    return speedups(arm.plain, arm.runs, more)[-1], intervals(arm.plain, arm.runs, more, level=level)[-1]


def _during(arm: Arm) -> str:
    return f"in the first {percent(arm.window)}" if arm.window < 1 else "throughout"


def _text(arm: Arm, cell: Cell, level: float = LEVEL) -> str:
    ends = f"{100 * (1 - level):.4g} % {limits_text(*cell[1])}; " if len(arm.seeds) > 1 else ""
    return f"{cell[0]} times as fast over all lengths ({ends}{len(arm.seeds)} seeds, bootstrap)"


def _claim(sentence: str, measured: str, cell: Cell, seeds: int, than: str = "plain training", note: str = "") -> Claim:
    """The verdict on a ratio of speeds that is said to be above 1."""
    (value, bound), (low, high) = cell
    verdict: Verdict = "cannot be told here"
    if seeds < 2:
        why = "one seed has no interval; give two or more"
    elif math.isnan(low) or math.isnan(value):
        why = "some of its runs have no finite quality"
    elif low > 1 or high <= 1:
        verdict = "holds" if low > 1 else "fails"
        why = (
            f"by the bootstrap's interval{', of a bound: the curve of the plain training ends before' if bound else ''}"
        )
    elif bound or not low or math.isinf(high):
        why = "only bounds are known; baseline_lengths that reach further would tell more"
    else:
        why = f"{seeds} seeds could show {value / low:.2f} times the speed of {than}"
    why = "; ".join(part for part in (why, note) if part)
    return Claim(claim=sentence, source=SOURCE, measured=measured, verdict=verdict, why=why)


def _fastest(arms: Sequence[Arm], counted: bool, note: str) -> Claim:
    """The arm whose interval lies highest; intervals are as wide as so many arms at once need."""
    level = LEVEL / len(arms)
    every = [(arm, _cell(arm, counted, level)) for arm in arms]
    known = [(arm, cell) for arm, cell in every if not math.isnan(cell[1][0])] or every
    arm, cell = max(known, key=lambda pair: pair[1][1])
    above, below = sum(low > 1 for _, (_, (low, _)) in known), sum(high <= 1 for _, (_, (_, high)) in known)
    highest = cell[1][0], max(high for _, (_, (_, high)) in known)  # of any: it fails where none can be above 1
    sentence = "Distilled, the same quality is reached sooner: ResNet-50 up to 1.96, BERT up to 1.42 times as fast"
    measured = f"{arm.name} teacher {_during(arm)}: {_text(arm, cell, level)}; "
    measured += f"of {len(arms)} arms' intervals {above} lie above 1 and {below} below"
    note = "; ".join(part for part in (f"intervals are those of {len(arms)} arms at once", note) if part)
    return _claim(f"{sentence}{COUNTED * counted}.", measured, (cell[0], highest), len(arm.seeds), note=note)


def _early(early: Arm, whole: Arm | None, metric: str, note: str) -> Claim:
    sentence = f"BERT is best distilled in the first 20 to 50 % only: {percent(early.window)} against throughout."
    problem = ""
    if metric.rpartition("/")[2].lower() not in OF_TEXT:
        problem = "the paper says it of masked language models, and this is none, as its metric tells"
    elif whole is None or (whole.seeds, whole.lengths) != (early.seeds, early.lengths):
        problem = "needs finished runs of the same seeds and lengths that are distilled throughout (a window of 1.0)"
    if problem or whole is None:
        return Claim(claim=sentence, source=SOURCE, measured="", verdict="cannot be told here", why=problem)
    each = [speedups(arm.plain, arm.runs)[-1] for arm in (early, whole)]
    drawn = (resampled(arm.plain, arm.runs) for arm in (early, whole))
    ratios = (quotient(a[-1], b[-1]) for a, b in zip(*drawn, strict=True))
    cell = quotient(*each), middle(ratios) if len(early.seeds) > 1 else (math.nan, math.nan)
    measured = f"best teacher: {each[0]} against {each[1]} times as fast as without; {_text(early, cell)}"
    return _claim(sentence, measured, cell, len(early.seeds), "distilling throughout", note)


def _as_good(pairs: Sequence[tuple[Arm, Arm]]) -> Claim:
    """Whether so little is lost that it is less than half of what all teachers bring."""
    drawn, everyone = (_by_seed([pair[i] for pair in pairs]) for i in (0, 1))
    plain = _by_seed([pair[1] for pair in pairs], beside=True)
    lost, gain = paired(drawn, everyone), paired(everyone, plain)
    verdict: Verdict = "cannot be told here"
    if not gain.low > 0:
        why = "that all teachers together are better than none cannot be told, so that there is no benefit to bring"
    elif lost.high < 0:
        verdict, why = "fails", "worse, by the paired t test's interval of 95 %"
    elif lost.low > -gain.mean / 2:
        verdict, why = "holds", "the interval leaves out a loss of half of what all teachers bring"
    else:
        why = f"{lost.pairs} seeds could show a difference of {lost.detectable:.4f}"
    return Claim(
        claim="One teacher drawn at each step brings the benefit of all of them.",
        source=SOURCE,
        measured=f"quality {lost} against all, mean over {len(pairs)} windows and all lengths; all against none {gain}",
        verdict=verdict,
        why=why,
    )


def _by_seed(arms: Sequence[Arm], beside: bool = False) -> Mapping[int, float]:
    """The mean quality over arms and lengths, of seeds that all have."""
    means = [
        dict(zip(arm.seeds, (arm.beside if beside else arm.runs).values.mean(axis=1), strict=True)) for arm in arms
    ]
    seeds = [seed for seed in means[0] if all(seed in mean for mean in means)] if means else []
    return {seed: float(sum(mean[seed] for mean in means)) / len(means) for seed in seeds}


def _as_cheap(drawn: Arm, everyone: Arm, teachers: int) -> Claim:
    """Whether what a step takes longer is nearer to one teacher's share of what all take than to all of it."""
    a, b = _extra(drawn), _extra(everyone)
    middle_of = {seed: (1 + 1 / teachers) / 2 * extra for seed, extra in b.items()}
    less = paired(middle_of, a)
    verdict: Verdict = "cannot be told here"
    if less.low > 0:
        verdict, why = "holds", "nearer to one teacher's cost than to all of them, by the paired t test"
    elif less.high <= 0:
        verdict, why = "fails", "nearer to all teachers' cost than to one of them, by the paired t test"
    else:
        why = f"{less.pairs} seeds could show a difference of {less.detectable:.2f} plain steps"
    steps = [1 + sum(extra.values()) / len(extra) for extra in (a, b)]
    one = 1 + (steps[1] - 1) / teachers
    measured = (
        f"a distilled step takes {steps[0]:.2f} plain ones, with all {teachers} teachers {steps[1]:.2f}, of which "
    )
    return Claim(
        claim="One teacher drawn at each step costs what one teacher costs.",
        source=SOURCE,
        measured=f"{measured}an average one's part makes {one:.2f} ({less.pairs} seeds)",
        verdict=verdict,
        why=why,
    )


def _extra(arm: Arm) -> dict[int, float]:
    """By seed, how many plain steps' time a distilled step takes more."""
    extra = (arm.runs.seconds / arm.beside.seconds - 1).mean(axis=1) / arm.window
    return {seed: float(more) for seed, more in zip(arm.seeds, extra, strict=True)}
