"""Masks: exactly how many weights are kept, and how masks are stored.

A mask is a bool tensor of its weight's shape, True where the weight is kept; masks go by the names of the parameters.
"""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import some

Masks = dict[str, Tensor]
Scope = Literal["global", "layerwise"]


class LayerCollapseWarning(UserWarning):
    """A layer keeps no weight at all."""


class TiedScoresWarning(UserWarning):
    """Scores do not tell which weights to keep."""


_SAMPLED = 1 << 17


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

    What `masks` have pruned stays pruned, whatever its score. Of equal scores the earlier ones are kept: earlier
    layers, and within a layer lower indices. That is no choice where all scores of a layer are equal, as they are 0 of
    a layer that starts at zero, or whose gradient does. ValueError is raised where it decides which weights of such
    layers are kept. A TiedScoresWarning names layers without scores, all 0, that are kept or pruned as a whole when
    layers are compared, and tells how many weights their index alone has chosen where it is above a tenth of the kept.

    Raises ValueError for more than remain, too, and for scores that are not finite.
    """
    each = [({name: scores[name]}, n) for name, n in kept.items()] if isinstance(kept, Mapping) else [(scores, kept)]
    found: Masks = {}
    by_index = among = 0
    undecided: list[str] = []
    for group, count in each:
        threshold, ties, equal = _threshold(group, count, masks)
        for name, score in group.items():
            found[name] = _and(score > threshold, masks, name)
        if ties < equal:
            undecided += _undecided(group, threshold, ties, masks)
            by_index, among = by_index + ties, among + equal
        for name, score in group.items() if ties else ():
            first = _and(score == threshold, masks, name).flatten().nonzero()[:ties, 0]
            found[name][torch.unravel_index(first, score.shape)] = True
            if not (ties := ties - len(first)):
                break
    if undecided:
        hint = "exclude such layers, or prune when or by what tells their weights apart"
        where = f"which weights of {some(undecided)} are kept, as all scores there are equal"
        raise ValueError(f"nothing but ties decides {where}; {hint}")
    total = sum(map(size, found.values()))
    if not isinstance(kept, Mapping) and total < _remaining(scores, masks):
        _warn_of_silence(scores, found, masks)
    if by_index > total / 10:
        text = (
            f"{by_index:,} of the {total:,} weights kept are chosen by their index alone, of {among:,} of equal score"
        )
        warnings.warn(text, TiedScoresWarning, stacklevel=2)
    return {name: found[name] for name in scores}


def _threshold(group: Mapping[str, Tensor], kept: int, masks: Mapping[str, Tensor] | None) -> tuple[float, int, int]:
    """The least score that is kept, how many are kept of those that equal it, and how many there are."""
    remaining = _remaining(group, masks)
    if not isinstance(kept, Integral):
        raise ValueError(f"kept must be a number of weights, or one by layer, got {kept!r}")
    if not 0 <= kept <= remaining:
        where = f"{some([*group])}: " if group else ""
        raise ValueError(f"{where}{kept} weights cannot be kept of the {remaining} that remain")
    for name, score in group.items():
        if not math.isfinite(score.sum()) and not (score[masks[name]] if masks else score).isfinite().all():
            raise ValueError(f"the scores of {name} are not finite, so none is the highest")
    return _kth_highest(group, kept, remaining, masks) if kept else (math.inf, 0, 0)


def _remaining(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> int:
    return sum(size(masks[name]) if masks else score.numel() for name, score in scores.items())


def _undecided(
    group: Mapping[str, Tensor], threshold: float, ties: int, masks: Mapping[str, Tensor] | None
) -> list[str]:
    """The layers of equal scores at the threshold, if ties keep a part of them.

    What is left of a pruned layer may be equal by chance; then it counts only if it is 0.
    """
    chosen = of_all = 0
    layers = []
    for name, score in group.items():
        equal = size(_and(score == threshold, masks, name))
        left = size(masks[name]) if masks else score.numel()
        if 1 < equal == left and (threshold == 0 or left == score.numel()):
            layers.append(name)
            chosen, of_all = chosen + min(ties, equal), of_all + equal
        ties = max(ties - equal, 0)
    return layers if 0 < chosen < of_all else []


def _warn_of_silence(scores: Mapping[str, Tensor], found: Masks, masks: Mapping[str, Tensor] | None) -> None:
    silent = [name for name, score in scores.items() if _all_zero(score, masks[name] if masks else None)]
    for fate, layers in (
        ("emptied", [name for name in silent if not found[name].any()]),
        ("kept whole", [name for name in silent if found[name].any()]),
    ):
        if layers and len(layers) < len(scores):
            text = f"layers without scores (all are 0) are {fate}: {some(layers)}; exclude them if that is not meant"
            warnings.warn(text, TiedScoresWarning, stacklevel=3)


def _all_zero(score: Tensor, mask: Tensor | None) -> bool:
    """Of what is left of a layer; a few tell it in general."""
    flat, left = score.flatten(), None if mask is None else mask.flatten()
    for step in (max(1, len(flat) // 1024), 1):
        remains = flat[::step] if left is None else flat[::step][left[::step]]
        if remains.any():
            return False
    return len(remains) > 0


def size(mask: Tensor) -> int:
    """How many weights it keeps."""
    return int(torch.count_nonzero(mask))


def _and(condition: Tensor, masks: Mapping[str, Tensor] | None, name: str) -> Tensor:
    return condition.logical_and_(masks[name]) if masks else condition


def _kth_highest(
    scores: Mapping[str, Tensor], k: int, remaining: int, masks: Mapping[str, Tensor] | None
) -> tuple[float, int, int]:
    """The value, how many of those that equal it are among the k highest, and how many there are.

    A sample tells between which two values it lies; only what lies between them is sorted.
    """
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
            value = torch.kthvalue(candidates, len(candidates) - (k - above) + 1).values
            return value.item(), k - above - size(candidates > value), size(candidates == value)
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
