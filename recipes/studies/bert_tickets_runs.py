"""The trainings of the study `bert_tickets`: the pretraining, ladders, controls, and masks of one task on another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config.recipe import Recipe
from .bert_tickets_cells import FROM, LATER, ONE_SHOT, RANDOM, SCRATCH, TICKETS
from .bert_tickets_masks import TRANSFERRED
from .core import Base, Train
from .density import DENSE
from .lengths import duration, relative_length
from .pruning_checks import ticket_of
from .tickets import Ladder

if TYPE_CHECKING:
    from ..run.results import Result

CRITERIA = {ONE_SHOT: "magnitude", RANDOM: "random"}
PRETRAINING = "pretraining"


@dataclass(kw_only=True)
class Runs:
    """What all trainings are made of; `recipes`, `which`, `ladder` and `later` are found by the study's checks.

    Attributes:
        base: the base run.
        tasks, together, pretraining, scratch, seeds, controls, control_levels, transfer_level: see `BertTickets`; of
            `together` the tasks and what the ladder of that name changes.
        recipes: the checked recipe of each task, and of each ladder of several, as it is without theta_0.
        which: by the same names, arguments of LotteryTicket that say which weights are pruned.
        ladder, later: those of theta_0 and of a later step.
    """

    base: Base
    tasks: Mapping[str, Any]
    pretraining: Mapping[str, Any] | None
    scratch: Mapping[str, Any]
    seeds: Sequence[int]
    controls: Sequence[str]
    control_levels: Sequence[int]
    transfer_level: int | None
    together: Mapping[str, tuple[list[str], dict[str, Any]]] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    which: dict[str, dict[str, Any]] = field(default_factory=dict)
    ladder: Ladder | None = None
    later: Ladder | None = None
    checked: set[str] = field(default_factory=set)  # files of masks

    def all(self, done: Mapping[str, Result]) -> Iterator[Train]:
        """In the order in which they begin."""
        if self.pretraining is not None:
            yield self.pretrains()
        for seed in self.seeds:
            for name in self.recipes:
                yield self._climbs(name, seed, done)
            for task in self.tasks:
                yield from self._on_task(task, seed, done)

    def density(self, level: int) -> float:
        """That of the ladder at that level."""
        assert self.ladder
        return self.ladder.densities[level]

    def _on_task(self, task: str, seed: int, done: Mapping[str, Result]) -> Iterator[Train]:
        """All trainings of the task but its first ladder."""
        yield self._sized(self.from_scratch(task, seed))
        if self.later:
            yield self._climbs(task, seed, done, LATER)
        for level in sorted(self.control_levels):
            for control in self.controls:
                pruning = {"criterion": CRITERIA[control], "density": self.density(level)}
                name = f"{task}-{control}-level{level}"
                tags = {"arm": control, "level": level}
                yield self._pruned(task, seed, done, name, {"prune_at_init": pruning}, tags)
        for other in self.recipes if self.transfer_level else ():
            if other != task:
                yield self._transfers(other, task, seed, done)

    def _transfers(self, other: str, task: str, seed: int, done: Mapping[str, Result]) -> Train:
        """The masks that were found on the other task, or on several at once; by which it is called."""
        level, ladder = self.transfer_level or 0, f"{other}-{TICKETS}-seed{seed}"
        name, problem = f"{task}-from-{other}-level{level}", ""
        pruning: dict[str, Any] = {"density": self.density(level)}
        if (found := done.get(ladder)) and level < len(found.found["levels"]):
            name, file, problem = ticket_of(self.base, ladder, found, level, name, seed, self.checked)
            pruning["ticket"] = f"{self.base.name}/{file}"
        elif found:
            problem = f"{ladder} ended before level {level}: it has no masks for it"
        tags = {"arm": f"{FROM}{other}", "level": level}
        node = self._pruned(task, seed, done, name, {TRANSFERRED: pruning}, tags)
        node = replace(node, after=(*node.after, ladder), problem=problem)
        return node if found else replace(node, changes=None)

    def bare(self, name: str, seed: int) -> Train:
        """The training of a task, or of several at once, from random weights unless the base run says otherwise."""
        tags = {"task": name, "arm": DENSE, "seed": seed, "level": 0}
        if name in self.tasks:
            changes, key = self.tasks[name], f"tasks.{name}"
            return Train(name=name, changes=changes, key=key, sets={"seed": seed}, tags=tags)
        tasks, changes = self.together[name]
        each = {task: self.recipes[task].config for task in tasks}
        sets = {
            "seed": seed,
            "model": {"several_tasks": {"models": {task: config["model"] for task, config in each.items()}}},
            "validation_data": None,
        }
        for key in ("train_data", "eval_data"):
            sets[key] = {"several": {"sources": {task: config[key] for task, config in each.items()}}}
        made_from: dict[str, str] = {key: f"together.{name}.tasks" for key in ("model", "train_data", "eval_data")}
        return Train(name=name, changes=changes, key=f"together.{name}", sets=sets, made_from=made_from, tags=tags)

    def from_scratch(self, task: str, seed: int) -> Train:
        """The task from random weights."""
        node, model = self.bare(task, seed), self.recipes[task].model
        told = model.arguments.get("pretrained") and "random_weights" in inspect.signature(model.target).parameters
        models = self.scratch.get("model") or {self._model(task): {"random_weights": True} if told else {}}
        given = {**self.scratch, "model": {name: _random(arguments or {}) for name, arguments in models.items()}}
        sets, made_from = {**node.sets, **given}, {key: f"scratch.{key}" for key in given}
        name = f"{task}-{SCRATCH}-seed{seed}"
        return replace(node, name=name, sets=sets, made_from=made_from, tags={**node.tags, "arm": SCRATCH})

    def _model(self, task: str) -> str:
        return self.recipes[task].model.key.partition(".")[2]

    def pretrains(self) -> Train:
        sets, tags = {"seed": self.seeds[0]}, {"task": PRETRAINING, "arm": PRETRAINING, "seed": self.seeds[0]}
        return Train(name=PRETRAINING, changes=self.pretraining, key=PRETRAINING, sets=sets, tags=tags)

    def _from_theta(self, name: str, seed: int, done: Mapping[str, Result]) -> Train:
        """The training from theta_0, which is not known before the pretraining has ended."""
        node = self._sized(self.bare(name, seed))
        if self.pretraining is None:
            return node
        start: dict[str, Any] = {"pretrained": str(self.base.folder / PRETRAINING)}
        if name in self.tasks:
            model: dict[str, Any] = {self._model(name): start}
        else:
            parts = {task: {self._model(task): start} for task in self.together[name][0]}
            given = node.sets["model"]["several_tasks"]["models"]
            each = {task: {key: {**given[task][key], **start} for key in part} for task, part in parts.items()}
            model = {"several_tasks": {"models": each}}
        changes = node.changes if PRETRAINING in done else None
        return replace(node, changes=changes, sets={**node.sets, "model": model}, after=(PRETRAINING,))

    def _climbs(self, name: str, seed: int, done: Mapping[str, Result], arm: str = TICKETS) -> Train:
        """A ladder from theta_0."""
        ladder = self.later if arm == LATER else self.ladder
        assert ladder
        node, own = self._from_theta(name, seed, done), ladder.node(seed)
        ((algorithm, arguments),) = own.sets["algorithms"].items()
        return replace(
            node,
            name=f"{name}-{arm}-seed{seed}",
            sets={**node.sets, "algorithms": {algorithm: {**arguments, **self.which[name]}}},
            made_from={**node.made_from, **own.made_from},
            cost=node.cost * own.cost,
            tags={**node.tags, "arm": arm},
        )

    def _pruned(self, task: str, seed: int, done: Mapping[str, Result], name: str, pruning: Any, tags: Any) -> Train:
        """A training from theta_0 of what is pruned before."""
        node, ((algorithm, arguments),) = self._from_theta(task, seed, done), pruning.items()
        return replace(
            node,
            name=f"{name}-seed{seed}",
            sets={**node.sets, "algorithms": {algorithm: {**self.which[task], **arguments}}},
            made_from={**node.made_from, f"algorithms.{algorithm}": "ladder"},
            tags={**node.tags, **tags},
        )

    def _sized(self, node: Train) -> Train:
        """With its length in trainings of the base run, if both have the same unit."""
        own, whole = duration(self.recipes[node.tags["task"]]), duration(self.base.recipe)
        return replace(node, cost=relative_length(own, whole))


def _random(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of a model, with which it has random weights."""
    return arguments if arguments.get("random_weights") else {"pretrained": None, **arguments}
