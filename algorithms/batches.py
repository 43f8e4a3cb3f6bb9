"""Where a batch, whatever its form, holds inputs and labels: at a key, an index, or a pair of functions (get, set)."""

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import State
from composer.utils.batch_helpers import batch_get
from torch import Tensor


def labels_key(batch: Any, target_key: Any) -> Any:
    """Where the labels stand: at `target_key`; in a batch that is a mapping its default, 1, means "labels"."""
    return "labels" if isinstance(batch, Mapping) and target_key == 1 else target_key


def target_in(name: str, batch: Any, target_key: Any) -> Tensor:
    """The one tensor of targets in a batch. Raises ValueError, or TypeError, where there is none."""
    return _tensor_in(name, batch, labels_key(batch, target_key), "target_key")


def whole_input(name: str, state: State, input_key: Any) -> Tensor:
    """The inputs of all of a batch, images or features, on the device, to which all of the batch is moved.

    Composer moves it microbatch by microbatch, and only at BATCH_START is it whole. Raises ValueError where there is
    nothing at `input_key`, and TypeError for what is no tensor of floating point numbers or bytes, such as token ids.
    """
    state.batch = state.device.batch_to_device(state.batch)
    input = _tensor_in(name, state.batch, input_key, "input_key")
    if not input.is_floating_point() and input.dtype != torch.uint8:
        raise TypeError(f"{name} changes images or features, but input_key gives {input.dtype}, such as token ids.")
    return input


def _tensor_in(name: str, batch: Any, key: Any, argument: str) -> Tensor:
    try:
        tensor = batch_get(batch, key)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        held = f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise ValueError(
            f"{name} finds nothing at {key!r} in a batch{held} ({type(batch).__name__}): give {argument}."
        ) from error
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} needs one tensor at {argument}, but the batch holds {type(tensor).__name__} there.")
    return tensor
