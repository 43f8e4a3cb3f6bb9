"""Tickets as files: masks in safetensors, to hand them to somebody else.

A file holds a bool tensor for each layer, named after its weight with `_mask` behind, as `torch.nn.utils.prune` names
them in a `state_dict`. Such a `state_dict`, as safetensors or from `torch.save`, can be read too.
"""

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from ..checkpoints import read_metadata, read_weights, renamed_for, some, write_safetensors
from .masks import Masks, digest

SUFFIX = "_mask"
_NUMBERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NUMBERS += (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_masks(path: str | PathLike[str], masks: Mapping[str, Tensor], **metadata: str) -> None:
    """Writes the masks whole or not at all, with their digest and further texts as the file's metadata."""
    tensors = {f"{name}{SUFFIX}": mask for name, mask in masks.items()}
    write_safetensors(path, tensors, {**metadata, "format": "pt", "digest": digest(masks)})


def load_masks(path: str | PathLike[str], weights: Mapping[str, Tensor], *, partial: bool = False) -> Masks:
    """The masks in a file, for the weights of these names and shapes, on the CPU.

    With `partial`, masks of other layers are left out, and so are weights that have none in the file, but not all.

    Names may have the prefix of a `ComposerModel` (`module.` or `model.`) that `weights` lack, or lack what they have.
    Raises FileNotFoundError, and ValueError naming the file for one that is damaged, has no masks, masks of other
    layers, other shapes or other values than 0 and 1, or lacks some.
    """
    tensors = read_weights(path)
    held = {name.removesuffix(SUFFIX): mask for name, mask in tensors.items() if name.endswith(SUFFIX)}
    if not held:
        raise ValueError(f"{path} holds no masks: expected tensors called as their weights with {SUFFIX} behind")
    if odd := [name for name, mask in held.items() if mask.dtype not in _NUMBERS]:
        raise ValueError(f"{path} does not fit: the mask of {some(odd)} is no tensor of bool, integers or floats")
    found = renamed_for(weights, held)
    problems = []
    missing = [name for name in weights if name not in found]
    if len(missing) > (len(weights) - 1 if partial else 0):
        problems.append(f"lacks the masks of {some(missing)}")
    if (extra := [name for name in found if name not in weights]) and not partial:
        problems.append(f"has masks of {some(extra)}, which are not pruned here")
    both = {name: mask for name, mask in found.items() if name in weights}
    wrong = [name for name, mask in both.items() if mask.shape != weights[name].shape]
    if wrong:
        shapes = [f"{name} of {tuple(both[name].shape)} for {tuple(weights[name].shape)}" for name in wrong]
        problems.append(f"has masks of other shapes: {some(shapes)}")
    # A tensor may be larger than its file; to look at its values would ask for memory, so that its shape comes first.
    numbers = {name: mask.view(torch.uint8) if mask.dtype == torch.bool else mask for name, mask in both.items()}
    other = [name for name, mask in numbers.items() if name not in wrong and not ((mask == 0) | (mask == 1)).all()]
    if other:
        problems.append(f"has values other than 0 and 1 in {some(other)}")
    if problems:
        raise ValueError(f"{path} does not fit: it {'; it '.join(problems)}")
    written = read_metadata(path).get("digest")
    if written and digest({name: mask.to(torch.bool) for name, mask in held.items()}) != written:
        raise ValueError(f"{path} is damaged: its masks are not those that were written")
    return {name: both[name].to(torch.bool) for name in weights if name in both}
