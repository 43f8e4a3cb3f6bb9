"""The inputs of a whole batch, which Composer moves to the device microbatch by microbatch."""

from typing import Any

from composer.core import State
from torch import Tensor

from ..batches import tensor_in


def whole_input(name: str, state: State, input_key: Any) -> Tensor:
    """The inputs of all of a batch, images or features, on the device, to which all of the batch is moved.

    Only at BATCH_START is it whole. Raises ValueError where there is nothing at `input_key`, and TypeError for what is
    no tensor.
    """
    state.batch = state.device.batch_to_device(state.batch)
    return tensor_in(name, state.batch, input_key, "input_key")
