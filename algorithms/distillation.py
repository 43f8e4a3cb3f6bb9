"""Distillation: learning from the logits of trained teachers, of all or of a few drawn anew at each step.

Source: "Reduce, Reuse, Recycle: Improving Training Efficiency with Distillation" (arXiv 2211.00683); the loss is from
Hinton et al. 2015 (arXiv 1503.02531). Drawn one at a time, the teachers of an ensemble cost what a single one costs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .generators import numpy_generator
from .labelled_positions import Labelled
from .progress import WHOLE, Progress, moment
from .shown import Shown
from .targets import IGNORED
from .teachers import Teacher, load_teacher, logits_of, rows
from .validation import check

STREAM = 0x7EAC  # sets these draws apart from what others draw by the same seed and step
DTYPES = ("bfloat16", "float16", "float32")
Teachers = nn.Module | str | PathLike[str] | Sequence[nn.Module | str | PathLike[str]]
Loss = Literal["kl", "mse"] | Callable[[Tensor, Tensor], Tensor]


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
    if per_step == count:
        return [*range(count)]
    return sorted(numpy_generator(seed, step, STREAM).choice(count, per_step, replace=False).tolist())


def add_distillation(loss: Any, distilled: Tensor, base_weight: float, distillation_weight: float) -> Any:
    """`base_weight * loss + distillation_weight * distilled`, for a loss that is a tensor, a tuple or a mapping.

    Of a mapping with "total" only that is minimised, and the others are left as they are.
    """
    return with_added(loss, distillation_weight * distilled, base_weight)


def with_added(loss: Any, added: Tensor, base_weight: float) -> Any:
    """`add_distillation` of what has its weight already."""
    if isinstance(loss, Mapping):
        weighed = ["total"] if "total" in loss else [*loss]
        parts = {name: base_weight * value if name in weighed else value for name, value in loss.items()}
        if "total" in loss:
            parts["total"] = parts["total"] + added
        return parts | {"distillation": added}
    if isinstance(loss, Tensor):
        return base_weight * loss + added
    return (*(base_weight * part for part in loss), added)


def minimised(loss: Any) -> Tensor:
    """The one number that is minimised of a loss of a form that `add_distillation` takes."""
    if isinstance(loss, Tensor):
        return loss.mean() if loss.ndim else loss
    if isinstance(loss, Mapping):
        return minimised(loss["total"]) if "total" in loss else minimised(tuple(loss.values()))
    return sum(map(minimised, loss))  # type: ignore[return-value]


def stands_by_position(labels: Any) -> bool:
    """Whether these are class labels of several positions of each sample, as of a language model, or of pixels."""
    return isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()


class Distiller(Shown):
    """Adds a loss that draws a student's logits to its teachers', in a training loop of one's own:

        distiller = Distiller(teachers)
        ...
        outputs = model(inputs)
        loss = distiller(loss_fn(outputs, targets), outputs, inputs, step)

    Args:
        teachers: one or several networks, which are taken over: frozen, in evaluation mode, on the student's device; or
            Hugging Face folders. `load_teacher` reads checkpoints and safetensors.
        teachers_per_step: how many are drawn at each step; None: all. Of several, logits are averaged.
        base_weight, distillation_weight: of the loss that there is without teachers, and of distillation.
        loss: "kl" with `temperature`, "mse" of the logits, or a function of the student's and the teachers' logits
            `(R, C)`, a row for each sample, or for each position with a label where each position has one.
        temperature: what logits are divided by before the softmax, above 0.
        start, end: when to distill, as time strings: `start <= elapsed < end`. Before and after, the loss is the plain
            one, unweighted. Once an end within the training is reached it is over for good, and the teachers' memory is
            released.
        seed: of the draw, which is a function of it and of the step: the same on all ranks, in all microbatches of a
            step, and after a resume. No global generator moves.
        steps: the number of updates in all, which a start or an end as a share of the training needs.
        teacher_dtype: "bfloat16", "float16" or "float32": of the teachers' weights and arithmetic. By default weights
            stay as they are, and arithmetic follows the autocast that is on where the distiller is called.
        compile: compile the teachers.
        offload: keep teachers on the CPU while they are not asked.
        ignore_index: the label of positions that are not taught, where each position has a label.
        common_classes: where the numbers of outputs differ, as for one tokenizer with another padding, teach the first
            ones, which all have; by default a difference is an error.
        shift_labels: position t predicts the label of t + 1, as in Hugging Face's causal language models.
        make: makes a `Teacher` of a module, and of its dtype, compile and offload; for modules that are not asked with
            the loop's inputs as they are.

    `parts` holds, of the last call, the detached losses "plain", without teachers, and "distillation", what is added:
    with `distillation_weight`. It is empty where nothing was added. `drawn` holds the numbers of this step's teachers.

    Raises ValueError for arguments that cannot work, and at the first call where a teacher has another number of
    classes than the student.
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
        seed: int = 0,
        steps: int | None = None,
        teacher_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        compile: bool = False,
        offload: bool = False,
        ignore_index: int = IGNORED,
        common_classes: bool = False,
        shift_labels: bool = False,
        make: Callable[..., Teacher] = Teacher,
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
        begins, ends = first is not None and first != WHOLE, last is not None and last.value > 0
        require("start", begins, f"{expected}, before the end of the training", start)
        require("end", ends, f"{expected}, after the beginning of the training", end)
        require("steps", steps is None or (type(steps) is int and steps > 0), "None or a whole number above 0", steps)
        known = teacher_dtype in (None, *DTYPES)
        require("teacher_dtype", known, f"None or one of {', '.join(DTYPES)}", teacher_dtype)
        require("ignore_index", type(ignore_index) is int, "a whole number", ignore_index)
        require("common_classes", type(common_classes) is bool, "True or False", common_classes)
        assert first is not None and last is not None
        require("end", first.unit != last.unit or first.value < last.value, f"after start={start}", end)
        self.start, self.end, self.seed, self.steps = first, last, seed, steps
        self.teachers_per_step = teachers_per_step or count
        self.base_weight, self.distillation_weight = base_weight, distillation_weight
        self.loss, self.temperature = loss, temperature
        self.common_classes, self.shift_labels = common_classes, shift_labels
        modules = [one if isinstance(one, nn.Module) else load_teacher(one) for one in given]
        if len(set(map(id, modules))) < len(modules):
            raise ValueError("Distillation: teachers must be different modules, got one of them twice.")
        self.teachers = [make(one, dtype=teacher_dtype, compile=compile, offload=offload) for one in modules]
        self.count = count  # of teachers, also when they have been let go
        self.drawn: list[int] = []
        self.parts: dict[str, Tensor] = {}
        self.began = self.over = False
        self._labelled = Labelled(ignore_index)
        self._classes: int | None = None  # how many are taught, once it is known
        self._checked = False

    def __call__(self, loss: Any, outputs: Any, inputs: Any, step: int | Progress, labels: Tensor | None = None) -> Any:
        """Returns the loss with distillation; outside the window, the loss as it is.

        Args:
            loss: the plain one: a tensor, a tuple or a mapping, as `add_distillation` takes it.
            outputs: the student's: logits `(N, C)`, `(N, ..., C)` or `(N, C, ...)`, or what holds them.
            inputs: what the teachers are given: all that a module takes, or a Hugging Face batch.
            step: the number of updates so far, from 0; or how far the training has come.
            labels: `(N, ...)`, where each position has one, to teach where they stand; of a batch, its "labels". Those
                on a GPU are read back for it, those on the host are not waited for.

        Several microbatches of one step are several calls. Under autocast, call it there.
        """
        self.begin(step)
        if labels is None and isinstance(inputs, Mapping):
            labels = inputs.get("labels")
        index = None
        if self.asks and labels is not None and stands_by_position(labels):
            self._labelled.start(labels, self.shift_labels)
            index = self._labelled.next(labels)
        distilled = self.distilled(outputs, inputs, labels, index)
        self.rest()
        self.parts = {}
        if distilled is None:
            return loss
        added = self.distillation_weight * distilled
        self.parts = {"plain": minimised(loss).detach().clone(), "distillation": added.detach().clone()}
        return with_added(loss, added, self.base_weight)

    def meet(self, student: nn.Module, anew: bool = False) -> None:
        """Gives teachers the memory format of the student; `anew`, where a training begins.

        Raises ValueError where one shares weights with it, and where an earlier training has let the teachers go.
        """
        if anew and not self.teachers:
            text = f"its teachers were let go at end={self.end} of an earlier training"
            raise ValueError(f"Distillation: {text}; make a new one for each training.")
        own = set(map(id, student.parameters()))
        if any(id(parameter) in own for teacher in self.teachers for parameter in teacher.module.parameters()):
            raise ValueError("Distillation: a teacher shares weights with the student; give copy.deepcopy of it.")
        if any(_is_channels_last(parameter) for parameter in student.parameters()):
            for teacher in self.teachers:
                teacher.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def always(self) -> bool:
        """Whether it distills at every step, so that the number of a step tells all; else a host gives a Progress."""
        return self.start.value == 0 and self.end == WHOLE

    def begin(self, step: int | Progress) -> None:
        """Draws the teachers of a step: none outside the window."""
        self.drawn, begun = [], self._reached("start", step)
        if not self.is_over(step) and begun:
            number = step.batch if isinstance(step, Progress) else step
            self.drawn = draw_teachers(self.seed, number, self.count, self.teachers_per_step)
            self.began = True

    def is_over(self, step: int | Progress) -> bool:
        """Whether the end has come, after which there are no teachers."""
        if self.over or self._reached("end", step):
            for teacher in self.teachers:
                teacher.leave()
            self.teachers, self.over = [], True
        return self.over

    @property
    def lets_go(self) -> bool:
        """Whether teachers leave the device within the training: between steps, or at an end of their own."""
        return self.end != WHOLE or any(teacher.offload for teacher in self.teachers)

    @property
    def asks(self) -> bool:
        """Whether this step asks teachers: to distill, or to compare the classes of all of them."""
        return not self.over and bool(self.drawn or not self._checked)

    def distilled(
        self,
        outputs: Any,
        inputs: Any,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor | None:
        """The distillation loss alone, without its weight, of the teachers that `begin` has drawn; None without any.

        `index` (R,) tells which of the flattened positions are taught, in the student's logits too, but where these
        are `(R, C)` already. `precision` makes a context for the teachers' forward passes.
        """
        if not self.asks:
            return None
        logits = logits_of(outputs)
        device, index = logits.device, None if index is None else index.to(logits.device, non_blocking=True)
        student = rows(logits, index, labels, not isinstance(outputs, Tensor))

        def ask(teacher: Teacher) -> Tensor:
            return self._common(teacher(inputs, index, labels, device=device, precision=precision))

        if not self._checked:
            self._check(student, ask)
        if not self.drawn:
            return None
        student, target = self._common(student), self._mean(ask)
        if self.loss == "kl":
            return distillation_kl(student, target, self.temperature)
        loss: Any = distillation_mse if self.loss == "mse" else self.loss
        return loss(student, target).mean()

    def rest(self) -> None:
        """Teachers that stay on the CPU while they are not asked go back there."""
        for teacher in self.teachers:
            if teacher.offload:
                teacher.leave()

    def state_dict(self) -> dict[str, Any]:
        """Returns what tells the draw and the end: the seed, whether it is over, and the number of teachers."""
        return {"seed": self.seed, "over": self.over, "teachers": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where that was a training with another number of teachers."""
        if (count := state.get("teachers", self.count)) != self.count:
            raise ValueError(f"Distillation: the checkpoint's run has {count} teachers, got {self.count}.")
        self.seed, self.over = state.get("seed", self.seed), state.get("over", self.over)
        if not (self.over or self.teachers):
            text = f"its teachers were let go at end={self.end} of an earlier training, and the checkpoint's has them"
            raise ValueError(f"Distillation: {text}; make a new one to go on from it.")

    def _reached(self, name: Literal["start", "end"], step: int | Progress) -> bool:
        when = self.start if name == "start" else self.end
        if when.value == 0:
            return True
        if when == WHOLE:  # no end of its own: who trains on distills on
            return False
        if isinstance(step, Progress):
            return step.reached(when)
        if when.unit not in ("ba", "dur"):
            raise ValueError(
                f"Distillation: {name}={when} cannot be told from the number of a step; give {name} in ba or dur, "
                "or a Progress as step."
            )
        known = when.unit == "ba" or self.steps
        check("Distillation", "steps", known, f"the number of updates in all, for {name}={when}", self.steps)
        return Progress.after(step, self.steps).reached(when)

    def _mean(self, ask: Callable[[Teacher], Tensor]) -> Tensor:
        drawn = [self.teachers[i] for i in self.drawn]
        if len(drawn) == 1:
            return ask(drawn[0])
        total: Any = 0
        for teacher in drawn:
            total = total + ask(teacher).float()
            if teacher.offload:
                teacher.leave()
        return total / len(drawn)

    def _common(self, logits: Tensor) -> Tensor:
        """The classes that are taught. A slice of all of them would cost a copy in the backward pass."""
        return logits if self._classes in (None, logits.shape[-1]) else logits[:, : self._classes]

    def _check(self, student: Tensor, ask: Callable[[Teacher], Tensor]) -> None:
        """Every teacher, as some may be drawn only after days."""
        shapes = [student.shape]
        for i, teacher in enumerate(self.teachers):
            shape = ask(teacher).shape
            fits = shape == student.shape or (self.common_classes and shape[:-1] == student.shape[:-1])
            if not fits:
                remedy = (
                    " (common_classes=True teaches those that all have)" if shape[:-1] == student.shape[:-1] else ""
                )
                raise ValueError(
                    f"Distillation: teacher {i} ({type(teacher.module).__name__}) gives logits of {tuple(shape)}, "
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


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
