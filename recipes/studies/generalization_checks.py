"""What the study `generalization` checks of its keys beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..config.sections import entries_of
from .core import FIXED, Base, Train, named, refuse_twice
from .density import DENSE
from .generalization_rounds import Rounds
from .lengths import as_time, duration
from .prune_at_init import checked_criterion
from .pruning_checks import check_weights

SET = ("start", "weights_seed", "data_seed")  # by the study, for each run
OF_ALL = (*FIXED, *SET, "train_data", "validation_data", "eval_data", "max_duration")  # the same for every run
OF_THE_KEPT = ("magnitude", "snip", "snip_per_batch", "synflow")  # which score 0 what the rounds before have pruned


def check_keys(base: Base, study: Any) -> None:
    """Raises an error at a key whose number cannot be, and at one of the base run's that the study sets."""
    from accelerando.algorithms import ExampleScores
    from accelerando.algorithms.progress import moment

    source, length = base.source, duration(base.recipe)
    fits = bool(study.noise) and all(0 <= share < 1 for share in study.noise)
    refuse_twice(study.noise, source, "noise", fits, "from 0 and below 1, such as [0, 0.15]")
    for key, is_good, expected in (
        ("fraction", 0 < study.fraction < 1, "above 0 and below 1"),
        ("rounds", study.rounds > 0, "1 or more"),
        ("improved", study.improved is None or 0 < study.improved < 1, "above 0 and below 1, or null"),
        ("groups", study.groups > 0, "1 or more"),
    ):
        if not is_good:
            raise source.error(key, f"{getattr(study, key)} given; expected {expected}")
    time = moment(study.score_at)
    end = {"dur": 1, length.unit.value: length.value}.get(time.unit if time else "")
    if time is None or (end is not None and as_time(study.score_at).value >= end):
        hint = f"expected a moment before the end, {length.to_timestring()}, such as 0.1dur"
        raise source.error("score_at", f"{study.score_at!r} given; {hint}")
    for key in SET:
        if base.config.get(key) is not None:
            raise source.error(key, "the study sets it for every run; leave it out")
    for part in base.recipe.algorithms:
        if part.target is ExampleScores:
            raise source.error(part.key, "the study adds it; leave it out")


def checked_ladders(base: Base, criteria: Mapping[str, Any], density: float, taken: Collection[str]) -> dict[str, Any]:
    """The arguments of PruneAtInit by criterion; names that are `taken` are refused."""
    ladders = {}
    for name, given in named(base.source, "criteria", criteria).items():
        if name in taken:
            raise base.source.error(f"criteria.{name}", "is what the study calls something else; choose another name")
        ladders[name] = checked_criterion(base, name, {f"criteria.{name}": given}, density)
        if (criterion := ladders[name]["criterion"]) not in OF_THE_KEPT:
            hint = f"expected one that does not, {', '.join(OF_THE_KEPT)}"
            raise base.source.error(
                f"criteria.{name}", f"{criterion} brings pruned weights back in the next round; {hint}"
            )
        if "at" in given:
            raise base.source.error(f"criteria.{name}.at", "each round prunes before its first update; leave it out")
    check_weights(base, {f"criteria.{name}": arguments for name, arguments in ladders.items()})
    return ladders


def checked_widths(
    base: Base, widths: Mapping[str, Any], taken: Collection[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """What each changes, and how many parameters each has; the base run's number is that of the name ""."""
    changes = named(base.source, "widths", widths, OF_ALL) if widths else {}
    counts = {name: _parameters(base, given, name) for name, given in {"": {}, **changes}.items()}
    for name in changes:
        if name in taken:
            raise base.source.error(f"widths.{name}", "is what the study calls something else; choose another name")
        if counts[name] >= counts[""] or [*counts.values()].count(counts[name]) > 1:
            hint = f"expected fewer than the {counts['']:,} of the base run, and another number for each"
            raise base.source.error(f"widths.{name}", f"has {counts[name]:,} parameters; {hint}")
    return changes, counts


def _parameters(base: Base, changes: Mapping[str, Any], name: str) -> int:
    recipe = base.recipe_of(Train(name="probe", changes=changes, key=f"widths.{name}" if name else ""))
    return sum(parameter.numel() for parameter in recipe.model.build().parameters())


def training_data(base: Base) -> dict[str, Any]:
    """The base run's, as a config has it."""
    return entries_of(base.source, "train_data", base.recipe.config["train_data"])


def check_data(base: Base, rounds: Rounds, noise: Collection[float], improved: float | None) -> None:
    """Builds the data, and finds how many examples are left without those that improve most."""
    spec: Any = base.training_data(Train(name="probe"))
    if getattr(getattr(spec, "facts", None), "changed", ()):
        raise base.source.error("train_data", "holds wrong labels already; expected the right ones, and noise")
    least = min((share for share in noise if share), default=0.0)
    if improved is not None:
        size = len(spec.dataloader.dataset)
        rounds.left = size - round(improved * size)
        if rounds.left == size:
            raise base.source.error("improved", f"{improved} given, which leaves out none of {size} examples")
        base.training_data(rounds.without("random", least, rounds.seeds[0], 0))
    elif least:
        base.training_data(rounds.of(DENSE, least, rounds.seeds[0], 0))
