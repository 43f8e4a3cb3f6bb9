"""Lottery tickets of a pretrained encoder: on each task, and how the masks of one task do on the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from ..config.keys import Holds
from ..run.history import EVAL_PREFIX
from ..run.results import label, percent
from .bert_tickets_cells import LATER, TICKETS, Task, in_words, transfers
from .bert_tickets_checks import check_scratch, check_together, check_weights_of, task_of, which_of
from .bert_tickets_runs import PRETRAINING, Runs
from .claims import Claim
from .core import FIXED, Base, Changes, NamedChanges, TicketArguments, Train, named, refuse_twice
from .density import DENSE, sparsest_match, table
from .pruning import PruningStudy, number
from .table import Row
from .tickets import checked_ladder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..run.results import Result

Control = Literal["one_shot", "random"]


@dataclass(kw_only=True)
class BertTickets(PruningStudy):
    """The base run with a task's changes is the fine-tuning of that task from pretrained weights, theta_0.

    Args:
        tasks: what each task changes of the base run, by name: its model's head, its data, its length.
        masked_lm: which of the tasks is that of the pretraining, if any.
        pretraining: what the run that makes theta_0 changes of the base run, such as {max_duration: 60ep}; null where
            the base run's model names its `pretrained` weights.
        scratch: what makes the model one of random weights, as large as theta_0: by default its `random_weights`, or
            without such an argument `pretrained: null`, which is also added to a model that is given here.
        ladder: arguments of LotteryTicket that all ladders share, such as {include: ["*.encoder.*"]}; by default they
            have nine levels, each of which prunes a tenth of all.
        later: the moment of the training, such as 20ba, to which another ladder of each task rewinds; null for none.
        together: tasks that are trained at once on one encoder, in a ladder of their own, by its name, such as {all:
            {tasks: [topic, order], max_duration: 900ba}}; all but `tasks` changes the base run.
        controls: what is pruned before the training, to as many weights as the tickets have: those of theta_0 of least
            magnitude (`one_shot`), or random ones.
        control_levels: at which of the ladder's levels.
        transfer_level: the level whose masks are tried on all other tasks; null for none.
        metrics: by which metric a task is judged, such as {stsb: PearsonCorrCoef}; by default the first accuracy.
        tolerance: see `PruningStudy`; by default null, one standard deviation of the task's dense networks.
    """

    about: ClassVar[str] = (
        "Each task's network begins with the same pretrained encoder, theta_0, and a head of its own. Densities are "
        "those of the matrices that may be pruned, to which a head does not belong. `scratch` is the dense network "
        "from random weights. `tickets` are found by iterative magnitude pruning on the task and rewound to theta_0, "
        "`later` to a later moment of the training. `one_shot` keeps the weights of theta_0 that are greatest, "
        "`random` any. `from NAME` are the masks that were found on another task, on theta_0 (arXiv 2007.12223). "
        + PruningStudy.about
    )
    tasks: NamedChanges = field(default_factory=dict)
    masked_lm: str | None = None
    pretraining: Changes | None = None
    scratch: Changes = field(default_factory=dict)
    ladder: TicketArguments = field(default_factory=dict)
    later: str | None = None
    together: Annotated[dict[str, Any], Holds("changes", by_name=True, also={"tasks": list[str]})] = field(
        default_factory=dict
    )
    controls: list[Control] = field(default_factory=list)
    control_levels: list[int] = field(default_factory=lambda: [7])
    transfer_level: int | None = 7
    metrics: dict[str, str] = field(default_factory=dict)
    tolerance: float | None = None

    def prepare(self, base: Base) -> None:
        source = base.source
        self.check_tolerance(base)
        if self.metric is not None:
            raise source.error("metric", "each task has one of its own; give `metrics`, by task")
        self._tasks = named(source, "tasks", self.tasks, FIXED)
        for key, given in {"masked_lm": [self.masked_lm or ""], "metrics": [*self.metrics]}.items():
            for name in {*given} - {"", *self.tasks}:  # one that is left out may be named there
                raise source.error(key, f"{name} given; expected one of the tasks {', '.join(self._tasks)}")
        self._runs = runs = Runs(
            base=base,
            tasks=self._tasks,
            pretraining=self.pretraining,
            scratch=self.scratch,
            seeds=self.seeds,
            controls=self.controls,
            control_levels=self.control_levels,
            transfer_level=self.transfer_level,
        )
        runs.recipes |= {task: base.recipe_of(runs.bare(task, self.seeds[0])) for task in self._tasks}
        self.judged = {task: task_of(base, task, own, self.metrics.get(task)) for task, own in runs.recipes.items()}
        runs.which |= which_of(base, runs.recipes, self.ladder)
        self._check_ladders(base)
        pretrains = None if self.pretraining is None else base.recipe_of(runs.pretrains())
        check_weights_of(base, runs.recipes, runs.which, pretrains)
        for task in self._tasks:
            scratch = base.recipe_of(runs.from_scratch(task, self.seeds[0]))
            check_scratch(base, task, runs.recipes[task], scratch, runs.which[task])
        runs.together = check_together(base, self.together, self._tasks)
        for name, (tasks, _) in runs.together.items():
            runs.which[name] = runs.which[tasks[0]]
            runs.recipes[name] = base.recipe_of(runs.bare(name, self.seeds[0]))
            self.judged |= {f"{task} of {name}": self.judged[task].of_several(name) for task in tasks}

    def _check_ladders(self, base: Base) -> None:
        """Finds the ladders, and checks the levels of all that stands beside them."""
        source, runs = base.source, self._runs
        for name in ("rewind_to", "rewind"):
            if name in self.ladder:
                hint = "ladders rewind to theta_0, or to `later`; leave it out"
                raise source.error(f"ladder.{name}", hint)
        own = {"levels": 9, "fraction": 0.1, "schedule": "arithmetic", **self.ladder}
        for task, recipe in runs.recipes.items():
            own |= runs.which[task]
            runs.ladder = checked_ladder(base, TICKETS, {"ladder": own}, recipe)
            later = {"ladder": own, "later": {"rewind_to": self.later}}
            runs.later = checked_ladder(base, LATER, later, recipe) if self.later else None
        assert runs.ladder
        refuse_twice(self.controls, source, "controls", True, f"of {', '.join(get_args(Control))}")
        given = [] if self.transfer_level is None else [self.transfer_level]
        for key, levels in {"control_levels": self.control_levels, "transfer_level": given}.items():
            fits = all(1 <= level <= runs.ladder.levels for level in levels)
            refuse_twice(levels, source, key, fits, f"from 1 to {runs.ladder.levels}, the levels of the ladder")
        if self.controls and not self.control_levels:
            raise source.error("controls", "given without control_levels, at which they stand")

    def nodes(self, base: Base, done: Mapping[str, Result]) -> Iterator[Train]:
        return self._runs.all(done)

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """Those of `PruningStudy`; of tasks that are trained at once, one for each of them."""
        for row in super().rows(base, node, result):
            if row["arm"] == DENSE and node.tags["arm"] == LATER:
                continue  # the dense network again
            if row.tags.get("level"):
                metrics = {**row.metrics, "kept": row["density"]}
                row = replace(row, tags={**row.tags, "density": self._runs.density(row["level"])}, metrics=metrics)
            if row["task"] not in self._runs.together:
                yield row
                continue
            for task in self._judged_in(row["task"]):
                own = {
                    metric: value
                    for metric, value in row.metrics.items()
                    if metric in task.metrics or not metric.startswith(EVAL_PREFIX)
                }
                yield replace(row, tags={**row.tags, "task": task.name}, metrics=own)

    def _judged_in(self, name: str) -> list[Task]:
        """The task, or those of a ladder of several."""
        if name not in self._runs.together:
            return [self.judged[name]]
        return [self.judged[f"{task} of {name}"] for task in self._runs.together[name][0]]

    def words(self, base: Base, node: Train, result: Result) -> str:
        """The metric at the end, of the task or of each of several."""
        if (name := node.tags["task"]) == PRETRAINING:
            return "the weights of theta_0"
        metrics = [task.metric for task in self._judged_in(name)]
        return ", ".join(f"{label(metric)} {number(result.metrics.get(metric)):.4f}" for metric in metrics)

    def summaries(self, base: Base, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """`density.csv`, the means by each metric of each task, and `transfer.csv`, those of each mask on each task."""
        lines = [
            {"task": task.name, "metric": metric, **asdict(mean)}
            for task in self.judged.values()
            for metric in task.metrics
            for mean in task.means(rows, metric, self.tolerance)
        ]
        return {"density": lines, "transfer": self._matrix(rows)}

    def _matrix(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        if not self.transfer_level:
            return []
        tasks = [self.judged[task] for task in self._tasks]
        return transfers(rows, tasks, self._runs.density(self.transfer_level), self.tolerance)

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        parts = []
        for task in self.judged.values():
            if not (found := task.means(rows, task.metric, self.tolerance)):
                continue
            by_deviation, chosen = self.tolerance is None, task.chosen_by(task.metric)
            parts.append(f"{task.name.upper()}\n\n{table(found, task.metric, by_deviation, chosen)}")
            for metric in task.metrics:
                if metric != task.metric:
                    match = sparsest_match(task.means(rows, metric, self.tolerance)).get(TICKETS)
                    down_to = f"down to {percent(match.density)}" if match else "nowhere"
                    parts.append(f"by {label(metric)}, tickets match {down_to}")
        if matrix := self._matrix(rows):
            parts.append(f"MASKS OF ONE TASK ON ANOTHER\n\n{in_words(matrix)}")
        return "\n\n".join(parts)

    def figure(self, base: Base, rows: Sequence[Row]) -> Figure | None:
        from .bert_tickets_figure import draw

        means = {task: task.means(rows, task.metric, self.tolerance) for task in self.judged.values()}
        return draw({task: found for task, found in means.items() if found}, self._matrix(rows), base.folder.name)

    def claims(self, base: Base, rows: Sequence[Row]) -> Iterator[Claim]:
        from .bert_tickets_claims import claims_of

        tasks = [self.judged[task] for task in self._tasks]
        densities = [self._runs.density(level) for level in sorted(self.control_levels)]
        transfer = self._runs.density(self.transfer_level) if self.transfer_level else None
        yield from claims_of(rows, tasks, densities, transfer, self.masked_lm or "")
