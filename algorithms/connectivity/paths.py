"""Loss and error of a network along a path through its weights, on data that are read and moved once for all points.

    path = evaluate_path(model, (start, end), 30, test_batches)
    100 * barrier(path.means["error"])

Batch norm's running statistics are not known between the ends. They are interpolated like the weights, as the code of
McDermott and Cummings does (arXiv 2310.18769), or recomputed from training data at each point, as Jordan et al. do
(arXiv 2211.08403). The barriers differ much, so say which it is beside them.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..batches import target_in
from ..validation import NoEffectWarning, check
from .batch_norm import averaging, batch_norms
from .borrowed import borrowed, load
from .interpolation import Path, State, linear_path

Metric = Callable[[Any, Tensor], Tensor]
Forward = Callable[[nn.Module, Any], Any]


def loss_per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross entropy of each example, `(N,)`, of its logits, `(N, C)`; in float32 at least."""
    dtype = torch.promote_types(outputs.dtype, torch.float32)
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
        batch_norm: "interpolate" takes the running statistics from `states`. "recompute" averages them over
            `statistics`, at each point and in one pass for all; each batch counts alike, as with torch's
            `momentum=None`, and layers other than batch norm are in evaluation mode.
        statistics: batches of training data, for "recompute" alone. Nobody looks at their targets.
        forward: a function (model, batch) -> outputs; by default `model(batch[0])`.
        target_key: where a batch holds its targets; in a mapping the default means "labels".
        per_example: whether the values of each example are kept too.

    Raises ValueError for arguments that cannot work, for batches without examples, and for a state that does not fit
    the model. A `NoEffectWarning` says that a model has no statistics to recompute.
    """
    modes = ("interpolate", "recompute")
    check("evaluate_path", "batch_norm", batch_norm in modes, " or ".join(modes), batch_norm)
    fits = (batch_norm == "recompute") == (statistics is not None)
    kind = type(statistics).__name__
    check("evaluate_path", "statistics", fits, "given for batch_norm='recompute', and for nothing else", kind)
    check("evaluate_path", "metrics", len(metrics) > 0, "one function or more, by name", metrics)
    points = _points(alphas)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    device = next(chain(model.parameters(), model.buffers())).device
    state_at = states if callable(states) else linear_path(*_pair(states), device=device)
    overlays: list[State] = [{} for _ in points]  # the statistics of each point
    sums = {name: torch.zeros(len(points), dtype=torch.float64) for name in metrics}
    found: dict[str, list[Tensor]] = {name: [] for name in metrics if per_example}
    examples = 0
    with borrowed(model, device) as own:

        def outputs_along(batch: Any) -> Iterator[Any]:
            for alpha, overlay in zip(points, overlays, strict=True):
                load(own, {**state_at(alpha), **overlay})
                yield (forward or _of_inputs)(model, batch)

        if statistics is not None and not batch_norms(model):
            text = f"{type(model).__name__} has no batch norm with running statistics: there is nothing to recompute"
            warnings.warn(f"evaluate_path: {text}.", NoEffectWarning, stacklevel=2)
        elif statistics is not None:
            with averaging(model) as fresh:
                overlays = [fresh for _ in points]
                for batch in statistics:
                    overlays = [{n: own[n].clone() for n in fresh} for _ in outputs_along(_moved(batch, device))]
            check("evaluate_path", "statistics", overlays[0] is not fresh, "batches of training data", "none")
        for batch in batches:
            batch = _moved(batch, device)
            targets = target_in("evaluate_path", batch, target_key)
            rows = [[metric(outputs, targets) for metric in metrics.values()] for outputs in outputs_along(batch)]
            examples += len(targets)
            # Together, so that the host waits for the device once a batch, and not at every point.
            for name, column in zip(metrics, zip(*rows, strict=True), strict=True):
                values = _values(name, column, targets.shape[:1])
                sums[name] += values.double().sum(1)
                if per_example:
                    found[name].append(values)
    check("evaluate_path", "batches", examples > 0, "batches of (inputs, targets)", "none")
    return PathMetrics(
        alphas=points,
        examples=examples,
        means={name: (total / examples).tolist() for name, total in sums.items()},
        per_example={name: torch.cat(values, 1) for name, values in found.items()},
    )


def _pair(states: Any) -> tuple[State, State]:
    fits = isinstance(states, tuple | list) and len(states) == 2
    check("evaluate_path", "states", fits, "(start, end) or a function of alpha", type(states).__name__)
    return states


def _points(alphas: int | Sequence[float]) -> list[float]:
    if isinstance(alphas, int):
        check("evaluate_path", "alphas", alphas > 1, "at least 2, for the ends, or a list of points", alphas)
        return [number / (alphas - 1) for number in range(alphas)]
    points = [float(alpha) for alpha in alphas]
    check("evaluate_path", "alphas", len(points) > 0, "one point or more", alphas)
    return points


def _values(name: str, column: Sequence[Any], shape: torch.Size) -> Tensor:
    """A metric of each point and example, on the CPU."""
    shapes = {value.shape if isinstance(value, Tensor) else type(value).__name__ for value in column}
    fits = shapes == {shape}
    check("evaluate_path", f"metrics[{name!r}]", fits, f"of one value for each example, {tuple(shape)}", shapes)
    return torch.stack([*column]).cpu()


def _of_inputs(model: nn.Module, batch: Any) -> Any:
    pair = isinstance(batch, tuple | list)
    check("evaluate_path", "forward", pair, "given for batches other than (inputs, targets)", type(batch).__name__)
    return model(batch[0])


def _moved(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):  # a tensor, or a batch of Hugging Face's
        return batch.to(device)
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, batch)
