"""Distillation: learning from the logits of trained teachers, of all or of a few drawn anew at each step.

Source: "Reduce, Reuse, Recycle: Improving Training Efficiency with Distillation" (arXiv 2211.00683); the loss is from
Hinton et al. 2015 (arXiv 1503.02531). Drawn one at a time, the teachers of an ensemble cost what a single one costs.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event, Precision, State, Time
from composer.loggers import Logger
from composer.utils import dist, ensure_tuple
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn
from torch.nn import functional as F

from .bases import RandomAlgorithm
from .batches import labels_key
from .for_recipes import ForRecipes, Supply
from .generators import numpy_generator
from .host import composer_model, moment, reached
from .labelled_positions import Labelled, LabelledPositions
from .targets import IGNORED
from .teachers import Teacher, load_teacher, logits_of, rows
from .validation import check

DTYPES = ("bfloat16", "float16", "float32")
STREAM = 0x7EAC  # sets these draws apart from what others draw by the same seed and step


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` of logits `(R, C)`, in float32, its mean over the rows.

    `T^2` keeps the size of the gradient independent of the temperature (Hinton et al. 2015, section 2).
    """
    log_p = F.log_softmax(teacher.float() / temperature, -1)
    log_q = F.log_softmax(student.float() / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / max(len(student), 1))


def distillation_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of logits `(R, C)`, in float32."""
    return F.mse_loss(student.float(), teacher.float(), reduction="sum") / max(student.numel(), 1)


def draw_teachers(seed: int, step: int, count: int, per_step: int) -> list[int]:
    """Which `per_step` of `count` teachers are asked at this step: uniform, without replacement, in rising order."""
    return sorted(numpy_generator(seed, step, STREAM).choice(count, per_step, replace=False).tolist())


def add_distillation(loss: Any, distilled: Tensor, base_weight: float, distillation_weight: float) -> Any:
    """`base_weight * loss + distillation_weight * distilled`, for a loss that is a tensor, a tuple or a mapping.

    Of a mapping with "total" only that is minimised, and the others are left as they are.
    """
    distilled = distillation_weight * distilled
    if isinstance(loss, Mapping):
        weighed = ["total"] if "total" in loss else [*loss]
        parts = {name: base_weight * value if name in weighed else value for name, value in loss.items()}
        if "total" in loss:
            parts["total"] = parts["total"] + distilled
        return parts | {"distillation": distilled}
    if isinstance(loss, Tensor):
        return base_weight * loss + distilled
    return (*(base_weight * part for part in loss), distilled)


def minimised(loss: Any) -> Tensor:
    """The one number that Composer minimises of a loss that is a tensor, a tuple or a mapping."""
    if isinstance(loss, Mapping):
        loss = loss["total"] if "total" in loss else tuple(loss.values())
    return sum(part.mean() for part in ensure_tuple(loss))  # type: ignore[return-value]


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
        input_key, target_key: where the batch holds them; for a batch that is a mapping, 1 means "labels". A teacher
            that is neither a `ComposerModel` nor of Hugging Face is given what stands at `input_key`.
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
        Event.INIT: "_start",
        Event.BATCH_START: "_choose",
        Event.BEFORE_TRAIN_BATCH: "_restart",
        Event.BEFORE_BACKWARD: "_distill",
        Event.AFTER_TRAIN_BATCH: "_log",
        Event.BATCH_END: "_finish",
        Event.FIT_END: "_warn",
    }

    supplied: ClassVar = {"teachers": Supply.NETWORKS}

    def __init__(
        self,
        teachers: nn.Module | str | PathLike[str] | Sequence[nn.Module | str | PathLike[str]],
        teachers_per_step: int | None = None,
        base_weight: float = 0.1,
        distillation_weight: float = 0.9,
        loss: Literal["kl", "mse"] | Callable[[Tensor, Tensor], Tensor] = "kl",
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
        alone = isinstance(teachers, nn.Module | str | PathLike) and not isinstance(teachers, nn.ModuleList)
        given: Any = [teachers] if alone or not isinstance(teachers, Iterable) else [*teachers]
        count, per_step, expected = len(given), teachers_per_step, "a time string such as 0.5dur, 10ep or 500ba"
        first, last = moment(start), moment(end)
        require = partial(check, "Distillation")
        require("teachers", given, "one at least", given)
        modules_or_folders = all(isinstance(one, nn.Module | str | PathLike) for one in given)
        require("teachers", modules_or_folders, "modules, or Hugging Face folders", given)
        whole = per_step is None or (type(per_step) is int and 1 <= per_step <= count)
        require("teachers_per_step", whole, f"None for all, or a whole number in [1, {count}]", per_step)
        require("base_weight", 0 <= base_weight < math.inf, "finite and not below 0", base_weight)
        require("distillation_weight", 0 < distillation_weight < math.inf, "finite and above 0", distillation_weight)
        require("loss", callable(loss) or loss in ("kl", "mse"), "'kl', 'mse' or a function of two logits", loss)
        require("temperature", 0 < temperature < math.inf, "finite and above 0", temperature)
        begins, ends = first is not None and str(first) != "1.0dur", last is not None and last.value > 0
        require("start", begins, f"{expected}, before the end of the training", start)
        require("end", ends, f"{expected}, after the beginning of the training", end)
        known = teacher_dtype in (None, *DTYPES)
        require("teacher_dtype", known, f"None or one of {', '.join(DTYPES)}", teacher_dtype)
        require("ignore_index", type(ignore_index) is int, "a whole number", ignore_index)
        require("common_classes", type(common_classes) is bool, "True or False", common_classes)
        assert first is not None and last is not None
        require("end", first.unit != last.unit or first.value < last.value, f"after start={start}", end)
        self.start: Any = first
        self.end: Any = last
        self.teachers_per_step = teachers_per_step or len(given)
        self.base_weight, self.distillation_weight = base_weight, distillation_weight
        self.loss, self.temperature = loss, temperature
        self.target_key = target_key
        modules = [one if isinstance(one, nn.Module) else load_teacher(one) for one in given]
        if len(set(map(id, modules))) < len(modules):
            raise ValueError("Distillation: teachers must be different modules, got one of them twice.")
        options = {"dtype": teacher_dtype, "compile": compile, "offload": offload}
        self.teachers = [Teacher(module, input_key, target_key, **options) for module in modules]
        self.drawn: list[int] = []  # the teachers of this step
        self._count = len(modules)  # also when they have been let go
        self._labelled = Labelled(ignore_index)
        self.common_classes = common_classes
        self._classes: int | None = None  # how many are taught, once it is known
        self._parts: Tensor | None = None  # of the loss; see `_distill`
        self._logged = -1
        self._tokens = self._checked = self._began = self._over = False

    @property
    def bound_to_the_length(self) -> bool:
        """Whether what it does follows how much of the whole run is over."""
        return (str(self.start), str(self.end)) != ("0.0dur", "1.0dur")

    def __repr__(self) -> str:
        return f"Distillation(teachers={self._count}, teachers_per_step={self.teachers_per_step})"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "over": self._over, "teachers": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (count := state.get("teachers", self._count)) != self._count:
            raise ValueError(f"Distillation: the checkpoint's run has {count} teachers, got {self._count}.")
        super().load_state_dict(state)
        self._over = state.get("over", self._over)

    def _start(self, state: State, logger: Logger) -> None:
        own = set(map(id, state.model.parameters()))
        if any(id(parameter) in own for teacher in self.teachers for parameter in teacher.module.parameters()):
            raise ValueError("Distillation: a teacher shares weights with the student; give copy.deepcopy of it.")

    def _choose(self, state: State, logger: Logger) -> None:
        self.drawn = []
        if self._is_over(state):
            return
        if reached(state, self.start):
            step = state.timestamp.batch.value
            self.drawn = draw_teachers(self._seed, step, self._count, self.teachers_per_step)
            self._began = True
        labels = self._labels(state.batch)
        self._tokens = labels is not None and labels.ndim > 1 and not labels.is_floating_point()
        if self._tokens and (self.drawn or not self._checked):
            shifted = bool(getattr(composer_model(state), "shift_labels", False))
            self._labelled.start(labels, shifted)  # type: ignore[arg-type]

    def _restart(self, state: State, logger: Logger) -> None:
        self._labelled.restart()
        self._parts = None

    def _distill(self, state: State, logger: Logger) -> None:
        if self._over or not (self.drawn or not self._checked):
            return
        outputs, labels = state.outputs, self._labels(state.batch)
        logits, index = logits_of(outputs), None
        left_out = any(isinstance(other, LabelledPositions) for other in state.algorithms)
        sparse = left_out and isinstance(outputs, Mapping) and "labels" in outputs
        if self._tokens and labels is not None and (sparse or logits.ndim > 2):
            index = self._labelled.next(labels)
        student = rows(logits, index, labels, not isinstance(outputs, Tensor))
        if not self._checked:
            self._check(state, student, index, labels)
        if not self.drawn:
            return
        student, teacher = self._common(student), self._mean_logits(state, index, labels)
        if self.loss == "kl":
            distilled = distillation_kl(student, teacher, self.temperature)
        else:
            loss: Any = distillation_mse if self.loss == "mse" else self.loss
            distilled = loss(student, teacher)
        distilled = self._noted(distilled.mean(), state.loss)
        state.loss = add_distillation(state.loss, distilled, self.base_weight, self.distillation_weight)

    def _noted(self, distilled: Tensor, loss: Any) -> Tensor:
        """`distilled` with a term of value 0, whose gradient is the parts as Composer weighs them by microbatch."""
        if self._parts is None:
            self._parts = torch.zeros(2, device=distilled.device, requires_grad=True)
        parts = torch.stack([minimised(loss), self.distillation_weight * distilled]).detach().float()
        return distilled + (self._parts * parts).sum()

    def _log(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if self._parts is None or self._parts.grad is None or step == self._logged:  # an optimizer's second pass
            return
        parts = self._parts.grad.detach() / self.distillation_weight
        if state.precision == Precision.AMP_FP16 and state.scaler is not None:
            parts = parts / state.scaler.scale(torch.ones_like(parts))  # type: ignore[operator]
        dist.all_reduce(parts)
        plain, distilled = parts / dist.get_world_size()
        logger.log_metrics({"loss/train/plain": plain, "loss/train/distillation": distilled})  # type: ignore[dict-item]
        self._logged = step

    def _mean_logits(self, state: State, index: Tensor | None, labels: Tensor | None) -> Tensor:
        if len(self.drawn) == 1:
            return self._ask(self.drawn[0], state, index, labels)
        total: Any = 0
        for i in self.drawn:
            total = total + self._ask(i, state, index, labels).float()
            if self.teachers[i].offload:
                self.teachers[i].leave()
        return total / len(self.drawn)

    def _ask(self, i: int, state: State, index: Tensor | None, labels: Tensor | None) -> Tensor:
        self.teachers[i].enter(state)
        return self._common(self.teachers[i](state, index, labels))

    def _common(self, logits: Tensor) -> Tensor:
        """The classes that are taught. A slice of all of them would cost a copy in the backward pass."""
        return logits if self._classes in (None, logits.shape[-1]) else logits[:, : self._classes]

    def _check(self, state: State, student: Tensor, index: Tensor | None, labels: Tensor | None) -> None:
        """Every teacher, as some may be drawn only after days."""
        shapes = [student.shape]
        for i, teacher in enumerate(self.teachers):
            shape = self._ask(i, state, index, labels).shape
            fits = shape == student.shape or (self.common_classes and shape[:-1] == student.shape[:-1])
            if not fits:
                remedy = (
                    " (common_classes=True teaches those that all have)" if shape[:-1] == student.shape[:-1] else ""
                )
                raise ValueError(
                    f"Distillation: teacher {i} ({type(teacher.network).__name__}) gives logits of {tuple(shape)}, "
                    f"rows by classes, where the student gives {tuple(student.shape)}; the classes must be the same"
                    f"{remedy}."
                )
            shapes.append(shape)
            if teacher.offload or not self.drawn:
                teacher.leave()
        self._classes = min(shape[-1] for shape in shapes)
        if self.loss == "kl" and self._classes == 1:
            raise ValueError("Distillation: of a single output loss='kl' is always 0; use loss='mse'.")
        self._checked = True

    def _finish(self, state: State, logger: Logger) -> None:
        for teacher in self.teachers:
            if teacher.offload:
                teacher.leave()
        self._is_over(state)  # an evaluation, which may come now, needs no teachers

    def _is_over(self, state: State) -> bool:
        # The end of the whole training is none of its own: who trains on distills on.
        if self._over or (str(self.end) != "1.0dur" and reached(state, self.end)):
            for teacher in self.teachers:
                teacher.leave()
            self.teachers, self._over = [], True
        return self._over

    def _warn(self, state: State, logger: Logger) -> None:
        if not (self._began or self._over):
            warnings.warn(NoEffectWarning(f"Distillation: the training ended before start={self.start}."), stacklevel=2)

    def _labels(self, batch: Any) -> Tensor | None:
        try:
            labels = None if isinstance(batch, Tensor) else batch_get(batch, labels_key(batch, self.target_key))
        except (KeyError, IndexError, AttributeError):  # a batch without labels
            return None
        return labels if isinstance(labels, Tensor) else None
