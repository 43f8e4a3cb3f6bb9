"""Distillation in a run of Composer's Trainer."""

import warnings
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, ClassVar, Literal

import torch
from composer.core import Event, Precision, State, Time, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from ..batches import labels_in
from ..distillation import Distiller, Loss, Teachers, minimised, stands_by_position, with_added
from ..labelled_positions import Labelled
from ..progress import Progress
from ..targets import IGNORED
from .bases import RandomAlgorithm
from .for_recipes import ForRecipes, Supply
from .host import NoEffectWarning, composer_model, progress_of
from .teachers import teacher_on_batches


def _of_distiller(name: str) -> Any:
    return property(
        lambda self: getattr(self.distiller, name), lambda self, value: setattr(self.distiller, name, value)
    )


class Distillation(ForRecipes, RandomAlgorithm):
    """Add a loss that draws the student's logits to its teachers'.

    Args:
        teachers: one or several networks or `ComposerModel`s, which are taken over: frozen, in evaluation mode, on the
            student's device; or Hugging Face folders. `load_teacher` reads checkpoints and safetensors.
        teachers_per_step: how many are drawn at each step; None: all. Of several, logits are averaged.
        base_weight, distillation_weight: of the loss that there is without teachers, and of distillation.
        loss: "kl" with `temperature`, "mse" of the logits, or a function of the student's and the teachers' logits
            `(R, C)`, a row for each sample, or for each position with a label where each position has one.
        temperature: what logits are divided by before the softmax, above 0.
        start, end: when to distill, as time strings: `start <= elapsed < end`. Before and after, the loss is the plain
            one, unweighted. Once an end within the training is reached it is over for good, and the teachers' memory is
            released.
        ignore_index: the label of positions that are not taught, where each position has a label.
        common_classes: where the numbers of outputs differ, as for one tokenizer with another padding, teach the first
            ones, which all have; by default a difference is an error.
        input_key, target_key: where the batch holds inputs and targets; for a batch that is a mapping, 1 means
            "labels". A teacher that is neither a `ComposerModel` nor of Hugging Face is given what stands at
            `input_key`.
        teacher_dtype: "bfloat16", "float16" or "float32": of the teachers' weights and arithmetic. By default weights
            stay as they are, and arithmetic follows the student's precision.
        compile: compile the teachers.
        offload: keep teachers on the CPU while they are not asked.

    The draw is a function of the run's seed and the batch's number: common to all ranks and microbatches, and no global
    generator moves. Nothing of the teachers is in the student's model, optimizer or checkpoint. Beside FSDP each rank
    holds the teachers whole.

    Each step that distills logs, as means over the batch of all ranks that stay on the device, `loss/train/plain`, the
    loss without teachers, and `loss/train/distillation`, what is added: with `distillation_weight`, which
    `base_weight * loss/train/plain` complements to `loss/train/total`.

    Raises ValueError before the first step where a teacher has another number of classes than the student.
    """

    steps: ClassVar = {
        Event.INIT: "_begin",
        Event.FIT_START: "_meet",  # again, when it has its memory format
        Event.BATCH_START: "_choose",
        Event.BEFORE_TRAIN_BATCH: "_restart",
        Event.BEFORE_BACKWARD: "_distill",
        Event.AFTER_TRAIN_BATCH: "_log",
        Event.BATCH_END: "_finish",
        Event.FIT_END: "_warn",
    }

    supplied: ClassVar = {"teachers": Supply.NETWORKS}

    teachers, drawn, start, end = map(_of_distiller, ("teachers", "drawn", "start", "end"))
    teachers_per_step, loss, temperature = map(_of_distiller, ("teachers_per_step", "loss", "temperature"))
    base_weight, distillation_weight = map(_of_distiller, ("base_weight", "distillation_weight"))
    common_classes, _seed = map(_of_distiller, ("common_classes", "seed"))

    def __init__(
        self,
        teachers: Teachers,
        teachers_per_step: int | None = None,
        base_weight: float = 0.1,
        distillation_weight: float = 0.9,
        loss: Loss = "kl",
        temperature: float = 4.0,
        start: str | Time = "0dur",
        end: str | Time = "1dur",
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        teacher_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        compile: bool = False,
        offload: bool = False,
        ignore_index: int = IGNORED,
        common_classes: bool = False,
    ):
        self.distiller = Distiller(
            teachers,
            teachers_per_step,
            base_weight,
            distillation_weight,
            loss,
            temperature,
            str(start),
            str(end),
            teacher_dtype=teacher_dtype,
            compile=compile,
            offload=offload,
            ignore_index=ignore_index,
            common_classes=common_classes,
            make=partial(teacher_on_batches, input_key=input_key, target_key=target_key),
        )
        self.target_key = target_key
        self._labelled, self._tokens = Labelled(ignore_index), False
        self._parts: list[tuple[Tensor, Tensor]] = []  # of each microbatch's loss; see `_weighed`
        self._logged = -1

    @property
    def bound_to_the_length(self) -> bool:
        """Whether what it does follows how much of the whole run is over."""
        return not self.distiller.always

    def match(self, event: Event, state: State) -> bool:
        if not super().match(event, state):
            return False
        step = self.step_at(event)
        if step is Distillation._restart:
            return self._labelled.begun or bool(self._parts)
        return step is not Distillation._finish or self.distiller.lets_go

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.distiller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.distiller.load_state_dict(state)

    def _begin(self, state: State, logger: Logger) -> None:
        self.distiller.meet(state.model, anew=True)

    def _meet(self, state: State, logger: Logger) -> None:
        self.distiller.meet(state.model)

    def _choose(self, state: State, logger: Logger) -> None:
        Distillation._restart(self, state, logger)
        self.distiller.begin(self._now(state))
        labels = labels_in(state.batch, self.target_key)
        self._tokens = stands_by_position(labels)
        if labels is not None and self._tokens and self.distiller.asks:
            self._labelled.start(labels, bool(getattr(composer_model(state), "shift_labels", False)))

    def _restart(self, state: State, logger: Logger) -> None:
        self._labelled.restart()
        self._parts = []

    def _distill(self, state: State, logger: Logger) -> None:
        if not self.distiller.asks:
            return
        labels = labels_in(state.batch, self.target_key)
        index = self._labelled.next(labels) if labels is not None and self._tokens else None
        precision = partial(get_precision_context, state.precision, state.precision_config)
        distilled = self.distiller.distilled(state.outputs, state.batch, labels, index, precision)
        if distilled is not None:
            state.loss = with_added(state.loss, self._weighed(distilled, state.loss), self.base_weight)

    def _weighed(self, distilled: Tensor, loss: Any) -> Tensor:
        """What is added to a microbatch's loss, with a term of value 0, whose gradient is how Composer weighs it."""
        zero = torch.zeros((), dtype=torch.float32, device=distilled.device, requires_grad=True)
        added = torch.add(zero, distilled, alpha=self.distillation_weight)
        self._parts.append((torch.stack([minimised(loss).detach().float(), added.detach().float()]), zero))
        return added

    def _log(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if step == self._logged:  # an optimizer's second pass
            return
        weighed = [parts * zero.grad for parts, zero in self._parts if zero.grad is not None]
        if not weighed:
            return
        parts = reduce(torch.add, weighed)
        if state.precision == Precision.AMP_FP16 and state.scaler is not None:
            parts = parts / state.scaler.scale(torch.ones_like(parts))  # type: ignore[operator]
        if (ranks := dist.get_world_size()) > 1:
            dist.all_reduce(parts)
            parts = parts / ranks
        plain, distilled = parts.unbind()
        logger.log_metrics({"loss/train/plain": plain, "loss/train/distillation": distilled})  # type: ignore[dict-item]
        self._logged = step

    def _now(self, state: State) -> int | Progress:
        return state.timestamp.batch.value if self.distiller.always else progress_of(state)

    def _finish(self, state: State, logger: Logger) -> None:
        self.distiller.rest()
        self.distiller.is_over(self._now(state))  # an evaluation, which may come now, needs no teachers

    def _warn(self, state: State, logger: Logger) -> None:
        if not (self.distiller.began or self.distiller.over):
            warnings.warn(NoEffectWarning(f"Distillation: the training ended before start={self.start}."), stacklevel=2)
