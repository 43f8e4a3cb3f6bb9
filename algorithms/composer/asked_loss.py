"""A ComposerModel's loss as a function of outputs and target, of which it can be asked what it makes of others."""

import copy
from collections.abc import Mapping
from typing import Any

from composer.core import State, get_precision_context
from composer.models import ComposerClassifier
from composer.utils import ensure_tuple
from composer.utils.batch_helpers import batch_set
from torch import Tensor
from torch.utils._pytree import tree_map

from ..asked_loss import KeyedLoss
from ..batches import labels_key
from .host import composer_model


def loss_of(state: State, target_key: Any) -> KeyedLoss:
    """The loss as one number, as the Trainer would minimise it, of the batch at hand with another target in it."""
    model, given = composer_model(state), state.batch

    def loss(outputs: Any, target: Tensor) -> Tensor:
        batch = given
        if target.device.type == "cpu" and state.device.name != "cpu":
            batch = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, batch)
        batch = batch_set(copy.copy(batch), labels_key(batch, target_key), target)
        with get_precision_context(state.precision, state.precision_config):
            value: Any = model.loss(outputs, batch)
        if isinstance(value, Mapping):
            value = value["total"] if "total" in value else tuple(value.values())
        parts = [part.float() for part in ensure_tuple(value)]
        return sum(part.mean() if part.ndim else part for part in parts)  # type: ignore[return-value]

    names = tuple(given) if isinstance(given, Mapping) else ()
    loss_fn = getattr(model, "_loss_fn", None)
    plain = loss_fn if getattr(model.loss, "__func__", None) is ComposerClassifier.loss else None
    return KeyedLoss(loss, (model.loss, loss_fn, type(given), names), plain)
