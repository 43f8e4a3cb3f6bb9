"""Where a run is in data that keep their place themselves, so that it goes on there after a kill."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from composer import Callback, Logger, State, Trainer
from composer.core import DataSpec
from composer.utils import dist, reproducibility
from torch.utils.data import IterableDataset

from ..config.recipe import Recipe
from ..data.streams import StreamLoader, stateful


class KeepsPlace(Callback):
    """Saves the state of the training data, of every rank, where its loader or data set has one.

    Composer takes such data as they are, and does not go through what the run has seen; there it forgets to put back
    the random generators of a run that goes on in the middle of an epoch.
    """

    def __init__(self, recipe: Recipe, loader: Any):
        self._loader, self._kept, self._loaded = loader, stateful(loader), False
        self._over = False  # an epoch of whose data there is nothing left
        self.trainer: Trainer | None = None
        if self._kept is not None:
            key, error = recipe.train_data.key, recipe.source.error
            if recipe.trainer.get("train_subset_num_batches", -1) != -1:
                hint = f"after a resume {key}, which keeps its own place, would have as many again; leave it out"
                raise error("train_subset_num_batches", hint)
            if recipe.start and (recipe.start.continues_schedule or recipe.start.data == "continue"):
                hint = f"the place in {key}, which keeps its own, cannot be chosen; expected restart"
                raise error("start.data" if recipe.start.data == "continue" else "start.schedule", hint)

    def state_dict(self) -> dict[str, Any]:
        if self._kept is None:
            return {}
        own = {"state": self._kept.state_dict(), "over": getattr(self._loader, "over", False)}
        return {"ranks": dist.all_gather_object(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._kept is None or not state:
            return
        if len(ranks := state["ranks"]) != dist.get_world_size():
            raise ValueError(f"the place in the data is that of {len(ranks)} rank(s), not of {dist.get_world_size()}")
        own = ranks[dist.get_global_rank()]
        self._kept.load_state_dict(own["state"])
        self._loaded, self._over = True, own["over"]

    def after_load(self, state: State, logger: Logger) -> None:
        if self._loaded:
            state.dataset_resumption["train"] = True
            if isinstance(self._loader, StreamLoader) and state.timestamp.batch_in_epoch > 0:
                self._loader.goes_on, self._loader.ends = True, self._over

    def before_dataloader(self, state: State, logger: Logger) -> None:
        trainer = self.trainer
        if trainer and trainer._rng_state is not None and state.dataset_resumption.get("train"):
            reproducibility.load_rng_state(trainer._rng_state)
            trainer._rng_state = None


class BeginsAlike(Callback):
    """Lets each evaluation begin where the first one does, if the data keep their place themselves.

    Before the training Composer takes a batch of all that is evaluated, to draw the order of its samplers. Iterable
    data have none, and are left as they were.
    """

    def __init__(self, evaluated: Sequence[DataSpec]):
        found = [(spec.dataloader, stateful(spec.dataloader)) for spec in evaluated]
        self._places = [(loader, kept, copy.deepcopy(kept.state_dict())) for loader, kept in found if kept is not None]

    def fit_start(self, state: State, logger: Logger) -> None:
        labels = [each.label for each in state.evaluators if _is_iterable(each.dataloader.dataloader)]
        state.dataset_resumption.setdefault("eval", {}).update(dict.fromkeys(labels, True))

    def eval_start(self, state: State, logger: Logger) -> None:
        for loader, kept, place in self._places:
            if loader is state.dataloader:
                kept.load_state_dict(copy.deepcopy(place))


def _is_iterable(loader: Any) -> bool:
    return isinstance(getattr(loader, "dataset", None), IterableDataset)
