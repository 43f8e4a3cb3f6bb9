"""BlurPool in a training by Lightning's Trainer."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ..blur_layers import BlurMaxPool2d
from ..blurpool import apply_blurpool
from ..validation import check
from .host import Technique, when_built


class BlurPool(Technique):
    """Anti-alias the model's strided convolutions and max-pools, see `apply_blurpool` for the arguments.

    It acts before weights are loaded and before an optimizer is made, in training, evaluation and prediction. A
    checkpoint resumes with the same arguments only (ValueError); without BlurPool, its weights do not load, but for a
    checkpoint of weights alone, for which Lightning asks no callback.
    """

    def __init__(
        self,
        replace_convs: bool = True,
        replace_maxpools: bool = True,
        blur_first: bool = True,
        min_channels: int = 16,
    ):
        check("BlurPool", "replace_convs", replace_convs or replace_maxpools, "True, or replace_maxpools", False)
        self.options = {
            "replace_convs": replace_convs,
            "replace_maxpools": replace_maxpools,
            "blur_first": blur_first,
            "min_channels": min_channels,
        }

    def state_dict(self) -> dict[str, Any]:
        return self.options

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict != self.options:
            raise ValueError(
                f"The checkpoint was trained with BlurPool of {state_dict}, but this training has {self.options}. Give "
                "BlurPool the arguments of the checkpoint."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        when_built(pl_module, lambda: apply_blurpool(pl_module, **self.options))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Nothing of a blurred pool is among the weights, and Lightning loads those of a network that has none without a
        # word. An entry that a plain pool does not know is an error there; blurred ones take it for Composer's.
        for name, layer in pl_module.named_modules():
            if isinstance(layer, BlurMaxPool2d) and checkpoint["state_dict"]:
                checkpoint["state_dict"][f"{name}.blur_filter"] = layer.blur_filter.cpu()
