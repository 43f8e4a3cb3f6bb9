"""Trains what a recipe describes: load, check, build, train, report."""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config.errors import ArgumentError, ConfigError, own_frame, said
from ..config.loading import load
from ..config.recipe import Recipe, check
from .folder import (
    as_rank_zero_finds,
    begin,
    blame_disk,
    finished,
    held,
    is_begun,
    new_id,
    refuse_a_shorter_run,
    refuse_another_run,
    run_id,
)

if TYPE_CHECKING:
    from composer import Trainer
    from composer.devices import Device
    from composer.loggers import LoggerDestination

    from .building import Run
    from .checkpoints import Checkpoint
    from .results import Result


def train(
    config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str], watch: LoggerDestination | None = None
) -> Result:
    """Trains, or goes on training, what `config` (a mapping, or the path of a YAML file) describes.

    What is finished already is reported again. What `watch` shows takes the place of progress bar, lines and table.
    """
    recipe, quiet = _checked(config), watch is not None
    device = join_ranks(recipe)
    with blame_disk(recipe.folder, recipe.source):
        from ..data.loaders import tell

        if result := _done_before(recipe):
            from .report import report_again

            if not quiet:
                tell(f"{recipe.folder}: finished before; nothing was trained, and this is what it found")
            return report_again(recipe, result, quiet=quiet)
        with held(recipe.folder, recipe.source):
            from .building import build
            from .report import report

            checkpoint = _checkpoint_of(recipe)
            name = _id_of(recipe, checkpoint)
            with _traced(recipe):
                run = build(recipe, device=device, checkpoint=checkpoint, name=name, watch=watch)
            with _closing(run.trainer):
                _begin(run, checkpoint, name)
                if checkpoint and not quiet:
                    tell(f"{recipe.folder}: goes on {_place(run.trainer)}")
                with _told_in_one_line(run):
                    _fit_what_is_left(run.trainer)
                    _complete_the_end(run)
                    return report(run, quiet=quiet)


def _checked(config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str]) -> Recipe:
    if isinstance(config, Recipe):
        return config
    return check(*load(config)) if isinstance(config, str | os.PathLike) else check(config)


def join_ranks(recipe: Recipe) -> Device:
    """This rank's device; from here on the ranks can tell each other what they find."""
    from composer.utils import dist, get_device

    device = get_device(recipe.trainer.get("device"))
    if dist.get_world_size() > 1:
        dist.initialize_dist(device, recipe.trainer.get("dist_timeout", 300.0))
    return device


def _goes_on(recipe: Recipe) -> bool:
    return recipe.trainer.get("autoresume", True)


def _done_before(recipe: Recipe) -> Result | None:
    return finished(recipe) if _goes_on(recipe) else None


def _checkpoint_of(recipe: Recipe) -> Checkpoint | None:
    """The one to go on from. What is in the folder must be of this run, or begun anew on purpose."""
    from .checkpoints import newest_checkpoint

    if not _goes_on(recipe):
        return None
    if as_rank_zero_finds(lambda: is_begun(recipe.folder)):
        refuse_another_run(recipe)
    return as_rank_zero_finds(lambda: newest_checkpoint(recipe))


def _id_of(recipe: Recipe, checkpoint: Checkpoint | None) -> str:
    return as_rank_zero_finds(lambda: (run_id(recipe.folder) if checkpoint else None) or new_id())


def _begin(run: Run, checkpoint: Checkpoint | None, name: str) -> None:
    if checkpoint:
        refuse_a_shorter_run(run.recipe, run.trainer.state.get_elapsed_duration())
    begin(run.recipe, name, resumes=checkpoint is not None)
    run.trainer.logger.log_hyperparameters(run.recipe.config)


def _place(trainer: Trainer) -> str:
    """Where the run is, in batches of those that there will be, as far as that is known."""
    state = trainer.state
    length, per_epoch, batch = state.max_duration, state.dataloader_len, int(state.timestamp.batch)
    assert length is not None
    if length.unit.value == "ep" and per_epoch is not None:
        return f"at batch {batch} of {int(length) * int(per_epoch)}"
    return f"at batch {batch} of {int(length)}" if length.unit.value == "ba" else f"at batch {batch}, to {length}"


def _fit_what_is_left(trainer: Trainer) -> None:
    elapsed = trainer.state.get_elapsed_duration()
    if elapsed is not None and elapsed < 1:
        trainer.fit()


def _complete_the_end(run: Run) -> None:
    """What comes after the last checkpoint is gone after a kill, and an eval_interval may leave out the end."""
    from .history import EVAL_PREFIX
    from .train_metrics import last_train_metrics

    run.history.log_metrics(last_train_metrics(run.trainer.state))
    if run.trainer.state.evaluators and not any(name.startswith(EVAL_PREFIX) for name in run.history.records[-1]):
        run.trainer.eval()


@contextmanager
def _told_in_one_line(run: Run) -> Iterator[None]:
    """What goes wrong in training, such as data that do not fit the model; where it did is told in a file."""
    recipe = run.recipe
    try:
        with blame_disk(recipe.folder, recipe.source):
            yield
    except ConfigError:
        raise
    except ArgumentError as error:  # of the model's, which only what it returns can tell
        raise recipe.source.error(f"{recipe.model.key}.{error.name}", error.message) from error
    except Exception as error:
        with blame_disk(recipe.folder, recipe.source):
            what, told = f"{said(error)}{own_frame(error)}", f"where it did is told in {_write_traceback(recipe)}"
            place = f"after batch {int(run.trainer.state.timestamp.batch)}"
            raise recipe.source.error("", f"training failed {place}; {what}; {told}") from error


@contextmanager
def _traced(recipe: Recipe) -> Iterator[None]:
    """Of what goes wrong in somebody's own code, the whole way there is told in a file."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ConfigError) else error
        if cause is None or not (frame := own_frame(cause)):
            raise
        found = error if isinstance(error, ConfigError) else recipe.source.error("", f"{said(error)}{frame}")
        told = f"{found.message}; where it did is told in {_write_traceback(recipe)}"
        raise ConfigError(found.file, found.key, told) from cause


def _write_traceback(recipe: Recipe) -> Path:
    """Writes that of the error that is being handled; returns the file."""
    rank = os.environ.get("RANK", "0")
    file = recipe.folder / ("error.txt" if rank == "0" else f"error-rank{rank}.txt")
    file.write_text(traceback.format_exc())
    return file


@contextmanager
def _closing(trainer: Trainer) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # Trainer.close waits for the other ranks, which may never come.
        trainer.engine.close()
        raise
    else:
        trainer.close()
    finally:
        _release(trainer)


def _release(trainer: Trainer) -> None:
    """Composer keeps closed runs, torch their models and Streaming what it reads ahead, until the process ends.

    Many would fill the memory.
    """
    from torch.distributed.checkpoint import state_dict

    from ..data.shared_memory import stop_reading

    state = trainer.state
    for loader in (state.train_dataloader, *(each.dataloader.dataloader for each in state.evaluators)):
        stop_reading(loader)
    atexit.unregister(trainer.engine._close)
    if clear := getattr(state_dict._get_fqns, "cache_clear", None):  # newer torch keeps nothing there
        clear()
