"""What studies of many runs share: their own keys, named changes of one config with several seeds, and the metric."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import check_inside, check_value
from accelerando.recipes.config.errors import Source, show
from accelerando.recipes.config.loading import LEFT_TO_YOU, check_numbers, merge, missing, resolving
from accelerando.recipes.config.lookup import Part
from accelerando.recipes.config.recipe import Recipe, refuse_unknown

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
    at_once: Collection[str] = (),
) -> dict[str, Any]:
    """The study's own keys, which are those of `kinds`, checked; `named` is that of the named changes.

    A change may not touch the keys in `fixed`, which the study sets for every run. What are no `changes` of the config
    are arguments. What a change refers to may be known to the changed config only, but for its keys in `at_once`.
    """
    refuse_unknown(source, config, kinds)
    what = "what it changes" if changes else "its arguments"
    own = dict(defaults)
    with resolving(source):
        for key in kinds:
            if key in config:
                own[key] = _changes(config[key], at_once) if changes and key == named else _plain(config[key])
        name = config.get("run_name")
    check_numbers(source, own)
    if name is None:
        raise source.error("run_name", "missing; expected the name of the study's folder")
    if "seed" in config:
        raise source.error("seed", "a study has several; give seeds, such as [17]")
    if not own.get(named):
        raise source.error(named, f"missing; expected names, each with {what}, such as {{NAME: {{...}}, ...}}")
    with source.blame(""):
        check_value("run_name", str, name)
        check_inside("run_name", name, "the name of a folder inside `folder`")
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


def _plain(node: Any, resolve: bool = True) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _changes(node: Any, at_once: Collection[str]) -> Any:
    """Named mappings; they, and their mappings, may themselves be what an interpolation refers to."""
    if not isinstance(node, DictConfig):
        return _plain(node)
    changes = {name: node[name] for name in node}
    return {
        name: {key: _plain(change[key]) if key in at_once else _plain(change, resolve=False)[key] for key in change}
        if isinstance(change, DictConfig)
        else _plain(change)
        for name, change in changes.items()
    }


def without(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """The config but for these top-level keys, to which its name may have referred."""
    rest = OmegaConf.masked_copy(config, [str(key) for key in config if key not in keys])
    rest.run_name = config.run_name
    return rest


def changed(
    base: DictConfig, source: Source, part: str, changes: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[DictConfig, Source]:
    """The config with the changes that stand at `part`, and with the run's own keys; and the source of its errors."""
    source = source.inside(part, changes)
    with resolving(source), source.blame("", TypeError):  # such as a list where the file has a mapping
        merged = merge(merge(base, OmegaConf.create(dict(changes))), OmegaConf.create(dict(own)))
    for key in missing(changes, part):
        raise source.error(key, LEFT_TO_YOU)
    return merged, source


def refuse_folder_of_a_run(folder: Path, source: Source) -> None:
    """A study's folder holds runs, and is none."""
    if any((folder / name).exists() for name in ("results.json", "checkpoints")):
        raise source.error("run_name", f"{folder} is the folder of a training run; choose another one")


def metric_of(recipe: Recipe, wanted: str | None, errors: bool = False) -> str:
    """The metric `wanted`, by default the first accuracy; its model and optimizer are built, so that both can be."""
    from accelerando.recipes.run.history import EVAL_PREFIX
    from accelerando.recipes.studies.core import choose_metric

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
