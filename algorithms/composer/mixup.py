"""MixUp in a run of Composer's Trainer."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from composer.core import Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils.batch_helpers import batch_set

from ..batches import labels_key, target_in
from ..label_smoothing import REMEDY
from ..mixup import Mixer, check_inputs
from ..targets import IGNORED
from .asked_loss import loss_of
from .bases import RandomAlgorithm
from .batches import whole_input
from .host import NoEffectWarning, composer_model
from .label_smoothing import LabelSmoothing


class _Mixer(Mixer):
    remedy = "Compute it in the `loss` method of a ComposerModel, and use interpolate_loss=True."
    no_effect = NoEffectWarning


class MixUp(RandomAlgorithm):
    """Train on mixed examples with mixed targets.

    Args:
        alpha, interpolate_loss, ignore_index: see `Mixer`, which also says what is exchanged in which loss.
        input_key, target_key: where the batch holds inputs and targets: a key, an index, or a pair of functions (get,
            set); for a batch that is a mapping the default target_key means "labels".

    Splitting into microbatches must keep the order of the examples, as Composer's does.
    """

    steps: ClassVar = {
        Event.INIT: "_start",
        Event.FIT_START: "_forget",
        Event.BATCH_START: "_mix",
        Event.BEFORE_TRAIN_BATCH: "_restart",
        Event.AFTER_FORWARD: "_mix_target",
        Event.AFTER_LOSS: "_mix_loss",  # before Distillation adds to it
        Event.BEFORE_BACKWARD: "_restore_target",
    }

    def __init__(
        self,
        alpha: float = 0.2,
        interpolate_loss: bool = False,
        input_key: str | int | tuple[Callable, Callable] | Any = 0,
        target_key: str | int | tuple[Callable, Callable] | Any = 1,
        ignore_index: int = IGNORED,
    ):
        self.alpha = alpha
        self.interpolate_loss = interpolate_loss
        self.input_key, self.target_key, self.ignore_index = input_key, target_key, ignore_index
        # Of the microbatch at hand: what is mixed in, and what is put back after the loss.
        self._other_target = self._original_target = torch.empty(0)
        self._by_loss = False  # whether the loss is mixed once it is there
        self._forget()

    @property
    def mixing(self) -> float:
        """The weight of the other examples in this batch."""
        return self._mixer.mixing

    def match(self, event: Event, state: State) -> bool:
        # Of what Composer itself takes for an event, no more than is needed: of a small network's step it is a share.
        if not super().match(event, state) or (self.alpha == 0 and event is not Event.INIT):
            return False
        if self.step_at(event) is MixUp._restart:
            return self._mixer.begun
        if event is Event.AFTER_LOSS:
            return self._by_loss
        return event is not Event.BEFORE_BACKWARD or not self._by_loss

    def _start(self, state: State, logger: Logger) -> None:
        if self.interpolate_loss and any(isinstance(other, LabelSmoothing) for other in state.algorithms):
            raise ValueError(
                "MixUp(interpolate_loss=True) adds the loss of targets that LabelSmoothing has not smoothed. Use "
                "interpolate_loss=False beside LabelSmoothing; for cross entropy it is the same."
            )

    def _forget(self, state: State | None = None, logger: Logger | None = None) -> None:
        self._mixer = _Mixer(self.alpha, self._seed, self.interpolate_loss, self.ignore_index)

    def _mix(self, state: State, logger: Logger) -> None:
        input = whole_input("MixUp", state, self.input_key)
        check_inputs(input, "input_key gives")
        target = target_in("MixUp", state.batch, self.target_key)
        state.batch_set_item(self.input_key, self._mixer(input, target, state.timestamp.batch.value))

    def _restart(self, state: State, logger: Logger) -> None:
        # An optimizer with a closure (SAM) and a retry after running out of memory pass over the microbatches again.
        self._mixer.restart()

    def _mix_target(self, state: State, logger: Logger) -> None:
        target = self._original_target = target_in("MixUp", state.batch, self.target_key)
        outputs: Any = state.outputs
        loss = loss_of(state, self.target_key)
        own = self._mixer.asked.uses_own(loss, outputs, target)
        if own:
            outputs["loss"], mixed = self._mixer.own_loss_and_targets(composer_model(state), outputs, target)
        else:
            self._other_target = self._mixer.next(target)
            mixed = self._mixer.targets(loss, outputs, target, self._other_target)
        self._by_loss = mixed is None and not own
        if mixed is not None:
            state.batch_set_item(labels_key(state.batch, self.target_key), mixed)
        elif any(isinstance(each, LabelSmoothing) for each in state.algorithms):
            raise ValueError(
                f"MixUp beside LabelSmoothing: the loss does not take rows of probabilities in the place of the "
                f"{target.dtype} targets of {tuple(target.shape)}. {REMEDY}"
            )

    def _mix_loss(self, state: State, logger: Logger) -> None:
        key = labels_key(state.batch, self.target_key)
        with get_precision_context(state.precision, state.precision_config):
            batch = batch_set(copy.copy(state.batch), key, self._other_target)
            other: Any = composer_model(state).loss(state.outputs, batch)
        state.loss = self._mixer.mix_losses(state.loss, other)

    def _restore_target(self, state: State, logger: Logger) -> None:
        state.batch_set_item(labels_key(state.batch, self.target_key), self._original_target)
