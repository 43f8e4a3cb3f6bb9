"""Copies of one network, dense or pruned, that differ in their noise alone, and the paths from each to those before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .core import Base, Train
from .pruning import PruningStudy
from .pruning_checks import WHICH, ticket_of
from .stability_cells import BARRIER, PAIR, Cell, cells_of, metrics_of_path
from .table import Row
from .tickets import Ladder

if TYPE_CHECKING:
    from ..run.results import Result

PATHS = "accelerando.recipes.studies.stability_paths:PathsToTwins"
MEASURED = "twins"  # in a run's results
NOISE = 1_000_003  # from a run's seed of the data to those of its copies


class StudyOfTwins(PruningStudy):
    """The base of a study that measures the paths between copies."""

    def words(self, base: Base, node: Train, result: Result) -> str:
        """The metric at the end, and the barriers to the copies before."""
        found = [metrics_of_path(path) for path in result.found.get(MEASURED, [])]
        barriers = ", ".join(f"{metrics[f'{BARRIER}/test/error/interpolate']:.2f}" for metrics in found)
        told = super().words(base, node, result)
        return f"{told}, barrier in test error {barriers} points" if barriers else told

    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """What was measured of each network, by seed."""
        return cells_of(rows, self.metric or "", self.tolerance)


def is_reached(arm: str, level: int, found: Result | None) -> bool:
    """Whether the ladder did not end before the level whose masks the arm needs; what needs others is left out."""
    return arm == "random" or found is None or level < len(found.found["levels"])


def pruned(
    base: Base, node: Train, ladder: Ladder, level: int, at: str, found: Result | None, checked: set[str]
) -> Train:
    """The training, but pruned at its beginning, moment `at`: at random, or by the masks that a ladder has found.

    Its changes are None until that ladder is done. Its name, which is less the seed, tells its masks.
    """
    arm, seed, run = node.tags["arm"], node.tags["seed"], f"{ladder.name}-seed{node.tags['seed']}"
    arguments = {name: ladder.arguments[name] for name in WHICH if name in ladder.arguments} | {"at": at}
    name, problem, at_random = node.name, "", arm == "random"
    if at_random:
        arguments |= {"criterion": "random", "density": ladder.densities[level]}
    elif found is not None:
        name, file, problem = ticket_of(base, run, found, level, name, seed, checked)
        arguments |= {"ticket": f"{base.name}/{file}"} | ({"shuffle": True} if arm == "shuffle" else {})
    return replace(
        node,
        name=name,
        changes={} if at_random or found is not None else None,
        sets={**node.sets, "algorithms": {"prune_at_init": arguments}},
        made_from={**node.made_from, "algorithms.prune_at_init": "ladder"},
        after=node.after if at_random else (*node.after, run),
        tags={**node.tags, "level": level},
        problem=problem,
    )


def twins(node: Train, name: str, copies: int, folder: str, points: int, most_examples: int | None) -> Iterator[Train]:
    """The copies; each but the first measures the paths from those before to its own end.

    `folder` is the study's, in which the copies are called by `name`, number and seed.
    """
    seed = node.tags["seed"]
    names = [f"{name}-copy{copy}-seed{seed}" for copy in range(copies)]
    for copy, own in enumerate(names):
        algorithms: dict[str, Any] = {**node.sets.get("algorithms", {}), "snapshots": {"at": ["1dur"], "full": False}}
        if copy:
            most = {} if most_examples is None else {"most_examples": most_examples}
            before = [f"{folder}/{twin}/snapshots" for twin in names[:copy]]
            algorithms[PATHS] = {"twins": before, "points": points, **most}
        yield replace(
            node,
            name=own,
            sets={**node.sets, "data_seed": (seed + NOISE * (copy + 1)) % 2**32, "algorithms": algorithms},
            made_from={
                **node.made_from,
                f"algorithms.{PATHS}.points": "points",
                f"algorithms.{PATHS}.most_examples": "path_examples",
            },
            after=(*node.after, *names[:copy]),
            tags={**node.tags, "copy": copy},
        )


def pairs_of(row: Row, result: Result) -> Iterator[Row]:
    """Of a copy's own row and its result one for each path, which cost nothing in training."""
    tags = {name: value for name, value in row.tags.items() if name != "copy"} | {"role": PAIR}
    for twin, path in enumerate(result.found.get(MEASURED, [])):
        pair = tags | {"copies": f"{twin} and {row['copy']}"}
        yield Row(node=row.node, tags=pair, batches=0, samples=0, seconds=0.0, metrics=metrics_of_path(path))
