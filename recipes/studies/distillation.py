"""What distillation is worth: quality over training time without it, and with whom and for how long it is done.

The base run is a student. Teachers are trained first, each once. Students have no teacher, the best or the poorest one,
all of them, or one of all that is drawn anew at each step (Blakeney et al., arXiv:2211.00683).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from omegaconf import OmegaConf

from accelerando.algorithms.connectivity.curves import lower_is_better

from ..config.keys import Holds
from ..config.loading import merge
from ..config.recipe import Recipe, check
from ..run.folder import identity
from .claims import Claim
from .core import Base, NamedChanges, Study, Train, named
from .distillation_checks import build_once, check_schedule, check_windows, rising
from .distillation_claims import claims_of
from .lengths import as_time, duration
from .metrics import on_validation_data
from .speedup import PLAIN, TEACHER, rank, summarize
from .table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

SET_BY_ARM = {"teachers", "teachers_per_step", "start", "end"}


@dataclass(kw_only=True)
class Distillation(Study):
    """The keys of the study.

    Attributes:
        teachers: what each changes in the base run, such as model and max_duration, by name; false leaves one out. A
            teacher has a seed of its own.
        lengths: every student is trained for each, such as [4ep, 8ep].
        baseline_lengths: only those without a teacher are: what others reach must lie within their curve.
        windows: shares of the training, from its start, in which is distilled.
        distillation: arguments of the algorithm Distillation, such as {temperature: 4.0}.
        metric: by default the first accuracy there is; of errors and losses, less is better.
    """

    teachers: NamedChanges = field(default_factory=dict)
    lengths: list[str] = field(default_factory=list)
    baseline_lengths: list[str] = field(default_factory=list)
    windows: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])
    distillation: Annotated[dict[str, Any], Holds("algorithms.distillation")] = field(default_factory=dict)

    about: ClassVar[str] = (
        "Quality over training time of students without a teacher, with the best or the poorest one, all of them, or "
        "one of all drawn anew at each step (arXiv 2211.00683). A speed-up is the plain training's time to the same "
        "quality over that of the arm."
    )

    def prepare(self, base: Base) -> None:
        """Checks the keys, and builds the parts of each kind once: what they refuse must not come up after hours."""
        from accelerando.algorithms.generators import untouched_generators

        source = base.source
        self.teachers = named(source, "teachers", self.teachers, fixed=("run_name", "folder"))
        self.lengths = rising(self.lengths, source, "lengths")
        if self.baseline_lengths:  # which, together with the others, may have another unit or one twice
            rising(self.baseline_lengths, source, "baseline_lengths")
        self.baseline_lengths = rising([*self.lengths, *self.baseline_lengths], source, "baseline_lengths")
        check_windows(self.windows, source)
        self.windows = sorted(self.windows)
        for name in SET_BY_ARM & self.distillation.keys():
            raise source.error(f"distillation.{name}", "the study sets it for every arm; leave it out")
        student = self._student(base)
        base.needs_evaluation(student, "quality is what is evaluated there")
        teachers = [self._checked_teacher(base, name, node) for name, node in self._teachers(base).items()]
        self.metric = base.metric_of(student, self.metric, errors=True)
        self.chosen_by = on_validation_data(student, self.metric)
        with untouched_generators():
            for recipe in teachers:
                base.metric_of(recipe, self.metric, errors=True)
                if (recipe.validation_data is None) != (student.validation_data is None):
                    raise recipe.source.error("validation_data", "teachers are ranked there; expected for all or none")
            build_once(source, student, teachers, self.distillation)

    def _student(self, base: Base) -> Recipe:
        """One without a teacher, once all its lengths are checked."""
        from accelerando.algorithms import Distillation as Algorithm

        shortest = merge(base.config, OmegaConf.create({"max_duration": self.lengths[0]}))
        for part in check(shortest, base.source.inside("lengths", ("max_duration",))).algorithms:
            if part.target is Algorithm:
                hint = "the study adds it to its students; give its arguments at distillation in the study's block"
                raise base.source.error(part.key, hint)
        plain = (self._plain(length, self.seeds[0], ()) for length in self.baseline_lengths)
        first, *_ = [check_schedule(base.recipe_of(node)) for node in plain]
        return first

    def _checked_teacher(self, base: Base, name: str, node: Train) -> Recipe:
        recipe = base.recipe_of(node)
        if (seed := recipe.config["seed"]) in self.seeds:
            hint = f"{seed} is that of a student, which would begin alike; choose another one"
            raise base.source.error(f"teachers.{name}.seed", hint)
        base.needs_evaluation(recipe, "the teachers are ranked by what is evaluated there")
        if duration(recipe).unit != as_time(self.lengths[0]).unit:
            hint = f"{recipe.config['max_duration']} given; expected the unit of lengths"
            raise recipe.source.error("max_duration", hint)
        return check_schedule(recipe)

    def length(self, base: Base) -> str:
        """The longest that all students are trained for."""
        return self.lengths[-1]

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        """The teachers, then the students. Who is the best teacher is known when all of them are done.

        What slows the machine for a while shall not slow one arm more than another, so arms take turns within a length,
        and lengths within a seed, and no arm begins before the teachers are done: neighbours in time are what is
        compared.
        """
        teachers = self._teachers(base)
        yield from teachers.values()
        ranked = None
        if all(node.name in done for node in teachers.values()):
            metric = self.chosen_by or str(self.metric)
            values = {name: done[node.name].metrics.get(metric) for name, node in teachers.items()}
            if not any(value is not None and math.isfinite(value) for value in values.values()):
                raise base.source.error("teachers", f"none has a finite {metric}, so that none is the best")
            ranked = rank(values, lower_is_better(metric))
        after = tuple(node.name for node in teachers.values())
        for seed in self.seeds:
            for length in self.baseline_lengths:
                plain = self._plain(length, seed, after)
                yield plain
                for window in self.windows if length in self.lengths else []:
                    for arm, names in arms(ranked or [*teachers]).items():
                        own = {name: teachers[name] for name in names}
                        yield self._taught(base, plain, arm, window, own, is_known=ranked is not None)

    def _teachers(self, base: Base) -> dict[str, Train]:
        found = {}
        for name, changes in self.teachers.items():
            # By its name, so that it stays the same beside others; it shall not begin with a student's weights.
            sets = {} if "seed" in changes else {"seed": zlib.crc32(name.encode()) % 1_000_000}
            node = Train(name=f"teacher-{name}", changes=changes, key=f"teachers.{name}", sets=sets)
            config = base.recipe_of(node).config
            tags = {"arm": TEACHER, "window": 0.0, "teachers": name}
            tags |= {"seed": config["seed"], "length": str(config["max_duration"])}
            found[name] = replace(node, cost=self._cost(config["max_duration"]), tags=tags)
        return found

    def _plain(self, length: str, seed: int, after: tuple[str, ...]) -> Train:
        return Train(
            name=f"{PLAIN}-{length}-seed{seed}",
            sets={"max_duration": length, "seed": seed},
            made_from={"max_duration": "lengths"},
            after=after,
            made_by=(),
            cost=self._cost(length),
            tags={"arm": PLAIN, "window": 0.0, "seed": seed, "length": length},
        )

    def _taught(
        self, base: Base, plain: Train, arm: str, window: float, teachers: Mapping[str, Train], is_known: bool
    ) -> Train:
        """The plain student's training, but with these teachers, as far as they are known."""
        if not is_known:
            return replace(plain, name=f"{arm}-first{window:g}{plain.name.removeprefix(PLAIN)}", changes=None)
        # What the teachers have been made by tells the student from others. By a single one the best and the poorest
        # are taught alike, so that more teachers may change who that is.
        made = "".join(identity(base.recipe_of(teacher)) for teacher in teachers.values())
        who = arm if len(teachers) > 1 else next(iter(teachers))
        label = f"{who}-{hashlib.sha256(made.encode()).hexdigest()[:6]}-first{window:g}"
        arguments = {
            **self.distillation,
            "teachers": [f"{base.name}/{teacher.name}" for teacher in teachers.values()],
            **({"teachers_per_step": 1} if arm == "random" else {}),
            "end": f"{window:g}dur",
        }
        return replace(
            plain,
            name=f"{label}{plain.name.removeprefix(PLAIN)}",
            sets={**plain.sets, "algorithms": {"distillation": arguments}},
            made_by=tuple(teacher.name for teacher in teachers.values()),
            made_from={**plain.made_from, "algorithms.distillation": "distillation"},
            tags={**plain.tags, "arm": arm, "window": window, "teachers": "+".join(teachers)},
        )

    def _cost(self, length: Any) -> float:
        return as_time(length).value / as_time(self.lengths[-1]).value

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {"speedup": [asdict(line) for line in summarize(rows, str(self.metric))]}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        from .speedup_report import quality_table, speedup_table, teacher_table

        metric, lines = str(self.metric), summarize(rows, str(self.metric))
        tables = [quality_table(lines, metric), speedup_table(lines)] if lines else []
        return "\n\n".join([teacher_table(rows, metric, self.chosen_by), *tables])

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .speedup_report import draw

        lines = summarize(rows, str(self.metric))
        taught = any(line.window for line in lines)
        return draw(rows, lines, str(self.metric), base.folder.name) if taught else None

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        reported = "who is the best and who the poorest teacher was chosen on the data that this is reported on"
        yield from claims_of(rows, str(self.metric), "" if self.chosen_by else reported)


def arms(ranked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arms besides the plain one, and their teachers; of a single teacher there is one arm."""
    if len(ranked) == 1:
        return {"best": (ranked[0],)}
    everyone = tuple(sorted(ranked))  # whose order in the file must not make another run
    return {"best": (ranked[0],), "poorest": (ranked[-1],), "ensemble": everyone, "random": everyone}
