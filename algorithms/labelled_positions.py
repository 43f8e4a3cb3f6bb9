"""LabelledPositions: a masked language model's vocabulary projection only where a label stands.

Training on masked tokens needs the logits of the 15 % of the positions that have a label; Hugging Face's models compute
them, a row as long as the vocabulary, for every token. Here the hidden states of the other positions are left out
before the head, as fairseq does for RoBERTa (Liu et al. 2019, arXiv 1907.11692). Loss, gradients and metrics stay.
"""

import copy
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .shown import Shown
from .targets import IGNORED

Batch = TypeVar("Batch", bound=MutableMapping[str, Any])
LIBRARIES = ("torch", "transformers", "composer", "peft")
# Where a model's head begins: the first module that takes hidden states (N, T, H) on their way to the vocabulary.
HEADS = {
    "BertForMaskedLM": "cls",
    "RobertaForMaskedLM": "lm_head",
    "XLMRobertaForMaskedLM": "lm_head",
    "DistilBertForMaskedLM": "vocab_transform",
    "ModernBertForMaskedLM": "head",
}


class HeadPositions(Shown):
    """Makes a masked LM's head see, of its hidden states, those rows alone where a label stands.

        positions = HeadPositions(model)
        ...
        batch = positions.select(batch)
        loss = model(**batch).loss

    Args:
        model: a Hugging Face masked LM of `HEADS`. It gets a hook, and keeps its weights and their names.
        ignore_index: the label of positions that have none.

    `index` (R,), among the flattened positions, holds for one forward pass: the head takes it back, unless it is
    `lasting`, for a host in which others pass through the model too. While it is None, as in evaluation, the head sees
    all of them.

    Raises TypeError for another model, or one that computes in its own way; ValueError for settings in the way.
    """

    def __init__(self, model: nn.Module, ignore_index: int = IGNORED):
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
        self.lasting = False
        self._labelled = Labelled(ignore_index)
        model.get_submodule(HEADS[name]).register_forward_pre_hook(self._select)

    def select(self, batch: Batch, index: Tensor | None = None) -> Batch:
        """Returns a copy of the batch with the labels (R,) that there are; the next forward pass gives logits for them.

        A batch without any label comes back as it is, and its forward pass is the plain one. `index` tells where labels
        stand to whom knows it. Labels that are on a GPU already are read back for it, so give the batch as the data
        loader does, before it moves there.
        """
        labels = batch["labels"]
        if index is None:
            self._labelled.start(labels)
            index = self._labelled.next(labels)
        self.index = index if len(index) else None
        if self.index is None:
            return batch
        selected = copy.copy(batch)
        selected["labels"] = labels.flatten()[index]
        return selected

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        index = self.index
        if not self.lasting:
            self.index = None
        if index is None:
            return None
        hidden = inputs[0]
        return (hidden.flatten(0, -2)[index.to(hidden.device, non_blocking=True)], *inputs[1:])


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
    replaced = [each for each in ("forward", "compiled_head") if is_replaced(model, kinds[name], each)]
    if replaced:
        what = f"has {' and '.join(replaced)} of its own in place of that of {name}"
    elif name == "ModernBertForMaskedLM" and not _is_plain(model):
        what = "has a loss_function of its own"
    elif strange := [path for path, module in _head_of(model) if not _is_known_layer(module)]:
        what = f"has a head of its own ({strange[0]})"
    else:
        return name, ""
    return name, f"{own} {what}, of which cannot be told whether it takes each position by itself."


def is_replaced(model: nn.Module, kind: type, name: str) -> bool:
    """Whether an attribute of a model is another than its class `kind` has."""
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


class Labelled(Shown):
    """Where a batch's labels but `ignore_index` stand, microbatch after microbatch, without waiting for the device.

        labelled.start(labels)  # on the host
        index = labelled.next(labels_of_a_microbatch)  # wherever they are

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

    @property
    def begun(self) -> bool:
        """Whether a microbatch of this batch has been asked for."""
        return self._done > 0

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
