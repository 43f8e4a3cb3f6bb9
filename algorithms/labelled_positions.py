"""LabelledPositions: a masked language model's vocabulary projection only where a label stands.

Training on masked tokens needs the logits of the 15 % of the positions that have a label; Hugging Face's models compute
them, a row as long as the vocabulary, for every token. Here the hidden states of the other positions are left out
before the head, as fairseq does for RoBERTa (Liu et al. 2019, arXiv 1907.11692). Loss, gradients and metrics stay.
"""

import copy
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor, nn

from .bases import EventAlgorithm
from .host import composer_model
from .targets import IGNORED

LIBRARIES = ("torch", "transformers", "composer", "peft")
# Where a model's head begins: the first module that takes hidden states (N, T, H) on their way to the vocabulary.
HEADS = {
    "BertForMaskedLM": "cls",
    "RobertaForMaskedLM": "lm_head",
    "XLMRobertaForMaskedLM": "lm_head",
    "DistilBertForMaskedLM": "vocab_transform",
    "ModernBertForMaskedLM": "head",
}


class HeadPositions:
    """Makes a masked LM's head see, of its hidden states, only the rows `index`; all of them while that is None.

    Args:
        model: a Hugging Face masked LM of `HEADS`. It gets a hook, and keeps its weights and their names.

    Raises TypeError for another model, or one that computes in its own way; ValueError for settings in the way.
    """

    def __init__(self, model: nn.Module):
        name, problem = _known(model)
        if name is None or problem:
            raise TypeError(problem)
        config: Any = model.config
        if name == "ModernBertForMaskedLM":
            if config._attn_implementation == "flash_attention_2":
                raise ValueError(
                    "ModernBERT with flash_attention_2 removes padding before its head, so positions are not those of "
                    "the labels; load it with attn_implementation='sdpa'."
                )
            # Its own way of leaving out positions wants all labels; its own compilation does not see the hook's state.
            model.sparse_prediction = False  # type: ignore[assignment]
            model.compiled_head = _PlainHead(model)  # type: ignore[assignment]
        self.index: Tensor | None = None
        model.get_submodule(HEADS[name]).register_forward_pre_hook(self._select)

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.index is None:
            return None
        return (inputs[0].flatten(0, -2)[self.index], *inputs[1:])


class _PlainHead:
    """An object, unlike a function, follows the model when that is copied or saved."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.model.decoder(self.model.head(hidden))


def has_masked_lm_head(model: nn.Module) -> bool:
    """Whether `HeadPositions` knows the model."""
    return not _known(model)[1]


def _known(model: nn.Module) -> tuple[str | None, str]:
    """Which of `HEADS` the model is, and why that does not tell what it computes ("" where it does)."""
    transformers: Any = sys.modules.get("transformers")  # without which there is no such model
    kinds = {name: getattr(transformers, name) for name in HEADS} if transformers else {}
    name = next((name for name, kind in kinds.items() if isinstance(model, kind)), None)
    own = type(model).__name__
    if name is None:
        return None, f"{own} is not one of the masked language models {', '.join(HEADS)}."
    replaced = [each for each in ("forward", "compiled_head") if _is_replaced(model, kinds[name], each)]
    if replaced:
        what = f"has {' and '.join(replaced)} of its own in place of that of {name}"
    elif name == "ModernBertForMaskedLM" and not _is_plain(model):
        what = "has a loss_function of its own"
    elif strange := [path for path, module in _head_of(model) if not _is_known_layer(module)]:
        what = f"has a head of its own ({strange[0]})"
    else:
        return name, ""
    return name, f"{own} {what}, of which cannot be told whether it takes each position by itself."


def _is_replaced(model: nn.Module, kind: type, name: str) -> bool:
    given = vars(model).get(name)
    return getattr(type(model), name, None) is not getattr(kind, name, None) or not (
        given is None or isinstance(given, _PlainHead)
    )


def _is_plain(model: Any) -> bool:
    from transformers.loss.loss_utils import ForMaskedLMLoss

    return model.loss_function is ForMaskedLMLoss


def _head_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of the head, which are those outside the model that it stands upon."""
    base: Any = model.base_model_prefix
    for path, module in model.named_modules():
        if path and path.split(".")[0] != base:
            yield path, module


def _is_known_layer(module: nn.Module) -> bool:
    """Whether `forward` comes from a library, none of whose layers in a head mixes positions."""
    forward = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return "forward" not in vars(module) and forward.__module__.split(".")[0] in LIBRARIES


class Labelled:
    """Where a batch's labels but `ignore_index` stand, microbatch after microbatch, without waiting for the device.

    Splitting into microbatches must keep the order of the examples, as Composer's does.
    """

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self.ignore_index = ignore_index
        self._mask, self._done = np.empty(0, dtype=bool), 0

    def start(self, labels: Tensor, shifted: bool = False) -> None:
        """A new batch with `labels` (N, ...); `shifted`: position t predicts the label of t + 1.

        Labels that are on the device already are read back, once; Composer's own batches come from the host.
        """
        mask = (labels.long() != self.ignore_index).cpu().numpy()
        if shifted:
            mask = np.concatenate([mask[:, 1:], np.zeros_like(mask[:, :1])], axis=1)
        self._mask, self._done = mask, 0

    def restart(self) -> None:
        """Another pass over the same microbatches, as an optimizer with a closure makes."""
        self._done = 0

    def next(self, labels: Tensor) -> Tensor:
        """Indices (R,) of the labelled among the flattened positions of the next microbatch, on its device."""
        mask = self._mask[self._done : self._done + len(labels)]
        if mask.shape != labels.shape:
            raise ValueError(
                f"A microbatch's labels of {tuple(labels.shape)} are not the next {mask.shape} of the batch."
            )
        self._done += len(labels)
        return torch.from_numpy(np.flatnonzero(mask)).to(labels.device, non_blocking=True)


class LabelledPositions(EventAlgorithm):
    """Project to the vocabulary where a label stands, in training; evaluation is untouched.

    For `composer.models.HuggingFaceModel` around BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ModernBERT for masked LM. In
    training the model's logits are then (labelled positions, vocabulary), and training metrics get the labels that
    belong to them. Raises TypeError for other models, and for subclasses and heads that compute in their own way.
    """

    steps: ClassVar = {
        Event.INIT: "_start",
        Event.BATCH_START: "_find",
        Event.BEFORE_TRAIN_BATCH: "_restart",
        Event.BEFORE_FORWARD: "_select",
        Event.AFTER_FORWARD: "_stop",
        Event.AFTER_LOSS: "_restore",
    }

    def __init__(self) -> None:
        self._labelled = Labelled()
        self._batch: Any = None

    def _start(self, state: State, logger: Logger) -> None:
        model = composer_model(state)
        if not isinstance(model, HuggingFaceModel):
            raise TypeError(f"LabelledPositions needs composer.models.HuggingFaceModel, got {type(model).__name__}.")
        own = [each for each in ("forward", "loss") if _is_replaced(model, HuggingFaceModel, each)]
        if own:
            raise TypeError(
                f"LabelledPositions needs the {' and the '.join(own)} of composer.models.HuggingFaceModel, and "
                f"{type(model).__name__} has its own, which may want the logits of all positions."
            )
        self._head = HeadPositions(model.model)
        model.eval_forward = _EvalForward(model)  # type: ignore[method-assign]

    def _find(self, state: State, logger: Logger) -> None:
        self._labelled.start(state.batch["labels"])

    def _restart(self, state: State, logger: Logger) -> None:
        self._labelled.restart()
        self._head.index = None

    def _select(self, state: State, logger: Logger) -> None:
        self._batch, labels = state.batch, state.batch["labels"]
        index = self._labelled.next(labels)
        if len(index) == 0:  # of nothing, Composer's metrics can make nothing
            return
        self._head.index, state.batch = index, copy.copy(state.batch)
        state.batch["labels"] = labels.flatten()[index]

    def _stop(self, state: State, logger: Logger) -> None:
        if self._head.index is None:
            return
        self._head.index = None
        # For the training metrics, to which Composer gives the original batch.
        outputs: Any = state.outputs
        if not hasattr(outputs, "keys"):
            raise TypeError("LabelledPositions needs a model whose config has return_dict=True.")
        outputs["labels"] = state.batch["labels"]

    def _restore(self, state: State, logger: Logger) -> None:
        state.batch = self._batch


class _EvalForward:
    """Gives training metrics the labels that belong to the outputs; copied and saved with the model."""

    def __init__(self, model: HuggingFaceModel):
        self.model = model

    def __call__(self, batch: Any, outputs: Any = None) -> Any:
        result = type(self.model).eval_forward(self.model, batch, outputs)
        if outputs is not None and "labels" in outputs:
            self.model.labels = outputs["labels"]
        return result
