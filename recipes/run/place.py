"""Where a run is in data that keep their place themselves, so that it goes on there after a kill."""

from __future__ import annotations

from typing import Any

from composer import Callback, Logger, State, Trainer
from composer.utils import dist, reproducibility

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
