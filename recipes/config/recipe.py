"""From a config to a checked `Recipe`, or to one `ConfigError` that names the key.

`sections.py` says what a section holds. A top-level key that is no section is an argument of `composer.Trainer`, but
for `variables`, to which other values refer as ``${variables.name}``; ``???`` is for the command line to fill in.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from .arguments import check_arguments, check_inside, check_path, check_value
from .errors import REFUSALS, ArgumentError, Source, show
from .loading import resolve
from .lookup import Part, nearest
from .sections import REQUIRED_SECTIONS, SECTIONS, STUDY_KEYS, check_parts, entries_of
from .start import Start, check_start

OWN_KEYS = {
    "run_name": str,
    "folder": str,
    "global_batch_size": int,
    "eval_batch_size": int,
    "train_metrics_interval": str,
}
DURATIONS = ("ep", "ba", "sp")
# Of initial weights, and of the data's order and augmentation; what is left follows `seed`, by default these do too.
SEEDS = ("weights_seed", "data_seed")
NOT_COMPOSERS = {*OWN_KEYS, *SECTIONS, *SEEDS, "start"}
# The least whole number, and what else is allowed.
RANGES = {
    **dict.fromkeys(("seed", *SEEDS), (0, ())),
    "train_subset_num_batches": (1, (-1,)),
    "device_train_microbatch_size": (1, ("auto", None)),
}
DATA_SECTIONS = ("train_data", "eval_data", "validation_data")
SAVED_AS = ("save_filename", "save_latest_filename")
REQUIRED = ("run_name", "max_duration", "global_batch_size", *REQUIRED_SECTIONS)
RENAMED = {
    "train_dataloader": "train_data",
    "eval_dataloader": "eval_data",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "save_folder": "folder",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked config. Batch sizes are per rank, `folder` is the run's own, `config` is the resolved YAML.

    Each part of the data builds from a source that has found its data. What is chosen, such as the best of
    several runs, is chosen on `validation_data`, which hold nothing of the others.
    """

    source: Source
    config: dict[str, Any]
    run_name: str
    folder: Path
    weights_seed: int
    data_seed: int
    start: Start | None
    batch_size: int
    eval_batch_size: int
    train_metrics_interval: int
    model: Part
    train_data: Part
    eval_data: Part | None
    validation_data: Part | None
    optimizer: Part
    scheduler: Part | None
    algorithms: list[Part]
    callbacks: list[Part]
    loggers: list[Part]
    trainer: dict[str, Any]


def check(config: Mapping[str, Any] | DictConfig, source: Source | None = None) -> Recipe:
    """Checks every key. Of what the config describes it builds only the data sources, which look for their data."""
    source = source or Source()
    config = resolve(config, source)
    for key in config.keys() & STUDY_KEYS:
        raise source.error(key, "belongs to a study; launch it with recipes/study.py")
    refuse_unknown(source, config)
    for key in REQUIRED:
        if config.get(key) is None:
            raise source.error(key, "missing; every run needs it")
    by_default = {"folder": "runs", "train_metrics_interval": "10ba", "seed": 17}
    config = {**by_default, "eval_batch_size": config["global_batch_size"], **config}
    with source.blame(""):
        for key, kind in OWN_KEYS.items():
            check_value(key, kind, config[key])
        check_inside("run_name", config["run_name"], "the name of a folder inside `folder`")
        check_path("folder", config["folder"], "a folder of this machine")
    entries = {key: entries_of(source, key, config.get(key)) for key in SECTIONS}
    ranks = _check_ranks(source, config)
    for key in SEEDS:
        _check_range(source, key, config.get(key, 0))
    trainer = _check_trainer(source, {key: config[key] for key in config if key not in NOT_COMPOSERS})
    parts = {key: check_parts(source, key, entries[key]) for key in SECTIONS}
    counts_tokens = getattr(parts["train_data"][0].target, "counts_tokens", False)
    _check_duration(source, trainer["max_duration"], (*DURATIONS, "tok") if counts_tokens else DURATIONS)
    data = _check_data({key: parts[key][0] for key in DATA_SECTIONS if parts[key]}, Path(config["folder"]))
    return Recipe(
        source=source,
        config=config,
        run_name=config["run_name"],
        folder=Path(config["folder"], config["run_name"]),
        weights_seed=config.get("weights_seed", config["seed"]),
        data_seed=config.get("data_seed", config["seed"]),
        start=check_start(source, config.get("start"), config),
        batch_size=config["global_batch_size"] // ranks,
        eval_batch_size=config["eval_batch_size"] // ranks,
        train_metrics_interval=_in_batches(source, "train_metrics_interval", config["train_metrics_interval"]),
        model=parts["model"][0],
        train_data=data["train_data"],
        eval_data=data.get("eval_data"),
        validation_data=data.get("validation_data"),
        optimizer=parts["optimizer"][0],
        scheduler=parts["scheduler"][0] if parts["scheduler"] else None,
        algorithms=parts["algorithms"],
        callbacks=parts["callbacks"],
        loggers=parts["loggers"],
        trainer=trainer,
    )


def refuse_unknown(source: Source, given: Iterable[Any], own: Collection[str] = ()) -> None:
    """An error at the first of the given keys that is neither one of a run nor of the caller's `own`."""
    from composer import Trainer

    known = {*inspect.signature(Trainer).parameters, *NOT_COMPOSERS, "variables", *own} - RENAMED.keys()
    for key in map(str, given):
        if key in RENAMED:
            raise source.error(key, f"the recipe fills it in; use {RENAMED[key]} instead")
        if key not in known:
            raise source.error(key, f"unknown key{nearest(key, known)}")


def _check_ranks(source: Source, config: dict[str, Any]) -> int:
    from composer.utils import dist

    ranks = dist.get_world_size()
    for key in ("global_batch_size", "eval_batch_size"):
        if config[key] < 1 or config[key] % ranks:
            raise source.error(key, f"{config[key]} given; expected a positive multiple of the {ranks} rank(s)")
    return ranks


def _check_trainer(source: Source, arguments: dict[str, Any]) -> dict[str, Any]:
    from composer import Trainer
    from composer.core import Precision
    from composer.core.precision import _validate_precision
    from composer.utils import get_device

    with source.blame(""):
        arguments = check_arguments(Trainer.__init__, arguments, supplied=2)
        for key in SAVED_AS:
            _check_saved_as(key, arguments.get(key))
    for key in RANGES.keys() & arguments.keys():
        _check_range(source, key, arguments[key])
    with source.blame("device", *REFUSALS):
        device = get_device(arguments.get("device"))
    if arguments.get("precision") is not None:
        with source.blame("precision", ValueError):
            _validate_precision(Precision(arguments["precision"]), device)
    return arguments


def _check_range(source: Source, key: str, value: Any) -> None:
    least, others = RANGES[key]
    if value not in others and not (type(value) is int and least <= value < 2**32):
        expected = " or ".join([f"a whole number from {least} to {2**32 - 1}", *map(show, others)])
        raise source.error(key, f"{show(value)} given; expected {expected}")


def _check_saved_as(name: str, value: str | None) -> None:
    """A checkpoint's name, which Composer formats."""
    from composer.core import Timestamp
    from composer.utils.file_helpers import format_name_with_dist_and_time

    if value is not None:
        try:
            file = format_name_with_dist_and_time(value, "run", Timestamp())
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ArgumentError(name, f"{value!r} given, which cannot be formatted; {error!r}") from error
        check_inside(name, file, "the name of a file in the run's checkpoints")
        if "/" in file:
            raise ArgumentError(name, f"{value!r} given; expected a name without /")


def _check_duration(source: Source, value: Any, units: tuple[str, ...]) -> None:
    """In a unit that the run counts: in another it would never end."""
    from composer.core import Time, TimeUnit

    with source.blame("max_duration", *REFUSALS):
        duration = Time.from_input(value, TimeUnit.EPOCH)
    if duration.value <= 0 or duration.unit.value not in units:
        hint = f"expected a time string such as 10ep, above zero and in {', '.join(units)}"
        raise source.error("max_duration", f"{value} given; {hint}")


def _in_batches(source: Source, key: str, value: str) -> int:
    from composer.core import Time

    interval = Time.from_timestring(value)
    if interval.value <= 0 or interval.unit.value != "ba":
        raise source.error(key, f"{value} given; expected a number of batches above zero, such as 10ba")
    return int(interval.value)


def _check_data(parts: Mapping[str, Part], runs: Path) -> dict[str, Part]:
    """Returns each part with its source's `build`, once all sources have found their data.

    Raises ConfigError for validation data that overlap another part's, as far as their source tells by `overlaps`.
    """
    sources = {}
    for key, part in parts.items():
        sources[key] = looking_in(runs, part.build())
        with part.source.blame(part.key, *REFUSALS):
            sources[key].check()
    for key in ("train_data", "eval_data"):
        if {key, "validation_data"} <= parts.keys() and overlap(sources["validation_data"], sources[key]):
            part = parts["validation_data"]
            hint = "expected others, such as a split train[80%:] beside train_data with train[:80%]"
            raise part.source.error(part.key, f"holds examples of {key}; {hint}")
    return {key: replace(part, target=sources[key].build, arguments={}) for key, part in parts.items()}


def looking_in(runs: Path, source: Any) -> Any:
    """The source of data, told the folder of all runs, in which its files may lie, if it wants to know."""
    if hasattr(source, "look_in"):
        source.look_in(runs)
    return source


def overlap(one: Any, other: Any) -> bool:
    """Whether two sources of data hold some of the same examples, as far as one of them can tell."""
    pairs = ((one, other), (other, one))  # one that changes another's data knows of it, and is not known to it
    return one == other or any(hasattr(own, "overlaps") and own.overlaps(others) for own, others in pairs)
