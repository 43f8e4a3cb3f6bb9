"""Distillation in a training by Lightning's Trainer."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..batches import item_in, labels_in
from ..distillation import Distiller, Loss, Teachers
from ..progress import WHOLE, Progress
from ..targets import IGNORED
from ..validation import NoEffectWarning
from .host import common_seed, progress_of, refuse_untold
from .losses import LossTechnique
from .steps import Place


class Distillation(LossTechnique):
    """Add a loss that draws the student's logits to its teachers', where the training step asks by `training_loss`.

    Args:
        teachers, teachers_per_step, base_weight, distillation_weight, loss, temperature, start, end, teacher_dtype,
            compile, offload, ignore_index, common_classes, shift_labels: see `Distiller`. A teacher may be a
            LightningModule, whose `forward` is asked.
        input_key, target_key: where the batch holds what teachers are given, and labels; for a batch that is a mapping,
            0 means all of it, of which a Hugging Face model takes what it knows but for the labels, and 1 "labels".
        seed: of the draw; None: Lightning's global seed, or else torch's initial one. Who resumes keeps the first.

    The batches of one update ask the same teachers. They see what the training step sees: mixed inputs, too. Nothing of
    them is in the LightningModule, its optimizer or its checkpoint.

    A step that distills logs `loss/train/plain`, the loss without teachers, and `loss/train/distillation`, what is
    added: with `distillation_weight`, which `base_weight * loss/train/plain` complements to the loss. It does so at the
    steps of which the Trainer tells its loggers (`log_every_n_steps`), and at the last one of an epoch.
    """

    place = Place.DISTILLS

    def __init__(
        self,
        teachers: Teachers,
        teachers_per_step: int | None = None,
        base_weight: float = 0.1,
        distillation_weight: float = 0.9,
        loss: Loss = "kl",
        temperature: float = 4.0,
        start: str = "0dur",
        end: str = "1dur",
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        teacher_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        compile: bool = False,
        offload: bool = False,
        ignore_index: int = IGNORED,
        common_classes: bool = False,
        shift_labels: bool = False,
        seed: int | None = None,
    ):
        super().__init__()
        self.distiller = Distiller(
            teachers,
            teachers_per_step,
            base_weight,
            distillation_weight,
            loss,
            temperature,
            start,
            end,
            teacher_dtype=teacher_dtype,
            compile=compile,
            offload=offload,
            ignore_index=ignore_index,
            common_classes=common_classes,
            shift_labels=shift_labels,
        )
        self.input_key, self.target_key, self.seed = input_key, target_key, seed
        self._batch: Any = None

    @property
    def bound_to_the_length(self) -> bool:
        """Whether what it does follows how much of the whole training is over."""
        return not self.distiller.always

    @property
    def drawn(self) -> list[int]:
        """The numbers of the teachers that this step asks."""
        return self.distiller.drawn

    def state_dict(self) -> dict[str, Any]:
        return self.distiller.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.distiller.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.distiller.seed = common_seed(trainer, self.seed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        refuse_untold(self, trainer, *(time for time in (self.distiller.start, self.distiller.end) if time != WHOLE))
        self.distiller.meet(pl_module, anew=not trainer.global_step)

    def change(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        self._batch = batch
        return batch

    def beside(self, trainer: Trainer, pl_module: LightningModule, loss: Any, outputs: Any) -> Any:
        batch = self._batch
        whole = isinstance(batch, Tensor) or (isinstance(batch, Mapping) and self.input_key == 0)
        inputs = batch if whole else item_in("Distillation", batch, self.input_key, "input_key")
        total = self.distiller(loss, outputs, inputs, self._now(trainer), labels_in(batch, self.target_key))
        if (parts := self.distiller.parts) and _is_logged(trainer):
            pl_module.log_dict({f"loss/train/{name}": part for name, part in parts.items()})
        return total

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = None
        self.distiller.is_over(self._now(trainer))  # an evaluation, which may come now, needs no teachers

    def _now(self, trainer: Trainer) -> int | Progress:
        return trainer.global_step if self.distiller.always else progress_of(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not (self.distiller.began or self.distiller.over):
            start = self.distiller.start
            warnings.warn(NoEffectWarning(f"Distillation: the training ended before start={start}."), stacklevel=2)


def _is_logged(trainer: Trainer) -> bool:
    """Whether anybody sees what is logged now; as Lightning's own monitors ask: it is slow to log."""
    connector: Any = trainer._logger_connector  # type: ignore[attr-defined]
    return trainer.is_last_batch or trainer.fast_dev_run or connector.should_update_logs  # type: ignore[attr-defined]
