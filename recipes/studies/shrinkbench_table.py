"""The table of `shrinkbench`: pruned networks, ours or somebody else's, and their means over seeds, as told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..run.results import aligned
from .density import DENSE
from .foreign_tables import Line, lines_of
from .statistics import mean_and_deviation
from .table import Row

RANDOM, MAGNITUDE, GRADIENT = "random", "magnitude", "gradient"
TOP5 = "MulticlassTop5Accuracy"
WHERE = ("pair", "initial", "method", "asked")
MEASURED = ("top1", "change1", "top5", "change5", "compression", "speedup")
# Of the results of JJGO/shrinkbench, and the names that it gives the paper's baselines.
NEEDED = ("dataset", "model", "strategy", "compression", "seed", "post_acc1")
STRATEGIES = {
    "RandomPruning": RANDOM,
    "GlobalMagWeight": f"global {MAGNITUDE}",
    "LayerMagWeight": f"layerwise {MAGNITUDE}",
    "GlobalMagGrad": f"global {GRADIENT}",
    "LayerMagGrad": f"layerwise {GRADIENT}",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network that was pruned and trained on; NaN is what is not known.

    Attributes:
        pair: the name of model and data, which are `model` and `data`.
        initial: which of the pair's initial models was pruned; "" where nobody says.
        method: by what; `baseline` says which of the paper's that is, or "".
        asked: the compression ratio that was asked for.
        compression, speedup: those of all parameters and of multiply-adds, counted.
        top1, top5: accuracies, from 0 to 1; `dense1` and `dense5` those of the initial model.
        multiply_adds: those of the initial model, for one input.
    """

    pair: str
    model: str
    data: str
    initial: str
    method: str
    baseline: str
    asked: float
    seed: Any
    compression: float
    speedup: float
    top1: float
    top5: float
    dense1: float
    dense5: float
    multiply_adds: float

    @property
    def change1(self) -> float:
        """Of the top-1 accuracy, from the initial model's."""
        return self.top1 - self.dense1

    @property
    def change5(self) -> float:
        """Of the top-5 accuracy."""
        return self.top5 - self.dense5


def entries_of(rows: Sequence[Row], metric: str) -> list[Entry]:
    """Those of a study's rows, whose top-1 accuracy is `metric`; an initial model is a row of its own."""
    dense = {(row["pair"], row["initial"]): row.metrics for row in rows if row["method"] == DENSE}
    top5 = f"{metric.rpartition('/')[0]}/{TOP5}"
    found = []
    for row in rows:
        if row["method"] == DENSE:
            continue
        initial, own = dense.get((row["pair"], row["initial"]), {}), row.metrics
        found.append(
            Entry(
                **{name: row[name] for name in ("pair", "model", "data", "initial", "method", "seed")},
                baseline=str(row.tags.get("baseline", "")),
                asked=row["asked"],
                compression=row["compression_ratio"],
                speedup=row["speedup"],
                top1=own.get(metric, math.nan),
                top5=own.get(top5, math.nan),
                dense1=initial.get(metric, math.nan),
                dense5=initial.get(top5, math.nan),
                multiply_adds=own.get("multiply_adds", math.nan),
            )
        )
    return found


def read_results(path: str) -> list[Entry]:
    """Those of a CSV with the columns of ShrinkBench's results, one line for each run.

    Needed are dataset, model, strategy, compression, seed and post_acc1; what lacks of post_acc5, pre_acc1, pre_acc5,
    real_compression, speedup, flops and resume (which tells initial models apart) is not known. Accuracies are shares
    of 1; those of an initial model are the pre_acc of its lines at compression 1. Lines that are not `completed` are
    left out. Raises OSError or ValueError for a file that cannot be read so, or that has several runs of one seed.
    """
    lines = [line for line in lines_of(path, NEEDED) if line["completed"].lower() != "false"]
    dense: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for line in filter(_is_dense, lines):
        dense.setdefault(_initial(line), []).append((line.share("pre_acc1"), line.share("pre_acc5")))
    entries, places = [], dict[tuple[Any, ...], str]()
    for line in lines:
        if _is_dense(line):
            continue
        if math.isnan(asked := line.number("compression")) or math.isnan(top1 := line.share("post_acc1")):
            raise ValueError(f"{line.place}: lacks compression or post_acc1; expected a number")
        if not 1 < asked < math.inf:
            raise ValueError(f"{line.place}: compression is {asked:g}; expected 1 of the initial model, or more")
        run = *_initial(line), line["strategy"], asked, line["seed"]
        if (before := places.setdefault(run, line.place)) != line.place:
            hint = "expected one run of each initial model, strategy, compression and seed"
            raise ValueError(f"{line.place}: is as {before} is; {hint}")
        dense1, dense5 = np.mean(dense.get(_initial(line), [(math.nan, math.nan)]), axis=0).tolist()
        entries.append(
            Entry(
                pair=f"{line['dataset']}-{line['model']}",
                model=line["model"],
                data=line["dataset"],
                initial=line["resume"],
                method=line["strategy"],
                baseline=STRATEGIES.get(line["strategy"], ""),
                asked=asked,
                seed=line["seed"],
                compression=_counted(line, "real_compression"),
                speedup=_counted(line, "speedup"),
                top1=top1,
                top5=line.share("post_acc5"),
                dense1=dense1,
                dense5=dense5,
                multiply_adds=_counted(line, "flops"),
            )
        )
    if not entries:
        raise ValueError(f"{path}: has no line of a network that was pruned")
    return entries


def _initial(line: Line) -> tuple[str, ...]:
    return line["dataset"], line["model"], line["resume"]


def _is_dense(line: Line) -> bool:
    compression = line.number("compression")
    if line["strategy"] in ("", "None") and compression != 1:
        raise ValueError(f"{line.place}: lacks a strategy, at a compression that is not 1")
    return compression == 1


def _counted(line: Line, name: str) -> float:
    """What ShrinkBench has not counted is -1 there."""
    return value if (value := line.number(name)) > 0 else math.nan


def means(entries: Iterable[Entry], source: str = "") -> list[dict[str, Any]]:
    """A line for each pair, initial model, method and ratio: means over seeds, and sample deviations.

    `source` is the name of the table, "" of the study's own.
    """
    groups: dict[tuple[Any, ...], dict[Any, Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(getattr(entry, name) for name in WHERE), {})[entry.seed] = entry
    lines = []
    for seeds in groups.values():
        own = [*seeds.values()]
        names = ("pair", "model", "data", "initial", "method", "baseline", "asked", "dense1", "dense5", "multiply_adds")
        line = {"source": source, **{name: getattr(own[0], name) for name in names}, "seeds": len(own)}
        for name in MEASURED:
            line[name], line[f"{name} deviation"] = mean_and_deviation([getattr(one, name) for one in own])
        lines.append(line)
    return lines


def initials_of(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The lines by pair and initial model."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["pair"], line["initial"]), []).append(line)
    return found


def text(lines: Sequence[Mapping[str, Any]]) -> str:
    """For each initial model accuracies, their changes, and speed-ups, methods over compression ratios."""
    return "\n\n".join("\n".join(_part(pair, initial, own)) for (pair, initial), own in initials_of(lines).items())


def _part(pair: str, initial: str, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first, ratios = lines[0], sorted({line["asked"] for line in lines})
    known = (f"top-{k} {first[f'dense{k}']:.4f}" for k in (1, 5) if math.isfinite(first[f"dense{k}"]))
    named = f"{pair}, initial model {initial}" if initial else pair
    seeds = sorted({line["seeds"] for line in lines})
    number = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    yield f"{named} ({first['model']} on {first['data']}; {', '.join(known) or 'its accuracy is not known'})"
    yield f"mean ± standard deviation over {number} seed{'s' * (number != '1')}, and the change from the initial model"
    cells = {(line["method"], line["asked"]): line for line in lines}
    methods = [*dict.fromkeys(line["method"] for line in lines)]
    for name in ("top1", "top5", "compression", "speedup"):
        if any(math.isfinite(line[name]) for line in lines):
            title = {"top1": "top-1", "top5": "top-5", "compression": "compression", "speedup": "theoretical speed-up"}
            rows = [[title[name], *(f"{ratio:g}x" for ratio in ratios)]]
            for method in methods:
                rows.append([method, *(_cell(cells.get((method, ratio)), name) for ratio in ratios)])
            yield aligned(rows, left=(title[name],), blank="not trained, or not known")


def _cell(line: Mapping[str, Any] | None, name: str) -> str:
    if line is None or math.isnan(line[name]):
        return ""
    deviation = line[f"{name} deviation"]
    if name in ("compression", "speedup"):
        return f"{line[name]:.2f}"
    told = f"{line[name]:.4f}" + (f" ± {deviation:.4f}".replace(" 0.", " .") if math.isfinite(deviation) else "")
    change = line[name.replace("top", "change")]
    return f"{told} ({change:+.3f})".replace("+0.", "+.").replace("-0.", "-.") if math.isfinite(change) else told
