"""What straight lines through the weights of a training tell: from its beginning, from later steps, and by parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, show
from ..config.lookup import nearest
from ..config.recipe import Recipe
from .claims import Claim
from .core import FIXED, Base, Changes, Study, Train, duration, named, refuse_twice, row_of
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
from .paths import check_steps
from .table import Row
from .tickets import OTHER_SEED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

PLACE = "accelerando.recipes.studies.interpolation_paths"
PATHS, RESET = f"{PLACE}:PathsOfTraining", f"{PLACE}:ResetPart"
FROM = "from"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where an arm's training begins, other than at initial weights.

    Args:
        end_of: the name of an origin, or of an arm before this one, at whose end's weights and buffers.
        top_of: the name of an arm before this one: where its training loss is highest on the line from its beginning
            to its end.
        reset: patterns of the names of what is put back to other initial weights, such as [layer1.*].
    """

    end_of: str | None = None
    top_of: str | None = None
    reset: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Interpolation(Study):
    """Each arm is trained, and measured along straight lines through its weights.

    Args:
        arms: what each changes in the base run, by name; false leaves one out, and the first is what the claims on one
            setting are told of. An entry `from` says where the arm begins: {end_of: NAME}, also with
            {reset: [PATTERN, ...]}, or {top_of: NAME}.
        origins: what trainings before the arms change in the base run, by name, such as other data.
        detailed: the arms of which the paths from later steps and those of parts are measured too; by default the
            first. All are measured from the beginning to the end.
        steps: the k after the beginning, all in ep or all in ba.
        parts: the `layers`, the `blocks`, or both, that alone go from their beginning to their end, while all others
            stay at theirs.
        named_parts: patterns of the names of a part's weights and buffers, by a name of its own.
        points: of a path, with both ends.
        part_points: of a part's path.
        path_examples: on how many of the training and of the evaluation data a path is measured, at most; null for all.
        setting: whether the base run counts as a `simple` setting, such as LeNet on MNIST, or a `modern` one.
    """

    arms: Changes = field(default_factory=dict)
    origins: Changes = field(default_factory=dict)
    detailed: list[str] | None = None
    steps: list[str] = field(default_factory=list)
    parts: list[Literal["layers", "blocks"]] = field(default_factory=list)
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
        source = base.source
        self._changes = named(source, "arms", self.arms, FIXED)
        self._origins = named(source, "origins", self.origins, FIXED) if self.origins else {}
        self._begins = {arm: self._beginning(base, arm) for arm in self._changes}
        self._check_detailed(base)
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
        if self.steps:
            self.steps = self._checked_steps(base)

    def _bare(self, name: str) -> Train:
        """The arm's or the origin's changes alone."""
        key, given = ("arms", self._changes) if name in self._changes else ("origins", self._origins)
        return Train(name=name, changes=given[name], key=f"{key}.{name}")

    def _beginning(self, base: Base, arm: str) -> Beginning | None:
        """Takes the arm's `from` out of its changes."""
        given, key, error = self._changes[arm].pop(FROM, None), f"arms.{arm}.{FROM}", base.source.error
        if arm in self._origins:
            raise error(f"arms.{arm}", "an origin has that name too; choose another one")
        if given is None:
            return None
        if not isinstance(given, dict):
            raise error(key, f"{show(given)} given; expected a mapping, such as {{end_of: NAME}}")
        with base.source.blame(key, *REFUSALS):
            begin = Beginning(**check_arguments(Beginning, given))
        if (begin.end_of is None) == (begin.top_of is None):
            raise error(key, f"{show(given)} given; expected end_of or top_of, one of them")
        if begin.top_of is not None and begin.reset:
            raise error(f"{key}.reset", "given beside top_of; expected end_of, of whose weights the rest is kept")
        earlier = [*self._changes][: [*self._changes].index(arm)]
        known = earlier if begin.end_of is None else [*self._origins, *earlier]
        if (name := begin.end_of or begin.top_of or "") not in known:
            what = "an arm before it" if begin.end_of is None else "an origin, or an arm before it"
            which = "end_of" if begin.top_of is None else "top_of"
            raise error(f"{key}.{which}", f"{show(name)} given, but it is not {what}{nearest(name, known)}")
        if "start" in self._changes[arm]:
            raise error(f"arms.{arm}.start", f"given beside {FROM}, where it begins too; leave out one of them")
        return begin

    def _check_detailed(self, base: Base) -> None:
        source, asked = base.source, self.steps or self.parts or self.named_parts
        if self.detailed is not None and not asked:
            raise source.error("detailed", "given without steps, parts and named_parts; expected one of these too")
        if self.detailed is None:
            self.detailed = [next(iter(self._changes))] if asked else []
        expected = f"of {', '.join(self._changes)}"
        refuse_twice(self.detailed, source, "detailed", {*self.detailed} <= {*self._changes}, expected)
        refuse_twice(self.parts, source, "parts", True, "of layers, blocks")

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
                yield self._train(base, arm, seed)

    def _cost(self, base: Base, name: str) -> float:
        """The length, as far as its unit is the base run's."""
        own, whole = duration(base.recipe_of(self._bare(name))), duration(base.recipe)
        return own.value / whole.value if own.unit == whole.unit else 1.0

    def _train(self, base: Base, arm: str, seed: int) -> Train:
        begin, node = self._begins[arm], self._bare(arm)
        is_detailed = arm in (self.detailed or ())
        steps = self.steps if is_detailed else []
        paths: dict[str, Any] = {"steps": steps, "points": self.points, "part_points": self.part_points}
        paths |= {"parts": self.parts, "named_parts": self.named_parts} if is_detailed else {}
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
            place = f"arms.{arm}.{FROM}"
            made_from |= {"start": place, "weights_seed": "seeds", f"algorithms.{RESET}.include": f"{place}.reset"}
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

        yield from claims_of(rows, self.metric or "", self.setting, self.detailed or [])
