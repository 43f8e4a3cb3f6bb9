"""Trains what a study lists and its folder does not hold yet, by whatever executor."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..config.errors import ConfigError
from ..config.recipe import Recipe
from ..run.folder import finished, held
from .changes import changes_of
from .core import Train
from .followed import note, refuse_if_changed
from .plan import Plan
from .report import Outcome, report

if TYPE_CHECKING:
    from ..executors import Executor, Running
    from ..run.progress import Progress
    from ..run.results import Result

POLLED = 0.1  # seconds


class Runs:
    """What of a study is done, is running and has failed. Nodes are asked for again whenever one more is done."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.nodes: list[Train] = []
        self.done: dict[str, Result] = {}
        self.failed: dict[str, str] = {}  # why, by name
        self.running: dict[str, Running] = {}
        self._known = set[str]()
        self.look()

    def look(self) -> None:
        """Lists the nodes, and finds those that are done already, until no new one is known."""
        before = -1
        while before != len(self.done):
            before = len(self.done)
            self.nodes = self.plan.nodes(self.done)
            for node in self.nodes:
                if node.changes is not None and not node.problem and node.name not in self._known:
                    self._known.add(node.name)
                    if result := finished(recipe := self.recipe_of(node)):
                        refuse_if_changed(recipe, self.followed(node))
                        self.done[node.name] = result

    def recipe_of(self, node: Train) -> Recipe:
        return self.plan.base.recipe_of(node)

    def followed(self, node: Train) -> dict[str, Recipe]:
        """The recipes of all runs that it hangs on, directly or not, by name, as far as they are known."""
        known = {other.name: other for other in self.nodes if other.changes is not None}
        found: dict[str, Recipe] = {}
        names = [*_makers(node)]
        while names:
            if (name := names.pop()) in known and name not in found:
                found[name] = self.recipe_of(known[name])
                names += _makers(known[name])
        return found

    def begin(self, node: Train) -> Recipe:
        """Its recipe, once its folder tells what it follows."""
        recipe = self.recipe_of(node)
        note(recipe, self.followed(node))
        return recipe

    def ready(self) -> list[Train]:
        """Those that may begin now. Those that never may, because what they follow has failed, fail too."""
        ready = []
        for node in self.nodes:
            if node.name in self.done or node.name in self.failed or node.name in self.running:
                continue
            if node.problem:
                self.failed[node.name] = node.problem
            elif failed := [name for name in node.after if name in self.failed]:
                self.failed[node.name] = f"not begun, as it follows {failed[0]}, which has failed"
            elif node.changes is not None and all(name in self.done for name in node.after):
                ready.append(node)
        return ready

    def end(self, node: Train, problem: str | None = None) -> str:
        """Takes note of how it has ended; returns what to tell of it, "" for nothing."""
        recipe = self.recipe_of(node)
        result = finished(recipe)  # what went wrong after the result was written takes nothing from it
        if result is None:
            self.failed[node.name] = problem or f"it has left no result in {recipe.folder}"
            return f"failed: {self.failed[node.name]}"
        self.done[node.name] = result
        self.look()
        words = self.plan.study.words(self.plan.base, node, result)
        return words and f"{words} after {result.seconds:.1f} s of training"

    def place(self, node: Train) -> str:
        """Which of all the runs it is."""
        number = next(i for i, other in enumerate(self.nodes, 1) if other.name == node.name)
        return f"run {number} of {len(self.nodes)}: {node.name}"

    def cost(self) -> float:
        """That of all nodes."""
        return sum(node.cost for node in self.nodes)


def _makers(node: Train) -> tuple[str, ...]:
    return node.after if node.made_by is None else node.made_by


def _join_ranks(plan: Plan) -> None:
    from ..run.training import join_ranks

    join_ranks(plan.base.recipe_of(next(node for node in plan.nodes({}) if node.changes is not None)))


def run(plan: Plan) -> Outcome:
    """Trains what is left, and reports. A training that fails is told of, and the others go on."""
    from ..run.progress import Progress

    base = plan.base
    _join_ranks(plan)
    with held(base.folder, base.source):
        runs = Runs(plan)
        progress = Progress(runs.cost(), plan.study.metric or "")
        for node in runs.nodes:
            if node.name in runs.done:
                progress.skip(node.cost)
        try:
            if plan.executor:
                _at_once(runs, plan.executor, progress)
            else:
                _in_turn(runs, progress)
        finally:
            progress.finish()
            if plan.executor:
                plan.executor.close()
        return report(plan, runs.nodes, runs.done, runs.failed)


def _in_turn(runs: Runs, progress: Progress) -> None:
    """In this process, under the launcher's ranks."""
    from composer.utils import dist

    from ..run.training import train

    with _letting_go() as let_go:
        while ready := runs.ready():
            place = runs.place(node := ready[0])
            progress.start(place, node.cost)
            problem = None
            try:
                train(runs.begin(node), watch=progress)
            except ConfigError as error:
                if dist.get_world_size() > 1:
                    raise  # other ranks may wait for this one
                problem = str(error)
            let_go()
            _tell(runs, node, place, problem, progress, told=progress.told)


@contextmanager
def _letting_go() -> Iterator[Callable[[], object]]:
    """A call to make after each run, whose parts refer to each other: Python lets them lie for long, with their data.

    What is there before is not looked through, which would take a second each time.
    """
    gc.freeze()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()


def _at_once(runs: Runs, executor: Executor, progress: Progress) -> None:
    """As processes or jobs of their own."""
    from ..executors import Job
    from ..run.files import write_yaml

    begun: dict[str, tuple[Train, str]] = {}
    while (ready := runs.ready()) or runs.running:
        for node in ready[: max(0, executor.at_once() - len(runs.running))]:
            recipe, place = runs.begin(node), runs.place(node)
            with recipe.source.blame("folder", OSError):
                write_yaml(recipe.folder / "recipe.yaml", recipe.config)
            job = Job(name=node.name, recipe=recipe.folder / "recipe.yaml", folder=recipe.folder)
            runs.running[node.name], begun[node.name] = executor.start(job), (node, place)
            progress.tell(f"{place}: begun, its output is in {recipe.folder / 'log.txt'}")
        time.sleep(POLLED)
        for name, running in list(runs.running.items()):
            if running.ended():
                del runs.running[name]
                node, place = begun[name]
                progress.add(node.cost)
                _tell(runs, node, place, running.problem(), progress)


def _tell(runs: Runs, node: Train, place: str, problem: str | None, progress: Progress, told: bool = False) -> None:
    """Takes note of its end, and tells of it, unless it was `told` before."""
    words = runs.end(node, problem)
    progress.total = runs.cost()
    if words and (not told or node.name in runs.failed):
        progress.tell(f"{place}: {words}")


def report_only(plan: Plan, page: Path | None = None) -> Outcome:
    """Reports what the finished trainings show, also on a `page` if it is given; nothing is trained."""
    _join_ranks(plan)
    runs = Runs(plan)
    if not runs.done:
        raise plan.base.source.error("", f"nothing is finished in {plan.base.folder}; there is nothing to report")
    return report(plan, runs.nodes, runs.done, {}, page)


def dry_run(plan: Plan) -> str:
    """The trainings as a table: what each changes, what it follows, its length, whether it is done; and their sum."""
    from ..run.results import aligned

    _join_ranks(plan)
    runs, length = Runs(plan), plan.study.length(plan.base)
    lines: list[tuple[str, ...]] = [("run", "changes of the base run", "begins after", "length", "done")]
    own, common = changes_of(runs.nodes)
    for node in runs.nodes:
        long = length if node.cost == 1 else f"{node.cost:.3g} x {length}"
        changes = own.get(node.name, "known later")
        lines.append((node.name, changes, ", ".join(node.after), long, "yes" * (node.name in runs.done)))
    done = [node for node in runs.nodes if node.name in runs.done]
    paid = sum(node.cost for node in done)
    left, number = runs.cost() - paid, len(runs.nodes)
    sums = f"{number} runs, {runs.cost():.4g} times {length}; {number - len(done)} left, {left:.4g} times"
    if paid and left:
        seconds = sum(runs.done[node.name].seconds for node in done) / paid * left
        sums += f", about {tqdm.format_interval(seconds)} of training, as the finished ones tell"
    elif left:
        sums += "; how long that takes can be told when one is finished"
    table = aligned(lines, left=("run", "changes of the base run", "begins after", "done"))
    return "\n".join([table, *([f"each of them: {common}"] if common else []), sums])
