"""What studies of many runs share: their own keys, named changes of one config with several seeds, and the metric."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from accelerando.recipes.config import Part, Recipe, merge
from accelerando.recipes.names import Source, check_value, show

if TYPE_CHECKING:
    from composer.core import Time


def own_keys(
    config: DictConfig,
    source: Source,
    kinds: Mapping[str, Any],
    defaults: Mapping[str, Any],
    named: str,
    fixed: Collection[str] = ("run_name", "seed", "folder"),
    changes: bool = True,
) -> dict[str, Any]:
    """The study's own keys, which are those of `kinds`, checked; `named` is that of the named changes.

    A change may not touch the keys in `fixed`, which the study sets for every run. What are no `changes` of the config
    are arguments.
    """
    what = "what it changes" if changes else "its arguments"
    with source.blame("", OmegaConfBaseException):
        own = {**defaults, **{key: _resolved(config, key, changes and key == named) for key in kinds if key in config}}
        name = config.get("run_name")
    if name is None:
        raise source.error("run_name", "missing; expected the name of the study's folder")
    if "seed" in config:
        raise source.error("seed", "a study has several; give seeds, such as [17]")
    if not own.get(named):
        raise source.error(named, f"missing; expected names, each with {what}, such as {{NAME: {{...}}, ...}}")
    with source.blame(""):
        check_value("run_name", str, name)
        for key, kind in kinds.items():
            check_value(key, kind, own[key])
    seeds = own["seeds"]
    if not seeds or any(type(seed) is not int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise source.error("seeds", f"{seeds} given; expected different whole numbers")
    given = {str(name): {} if value is None else value for name, value in own[named].items()}
    own[named] = {name: value for name, value in given.items() if value is not False}
    if not own[named]:
        raise source.error(named, "each of them is false; expected one at least")
    for name, value in own[named].items():
        key = f"{named}.{name}"
        if not isinstance(value, dict):
            hint = f"expected {what} as a mapping, {{}} for nothing, or false to leave it out"
            raise source.error(key, f"{show(value)} given; {hint}")
        if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
            raise source.error(key, "expected a name of up to 100 letters, digits, _, ., + and -: it becomes a folder")
        for inner in set(fixed) & value.keys():
            raise source.error(f"{key}.{inner}", "the study sets it for every run; leave it out")
    return own


def _resolved(config: DictConfig, key: str, later: bool) -> Any:
    if later:  # what they refer to may be known to the changed config only
        return OmegaConf.to_container(OmegaConf.masked_copy(config, [key])).get(key)  # type: ignore[union-attr]
    return OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]


def without(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """The config but for these top-level keys."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in keys])


def changed(
    base: DictConfig, source: Source, part: str, changes: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[DictConfig, Source]:
    """The config with the changes that stand at `part`, and with the run's own keys; and the source of its errors."""
    source = source.inside(part, changes)
    with source.blame("", OmegaConfBaseException, TypeError):  # such as a list where the file has a mapping
        merged = merge(merge(base, OmegaConf.create(dict(changes))), OmegaConf.create(dict(own)))
    for key in OmegaConf.missing_keys(OmegaConf.create(dict(changes))):
        raise source.error(f"{part}.{key}", "missing; the file leaves it to you, as KEY=VALUE on the command line")
    return merged, source


def refuse_folder_of_a_run(folder: Path, source: Source) -> None:
    """A study's folder holds runs, and is none."""
    if any((folder / name).exists() for name in ("results.json", "checkpoints")):
        raise source.error("run_name", f"{folder} is the folder of a training run; choose another one")


def metric_of(recipe: Recipe, wanted: str | None, errors: bool = False) -> str:
    """The metric `wanted`, by default the first accuracy; its model and optimizer are built, so that both can be."""
    from accelerando.recipes.curves import choose_metric
    from accelerando.recipes.report import EVAL_PREFIX

    model = recipe.model.build()
    recipe.optimizer.build(model.parameters())
    with recipe.source.blame("metric", ValueError):
        return choose_metric([f"{EVAL_PREFIX}{name}" for name in model.get_metrics(is_train=False)], wanted, errors)


def duration(recipe: Recipe) -> Time:
    """How long it trains."""
    return as_time(recipe.trainer["max_duration"])


def as_time(value: Any) -> Time:
    """A number without a unit counts epochs, as for Composer."""
    from composer.core import TimeUnit, ensure_time

    return ensure_time(value, TimeUnit.EPOCH)


def has_times_in_dur(part: Part) -> bool:
    """Whether an argument is a share of the whole run's length, other than its beginning."""
    times = [value for value in part.arguments.values() if isinstance(value, str) and value.endswith("dur")]
    return any(as_time(time).value > 0 for time in times)
