"""ChannelsLast: model and inputs in the memory format NHWC, for which convolution kernels are fastest.

Same names and meaning as in `composer.algorithms`. Here the inputs arrive in that format too, so that the first layer
does not convert them, in evaluation and prediction as well as in training; and networks may hold 3-d convolutions.
"""

import copy
import dataclasses
import warnings
from collections.abc import MutableMapping
from itertools import chain
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from .validation import NoEffectWarning

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
NOTHING_CHANGED = "ChannelsLast changed nothing: no weight of the model has four or five dimensions."


def apply_channels_last(model: torch.nn.Module) -> None:
    """Put every parameter and buffer of `model`, in place, into `torch.channels_last` where it has four dimensions and
    into `torch.channels_last_3d` where it has five. Warns (NoEffectWarning) where no parameter has.
    """
    if not put_channels_last(model):
        warnings.warn(NoEffectWarning(NOTHING_CHANGED), stacklevel=2)


def put_channels_last(model: torch.nn.Module) -> bool:
    """Does so without that warning, and returns whether a parameter has so many dimensions."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim in FORMATS:
            tensor.data = tensor.data.to(memory_format=FORMATS[tensor.ndim])
    return any(parameter.ndim in FORMATS for parameter in model.parameters())


def batch_channels_last(batch: Any) -> Any:
    """`batch` with its 4-d and 5-d tensors in that format, however nested in tuples, lists, mappings and objects.

    What holds such a tensor is copied, and keeps its type; what holds none stays the object that it is.
    """
    leaves, structure = tree_flatten(batch)
    converted = [_converted(leaf) for leaf in leaves]
    same = all(new is old for new, old in zip(converted, leaves, strict=True))
    return batch if same else tree_unflatten(converted, structure)


def _converted(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return _channels_last(leaf)
    if isinstance(leaf, torch.nn.Module | type):
        return leaf
    # A mapping that torch does not know, such as Hugging Face's BatchFeature, or an object with attributes.
    held = leaf if isinstance(leaf, MutableMapping) else getattr(leaf, "__dict__", {})
    if dataclasses.is_dataclass(leaf):
        held = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
    changed = {name: new for name, value in held.items() if (new := batch_channels_last(value)) is not value}
    if not changed:
        return leaf
    leaf = copy.copy(leaf)
    for name, value in changed.items():
        if isinstance(leaf, MutableMapping):
            leaf[name] = value
        else:
            object.__setattr__(leaf, name, value)  # of frozen dataclasses too
    return leaf


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=FORMATS[tensor.ndim]) if tensor.ndim in FORMATS else tensor
