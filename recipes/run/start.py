"""Starts a run from another run's moment: from the files of its origin to a Trainer's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from composer import Callback, Logger, State
from composer.algorithms import SAM
from composer.core import Timestamp, TimeUnit
from composer.utils import ensure_tuple
from torch.optim import Optimizer

from accelerando.algorithms.checkpoints import load_weights, some
from accelerando.algorithms.composer.bases import RandomAlgorithm
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.composer.snapshots import Snapshots
from accelerando.algorithms.progress import COUNTS

from ..config.arguments import parameters
from ..config.errors import REFUSALS, ConfigError
from ..config.recipe import Recipe
from ..config.start import after_the_end
from ..data.loaders import Shards
from .checkpoints import not_finite
from .origin import Origin, read_full


class StartedRun(Callback):
    """Puts a Trainer at the origin of its run, unless it goes on from a checkpoint of its own.

    `begun` counts what the other run had trained on, as far as the run's own counts go on from there; `generators`,
    from the origin or None, are for Composer to set when the first batch comes.
    """

    def __init__(self, recipe: Recipe, origin: Origin | None, loader: Any):
        assert recipe.start
        self._recipe, self._origin, self._loader, self._start = recipe, origin, loader, recipe.start
        self.begun: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self.shift = 0  # of the data, in batches
        self.generators: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "shift": self.shift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.shift = dict(state["begun"]), state["shift"]

    def before_load(self, state: State, logger: Logger) -> None:
        """Brings from the origin what a checkpoint would bring."""
        if self._origin is None:
            return
        with self._recipe.source.blame("start", *REFUSALS):
            self._begin(self._origin, state)

    def after_load(self, state: State, logger: Logger) -> None:
        if self.shift:
            self._shift()

    def _begin(self, origin: Origin, state: State) -> None:
        start, error = self._start, self._recipe.source.error
        if start.optimizer == "keep":
            assert origin.full is not None
            with self._recipe.source.blame("start.optimizer", *REFUSALS, AttributeError):
                content = read_full(origin)
                self._keep(content["state"], state, origin.place["batch"] > 0)
            if origin.seed == state.rank_zero_seed:
                self.generators = content.get("rng")
        with self._recipe.source.blame("start.run", *REFUSALS):
            load_weights(composer_model(state), origin.weights)
        if bad := not_finite(composer_model(state).state_dict().items()):
            raise error("start.run", f"{origin.weights} holds weights that are not finite: {some(bad)}")
        if start.continues_schedule:
            self._continue_schedule(origin, state)
        self.shift = self._shift_from(origin, state)

    def _continue_schedule(self, origin: Origin, state: State) -> None:
        start, error, length = self._start, self._recipe.source.error, state.max_duration
        assert length is not None
        self.begun = {name: origin.place[name] for name in COUNTS}
        if not origin.same_data:
            if length.unit == TimeUnit.EPOCH:
                problem = "the schedule goes on, but epochs of other data are no measure of its place"
                raise error("start.schedule", f"{problem}; give max_duration in ba, or schedule: restart")
            self.begun |= {"batch_in_epoch": 0, "sample_in_epoch": 0, "token_in_epoch": 0}
        state.timestamp, state.previous_timestamp = _timestamp(self.begun), _timestamp(origin.place_before)
        if state.timestamp >= length:
            raise error("start.at", after_the_end(str(start.at), length.to_timestring()))
        by_epoch = self._recipe.trainer.get("step_schedulers_every_batch") is False
        _set_rates(state, _end_of_epoch_before(origin.place) if by_epoch else origin.place_before, by_epoch)

    def _shift_from(self, origin: Origin, state: State) -> int:
        """From the run's place to that of its data, in batches."""
        start = self._start
        if origin.continues_data and start.continues_schedule:
            return origin.shift
        if not (origin.continues_data or start.continues_schedule):
            return 0
        if state.dataloader_len is None:
            raise self._no_place()
        length = int(state.dataloader_len)
        here, there = (place["epoch"] * length + place["batch_in_epoch"] for place in (self.begun, origin.place))
        return (there + origin.shift if origin.continues_data else 0) - here

    def _shift(self) -> None:
        sampler = getattr(self._loader, "sampler", None)
        if not isinstance(sampler, Shards) or self._recipe.trainer.get("train_subset_num_batches", -1) != -1:
            raise self._no_place()
        with self._recipe.source.blame("start.data", ValueError):
            sampler.shift_by(self.shift)

    def _no_place(self) -> ConfigError:
        hint = "of these data the place cannot be chosen; expected schedule and data both continue, or both restart"
        return self._recipe.source.error("start.data", hint)

    def _keep(self, held: Mapping[str, Any], state: State, updated: bool) -> None:
        """Loads the optimizer's state, once it has `updated`, and that of the algorithms that both runs have."""
        optimizers = ensure_tuple(state.optimizers)
        if any(isinstance(algorithm, SAM) for algorithm in state.algorithms):
            raise ValueError("keep given, but the state of SAM is in no checkpoint; expected fresh")
        names = {id(p): name for name, p in composer_model(state).named_parameters()}
        for optimizer in optimizers:
            name = type(optimizer).__qualname__
            if name not in held["optimizers"]:
                known = ", ".join(held["optimizers"])
                raise ValueError(f"keep given, but that run has trained with {known}, not {name}")
            there = {one for group in held["optimizers"][name]["param_groups"] for one in group["params"]}
            here = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
            if lacking := [one for one in here if one not in there]:
                raise ValueError(f"keep given, but that run has not trained {some(lacking)}; expected fresh")
        with _own_options(optimizers, self._recipe.optimizer.arguments):
            if updated:  # before, torch saves what an update without gradients would leave
                state.load_optim_state(dict(held))
        if held.get("scaler") and state.scaler is not None:
            for saved in held["scaler"].values():
                state.scaler.load_state_dict(saved)
        saved = {name: algorithm for name, algorithm in held["algorithms"]}
        for algorithm in state.algorithms:
            if isinstance(algorithm, Snapshots):  # what it has kept is that run's
                continue
            if own := saved.get(type(algorithm).__qualname__):
                # Its draws follow this run's seed.
                left_out = {"seed"} if isinstance(algorithm, RandomAlgorithm) else set()
                algorithm.load_state_dict({key: value for key, value in own.items() if key not in left_out})


@contextmanager
def _own_options(optimizers: Sequence[Optimizer], given: Iterable[str]) -> Iterator[None]:
    """Whatever is loaded inside, the options that are `given` or that constructors take, such as rates, are as before.

    Others, such as counters of updates, are not options but state.
    """
    groups = [(group, type(optimizer)) for optimizer in optimizers for group in optimizer.param_groups]
    options = [{p.name for p in parameters(kind)} | {*given, "initial_lr"} for _, kind in groups]
    was = [
        {name: group[name] for name in names if name in group}
        for (group, _), names in zip(groups, options, strict=True)
    ]
    yield
    after = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, before in zip(after, was, strict=True):
        group.update(before)


def _timestamp(place: Mapping[str, Any]) -> Timestamp:
    return Timestamp(**place, epoch_in_iteration=place["epoch"], token_in_iteration=place["token"])


def _end_of_epoch_before(place: Mapping[str, int]) -> dict[str, int]:
    """When the last epoch ended, before it was counted."""
    whole = {name: place[name] - place[f"{name}_in_epoch"] for name in ("batch", "sample", "token")}
    return {**dict.fromkeys(COUNTS, 0), **whole, "epoch": max(place["epoch"] - 1, 0)}


def _set_rates(state: State, before: Mapping[str, int], by_epoch: bool) -> None:
    """The learning rates of the next update, which Composer sets when the last one, or the last epoch, is over."""
    now = state.timestamp
    steps = int(now.epoch if by_epoch else now.batch)
    for scheduler in state.schedulers if steps else []:
        state.timestamp = _timestamp(before)
        scheduler.last_epoch, scheduler._step_count = steps - 1, 2  # at 1 torch warns of an optimizer that made no step
        scheduler.step()
        scheduler._step_count = steps + 1
        state.timestamp = now
