"""ChannelsLast in a training by Lightning's Trainer."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from ..channels_last import apply_channels_last, batch_channels_last
from .host import when_built
from .steps import Place, StepTechnique


class ChannelsLast(StepTechnique):
    """Train in `torch.channels_last`, 3-d convolutions in `torch.channels_last_3d`. Has no arguments.

    Warns (NoEffectWarning) where the model has no convolution. Raises ValueError under ModelParallelStrategy, whose
    FSDP2 accepts contiguous parameters only (torch 2.7).
    """

    place = Place.CONVERTS

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "ChannelsLast cannot run under ModelParallelStrategy, whose fully_shard refuses channels_last "
                "parameters. Take it out of the callbacks, or train with strategy='ddp', which fits convolutional "
                "networks."
            )
        when_built(pl_module, lambda: apply_channels_last(pl_module))

    def change(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        return batch_channels_last(batch)
