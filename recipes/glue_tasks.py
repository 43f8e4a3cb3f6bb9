"""From a config with `tasks` and `seeds` to a checked `Study` of GLUE: all its runs, or one `ConfigError`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.arguments import check_value
from accelerando.recipes.config.errors import REFUSALS, Source, show
from accelerando.recipes.config.loading import resolving
from accelerando.recipes.config.lookup import nearest
from accelerando.recipes.config.recipe import Recipe, check, refuse_unknown
from accelerando.recipes.models.metrics import MetricName, build_metrics
from accelerando.recipes.models.pretrained import find_checkpoint
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.run.folder import has_checkpoint, refuse_another_run
from accelerando.recipes.variants import changed, own_keys, refuse_folder_of_a_run, without

# Without WNLI, which the average leaves out.
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
OWN_KEYS = {"tasks": dict, "seeds": list, "parallel": int | None}
DEFAULTS = {"seeds": [17], "parallel": None}
# What a task says beside keys of the recipe; `columns` and `labels` have no default.
TASK_KEYS = {"columns": list[str], "labels": int, "metrics": list[str], "splits": list[str], "start": str}
TASK_DEFAULTS = {"metrics": ["accuracy"], "splits": ["validation"], "start": None}
FIXED = ("run_name", "seed", "folder", "eval_data")


@dataclass(frozen=True)
class Run:
    """One task fine-tuned with one seed; `start` is the name of the run whose weights it goes on from, if any."""

    task: str
    seed: int
    splits: list[str]
    metrics: list[MetricName]
    start: str | None
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.task}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A checked study, its runs in the order of the tasks, and of those all seeds; `parallel` is how many at once."""

    source: Source
    config: dict[str, Any]
    folder: Path
    parallel: int | None
    runs: list[Run]


def plan(config: DictConfig, source: Source) -> Study:
    """Checks every task's config, and lists the runs."""
    from composer.utils import dist

    own = own_keys(config, source, OWN_KEYS, DEFAULTS, named="tasks", fixed=FIXED, at_once=TASK_KEYS)
    if (ranks := dist.get_world_size()) > 1:
        hint = "launch it with composer -n 1: tasks run side by side, each on one GPU"
        raise source.error("", f"{ranks} ranks given; {hint}")
    if own["parallel"] is not None and own["parallel"] < 1:
        raise source.error("parallel", f"{own['parallel']} given; expected at least 1, or null for one on each GPU")
    tasks = {task: _check_task(source, task, given) for task, given in own["tasks"].items()}
    for task, given in tasks.items():
        _check_start(source, task, given["start"], tasks)
    base = without(config, OWN_KEYS)
    with resolving(source):
        _check_base(base, source)
    runs = [_run(base, source, task, given, seed) for task, given in tasks.items() for seed in own["seeds"]]
    # Those that others wait for come first.
    runs.sort(key=lambda run: run.start is not None)
    folder = runs[0].recipe.folder.parent
    refuse_folder_of_a_run(folder, source)
    resolved: Any = OmegaConf.to_container(config)
    return Study(source, resolved, folder, own["parallel"], runs)


def _check_task(source: Source, task: str, given: dict[str, Any]) -> dict[str, Any]:
    key = f"tasks.{task}"
    if task not in GLUE:
        raise source.error(key, f"unknown task{nearest(task, GLUE)}")
    refuse_unknown(source.inside(key, given), given, TASK_KEYS)
    for name in ("columns", "labels"):
        if name not in given:
            raise source.error(f"{key}.{name}", "missing; every task needs it")
    given = TASK_DEFAULTS | given
    with source.blame(key):
        for name, kind in TASK_KEYS.items():
            if name != "start":  # elsewhere, that is a time
                check_value(name, kind, given[name])
    for name in given["metrics"]:
        if name not in get_args(MetricName):
            raise source.error(f"{key}.metrics", f"unknown metric {name}{nearest(name, get_args(MetricName))}")
    for name in ("metrics", "splits"):
        if not given[name] or len(set(given[name])) < len(given[name]):
            raise source.error(f"{key}.{name}", f"{given[name]} given; expected one or more different names")
    with source.blame(f"{key}.metrics", ValueError):
        build_metrics(given["metrics"], given["labels"])
    return given


def _check_start(source: Source, task: str, start: Any, tasks: dict[str, dict[str, Any]]) -> None:
    key = f"tasks.{task}.start"
    if start is None:
        return
    if not (isinstance(start, str) and start in tasks):
        hint = f"expected one of the tasks {', '.join(tasks)}; {key}=null starts from the pretrained checkpoint"
        raise source.error(key, f"{show(start)} given; {hint}")
    if tasks[start]["start"] is not None or start == task:
        raise source.error(key, f"{start} given; expected a task that starts from the pretrained checkpoint itself")


def _check_base(base: DictConfig, source: Source) -> None:
    for key, name in (("model", "bert"), ("train_data", "hugging_face_text")):
        if not (isinstance(base.get(key), DictConfig) and isinstance(base[key].get(name), DictConfig)):
            raise source.error(key, f"expected {name} with its arguments, to which each task adds its own")
    if "eval_data" in base:
        raise source.error("eval_data", "comes from train_data and each task's splits; leave it out")
    if "pretrained" not in list(base.model.bert):  # whatever it refers to
        hint = "missing; expected a checkpoint, the folder of a run, or a Hugging Face name or folder"
        raise source.error("model.bert.pretrained", hint)


def _run(base: DictConfig, source: Source, task: str, given: dict[str, Any], seed: int) -> Run:
    name = f"{base['run_name']}/{task}-seed{seed}"
    model: dict[str, Any] = {"objective": "classification", "num_labels": given["labels"], "metrics": given["metrics"]}
    start = f"{given['start']}-seed{seed}" if given["start"] else None
    if start:
        model["pretrained"] = str(Path(base.get("folder", "runs"), base["run_name"], start))
    data = {"config": task, "text_columns": given["columns"], "split": "train"}
    own = {"seed": seed, "run_name": name, "model": {"bert": model}, "train_data": {"hugging_face_text": data}}
    changes = {key: value for key, value in given.items() if key not in TASK_KEYS}
    config, source = changed(base, source, f"tasks.{task}", changes, own)
    config["eval_data"] = copy.deepcopy(config["train_data"])
    splits = given["splits"]
    config["eval_data"]["hugging_face_text"]["split"] = splits if len(splits) > 1 else splits[0]
    return Run(task, seed, splits, given["metrics"], start, check(config, source))


def check_files(runs: Sequence[Run]) -> None:
    """What only the files can tell of runs still to be trained: the checkpoint, the tokenizer, the data, old runs."""
    if not runs:
        return
    from transformers import AutoTokenizer

    tasks = {run.task: run.recipe for run in runs}
    # A model that starts from a task differs from this one in its classifier alone.
    first = next((run.recipe for run in runs if run.start is None), None)
    model = first.model.build() if first else None
    for task, recipe in tasks.items():
        build_algorithms(recipe, recipe.scheduler.build() if recipe.scheduler else None)
        arguments = recipe.config["train_data"]["hugging_face_text"]
        key = "train_data.hugging_face_text"
        if model:
            recipe.optimizer.build(model.parameters())
            with recipe.source.blame(f"{key}.tokenizer", *REFUSALS):
                words = len(AutoTokenizer.from_pretrained(arguments["tokenizer"]))
            if words > model.config.vocab_size:
                hint = f"{words} words, but the pretrained model has {model.config.vocab_size}"
                raise recipe.source.error(f"{key}.tokenizer", f"{arguments['tokenizer']} has {hint}")
            if (longest := model.config.max_position_embeddings) < arguments.get("seq_len", 0):
                raise recipe.source.error(f"{key}.seq_len", f"above the pretrained model's {longest} positions")
        _check_rows(recipe, task)
    names = {run.name for run in runs}
    for run in runs:
        if run.start and run.start not in names:
            with run.recipe.source.blame(f"tasks.{run.task}.start", OSError):
                find_checkpoint(run.recipe.config["model"]["bert"]["pretrained"])
        if has_checkpoint(run.recipe):
            refuse_another_run(run.recipe)


def _check_rows(recipe: Recipe, task: str) -> None:
    """Reads the labels of what is trained on and evaluated; brings what is on the hub here once, not for each run."""
    from accelerando.recipes.data.text import HuggingFaceText

    source, labels = recipe.source, recipe.config["model"]["bert"]["num_labels"]
    for part in ("train_data", "eval_data"):
        data = HuggingFaceText(**recipe.config[part]["hugging_face_text"])
        for split in [data.split] if isinstance(data.split, str) else data.split:
            with source.blame(f"tasks.{task}", *REFUSALS):
                values = data.rows(split)[:][data.label_column] if data.label_column else []
            if not values:
                raise source.error(f"tasks.{task}", f"{split} has no labels; expected label_column to name them")
            wrong = [value for value in values if not _fits(value, labels)]
            if wrong:
                expected = f"whole numbers below {labels}" if labels > 1 else "fractional numbers"
                hint = "; GLUE's test labels are not public" if wrong[0] == -1 else ""
                found = f"{split} has the label {show(wrong[0])}"
                raise source.error(f"tasks.{task}", f"{found}; expected {expected}{hint}")


def _fits(value: Any, labels: int) -> bool:
    return isinstance(value, float) if labels == 1 else isinstance(value, int) and 0 <= value < labels
