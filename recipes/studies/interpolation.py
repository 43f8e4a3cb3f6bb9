"""What straight lines through the weights of a training tell: from its beginning, from later steps, and by parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..config.errors import REFUSALS
from ..config.keys import Holds
from ..config.recipe import Recipe
from .claims import Claim
from .core import FIXED, Base, NamedChanges, Study, Train, named, refuse_twice, row_of
from .interpolation_arms import BY, FROM, BySensitivity, beginning, by_sensitivity, parameters_of, rises_of
from .interpolation_cells import (
    BEGIN,
    ORIGIN,
    PATH,
    RUN,
    lines_of_paths,
    metrics_of_path,
    sensitivity,
    table,
    treatments_of,
)
from .lengths import duration, relative_length
from .paths import check_steps
from .table import Row
from .tickets import OTHER_SEED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

PLACE = "accelerando.recipes.studies.interpolation_paths"
PATHS, RESET = f"{PLACE}:PathsOfTraining", f"{PLACE}:ResetPart"


@dataclass(kw_only=True)
class Interpolation(Study):
    """Each arm is trained, and measured along straight lines through its weights.

    Args:
        arms: what each changes in the base run, by name; false leaves one out, and the first is what the claims on one
            setting are told of. An entry `from` says where the arm begins: {end_of: NAME}, also with
            {reset: [PATTERN, ...]}, or {top_of: NAME}. With an entry `by_sensitivity`, {of: NAME, sensitive: {...},
            insensitive: {...}}, it is trained as the arm NAME, but for these options of the optimizer for the half of
            that arm's layers that is the more, or the less, sensitive to being put back to its beginning.
        origins: what trainings before the arms change in the base run, by name, such as other data.
        detailed: the arms of which the paths from later steps and those of parts are measured too; by default the
            first. All are measured from the beginning to the end.
        steps: the k after the beginning, all in ep or all in ba.
        parts: the `layers`, the `blocks`, or both, that alone go from their beginning to their end.
        part_others: where all others stay: at their `end`, at their `begin`, or both in turn.
        named_parts: patterns of the names of a part's weights and buffers, by a name of its own.
        points: of a path, with both ends.
        part_points: of a part's path.
        path_examples: on how many of the training and of the evaluation data a path is measured, at most; null for all.
        setting: whether the base run counts as a `simple` setting, such as LeNet on MNIST, or a `modern` one.
    """

    arms: Annotated[dict[str, Any], Holds("changes", by_name=True, also={FROM: dict, BY: dict})] = field(
        default_factory=dict
    )
    origins: NamedChanges = field(default_factory=dict)
    detailed: list[str] | None = None
    steps: list[str] = field(default_factory=list)
    parts: list[Literal["layers", "blocks"]] = field(default_factory=list)
    part_others: list[Literal["end", "begin"]] = field(default_factory=lambda: ["end"])
    named_parts: dict[str, list[str]] = field(default_factory=dict)
    points: int = 50
    part_points: int = 11
    path_examples: int | None = None
    setting: Literal["simple", "modern"] = "modern"

    about: ClassVar[str] = (
        "Loss and error on the straight line from the weights of a training's beginning to those of its end "
        "(arXiv 2012.06898), from later steps, and of one layer or block alone, with all others at the end "
        "(arXiv 2106.16004). They are told with the running statistics of batch norm interpolated, and with these "
        "recomputed from training data at each point."
    )

    def prepare(self, base: Base) -> None:
        from .interpolation_paths import parts_of

        source = base.source
        self._changes = named(source, "arms", self.arms, FIXED)
        self._origins = named(source, "origins", self.origins, FIXED) if self.origins else {}
        self._check_detailed(base)
        self._by: dict[str, BySensitivity] = {}
        for arm in self._changes:
            has_parts = self._parts_asked and "end" in self.part_others
            measured = [name for name in self.detailed or () if has_parts and name not in self._by]
            if by := by_sensitivity(source, self._changes, measured, arm):
                self._by[arm] = by
        self._begins = {arm: beginning(source, self._changes, self._origins, arm) for arm in self._changes}
        for arm, by in self._by.items():
            self._changes[arm], self._begins[arm] = self._changes[by.of], self._begins[by.of]
        for key, least in {"points": 3, "part_points": 2, "path_examples": 1}.items():
            if (given := getattr(self, key)) is not None and given < least:
                raise source.error(key, f"{given} given; expected {least} or more")
        wanted = self.metric
        for name in (*self._origins, *self._changes):
            recipe = base.recipe_of(self._bare(name))
            base.needs_evaluation(recipe, "loss and error are measured on it")
            self.metric = base.metric_of(recipe, wanted)
            if recipe.start and recipe.start.continues_schedule:
                hint = "a path is of one training from its beginning; expected schedule: restart"
                raise recipe.source.error("start.schedule", f"continue, given or by default, but {hint}")
        for arm in self._changes:
            self._check_arm(base, arm, base.recipe_of(self._bare(arm)))
        self._parameters: dict[str, dict[str, list[str]]] = {}
        for arm, by in self._by.items():
            if by.of not in self._parameters:
                model = base.recipe_of(self._bare(by.of)).model.build()
                with source.blame(f"arms.{arm}.{BY}.of", ValueError):
                    self._parameters[by.of] = parameters_of(model, parts_of(model, self.parts, self.named_parts))
            # With each half in any order: that an option is refused must not come up after hours.
            sets, made_from = self._groups(base, arm, dict.fromkeys(self._parameters[by.of], 0.0))
            base.recipe_of(replace(self._bare(arm), sets=sets, made_from=made_from))
        if self.steps:
            self.steps = self._checked_steps(base)

    def _bare(self, name: str) -> Train:
        """The arm's or the origin's changes alone."""
        key, given = ("arms", self._changes) if name in self._changes else ("origins", self._origins)
        place = self._by[name].of if name in self._by else name
        return Train(name=name, changes=given[name], key=f"{key}.{place}")

    def _groups(self, base: Base, arm: str, rises: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the arm sets of its optimizer, for parts whose loss `rises` so, and where it comes from."""
        by, recipe = self._by[arm], base.recipe_of(self._bare(arm))
        if "groups" in recipe.optimizer.arguments:
            hint = f"the optimizer of {by.of} has groups of its own; expected an arm without"
            raise base.source.error(f"arms.{arm}.{BY}.of", hint)
        optimizer = recipe.optimizer.key.partition(".")[2]
        place, groups = f"optimizer.{optimizer}.groups", by.groups(rises, self._parameters[by.of])
        made_from = {f"{place}.{pattern}": f"arms.{arm}.{BY}.{half}" for half, (pattern, _) in groups.items()}
        return {"optimizer": {optimizer: {"groups": dict(groups.values())}}}, {**made_from, place: f"arms.{arm}.{BY}"}

    def _check_detailed(self, base: Base) -> None:
        source, asked = base.source, self.steps or self._parts_asked
        if self.detailed is not None and not asked:
            raise source.error("detailed", "given without steps, parts and named_parts; expected one of these too")
        if self.detailed is None:
            self.detailed = [next(iter(self._changes))] if asked else []
        expected = f"of {', '.join(self._changes)}"
        refuse_twice(self.detailed, source, "detailed", {*self.detailed} <= {*self._changes}, expected)
        refuse_twice(self.parts, source, "parts", True, "of layers, blocks")
        refuse_twice(self.part_others, source, "part_others", bool(self.part_others), "of end, begin")
        if self.part_others != ["end"] and not self._parts_asked:
            raise source.error("part_others", "given without parts and named_parts; expected one of these too")

    @property
    def _parts_asked(self) -> bool:
        return bool(self.parts or self.named_parts)

    def _check_arm(self, base: Base, arm: str, recipe: Recipe) -> None:
        """What its model tells: that parts are there, and that it can begin with the weights it is to begin with."""
        from composer.models import HuggingFaceModel

        from accelerando.algorithms.connectivity.interpolation import check_alike, chosen

        from .interpolation_paths import parts_of

        source, model = base.source, recipe.model.build()
        if isinstance(model, HuggingFaceModel):
            raise recipe.source.error(recipe.model.key, "paths are measured of classifiers of pairs (inputs, classes)")
        assert self.detailed is not None
        if arm in self.detailed:
            for name, patterns in self.named_parts.items():
                with source.blame(f"named_parts.{name}", *REFUSALS):
                    parts_of(model, self.parts, {name: patterns})
        if begin := self._begins[arm]:
            key, other = f"arms.{arm}.{FROM}", begin.end_of or begin.top_of or ""
            with source.blame(key, ValueError):
                theirs = base.recipe_of(self._bare(other)).model.build()
                check_alike(theirs.state_dict(), model.state_dict(), f"{other} and {arm}")
            with source.blame(f"{key}.reset", ValueError):
                chosen(model.state_dict(), begin.reset or ("*",), ())

    def _checked_steps(self, base: Base) -> list[str]:
        def late(step: str, end: str) -> str:
            return f"{step} given, but {arm} ends at {end}; expected moments before the end of each detailed arm"

        found = []
        for arm in self.detailed or ():
            found = check_steps(base.source, self.steps, base.recipe_of(self._bare(arm)), late)
        if found[0] in ("0ba", "0ep"):
            raise base.source.error("steps", f"{found[0]} given; the path from the beginning is measured anyway")
        return found

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        for seed in self.seeds:
            for origin in self._origins:
                tags = {"role": ORIGIN, "arm": origin, "seed": seed}
                cost, name = self._cost(base, origin), f"origin-{origin}-seed{seed}"
                yield replace(self._bare(origin), name=name, sets={"seed": seed}, cost=cost, tags=tags)
            for arm in self._changes:
                yield self._train(base, arm, seed, done)

    def _cost(self, base: Base, name: str) -> float:
        """The length, as far as its unit is the base run's."""
        own, whole = duration(base.recipe_of(self._bare(name))), duration(base.recipe)
        return relative_length(own, whole)

    def _train(self, base: Base, arm: str, seed: int, done: Mapping[str, Result]) -> Train:
        from .interpolation_paths import MEASURED

        begin, node = self._begins[arm], self._bare(arm)
        is_detailed = arm in (self.detailed or ())
        steps = self.steps if is_detailed else []
        paths: dict[str, Any] = {"steps": steps, "points": self.points, "part_points": self.part_points}
        if is_detailed:
            paths |= {"parts": self.parts, "named_parts": self.named_parts}
            paths |= {"part_others": self.part_others} if self.part_others != ["end"] else {}
        paths |= {} if self.path_examples is None else {"most_examples": self.path_examples}
        if any(other and other.top_of == arm for other in self._begins.values()):
            paths["keep_top"] = True
        algorithms: dict[str, Any] = {"snapshots": {"at": [BEGIN, *steps, "1dur"], "full": False}, PATHS: paths}
        sets: dict[str, Any] = {"seed": seed, "algorithms": algorithms}
        made_from = {"algorithms.snapshots.at": "steps", f"algorithms.{PATHS}.most_examples": "path_examples"}
        made_from |= {f"algorithms.{PATHS}.{key}": key for key in paths if key != "most_examples"}
        after = ()
        if begin:
            name = f"origin-{begin.end_of}" if begin.end_of in self._origins else begin.end_of or begin.top_of
            after = (f"{name}-seed{seed}",)
            sets["start"] = {"run": f"{base.name}/{after[0]}"}
            if begin.top_of is not None:
                sets["start"] = {"run": f"{base.name}/{after[0]}/top", "at": BEGIN, "schedule": "restart"}
                sets["start"]["data"] = "restart"
            if begin.reset:
                algorithms[RESET] = {"include": begin.reset}
                sets["weights_seed"] = seed + OTHER_SEED
            place = f"{node.key}.{FROM}"
            made_from |= {"start": place, "weights_seed": "seeds", f"algorithms.{RESET}.include": f"{place}.reset"}
        if by := self._by.get(arm):
            after = (*after, f"{by.of}-seed{seed}")
            rises = rises_of(done[after[-1]].found[MEASURED]) if after[-1] in done else {}
            if not rises:
                node = replace(node, changes=None)
            elif lost := [part for part in self._parameters[by.of] if part not in rises]:
                hint = "an algorithm has changed the network's layers"
                node = replace(node, problem=f"{after[-1]} has no part {lost[0]}: {hint}")
            else:
                options, places = self._groups(base, arm, rises)
                sets, made_from = sets | options, made_from | places
        tags = {"role": RUN, "arm": arm, "seed": seed}
        return replace(
            node,
            name=f"{arm}-seed{seed}",
            sets=sets,
            made_from=made_from,
            after=after,
            cost=self._cost(base, arm),
            tags=tags,
        )

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each training, and one for each path, which cost nothing in training.

        A training's has `top`, the place of the highest training loss on its path, where another arm begins there. A
        path's has the `kind`, `training` or that of its part, the `part` that moves, the `start`, its `k` in batches.
        """
        from .interpolation_paths import MEASURED, TOP

        row = row_of(node, result)
        top = {TOP: result.found[TOP]} if TOP in result.found else {}
        yield replace(row, metrics={**row.metrics, **top})
        for path in result.found.get(MEASURED, []):
            tags = {**node.tags, "role": PATH, **{name: path[name] for name in ("kind", "part", "start", "k")}}
            yield Row(node=node.name, tags=tags, batches=0, samples=0, seconds=0.0, metrics=metrics_of_path(path))

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`paths.csv`, the shape of each path over seeds, and `sensitivity.csv`, what each part's reset costs."""
        lines = [{"statistics": how, **line} for how in treatments_of(rows) for line in sensitivity(rows, how)]
        return {"paths": lines_of_paths(rows), **({"sensitivity": lines} if lines else {})}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        return table(rows, self.metric or "")

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .interpolation_figure import draw

        return draw(rows, self.metric or "", base.folder.name) if treatments_of(rows) else None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        from .interpolation_claims import claims_of

        by_sensitivity = {arm: by.of for arm, by in self._by.items()}
        yield from claims_of(rows, self.metric or "", self.setting, self.detailed or [], by_sensitivity)
