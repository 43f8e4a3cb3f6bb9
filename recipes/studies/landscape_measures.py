"""What is measured of a network where its training ends: the plane through it and its twins, and its Hessian."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from composer.core.precision import get_precision_context
from composer.devices import Device

from accelerando.algorithms.batches import device_of
from accelerando.algorithms.composer.for_recipes import FinishedRun
from accelerando.algorithms.composer.pruning.sparsity import plain_forward
from accelerando.algorithms.connectivity import (
    evaluate_plane,
    hessian_diagonal,
    hessian_eigenvalues,
    loss_per_example,
    plane_through,
)
from accelerando.algorithms.connectivity.batch_norm import batch_norms
from accelerando.algorithms.ranks import gathered, world_size
from accelerando.algorithms.snapshots import find_snapshot
from accelerando.algorithms.untouched import copied
from accelerando.algorithms.validation import check

from .measured_paths import CURVES, END, AtEnd, masks_of, network_of

PLANE, HESSIAN = "plane", "hessian"  # in a run's results
_DECADES = np.logspace(-6, 3, 28)
EDGES = np.concatenate([-_DECADES[::-1], _DECADES])  # of a diagonal's histogram; what lies beyond is in its last bins
CLEAR = 2  # standard errors from 0


class PlaneOfTwins(AtEnd):
    """At the end of a run, measures loss and error in the plane through it and its `twins`, two or three.

    That is on the first evaluation data. Several ranks share them, and average what each has found.

    Args:
        twins: folders of snapshots.
        points: how many there are on each of the two axes.
        margin: how far these reach beyond the networks, as a share of the networks' extent.
        batch_norm: whether its statistics are interpolated, as McDermott and Cummings do, though beyond the networks
            variances may be below 0, where nothing is defined; or recomputed at each point from training data.
        most_examples: how many there are of each data set at most, by default all.
    """

    def __init__(
        self,
        twins: list[str],
        points: int = 21,
        margin: float = 0.2,
        batch_norm: Literal["interpolate", "recompute"] = "recompute",
        most_examples: int | None = None,
        own_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        super().__init__(twins, most_examples, own_folder, training_batches)
        check("PlaneOfTwins", "points", points > 1, "2 or more", points)
        check("PlaneOfTwins", "margin", 0 <= margin < float("inf"), "0 or more", margin)
        self.points, self.margin = points, margin
        self.batch_norm: Literal["interpolate", "recompute"] = batch_norm

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """Metrics on the grid by row, the networks' places on it and how far they are off it, their own metrics.

        None where one of them has diverged.
        """
        model, state = network_of(run.state), run.state
        how = self.batch_norm if batch_norms(model) else "interpolate"
        ends = [find_snapshot(folder, END).weights() for folder in (*self.twins, self.own_folder)]
        if not all(value.isfinite().all() for end in ends for value in end.values()):
            return {PLANE: None}
        with get_precision_context(state.precision):
            found = evaluate_plane(
                model,
                plane_through(ends, device=device_of(network_of(state))),
                self.test(state),
                CURVES,
                self.points,
                margin=self.margin,
                batch_norm=how,
                statistics=everyones(self.train(state), state.device) if how == "recompute" else None,
                forward=plain_forward,
            )
        shares = gathered((found.examples, {name: grid.numpy() for name, grid in found.means.items()}, found.networks))
        total = sum(examples for examples, *_ in shares)

        def mean(values: Iterable[Any]) -> list[Any]:
            return np.average([*values], axis=0, weights=[examples for examples, *_ in shares]).tolist()

        return {
            PLANE: {
                "x": found.x,
                "y": found.y,
                "coordinates": found.plane.coordinates.tolist(),
                "distances": [*found.plane.distances],
                "batch_norm": how,
                "examples": total,
                "grid": {name: mean(grids[name] for _, grids, _ in shares) for name in CURVES},
                "networks": {name: mean(own[name] for *_, own in shares) for name in CURVES},
            }
        }

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        _check_keys(found, PLANE, ("x", "y", "coordinates", "distances", "grid", "networks"))


class HessianAtEnd(AtEnd):
    """At the end of a run, measures the Hessian of its loss, of cross entropy, in the weights that it keeps.

    Its end is the snapshot of `1dur`. The loss is the mean over the first training data, not augmented, in evaluation
    mode; over all ranks' together.

    Args:
        examples: how many.
        probes: how many random vectors estimate the diagonal, by Hutchinson's method; null for the exact one.
        eigenvalues: how many, the largest ones.
        at_once: with how many vectors the Hessian is multiplied at once, which takes as much more memory.
    """

    def __init__(
        self,
        examples: int = 128,
        probes: int | None = 100,
        eigenvalues: int = 1,
        at_once: int = 8,
        own_folder: str = "",
        training_batches: Callable[[Device], Iterator[Any]] | None = None,
    ):
        super().__init__([], examples, own_folder, training_batches)
        check("HessianAtEnd", "examples", examples > 0, "1 or more", examples)
        check("HessianAtEnd", "probes", probes is None or probes > 1, "2 or more, or null", probes)
        check("HessianAtEnd", "eigenvalues", eigenvalues > 0, "1 or more", eigenvalues)
        check("HessianAtEnd", "at_once", at_once > 0, "1 or more", at_once)
        self.probes, self.eigenvalues, self.at_once = probes, eigenvalues, at_once

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """Trace and eigenvalues with their errors; of the diagonal a histogram, and the share that is clearly below 0.

        `error` is the root mean square of the standard errors of the diagonal's values. None where the run diverged.
        """
        model, masks, device = copied(network_of(run.state)), masks_of(run.state) or None, run.state.device
        model.load_state_dict(find_snapshot(self.own_folder, END).weights())
        batches = [*everyones(self.train(run.state), device)]
        with torch.no_grad():
            losses = [_loss(model.eval(), batch) for batch in batches]
        if not all(loss.isfinite() for loss in losses):
            return {HESSIAN: None}
        diagonal = hessian_diagonal(model, batches, _loss, self.probes, masks=masks, at_once=self.at_once)
        largest = hessian_eigenvalues(model, batches, _loss, self.eigenvalues, masks=masks)
        values, errors = (torch.cat([*part.values()]).double().cpu() for part in (diagonal.values, diagonal.errors))
        counts, _ = np.histogram(values.clamp(EDGES[0], EDGES[-1]).numpy(), EDGES)
        return {
            HESSIAN: {
                "weights": len(values),
                "examples": sum(len(targets) for _, targets in batches),
                "trace": diagonal.trace,
                "trace_error": diagonal.trace_error,
                "eigenvalues": largest.values.tolist(),
                "residuals": largest.residuals.tolist(),
                "negative": (values < -CLEAR * errors).double().mean().item(),
                "error": errors.square().mean().sqrt().item(),
                "histogram": {"edges": EDGES.tolist(), "counts": counts.tolist()},
            }
        }

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        wanted = ("weights", "trace", "trace_error", "eigenvalues", "negative", "histogram")
        _check_keys(found, HESSIAN, wanted)


def everyones(batches: Iterable[Any], device: Device) -> Iterator[Any]:
    """All ranks' batches, the same on each."""
    if world_size() == 1:
        return iter(batches)
    own = [tuple(part.cpu() for part in batch) for batch in batches]
    return map(device.batch_to_device, chain.from_iterable(gathered(own)))


def _loss(model: Any, batch: Any) -> torch.Tensor:
    return loss_per_example(plain_forward(model, batch), batch[1]).mean()


def _check_keys(found: Mapping[str, Any], name: str, wanted: tuple[str, ...]) -> None:
    given = found.get(name, "missing")
    if given is not None and not (isinstance(given, dict) and {*wanted} <= given.keys()):
        raise ValueError(f"{name} is {given!r}; expected {', '.join(wanted)}, or null")
