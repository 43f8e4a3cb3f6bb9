"""LabelledPositions: a masked language model's vocabulary projection only where a label stands.

Training on masked tokens needs the logits of the 15 % of the positions that have a label; Hugging Face's models compute
them, a row as long as the vocabulary, for every token. Here the hidden states of the other positions are left out
before the head, as fairseq does for RoBERTa (Liu et al. 2019, arXiv 1907.11692). Loss, gradients and metrics stay.
"""

import copy
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor, nn

from .host import composer_model, refuse_twins
from .targets import IGNORED

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

    Raises TypeError for another model, ValueError for one whose settings are in the way.
    """

    def __init__(self, model: nn.Module):
        name = _known(model)
        if name is None:
            raise TypeError(f"{type(model).__name__} is not one of the masked language models {', '.join(HEADS)}.")
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
    return _known(model) is not None


def _known(model: nn.Module) -> str | None:
    return next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in HEADS), None)


class Labelled:
    """Where the labels of a batch stand, microbatch after microbatch, without waiting for the device in between.

    Splitting into microbatches must keep the order of the examples, as Composer's does.
    """

    def __init__(self) -> None:
        self._mask, self._done = np.empty(0, dtype=bool), 0

    def start(self, labels: Tensor, shifted: bool = False) -> None:
        """A new batch with `labels` (N, T), of which -100 is none; `shifted`: position t predicts the label of t + 1.

        Labels that are on the device already are read back, once; Composer's own batches come from the host.
        """
        mask = (labels != IGNORED).cpu().numpy()
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


class LabelledPositions(Algorithm):
    """Project to the vocabulary where a label stands, in training; evaluation is untouched.

    For `composer.models.HuggingFaceModel` around BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ModernBERT for masked LM. In
    training the model's logits are then (labelled positions, vocabulary), and training metrics get the labels that
    belong to them. Raises TypeError for other models.
    """

    def __init__(self) -> None:
        self._labelled = Labelled()
        self._batch: Any = None

    def __repr__(self) -> str:
        return "LabelledPositions()"

    def match(self, event: Event, state: State) -> bool:
        return event in _STEPS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        _STEPS[event](self, state)

    def _start(self, state: State) -> None:
        refuse_twins(self, state)
        model = composer_model(state)
        if not isinstance(model, HuggingFaceModel):
            raise TypeError(f"LabelledPositions needs composer.models.HuggingFaceModel, got {type(model).__name__}.")
        self._head = HeadPositions(model.model)
        model.eval_forward = _EvalForward(model)  # type: ignore[method-assign]

    def _find(self, state: State) -> None:
        self._labelled.start(state.batch["labels"])

    def _restart(self, state: State) -> None:
        self._labelled.restart()
        self._head.index = None

    def _select(self, state: State) -> None:
        self._batch, labels = state.batch, state.batch["labels"]
        index = self._labelled.next(labels)
        if len(index) == 0:  # of nothing, Composer's metrics can make nothing
            return
        self._head.index, state.batch = index, copy.copy(state.batch)
        state.batch["labels"] = labels.flatten()[index]

    def _stop(self, state: State) -> None:
        if self._head.index is None:
            return
        self._head.index = None
        # For the training metrics, to which Composer gives the original batch.
        outputs: Any = state.outputs
        if not hasattr(outputs, "keys"):
            raise TypeError("LabelledPositions needs a model whose config has return_dict=True.")
        outputs["labels"] = state.batch["labels"]

    def _restore(self, state: State) -> None:
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


_STEPS = {
    Event.INIT: LabelledPositions._start,
    Event.BATCH_START: LabelledPositions._find,
    Event.BEFORE_TRAIN_BATCH: LabelledPositions._restart,
    Event.BEFORE_FORWARD: LabelledPositions._select,
    Event.AFTER_FORWARD: LabelledPositions._stop,
    Event.AFTER_LOSS: LabelledPositions._restore,
}
