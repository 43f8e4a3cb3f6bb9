"""Tickets that are found on distilled data: what they are worth on the real ones, how stable they are, at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..config.keys import Holds
from ..run.results import aligned, percent
from .claims import Claim
from .core import FIXED, Base, Changes, Train, row_of
from .distilled_tickets_claims import claims_of_the_set
from .landscape import LADDER, Landscape
from .stability_cells import TICKETS
from .table import Row, groups

if TYPE_CHECKING:
    from accelerando.algorithms.examples.distillation import DistilledSet

    from ..run.results import Result

DISTILLING, DATA = "distilling", "distilled data"
ON_SET, ON_FEW = f"{TICKETS} on {DATA}", f"{TICKETS} on as few real images"
KEEPER = "accelerando.recipes.run.distilled_set:KeepsDistilledSet"
FILES = {ON_SET: "distilled/images.safetensors", ON_FEW: "distilled/begin.safetensors"}  # of a run that distils


@dataclass(kw_only=True)
class DistilledTickets(Landscape):
    """The base run is the dense training on real data. These are distilled, for each seed to a small set of its own.

    A ladder finds tickets on that set alone. They are trained on the real data from all initial weights and buffers, as
    those of a ladder on the real data are, and the dense network. All else, such as tickets on other data, controls,
    and what is measured, is that of the study `landscape`.

    Args:
        distilling: what the run that distils changes of the base run, such as {model: {dataset_distiller: {...}},
            optimizer: {sgd: {lr: 1.0, momentum: 0.5}}, scheduler: null, max_duration: 1000ba}; null with `data.file`.
        begin: whether a set begins with `real` images or with `noise`.
        few_real: whether another ladder finds tickets in the same way on the real images with which a set begins, which
            tells what distilling them is worth.
        data: arguments of the data source `distilled`.
        finding: what the ladder on the set changes of the base run besides its data, such as {max_duration: 300ep,
            algorithms: {cut_mix: {}}}.
    """

    about: ClassVar[str] = (
        "The training data are distilled to a small set, on which alone a ladder finds tickets; these are then trained "
        f"on the real data, as all networks here are (arXiv 2310.18769). {Landscape.about}"
    )
    distilling: Changes | None = None
    begin: Literal["real", "noise"] = "real"
    few_real: bool = False
    data: Annotated[dict[str, Any], Holds("data.distilled")] = field(default_factory=dict)
    finding: Changes = field(default_factory=dict)

    def prepare(self, base: Base) -> None:
        super().prepare(base)
        source = base.source
        if not self._ladders:
            raise source.error("levels", f"{self.levels} given; expected one above 0, at which there are tickets")
        for name in (arm.removeprefix(f"{TICKETS} on ") for arm in FILES.keys() & self._ladders.keys()):
            raise source.error(f"tickets_on.{name}", "is what the study calls a set of its own; choose another name")
        if bool(self.distilling) == ("file" in self.data):
            given = "given beside data.file, which is a set already" if self.distilling else "missing"
            raise source.error("distilling", f"{given}; expected either distilling or data.file")
        if self.few_real and not (self.distilling and self.begin == "real"):
            raise source.error("few_real", "true given; expected distilling, which begins with real images")
        fixed = {"distilling": ("eval_data", "validation_data"), "finding": ("model", "train_data")}
        for key, names in fixed.items():
            for inner in {*FIXED, *names} & (getattr(self, key) or {}).keys():
                raise source.error(f"{key}.{inner}", "the study sets it for every run; leave it out")
        own = Train(name=f"{LADDER}-on-distilled", changes=self.finding, key="finding")
        if self.distilling:
            self._small = self._images_of_model(base)
            self._times = self.times_as_long(base, self._distills(base, self.seeds[0], 1.0))
            self.add_ladder(base, ON_SET, own, self._small)
            if self.few_real:
                self.add_ladder(base, ON_FEW, replace(own, name=f"{LADDER}-on-few"), self._small)
        else:
            own = self._on_set(own, self.data["file"])
            loader: Any = base.training_data(own).dataloader
            self._small = len(loader.dataset)
            self.add_ladder(base, ON_SET, own)
        _, self._real = self.data_of(base)

    def _images_of_model(self, base: Base) -> int:
        """How many there are to train on in a set."""
        from accelerando.algorithms.generators import untouched_generators

        from ..models.distilling import DatasetDistiller

        with untouched_generators():
            model = base.recipe_of(self._distills(base, self.seeds[0], 1.0)).model.build()
        if not isinstance(model, DatasetDistiller):
            raise base.source.error("distilling.model", f"makes a {type(model).__name__}; expected dataset_distiller")
        return model.small_images

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        if self.distilling:
            yield from (self._distills(base, seed, self._times) for seed in self.seeds)
        yield from super().nodes(base, done)

    def _distills(self, base: Base, seed: int, cost: float) -> Train:
        """Without the base run's algorithms, which concern its network."""
        given = self.distilling or {}
        off = dict.fromkeys((part.key.removeprefix("algorithms.") for part in base.recipe.algorithms), False)
        return Train(
            name=f"{DISTILLING}-seed{seed}",
            changes={**given, "algorithms": {**off, **(given.get("algorithms") or {})}},
            key="distilling",
            sets={
                "seed": seed,
                "eval_data": None,
                "validation_data": None,
                "eval_interval": 1,
                "eval_subset_num_batches": -1,
                "algorithms": {KEEPER: {"begin": self.begin}},
            },
            made_from={f"algorithms.{KEEPER}.begin": "begin"},
            cost=cost,
            tags={"role": DISTILLING, "arm": DATA, "seed": seed},
        )

    def ladder_of(self, base: Base, arm: str, seed: int, done: Mapping[str, Result]) -> Train:
        node = super().ladder_of(base, arm, seed, done)
        if arm not in FILES or not self.distilling:
            return node
        first = f"{DISTILLING}-seed{seed}"
        node = replace(self._on_set(node, f"{base.name}/{first}/{FILES[arm]}"), after=(first,))
        return node if first in done else replace(node, changes=None)

    def _on_set(self, node: Train, file: str) -> Train:
        sets = {**node.sets, "train_data": {"distilled": {**self.data, "file": file}}}
        return replace(node, sets=sets, made_from={**node.made_from, "train_data.distilled": "data"})

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        if node.tags["role"] != DISTILLING:
            yield from super().rows(base, node, result)
            return
        found = result.found["distilled"]
        metrics = {name: float(found[name]) for name in ("images", "small_images", "examples", "loss")}
        yield replace(row_of(node, result), metrics=metrics)

    def words(self, base: Base, node: Train, result: Result) -> str:
        if node.tags["role"] != DISTILLING:
            return super().words(base, node, result)
        found = result.found["distilled"]
        return f"{found['images']} images distilled from {found['examples']}, loss {found['loss']:.4f}"

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """Those of `landscape`, and `costs.csv`: what it took to find the tickets of each level."""
        costs = {"costs": lines} if (lines := self._costs(rows)) else {}
        return {**super().summaries(base, rows), **costs}

    def _costs(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """A line for each kind of tickets and level, means over seeds; what distilling took is told apart."""
        lines = []
        ladders, distilled = ([row for row in rows if row["role"] == role] for role in (LADDER, DISTILLING))
        for (arm, level), own in groups(ladders, "arm", "level").items():
            if not level or level not in self.levels:
                continue
            # The masks of a level are known when the trainings of all levels before have ended.
            before = [row for row in ladders if row["arm"] == arm and row["level"] < level]
            images = {TICKETS: self._real, ON_SET: self._small, ON_FEW: self._small}.get(arm)
            line = {"arm": arm, "density": own[0]["density"], "images": images}
            for kind, spent in (("", before), ("distilling, ", distilled if arm == ON_SET else [])):
                line |= {f"{kind}{name}": _by_seed(spent, name) for name in ("samples", "seconds")}
            lines.append(line)
        return lines

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        if not (costs := self._costs(rows)):
            return super().text(base, rows)
        lines = [["", "weights", "images", "trained on", "seconds", "distilled from", "seconds"]]
        for line in costs:
            images, *spent = (line[name] for name in [*line][2:])
            told = (f"{value:,.0f}" if value else "" for value in (images, *spent))
            lines.append([line["arm"], percent(line["density"]), *told])
        kind = "what it took to find the tickets; images trained on and distilled from are counted as often as seen"
        return f"{super().text(base, rows)}\n\n{kind}\n{aligned(lines, left=('',), blank='none')}"

    def sets_of(self, base: Base, rows: Sequence[Row]) -> Mapping[str, DistilledSet]:
        from accelerando.algorithms.examples.distillation import load_distilled

        files = {row["seed"]: base.folder / row.node / FILES[ON_SET] for row in rows if row["role"] == DISTILLING}
        return {f"seed {seed}": load_distilled(file) for seed, file in files.items() if file.is_file()}

    def claimed(self) -> list[str]:
        return [arm for arm in super().claimed() if arm != ON_FEW]

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        yield from super().claims(base, rows)
        yield from claims_of_the_set(self.cells(rows), ON_SET, ON_FEW, self._real, self._small)


def _by_seed(rows: Sequence[Row], name: str) -> float:
    """What they cost together, a seed in the mean."""
    return sum(row[name] for row in rows) / max(1, len({row["seed"] for row in rows}))
