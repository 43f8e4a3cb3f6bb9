"""Scores of weights, by which pruning chooses: in all of them **the highest scores are the ones to keep**.

A score has the shape and the device of its weight, is finite, and is float32 (float64 in `synflow`).

`gradient_magnitude`, `snip` and `grasp` look at data, and share their arguments:

    model: any module, not compiled and not wrapped (as by DDP).
    names: of parameters in `model.named_parameters()`; frozen ones are scored like the others.
    batches: of any form, and any sizes; on whichever device `loss` wants them.
    loss: `loss(model, batch)`, the mean loss over the samples of the batch, a scalar.
    samples: how many samples a batch holds; by default the length of the first tensor in it.
    seed: of the random numbers drawn meanwhile (dropout, augmentation): scores depend on the arguments alone.

They work on a copy of the model, in train mode as in the training to come: batch norm takes each batch's statistics.
The model itself, its gradients, buffers, modes and other attributes, and the global random generators stay as they are;
ValueError is raised for a model that cannot be copied. Several batches give what one batch of all their samples gives,
but for batch norm, dropout and `snip(per_batch=True)`. A parameter that does not take part in the loss has the score 0.

With `torch.distributed` initialised all ranks must call these and `synflow`, each with batches of its own, as many as
it has, or none. Gradients are means over the samples of all ranks, and scores are the same on every rank bit for bit
where the weights are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .. import untouched
from ..batches import device_of
from ..generators import seeded
from .samples import samples_in

Loss = Callable[[nn.Module, Any], Tensor]


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`|w|` (Han et al. 2015, arXiv 1506.02626)."""
    return _checked("magnitude", {name: weight.detach().abs().float() for name, weight in weights.items()})


def random_scores(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform in [0, 1), independent, by a CPU generator: the same on every device."""
    return {name: torch.rand(weight.shape, generator=generator).to(weight.device) for name, weight in weights.items()}


def gradient_magnitude(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    loss: Loss,
    samples: Callable[[Any], int] = samples_in,
    seed: int = 0,
) -> dict[str, Tensor]:
    """`|g|`, of the gradient `g = dL/dw`.

    What Blalock et al. (ShrinkBench, arXiv 2003.03033) call the magnitude of the gradient is `|g * w|`: `snip`.

    Raises ValueError for an unknown name, for no samples on any rank, and for scores that are not finite.
    """
    copied, weights = _copy(model, names)
    gradients = _mean(_gradient(copied, weights, loss), weights, batches, samples, seed)
    return _checked("gradient_magnitude", {name: g.abs().float() for name, g in gradients.items()})


def snip(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    loss: Loss,
    samples: Callable[[Any], int] = samples_in,
    seed: int = 0,
    per_batch: bool = False,
) -> dict[str, Tensor]:
    """`|g * w|`, the sensitivity of the loss to a mask on the weights (Lee et al., arXiv 1810.02340).

    Their division by the sum of all scores is left out: it changes no order.

    Of several batches `g` is the mean gradient, whatever the batches; with `per_batch`, `|g * w|` is taken of each, and
    its mean over the samples, as in the code that accompanies arXiv 2009.08576. Then scores depend on which samples
    share a batch, and on a rank: of smaller batches they are larger where gradients cancel out. Of one batch it is the
    same.

    Raises ValueError for an unknown name, for no samples on any rank, and for scores that are not finite.
    """
    copied, weights = _copy(model, names)
    gradient = _gradient(copied, weights, loss)

    def sensitivity(batch: Any) -> Sequence[Tensor]:
        return [(g * w.detach()).abs() for g, w in zip(gradient(batch), weights.values(), strict=True)]

    if per_batch:
        scores = _mean(sensitivity, weights, batches, samples, seed)
    else:
        gradients = _mean(gradient, weights, batches, samples, seed)
        scores = {name: (g * weights[name].detach()).abs() for name, g in gradients.items()}
    return _checked("snip", {name: score.float() for name, score in scores.items()})


def grasp(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    loss: Loss,
    samples: Callable[[Any], int] = samples_in,
    seed: int = 0,
) -> dict[str, Tensor]:
    """`w * Hg`, with the gradient `g` and the Hessian `H` of the loss in these weights (Wang et al., arXiv 2002.07376).

    Without the weight the gradient's squared norm changes by `-2 w * Hg`, in first order. The paper calls `-w * Hg` the
    score and prunes the highest of it, those whose absence leaves most gradient: here they come last.

    The authors divide logits by a temperature of 200 before the softmax. That is the business of `loss`, such as
    `lambda model, batch: F.cross_entropy(model(batch[0]) / 200, batch[1])`; it changes the order of the scores.

    Two passes over the batches, which are held meanwhile. Attention runs unfused: the fused has no second derivative.

    Raises ValueError for an unknown name, for no samples on any rank, and for scores that are not finite.
    """
    copied, weights = _copy(model, names)
    batches = list(batches)
    differentiable = _gradient(copied, weights, loss, create_graph=True)

    def hessian_gradient(batch: Any) -> Sequence[Tensor]:
        product = torch.stack([(a * b).sum() for a, b in zip(differentiable(batch), g.values(), strict=True)]).sum()
        # A loss that is linear in the weights leaves nothing to differentiate, which autograd takes for a mistake.
        return _derivatives(product.requires_grad_(), weights)

    with sdpa_kernel(SDPBackend.MATH):
        g = _mean(_gradient(copied, weights, loss), weights, batches, samples, seed)
        hg = _mean(hessian_gradient, weights, batches, samples, seed)
    return _checked("grasp", {name: (weights[name].detach() * hg[name]).float() for name in weights})


def synflow(
    model: nn.Module,
    names: Iterable[str],
    input: Tensor,
    forward: Callable[[nn.Module, Tensor], Any] = lambda model, input: model(input),
) -> dict[str, Tensor]:
    """`|dR/dw * w|` with all parameters replaced by their absolute values (Tanaka et al., arXiv 2006.05467).

    `R` is the sum of the outputs for one sample of ones, in evaluation mode. No data are needed.

    Args:
        model, names: as for the others. The model itself stays as it is.
        input: floating point, `(N, ...)`, a batch of inputs; only its shape matters.
        forward: the outputs of a model for an input: `lambda model, x: model((x, None))` for a ComposerClassifier,
            `lambda model, x: model({"pixel_values": x})["logits"]` for a model of mappings. A mapping or a sequence is
            its `logits`, or the one tensor that it holds.

    In float64 as `R` grows exponentially with depth, which overflows float32 within tens of layers; what a forward
    casts to less stays float64. Below 1e-308 scores are 0; above 1e308 they raise ValueError, as do an unknown name, an
    input of integers, such as token ids, a forward that fails in float64, and outputs of several tensors.
    """
    if not input.is_floating_point():
        raise ValueError(
            f"synflow sends a sample of ones through the model, but the input is {input.dtype}, such as token ids, of "
            "which there is none. Use another criterion, or `forward` with embeddings for an input."
        )
    copied, weights = _copy(model, names)
    copied.double().eval()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.abs_()
    ones = torch.ones(1, *input.shape[1:], dtype=torch.float64, device=device_of(copied))
    with seeded(0, _cuda_devices(weights)), torch.enable_grad(), _all_double():
        try:
            outputs = forward(copied, ones)
        except (RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
            kind = type(model).__name__
            raise ValueError(f"synflow: a sample of ones, in float64, does not pass through {kind}: {error}") from error
        derivatives = _derivatives(_one_tensor(outputs).sum(), weights)
    pairs = zip(weights.items(), derivatives, strict=True)
    scores = {name: (weight.detach() * derivative).abs().contiguous() for (name, weight), derivative in pairs}
    if _distributed():
        for score in scores.values():
            # Convolutions on GPUs may add up in another order on every rank.
            distributed.broadcast(score, src=0)
    return _checked("synflow", scores)


class _Double(TorchFunctionMode):
    """Whatever is cast to, or made in, another floating point format is float64."""

    _CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in self._CASTS:
            return args[0].double()
        args, kwargs = tuple(map(self._widened, args)), {n: self._widened(v) for n, v in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def _widened(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


@contextmanager
def _all_double() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(default)


def _one_tensor(outputs: Any) -> Tensor:
    found = outputs
    if isinstance(found, Mapping):
        found = found["logits"] if "logits" in found else [*found.values()]
    found = [found] if isinstance(found, Tensor) else found if isinstance(found, Sequence) else ()
    tensors = [output for output in found if isinstance(output, Tensor)]
    if len(tensors) != 1:
        raise ValueError(
            f"synflow sums up one tensor of outputs, but finds {len(tensors) or 'none'} in a {type(outputs).__name__}; "
            "call the function `synflow` with a `forward` that gives the one that is meant"
        )
    return tensors[0]


def _copy(model: nn.Module, names: Iterable[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in train mode, and the weights of these names in it."""
    copied = untouched.copied(model).train()
    parameters = dict(copied.named_parameters())
    names = list(names)
    unknown = [name for name in names if name not in parameters]
    if unknown or not names:
        raise ValueError(f"names: {unknown[0] if unknown else 'none'} is no parameter; see model.named_parameters().")
    for module in copied.modules():
        untouched.unsynchronize(module)
    return copied, {name: parameters[name].requires_grad_() for name in names}


def _derivatives(scalar: Tensor, weights: Mapping[str, Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    inputs = list(weights.values())
    return torch.autograd.grad(scalar, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _gradient(
    model: nn.Module, weights: Mapping[str, Tensor], loss: Loss, create_graph: bool = False
) -> Callable[[Any], Sequence[Tensor]]:
    return lambda batch: _derivatives(loss(model, batch), weights, create_graph)


def _mean(
    term: Callable[[Any], Sequence[Tensor]],
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    samples: Callable[[Any], int],
    seed: int,
) -> dict[str, Tensor]:
    """The mean over all samples of all ranks of a term that `term` gives as its mean over a batch."""
    total = {
        name: torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        for name, weight in weights.items()
    }
    count = torch.zeros((), dtype=torch.int64, device=next(iter(weights.values())).device)
    with seeded(seed, _cuda_devices(weights)), torch.enable_grad():
        for batch in batches:
            size = samples(batch)
            for partial, value in zip(total.values(), term(batch), strict=True):
                partial.add_(value, alpha=size)
            count += size
    if _distributed():
        for partial in (*total.values(), count):
            distributed.all_reduce(partial)
    if not count:
        raise ValueError("There are no samples to score weights by: the batches are empty, or used up, on all ranks.")
    return {name: partial / count for name, partial in total.items()}


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _cuda_devices(weights: Mapping[str, Tensor]) -> list[int]:
    return sorted({weight.get_device() for weight in weights.values() if weight.is_cuda})


def _checked(criterion: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, score in scores.items():
        if not score.isfinite().all():
            raise ValueError(
                f"{criterion}: scores of {name} are not finite. Its weights or its gradient hold NaN or infinity, as "
                "after a loss that diverged, or overflow."
            )
    return scores


# By the names that PruneAtInit and YAMLs know: of the weights alone, (weights, generator) -> scores; and of data, with
# the arguments that these share.
OF_WEIGHTS: dict[str, Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]]] = {
    "magnitude": lambda weights, generator: magnitude(weights),
    "random": random_scores,
}
OF_DATA: dict[str, Callable[..., dict[str, Tensor]]] = {
    "gradient_magnitude": gradient_magnitude,
    "snip": snip,
    "snip_per_batch": partial(snip, per_batch=True),
    "grasp": grasp,
}
CRITERIA = (*OF_WEIGHTS, *OF_DATA, "synflow")
