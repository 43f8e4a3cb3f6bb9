"""What is left and shown when a run has ended: results.json, the figure, and tables for people."""

from __future__ import annotations

from contextlib import suppress

from composer.utils import dist

from accelerando.algorithms.composer.for_recipes import FinishedRun, declared_by
from accelerando.algorithms.composer.host import RequiredOnLoad

from ..config.recipe import Recipe
from .algorithms import folders_of, for_recipes
from .building import Run
from .figures import draw
from .folder import as_rank_zero_finds, run_id
from .history import final_metrics
from .loggers import log_afterwards
from .results import Result, table


def report(run: Run, *, quiet: bool) -> Result:
    """The result of a run that has just ended; it is saved, drawn, logged, and printed unless `quiet`."""
    recipe, state = run.recipe, run.trainer.state
    seconds, records = run.history.seconds, run.history.records
    begun = {"batch": run.begun["batch"], "samples": run.begun["sample"]}
    done = FinishedRun(state=state, records=records, begun={**begun, "seconds": 0.0}, batch=run.batch)
    samples = int(records[-1]["samples"] - begun["samples"])
    dist.barrier()  # rank 0 has written its files, such as snapshots, which all may read now
    result = Result(
        run_name=recipe.run_name,
        folder=str(recipe.folder),
        algorithms=[type(part).__name__ for part in state.algorithms if not isinstance(part, RequiredOnLoad)],
        metrics=final_metrics(records),
        batches=int(records[-1]["batch"] - begun["batch"]),
        samples=samples,
        seconds=seconds,
        samples_per_second=samples / seconds,
        records=records,
        found={name: value for each in for_recipes(state.algorithms) for name, value in each.found(done).items()},
        begun=begun if begun["batch"] else {},
    )
    if dist.get_global_rank() == 0:
        pixels = draw([result], recipe.folder / "curves.png", recipe.run_name)
        run.trainer.logger.log_images(pixels, name="curves", channels_last=True, use_table=False)
        result.save()  # last: where it is, everything is
    _print(recipe, result, quiet)
    return result


def report_again(recipe: Recipe, result: Result, *, quiet: bool) -> Result:
    """What was finished before; the folder need not be writable."""
    pixels, curves = None, recipe.folder / "curves.png"
    if dist.get_global_rank() == 0 and (recipe.loggers or not curves.exists()):
        with suppress(OSError):
            pixels = draw([result], curves, recipe.run_name)
    if recipe.loggers and (name := as_rank_zero_finds(lambda: run_id(recipe.folder))):
        log_afterwards(recipe, name, recipe.config, {}, pixels)
    _print(recipe, result, quiet)
    return result


def _print(recipe: Recipe, result: Result, quiet: bool) -> None:
    if quiet or dist.get_global_rank() != 0:
        return
    tables = [text for part in recipe.algorithms for text in declared_by(part.target).tables(result.found)]
    files = ", ".join(("config.yaml", "results.json", "curves.png", "checkpoints", *folders_of(recipe)))
    print("\n" + "\n\n".join([*tables, table([result]), f"{result.folder}: {files}"]), flush=True)
