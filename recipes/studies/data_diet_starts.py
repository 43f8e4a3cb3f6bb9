"""On what the networks of `data_diet` are pre-trained, and what is checked of it and of the ladders beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, show
from ..config.recipe import Recipe
from ..run.results import percent
from .core import Base, Train, named
from .lengths import duration
from .pruning_checks import check_weights
from .tickets import Ladder, checked_ladder


@dataclass(frozen=True, kw_only=True)
class Diet:
    """The data of a pre-training, by default all training data of the base run.

    Args:
        count: how many examples of them.
        keep: the `easiest` or the `hardest` by their scores, or as many at `random`, drawn by the run's seed.
        offset: how many of these are left out first.
        balanced: whether there are as many of each class, but for one.
        wrong_labels: the share of these examples that get wrong labels, chosen at random: with 1 - 1/C of C classes
            labels say nothing of the images.
    """

    count: int | None = None
    keep: Literal["easiest", "hardest", "random"] = "random"
    offset: int = 0
    balanced: bool = False
    wrong_labels: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.count is None and not self.wrong_labels

    @property
    def is_scored(self) -> bool:
        return self.keep != "random"

    def of(self, data: Mapping[str, Any], seed: int, scores: Sequence[str]) -> dict[str, Any]:
        """The section `train_data` of its run; `scores` are files, one of each replicate."""
        found = dict(data)
        if self.count is not None:
            own = {"count": self.count, "keep": self.keep, "offset": self.offset, "balanced": self.balanced}
            found = {"subset": {"of": found, **own, **({"scores": [*scores]} if self.is_scored else {"seed": seed})}}
        if self.wrong_labels:
            found = {"noisy_labels": {"of": found, "fraction": self.wrong_labels, "seed": seed}}
        return found


def origins_of(start: str) -> dict[str, str]:
    """Where in the study's block the data of its pre-training come from."""
    key = f"starts.{start}"
    of_noise = {"train_data.noisy_labels.of.subset": key, "train_data.noisy_labels.fraction": f"{key}.wrong_labels"}
    return {**of_noise, "train_data.subset": key, "train_data": key}


def checked_starts(base: Base, starts: Mapping[str, Any], taken: Collection[str]) -> dict[str, Diet]:
    """The starts by name, none of which may be `taken`.

    Each subset is built once, as if it were drawn at random: that there are too few data must not come up after hours.
    """
    source, given_data, found = base.source, base.recipe.config["train_data"], dict[str, Diet]()
    for name, given in named(source, "starts", starts).items():
        key = f"starts.{name}"
        if name in taken:
            raise source.error(key, "is what the study calls something else; choose another name")
        with source.blame(key, *REFUSALS):
            found[name] = diet = Diet(**check_arguments(Diet, given))
        if diet.count is None and (beside := sorted({*given} - {"wrong_labels", "count"})):
            raise source.error(f"{key}.count", f"missing; expected it beside {', '.join(beside)}")
        if not 0 <= diet.wrong_labels < 1:
            hint = "expected a share from 0 and below 1"
            raise source.error(f"{key}.wrong_labels", f"{diet.wrong_labels} given; {hint}")
        data = replace(diet, keep="random").of(given_data, 0, [])
        base.training_data(Train(name="probe", sets={"train_data": data}, made_from=origins_of(name)))
    if sum(diet.is_whole for diet in found.values()) != 1:
        raise source.error("starts", "expected one that changes nothing, such as all: {}, and no second one")
    return found


def checked_ladders(base: Base, given: Mapping[str, Any], steps: Sequence[str], density: float) -> dict[str, Ladder]:
    """The ladders by the step from which they begin; an error where none of their levels has that density."""
    source = base.source
    for name in ("rewind_to", "rewind"):
        if name in given:
            raise source.error(f"ladder.{name}", "every ladder is rewound to the weights of its step; leave it out")
    found = {step: checked_ladder(base, step, {"ladder": {**given, "rewind_to": step}}) for step in steps}
    first = found[steps[0]]
    check_weights(base, {"ladder": first.arguments})
    if percent(density) not in map(percent, first.densities[1:]):
        reached = ", ".join(f"{share:.3g}" for share in first.densities[1:])
        raise source.error("density", f"{show(density)} given; expected that of one of the ladder's levels, {reached}")
    return found


def check_counted_in_batches(recipe: Recipe) -> None:
    """Raises an error where the base run's length or its schedule is in epochs, which are shorter of fewer data."""
    from composer.core import TimeUnit

    hint = "expected it in ba, as an epoch of a small part of the data is a short one"
    if duration(recipe).unit != TimeUnit.BATCH:
        raise recipe.source.error("max_duration", f"{show(recipe.config['max_duration'])} given; {hint}")
    if (scheduler := recipe.scheduler) is None:
        return
    for name, value in scheduler.arguments.items():
        if any(isinstance(one, str) and one.endswith("ep") for one in (value if isinstance(value, list) else [value])):
            raise recipe.source.error(f"{scheduler.key}.{name}", f"{show(value)} given; {hint}")
