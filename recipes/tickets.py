"""Lottery tickets: how sparse a subnetwork still matches the dense network, found by iterative magnitude pruning.

    composer [-n N] recipes/tickets.py FILE.yaml key=value ...

The file is that of recipes/train.py, which describes the dense training of length T, and

    ladders: {NAME: {...}, ...}    arguments of LotteryTicket, such as {levels: 12, fraction: 0.2}; false: none
    ticket: {...}                  those that all ladders share, such as {rewind_to: 1ep}
    controls: [random, ...]        what the first ladder's subnetworks are compared with: random, reinitialize, shuffle
    control_levels: [3, 6]         at which of its levels; by default at all of them
    seeds: [17, 18]                everything is trained with each
    tolerance: 0.002               a subnetwork matches whose mean is so much worse than the dense network's at most, in
                                   the metric's own units; null: by one standard deviation over the seeds
    metric: NAME                   by default the first accuracy there is; of errors and losses, less is better

A ladder is one run of T + levels (T - k), where k is its `rewind_to`; what it finds at level 0 is the dense network. A
control is a run of length T, dense up to k, that from there has as many weights as the ladder's level: drawn at random
(`random`), or in each layer as many as the ticket has, in random places (`shuffle`); or the ticket's own weights, in a
network with other initial weights (`reinitialize`), which is a run with another seed.

The study's folder, ``{folder}/{run_name}``, then holds `tickets.csv` with every point, `density.csv` with the means,
`tickets.png`, and every run's folder, a ladder's with the masks in `tickets`. The same command goes on after a kill,
and trains only what is new after a change of seeds or controls, or for more levels. An error in any of it is one line
and exit code 2, before anything is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.errors import REFUSALS, ConfigError, Source
from accelerando.recipes.config.recipe import Recipe
from accelerando.recipes.pruning_plan import (
    DEFAULTS,
    KEYS,
    WHICH,
    Base,
    Runs,
    arguments_of,
    check_base,
    check_rewind,
    check_weights,
    chosen_by,
    is_done,
    origins,
    points_of,
    refuse_twice,
    report,
)
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.folder import held
from accelerando.recipes.run.teachers import untouched_generators
from accelerando.recipes.run.training import join_ranks
from accelerando.recipes.variants import own_keys

if TYPE_CHECKING:
    from accelerando.recipes.density_curves import Point
    from accelerando.recipes.run.results import Result

OWN_KEYS = {"ladders": dict, "ticket": dict, "controls": list, "control_levels": list | None, **KEYS}
OWN_DEFAULTS = {"ticket": {}, "controls": [], "control_levels": None, **DEFAULTS}
CONTROLS = ("random", "reinitialize", "shuffle")
OTHER_SEED = 1_000_000  # from a run's own to that of other initial weights


@dataclass(frozen=True)
class Ladder:
    """The arguments of a LotteryTicket, and the share of T at which its step k lies."""

    name: str
    arguments: dict[str, Any]
    made_from: dict[str, str]
    densities: list[float]
    rewind: float

    @property
    def levels(self) -> int:
        return len(self.densities) - 1

    @property
    def trainings(self) -> float:
        """Its length, in T."""
        return 1 + self.levels * (1 - self.rewind)


@dataclass(frozen=True)
class Study:
    """A checked study. Its controls are known once the first ladder is trained, and with it the masks."""

    base: Base
    ladders: list[Ladder]
    controls: list[str]
    control_levels: list[int]

    def ladder(self, ladder: Ladder, seed: int) -> Recipe:
        return self.base.run(ladder.name, seed, {"lottery_ticket": ladder.arguments}, ladder.made_from)

    def control(self, control: str, level: int, seed: int, digest: str = "") -> Recipe:
        """Of the first ladder's level, whose masks have that digest; another ticket makes another run."""
        first = self.ladders[0]
        shared = {name: first.arguments[name] for name in WHICH if name in first.arguments}
        arguments = {**shared, "at": first.arguments.get("rewind_to", "0ba")}
        name = f"{control}-{first.name}-level{level}"
        if control == "random":
            arguments |= {"criterion": "random", "density": first.densities[level]}
        else:
            name = f"{name}-{digest[:6]}"
            arguments["ticket"] = str(self._masks(level, seed))
        if control == "shuffle":
            arguments["shuffle"] = True
        other = OTHER_SEED if control == "reinitialize" else 0
        made_from = {"algorithms.prune_at_init": f"ladders.{first.name}"}
        return self.base.run(name, seed, {"prune_at_init": arguments}, made_from, other)

    def _masks(self, level: int, seed: int) -> Path:
        """The file, in the folder of all runs."""
        return Path(self.base.name(self.ladders[0].name, seed), "tickets", f"level-{level}.safetensors")

    def trained_controls(self, seed: int, ladder: Result) -> Iterator[tuple[str, int, Recipe]]:
        """By level, those of what the first ladder has found; ConfigError if its masks are not in its folder."""
        digests = [level["digest"] for level in ladder.levels or []]
        for level in self.control_levels:
            if level >= len(digests):
                place = f"{self.ladders[0].name}, seed {seed}"
                print(f"{place}: stopped before level {level}, without which it has no controls", flush=True)
                continue
            for control in self.controls:
                recipe = self.control(control, level, seed, digests[level])
                if control != "random" and not is_done(recipe):
                    _check_masks(Path(recipe.config["folder"]) / self._masks(level, seed), digests[level])
                yield control, level, recipe


def tickets(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Point]:
    """Trains what the config describes and its folder does not hold yet, and reports; returns all points."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]
    join_ranks(study.base.recipe)
    with held(study.base.folder, study.base.source):
        return _do(study)


def _do(study: Study) -> list[Point]:
    base, controls = study.base, len(study.controls) * len(study.control_levels)
    trainings = sum(ladder.trainings for ladder in study.ladders) + controls
    runs = Runs(base, len(base.seeds) * (len(study.ladders) + controls), len(base.seeds) * trainings)
    points: list[Point] = []
    for seed in base.seeds:
        found: list[Result] = []
        for ladder in study.ladders:
            place = f"{ladder.name}, seed {seed}"
            found.append(runs.do(study.ladder(ladder, seed), place, ladder.trainings, ladder.levels))
            own = points_of(ladder.name, seed, 0, found[-1], base.metric)
            points += own if len(found) == 1 else own[1:]  # the dense network is the same in all
        for control, level, recipe in study.trained_controls(seed, found[0]):
            result = runs.do(recipe, f"{control}, seed {seed}, level {level}")
            points += points_of(control, seed, level, result, base.metric)
    runs.progress.finish()
    report(base, points, "tickets")
    return points


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every run; of a control the masks are not known yet."""
    own = own_keys(config, source, OWN_KEYS, OWN_DEFAULTS, named="ladders")
    base = check_base(config, source, own, OWN_KEYS)
    ladders = [_ladder(base, name, given, own["ticket"]) for name, given in own["ladders"].items()]
    controls, levels = own["controls"], own["control_levels"]
    known = f"of {', '.join(CONTROLS)}"
    refuse_twice(controls, source, "controls", set(map(str, controls)) <= {*CONTROLS}, known)
    if controls and ladders[0].arguments.get("rewind", "weights") != "weights":
        hint = f"what they are compared with begins at step k, but {ladders[0].name} does not rewind weights"
        raise source.error("controls", f"{hint}; let the first ladder do that, or leave them out")
    if levels is not None:
        most = ladders[0].levels
        fits = bool(levels) and all(type(level) is int and 1 <= level <= most for level in levels)
        refuse_twice(levels, source, "control_levels", fits, f"from 1 to {most}, the levels of {ladders[0].name}")
    check_weights(base, {f"ladders.{ladder.name}": ladder.arguments for ladder in ladders})
    if "reinitialize" in controls:
        _check_seeds_matter(base, ladders[0].arguments)
    levels = sorted(levels) if levels is not None else list(range(1, ladders[0].levels + 1))
    study = Study(base, ladders, controls, levels)
    for seed in base.seeds:
        for ladder in ladders:
            study.ladder(ladder, seed)
        for control in controls:
            study.control(control, levels[0], seed)
    return study


def _ladder(base: Base, name: str, given: Mapping[str, Any], shared: Mapping[str, Any]) -> Ladder:
    from accelerando.algorithms import LotteryTicket
    from accelerando.algorithms.pruning import level_densities

    source, key = base.source, f"ladders.{name}"
    if name in (*CONTROLS, "dense"):
        raise source.error(key, "is what the study calls something else; choose another name")
    places = {"ticket": shared, key: given}
    arguments = arguments_of(LotteryTicket, source, places, {}, taken=("save_folder",))
    levels, fraction = arguments["levels"], arguments.get("fraction", 0.2)
    densities = level_densities(levels, fraction, arguments.get("schedule", "geometric"))
    rewind = check_rewind(source, key, arguments, base.recipe)
    return Ladder(name, arguments, origins("lottery_ticket", places), densities, rewind)


def _check_seeds_matter(base: Base, arguments: Mapping[str, Any]) -> None:
    """As they do not for pre-trained weights, of which another seed makes the same run once more."""
    import torch

    from accelerando.algorithms.pruning import prunable_weights

    drawn = []
    with untouched_generators():
        for seed in (0, 1):
            torch.manual_seed(seed)
            drawn.append(prunable_weights(base.recipe.model.build(), **chosen_by(arguments)))
    if same := [name for name, weight in drawn[0].items() if torch.equal(weight, drawn[1][name])]:
        hint = "are the same whatever the seed, as pre-trained ones are; leave it out"
        raise base.source.error("controls", f"reinitialize draws other weights, but those of {same[0]} {hint}")


def _check_masks(file: Path, wanted: str) -> None:
    from accelerando.algorithms.checkpoints import read_weights
    from accelerando.algorithms.pruning.files import SUFFIX
    from accelerando.algorithms.pruning.masks import digest

    ladder = file.parent.parent
    try:
        masks = {name.removesuffix(SUFFIX): mask for name, mask in read_weights(file).items()}
        wrong = "" if digest(masks) == wanted else "holds other masks than the ladder has found"
    except REFUSALS as error:
        wrong = f"cannot be read; {error}"
    if wrong:
        raise ConfigError(str(file), "", f"{wrong}; delete {ladder} to train it again")


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, tickets)


if __name__ == "__main__":
    main(sys.argv[1:])
