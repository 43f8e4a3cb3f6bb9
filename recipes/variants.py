"""What the studies of pruning share: their own keys, with named arguments and several seeds, and the metric."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import check_inside, check_value
from accelerando.recipes.config.errors import Source, show
from accelerando.recipes.config.loading import check_numbers, resolving
from accelerando.recipes.config.recipe import Recipe, refuse_unknown


def own_keys(
    config: DictConfig,
    source: Source,
    kinds: Mapping[str, Any],
    defaults: Mapping[str, Any],
    named: str,
) -> dict[str, Any]:
    """The study's own keys, which are those of `kinds`, checked; `named` is that of the named arguments."""
    refuse_unknown(source, config, kinds)
    own = dict(defaults)
    with resolving(source):
        for key in kinds:
            if key in config:
                own[key] = _plain(config[key])
        name = config.get("run_name")
    check_numbers(source, own)
    if name is None:
        raise source.error("run_name", "missing; expected the name of the study's folder")
    if "seed" in config:
        raise source.error("seed", "a study has several; give seeds, such as [17]")
    if not own.get(named):
        raise source.error(named, "missing; expected names, each with its arguments, such as {NAME: {...}, ...}")
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
            hint = "expected its arguments as a mapping, {} for nothing, or false to leave it out"
            raise source.error(key, f"{show(value)} given; {hint}")
        if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
            raise source.error(key, "expected a name of up to 100 letters, digits, _, ., + and -: it becomes a folder")
    return own


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def without(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """The config but for these top-level keys, to which its name may have referred."""
    rest = OmegaConf.masked_copy(config, [str(key) for key in config if key not in keys])
    rest.run_name = config.run_name
    return rest


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
