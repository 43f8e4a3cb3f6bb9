"""Loss and error of a network along a path through its weights, on data that are read and moved once for all points.

path = evaluate_path(model, (start, end), 30, test_batches)
100 * barrier(path.means["error"])
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batches import target_in
from ..validation import check
from .batch_norm import recompute_statistics
from .interpolation import Path, State
from .walk import Forward, Walk

Metric = Callable[[Any, Tensor], Tensor]


def loss_per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross entropy of each example, `(N,)`, of its logits, `(N, C)`; in float32 at least."""
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    targets = targets if targets.is_floating_point() else targets.long()
    return F.cross_entropy(outputs.to(dtype), targets, reduction="none")


def error_per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 for each example whose highest logit, of `(N, C)`, is not that of its class, `(N,)`, otherwise 0."""
    return (outputs.argmax(1) != targets).float()


METRICS: Mapping[str, Metric] = {"loss": loss_per_example, "error": error_per_example}


@dataclass(frozen=True, kw_only=True)
class PathMetrics:
    """What `evaluate_path` has found at each of the `alphas`.

    `means` holds by the name of the metric its means over all examples, one for each point; `per_example`, where that
    was asked for, its values `(points, examples)` on the CPU, the examples in the order of the batches.
    """

    alphas: list[float]
    examples: int
    means: dict[str, list[float]]
    per_example: dict[str, Tensor]


def evaluate_path(
    model: nn.Module,
    states: tuple[State, State] | Path,
    alphas: int | Sequence[float],
    batches: Iterable[Any],
    metrics: Mapping[str, Metric] = METRICS,
    *,
    batch_norm: Literal["interpolate", "recompute"] = "interpolate",
    statistics: Iterable[Any] | None = None,
    forward: Forward | None = None,
    target_key: Any = 1,
    per_example: bool = False,
) -> PathMetrics:
    """Returns the metrics of a model in evaluation mode at every point of a path through its weights.

    Nothing of the model is left changed, nor are the global random generators, whatever is raised. At the ends the
    metrics are those of a plain evaluation, bit for bit. Losses that are infinite or NaN stay so. Of several ranks each
    measures on the batches that it is given.

    Args:
        model: the network, on the device on which it is evaluated. Its precision is that of the batches, or that of an
            autocast which is on.
        states: the two ends of a straight line; or a function from alpha to the state there, such as `linear_path`
            gives for some layers alone, or one that joins several. It is asked once for each point and batch.
        alphas: the points; or how many there are, evenly spaced from 0 to 1, with both.
        batches: pairs (inputs, targets), or of other forms with `forward`. They are gone through once.
        metrics: functions (outputs, targets) -> a value for each example, `(N,)`, by name. By default "loss" is the
            cross entropy, and "error" the share that is classified wrongly.
        batch_norm: "interpolate" takes the running statistics from `states`. "recompute" recomputes them at each point
            from `statistics`, as `recompute_statistics` does, whose path serves several calls. Barriers differ much
            between the two, so say beside them which it is.
        statistics: batches of training data, for "recompute" alone.
        forward: a function (model, batch) -> outputs; by default `model(batch[0])`.
        target_key: where a batch holds its targets; in a mapping the default means "labels".
        per_example: whether the values of each example are kept too.

    Raises ValueError for arguments that cannot work, for batches without examples, and for a state that does not fit
    the model.
    """
    modes = ("interpolate", "recompute")
    check("evaluate_path", "batch_norm", batch_norm in modes, " or ".join(modes), batch_norm)
    fits = (batch_norm == "recompute") == (statistics is not None)
    kind = type(statistics).__name__
    check("evaluate_path", "statistics", fits, "given for batch_norm='recompute', and for nothing else", kind)
    check("evaluate_path", "metrics", len(metrics) > 0, "one function or more, by name", metrics)
    walk = Walk("evaluate_path", model, states, alphas, forward)
    if statistics is not None:
        walk.path = recompute_statistics(model, walk.path, walk.points, statistics, forward=forward)
    sums = {name: torch.zeros(len(walk.points), dtype=torch.float64) for name in metrics}
    found: dict[str, list[Tensor]] = {name: [] for name in metrics if per_example}
    examples = 0
    with walk.begin():
        for batch in walk.batches(batches):
            targets = target_in("evaluate_path", batch, target_key)
            rows = [[metric(outputs, targets) for metric in metrics.values()] for _, outputs in walk.outputs(batch)]
            examples += len(targets)
            # Together, so that the host waits for the device once a batch, and not at every point.
            for name, column in zip(metrics, zip(*rows, strict=True), strict=True):
                values = stacked("evaluate_path", f"metrics[{name!r}]", column, targets.shape[:1])
                sums[name] += values.double().sum(1)
                if per_example:
                    found[name].append(values)
    check("evaluate_path", "batches", examples > 0, "batches of (inputs, targets)", "none")
    return PathMetrics(
        alphas=walk.points,
        examples=examples,
        means={name: (total / examples).tolist() for name, total in sums.items()},
        per_example={name: torch.cat(values, 1) for name, values in found.items()},
    )


def stacked(owner: str, argument: str, column: Sequence[Any], shape: torch.Size) -> Tensor:
    """A metric of each point and example, on the CPU; ValueError, which names the argument, for what is none."""
    shapes = {value.shape if isinstance(value, Tensor) else type(value).__name__ for value in column}
    fits = shapes == {shape}
    check(owner, argument, fits, f"of one value for each example, {tuple(shape)}", shapes)
    return torch.stack([*column]).cpu()
