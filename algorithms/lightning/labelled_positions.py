"""LabelledPositions in a training by Lightning's Trainer."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..labelled_positions import HeadPositions
from ..teachers import is_hugging_face
from .host import when_built
from .steps import Place, StepTechnique


class LabelledPositions(StepTechnique):
    """Project to the vocabulary where a label stands, in training; evaluation is untouched.

    For a LightningModule that holds one Hugging Face model: BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ModernBERT for
    masked LM, and trains it on batches that are mappings with "labels". The training step is given the labels (R,) that
    there are, and the model's logits are (R, vocabulary), in its first forward pass. Raises TypeError for other models.
    """

    place = Place.SELECTS

    def __init__(self) -> None:
        super().__init__()
        self._model: nn.Module | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        when_built(pl_module, lambda: self._find(pl_module))

    def change(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        return self._head.select(batch)

    def _find(self, pl_module: LightningModule) -> None:
        found = [*_hugging_face_models(pl_module)]
        if len(found) != 1:
            raise TypeError(
                f"LabelledPositions needs a LightningModule that holds one Hugging Face model for masked LM, and "
                f"{type(pl_module).__name__} holds {len(found) or 'none'}."
            )
        if found[0] is not self._model:
            self._model, self._head = found[0], HeadPositions(found[0])


def _hugging_face_models(module: nn.Module) -> Iterator[nn.Module]:
    """Those that are within no other."""
    for child in module.children():
        if is_hugging_face(child):
            yield child
        else:
            yield from _hugging_face_models(child)
