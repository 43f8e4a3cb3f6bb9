"""The Hessian of a loss in the weights of a network: its diagonal, its trace, its largest eigenvalues.

McDermott and Cummings compare the diagonals of sparse networks ("Linear Mode Connectivity in Sparse Neural Networks",
arXiv 2310.18769). Products of the Hessian with vectors are those of Dangel et al., curvlinops (arXiv 2501.19183), which
`pip install 'accelerando[landscape]'` brings. Both functions share these arguments:

    model: any module, not compiled and not wrapped (as by DDP), with weights of one type on one device.
    batches: of any form, and any sizes; on whichever device `loss` wants them. They are held meanwhile.
    loss: `loss(model, batch)`, the mean loss over the examples of the batch, a scalar. `torch.func` differentiates it,
        forward over reverse, which some layers refuse, such as LSTM.
    names: of the parameters whose Hessian it is; by default of all that require a gradient. The others are constants.
    masks: bool tensors by name, of a pruned network. The Hessian is that of the weights that they keep: the rows and
        columns of the pruned ones are left out. Pruned weights must be zero.
    samples: how many examples a batch holds; by default the length of the first tensor in it.
    seed: of all that is drawn: probes, start vectors, and what data and loss draw meanwhile.
    at_once: how many vectors the Hessian is multiplied with at once. More are faster, and need more memory.

The loss is the mean over all examples, so that several batches give what one batch of all their examples gives. They
work on a copy of the model in evaluation mode: batch norm takes its running statistics. The model itself and the global
random generators stay as they are. Attention runs unfused, as the fused has no second derivative. Of several ranks each
measures on the batches that it is given.

Both raise ImportError without curvlinops; and ValueError, in one line, for arguments that cannot work, for no examples,
for a loss or a Hessian that is not finite, for a loss that cannot be differentiated twice, and for parameters that do
not take part in the loss.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..generators import numpy_generator, torch_generator
from ..pruning.samples import samples_in
from ..validation import check
from .hessian import Hessian, Loss

_PURPOSE = 0xC07E  # nobody else's random numbers
MOST_EXACT = 100_000  # weights


@dataclass(frozen=True, kw_only=True)
class HessianDiagonal:
    """What `hessian_diagonal` has found: `values` and their standard `errors` by the names of the parameters.

    Each is a vector of the weights that are kept, in the order of `parameter[mask]`, or of `parameter.flatten()` where
    there is no mask. `trace` is the sum of all values. Of an exact diagonal the errors are 0.
    """

    values: dict[str, Tensor]
    errors: dict[str, Tensor]
    trace: float
    trace_error: float


@dataclass(frozen=True, kw_only=True)
class HessianEigenvalues:
    """What `hessian_eigenvalues` has found: `values`, the largest first, `(count,)`, in float64 on the CPU.

    Within `residuals` of each, the norm of `Hv - value * v`, there is an eigenvalue of the Hessian.
    """

    values: Tensor
    residuals: Tensor


def hessian_diagonal(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    probes: int | None = None,
    *,
    names: Iterable[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    samples: Callable[[Any], int] = samples_in,
    seed: int = 0,
    at_once: int = 8,
) -> HessianDiagonal:
    """Returns the diagonal of the Hessian and its trace: exactly, or as estimated by `probes` random vectors.

    Exactly it takes one product with the Hessian for each weight, each as costly as about two gradients over all
    batches; that is refused beyond 100 000 weights. The estimate is Hutchinson's, the mean of `v * Hv` over vectors `v`
    of random signs (Bekas et al. 2007, Appl. Numer. Math. 57). Its errors are the sample deviation over the probes,
    divided by the root of their number, and tell little of fewer than about ten. All values share the probes, so that
    their errors depend on each other, for which `trace_error` accounts.
    """
    owner = "hessian_diagonal"
    check(owner, "probes", probes is None or (type(probes) is int and probes > 1), "None or at least 2", probes)
    hessian = Hessian(owner, model, batches, loss, names, masks, samples, seed, at_once)
    if probes is None:
        few = hessian.size <= MOST_EXACT
        check(owner, "probes", few, f"given beyond {MOST_EXACT:,} weights, of which there are {hessian.size:,}", None)
        diagonal = _exact_diagonal(hessian)
        errors, trace, trace_error = torch.zeros_like(diagonal), diagonal.double().sum().item(), 0.0
    else:
        diagonal, errors, trace, trace_error = _estimated_diagonal(hessian, probes)
    return HessianDiagonal(
        values=hessian.by_name(diagonal), errors=hessian.by_name(errors), trace=trace, trace_error=trace_error
    )


def hessian_eigenvalues(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    count: int = 1,
    *,
    names: Iterable[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    samples: Callable[[Any], int] = samples_in,
    seed: int = 0,
) -> HessianEigenvalues:
    """Returns the `count` largest eigenvalues of the Hessian, by the Lanczos method (SciPy's `eigsh`).

    The largest are the most positive ones, whose first is called sharpness. `count` must be less than the number of
    weights.
    """
    owner = "hessian_eigenvalues"
    check(owner, "count", type(count) is int and count > 0, "at least 1", count)
    hessian = Hessian(owner, model, batches, loss, names, masks, samples, seed, at_once=1)
    check(owner, "count", count < hessian.size, f"less than the {hessian.size:,} weights", count)
    from scipy.sparse.linalg import LinearOperator, eigsh

    def product(vector: np.ndarray) -> np.ndarray:
        columns = torch.as_tensor(vector, dtype=hessian.dtype, device=hessian.device).view(-1, 1)
        return (hessian @ columns)[:, 0].double().cpu().numpy()

    start = numpy_generator(seed, "hessian_eigenvalues").standard_normal(hessian.size)
    if not product(start).any():  # as of a loss that is flat: ARPACK does not take a matrix of zeros
        zeros = torch.zeros(count, dtype=torch.float64)
        return HessianEigenvalues(values=zeros, residuals=zeros)
    shape = (hessian.size, hessian.size)
    matrix = LinearOperator(shape, matvec=product, dtype=np.float64)  # type: ignore
    # Of the products' digits half are left for the vectors; the error of an eigenvalue is the square of its vector's.
    values, vectors = eigsh(matrix, k=count, which="LA", v0=start, tol=torch.finfo(hessian.dtype).eps ** 0.5)
    residuals = [np.linalg.norm(product(v) - value * v) for value, v in zip(values, vectors.T, strict=True)]
    order = np.argsort(-values)
    return HessianEigenvalues(
        values=torch.from_numpy(values[order]), residuals=torch.tensor(residuals, dtype=torch.float64)[order]
    )


def _exact_diagonal(hessian: Hessian) -> Tensor:
    parts = []
    for first in range(0, hessian.size, hessian.at_once):
        places = torch.arange(first, min(first + hessian.at_once, hessian.size), device=hessian.device)
        units = torch.zeros(hessian.size, len(places), dtype=hessian.dtype, device=hessian.device)
        columns = torch.arange(len(places), device=hessian.device)
        units[places, columns] = 1
        parts.append((hessian @ units)[places, columns])
    return torch.cat(parts)


def _estimated_diagonal(hessian: Hessian, probes: int) -> tuple[Tensor, Tensor, float, float]:
    """Hutchinson's means over the probes and their errors, of the diagonal and of its sum."""
    generator = torch_generator(hessian.seed, _PURPOSE)
    mean = torch.zeros(hessian.size, dtype=hessian.dtype, device=hessian.device)
    squares = torch.zeros_like(mean)
    traces: list[Tensor] = []
    for first in range(0, probes, hessian.at_once):
        bits = [_bits(hessian.size, generator) for _ in range(min(hessian.at_once, probes - first))]
        signs = torch.stack(bits, 1).to(hessian.device, hessian.dtype) * 2 - 1
        for estimate in (signs * (hessian @ signs)).unbind(1):
            traces.append(estimate.double().sum())
            # Welford's sums hold one diagonal, however many probes there are, and equal estimates leave exactly 0.
            difference = estimate - mean
            mean += difference / len(traces)
            squares += difference * (estimate - mean)
    trace = torch.stack(traces)
    errors = (squares / (probes - 1) / probes).sqrt()
    return mean, errors, trace.mean().item(), trace.std().item() / probes**0.5


def _bits(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (size,), generator=generator, dtype=torch.int8)
