"""MixUp in a training by Lightning's Trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ..asked_loss import Loss
from ..batches import replaced, target_in, tensor_in
from ..mixup import Mixer
from ..targets import IGNORED
from .host import batches_seen, common_seed
from .losses import LossTechnique
from .steps import Place


class MixUp(LossTechnique):
    """Train on mixed examples with mixed targets; the training step asks for its loss by `training_loss`.

    Args:
        alpha, interpolate_loss, ignore_index: see `Mixer`, which also says what is exchanged in which loss.
        input_key, target_key: where the batch holds them: a key, an index, or a pair of functions (get, set); for a
            batch that is a mapping the default target_key means "labels".
        seed: of the draws; None: Lightning's global seed, or else torch's initial one. Who resumes keeps the first.

    Each batch of the loader is mixed by itself, also where the gradients of several are accumulated. The mixing is
    common to all ranks, the pairs are drawn within each rank's batch.
    """

    place = Place.MIXES

    def __init__(
        self,
        alpha: float = 0.2,
        interpolate_loss: bool = False,
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        ignore_index: int = IGNORED,
        seed: int | None = None,
    ):
        super().__init__()
        self.mixer = Mixer(alpha, 0, interpolate_loss, ignore_index)
        self.input_key, self.target_key, self.seed = input_key, target_key, seed

    @property
    def mixing(self) -> float:
        """The weight of the other examples in this batch."""
        return self.mixer.mixing

    def state_dict(self) -> dict[str, Any]:
        return self.mixer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mixer.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.mixer.seed = common_seed(trainer, self.seed)

    def change(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        inputs = tensor_in("MixUp", batch, self.input_key, "input_key")
        targets = target_in("MixUp", batch, self.target_key)
        return replaced(batch, self.input_key, self.mixer(inputs, targets, batches_seen(trainer)))

    def around(self, loss_fn: Loss) -> Loss:
        return partial(self.mixer.loss, loss_fn)

    def own(self, pl_module: LightningModule, outputs: Any, targets: Any) -> Any:
        outputs["loss"], mixed = self.mixer.own_loss_and_targets(pl_module, outputs, targets)
        return mixed
