"""The Hessian of a loss in the weights that a network keeps: nothing of it is stored, it is multiplied with vectors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import untouched
from ..checkpoints import some
from ..generators import seeded
from ..validation import check

Loss = Callable[[nn.Module, Any], Tensor]


class Hessian:
    """`hessian @ vectors`, for `(size, k)` vectors over the kept weights of all parameters, one after the other.

    The arguments are those that `curvature` documents; `owner` is what errors call it.
    """

    def __init__(
        self,
        owner: str,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Loss,
        names: Iterable[str] | None,
        masks: Mapping[str, Tensor] | None,
        samples: Callable[[Any], int],
        seed: int,
        at_once: int,
    ):
        check(owner, "at_once", type(at_once) is int and at_once > 0, "at least 1", at_once)
        self.owner, self.kind, self.seed, self.at_once = owner, type(model).__name__, seed, at_once
        copied = untouched.copied(model).eval()
        parameters = _chosen(owner, copied, names)
        first = next(iter(parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        kept = _checked_masks(owner, copied, masks or {})
        flags = {name: kept.get(name, torch.ones_like(p, dtype=torch.bool)).flatten() for name, p in parameters.items()}
        self.sizes = {name: int(flag.sum()) for name, flag in flags.items()}
        self.size = sum(self.sizes.values())
        check(owner, "masks", self.size > 1, "of a network that keeps at least two weights", f"{self.size} kept")
        self._index = torch.cat([*flags.values()]).nonzero()[:, 0]
        with self._repeatable():
            held = [*batches]
            _check_loss(owner, copied, held, loss, parameters)
        examples = sum(map(samples, held))
        check(owner, "batches", examples > 0, "of one example or more", examples)
        self._whole = _imported(owner)(
            _OfBatch(copied, loss),
            _Mean(),
            [*parameters.values()],
            [({"batch": batch}, torch.empty(0)) for batch in held],
            check_deterministic=False,
            num_data=examples,
            batch_size_fn=lambda inputs: samples(inputs["batch"]),
        )

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return torch.cat([self._product(part) for part in vectors.split(self.at_once, dim=1)], dim=1)

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Splits a vector over all kept weights into the parameters' own."""
        return dict(zip(self.sizes, values.split([*self.sizes.values()]), strict=True))

    def _product(self, vectors: Tensor) -> Tensor:
        # curvlinops' own submatrix takes indices as a list of Python's integers, of which there may be millions.
        full = vectors.new_zeros(self._whole.shape[1], vectors.shape[1]).index_copy_(0, self._index, vectors)
        with self._repeatable(), _differentiating(self.owner, self.kind):
            product = (self._whole @ full)[self._index]
        if not product.isfinite().all():
            hint = "expected a loss with finite second derivatives at these weights; try float64"
            raise ValueError(f"{self.owner}: the Hessian of the loss of {self.kind} is not finite; {hint}.")
        return product

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        # What data and loss may draw must be the same in all products, or they are not those of one matrix.
        with seeded(self.seed, [self.device.index] if self.device.type == "cuda" else []):
            yield


class _OfBatch(nn.Module):
    """The loss as a module's output, which is what curvlinops differentiates, whatever the form of a batch."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        return self.loss(self.model, inputs["batch"])


class _Mean(nn.Module):
    """Says to curvlinops that a batch's loss is the mean over its examples."""

    reduction = "mean"

    def forward(self, loss: Tensor, _: Tensor) -> Tensor:
        return loss


def _imported(owner: str) -> Callable[..., Any]:
    try:
        from curvlinops import HessianLinearOperator
    except ModuleNotFoundError as error:
        if error.name != "curvlinops":
            raise
        hint = "pip install 'accelerando[landscape]'"
        raise ImportError(
            f"{owner} needs curvlinops-for-pytorch, which is missing: {hint}", name="curvlinops"
        ) from None
    return HessianLinearOperator


def _chosen(owner: str, model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    names = [name for name, p in parameters.items() if p.requires_grad] if names is None else [*names]
    check(owner, "names", names, "of one parameter or more that requires a gradient", names)
    unknown = [name for name in names if name not in parameters]
    check(owner, "names", not unknown, f"of model.named_parameters(), such as {some([*parameters])}", unknown)
    chosen = {name: parameters[name] for name in names}
    for parameter in chosen.values():
        parameter.requires_grad_()
    kinds = sorted({f"{p.dtype} on {p.device}" for p in chosen.values()})
    check(owner, "names", len(kinds) == 1, "of parameters of one type on one device", kinds)
    return chosen


def _checked_masks(owner: str, model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    misfits = [name for name, mask in masks.items() if name not in parameters or mask.shape != parameters[name].shape]
    check(owner, "masks", not misfits, "bool tensors by the names and of the shapes of parameters", misfits)
    kept = {name: mask.to(parameters[name].device, torch.bool) for name, mask in masks.items()}
    if nonzero := [name for name, mask in kept.items() if parameters[name][~mask].any()]:
        hint = "expected the pruned network; apply_masks sets them to zero"
        raise ValueError(f"{owner}: weights of {some(nonzero)} are not zero where the masks prune; {hint}.")
    return kept


def _check_loss(
    owner: str, model: nn.Module, batches: list[Any], loss: Loss, parameters: Mapping[str, nn.Parameter]
) -> None:
    check(owner, "batches", batches, "one batch or more", batches)
    without = dict(parameters)
    for place, batch in enumerate(batches):
        with torch.enable_grad():
            value = loss(model, batch)
            scalar = isinstance(value, Tensor) and value.dim() == 0
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value)
            check(owner, "loss", scalar, "a scalar tensor, the mean over a batch", given)
            check(owner, "loss", value.isfinite(), f"finite, but of batch {place} it is not", value.item())
            found = torch.autograd.grad(value, [*without.values()], allow_unused=True) if value.requires_grad else ()
        without = {n: without[n] for n, g in zip(without, found, strict=True) if g is None} if found else without
        if not without:
            return
    hint = "leave them out of names"
    raise ValueError(f"{owner}: {some([*without])} have no gradient, as they do not take part in the loss; {hint}.")


@contextmanager
def _differentiating(owner: str, kind: str) -> Iterator[None]:
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"{owner}: torch cannot differentiate the loss of {kind} twice: {why}") from error
