"""Accuracy over training time: the curves of cyclic and of independent runs, and what is best at a budget.

Portes et al., Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates (arXiv:2206.00832). The rows
are those of the study `tradeoff`: one for the end of each cycle of a run ("cyclic"), or for the end of an independent
run of that length ("standard"). Their tags are arm, seed, schedule, cycle (from 0; of a standard run, the one whose end
it matches) and end (where that cycle ends, a time string such as 16ep); their metrics are those of the evaluation at
the trough of the learning rate, and `best`, the best value of the study's metric near to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .plotting import HANDLERS, MARKERS, deviation_entry, draw_deviation, limits, over_time, side_by_side, time_unit
from .table import Row

if TYPE_CHECKING:
    from ..run.history import Record


@dataclass(frozen=True, kw_only=True)
class Mean:
    """All seeds' rows at one cycle's end.

    Attributes:
        arm, cycle, end: the tags that they share.
        batches: what each took.
        seconds: the median, as timings are noisy.
        value, best: means.
        deviation: that of `value` over seeds, by n - 1; NaN for a single seed.
        seeds: how many.
    """

    arm: str
    cycle: int
    end: str
    batches: int
    seconds: float
    value: float
    best: float
    deviation: float
    seeds: int


def rows_of(
    node: str, tags: Mapping[str, Any], records: Sequence[Record], metric: str, ends: Sequence[str], window: int
) -> list[Row]:
    """One run's rows, one for each record with ``tradeoff/cycle``; of a standard run the last one alone.

    `ends` are those of all cycles; a standard run's `tags` say whose end it matches. `window` is in batches before a
    cycle's end, and does not reach into the cycle before: what follows the end belongs to the next one. The paper's
    authors look to both sides. ValueError for a run without such a record, and for such a record without the metric or
    beyond `ends`.
    """
    from ..run.history import EVAL_PREFIX

    alone = tags["schedule"] == "standard"
    rows, run = [], f"the {tags['schedule']} run of {tags['arm']!r}, seed {tags['seed']},"
    values = {r["batch"]: math.nan if r[metric] is None else r[metric] for r in records if metric in r}
    if not (troughs := [record for record in records if "tradeoff/cycle" in record]):
        raise ValueError(f"{run} ended before its first cycle did")
    since = -1  # the end of the cycle before
    for record in troughs[-1:] if alone else troughs:
        cycle, batch = tags["cycle"] if alone else int(record["tradeoff/cycle"]), int(record["batch"])
        if cycle >= len(ends):
            raise ValueError(f"{run} has a cycle {cycle}, counted from 0, where {len(ends)} were expected")
        if batch not in values:
            raise ValueError(f"{run} lacks {metric} at its trough, batch {batch}")
        first, since = max(since + 1, batch - window), batch
        best = max((v for b, v in values.items() if first <= b <= batch and math.isfinite(v)), default=math.nan)
        metrics = {name: math.nan if v is None else v for name, v in record.items() if name.startswith(EVAL_PREFIX)}
        own = {**tags, "cycle": cycle, "end": ends[cycle]}
        samples, seconds = int(record["tradeoff/samples"]), record["tradeoff/seconds"]
        metrics["best"] = best
        rows.append(Row(node=node, tags=own, batches=batch, samples=samples, seconds=seconds, metrics=metrics))
    if not alone and len(troughs) < len(ends):
        raise ValueError(f"{run} ended after {len(troughs)} of {len(ends)} cycles; leave out what stops it")
    return rows


def mean_curves(rows: Iterable[Row], metric: str, schedule: str) -> dict[tuple[str, int], Mean]:
    """By arm and cycle: the cycles from first to last, in each the arms in the order of `rows`."""
    rows = sorted((row for row in rows if row["schedule"] == schedule), key=lambda row: row["cycle"])
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["arm"], row["cycle"]), []).append(row)
    return {key: _mean(seeds, metric) for key, seeds in cells.items()}


def _mean(seeds: Sequence[Row], metric: str) -> Mean:
    seconds, values, bests = np.array([(row.seconds, row[metric], row["best"]) for row in seeds]).T
    return Mean(
        arm=seeds[0]["arm"],
        cycle=seeds[0]["cycle"],
        end=seeds[0]["end"],
        batches=seeds[0].batches,
        seconds=float(np.median(seconds)),
        value=float(values.mean()),
        best=float(bests.mean()),
        deviation=float(values.std(ddof=1)) if len(seeds) > 1 else math.nan,
        seeds=len(seeds),
    )


def frontier(curves: Iterable[Mean]) -> list[Mean]:
    """The points that no other beats by as high a value in as little time, from the fastest on; of equals the first."""
    best: list[Mean] = []
    for mean in sorted((m for m in curves if math.isfinite(m.value)), key=lambda m: (m.seconds, -m.value)):
        if not best or mean.value > best[-1].value:
            best.append(mean)
    return best


def budgets(rows: Sequence[Row], metric: str, baseline: str) -> list[dict[str, Any]]:
    """What is best from how many training seconds on: the frontier of all cyclic mean curves, a line per point.

    `gain` is over the line of `baseline` in the figure, in the same seconds: its mean curve, linear over the logarithm
    of time. It is NaN before the line begins; where that has ended, the gain is over its last value.
    """
    curves = mean_curves(rows, metric, "cyclic").values()
    gain = _gains_over(baseline, curves)
    names = ("seconds", "arm", "end", "value", "deviation")
    return [{name: getattr(m, name) for name in names} | {"gain": gain(m)} for m in frontier(curves)]


def _gains_over(baseline: str, curves: Collection[Mean]) -> Callable[[Mean], float]:
    line = sorted((m.seconds, m.value) for m in curves if m.arm == baseline) or [(1.0, math.nan)]
    x, y = [math.log(seconds) for seconds, _ in line], [value for _, value in line]
    return lambda m: m.value - float(np.interp(math.log(m.seconds), x, y, left=math.nan))


def budget_table(rows: Sequence[Row], metric: str, baseline: str) -> str:
    """Every arm at the end of each cycle, the time in the figure's unit; a star marks what is best at its budget."""
    from ..run.results import aligned, label

    curves = [*mean_curves(rows, metric, "cyclic").values()]
    if not any(math.isfinite(m.value) for m in curves):
        return ""
    gain, best, (unit, size) = _gains_over(baseline, curves), frontier(curves), time_unit(row.seconds for row in rows)
    lines = [["length", "arm", f"after ({unit})", label(metric), f"over {baseline}"]]
    for m in curves:
        after = f"{(time := m.seconds / size):,.{2 if time < 100 else 0}f}"
        spread = f" ± {m.deviation:.4f}" if math.isfinite(m.deviation) else ""
        value = f"{'* ' * (m in best)}{m.value:.4f}{spread}" if math.isfinite(m.value) else "diverged"
        lines.append([m.end, m.arm, after, value, _signed(gain(m))])
    seeds = max(m.seeds for m in curves)
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "of one seed"
    why = f"{baseline} has no value in so little time"
    return "\n".join((
        f"{label(metric)} at the end of each cycle, {over}, and median training time",
        aligned(lines, left=("length", "arm"), blank=why),
        "* best at its budget: none is as good in as little time, on the data that it is reported on",
        f"over {baseline}: in the same time, on the line through its values",
    ))  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else ""


def draw(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """Each arm's mean curve with one deviation, independent runs, and what is best at each budget."""
    from accelerando.algorithms.figures import COLOURS

    from ..run.results import label

    curves, standard = (list(mean_curves(rows, metric, schedule).values()) for schedule in ("cyclic", "standard"))
    unit, size = time_unit(row.seconds for row in rows)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    hollow: Any = {"ms": 7, "mfc": "none", "linestyle": ""}
    legend: dict[str, Any] = {}
    alone: list[dict[str, Any]] = []  # the looks of independent runs
    for i, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        colour, marker = (*COLOURS, "#999999")[i % 8], MARKERS[(i + i // 8) % 8]
        x, y, deviation = _columns((m for m in curves if m.arm == arm), size)
        (legend[arm],) = axes.plot(x, y, color=colour, marker=marker, ms=5, lw=1.6 if len(x) > 1 else 0)
        draw_deviation(axes, x, y, deviation, colour)
        x, y, _ = _columns((m for m in standard if m.arm == arm), size)
        axes.plot(x, y, color=colour, marker=marker, **hollow)
        alone += [{"color": colour, "marker": marker}] if len(x) else []
    if alone:
        legend["independent runs"] = side_by_side(alone, ms=7, mfc="none")
    x, y, _ = _columns(frontier(curves), size)
    (legend["best at its budget"],) = axes.step(x, y, "o--", color="0.3", lw=0.9, ms=12, mfc="none", where="post")
    legend |= deviation_entry(figure)
    (left, right), heights = limits(*_columns(curves + standard, size))
    over_time(axes, (left, right), unit)
    axes.set(ylim=heights, title=title, ylabel=f"evaluation {label(metric)}")
    # Of the artists' own labels, matplotlib leaves out those that start with "_", as an arm's name may.
    options: Any = {"frameon": False, "handler_map": HANDLERS}
    figure.legend([*legend.values()], [*legend], loc="outside right upper", **options)
    return figure


def _columns(means: Iterable[Mean], size: float) -> np.ndarray:
    return np.reshape([(m.seconds / size, m.value, m.deviation) for m in means], (-1, 3)).T
