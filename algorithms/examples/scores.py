"""Scores of training examples, which tell how hard each one is for a network; the easiest have the lowest.

Sources: EL2N, the other error norms and GraNd (the norm of the gradient) are those of Paul et al., "Deep Learning on a
Data Diet" (arXiv 2107.07075); Paul et al., "Lottery Tickets on a Data Diet" (arXiv 2206.01278) pre-train on the lowest.

    scores = score_examples([one, another], DataLoader(train_set, 1000))["el2n"]  # (replicates, examples)
    easiest = easiest_first(scores)[:512]
    train_on(Subset(train_set, easiest))
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, SequentialSampler

from ..batches import device_of, moved, target_in
from ..connectivity.paths import Metric, error_per_example, loss_per_example, stacked
from ..connectivity.walk import Forward, on_inputs
from ..ranks import gathered, world_size
from ..targets import IGNORED, dense_targets, logits_in
from ..teachers import ask_by_name
from ..untouched import evaluating
from ..validation import check


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the L2 norm of each example's error, its probabilities less the one-hot label: `(N,)`, 0 to sqrt(2).

    Logits are `(N, C)`, labels classes `(N,)` or probabilities `(N, C)`; in float32 at least (arXiv 2107.07075,
    where EL2N is the mean of it over networks). Raises ValueError for others.
    """
    return _errors("el2n", logits, labels).norm(dim=1)


def error_l1(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the L1 norm of each example's error, `(N,)`, from 0 to 2; otherwise as `el2n`."""
    return _errors("error_l1", logits, labels).abs().sum(1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns by how much the likeliest other class is more probable than the label, `(N,)`, from -1 to 1.

    It is the `max_margin` of the authors' code: high for a hard example, as all scores are. Labels are classes, `(N,)`.
    """
    check("margins", "labels", labels.ndim == 1, "classes, (N,)", tuple(labels.shape))
    probabilities = _probabilities("margins", logits)
    own = dense_targets(logits, labels) > 0
    return probabilities.masked_fill(own, -1).amax(1) - probabilities.masked_fill(~own, 0).sum(1)


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    """1 for what is classified wrongly, otherwise 0; NaN for logits that are, of which the highest says nothing."""
    classes = labels.argmax(1) if labels.shape == logits.shape else labels
    return error_per_example(logits, classes).masked_fill(logits.isnan().any(1), math.nan)


SCORES: Mapping[str, Metric] = {
    "el2n": el2n,
    "error_l1": error_l1,
    "margin": margins,
    "loss": loss_per_example,
    "error": _error,
}


def _errors(owner: str, logits: Tensor, labels: Tensor) -> Tensor:
    return _probabilities(owner, logits) - dense_targets(logits, labels)


def _probabilities(owner: str, logits: Tensor) -> Tensor:
    fits = logits.ndim == 2 and logits.shape[1] > 1
    check(owner, "logits", fits, "(N, C) of two classes or more", tuple(logits.shape))
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def gradient_norms(
    model: nn.Module,
    inputs: Any,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    chunk_size: int | None = 64,
    vectorized: bool = True,
) -> Tensor:
    """Returns the L2 norm of each example's gradient by all weights that are trained, `(N,)`, on the model's device.

    The model is in evaluation mode, so that batch norm, too, sees each example alone; it is left as it was. What cannot
    be vmapped is a forward pass that reads values on its way (`.item()`, an `if` on them, as transformers 5 does with
    attention masks), writes into tensors in place, draws random numbers in evaluation too, or calls an
    `autograd.Function` without `setup_context`; for such a model, set `vectorized=False`.

    Args:
        inputs: a tensor `(N, ...)`; or a mapping of such tensors, which the model takes by name.
        labels: `(N, ...)`.
        loss: of outputs (or the logits among them) and labels of one example, a number.
        chunk_size: how many gradients are in memory at once, as large as the weights each; None: all.
        vectorized: False takes one backward pass for each example, which any model can do, in place of a vmapped one.

    Raises ValueError for a model that cannot be vmapped.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    others = {n: v.detach() for n, v in chain(model.named_parameters(), model.named_buffers()) if n not in trained}
    check("gradient_norms", "model", trained, "a network with weights that are trained", type(model).__name__)
    device = device_of(model)
    # A dict, as torch looks into no other mapping.
    inputs = {**inputs} if isinstance(inputs, Mapping) else inputs

    def loss_of(weights: dict[str, Tensor], example: Any, label: Tensor) -> Tensor:
        by_name = isinstance(example, Mapping)
        named = {name: value[None] for name, value in example.items()} if by_name else {}
        outputs = functional_call(model, {**others, **weights}, () if by_name else (example[None],), named)
        return loss(logits_in("gradient_norms", outputs), label[None])

    def norm(gradients: Iterable[Tensor]) -> Tensor:
        wide = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in gradients)
        return torch.stack([each.square().sum() for each in wide]).sum().sqrt()

    def vmapped(example: Any, label: Tensor) -> Tensor:
        return norm(grad(loss_of)(trained, example, label).values())

    def alone(row: int) -> Tensor:
        example = {name: value[row] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[row]
        with torch.enable_grad():
            found = loss_of(trained, moved(example, device), labels[row].to(device))
        return norm(torch.autograd.grad(found, [*trained.values()], materialize_grads=True))

    with evaluating(model):
        if not vectorized:
            for value in trained.values():
                value.requires_grad_()
            return torch.stack([alone(row) for row in range(len(labels))])
        try:
            return vmap(vmapped, chunk_size=chunk_size)(moved(inputs, device), labels.to(device))
        except (RuntimeError, ValueError) as error:
            if not any(word in str(error) for word in ("vmap", "functorch")):
                raise
            kind, why = type(model).__name__, " ".join(str(error).split())[:200]
            message = f"gradient_norms: a forward pass of this {kind} cannot be vmapped; set vectorized=False: {why}"
            raise ValueError(message) from error


def score_examples(
    models: nn.Module | Sequence[nn.Module],
    data: Iterable[Any],
    scores: Mapping[str, Metric] | Sequence[str] = ("el2n",),
    *,
    forward: Forward | None = None,
    target_key: Any = 1,
    owner: str = "score_examples",
) -> dict[str, Tensor]:
    """Returns by name the scores of each example by each network, `(replicates, examples)`, on the CPU.

    The data are read and moved once for all networks, which are in evaluation mode, and afterwards as they were; the
    global random generators, too. How the data are batched makes no difference. The examples stand in the order of the
    data set. Of several ranks each may read a share, by a `DistributedSampler` that does not shuffle, or all: every
    rank gets all scores, and all ranks call it.

    Args:
        models: one network or several replicates, on one device.
        data: a DataLoader over the data set, not shuffled and not augmented; or, on one rank, any batches.
        scores: names among `SCORES`; or functions (logits, targets) -> a value for each example, `(N,)`, by name.
        forward: a function (model, batch) -> outputs, the logits or a mapping with them; by default `model(batch[0])`,
            and of a mapping, by name, what the model takes of it but for the labels.
        target_key: where a batch holds its labels; in a mapping the default means "labels".
        owner: what errors call it.

    Raises ValueError for data in another order or without labels, and for scores that are not one number an example.
    """
    several = [models] if isinstance(models, nn.Module) else [*models]
    check(owner, "models", len(several) > 0, "one network or more", several)
    chosen, forward = chosen_scores(owner, scores), forward or partial(_forward, owner)
    sampler, device = check_order(owner, data), device_of(*several)
    check(owner, "data", sampler or world_size() == 1, "a DataLoader where several ranks read it", type(data).__name__)
    order = None if sampler is None else [*sampler]
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    with evaluating(*several):
        for batch in data:
            for name, values in score_batch(several, moved(batch, device), chosen, forward, target_key, owner).items():
                found[name].append(values)
    check(owner, "data", all(found.values()), "batches of (inputs, labels)", "none")
    own = {name: torch.cat(values, 1) for name, values in found.items()}
    return _in_order(owner, order, len(data.dataset) if order else None, own)  # type: ignore[attr-defined]


def score_batch(
    models: Sequence[nn.Module],
    batch: Any,
    scores: Mapping[str, Metric],
    forward: Forward,
    target_key: Any,
    owner: str,
) -> dict[str, Tensor]:
    """Returns by name the scores of a batch that is on the device, `(replicates, N)`; as `score_examples`."""
    targets = target_in(owner, batch, target_key)
    outputs = [logits_in(owner, forward(model, batch)) for model in models]
    for logits in outputs:
        fits = logits.ndim == 2 and logits.shape[1] > 1 and targets.shape in (logits.shape[:1], logits.shape)
        shapes = f"{tuple(logits.shape)} for labels of {tuple(targets.shape)}"
        check(owner, "data", fits, "of one class an example, so logits (N, C) of two or more", shapes)
    classes = targets.long()  # torch compares bytes with -100 as if it were 156
    check(owner, "data", (classes != IGNORED).all(), "examples that all have a class", f"labels of {IGNORED}")
    return {
        name: stacked(owner, f"scores[{name!r}]", [score(logits, targets) for logits in outputs], targets.shape[:1])
        for name, score in scores.items()
    }


def chosen_scores(owner: str, scores: Mapping[str, Metric] | Sequence[str]) -> dict[str, Metric]:
    """Returns the functions of scores by name, of those that are given by their names alone, too."""
    names = [scores] if isinstance(scores, str) else [*scores]
    unknown = [] if isinstance(scores, Mapping) else [name for name in names if name not in SCORES]
    check(owner, "scores", names and not unknown, f"one or more of {', '.join(SCORES)}", unknown or names)
    return {name: (scores if isinstance(scores, Mapping) else SCORES)[name] for name in names}


def easiest_first(scores: Tensor) -> Tensor:
    """Returns the numbers of the examples, `(N,)`, from the lowest score to the highest, by the mean over replicates.

    The scores are `(N,)`, or `(replicates, N)`; among equals the first example of the data set comes first. Raises
    ValueError for NaN, of a training that diverged.
    """
    check("easiest_first", "scores", scores.ndim in (1, 2), "(N,) or (replicates, N)", tuple(scores.shape))
    mean = scores.double().reshape(-1, scores.shape[-1]).mean(0)
    check("easiest_first", "scores", not mean.isnan().any(), "numbers", "NaN")
    return mean.argsort(stable=True)


def _forward(owner: str, model: nn.Module, batch: Any) -> Any:
    return ask_by_name(model, batch) if isinstance(batch, Mapping) else on_inputs(owner, model, batch)


def check_order(owner: str, data: Any) -> Sampler | None:
    """Returns the sampler of a loader, None for other batches.

    Raises ValueError for a loader that does not go through its data set in order, as one that shuffles does.
    """
    if not isinstance(data, DataLoader):
        return None
    kind = type(data.batch_sampler)
    sampler: Any = getattr(data.batch_sampler, "sampler", data.sampler)  # of a given one the loader's is another
    plain = isinstance(sampler, SequentialSampler) or not getattr(sampler, "shuffle", True)
    fits = plain and isinstance(sampler, SequentialSampler | DistributedSampler) and kind is BatchSampler
    found = f"{type(sampler).__name__} and {kind.__name__}"
    check(owner, "data", fits, "a loader in the order of its data set, not shuffled", found)
    return sampler


def _in_order(owner: str, order: list[int] | None, size: int | None, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What all ranks have found, in the order of the data set."""
    read = next(iter(own.values())).shape[1]
    places = [*range(read)] if order is None else order
    check(owner, "data", len(places) == read, f"all {len(places)} examples of their sampler", read)
    whole = {name: values.new_zeros(len(values), size or read) for name, values in own.items()}
    seen = torch.zeros(size or read, dtype=torch.bool)
    for theirs, values in gathered((places, own)):
        seen[theirs] = True
        for name, part in values.items():
            whole[name][:, theirs] = part
    check(owner, "data", seen.all(), f"all {len(seen)} examples of their data set", int(seen.sum()))
    return whole
