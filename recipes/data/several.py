"""The data of several tasks at once, for a model that has a head for each (`models/several.py`)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.core import DataSpec, Evaluator, ensure_data_spec

from ..config.errors import ArgumentError
from .checks import check_tasks
from .loaders import AnyDevice, Shards, told_batch_size
from .turns import InTurn, OfTasks
from .wrapped import source_at


@dataclass
class Several:
    """The data of several sources, one for each task, whose batches tell in `task` which task they are of.

    In training each batch is of one task, the same on all ranks. An epoch holds every batch of every task once: the
    order of the tasks is drawn by seed and epoch, and the batches of each come as in a run of it alone. Their sources
    hold texts in memory, or read them by their places. In evaluation each task is evaluated by itself, by its own
    metrics: `eval/topic` of a task that is called topic.
    """

    sources: dict[str, Any]  # by task, a source with its arguments, such as {topic: {hugging_face_text: {...}}}

    _runs = Path()

    def look_in(self, runs: Path) -> None:
        """The folder of all runs, in which files of the sources may lie."""
        self._runs = runs

    def check(self) -> None:
        check_tasks("sources", self.sources)
        for task in self.sources:
            with self._source(task) as source:
                source.check()

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec | list[Evaluator]:
        built: dict[str, Any] = {}
        for task in self.sources:
            with self._source(task) as source:
                built[task] = source.build(batch_size, train, seed, device)
        if train:
            return self._in_turn({task: ensure_data_spec(data) for task, data in built.items()}, seed)
        return [one for task, data in built.items() for one in self._evaluators(task, data, batch_size)]

    def _in_turn(self, specs: dict[str, DataSpec], seed: int) -> OfTasks:
        for task, spec in specs.items():
            if not isinstance(getattr(spec.dataloader, "sampler", None), Shards):
                hint = "is not read by places, to which a run could go back; expected texts in memory"
                raise ArgumentError(self._key(task), hint)
        loader = InTurn({task: spec.dataloader for task, spec in specs.items()}, seed)  # type: ignore[misc]
        samples = sum(spec.num_samples or 0 for spec in specs.values())
        return OfTasks(loader, specs, self._keys(), num_samples=samples)

    def _evaluators(self, task: str, data: Any, batch_size: int) -> Iterator[Evaluator]:
        several = [(each.label, each.dataloader) for each in data] if isinstance(data, list) else [("eval", data)]
        for label, spec in several:
            own = ensure_data_spec(spec)
            yield Evaluator(
                label=label.replace("eval", f"eval/{task}", 1),
                dataloader=OfTasks(own.dataloader, {task: own}, self._keys()),
                # Composer takes it for a pattern of the names of the model's metrics, of whatever case.
                metric_names=[rf"(?-i:\A{task}/)"],
                device_eval_microbatch_size=told_batch_size(own.dataloader, batch_size),
            )

    def _keys(self) -> dict[str, str]:
        return {task: self._key(task) for task in self.sources}

    def _key(self, task: str) -> str:
        given = self.sources[task]
        return f"sources.{task}.{given if isinstance(given, str) else next(iter(given))}"

    def _source(self, task: str) -> AbstractContextManager[Any]:
        return source_at(f"sources.{task}", self.sources[task], self._runs)
