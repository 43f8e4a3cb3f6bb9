"""Trains what one YAML file describes: load, check, build, train, report.

    composer [-n N] recipes/train.py FILE.yaml key=value ...

The run's folder, ``{folder}/{run_name}``, then holds the resolved `config.yaml`, `results.json`, `curves.png` and the
checkpoints; of a LotteryTicket the masks too, in `tickets`, unless it says where. The same command after a kill goes on
from the last checkpoint. An error in the config is one line and exit code 2, before anything is built.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig

from accelerando.recipes.config import ConfigError, Recipe, build_algorithms, check, load
from accelerando.recipes.folder import (
    blame_checkpoint,
    has_checkpoint,
    refuse_a_shorter_run,
    refuse_another_run,
    write_config,
)
from accelerando.recipes.loggers import build_loggers
from accelerando.recipes.names import REFUSALS, Source

if TYPE_CHECKING:
    from composer import Trainer
    from composer.devices import Device
    from composer.loggers import LoggerDestination

    from accelerando.recipes.report import History, Result


def train(
    config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str], watch: LoggerDestination | None = None
) -> Result:
    """Trains, or goes on training, what `config` (a mapping, or the path of a YAML file) describes.

    What `watch` shows of it takes the place of progress bar, lines and table.
    """
    if isinstance(config, Recipe):
        recipe = config
    else:
        recipe = check(*load(config)) if isinstance(config, str | os.PathLike) else check(config)

    from composer import ComposerModel, Trainer
    from composer.utils import reproducibility

    from accelerando.recipes.agreement import agree, takes
    from accelerando.recipes.pruned_run import show_transforms, wrapped
    from accelerando.recipes.report import EVAL_PREFIX, History, Lines
    from accelerando.recipes.tensors import OneSetOfBuffers

    # Composer says so of every smaller last batch.
    warnings.filterwarnings("ignore", "Cannot split tensor of length", UserWarning)
    device = join_ranks(recipe)
    arguments = _defaults(recipe) | recipe.trainer
    with recipe.source.blame("folder", OSError, ValueError):
        recipe.folder.mkdir(parents=True, exist_ok=True)
    # Without a checkpoint to go on from, Composer would look for one among W&B's artifacts, which needs an account.
    resumes = arguments["autoresume"] = arguments["autoresume"] and has_checkpoint(recipe)
    if resumes:
        refuse_another_run(recipe)
    if resumes or (arguments.get("load_path") and not arguments.get("load_weights_only")):
        _refuse_sam(recipe)

    history = History()
    loggers: list[Any] = [history]
    if watch:
        loggers, arguments["progress_bar"] = [history, watch], False
    elif not (arguments["progress_bar"] or arguments.get("log_to_console")):
        loggers = [history, Lines(history)]
    loggers += build_loggers(recipe)
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
    with recipe.source.blame("", *REFUSALS), blame_checkpoint(recipe, arguments):
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
        if resumes:
            refuse_a_shorter_run(recipe, elapsed)
        write_config(recipe, resumes)
        trainer.logger.log_hyperparameters(recipe.config)
        if elapsed is not None and elapsed < 1:
            trainer.fit()
        if eval_data and not any(name.startswith(EVAL_PREFIX) for name in history.records[-1]):
            trainer.eval()  # an eval_interval that left out the end, or a kill in the last evaluation
        result = _report(recipe, trainer, history, train_data, quiet=watch is not None)
    except BaseException:
        # Trainer.close waits for the other ranks, which may never come.
        trainer.engine.close()
        raise
    trainer.close()
    _release(trainer)
    return result


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
        "autoresume": True,
        "save_folder": str(recipe.folder / "checkpoints"),
        "save_num_checkpoints_to_keep": 1,
        # A kill may leave a half-written checkpoint newer than the one that the run goes on from.
        "save_overwrite": True,
        "progress_bar": sys.stderr.isatty(),
        "load_progress_bar": sys.stderr.isatty(),
    }


def _refuse_sam(recipe: Recipe) -> None:
    from composer.algorithms import SAM

    for part in recipe.algorithms:
        if isinstance(part.target, type) and issubclass(part.target, SAM):
            hint = "its optimizer's state is in no checkpoint; start anew with autoresume=false"
            raise recipe.source.error(part.key, f"cannot resume from a checkpoint, {hint}")


def _report(recipe: Recipe, trainer: Any, history: History, train_data: Any, quiet: bool) -> Result:
    from composer.utils import dist

    from accelerando.algorithms.host import RequiredOnLoad
    from accelerando.recipes.pruned_run import level_table, levels_of, size_of
    from accelerando.recipes.report import Result, draw, final_metrics, table

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
        result.save()
        pixels = draw([result], recipe.folder / "curves.png", recipe.run_name)
        trainer.logger.log_images(pixels, name="curves", channels_last=True, use_table=False)
        if not quiet:
            files = "config.yaml, results.json, curves.png, checkpoints" + (", tickets" if result.levels else "")
            tables = [size.table()] if size else []
            tables += [level_table(result.levels)] if result.levels else []
            print("\n" + "\n\n".join([*tables, table([result]), f"{recipe.folder}: {files}"]), flush=True)
    return result


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    command_line(arguments, __doc__, lambda config, source: train(check(config, source)))


def command_line(arguments: Sequence[str], usage: str | None, run: Callable[[DictConfig, Source], Any]) -> None:
    """Runs what ``FILE.yaml key=value ...`` describe; exits with code 2 after an error in the config."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        sys.exit(0 if arguments else 2)
    try:
        run(*load(arguments[0], arguments[1:]))
    except ConfigError as error:
        _exit(error)


def _exit(error: ConfigError) -> NoReturn:
    # All ranks find the same error. Rank 0 tells it, and the launcher, which takes the exit code of whoever ends first
    # and repeats its output, ends the others. A rank that waits in vain has an error of its own to tell.
    if os.environ.get("RANK", "0") != "0":
        time.sleep(60)
    print(error, file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
