"""The scores of GLUE, in %, of rows: one for each run and split, with the task's metrics by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .statistics import mean_and_deviation
from .table import Row, groups

# Without WNLI, which the average leaves out.
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")


def in_words(rows: Sequence[Row]) -> str:
    """Every metric of every split, as means over the rows of that split."""
    splits = groups(rows, "split")
    words = []
    for (split,), own in splits.items():
        for metric in own[0].metrics:
            value = float(np.mean([100 * row.metrics[metric] for row in own]))
            words.append(f"{metric} {f'{split} ' if len(splits) > 1 else ''}{value:.2f}")
    return ", ".join(words)


def averages(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each task, and one for all: the score's mean over seeds, and its standard deviation, by n - 1.

    A task's score is the mean of its metrics, of all splits; the average's is the mean of the tasks' scores, of those
    seeds that have them all.
    """
    found = {task: [row for row in rows if row["task"] == task] for task in GLUE}
    scores = {
        task: {
            seed: float(np.mean([100 * value for row in run for value in row.metrics.values()]))
            for (seed,), run in groups(own, "seed").items()
        }
        for task, own in found.items()
        if own
    }
    lines = [_line(task, [*own.values()]) for task, own in scores.items()]
    seeds = [seed for (seed,) in groups(rows, "seed") if all(seed in own for own in scores.values())]
    if seeds:
        name = "average" if len(scores) == len(GLUE) else f"average of {len(scores)}"
        lines.append(_line(name, [float(np.mean([own[seed] for own in scores.values()])) for seed in seeds]))
    return lines


def _line(name: str, scores: Sequence[float]) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(scores)
    return {"task": name, "score": mean, "deviation": deviation, "seeds": len(scores)}


def table(rows: Sequence[Row]) -> str:
    """The averages as text, each task's with its metrics."""
    from ..run.results import aligned

    lines = [("task", "score", "deviation", "seeds", "metrics")]
    for line in averages(rows):
        deviation = "" if math.isnan(line["deviation"]) else f"{line['deviation']:.2f}"
        words = in_words([row for row in rows if row["task"] == line["task"]])
        lines.append((line["task"], f"{line['score']:.2f}", deviation, str(line["seeds"]), words))
    return aligned(lines, left=("task", "metrics"), blank="of one seed")
