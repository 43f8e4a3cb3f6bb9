"""Masks: which weights may be pruned, and exactly how many of them are kept.

A mask is a bool tensor of its weight's shape, True where the weight is kept; masks go by the names of the parameters.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import some

Masks = dict[str, Tensor]
Scope = Literal["global", "layerwise"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SAMPLED = 1 << 17


def prunable_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), classifier: bool = True
) -> dict[str, nn.Parameter]:
    """The weights of convolutions, linear layers and attention's projections by name, in the order of the modules.

    No norms, biases or embeddings, nor a layer that shares its weight with an embedding; a weight that several layers
    share counts once. `include` and `exclude` are patterns such as ``*.attention.*`` (`*` any text, `?` any letter) of
    the parameters' names. Without `classifier` the last linear layer that the model registers is left out. Raises
    ValueError for a pattern that fits no such weight, for a weight that is no parameter but computed from others, as by
    weight normalization, and where nothing is left.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[int, tuple[str, Any]] = {}
    last = None
    for prefix, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # which is how GPT-2 calls it
        if linear:
            last = id(module.weight)
        for name in _weight_names(module) if not linear else ("weight",):
            weight, full = getattr(module, name), f"{prefix}.{name}".lstrip(".")
            if isinstance(weight, Tensor) and id(weight) not in embedded:
                found.setdefault(id(weight), (full, weight))
    if not classifier:
        found.pop(last or 0, None)
    names = [name for name, _ in found.values()]
    if not names:
        raise ValueError(f"{type(model).__name__} has nothing to prune; expected convolutions or linear layers")
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no prunable weight is called {pattern!r}; there are {some(names)}")
    weights = {
        name: weight
        for name, weight in found.values()
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not weights:
        raise ValueError(f"exclude leaves nothing to prune of {some(names)}")
    if computed := [name for name, weight in weights.items() if not isinstance(weight, nn.Parameter)]:
        raise ValueError(
            f"{some(computed)} cannot be pruned, being computed from other parameters; exclude such weights"
        )
    return weights


def _weight_names(module: nn.Module) -> Sequence[str]:
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    return ("weight",) if isinstance(module, _CONVOLUTIONS) else ()


def kept_counts(
    sizes: Mapping[str, int], density: float | Mapping[str, float], scope: Scope = "global"
) -> int | dict[str, int]:
    """How many weights to keep: one number for all layers (`global`), or one for each.

    `density` is the share that is kept, of all weights or of each layer's, or shares by patterns of the layers' names;
    layers without a pattern keep all. Halves are rounded up.
    """
    if isinstance(density, Mapping) or scope == "layerwise":
        shares = layer_shares(sizes, density)
        return {name: rounded(shares[name] * size) for name, size in sizes.items()}
    return rounded(density * sum(sizes.values()))


def layer_shares(names: Iterable[str], density: float | Mapping[str, float]) -> dict[str, float]:
    """Each layer's share, if need be by the first pattern that its name fits; without one it is 1.

    Raises ValueError for a pattern that no name fits.
    """
    names = [*names]
    if not isinstance(density, Mapping):
        return dict.fromkeys(names, density)
    for pattern in density:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"density: no pruned layer is called {pattern!r}; there are {some(names)}")
    return {name: next((d for p, d in density.items() if fnmatchcase(name, p)), 1.0) for name in names}


def rounded(count: float) -> int:
    return math.floor(count + 0.5)


def keep_highest(
    scores: Mapping[str, Tensor], kept: int | Mapping[str, int], masks: Mapping[str, Tensor] | None = None
) -> Masks:
    """Masks that keep exactly the `kept` highest scores, of all layers together or of each.

    Of equal scores the earlier ones are kept: earlier layers, and within a layer lower indices. What `masks` have
    pruned stays pruned, whatever its score. Raises ValueError for more than remain, and for scores that are not finite.
    """
    if isinstance(kept, Mapping):
        each = {name: keep_highest({name: scores[name]}, count, masks) for name, count in kept.items()}
        return {name: each[name][name] for name in scores}
    remaining = sum(size(masks[name]) if masks else score.numel() for name, score in scores.items())
    if not 0 <= kept <= remaining:
        where = f"{some([*scores])}: " if scores else ""
        raise ValueError(f"{where}{kept} weights cannot be kept of the {remaining} that remain")
    for name, score in scores.items():
        if not math.isfinite(score.sum()) and not (score[masks[name]] if masks else score).isfinite().all():
            raise ValueError(f"the scores of {name} are not finite, so none is the highest")
    threshold = _kth_highest(scores, kept, remaining, masks) if kept else math.inf
    result = {name: _and(score > threshold, masks, name) for name, score in scores.items()}
    ties = kept - sum(map(size, result.values()))
    for name, score in scores.items() if ties else ():
        equal = _and(score == threshold, masks, name).flatten().nonzero()[:ties, 0]
        result[name][torch.unravel_index(equal, score.shape)] = True
        if not (ties := ties - len(equal)):
            break
    return result


def size(mask: Tensor) -> int:
    """How many weights it keeps."""
    return int(torch.count_nonzero(mask))


def _and(condition: Tensor, masks: Mapping[str, Tensor] | None, name: str) -> Tensor:
    return condition.logical_and_(masks[name]) if masks else condition


def _kth_highest(scores: Mapping[str, Tensor], k: int, remaining: int, masks: Mapping[str, Tensor] | None) -> float:
    """A sample tells between which two values it lies; only what lies between them is sorted."""
    stride = max(1, remaining // _SAMPLED)
    strided = [
        (score.flatten()[::stride], masks[name].flatten()[::stride] if masks else None)
        for name, score in scores.items()
    ]
    sample = torch.cat([score if mask is None else score[mask] for score, mask in strided]).sort(descending=True).values
    place, margin = k * len(sample) // remaining, 3 * math.isqrt(len(sample)) if stride > 1 else len(sample)
    high = sample[place - margin].item() if place >= margin else math.inf
    low = sample[place + margin].item() if place + margin < len(sample) else -math.inf
    for least, most in ((low, high), (-math.inf, math.inf)):  # a sample may mislead
        above = sum(size(_and(score > most, masks, name)) for name, score in scores.items())
        between = [
            score[_and((score >= least).logical_and_(score <= most), masks, name)] for name, score in scores.items()
        ]
        if above < k <= above + sum(map(len, between)):
            candidates = torch.cat(between)
            return torch.kthvalue(candidates, len(candidates) - (k - above) + 1).values.item()
    raise AssertionError("unreachable: k is at most the number of scores")


def shuffled(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Each tensor's values in a random order, a mask hence as dense; the same on every device, for a CPU generator."""
    result = {}
    for name, tensor in tensors.items():
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        result[name] = tensor.flatten()[order].view(tensor.shape)
    return result


def collapsed(masks: Mapping[str, Tensor]) -> list[str]:
    """The layers that keep no weight at all, through which no signal passes: layer collapse."""
    return [name for name, mask in masks.items() if not mask.any()]


def density(masks: Mapping[str, Tensor]) -> float:
    """The share of the weights that is kept."""
    return sum(map(size, masks.values())) / sum(mask.numel() for mask in masks.values())


def packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """One bit per weight, in one tensor of uint8, with the shapes, and a digest of all; for `state_dict`."""
    flat = [mask.flatten().cpu() for mask in masks.values()]
    bits = np.packbits(torch.cat(flat).numpy() if flat else np.zeros(0, dtype=bool))
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    return {"bits": torch.from_numpy(bits), "shapes": shapes, "digest": digest(masks)}


def unpacked(state: Mapping[str, Any]) -> Masks:
    """The masks that were `packed`, on the CPU; ValueError where they are not what they were."""
    sizes = {name: math.prod(shape) for name, shape in state["shapes"].items()}
    bits = torch.from_numpy(np.unpackbits(state["bits"].cpu().numpy(), count=sum(sizes.values())).astype(bool))
    parts = bits.split([*sizes.values()]) if sizes else ()
    masks = {name: part.view(shape) for part, (name, shape) in zip(parts, state["shapes"].items(), strict=True)}
    if digest(masks) != state["digest"]:
        raise ValueError("the masks' digest does not fit them: the file has been changed or damaged")
    return masks


def digest(masks: Mapping[str, Tensor]) -> str:
    """A text that only the same masks share, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(f"{name}{list(masks[name].shape)}".encode())
        sha.update(np.packbits(masks[name].cpu().numpy()).tobytes())
    return sha.hexdigest()
