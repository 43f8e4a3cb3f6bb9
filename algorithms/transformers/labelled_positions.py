"""LabelledPositions in Hugging Face's Trainer."""

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..labelled_positions import HeadPositions
from .host import Run, Technique, install, trains
from .losses import refuse_other_losses


class LabelledPositions(Technique):
    """Projects to the vocabulary where a label stands, in training; evaluation is untouched.

        Trainer(model, args, callbacks=[LabelledPositions()], ...)

    For BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ModernBERT for masked LM, whose loss, gradients and weights stay what
    they are. On a GPU each microbatch's labels are read back, as the Trainer reads each loss. Raises TypeError for
    other models, ValueError where labels do not come to the model, as with a `compute_loss_func`.
    """

    def begin(self, run: Run) -> None:
        model: nn.Module = run.model
        positions = _positions(model)

        def select(module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, Any] | None:
            if module is not model or not trains(module):
                return None
            if inputs.get("labels") is None:
                hint = "they do not with a compute_loss_func; the model's own loss is needed"
                raise ValueError(f"LabelledPositions needs 'labels' that come to the model; {hint}.")
            return args, positions.select(inputs)

        hook: Any = torch.compiler.disable(select) if run.args.torch_compile else select
        install(model, self.name, [model.register_forward_pre_hook(hook, with_kwargs=True)])

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_init_end(args, state, control, **parts)
        refuse_other_losses(self.name, args)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        assert self.run
        install(self.run.model, self.name)


def _positions(model: nn.Module) -> HeadPositions:
    """Accelerate has put a `forward` with autocast in the place of the model's: this one is known."""
    held = vars(model)
    original = held.get("_original_forward")
    if not (isinstance(original, MethodType) and original.__func__ is type(model).forward and "forward" in held):
        return HeadPositions(model)
    forward = held.pop("forward")
    try:
        return HeadPositions(model)
    finally:
        held["forward"] = forward
