"""GLUE: fine-tunes a pretrained BERT on its tasks, with several seeds, and tells each task's metrics and the average.

Several at once are `executor: {processes: {}}`, one on each GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

from omegaconf import DictConfig, OmegaConf

from ..config.arguments import check_value
from ..config.errors import Source, show
from ..config.keys import Holds
from ..config.loading import merge, resolving
from ..config.lookup import nearest
from ..config.recipe import Recipe, refuse_unknown
from .core import FIXED, Base, Study, Train, named
from .glue_scores import GLUE, averages, in_words, table
from .table import Row

if TYPE_CHECKING:
    from ..run.results import Result

# What a task says beside keys of the recipe; `columns` and `labels` have no default.
TASK_KEYS = {"columns": list[str], "labels": int, "metrics": list[str], "splits": list[str], "start": str}
TASK_DEFAULTS = {"metrics": ["accuracy"], "splits": ["validation"], "start": None}


@dataclass(kw_only=True)
class Glue(Study):
    """The base run has `train_data: {hugging_face_text: ...}`, and `model: {bert: {pretrained: ...}}`, which is a
    checkpoint, the folder of a run, or a Hugging Face name or folder.

    Args:
        tasks: those of GLUE, but for WNLI, in the order in which they begin; false leaves one out. A task has
            `columns`, the sentence or the two; `labels`, how many classes, of which 1 is regression; `metrics`, by
            default [accuracy], also f1, matthews, pearson and spearman, whose mean is the task's score; `splits`, by
            default [validation], on which they are evaluated; `start`, the task from whose weights of the same seed it
            starts, with a new classifier, by default the checkpoint; and what it changes of the base run, such as
            max_duration.
        seeds: every task is fine-tuned once with each.
        metric: each task has its own; leave it out.
    """

    tasks: Annotated[dict[str, Any], Holds("changes", by_name=True, also=TASK_KEYS)] = field(default_factory=dict)

    def prepare(self, base: Base) -> None:
        """Checks every task, and what only the files tell of those that are still to be trained."""
        from composer.utils import dist

        from ..run.folder import finished, refuse_another_run
        from .glue_files import check_files

        source = base.source
        if self.metric is not None:
            raise source.error("metric", "each task has metrics of its own; leave it out")
        if (ranks := dist.get_world_size()) > 1:
            hint = "launch it with composer -n 1: tasks run side by side, each on one GPU"
            raise source.error("", f"{ranks} ranks given; {hint}")
        given = named(source, "tasks", self.tasks, (*FIXED, "eval_data", "validation_data"))
        with resolving(source):
            _check_base(base.config, source)
        self.own = {task: _own(base, task, changes) for task, changes in given.items()}
        self.changes = {
            task: {key: value for key, value in changes.items() if key not in TASK_KEYS}
            for task, changes in given.items()
        }
        for task, own in self.own.items():
            _check_start(source, task, own["start"], self.own)
        left = dict[str, Recipe]()
        for task in self.own:
            for seed in self.seeds:
                recipe = self._recipe(base, task, seed)
                refuse_another_run(recipe, as_long=True)
                if not finished(recipe):
                    left.setdefault(task, recipe)
        check_files(source, left)

    def _train(self, base: Base, task: str, seed: int) -> Train:
        """Fine-tuning from the checkpoint, whatever the task starts from."""
        own, changes, key = self.own[task], self.changes[task], f"tasks.{task}"
        model = {"objective": "classification", "num_labels": own["labels"], "metrics": own["metrics"]}
        data = {"config": task, "text_columns": own["columns"], "split": "train"}
        sets = {"seed": seed, "model": {"bert": model}, "train_data": {"hugging_face_text": data}}
        with resolving(base.source), base.source.blame(key, TypeError):
            merged = merge(base.config, OmegaConf.create(changes), OmegaConf.create(sets))
            evaluated: Any = OmegaConf.to_container(merged.train_data)
        evaluated["hugging_face_text"]["split"] = own["splits"] if len(own["splits"]) > 1 else own["splits"][0]
        tags = {"task": task, "seed": seed}
        sets["eval_data"] = evaluated
        return Train(name=f"{task}-seed{seed}", changes=changes, key=key, sets=sets, tags=tags)

    def _start(self, base: Base, task: str, seed: int) -> str | None:
        """The name of the run whose weights it starts from, if any."""
        start = self.own[task]["start"]
        return f"{start}-seed{seed}" if start else None

    def _recipe(self, base: Base, task: str, seed: int) -> Recipe:
        """Tried out from the checkpoint: what it starts from may not be there yet, but differs in its head alone."""
        recipe = base.recipe_of(self._train(base, task, seed))
        if (start := self._start(base, task, seed)) is None:
            return recipe
        bert = {**recipe.config["model"]["bert"], "pretrained": str(base.folder / start)}
        return replace(recipe, config={**recipe.config, "model": {"bert": bert}})

    def nodes(self, base: Base, done: Mapping[str, Result]) -> list[Train]:
        """In the order of the tasks, and of those all seeds; those that others wait for come first."""
        nodes = []
        for task in self.own:
            for seed in self.seeds:
                node, start = self._train(base, task, seed), self._start(base, task, seed)
                if start:
                    bert = {**node.sets["model"]["bert"], "pretrained": str(base.folder / start)}
                    known = node.changes if start in done else None
                    sets = {**node.sets, "model": {"bert": bert}}
                    node = replace(node, changes=known, sets=sets, after=(start,))
                nodes.append(node)
        return sorted(nodes, key=lambda node: len(node.after))

    def rows(self, base: Base, node: Train, result: Result) -> Iterator[Row]:
        """One for each split, with the task's metrics by their own names."""
        from ..models.metrics import CLASSES
        from ..run.history import EVAL_PREFIX

        own = self.own[node.tags["task"]]
        cost = {"batches": int(result.batches), "samples": int(result.samples), "seconds": float(result.seconds)}
        for split in own["splits"]:
            place = f"{EVAL_PREFIX}{split}/" if len(own["splits"]) > 1 else EVAL_PREFIX
            values = {metric: result.metrics.get(f"{place}{CLASSES[metric].__name__}") for metric in own["metrics"]}
            metrics = {metric: float("nan") if value is None else float(value) for metric, value in values.items()}
            yield Row(node=node.name, tags={**node.tags, "split": split}, **cost, metrics=metrics)

    def words(self, base: Base, node: Train, result: Result) -> str:
        """All metrics, in %."""
        return in_words([*self.rows(base, node, result)])

    def summaries(self, base: Base, rows: Sequence[Row]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Each task's score, and their average."""
        return {"averages": averages(rows)}

    def text(self, base: Base, rows: Sequence[Row]) -> str:
        """The scores, with what they are means of."""
        return table(rows)


def _check_base(base: DictConfig, source: Source) -> None:
    for key, name in (("model", "bert"), ("train_data", "hugging_face_text")):
        if not (isinstance(base.get(key), DictConfig) and isinstance(base[key].get(name), DictConfig)):
            raise source.error(key, f"expected {name} with its arguments, to which each task adds its own")
    for key in ("eval_data", "validation_data"):
        if key in base:
            raise source.error(key, "comes from train_data and each task's splits; leave it out")
    if "pretrained" not in list(base.model.bert):  # whatever it refers to
        hint = "missing; expected a checkpoint, the folder of a run, or a Hugging Face name or folder"
        raise source.error("model.bert.pretrained", hint)


def _own(base: Base, task: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What the task says beside keys of the recipe, checked; it may refer to what the base run holds."""
    from ..models.metrics import MetricName, build_metrics

    source, key = base.source, f"tasks.{task}"
    if task not in GLUE:
        raise source.error(key, f"unknown task{nearest(task, GLUE)}")
    refuse_unknown(source.inside(key, changes), changes, TASK_KEYS)
    for name in ("columns", "labels"):
        if name not in changes:
            raise source.error(f"{key}.{name}", "missing; every task needs it")
    place = f"{source.part}.{key}"
    with resolving(source):
        whole = OmegaConf.merge(base.config)
        OmegaConf.update(whole, place, {name: changes[name] for name in TASK_KEYS if name in changes}, force_add=True)
        given: Any = OmegaConf.to_container(OmegaConf.select(whole, place), resolve=True)
    own: dict[str, Any] = {**TASK_DEFAULTS, **given}
    with source.blame(key):
        for name, kind in TASK_KEYS.items():
            if name != "start":  # elsewhere, that is a time
                check_value(name, kind, own[name])
    for name in own["metrics"]:
        if name not in get_args(MetricName):
            raise source.error(f"{key}.metrics", f"unknown metric {name}{nearest(name, get_args(MetricName))}")
    for name in ("metrics", "splits"):
        if not own[name] or len(set(own[name])) < len(own[name]):
            raise source.error(f"{key}.{name}", f"{own[name]} given; expected one or more different names")
    with source.blame(f"{key}.metrics", ValueError):
        build_metrics(own["metrics"], own["labels"])
    return own


def _check_start(source: Source, task: str, start: Any, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    key = f"tasks.{task}.start"
    if start is None:
        return
    if not (isinstance(start, str) and start in tasks):
        hint = f"expected one of the tasks {', '.join(tasks)}; {source.part}.{key}=null starts from the checkpoint"
        raise source.error(key, f"{show(start)} given; {hint}")
    if tasks[start]["start"] is not None or start == task:
        raise source.error(key, f"{start} given; expected a task that starts from the pretrained checkpoint itself")
