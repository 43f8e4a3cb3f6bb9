"""How long a training is, in batches, as far as its data tell, which are built."""

from __future__ import annotations

from typing import Any

from ..config.recipe import Recipe
from .core import duration


def batches_of(recipe: Recipe, epoch: int) -> float:
    """Those of a training whose data have so many an epoch."""
    length, most = duration(recipe), recipe.trainer.get("train_subset_num_batches", -1)
    each = {"ep": min(epoch, most) if most > 0 else epoch, "sp": 1 / recipe.config["global_batch_size"]}
    return length.value * each.get(length.unit.value, 1)


def loader_of(recipe: Recipe) -> Any:
    """The training data, built: that they do not fill a batch must not come up after hours."""
    from composer.core import ensure_data_spec
    from composer.utils import get_device

    from accelerando.algorithms.generators import untouched_generators

    with untouched_generators():
        device = get_device(recipe.trainer.get("device"))
        data = recipe.train_data.build(recipe.batch_size, True, recipe.data_seed, device)
    return ensure_data_spec(data).dataloader
