"""What a source of data says that it holds, for `run/agreement.py` to compare with what the model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from composer.core import DataSpec

IGNORED = -100  # where there is nothing to predict, for torch's losses and Hugging Face's


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a source holds, or a model takes; None where it does not say."""

    inputs: Literal["images", "texts"] | None = None
    labels: Literal["classes", "numbers", "tokens", "spans"] | None = None  # the latter two of each text's own
    classes: int | None = None  # of a source without their names, one more than the largest label
    names: tuple[str, ...] | None = None  # of the classes, in the order of their labels
    channels: int | None = None
    side: int | None = None  # of the images, in pixels
    least_side: int | None = None  # of the images that a model takes, where it takes several sizes
    pairs: bool = False  # of a model: its batches are (inputs, labels), with one class for each example
    words: int | None = None  # in the vocabulary
    positions: int | None = None  # tokens in a text
    changed: tuple[int, ...] = ()  # the places of the examples whose labels are wrong on purpose


class Described(DataSpec):
    """A `DataSpec` that tells what it holds, and counts labelled tokens for `accumulate_train_batch_on_tokens`."""

    def __init__(self, dataloader: Any, facts: Facts, **options: Any):
        super().__init__(dataloader, **options)
        self.facts = facts

    def get_num_tokens_in_batch(self, batch: Any, token_type: str = "total") -> int:
        # Only where it is asked for: on a GPU the count waits for the device, which the total never does.
        if token_type == "loss_generating":
            return int((batch["labels"] != IGNORED).sum())
        return super().get_num_tokens_in_batch(batch, token_type)
