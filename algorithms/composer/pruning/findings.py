"""What a run that prunes leaves in its results: the size of its model, and that of each level of a lottery ticket."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...pruning.size import ModelSize, aligned
from ..for_recipes import label

OF_SIZE = ("density", "compression_ratio", "theoretical_speedup")
OF_LEVEL = ("level", "density", "batch", "batches", "samples", "seconds", "compression_ratio", "speedup")
COSTS = ("batch", "samples", "seconds")


def with_costs(
    levels: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, float]], begun: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Each level with the batches, samples and seconds that it alone had cost.

    `records` hold the sums by `batch`, and `begun` those with which the run began.
    """
    by_batch = {record["batch"]: record for record in records}
    told, start = [], begun
    for level in levels:
        end = by_batch[level["batch"]]
        batches, samples, seconds = (end[name] - start[name] for name in COSTS)
        told.append({**level, "batches": int(batches), "samples": int(samples), "seconds": seconds})
        start = end
    return told


def ratios(size: ModelSize, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Compression ratio and speedup of the model of that size when these masks held, infinite where nothing was left.

    Of a parameter, all elements take part in as many multiply-adds.
    """
    kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    left = {tensor.name: kept.get(tensor.name, tensor.parameters) for tensor in size.tensors}
    effective = sum(t.multiply_adds * left[t.name] / max(t.parameters, 1) for t in size.tensors)
    speedup = size.multiply_adds / effective if effective else math.inf
    return {"compression_ratio": size.parameters / sum(left.values()), "speedup": speedup}


def check_numbers(values: Any, names: Sequence[str]) -> None:
    """Raise ValueError unless each of the names stands there with a number, or with None for one that is not finite."""
    for name in names:
        given = values.get(name, "missing") if isinstance(values, Mapping) else "missing"
        if type(given) not in (int, float, type(None)):
            raise ValueError(f"{name} is {given!r}; expected a number")


def level_table(levels: Sequence[Mapping[str, Any]]) -> str:
    """One aligned row per level, with what the evaluators called `eval` have found."""
    metrics = [name for name in levels[0] if name.startswith("eval/")]
    names = (label(f"metrics/{name}") for name in metrics)
    rows: list[tuple[str, ...]] = [("level", "density", *names, "compression", "speedup", "seconds")]
    for level in levels:
        values = (_text(level.get(name), 4) for name in metrics)
        sizes = (_text(level[name], 2) for name in ("compression_ratio", "speedup"))
        rows.append((str(level["level"]), f"{level['density']:.2%}", *values, *sizes, f"{level['seconds']:.1f}"))
    return aligned(rows)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
