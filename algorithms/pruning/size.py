"""The size of a pruned network: compression ratio and theoretical speedup (Blalock et al. 2020, arXiv 2003.03033).

A pruned weight is an exact zero. The compression ratio is all parameters over nonzero ones: biases and norms too, a
shared one once, parameters and not bytes. The theoretical speedup is multiply-adds over those whose weight is not zero;
none is measured. `trace_multiply_adds` runs a model once, dense or pruned; `model_size` then only counts its zeros.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..generators import untouched_generators
from ..untouched import kept


class MultiplyAdds(NamedTuple):
    """Of one forward pass: in how many each element of a weight takes part, and how many have no weight."""

    uses: Mapping[tuple[str, tuple], int]  # by the parameter's name and the steps (`_apply`) to what was multiplied
    other: int
    samples: int | None = 1  # what `model_size` divides by; None where nobody knows


class TensorSize(NamedTuple):
    """Of one parameter. Multiply-adds are those of a sample, an integer where they are one; biases have none."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    nonzero: int
    multiply_adds: float
    effective_multiply_adds: float

    @property
    def density(self) -> float:
        return self.nonzero / max(self.parameters, 1)


@dataclass(frozen=True)
class ModelSize:
    """The sums over `tensors`, and ratios of the whole to what is not zero, infinite where nothing is left.

    NaN is what is not known.
    """

    parameters: int
    nonzero: int
    compression_ratio: float
    multiply_adds: float
    effective_multiply_adds: float
    theoretical_speedup: float  # of convolutions and linear layers alone, as in ShrinkBench
    other_multiply_adds: float  # without a weight (attention, fixed filters): no pruning of weights saves them
    theoretical_speedup_of_all: float  # with the others in both numbers
    tensors: tuple[TensorSize, ...]

    def as_dict(self) -> dict[str, Any]:
        """All fields for JSON, which has neither infinity nor NaN: such a figure is None."""
        tensors = [size._asdict() | {"shape": list(size.shape), "density": size.density} for size in self.tensors]
        return _finite(asdict(self)) | {"tensors": [_finite(tensor) for tensor in tensors]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelSize":
        """The size that `as_dict` told of. ValueError where it is not all there."""
        try:
            unknown = math.nan if fields["multiply_adds"] is None else math.inf
            none = {
                "compression_ratio": math.inf,
                "theoretical_speedup": unknown,
                "theoretical_speedup_of_all": unknown,
            }
            tensors = [tensor | {"shape": tuple(tensor["shape"])} for tensor in fields["tensors"]]
            sizes = tuple(TensorSize._make(_known(tensor[name]) for name in TensorSize._fields) for tensor in tensors)
            names = (field.name for field in dataclass_fields(cls) if field.name != "tensors")
            return cls(**{name: _known(fields[name], none.get(name, math.nan)) for name in names}, tensors=sizes)
        except (LookupError, TypeError) as error:
            raise ValueError(f"expected the size of a model, as it was written; {error!r}") from error

    def table(self) -> str:
        """Aligned text: a row for each tensor that multiplies, one for all others, the total, the ratios."""
        others = _sum("others", [size for size in self.tensors if not size.multiply_adds])
        rows = [["parameter", "shape", "density", "size", "nonzero", "multiply-adds", "effective"]]
        for size in [*(size for size in self.tensors if size.multiply_adds), others, _sum("total", self.tensors)]:
            counts = map(_text, size[2:])
            rows.append([size.name, "x".join(map(str, size.shape)), f"{size.density:.2%}", *counts])
        text = aligned(rows, left=2)
        ratios = f"compression ratio {self.compression_ratio:.2f}, theoretical speedup {self.theoretical_speedup:.2f}"
        others = f"{_text(self.other_multiply_adds)} multiply-adds without a weight"
        return f"{text}\n{ratios}, {self.theoretical_speedup_of_all:.2f} with {others}"


def aligned(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """A table whose columns are two spaces apart, the first `left` of them flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = ([side(cell, n) for side, cell, n in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def compression_ratio(model: nn.Module) -> float:
    """All parameters over nonzero ones; infinite where none is left. Biases that start at zero count as pruned."""
    parameters = list(model.parameters())
    return _ratio(sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters))


def trace_multiply_adds(model: nn.Module, forward: Callable[[nn.Module], Any]) -> MultiplyAdds:
    """The multiply-adds of `forward(model)`, which runs the model on a batch of its own choosing.

    They are those of the whole batch: give it one sample for figures per sample. They are the products of convolutions
    (padding included, as is the convention) and of matrices: a parameter's with it or with views and copies of it
    (transposed, split, cast), others between activations, with buffers, and with what is computed from parameters, as
    in weight normalization. `nn.Bilinear` is not counted, nor what kernels do that are no torch operators.

    It is an evaluation without gradients, and leaves what the modules hold (modes, buffers, gradients, attributes that
    a forward writes) and the global random generators as they were. On the meta device, if the model runs there, it
    computes nothing and serves the real one.
    """
    with torch.no_grad(), _plain_evaluation(model), _Tracer(model) as tracer:
        forward(model)
    return MultiplyAdds(tracer.uses, tracer.other)


def model_size(
    model: nn.Module, multiply_adds: MultiplyAdds | None, masks: Mapping[str, Tensor] | None = None
) -> ModelSize:
    """Counts the zeros of `model`, whose multiply-adds were traced before, on it or on another of its architecture.

    With `masks`, only parameters that have one are counted so, as they are; the others, such as biases, which may start
    at zero, count whole. Ratios are those of the whole batch that was traced, also where its multiply-adds are no
    multiple of its samples. Without `multiply_adds`, what comes from them is NaN.

    Raises ValueError where the trace has parameters that the model lacks.
    """
    uses, other, samples = multiply_adds or MultiplyAdds({}, 0, None)
    parameters = dict(model.named_parameters())
    if missing := sorted({weight for weight, _ in uses} - parameters.keys()):
        raise ValueError(f"{type(model).__name__} has no {missing[0]}: trace this model, not another architecture.")
    tensors = []
    for name, parameter in parameters.items():
        # Of the weight itself: a cast to float16 turns small ones into zeros.
        counted = masks is None or name in masks
        nonzero = parameter.detach() != 0 if counted else torch.ones_like(parameter, dtype=torch.bool)
        used = [(reduce(_apply, steps, nonzero), times) for (weight, steps), times in uses.items() if weight == name]
        dense = sum(part.numel() * times for part, times in used)
        effective = sum(int(part.count_nonzero()) * times for part, times in used)
        counts = parameter.numel(), int(nonzero.count_nonzero()), dense, effective
        tensors.append(TensorSize(name, tuple(parameter.shape), *counts))
    _, _, size, left, dense, effective = _sum("total", tensors)
    speedup, of_all = _ratio(dense, effective), _ratio(dense + other, effective + other)
    if multiply_adds is None:
        speedup = of_all = math.nan
    tensors = [
        tensor._replace(
            multiply_adds=_per_sample(tensor.multiply_adds, samples),
            effective_multiply_adds=_per_sample(tensor.effective_multiply_adds, samples),
        )
        for tensor in tensors
    ]
    dense, effective, other = (_per_sample(count, samples) for count in (dense, effective, other))
    return ModelSize(size, left, _ratio(size, left), dense, effective, speedup, other, of_all, tuple(tensors))


def _per_sample(count: float, samples: int | None) -> float:
    if not samples:
        return math.nan
    return count / samples if count % samples else int(count // samples)


def _known(value: Any, otherwise: float = math.nan) -> Any:
    return otherwise if value is None else value


def _text(count: float) -> str:
    return f"{count:,}" if isinstance(count, int) else f"{count:,.1f}"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


def _apply(tensor: Tensor, step: tuple[Callable, tuple, tuple, int | None]) -> Tensor:
    operation, arguments, keywords, index = step
    out = operation(tensor, *arguments, **dict(keywords))
    return out if index is None else out[index]


def _sum(name: str, sizes: Sequence[TensorSize]) -> TensorSize:
    return TensorSize(name, (), *map(sum, zip((0, 0, 0, 0), *(size[2:] for size in sizes), strict=True)))


def _ratio(dense: float, effective: float) -> float:
    return dense / effective if effective else math.inf if dense else 1.0


_ATEN = torch.ops.aten
_COPIES = (_ATEN.clone, _ATEN._to_copy, _ATEN._unsafe_view)
# Two FLOPs a multiply-add; torch leaves out products with a vector.
_FLOPS: Any = flop_registry | dict.fromkeys((_ATEN.mv, _ATEN.dot), lambda a, b, out_val: 2 * a.numel())
# The arguments that may be the weight: of two parameters, learned queries times a matrix, it is the second.
_WEIGHTS: dict[Any, tuple[int, ...]] = dict.fromkeys((_ATEN.mm, _ATEN.bmm, _ATEN.mv, _ATEN.dot), (1, 0))
_WEIGHTS |= {_ATEN.addmm: (2, 1), _ATEN.baddbmm: (2, 1), _ATEN.convolution: (1,)}


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.uses, self.other = Counter(), 0
        # With the tensors, lest another one gets the id of one that is gone.
        self._weights: dict[int, Any] = {id(weight): (weight, (name, ())) for name, weight in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, operation = kwargs or {}, func._overloadpacket
        if operation not in _FLOPS:
            with self:  # under inference_mode even matmul comes whole
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        if operation in _FLOPS:
            multiply_adds = _FLOPS[operation](*args, **kwargs, out_val=out) // 2
            places = [place for place in _WEIGHTS.get(operation, ()) if id(args[place]) in self._weights]
            if places and multiply_adds:
                weight, source = self._weights[id(args[places[0]])]
                self.uses[source] += multiply_adds // weight.numel()
            else:
                self.other += multiply_adds
        elif args and id(args[0]) in self._weights and (func.is_view or operation in _COPIES):
            _, (name, steps) = self._weights[id(args[0])]
            arguments = tuple(tuple(argument) if isinstance(argument, list) else argument for argument in args[1:])
            for index, part in enumerate(out) if isinstance(out, list | tuple) else [(None, out)]:
                self._weights[id(part)] = part, (name, (*steps, (func, arguments, tuple(kwargs.items()), index)))
        return out


@contextmanager
def _plain_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation that leaves nothing behind, in torch's elementary kernels: fused ones hide their matrix products."""
    with ExitStack() as stack:
        stack.enter_context(kept(model))
        for module in model.modules():
            module.training = False  # not by eval(), which some override to merge weights
        for backend in (torch.backends.cudnn, torch.backends.mkldnn):  # for recurrent networks
            stack.callback(setattr, backend, "enabled", backend.enabled)
            backend.enabled = False  # type: ignore[attr-defined]
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(untouched_generators({p.device.index for p in model.parameters() if p.is_cuda}))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # what meets the tracer is never compiled again
        # Of what autocast has cast before, the source is unknown; and what it casts now has no gradient.
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        yield
