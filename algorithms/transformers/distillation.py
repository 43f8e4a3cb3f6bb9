"""Distillation in Hugging Face's Trainer."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..distillation import Distiller, Loss, Teachers
from ..targets import IGNORED
from ..validation import NoEffectWarning
from .host import Run
from .losses import OfLoss, shifts_labels


class Distillation(OfLoss):
    """Adds a loss that draws the model's logits to its teachers', of all or of a few drawn anew at each update.

        Trainer(model, args, callbacks=[Distillation("teacher-folder")], ...)

    With a loss of one's own: `compute_loss_func=distillation.wrap(compute_loss_func)`, beside the callback
    `distillation`. Teachers that are Hugging Face models are asked with the batch, others with all of it as a mapping.

    Args:
        teachers, teachers_per_step, base_weight, distillation_weight, loss, temperature: see `Distiller`.
        start, end: when to distill, in ba, ep or dur.
        teacher_dtype, compile, offload, ignore_index, common_classes: see `Distiller`.

    The draw is a function of `TrainingArguments(seed)` and the update: the same on all ranks, in all its microbatches,
    and after a resume. `distiller.parts` has the parts of the last loss.
    """

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
        teacher_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        compile: bool = False,
        offload: bool = False,
        ignore_index: int = IGNORED,
        common_classes: bool = False,
    ):
        super().__init__(ignore_index)
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
        )
        self.counted((self.distiller.start, self.distiller.end))

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.distiller.seed, self.distiller.shift_labels = run.args.seed, shifts_labels(run.model)
        self.distiller.meet(run.model, anew=not run.state.global_step)

    def state_dict(self) -> dict[str, Any]:
        return self.distiller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.distiller.load_state_dict(state)

    def changed(self, loss: Callable[[Any, Tensor | None], Tensor], outputs: Any, labels: Tensor | None) -> Tensor:
        assert self.run
        inputs = {name: value for name, value in self._inputs.items() if name != "num_items_in_batch"}
        with self.run.autocast():
            plain = loss(outputs, labels)
            return self.distiller(plain, outputs, inputs, self.run.progress(), inputs.get("labels", labels))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        assert self.run
        self.distiller.is_over(self.run.progress())  # an evaluation, which may come now, needs no teachers

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_train_end(args, state, control, **parts)
        if not (self.distiller.began or self.distiller.over):
            text = f"Distillation: the training ended before start={self.distiller.start}."
            warnings.warn(NoEffectWarning(text), stacklevel=2)
