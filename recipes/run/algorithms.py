"""The algorithms of a recipe, built with what they declare that a recipe makes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from composer.core import DataSpec, ensure_data_spec
from composer.devices import Device

from accelerando.algorithms.composer.for_recipes import Folder, ForRecipes, Supply

from ..config.lookup import Part
from ..config.recipe import Recipe
from ..config.sections import supplied_to
from ..data.loaders import TensorLoader
from ..data.shards import one_by_one
from .teachers import build_teachers


def build_algorithms(recipe: Recipe, scheduler: Any, transform: Callable[[Any], Any] | None = None) -> list[Any]:
    """Those of the recipe, given its scheduler and the `transform` of batches to what the model sees."""
    seen = transform or SeenByModel()
    return [_build(part, recipe, scheduler, seen) for part in in_its_folders(recipe)]


def _build(part: Part, recipe: Recipe, scheduler: Any, transform: Callable[[Any], Any]) -> Any:
    made: dict[str, Any] = {}
    for name, supply in supplied_to(part.target).items():
        match supply:
            case Supply.SCHEDULER:
                made[name] = scheduler
            case Supply.TRANSFORM:
                made[name] = transform
            case Supply.EXAMPLES:
                made[name] = partial(_examples, recipe)
            case Supply.TRAINING_DATA:
                made[name] = _training_data(recipe)
            case Supply.NETWORKS:
                made[name] = build_teachers(recipe, part.arguments[name])
    return replace(part, arguments=part.arguments | made).build()


def _examples(recipe: Recipe, device: Device) -> DataSpec:
    """This rank's share of the training data, in evaluation."""
    built = recipe.train_data.build(recipe.eval_batch_size, False, recipe.data_seed, device)
    if isinstance(built, list):
        raise recipe.source.error(recipe.train_data.key, "is several data sets, of which an algorithm asks for one")
    data = ensure_data_spec(built)
    data.dataloader = one_by_one(data.dataloader, False, recipe.data_seed)
    return data


def _training_data(recipe: Recipe) -> Callable[[Device], Iterator[Any]]:
    """Of a device, the batches of one pass in evaluation; they are read again for each pass unless they are in memory.

    A loader of somebody's own may keep a place, of which no pass must know.
    """
    kept: list[DataSpec] = []

    def batches(device: Device) -> Iterator[Any]:
        data = kept[0] if kept else _examples(recipe, device)
        if isinstance(data.dataloader, TensorLoader):
            kept[:] = [data]
        return as_seen(data, device)

    return batches


def as_seen(data: Iterable[Any] | DataSpec, device: Device) -> Iterator[Any]:
    """The batches on the device, and as the model sees them."""
    spec = ensure_data_spec(data)
    for batch in spec.dataloader:
        yield spec.microbatch_transforms(spec.batch_transforms(device.batch_to_device(batch)))


def in_its_folders(recipe: Recipe) -> list[Part]:
    """The recipe's algorithms, given their folders in the run's, and the files that lie in the folder of all runs."""
    return [_in_folders(part, Path(recipe.config["folder"]), recipe.folder) for part in recipe.algorithms]


def _in_folders(part: Part, runs: Path, run: Path) -> Part:
    made: dict[str, Any] = {}
    for name, supply in supplied_to(part.target).items():
        given = part.arguments.get(name)
        match supply:
            case Supply.FILE if isinstance(given, str) and (inside := runs / given).is_file():
                made[name] = str(inside)
            case Supply.FOLDERS if isinstance(given, list):
                made[name] = [str(inside) if (inside := runs / one).is_dir() else one for one in given]
            case Folder() if not given:
                made[name] = str(run / supply.name)
    return replace(part, arguments=part.arguments | made)


def folders_of(recipe: Recipe) -> list[str]:
    """The names of those folders inside the run's that its algorithms have written."""
    supplies = [supply for part in recipe.algorithms for supply in supplied_to(part.target).values()]
    names = [supply.name for supply in supplies if isinstance(supply, Folder)]
    return [name for name in names if (recipe.folder / name).is_dir()]


def for_recipes(algorithms: Sequence[Any]) -> list[ForRecipes]:
    """Those that have something to say to a recipe."""
    return [algorithm for algorithm in algorithms if isinstance(algorithm, ForRecipes)]


class SeenByModel:
    """What batches go through on their way to the model; it may be handed out before there are `data`."""

    data: DataSpec | None = None

    def __call__(self, batch: Any) -> Any:
        """The batch, which is on the device, as the model sees it."""
        if self.data is None:
            raise RuntimeError("what batches go through is not known before training begins")
        return self.data.microbatch_transforms(self.data.batch_transforms(batch))
