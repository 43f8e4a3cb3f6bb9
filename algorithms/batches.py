"""Where a batch, whatever its form, holds inputs and labels: at a key, an index, or a pair of functions (get, set)."""

import copy
from collections.abc import Mapping
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def labels_key(batch: Any, target_key: Any) -> Any:
    """Where the labels stand: at `target_key`; in a batch that is a mapping its default, 1, means "labels"."""
    return "labels" if isinstance(batch, Mapping) and target_key == 1 else target_key


def device_of(*models: nn.Module) -> torch.device:
    """Where the first of the models' parameters and buffers is; the CPU, where they have none."""
    held = chain.from_iterable(chain(model.parameters(), model.buffers()) for model in models)
    return next((tensor.device for tensor in held), torch.device("cpu"))


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if hasattr(batch, "to"):  # a tensor, or a batch of Hugging Face's
        return batch.to(device)
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, batch)


def target_in(name: str, batch: Any, target_key: Any) -> Tensor:
    """The one tensor of targets in a batch. Raises ValueError, or TypeError, where there is none."""
    return tensor_in(name, batch, labels_key(batch, target_key), "target_key")


def labels_in(batch: Any, target_key: Any) -> Tensor | None:
    """The tensor of labels in a batch that may have none, or is nothing but inputs."""
    try:
        labels = None if isinstance(batch, Tensor) else item(batch, labels_key(batch, target_key))
    except (KeyError, IndexError, AttributeError):
        return None
    return labels if isinstance(labels, Tensor) else None


def tensor_in(name: str, batch: Any, key: Any, argument: str) -> Tensor:
    """The one tensor in a batch where the `argument` of an algorithm of this name says.

    Raises ValueError where there is nothing, and TypeError for what is no tensor.
    """
    tensor = item_in(name, batch, key, argument)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} needs one tensor at {argument}, but the batch holds {type(tensor).__name__} there.")
    return tensor


def item_in(name: str, batch: Any, key: Any, argument: str) -> Any:
    """What a batch holds where the `argument` of an algorithm of this name says. Raises ValueError for nothing."""
    try:
        return item(batch, key)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        held = f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise ValueError(
            f"{name} finds nothing at {key!r} in a batch{held} ({type(batch).__name__}): give {argument}."
        ) from error


def item(batch: Any, key: Any) -> Any:
    """What a batch holds at a key, an index, an attribute's name, or where the first of two functions finds it."""
    if isinstance(key, tuple | list) and all(map(callable, key)):
        return key[0](batch)
    if callable(key):
        return key(batch)
    try:
        return batch[key]
    except (IndexError, TypeError):
        if not _is_attribute(batch, key):
            raise
        return attrgetter(str(key))(batch)


def replaced(batch: Any, key: Any, value: Any) -> Any:
    """Returns a copy of the batch, of its type, that holds `value` there; of two functions the second puts it in."""
    if isinstance(key, tuple | list) and all(map(callable, key)):
        return key[1](copy.copy(batch), value)
    if isinstance(batch, tuple):
        names: Any = getattr(batch, "_fields", ())
        held: Any = [*batch]
        held[names.index(key) if key in names else key] = value
        return type(batch)(*held) if names else type(batch)(held)
    changed = copy.copy(batch)
    if _is_attribute(batch, key):
        setattr(changed, str(key), value)
    else:
        changed[key] = value
    return changed


def _is_attribute(batch: Any, key: Any) -> bool:
    return isinstance(key, str) and not isinstance(batch, Mapping)
