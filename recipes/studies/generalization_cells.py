"""What the study `generalization` has of each training: losses of groups of examples, sizes; rows, lines and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelerando.algorithms.checkpoints import read_metadata
from accelerando.algorithms.connectivity.curves import lower_is_better
from accelerando.algorithms.examples.scores import easiest_first
from accelerando.algorithms.snapshots import find_snapshot

from ..run.results import aligned, label, percent
from .density import DENSE
from .statistics import mean_and_deviation
from .table import Row, by_seed, groups

EXTENDED, ONCE, NARROWER = "extended", "once", "narrower"
LEFT_OUT = {"improved": "without improved", "random": "without random"}  # arms of trainings on fewer examples
ALL, CLEAN, WRONG, EL2N = "all", "clean", "wrong", "EL2N"  # parts of the training examples
LOSS = "train/loss/"  # begins the names of such metrics
PARAMETERS = "parameters"  # how many are not pruned


def scores_of(folder: Path, at: str) -> tuple[dict[str, Tensor], str]:
    """The scores that the run in a folder has left of a moment, by name, and the digest of their data."""
    found = find_snapshot(folder / "scores", at)
    return found.weights(), read_metadata(found.file)["digest"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The digest of the training examples, and which of them are in each part."""

    digest: str
    rows: Mapping[str, Tensor]


def parts_in(folders: Sequence[Path], at: str, noise: float, count: int) -> Parts | None:
    """By the EL2N of a moment that dense networks have left in these folders, averaged over those that are finite.

    None where there is no folder. Raises ValueError where their data differ.
    """
    from ..data.noise import changed_by

    found = [scores_of(folder, at) for folder in folders]
    if not found:
        return None
    if len({digest for _, digest in found}) > 1:
        raise ValueError(f"the dense networks in {', '.join(map(str, folders))} have scores of different data")
    el2n = torch.stack([scores["el2n"] for scores, _ in found])
    changed = changed_by(el2n.shape[1], noise, 0)
    return Parts(digest=found[0][1], rows=parts_of(changed, el2n[el2n.isfinite().all(1)], count))


def parts_of(changed: Tensor, el2n: Tensor, count: int) -> dict[str, Tensor]:
    """Which training examples there are in each part, by its name.

    These are all; those whose labels are right and those that are `changed`, if some are; and, if there are replicates,
    groups of about the same size by percentile of EL2N, `(replicates, examples)`, from the easiest.
    """
    wrong = torch.zeros(el2n.shape[1], dtype=torch.bool)
    wrong[changed] = True
    parts = {ALL: torch.arange(len(wrong))}
    if len(changed):
        parts |= {CLEAN: (~wrong).nonzero()[:, 0], WRONG: wrong.nonzero()[:, 0]}
    if not len(el2n):
        return parts
    ends = [percent(share / count).removesuffix(" %") for share in range(count + 1)]
    own = torch.tensor_split(easiest_first(el2n), count)
    return parts | {f"{EL2N} {ends[i]} to {ends[i + 1]} %": group for i, group in enumerate(own)}


def means_over(parts: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The means of loss and error over each part's examples, as metrics of a row."""
    return {
        f"train/{name}/{part}": scores[name].double()[rows].mean().item()
        for name in ("loss", "error")
        for part, rows in parts.items()
    }


def best_level(values: Mapping[int, Iterable[float]], metric: str) -> int:
    """The level whose mean over seeds is best, 0 the dense network's; of equal ones the densest."""
    sign = -1 if lower_is_better(metric) else 1
    means = {level: sign * mean_and_deviation([*own])[0] for level, own in values.items()}
    return max(sorted(means), key=lambda level: means[level] if math.isfinite(means[level]) else -math.inf, default=0)


def optimum(rows: Iterable[Row], ladder: str, metric: str) -> int:
    """The best level of a ladder by its rows, among which the dense network's are."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["arm"] in (ladder, DENSE):
            found.setdefault(row["level"], []).append(row.metrics.get(metric, math.nan))
    return best_level(found, metric)


def placed(rows: Sequence[Row], ladder: str) -> list[Row]:
    """The rows of one fraction of wrong labels, by the density that the ladder has at their level.

    At a level, dense networks that are trained for as many rounds stand at its density too, and those that are narrower
    are one arm: a network with as many parameters as the ladder's, whose metrics are interpolated over the logarithm
    of the number of parameters. There is none below the narrowest. What is trained on fewer examples is left out.
    """
    densities = {level: own for (level,), own in groups((r for r in rows if r["arm"] == ladder), "level").items()}
    places = {level: float(np.mean([row["density"] for row in own])) for level, own in densities.items()} | {0: 1.0}
    whole = [row for row in rows if row["arm"] not in LEFT_OUT.values()]
    kept = [row for row in whole if row["arm"] != NARROWER] + _interpolated(whole, ladder)
    return [replace(row, tags={**row.tags, "density": places[row["level"]]}) for row in kept if row["level"] in places]


def _interpolated(rows: Sequence[Row], ladder: str) -> list[Row]:
    found = []
    for (_, _), own in groups(rows, "level", "seed").items():
        wanted = next((row for row in own if row["arm"] == ladder), None)
        known = sorted((r for r in own if r["arm"] in (NARROWER, EXTENDED)), key=lambda row: row[PARAMETERS])
        if wanted is None or len(known) < 2 or not known[0][PARAMETERS] <= wanted[PARAMETERS] <= known[-1][PARAMETERS]:
            continue
        x = np.log([row[PARAMETERS] for row in known])
        shared = [name for name in known[0].metrics if all(name in row.metrics for row in known)]
        metrics = {
            name: float(np.interp(np.log(wanted[PARAMETERS]), x, [row.metrics[name] for row in known]))
            for name in shared
        }
        metrics |= {name: wanted[name] for name in (PARAMETERS, "compression_ratio", "speedup")}
        tags = {**wanted.tags, "arm": NARROWER}
        found.append(Row(node=NARROWER, tags=tags, batches=0, samples=0, seconds=0.0, metrics=metrics))
    return found


def values(rows: Iterable[Row], arm: str, level: int, metric: str) -> dict[Any, float]:
    """The metric by seed."""
    return by_seed((row for row in rows if row["arm"] == arm and row["level"] == level), metric)


def lines_of(rows: Sequence[Row], noise: float, metric: str, chosen_by: str | None) -> list[dict[str, Any]]:
    """A line for each arm and level of placed rows: means over seeds, and the metric's standard deviation."""
    lines = []
    for (arm, level), own in groups(rows, "arm", "level").items():
        mean, deviation = mean_and_deviation([row.metrics.get(metric, math.nan) for row in own])
        names = [PARAMETERS, *filter(None, [chosen_by]), *(n for n in own[0].metrics if n.startswith("train/"))]
        more = {name: mean_and_deviation([row.metrics.get(name, math.nan) for row in own])[0] for name in names}
        place = {"noise": noise, "arm": arm, "level": level, "density": own[0]["density"], "seeds": len(own)}
        lines.append({**place, label(metric): mean, "deviation": deviation, **more})
    return lines


def losses(rows: Sequence[Row], level: int) -> str:
    """The training loss of each part of the examples, of the dense network and of all others at a level."""
    shown = groups((row for row in rows if row["level"] in (0, level)), "arm", "level")
    names = list(dict.fromkeys(name for own in shown.values() for name in own[0].metrics if name.startswith(LOSS)))
    lines = [["network", "weights", PARAMETERS, *(name.removeprefix(LOSS) for name in names)]]
    for (arm, _), own in shown.items():
        means = [np.mean([row.metrics.get(name, math.nan) for row in own]) for name in (PARAMETERS, *names)]
        lines.append([arm, percent(own[0]["density"]), f"{means[0]:,.0f}", *(f"{mean:.3g}" for mean in means[1:])])
    return aligned(lines, left=("network",))


def left_out(rows: Sequence[Row], metric: str) -> str:
    """The metric of the trainings on fewer examples, beside that on all."""
    lines = [["trained", "metric"]]
    for (arm,), own in groups((r for r in rows if r["arm"] in (DENSE, *LEFT_OUT.values())), "arm").items():
        mean, deviation = mean_and_deviation([row.metrics.get(metric, math.nan) for row in own])
        spread = f" ± {deviation:.4f}" if math.isfinite(deviation) else ""
        lines.append(["on all examples" if arm == DENSE else arm, f"{mean:.4f}{spread}"])
    return aligned(lines, left=("trained",)) if len(lines) > 2 else ""
