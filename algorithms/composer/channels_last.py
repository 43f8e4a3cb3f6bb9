"""ChannelsLast in a run of Composer's Trainer."""

import warnings

from composer.core import Event, State
from composer.loggers import Logger

from ..channels_last import NOTHING_CHANGED, batch_channels_last, put_channels_last
from .bases import Guest
from .host import NoEffectWarning, refuse_twins

_CONVERTS = (Event.BEFORE_FORWARD, Event.EVAL_BEFORE_FORWARD, Event.PREDICT_BEFORE_FORWARD)


class ChannelsLast(Guest):
    """Train in `torch.channels_last`, 3-d convolutions in `torch.channels_last_3d`. Has no arguments.

    Warns (NoEffectWarning) where the model has no convolution. Raises ValueError under FSDP2, whose sharding accepts
    contiguous parameters only (torch 2.7).
    """

    def match(self, event: Event, state: State) -> bool:
        return event is Event.INIT or event in _CONVERTS

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
        if not put_channels_last(state.model):
            warnings.warn(NoEffectWarning(NOTHING_CHANGED), stacklevel=2)
