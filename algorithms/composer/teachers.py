"""Teachers beside a student that Composer's Trainer trains."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from composer.models import ComposerModel, HuggingFaceModel
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn

from ..batches import labels_key
from ..teachers import Teacher, ask_by_name, is_hugging_face


def teacher_on_batches(module: nn.Module, input_key: Any = 0, target_key: Any = 1, **options: Any) -> Teacher:
    """A `Teacher` that is asked with a batch as a Trainer has it.

    Args:
        module: a `ComposerModel`, which takes the batch; a Hugging Face model, which takes the entries that it knows
            but for the labels; or another module, which takes what stands at `input_key`.
        input_key: as in `batch_get`; for a batch that is a mapping, the default 0 means all of it.
        target_key: where labels stand; for a batch that is a mapping, the default 1 means "labels".
        options: as `Teacher` has them.
    """
    # A HuggingFaceModel that does nothing of its own would compute a loss, and metrics.
    wraps = isinstance(module, HuggingFaceModel) and type(module).forward is HuggingFaceModel.forward
    known: Any = frozenset(module.model_forward_args) if wraps else None  # type: ignore[arg-type]
    network: Any = module.model if wraps else module
    return Teacher(network, partial(_ask, known, input_key, target_key), **options)


def _ask(known: Collection[str] | None, input_key: Any, target_key: Any, module: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping) and (known is not None or is_hugging_face(module)):
        return ask_by_name(module, batch, labels_key(batch, target_key), known)
    whole = isinstance(batch, Tensor) or (isinstance(batch, Mapping) and input_key == 0)
    return module(batch if whole or isinstance(module, ComposerModel) else batch_get(batch, input_key))
