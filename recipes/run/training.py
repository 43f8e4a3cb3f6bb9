"""Trains what a recipe describes: load, check, build, train, report."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config.errors import REFUSALS, ConfigError
from ..config.loading import load
from ..config.recipe import Recipe, check
from .algorithms import build_algorithms
from .folder import (
    as_rank_zero_finds,
    begin,
    blame_checkpoint,
    blame_disk,
    finished,
    held,
    is_begun,
    new_id,
    refuse_a_shorter_run,
    refuse_another_run,
    run_id,
)
from .loggers import build_loggers, log_afterwards

if TYPE_CHECKING:
    from composer import Trainer
    from composer.devices import Device
    from composer.loggers import LoggerDestination

    from .checkpoints import Checkpoint
    from .history import History
    from .results import Result


def train(
    config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str], watch: LoggerDestination | None = None
) -> Result:
    """Trains, or goes on training, what `config` (a mapping, or the path of a YAML file) describes.

    What is finished already is reported again. What `watch` shows takes the place of progress bar, lines and table.
    """
    recipe = _checked(config)
    device = join_ranks(recipe)
    with blame_disk(recipe.folder, recipe.source):
        anew = not recipe.trainer.get("autoresume", True)
        if not anew and (result := finished(recipe)):
            return _report_again(recipe, result, quiet=watch is not None)
        with held(recipe.folder, recipe.source):
            checkpoint = None if anew else _checkpoint_of(recipe)
            name = as_rank_zero_finds(lambda: (run_id(recipe.folder) if checkpoint else None) or new_id())
            return _train(recipe, device, watch, checkpoint, name)


def _checked(config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str]) -> Recipe:
    if isinstance(config, Recipe):
        return config
    return check(*load(config)) if isinstance(config, str | os.PathLike) else check(config)


def _checkpoint_of(recipe: Recipe) -> Checkpoint | None:
    """The one to go on from. What is in the folder must be of this run, or begun anew on purpose."""
    from .checkpoints import newest_checkpoint

    if as_rank_zero_finds(lambda: is_begun(recipe.folder)):
        refuse_another_run(recipe)
    return as_rank_zero_finds(lambda: newest_checkpoint(recipe))


def _train(
    recipe: Recipe, device: Device, watch: LoggerDestination | None, checkpoint: Checkpoint | None, name: str
) -> Result:
    from composer import ComposerModel, Trainer
    from composer.utils import reproducibility

    from ..data.loaders import OneSetOfBuffers
    from .agreement import agree, takes
    from .checkpoints import Saved, nothing_executed
    from .history import History
    from .pruned_run import show_transforms, wrapped

    # Composer says so of every smaller last batch.
    warnings.filterwarnings("ignore", "Cannot split tensor of length", UserWarning)
    arguments = _defaults(recipe) | recipe.trainer | _load_arguments(recipe, checkpoint)
    history = History()
    loggers = [history, *_shown_by(history, watch, arguments), *build_loggers(recipe, name), Saved(recipe, checkpoint)]
    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    algorithms = build_algorithms(recipe, scheduler)
    scheduler = wrapped(scheduler, algorithms)
    callbacks = [OneSetOfBuffers(), *(part.build() for part in recipe.callbacks)]

    seed = recipe.config["seed"]
    reproducibility.seed_all(seed)
    model = recipe.model.build()
    if not isinstance(model, ComposerModel):
        raise recipe.source.error(recipe.model.key, f"makes a {type(model).__name__}; expected a ComposerModel")
    optimizer = recipe.optimizer.build(model.parameters())
    train_data = recipe.train_data.build(recipe.batch_size, True, seed, device)
    show_transforms(algorithms, train_data)
    eval_data = recipe.eval_data.build(recipe.eval_batch_size, False, seed, device) if recipe.eval_data else None
    agree(recipe, takes(model), train_data, eval_data)
    own = checkpoint.path if checkpoint else None
    blamed = recipe.source.blame("", *REFUSALS), blame_checkpoint(recipe, own), blame_disk(recipe.folder, recipe.source)
    with blamed[0], blamed[1], blamed[2], nothing_executed():
        trainer = Trainer(
            model=model,
            train_dataloader=train_data,
            eval_dataloader=eval_data,
            optimizers=optimizer,
            schedulers=scheduler,
            algorithms=algorithms,
            callbacks=callbacks,
            loggers=loggers,
            **arguments,
        )
    try:
        elapsed = trainer.state.get_elapsed_duration()
        if checkpoint:
            refuse_a_shorter_run(recipe, elapsed)
        begin(recipe, name, resumes=checkpoint is not None)
        trainer.logger.log_hyperparameters(recipe.config)
        with _told_in_one_line(recipe, trainer):
            if elapsed is not None and elapsed < 1:
                trainer.fit()
            _complete_the_end(trainer, history)
        result = _report(recipe, trainer, history, train_data, quiet=watch is not None)
    except BaseException:
        # Trainer.close waits for the other ranks, which may never come.
        trainer.engine.close()
        raise
    trainer.close()
    _release(trainer)
    return result


def _shown_by(history: History, watch: LoggerDestination | None, arguments: Mapping[str, Any]) -> list[Any]:
    from .progress import Lines

    if watch:
        return [watch]
    return [] if arguments["progress_bar"] or arguments.get("log_to_console") else [Lines(history)]


def _complete_the_end(trainer: Trainer, history: History) -> None:
    """What comes after the last checkpoint is gone after a kill, and an eval_interval may leave out the end."""
    from .history import EVAL_PREFIX, TRAIN_PREFIX

    for before in history.records[-2:-1]:
        # Those of the last batch, which Composer tells again at the end of the epoch; after a kill, they are 0 there.
        history.records[-1] |= {name: value for name, value in before.items() if name.startswith(TRAIN_PREFIX)}
    if trainer.state.evaluators and not any(name.startswith(EVAL_PREFIX) for name in history.records[-1]):
        trainer.eval()


@contextmanager
def _told_in_one_line(recipe: Recipe, trainer: Trainer) -> Iterator[None]:
    """What goes wrong in training, such as data that do not fit the model; where it did is told in a file."""
    try:
        with blame_disk(recipe.folder, recipe.source):
            yield
    except ConfigError:
        raise
    except Exception as error:
        with blame_disk(recipe.folder, recipe.source):
            rank = os.environ.get("RANK", "0")
            file = recipe.folder / ("error.txt" if rank == "0" else f"error-rank{rank}.txt")
            file.write_text(traceback.format_exc())
            what = " ".join(f"{type(error).__name__}: {error}".split())
            place = f"after batch {int(trainer.state.timestamp.batch)}"
            raise recipe.source.error("", f"training failed {place}; {what}; where it did is told in {file}") from error


def join_ranks(recipe: Recipe) -> Device:
    """This rank's device; from here on the ranks can tell each other what they find."""
    from composer.utils import dist, get_device

    device = get_device(recipe.trainer.get("device"))
    if dist.get_world_size() > 1:
        dist.initialize_dist(device, recipe.trainer.get("dist_timeout", 300.0))
    return device


def _release(trainer: Trainer) -> None:
    """Composer keeps closed runs, and torch their models, until the process ends; many would fill the memory."""
    from torch.distributed.checkpoint import state_dict

    atexit.unregister(trainer.engine._close)
    state_dict._get_fqns.cache_clear()


def _defaults(recipe: Recipe) -> dict[str, Any]:
    return {
        "run_name": recipe.run_name,
        "seed": recipe.config["seed"],
        "save_folder": str(recipe.folder / "checkpoints"),
        "save_num_checkpoints_to_keep": 1,
        # A kill may leave a half-written checkpoint newer than the one that the run goes on from.
        "save_overwrite": True,
        "progress_bar": sys.stderr.isatty(),
        "load_progress_bar": sys.stderr.isatty(),
    }


def _load_arguments(recipe: Recipe, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Those of Composer's that make it go on from the checkpoint, if any: it would take its newest link for that."""
    given = recipe.trainer
    _refuse_shards(recipe)
    if checkpoint or (given.get("load_path") and not given.get("load_weights_only")):
        _refuse_sam(recipe)
    if checkpoint is None:
        return {"autoresume": False}
    as_it_was = dict.fromkeys(("load_object_store", "load_ignore_keys", "load_exclude_algorithms"))
    return {"autoresume": False, "load_path": checkpoint.path, "load_weights_only": False, **as_it_was}


def _refuse_shards(recipe: Recipe) -> None:
    """A checkpoint is one file with a digest beside it. Composer's FSDP 2 makes shards unless told otherwise."""
    fsdp = (recipe.trainer.get("parallelism_config") or {}).get("fsdp")
    default = "sharded" if os.environ.get("FSDP_VERSION", "1") == "2" else "full"
    if fsdp is not None and fsdp.get("state_dict_type", default) == "sharded":
        hint = "a run cannot go on from sharded checkpoints; expected full"
        raise recipe.source.error("parallelism_config.fsdp.state_dict_type", hint)


def _refuse_sam(recipe: Recipe) -> None:
    from composer.algorithms import SAM

    for part in recipe.algorithms:
        if isinstance(part.target, type) and issubclass(part.target, SAM):
            hint = "its optimizer's state is in no checkpoint; start anew with autoresume=false"
            raise recipe.source.error(part.key, f"cannot resume from a checkpoint, {hint}")


def _report(recipe: Recipe, trainer: Any, history: History, train_data: Any, quiet: bool) -> Result:
    from composer.utils import dist

    from accelerando.algorithms.host import RequiredOnLoad

    from .figures import draw
    from .history import final_metrics
    from .pruned_run import levels_of, size_of
    from .results import Result

    last = history.records[-1]
    size, density = size_of(trainer.state, train_data) or (None, 1.0)
    result = Result(
        run_name=recipe.run_name,
        folder=str(recipe.folder),
        algorithms=[type(part).__name__ for part in trainer.state.algorithms if not isinstance(part, RequiredOnLoad)],
        metrics=final_metrics(history.records),
        batches=int(last["batch"]),
        samples=int(last["samples"]),
        seconds=history.seconds,
        samples_per_second=last["samples"] / history.seconds,
        records=history.records,
        size=size.as_dict() | {"density": density} if size else None,
        levels=levels_of(trainer.state, size, history.records),
    )
    if dist.get_global_rank() == 0:
        pixels = draw([result], recipe.folder / "curves.png", recipe.run_name)
        trainer.logger.log_images(pixels, name="curves", channels_last=True, use_table=False)
        result.save()  # last: where it is, everything is
        if not quiet:
            _print(result, [size.table()] if size else [])
    return result


def _report_again(recipe: Recipe, result: Result, quiet: bool) -> Result:
    """What was finished before; the folder need not be writable."""
    from composer.utils import dist

    from .figures import draw

    pixels, curves = None, recipe.folder / "curves.png"
    if dist.get_global_rank() == 0 and (recipe.loggers or not curves.exists()):
        with suppress(OSError):
            pixels = draw([result], curves, recipe.run_name)
    if recipe.loggers and (name := as_rank_zero_finds(lambda: run_id(recipe.folder))):
        log_afterwards(recipe, name, recipe.config, {}, pixels)
    if dist.get_global_rank() == 0 and not quiet:
        _print(result, [])
    return result


def _print(result: Result, tables: list[str]) -> None:
    from .pruned_run import level_table
    from .results import table

    files = "config.yaml, results.json, curves.png, checkpoints" + (", tickets" if result.levels else "")
    tables += [level_table(result.levels)] if result.levels else []
    print("\n" + "\n\n".join([*tables, table([result]), f"{result.folder}: {files}"]), flush=True)
