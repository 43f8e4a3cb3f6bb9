"""ChannelsLast: model and inputs in the memory format NHWC, for which convolution kernels are fastest.

Same names and meaning as in `composer.algorithms`. Here the inputs arrive in that format too, so that the first layer
does not convert them, in evaluation and prediction as well as in training.
"""

import warnings
from typing import Any

import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch.utils._pytree import tree_map_only

from .host import refuse_twins

_CONVERTS = (Event.BEFORE_FORWARD, Event.EVAL_BEFORE_FORWARD, Event.PREDICT_BEFORE_FORWARD)


def apply_channels_last(model: torch.nn.Module) -> None:
    """Put every 4-d parameter and buffer of `model` into `torch.channels_last`, in place."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def batch_channels_last(batch: Any) -> Any:
    """`batch` with its 4-d tensors, however nested in tuples, lists and dicts, in `torch.channels_last`."""
    return tree_map_only(torch.Tensor, _channels_last, batch)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


class ChannelsLast(Algorithm):
    """Train in `torch.channels_last`. Has no arguments.

    Warns (NoEffectWarning) where the model has no convolution. Raises ValueError under FSDP2, whose sharding accepts
    contiguous parameters only (torch 2.7).
    """

    def __repr__(self) -> str:
        return "ChannelsLast()"

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT or event in _CONVERTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event in _CONVERTS:
            state.batch = batch_channels_last(state.batch)
            return
        refuse_twins(self, state)
        if state.fsdp_config_version == 2:
            raise ValueError(
                "ChannelsLast cannot run under FSDP2, whose fully_shard refuses channels_last parameters. Take it out "
                "of the algorithms, or train with DDP (no parallelism_config), which fits convolutional networks."
            )
        if not any(parameter.ndim == 4 for parameter in state.model.parameters()):
            warnings.warn(
                NoEffectWarning("ChannelsLast changed nothing: no weight of the model has four dimensions."),
                stacklevel=2,
            )
        apply_channels_last(state.model)
