"""Starts a run from another run's moment, as `config/start.py` describes it: from files to a Trainer's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.algorithms import SAM
from composer.core import Timestamp, TimeUnit
from composer.utils import ensure_tuple
from omegaconf import OmegaConf
from torch.optim import Optimizer

from accelerando.algorithms.bases import RandomAlgorithm
from accelerando.algorithms.checkpoints import load_weights, read_content, some
from accelerando.algorithms.host import composer_model
from accelerando.algorithms.snapshots import COUNTS, Snapshots, find_snapshot

from ..config.arguments import parameters
from ..config.errors import REFUSALS, ConfigError, Source
from ..config.loading import UNREADABLE
from ..config.recipe import Recipe
from ..config.sections import SECTIONS, check_section
from ..config.start import after_the_end
from ..data.loaders import Shards
from ..models.pretrained import find_checkpoint

DATA = ("train_data", "global_batch_size", "train_subset_num_batches")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a start found in another run: files of weights and of all else, and how far that run had come.

    `shift` is how many batches further on in the data that run was than its place says, as one that was started itself
    may be; `same_data` whether this run trains on the same, in batches of the same size.
    """

    weights: Path
    full: Path | None
    place: Mapping[str, int]
    place_before: Mapping[str, int]
    seed: int
    shift: int
    same_data: bool
    continues_data: bool


def find_origin(recipe: Recipe) -> Origin:
    """Reads what the start needs but the weights, or a ConfigError at its key."""
    start, error = recipe.start, recipe.source.error
    assert start is not None
    folder = _folder(recipe, start.run)
    config = _config_of(folder)
    changed = [name for name in DATA if not _is_same(name, config.get(name), recipe)]
    if start.data == "continue" and config and changed:
        was, given = config.get(changed[0], "absent"), recipe.config.get(changed[0], "absent")
        hint = f"that run has another {changed[0]}, {was} and not {given}; expected restart"
        raise error("start.data", f"continue given, but {hint}")
    if start.data is None and start.at is not None and not config:
        raise error("start.data", f"missing; {folder} has no config.yaml that would tell what that run was trained on")
    same_data = not changed if config else start.data == "continue"
    data: dict[str, Any] = {
        "same_data": same_data,
        "continues_data": start.data == "continue" or (start.data is None and start.at is not None and same_data),
    }
    if start.at is None:
        return Origin(**_end_of(recipe, folder), **data)
    kept = _kept_in(folder, config)
    with recipe.source.blame("start.at", LookupError), recipe.source.blame("start.run", ValueError):
        found = find_snapshot(kept, start.at)
    if start.optimizer == "keep" and found.full is None:
        hint = "its optimizer's state was not kept; expected fresh, or Snapshots with full: true in that run"
        raise error("start.optimizer", f"keep given, but of {start.at} there is only {found.file}; {hint}")
    about = {name: getattr(found, name) for name in ("full", "place", "place_before", "seed", "shift")}
    return Origin(weights=found.file, **about, **data)


def _folder(recipe: Recipe, run: str) -> Path:
    for folder in (Path(recipe.config["folder"], run), Path(run)):
        if folder.is_dir():
            if folder.resolve() == recipe.folder.resolve():
                raise recipe.source.error("start.run", f"{run} is this run itself; expected another one")
            return folder
    hint = f"expected the folder of a run, or a run_name in {recipe.config['folder']}"
    raise recipe.source.error("start.run", f"{run} is no folder; {hint}")


def _config_of(folder: Path) -> dict[str, Any]:
    """Reads the config of a run of recipes/train.py; another program has left none, which is {}."""
    file = folder / "config.yaml"
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError("expected a mapping of keys to values")
    except UNREADABLE as error:
        raise ConfigError(str(file), "", f"unreadable; {error}") from error
    return found


def _kept_in(folder: Path, config: Mapping[str, Any]) -> Path:
    """Finds where that run's snapshots are: in their own place inside its folder, or where its config says."""
    algorithms = config.get("algorithms")
    entries = algorithms.values() if isinstance(algorithms, dict) else []
    given = [entry["save_folder"] for entry in entries if isinstance(entry, dict) and entry.get("save_folder")]
    places = [folder / "snapshots", *map(Path, given), folder]
    return next((place for place in places if any(place.glob("ba*.safetensors"))), places[0])


def _is_same(name: str, given: Any, recipe: Recipe) -> bool:
    """Whether that run had the same, however it was spelled; a source need not be the same in how it is read."""
    same, sources = given == recipe.config.get(name), name in SECTIONS and isinstance(given, dict | str) and given
    # Somebody else's file shall not choose what is imported here.
    if same or not sources or any(":" in one for one in given):
        return same
    try:
        (part,) = check_section(Source(), name, given)
        theirs, ours = (one.build() for one in (part, check_section(Source(), name, recipe.config[name])[0]))
    except ConfigError:  # of a version before, or of somebody else's module
        return False
    return type(theirs) is type(ours) and _what_it_holds(theirs) == _what_it_holds(ours)


def _what_it_holds(source: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(source).items() if name not in ("num_workers", "download")}


def _end_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Finds the last checkpoint of a finished run."""
    assert recipe.start
    if not (folder / "results.json").is_file():
        hint = "expected a finished one, or at: a moment of which its algorithm Snapshots keeps the weights"
        raise recipe.source.error("start.run", f"the run in {folder} is not finished: it has no results.json; {hint}")
    if recipe.start.continues_schedule:
        hint = "continue given without at; expected at: the moment from which it goes on"
        raise recipe.source.error("start.schedule", hint)
    with recipe.source.blame("start.run", *REFUSALS):
        if (file := find_checkpoint(str(folder))) is None:
            raise FileNotFoundError(f"{folder} has no checkpoint: expected checkpoints/latest-rank0.pt")
        state = read_content(file)["state"]
        place = {name: int(state["timestamp"]["Timestamp"][name]) for name in COUNTS}
        about = {
            "seed": int(state["rank_zero_seed"]),
            "shift": state["callbacks"].get("StartedRun", {}).get("shift", 0),
        }
    return {"weights": file, "full": file, "place": place, "place_before": place, **about}


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
                content = _read_full(origin)
                self._keep(content["state"], state, origin.place["batch"] > 0)
            if origin.seed == state.rank_zero_seed:
                self.generators = content.get("rng")
        with self._recipe.source.blame("start.run", *REFUSALS):
            load_weights(composer_model(state), origin.weights)
        weights = composer_model(state).state_dict().items()
        if bad := [name for name, value in weights if not _is_finite(value)]:
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


def _read_full(origin: Origin) -> Mapping[str, Any]:
    """Reads the checkpoint of the origin; ValueError where it is none, or of another moment than the weights."""
    content = read_content(origin.full or origin.weights)
    held = content.get("state")
    try:
        batch, seed = held["timestamp"]["Timestamp"]["batch"], held["rank_zero_seed"]  # type: ignore[index]
        held["optimizers"], held["algorithms"]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{origin.full} is no whole checkpoint of Composer's; it lacks {error}") from error
    if (batch, seed) != (origin.place["batch"], origin.seed):
        there = f"batch {batch} of a run with seed {seed}"
        raise ValueError(f"{origin.full} is of {there}, not of the moment of {origin.weights.name} beside it")
    return content


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
        scheduler.last_epoch, scheduler._step_count = steps - 1, steps
        scheduler.step()
        state.timestamp = now


def _is_finite(value: Any) -> bool:
    return not (isinstance(value, torch.Tensor) and value.is_floating_point()) or bool(torch.isfinite(value).all())
