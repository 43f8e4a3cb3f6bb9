"""GLUE: fine-tunes a pretrained BERT on its tasks, with several seeds, and tells each task's metrics and the average.

    composer -n 1 recipes/glue.py yamls/bert/glue.yaml variables.checkpoint=runs/bert-base-c4 key=value ...

The checkpoint is the folder of a run, a Composer checkpoint, or a Hugging Face name or folder. The file is that of
recipes/train.py, with `model: {bert: ...}` and `train_data: {hugging_face_text: ...}`, and

    tasks:
      NAME:                  one of GLUE's, but for WNLI; false leaves it out. The tasks begin in this order
        columns: [a, b]      the sentence, or the two
        labels: 3            how many classes; 1 is regression
        metrics: [accuracy]  also f1, matthews, pearson, spearman; the task's score is their mean
        splits: [validation] what they are evaluated on
        start: mnli          the task whose weights it starts from, by default the checkpoint; the classifier is new
        KEY: VALUE           what else it changes in the file, such as max_duration
    seeds: [17, 18]          every task is fine-tuned once with each; what starts from a task, from that of its own seed
    parallel: 8              runs at a time, in turn on the GPUs there are; by default one on each, without GPUs one

The study's folder, ``{folder}/{run_name}``, then holds `glue.csv`, `config.yaml`, and every run's folder, in which
`log.txt` is the run's output if several ran at once. The same command goes on after a kill. An error in any task is one
line and exit code 2, before anything is trained; a run that fails later is one line too, while the others go on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config.errors import Source
from accelerando.recipes.glue_tasks import GLUE, Run, Study, check_files, plan
from accelerando.recipes.models.metrics import CLASSES
from accelerando.recipes.run.command_line import command_line
from accelerando.recipes.run.folder import finished, held
from accelerando.recipes.run.loggers import log_study
from accelerando.recipes.run.parallel import Job, gpus, run_jobs
from accelerando.recipes.run.training import train

if TYPE_CHECKING:
    from accelerando.recipes.run.results import Result


@dataclass(frozen=True)
class Score:
    """What one metric of one run is, in %."""

    task: str
    seed: int
    split: str
    metric: str
    value: float


def glue(config: DictConfig | Mapping[str, Any], source: Source | None = None) -> list[Score]:
    """Fine-tunes what the config describes and its folder does not hold yet, and reports; returns all scores."""
    study = plan(OmegaConf.create(config), source or Source())  # type: ignore[arg-type]
    with held(study.folder, study.source):
        return _do(study)


def _do(study: Study) -> list[Score]:
    results = {run.name: result for run in study.runs if (result := finished(run.recipe))}
    check_files(left := [run for run in study.runs if run.name not in results])

    from composer.devices import DeviceGPU
    from composer.utils import get_device

    on_gpu = isinstance(get_device(study.runs[0].recipe.trainer.get("device")), DeviceGPU)
    places = gpus() if on_gpu else []
    at_once = study.parallel or len(places) or 1
    if min(at_once, len(left)) > 1:
        slots = [{"CUDA_VISIBLE_DEVICES": places[i % len(places)]} if places else {} for i in range(at_once)]
        results |= _train_in_parallel(study, left, slots)
    else:
        results |= _train_in_turn(study, left)
    scores = [score for run in study.runs for score in _scores(run, results[run.name])]
    _report(study, scores)
    return scores


def _train_in_turn(study: Study, runs: Sequence[Run]) -> dict[str, Result]:
    from accelerando.recipes.run.progress import EvaluationLines

    results = {}
    for number, run in enumerate(runs, len(study.runs) - len(runs) + 1):
        place = f"run {number} of {len(study.runs)}: {run.task}, seed {run.seed}"
        results[run.name] = train(run.recipe, watch=EvaluationLines(place))
    return results


def _train_in_parallel(study: Study, runs: Sequence[Run], slots: Sequence[Mapping[str, str]]) -> dict[str, Result]:
    from accelerando.recipes.run.files import write_yaml

    jobs, by_name = [], {run.name: run for run in runs}
    for run in runs:
        folder = run.recipe.folder
        with study.source.blame("folder", OSError):
            write_yaml(folder / "recipe.yaml", run.recipe.config)
        jobs.append(Job(run.name, folder / "recipe.yaml", folder / "log.txt", run.start))
    results: dict[str, Result] = {}
    failures: list[str] = []

    def started(job: Job) -> None:
        print(f"{job.name}: begun, its output is in {job.log}", file=sys.stderr, flush=True)

    def ended(job: Job, problem: str | None) -> None:
        result = None if problem else finished(by_name[job.name].recipe)
        if result:
            results[job.name] = result
            done = f"{len(study.runs) - len(runs) + len(results)} of {len(study.runs)} runs"
            text = _in_words(_scores(by_name[job.name], result))
            print(f"{job.name}: {text} after {result.seconds:.1f} s of training ({done})", file=sys.stderr, flush=True)
        else:
            failures.append(job.name)
            print(f"{job.name}: failed: {problem or f'no result; see {job.log}'}", file=sys.stderr, flush=True)

    run_jobs(jobs, slots, started, ended)
    if failures:
        hint = "the same command goes on with them"
        raise study.source.error("tasks", f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}; {hint}")
    return results


def _scores(run: Run, result: Result) -> list[Score]:
    from accelerando.recipes.run.history import EVAL_PREFIX

    scores = []
    for split in run.splits:
        place = f"{EVAL_PREFIX}{split}/" if len(run.splits) > 1 else EVAL_PREFIX
        for metric in run.metrics:
            value = result.metrics.get(f"{place}{CLASSES[metric].__name__}")
            scores.append(Score(run.task, run.seed, split, metric, float("nan") if value is None else 100 * value))
    return scores


def _in_words(scores: Sequence[Score]) -> str:
    """Of one run."""
    several = len({score.split for score in scores}) > 1
    return ", ".join(f"{s.metric} {f'{s.split} ' if several else ''}{s.value:.2f}" for s in scores)


def averages(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A row for each task, and one for all: the score's mean over seeds, and its standard deviation, by n - 1.

    A task's score is the mean of its metrics, of all splits; the average's is the mean of the tasks' scores.
    """
    by_run: dict[tuple[str, int], list[float]] = {}
    for score in scores:
        by_run.setdefault((score.task, score.seed), []).append(score.value)
    tasks = [task for task in GLUE if any(task == score.task for score in scores)]
    seeds = list(dict.fromkeys(score.seed for score in scores))
    table = np.array([[np.mean(by_run[task, seed]) for seed in seeds] for task in tasks])
    deviations = np.full(len(tasks) + 1, np.nan)
    table = np.vstack([table, table.mean(axis=0)])
    if len(seeds) > 1:
        deviations = table.std(axis=1, ddof=1)
    names = [*tasks, "average" if len(tasks) == len(GLUE) else f"average of {len(tasks)}"]
    rows = zip(names, table.mean(axis=1), deviations, strict=True)
    return [{"task": name, "score": float(m), "deviation": float(d), "seeds": len(seeds)} for name, m, d in rows]


def _table(scores: Sequence[Score]) -> str:
    from accelerando.recipes.run.results import aligned

    rows = [("task", "score", "deviation", "seeds", "metrics")]
    for row in averages(scores):
        of_task = [score for score in scores if score.task == row["task"]]
        means = []
        for key in dict.fromkeys((score.split, score.metric) for score in of_task):
            value = float(np.mean([score.value for score in of_task if (score.split, score.metric) == key]))
            means.append(Score(row["task"], 0, *key, value))
        deviation = "" if row["deviation"] != row["deviation"] else f"{row['deviation']:.2f}"
        rows.append((row["task"], f"{row['score']:.2f}", deviation, str(row["seeds"]), _in_words(means)))
    return aligned(rows, left=("task", "metrics"))


def _report(study: Study, scores: Sequence[Score]) -> None:
    from accelerando.recipes.run.files import write_csv, write_yaml

    with study.source.blame("folder", OSError):
        write_yaml(study.folder / "config.yaml", study.config)
        write_csv(scores, study.folder / "glue.csv")
    print(f"\n{_table(scores)}\n\n{study.folder}: config.yaml, glue.csv, a folder for each run", flush=True)
    tables = {"glue": [asdict(score) for score in scores], "averages": averages(scores)}
    log_study(study.runs[0].recipe, study.config, tables)


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, glue)


if __name__ == "__main__":
    main(sys.argv[1:])
