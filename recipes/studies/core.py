"""What a study is: trainings that start from one base run, and what is made of their results.

A study is one file of this folder: a keyword-only dataclass, whose fields are the keys of the YAML's block
``study: {NAME: {...}}``, and whose methods say which trainings there are, which rows each gives, and what the table of
all rows shows. `driver.py` does the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from ..config.errors import ConfigError, Source, show
from ..config.keys import Holds
from ..config.loading import LEFT_TO_YOU, merge, missing, resolving
from ..config.lookup import Part
from ..config.recipe import Recipe, check
from ..run.folder import is_begun, refuse_another_run
from .claims import Claim
from .metrics import choose_metric, evaluated
from .table import Row

if TYPE_CHECKING:
    from composer.core import DataSpec
    from matplotlib.figure import Figure

    from ..run.results import Result

# What a study's keys hold: changes of the base run's config, or arguments of an algorithm; one, or several by name.
Changes = Annotated[dict[str, Any], Holds("changes")]
NamedChanges = Annotated[dict[str, Any], Holds("changes", by_name=True)]
NamedCriteria = Annotated[dict[str, Any], Holds("algorithms.prune_at_init", by_name=True)]
TicketArguments = Annotated[dict[str, Any], Holds("algorithms.lottery_ticket")]
FIXED = ("run_name", "seed", "folder")


@dataclass(frozen=True, kw_only=True)
class Train:
    """One training of a study.

    Attributes:
        name: that of its folder in the study's. It must tell this training from every other, those before a change of
            the study's keys included.
        changes: what the user's file changes of the base run; None while that is not known, because some of those in
            `after` are not done.
        key: where in the study's block those changes stand, such as "arms.mild".
        sets: what the study itself sets, on top of them.
        made_from: by key of the run, where in the study's block what the study sets comes from, to blame it there.
        after: names of trainings that must be done before this one begins.
        made_by: those of them that it hangs on, by default all: as they change, this training becomes another.
        cost: its length, in trainings of the base run.
        tags: what its rows are told apart by.
        problem: why it cannot be trained, if so; then it fails, and the others go on.
    """

    name: str
    changes: Mapping[str, Any] | None = field(default_factory=dict)
    key: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    made_by: tuple[str, ...] | None = None
    cost: float = 1.0
    tags: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class Base:
    """The base run that a study's file describes, and how its trainings are made of it.

    `source` blames the study's own keys by their names in its block: `base.source.error("seeds", ...)`.
    """

    def __init__(self, config: DictConfig, source: Source, given: Mapping[str, Any], folder: Path, name: str):
        self.config, self.source, self.given, self.folder, self.name = config, source, given, folder, name
        self._recipes: dict[str, Recipe] = {}
        self._built: set[str] = set()

    @cached_property
    def recipe(self) -> Recipe:
        """The base run itself, checked and with its parts tried out."""
        recipe = check(self.config, self.source)
        self.try_out(recipe)
        return recipe

    def recipe_of(self, node: Train) -> Recipe:
        """The training's checked recipe, whose parts have been built once: nothing comes up after hours."""
        assert node.changes is not None
        own = {"run_name": f"{self.name}/{node.name}", **node.sets}
        key = json.dumps([node.key, node.changes, own], default=str)
        if key not in self._recipes:
            source = self.source.inside(node.key, node.changes) if node.key else self.source
            with self._renamed(node.made_from):
                with resolving(source), source.blame("", TypeError):  # such as a list where the file has a mapping
                    merged = merge(self.config, OmegaConf.create(dict(node.changes)), OmegaConf.create(own))
                for left in missing(node.changes):
                    raise source.error(left, LEFT_TO_YOU)
                self._recipes[key] = recipe = check(merged, source)
                if not (recipe.folder / "results.json").exists():  # else its teachers and masks may be gone
                    self.try_out(recipe)
                if recipe.start and self._is_others(recipe.start.run) and not is_begun(recipe.folder):
                    from ..run.origin import find_origin

                    find_origin(recipe)
        return self._recipes[key]

    def refuse_another_run(self, node: Train, as_long: bool) -> None:
        """Raises an error where the training's folder holds another run, or, with `as_long`, one of another length."""
        recipe = self.recipe_of(node)
        with self._renamed(node.made_from):
            refuse_another_run(recipe, as_long)

    def training_data(self, node: Train) -> DataSpec:
        """Builds those of a training: what is wrong with them must not come up after hours."""
        from composer.core import ensure_data_spec
        from composer.utils import get_device

        from accelerando.algorithms.generators import untouched_generators

        recipe = self.recipe_of(node)
        with self._renamed(node.made_from), untouched_generators():
            device = get_device(recipe.trainer.get("device"))
            return ensure_data_spec(recipe.train_data.build(recipe.batch_size, True, recipe.data_seed, device))

    @contextmanager
    def _renamed(self, names: Mapping[str, str]) -> Iterator[None]:
        """Errors inside at a key of the run come at the study's key, by these `names`."""
        try:
            yield
        except ConfigError as error:
            for there, here in {**names, "seed": "seeds"}.items():
                if f"{error.key}.".startswith(f"{there}."):
                    raise self.source.error(here + error.key.removeprefix(there), error.message) from error
                if f"{there}.".startswith(f"{error.key}.") and error.key:
                    raise self.source.error(here, error.message) from error
            raise

    def try_out(self, recipe: Recipe) -> None:
        """Builds model, optimizer, scheduler and algorithms, once for all trainings that have the same."""
        from accelerando.algorithms.generators import untouched_generators

        from ..run.algorithms import in_its_folders
        from ..run.teachers import as_in_training

        with untouched_generators():
            if self._is_new([recipe.model, *recipe.algorithms, recipe.optimizer]):
                as_in_training(recipe.model, in_its_folders(recipe), recipe.optimizer)
            if self._is_new([*recipe.algorithms, *([recipe.scheduler] if recipe.scheduler else [])]):
                self.algorithms_of(recipe)

    def _is_others(self, run: str) -> bool:
        """Whether it is no run of this study, which may be still to be trained."""
        return not Path(run).is_relative_to(self.name) and not Path(run).is_relative_to(self.folder)

    def _is_new(self, parts: Iterable[Part]) -> bool:
        key = json.dumps([(str(part.target), part.arguments) for part in parts], default=str, sort_keys=True)
        return key not in self._built and not self._built.add(key)

    def algorithms_of(self, recipe: Recipe) -> list[Any]:
        """The algorithms of a run, built."""
        from ..run.algorithms import build_algorithms

        return build_algorithms(recipe, recipe.scheduler.build() if recipe.scheduler else None)

    def metric_of(self, recipe: Recipe, wanted: str | None, errors: bool = True) -> str:
        """The full name of the metric `wanted`, by default the first accuracy, of those that the model evaluates."""
        names = evaluated(recipe)
        with self.source.blame("metric", ValueError):
            return choose_metric(names, wanted, errors)

    def needs_evaluation(self, recipe: Recipe, why: str) -> None:
        """Raises an error where nothing is evaluated."""
        if recipe.eval_data is None:
            raise recipe.source.error("eval_data", f"missing; {why}")


@dataclass(kw_only=True)
class Study:
    """Subclasses are found by their snake_case names, or by import path; the fields are the keys of the YAML's block.

    What is chosen, such as the best of several trainings, is chosen by the same metric on the base run's
    `validation_data`, which is `chosen_by`; without these it is chosen on the data that it is reported on, which claims
    tell. `may_be_prolonged` says whether a training that is in the folder already may be a shorter one of the same
    kind; `about` is a paragraph for the page that reports the study.

    Args:
        seeds: every training is done once with each.
        metric: what is reported, by the metric's name or its last part; by default the first accuracy there is.
    """

    seeds: list[int] = field(default_factory=lambda: [17])
    metric: str | None = None
    chosen_by: str | None = field(init=False, default=None)

    may_be_prolonged: ClassVar[bool] = False
    about: ClassVar[str] = ""

    def prepare(self, base: Base) -> None:
        """Checks what the base run tells of the keys; an error is `base.source.error(key, message)`."""

    def length(self, base: Base) -> str:
        """What a cost of 1 stands for: the base run's length."""
        return str(base.config.get("max_duration"))

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterable[Train]:
        """All trainings, in the order in which they begin; asked again whenever another one is `done`.

        What a training changes may be None until it is known, but it is listed from the start.
        """
        raise NotImplementedError

    def rows(self, base: Base, node: Train, result: Result) -> Iterable[Row]:
        """What a training that is done adds to the table: by default the metrics of its last evaluation."""
        yield row_of(node, result)

    def words(self, base: Base, node: Train, result: Result) -> str:
        """What is told of a training when it ends, unless an algorithm has told of its end."""
        from ..run.results import label

        known = [(name, value) for name, value in result.metrics.items() if value is not None]
        return ", ".join(f"{label(name)} {value:.4f}" for name, value in known[:2])

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Tables made of the rows, each of lines with the same columns; written as NAME.csv."""
        return {}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The tables for people."""
        return ""

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        """The figure, if there is one."""
        return None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterable[Claim]:
        """What papers say of this, and what the rows say."""
        return ()


def row_of(node: Train, result: Result, tags: Mapping[str, Any] | None = None) -> Row:
    """The end of a training: its cost in all, and the metrics of the last evaluation."""
    nan = float("nan")
    metrics = {name: nan if value is None else float(value) for name, value in result.metrics.items()}
    cost = {"batches": int(result.batches), "samples": int(result.samples), "seconds": float(result.seconds)}
    return Row(node=node.name, tags={**node.tags, **(tags or {})}, **cost, metrics=metrics)


def named(source: Source, key: str, given: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The named entries of a study's key without those that are false; each a mapping, which lacks the `fixed` keys."""
    entries = {str(name): {} if value is None else value for name, value in given.items() if value is not False}
    if not entries:
        hint = "each of them is false; expected one at least"
        raise source.error(key, hint if given else "missing; expected names, {NAME: {...}, ...}")
    for name, value in entries.items():
        place = f"{key}.{name}"
        if not isinstance(value, Mapping):
            hint = "expected a mapping, {} for nothing, or false to leave it out"
            raise source.error(place, f"{show(value)} given; {hint}")
        if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
            hint = "expected a name of up to 100 letters, digits, _, ., + and -: it becomes a folder"
            raise source.error(place, hint)
        for inner in set(fixed) & value.keys():
            raise source.error(f"{place}.{inner}", "the study sets it for every run; leave it out")
    return {name: dict(value) for name, value in entries.items()}


def refuse_twice(given: Sequence[Any], source: Source, key: str, fits: bool, expected: str) -> None:
    """Raises an error unless what is given `fits`, and each is given once."""
    if not fits or len({str(one) for one in given}) < len(given):
        raise source.error(key, f"{show(list(given))} given; expected different ones, {expected}")
