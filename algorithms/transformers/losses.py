"""How a technique comes to the loss of a model in Hugging Face's Trainer.

`compute_loss_func` would take the labels from the model, and with them what the model's own loss has besides: a mixture
of experts' term, weights. So a hook changes the loss in the model's outputs. A Trainer that has a `compute_loss_func`
of the user's is given `technique.wrap(compute_loss_func)`.
"""

import inspect
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from ..targets import IGNORED
from .host import Run, Technique, install, trains

LossFunction = Callable[..., Tensor]


class OfLoss(Technique):
    """The base of what changes the loss of a training; evaluations have the plain one.

    Subclasses say how, in `changed`, and whether they come `first` where several do.
    """

    first = False

    def __init__(self, ignore_index: int = IGNORED):
        self.ignore_index = ignore_index
        self._inputs: dict[str, Any] = {}
        self._changed = self._used = self._at_work = False

    def changed(self, loss: Callable[[Any, Tensor | None], Tensor], outputs: Any, labels: Tensor | None) -> Tensor:
        """Returns the loss of a microbatch as it is to be, where `loss(outputs, labels)` is that of others.

        `outputs` are a mapping with "logits", and with "loss" where this is the model's own.
        """
        raise NotImplementedError

    def wrap(self, compute_loss_func: LossFunction) -> LossFunction:
        """Returns what the Trainer takes as `compute_loss_func` in the place of this one."""

        def compute(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
            def loss(outputs: Any, labels: Tensor | None) -> Tensor:
                return compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)

            if not torch.is_grad_enabled():
                return loss(outputs, labels)
            if not self._at_work:
                hint = "give the callback too, callbacks=[...], beside compute_loss_func=....wrap(...)"
                raise ValueError(f"{self.name}: the Trainer was given its loss function, and not itself; {hint}.")
            part = 1 if labels is None else self._part(labels, num_items_in_batch)
            return self._watched(part * self.changed(lambda *given: loss(*given) / part, outputs, labels))

        return compute

    def begin(self, run: Run) -> None:
        model: nn.Module = run.model

        def before(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
            if module is model and trains(module):  # and not a copy, of which a gradient is wanted
                self._inputs = inputs

        def after(module: nn.Module, args: Any, inputs: Any, outputs: Any) -> None:
            if (
                module is model
                and trains(module)
                and isinstance(outputs, MutableMapping)
                and outputs.get("loss") is not None
            ):
                outputs["loss"] = self._watched(self._own(outputs, inputs.get("labels")))

        hooks: list[Any] = [before, after]
        if run.args.torch_compile:
            hooks = [torch.compiler.disable(hook) for hook in hooks]
        handles = [
            model.register_forward_pre_hook(hooks[0], prepend=True, with_kwargs=True),
            model.register_forward_hook(hooks[1], prepend=self.first, with_kwargs=True),
        ]
        install(model, self.name, handles)
        self._changed, self._used, self._at_work = False, False, True

    def _watched(self, loss: Tensor) -> Tensor:
        """Notes that there is a changed loss and, once, that a gradient comes back to it.

        A `compute_loss` of the user's may make a loss of its own, and leave this one.
        """

        def use(gradient: Tensor) -> None:
            self._used = True

        self._changed = True
        if not self._used and loss.requires_grad:
            loss.register_hook(use)
        return loss

    def _own(self, outputs: Any, labels: Tensor | None) -> Tensor:
        """The model's own loss, changed. It may be the sum over its labels through the number of a whole update's."""
        assert self.run
        items = self._inputs.get("num_items_in_batch")
        counts = labels is not None and takes_items(self.run.model)
        part = self._part(labels, items) if counts and labels is not None else 1
        means = {name: value / part if _is_number(value) else value for name, value in outputs.items()}
        return part * self.changed(lambda outputs, labels: outputs["loss"], means, labels)

    def _part(self, labels: Tensor, items: Any) -> Any:
        """Which part of the labels of an update a microbatch holds."""
        assert self.run
        if items is None:
            return 1
        shifted = labels[..., 1:] if shifts_labels(self.run.model) else labels
        return (shifted != self.ignore_index).sum().clamp(min=1) / items

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_init_end(args, state, control, **parts)
        refuse_other_losses(self.name, args)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        if not self._changed:
            hint = "with a compute_loss_func, give the Trainer callback.wrap(compute_loss_func), else labels are needed"
            raise ValueError(f"{self.name}: the model gives no 'loss' among its outputs; {hint}, and return_dict=True.")
        if not self._used:
            hint = "return outputs['loss'], or make its loss a compute_loss_func and give the Trainer callback.wrap(it)"
            raise ValueError(f"{self.name}: compute_loss leaves the 'loss' of the model's outputs unused; {hint}.")
        self._inputs, self._changed = {}, False

    on_pre_optimizer_step = on_substep_end

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        assert self.run
        install(self.run.model, self.name)
        self._at_work = False


def refuse_other_losses(owner: str, args: TrainingArguments) -> None:
    """Raises ValueError for what keeps the labels from the model, and for processes with several replicas of it."""
    if args.label_smoothing_factor:
        hint = "replaces the model's own loss; leave it at 0, and give the callback LabelSmoothing"
        raise ValueError(f"{owner}: label_smoothing_factor={args.label_smoothing_factor} {hint}.")
    if args.n_gpu > 1:
        raise ValueError(f"{owner} does not work with several GPUs in one process; start one for each (torchrun).")


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shifts_labels(model: Any) -> bool:
    """Whether position t predicts the label of t + 1, as in causal language models."""
    inner = _inner(model)
    named = LOSS_MAPPING.get(str(getattr(inner, "loss_type", None)))
    if takes_items(model):  # its loss is its loss_function's: the causal one where its name tells none, as of GPT-2
        found = inner.loss_function
        return (found if found in LOSS_MAPPING.values() else named or ForCausalLMLoss) is ForCausalLMLoss
    return named is ForCausalLMLoss and not getattr(inner.config, "is_encoder_decoder", False)


def takes_items(model: Any) -> bool:
    """Whether the model divides its own loss by `num_items_in_batch`, which some accept and do not look at."""
    code = inspect.unwrap(type(_inner(model)).forward).__code__
    return isinstance(_inner(model), PreTrainedModel) and "loss_function" in code.co_names
