"""What papers on pruning report, as Blalock et al. have gathered it (arXiv:2003.03033): whom they compare to, on what.

Their two tables lie beside their code, in analysis/assets/existing-results of JJGO/shrinkbench.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from ..run.results import aligned, percent
from .density_figure import styles
from .foreign_tables import Line, lines_of
from .shrinkbench_figure import OVER, over_ratio

MOST = 10  # pairs that are listed
VALUES = {"top1": "top-1 accuracy", "change1": "change of the top-1 accuracy"}
SPREAD = {"parameters": "parameters (millions)", "multiply_adds": "multiply-adds (billions)", "dense1": "top-1"}
OF_RESULTS = ("Paper", "Dataset", "Model", "Err1", "Top1", "dTop1", "OrigTop1", "OrigErr1", "OrigMParams", "OrigGFLOPS")
OF_RESULTS += ("MParams", "keptParams", "savedParams", "old/new Nparam")
OF_RESULTS += ("GFLOPS", "keptFLOPS", "savedFLOPS", "old/new FLOPS")
OF_PAPERS = ("Name", "Compares To")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A result of a paper; NaN is what it does not tell.

    Attributes:
        paper, pair: the paper's name, and "model on data".
        compression, speedup: of parameters, and of multiply-adds.
        top1, change1: the accuracy from 0 to 1, and its change from the dense network's, `dense1`.
        parameters, multiply_adds: of the dense network, in millions and in billions.
    """

    paper: str
    pair: str
    compression: float
    speedup: float
    top1: float
    change1: float
    dense1: float
    parameters: float
    multiply_adds: float


def read_results(path: str | os.PathLike[str]) -> list[Published]:
    """The results in a table with the columns `OF_RESULTS`; raises OSError, or ValueError where it is none."""
    return [*map(_published, lines_of(path, OF_RESULTS))]


def _published(line: Line) -> Published:
    number, share = line.number, line.share
    dense1, change1 = _first(share("OrigTop1"), 1 - share("OrigErr1")), share("dTop1", least=-1)
    top1 = _first(share("Top1"), 1 - share("Err1"), dense1 + change1)
    return Published(
        paper=line["Paper"],
        pair=f"{line['Model']} on {line['Dataset']}",
        compression=_ratio(line, "old/new Nparam", "OrigMParams", "MParams", "keptParams", "savedParams"),
        speedup=_ratio(line, "old/new FLOPS", "OrigGFLOPS", "GFLOPS", "keptFLOPS", "savedFLOPS"),
        top1=top1,
        change1=_first(change1, top1 - dense1),
        dense1=dense1,
        parameters=number("OrigMParams"),
        multiply_adds=number("OrigGFLOPS"),
    )


def _ratio(line: Line, told: str, whole: str, left: str, kept: str, saved: str) -> float:
    """As the paper tells it, or from what is kept, or saved."""
    size, ratio = line.number(whole), line.number(told)
    shares = line.number(left) / size if size > 0 else math.nan, line.share(kept), 1 - line.share(saved)
    return _first(ratio if ratio > 0 else math.nan, *(1 / share if share > 0 else math.nan for share in shares))


def read_papers(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """By paper those that it compares to; raises OSError, or ValueError where the table lacks `OF_PAPERS`."""
    lines = lines_of(path, OF_PAPERS)
    return {line["Name"]: [name for name in line["Compares To"].split(",") if name.strip()] for line in lines}


def read_ours(path: str | os.PathLike[str], pair: str) -> dict[str, list[dict[str, float]]]:
    """By method and initial model what a study `shrinkbench` has written of one of its pairs, in shrinkbench.csv.

    Raises OSError, or ValueError where the file has nothing of the pair.
    """
    names = ("compression", "speedup", "top1", "change1")
    curves: dict[str, list[dict[str, float]]] = {}
    for line in lines_of(path, ("source", "pair", "initial", "method", *names)):
        if line["pair"] == pair and not line["source"]:
            curve = f"here: {line['method']}, {line['initial']}"
            curves.setdefault(curve, []).append({name: line.number(name) for name in names})
    if not curves:
        raise ValueError(f"{path}: has no pair {pair}")
    return curves


def _first(*values: float) -> float:
    return next((value for value in values if math.isfinite(value)), math.nan)


def papers_by_pair(results: Sequence[Published]) -> dict[str, set[str]]:
    """The pairs of model and data by falling number of papers, and these."""
    found: dict[str, set[str]] = {}
    for one in results:
        found.setdefault(one.pair, set()).add(one.paper)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def spread(results: Sequence[Published], name: str) -> dict[str, tuple[float, float, int]]:
    """By pair the least and the greatest that papers tell of the same dense network, of those of two papers or more."""
    values: dict[str, dict[str, set[float]]] = {}
    for one in results:
        if math.isfinite(value := getattr(one, name)):
            values.setdefault(one.pair, {}).setdefault(one.paper, set()).add(value)
    return {
        pair: (min(map(min, own.values())), max(map(max, own.values())), len(own))
        for pair, own in values.items()
        if len(own) > 1
    }


def text(results: Sequence[Published], compared: Mapping[str, Sequence[str]]) -> str:
    """How many papers compare to none or one, the commonest pairs, and how much their dense networks differ."""
    papers, pairs = len(compared), papers_by_pair(results)
    lines = [f"{papers} papers, {len(results)} results on {len(pairs)} pairs of model and data"]
    for number, words in enumerate(("no other", "one other")):
        count = sum(len(others) == number for others in compared.values())
        lines.append(f"{count} ({percent(count / max(papers, 1))}) compare to {words}")
    spreads = {name: spread(results, name) for name in SPREAD}
    rows = [["", "papers", *SPREAD.values()]]
    for pair, own in [*pairs.items()][:MOST]:
        rows.append([pair, str(len(own)), *(_range(found.get(pair)) for found in spreads.values())])
    lines += ["", "the commonest pairs, and what different papers tell of the same dense network"]
    return "\n".join([*lines, aligned(rows, left=("",))])


def _range(found: tuple[float, float, int] | None) -> str:
    return f"{found[0]:.4g} to {found[1]:.4g} ({found[2]} papers)" if found else ""


def draw(results: Sequence[Published], pair: str, ours: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy, and its change, over compression and speed-up: curves of the papers on the pair, and of ours."""
    published: dict[str, list[Mapping[str, float]]] = {}
    for one in results:
        if one.pair == pair:
            published.setdefault(one.paper, []).append(vars(one))
    curves = {
        curve: points
        for curve, points in {**published, **ours}.items()
        if any(_places(points, *axes) for axes in product(OVER, VALUES))
    }
    looks = styles(curves)
    figure = Figure(figsize=(11, 7), dpi=150, layout="constrained")
    figure.suptitle(f"published results for {pair}")
    for row, (name, label) in zip(figure.subplots(2, 2), VALUES.items(), strict=True):
        for axes, (over, words) in zip(row, OVER.items(), strict=True):
            for curve, points in curves.items():
                x, y = np.array(_places(points, over, name) or [(math.nan, math.nan)]).T
                axes.plot(x, y, label=curve, **{**looks[curve], "lw": 2.2 if curve in ours else 0.8})
            axes.set(xlabel=words, ylabel=label)
            over_ratio(axes)
    named = figure.axes[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _places(points: Sequence[Mapping[str, float]], x: str, y: str) -> list[tuple[float, float]]:
    """Where those lie whose both numbers are known."""
    return sorted((one[x], one[y]) for one in points if math.isfinite(one[x]) and math.isfinite(one[y]))
