"""LabelSmoothing in a run of Composer's Trainer."""

from collections.abc import Callable
from typing import Any, ClassVar

from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor

from ..batches import labels_key, target_in
from ..label_smoothing import Smoother
from ..targets import IGNORED
from .asked_loss import loss_of
from .bases import EventAlgorithm
from .host import NoEffectWarning, composer_model


class _Smoother(Smoother):
    no_effect = NoEffectWarning


class LabelSmoothing(EventAlgorithm):
    """Smooth the targets that the loss sees; metrics and other algorithms see the original ones.

    Args:
        smoothing, ignore_index: see `Smoother`, which also says what is smoothed in which loss.
        target_key: where the batch holds the target: a key, an index, or a pair of functions (get, set). For a batch
            that is a mapping the default means "labels".

    With a loss of Composer's own, such as `ComposerClassifier`'s default, dense targets make *the loss* read from the
    device twice; `torch.nn.functional.cross_entropy` as `loss_fn` takes them without.
    """

    steps: ClassVar = {
        Event.FIT_START: "_forget",
        Event.BEFORE_FORWARD: "_remember",
        Event.BEFORE_LOSS: "_smooth",
        Event.AFTER_LOSS: "_finish",
    }

    def __init__(
        self,
        smoothing: float = 0.1,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        ignore_index: int = IGNORED,
    ):
        self.smoothing = smoothing
        self.target_key, self.ignore_index = target_key, ignore_index
        self._given: Tensor | None = None  # the batch's target, before anybody mixed it
        self._original: Tensor | None = None  # what is put back after the loss
        self._pending = False  # whether the loss is smoothed once it is there
        self._forget()

    def match(self, event: Event, state: State) -> bool:
        return super().match(event, state) and (self.smoothing > 0 or event is Event.INIT)

    def _forget(self, state: State | None = None, logger: Logger | None = None) -> None:
        self._smoother = _Smoother(self.smoothing, self.ignore_index)

    def _remember(self, state: State, logger: Logger) -> None:
        self._given = target_in("LabelSmoothing", state.batch, self.target_key)

    def _smooth(self, state: State, logger: Logger) -> None:
        outputs: Any = state.outputs
        target, loss = target_in("LabelSmoothing", state.batch, self.target_key), loss_of(state, self.target_key)
        self._original, self._pending = None, False
        if self._smoother.asked.uses_own(loss, outputs, target):
            outputs["loss"] = self._smoother.own_loss(composer_model(state), outputs, target)
        elif (smoothed := self._smoother.targets(loss, outputs, target, self._given)) is not None:
            self._original = target
            state.batch_set_item(labels_key(state.batch, self.target_key), smoothed)
        else:
            self._pending = True

    def _finish(self, state: State, logger: Logger) -> None:
        if self._original is not None:
            state.batch_set_item(labels_key(state.batch, self.target_key), self._original)
            self._original = None
        elif self._pending:
            target = target_in("LabelSmoothing", state.batch, self.target_key)
            state.loss = self._smoother.smoothed(state.loss, state.outputs, target, composer_model(state))
