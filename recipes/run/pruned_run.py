"""What a run that prunes has beside others: its scheduler, the size of its model, a LotteryTicket's levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from composer.core import DataSpec, State, ensure_data_spec
from composer.optim import ConstantScheduler

from accelerando.algorithms import LotteryTicket, PruneAtInit
from accelerando.algorithms.pruning.size import ModelSize
from accelerando.algorithms.pruning.sparsity import Pruning

from .history import EVAL_PREFIX, Record
from .results import aligned, label


def pruning_of(state: State) -> Pruning | None:
    """What prunes in this run."""
    return next((algorithm for algorithm in state.algorithms if isinstance(algorithm, Pruning)), None)


def wrapped(scheduler: Any, algorithms: Iterable[Any]) -> Any:
    """The scheduler as seen through an algorithm that trains several times in one run, and sets it back each time."""
    for algorithm in algorithms:
        if wrap := getattr(algorithm, "wrap", None):
            scheduler = wrap(scheduler or ConstantScheduler())
    return scheduler


def show_transforms(algorithms: Iterable[Any], train_data: Any) -> None:
    """Tells what looks at samples before training what the data's batches go through on their way to the model."""
    for algorithm in algorithms:
        if isinstance(algorithm, PruneAtInit) and isinstance(train_data, DataSpec):
            algorithm.transform = partial(_transformed, train_data)


def _transformed(data: DataSpec, batch: Any) -> Any:
    return data.microbatch_transforms(data.batch_transforms(batch))


def size_of(state: State, train_data: Any) -> tuple[ModelSize, float] | None:
    """Of a run that prunes: the model's size, and the share that is left of what can be pruned.

    Where nothing has been trained since the start, the algorithm has yet to see a batch to count multiply-adds with.
    """
    if (pruning := pruning_of(state)) is None:
        return None
    if not pruning.traced:
        data = ensure_data_spec(train_data)
        pruning.trace(state, _transformed(data, state.device.batch_to_device(next(iter(data.dataloader)))))
    return pruning.size(state), pruning.share_left() if pruning.masks else 1.0


def levels_of(state: State, size: ModelSize | None, records: Sequence[Record]) -> list[dict[str, Any]] | None:
    """A LotteryTicket's results, each with what this level alone had cost, and with its size; `size` is the last one's.

    Of a parameter, all elements take part in as many multiply-adds.
    """
    if size is None or not isinstance(ticket := pruning_of(state), LotteryTicket):
        return None
    by_batch = {record["batch"]: record for record in records}
    levels, start = [], dict.fromkeys(("batch", "samples", "seconds"), 0)
    for level in ticket.results:
        end = by_batch[level["batch"]]
        cost = {"batches": int(end["batch"] - start["batch"]), "samples": int(end["samples"] - start["samples"])}
        kept = {name: int(mask.count_nonzero()) for name, mask in ticket.masks_of(level["level"]).items()}
        left = {tensor.name: kept.get(tensor.name, tensor.parameters) for tensor in size.tensors}
        effective = sum(t.multiply_adds * left[t.name] / max(t.parameters, 1) for t in size.tensors)
        ratios = size.parameters / sum(left.values()), size.multiply_adds / effective if effective else math.inf
        sizes = dict(zip(("compression_ratio", "speedup"), ratios, strict=True))
        levels.append({**level, **cost, "seconds": end["seconds"] - start["seconds"], **sizes})
        start = end
    return levels


def level_table(levels: Sequence[Mapping[str, Any]]) -> str:
    """One aligned row per level."""
    metrics = [name for name in levels[0] if name.startswith(EVAL_PREFIX.partition("/")[2])]
    names = (label(f"metrics/{name}") for name in metrics)
    rows: list[tuple[str, ...]] = [("level", "density", *names, "compression", "speedup", "seconds")]
    for level in levels:
        values = (f"{level[name]:.4f}" for name in metrics)
        ratios = (f"{level[name]:.2f}" for name in ("compression_ratio", "speedup"))
        rows.append((str(level["level"]), f"{level['density']:.2%}", *values, *ratios, f"{level['seconds']:.1f}"))
    return aligned(rows, left=())
