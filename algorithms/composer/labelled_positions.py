"""LabelledPositions in a run of Composer's Trainer."""

from typing import Any, ClassVar

from composer.core import Event, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel

from ..labelled_positions import HeadPositions, Labelled, is_replaced
from .bases import EventAlgorithm
from .host import composer_model


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
        own = [each for each in ("forward", "loss") if is_replaced(model, HuggingFaceModel, each)]
        if own:
            raise TypeError(
                f"LabelledPositions needs the {' and the '.join(own)} of composer.models.HuggingFaceModel, and "
                f"{type(model).__name__} has its own, which may want the logits of all positions."
            )
        self._head = HeadPositions(model.model)
        self._head.lasting = True  # pruning traces the model between BEFORE_FORWARD and the forward pass
        model.eval_forward = _EvalForward(model)  # type: ignore[method-assign]

    def _find(self, state: State, logger: Logger) -> None:
        self._labelled.start(state.batch["labels"])

    def _restart(self, state: State, logger: Logger) -> None:
        self._labelled.restart()
        self._head.index = None

    def _select(self, state: State, logger: Logger) -> None:
        self._batch = state.batch
        state.batch = self._head.select(state.batch, self._labelled.next(state.batch["labels"]))

    def _stop(self, state: State, logger: Logger) -> None:
        self._head.index = None
        if state.batch is self._batch:  # which has no label, and of nothing Composer's metrics can make nothing
            return
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
