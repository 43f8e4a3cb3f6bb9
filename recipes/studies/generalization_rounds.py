"""The trainings of `generalization`: rounds that begin where others end, masks trained once, fewer examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .core import Base, Train
from .density import DENSE
from .generalization_cells import LEFT_OUT, NARROWER, ONCE
from .pruning_checks import WHICH, named_by_masks, origins
from .twins import NOISE

if TYPE_CHECKING:
    from ..run.results import Result

MEASURE = "accelerando.recipes.studies.generalization_measures:RoundOfLadder"
ROUND = "round"  # what a ladder's round leaves in its results
FOLDER, MASKS, IMPROVEMENT = "round", "masks.safetensors", "improvement.safetensors"  # and in its folder


@dataclass(kw_only=True)
class Rounds:
    """What all trainings have in common.

    Attributes:
        base: the base run.
        ladders: arguments of PruneAtInit by criterion, of which the first is the one whose masks are trained once.
        given: by criterion, what the study's block has there.
        widths: what the narrower networks change in the base run, by name.
        data: the base run's training data.
        densities: by level, from 0.
        score_at: the moment of the dense network's EL2N.
        seeds: of all trainings, over which improvements are averaged.
        improved: the share of the examples that is left out, and `left`, how many then are left.
    """

    base: Base
    ladders: Mapping[str, dict[str, Any]]
    given: Mapping[str, Any]
    widths: Mapping[str, dict[str, Any]]
    data: Mapping[str, Any]
    densities: Sequence[float]
    score_at: str
    seeds: Sequence[int]
    improved: float
    left: int = 0
    checked: set[str] = field(default_factory=set)  # files of masks

    @property
    def first(self) -> str:
        """The first ladder."""
        return next(iter(self.ladders))

    def of(self, arm: str, noise: float, seed: int, level: int) -> Train:
        """A round of a chain, which begins at the dense network's end, or, of another width, at initial weights."""
        base, dense = self.base, name_of(DENSE, noise, seed, 0)
        algorithms: dict[str, Any] = {"example_scores": {"at": ["1dur"], "scores": ["loss", "error"]}}
        sets: dict[str, Any] = {"seed": seed, "algorithms": algorithms}
        made_from, before = {"train_data.noisy_labels.fraction": "noise"}, ""
        if noise:  # these labels are the same for all seeds
            sets["train_data"] = {"noisy_labels": {"of": self.data, "fraction": noise}}
        if level:
            before = name_of(arm, noise, seed, level - 1) if level > 1 or arm in self.widths else dense
            sets |= {"start": {"run": f"{base.name}/{before}"}, "data_seed": (seed + NOISE * level) % 2**32}
        if arm == DENSE:
            algorithms["example_scores"] = {"at": [self.score_at, "1dur"], "scores": ["el2n", "loss", "error"]}
            made_from["algorithms.example_scores"] = "score_at"
        if arm in self.ladders:
            algorithms["prune_at_init"] = {**self.ladders[arm], "density": self.densities[level]}
            algorithms[MEASURE] = {"twins": [f"{base.name}/{dense}/scores"]}
            made_from |= origins("prune_at_init", {f"criteria.{arm}": self.given[arm] or {}})
        is_narrower = arm in self.widths
        return Train(
            name=name_of(arm, noise, seed, level),
            changes=self.widths.get(arm, {}),
            key=f"widths.{arm}" if is_narrower else "",
            sets=sets,
            made_from=made_from,
            after=tuple(dict.fromkeys([before, *([dense] if arm in self.ladders else [])])) if before else (),
            tags={
                "noise": noise,
                "arm": NARROWER if is_narrower else arm,
                **({"width": arm} if is_narrower else {}),
                "seed": seed,
                "level": level,
            },
        )

    def once(self, noise: float, seed: int, level: int, done: Mapping[str, Result]) -> Train:
        """The first ladder's masks on the initial weights; its changes are None until that round is done."""
        node, ladder = self.of(ONCE, noise, seed, 0), name_of(self.first, noise, seed, level)
        name, tail, file, problem = f"{ONCE}-round{level}", name_of("", noise, seed), f"{ladder}/{FOLDER}/{MASKS}", ""
        if found := done.get(ladder):
            name, problem = named_by_masks(self.base, file, found.found[ROUND]["digest"], name, tail, self.checked)
        which = {key: value for key, value in self.ladders[self.first].items() if key in WHICH}
        pruned = {"prune_at_init": {**which, "ticket": f"{self.base.name}/{file}"}}
        return replace(
            node,
            name=f"{name}{tail}",
            changes={} if found else None,
            sets={**node.sets, "algorithms": {**node.sets["algorithms"], **pruned}},
            made_from={**node.made_from, "algorithms.prune_at_init": f"criteria.{self.first}"},
            after=(ladder,),
            tags={**node.tags, "level": level},
            problem=problem,
        )

    def without(self, kind: str, noise: float, seed: int, level: int | None, after: tuple[str, ...] = ()) -> Train:
        """A dense training without those examples that have improved most at a level, or without others at random.

        Its name tells which, as another level, or other seeds, make another run. Its changes are None until the level
        is known.
        """
        node, tail, problem = self.of(DENSE, noise, seed, 0), name_of("", noise, seed), ""
        name = f"{LEFT_OUT[kind].replace(' ', '-')}-{self.improved:g}"
        own: dict[str, Any] = {"keep": "random", "seed": seed}
        if kind == "improved" and level is not None:
            rounds = [name_of(self.first, noise, one, level) for one in self.seeds]
            files = [f"{ladder}/{FOLDER}/{IMPROVEMENT}" for ladder in rounds]
            own = {"keep": "easiest", "scores": [f"{self.base.name}/{file}" for file in files]}
            name += f"-round{level}-{hashlib.sha256(json.dumps(rounds).encode()).hexdigest()[:6]}"
            finished = (self.base.folder / f"{name}{tail}" / "results.json").is_file()
            missing = [] if finished else [one for one in map(self.base.folder.joinpath, files) if not one.is_file()]
            problem = f"{missing[0]} is missing; delete {missing[0].parent.parent} to train it again" if missing else ""
        subset = {"of": node.sets.get("train_data", self.data), "count": self.left, **own}
        return replace(
            node,
            name=f"{name}{tail}",
            changes=None if level is None else {},
            sets={"seed": seed, "train_data": {"subset": subset}},
            made_from={
                **node.made_from,
                **{f"train_data.subset.{key}": "improved" for key in ("count", "scores")},
                "train_data.subset.of.noisy_labels.fraction": "noise",
            },
            after=after,
            tags={**node.tags, "arm": LEFT_OUT[kind], "level": level or 0},
            problem=problem,
        )


def name_of(arm: str, noise: float, seed: int, level: int | None = None) -> str:
    """That of a training; without an arm its end."""
    place = arm if level is None or arm == DENSE else f"{arm}-round{level}"
    return f"{place}-noise{noise:g}-seed{seed}"
