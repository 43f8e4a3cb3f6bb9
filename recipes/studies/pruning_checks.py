"""What the studies of pruning check beforehand: arguments of what prunes, the weights they choose, and masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, ArgumentError, Source
from ..config.recipe import Recipe
from .core import Base
from .lengths import as_time, duration

if TYPE_CHECKING:
    from ..run.results import Result

WHICH = ("include", "exclude", "classifier", "scope")  # arguments of all that prunes


def arguments_of(
    kind: Any, source: Source, places: Mapping[str, Mapping[str, Any]], added: Mapping[str, Any], taken: Collection[str]
) -> dict[str, Any]:
    """The arguments that stand at one or more keys, of which the last counts; checked with those that are `added`.

    Those in `taken` may not be given. The thing is built, as its constructor has more to say.
    """
    arguments: dict[str, Any] = {}
    key, where = "", dict[str, str]()
    for key, given in places.items():
        arguments |= given
        where |= dict.fromkeys(given, key)
    for name in arguments.keys() & set(taken):
        raise source.error(f"{where[name]}.{name}", "the study sets it for every run; leave it out")
    try:
        checked = check_arguments(kind, {**arguments, **added})
    except ArgumentError as error:
        raise source.error(f"{where.get(error.name, key)}.{error.name}", error.message) from error
    try:
        kind(**checked)
    except REFUSALS as error:
        blamed = [name for name in where if f" {name} must " in str(error)]
        with source.blame(f"{where[blamed[0]]}.{blamed[0]}" if blamed else key, *REFUSALS):
            raise
    return {**arguments, **added}


def origins(name: str, places: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where the arguments of the algorithm `name` in a run's config stand in the study's block."""
    here = f"algorithms.{name}"
    each = {f"{here}.{argument}": f"{key}.{argument}" for key, given in places.items() for argument in given}
    return each | {here: list(places)[-1]}


def check_weights(
    base: Base, arguments: Mapping[str, Mapping[str, Any]], recipe: Recipe | None = None
) -> dict[str, tuple[int, int]]:
    """How many weights each of them, by the key where they stand, chooses, and of how many parameters.

    They are those of the recipe, by default the base run. Raises an error where some choose no weights that it has.
    """
    from accelerando.algorithms.generators import untouched_generators
    from accelerando.algorithms.pruning import prunable_weights

    from ..run.algorithms import in_its_folders
    from ..run.teachers import as_in_training

    recipe, sizes = recipe or base.recipe, {}
    with untouched_generators():
        model = as_in_training(recipe.model, in_its_folders(recipe))
    for key, given in arguments.items():
        with base.source.blame(key, ValueError):
            chosen = prunable_weights(model, **selection(given)).values()
        sizes[key] = sum(weight.numel() for weight in chosen), sum(p.numel() for p in model.parameters())
    return sizes


def check_seeds_matter(base: Base, key: str, arguments: Mapping[str, Any]) -> None:
    """Raises an error where another seed draws the same weights, as of pre-trained ones: it is the same run again."""
    import torch

    from accelerando.algorithms.generators import untouched_generators
    from accelerando.algorithms.pruning import prunable_weights

    drawn = []
    with untouched_generators():
        for seed in (0, 1):
            torch.manual_seed(seed)
            drawn.append(prunable_weights(base.recipe.model.build(), **selection(arguments)))
    if same := [name for name, weight in drawn[0].items() if torch.equal(weight, drawn[1][name])]:
        hint = "are the same whatever the seed, as pre-trained ones are; leave it out"
        raise base.source.error(key, f"reinitialize draws other weights, but those of {same[0]} {hint}")


def selection(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that say which weights may be pruned."""
    return {name: arguments[name] for name in ("include", "exclude", "classifier") if name in arguments}


def check_rewind(source: Source, key: str, arguments: Mapping[str, Any], recipe: Recipe) -> float:
    """The share of the training at which a LotteryTicket's step k lies, as far as its unit tells."""
    k, length = as_time(arguments.get("rewind_to", "0ba")), duration(recipe)
    if k.unit != length.unit:
        return 0.0
    if k.value >= length.value:
        raise source.error(f"{key}.rewind_to", f"{k.to_timestring()} given; expected less than max_duration")
    return k.value / length.value


def wrong_masks(file: Path, wanted: str) -> str:
    """Returns what is wrong with a file of masks, which must have the digest `wanted`; "" for nothing."""
    from accelerando.algorithms.checkpoints import read_weights
    from accelerando.algorithms.pruning.files import SUFFIX
    from accelerando.algorithms.pruning.masks import digest

    try:
        masks = {name.removesuffix(SUFFIX): mask for name, mask in read_weights(file).items()}
        wrong = "" if digest(masks) == wanted else "holds other masks than the ladder has found"
    except REFUSALS as error:
        wrong = f"cannot be read; {error}"
    return wrong and f"{file}: {wrong}; delete {file.parent.parent} to train it again"


def ticket_of(
    base: Base, ladder: str, found: Result, level: int, run: str, seed: int, checked: set[str]
) -> tuple[str, str, str]:
    """The name of a run by the masks that a ladder has found at a level, as another ticket makes another run.

    Returns also their file, inside the study's folder, and what is wrong with it, "" for nothing. Those that are right
    are `checked` once.
    """
    digest, file = found.found["levels"][level]["digest"], f"{ladder}/tickets/level-{level}.safetensors"
    name, problem = named_by_masks(base, file, digest, run, f"-seed{seed}", checked)
    return name, file, problem


def named_by_masks(base: Base, file: str, digest: str, run: str, tail: str, checked: set[str]) -> tuple[str, str]:
    """The name of a run, less its `tail`, by the masks in a file of that digest; and what is wrong with that file."""
    name, problem = f"{run}-{digest[:6]}", ""
    finished = (base.folder / f"{name}{tail}" / "results.json").is_file()  # the masks may be gone then
    if file not in checked and not finished:
        problem = wrong_masks(base.folder / file, digest)
        if not problem:
            checked.add(file)
    return name, problem
