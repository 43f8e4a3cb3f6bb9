"""Trains what one YAML file describes: load, check, build, train, report.

    composer [-n N] recipes/train.py FILE.yaml key=value ...

The run's folder, ``{folder}/{run_name}``, then holds the resolved `config.yaml`, `results.json`, `curves.png` and the
checkpoints. The same command after a kill goes on from the last checkpoint. An error in the config is one line and exit
code 2, before anything is built.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from accelerando.recipes.config import UNREADABLE, ConfigError, Part, Recipe, check, load
from accelerando.recipes.names import REFUSALS

if TYPE_CHECKING:
    from accelerando.recipes.report import History, Result

# What may differ between a run and its continuation: how long, how it is watched, where it runs.
MAY_CHANGE = re.compile(
    r"max_duration|folder|callbacks|loggers|eval_interval|eval_subset_num_batches|eval_batch_size|progress_bar"
    r"|device|device_train_microbatch_size|dist_timeout|python_log_level|autoresume|(save|log|console)_\w+"
)


def train(config: Recipe | Mapping[str, Any] | DictConfig | str | os.PathLike[str]) -> Result:
    """Trains, or goes on training, what `config` (a mapping, or the path of a YAML file) describes."""
    if isinstance(config, Recipe):
        recipe = config
    else:
        recipe = check(*load(config)) if isinstance(config, str | os.PathLike) else check(config)

    from composer import ComposerModel, Trainer
    from composer.utils import dist, get_device, reproducibility

    from accelerando.recipes.report import EVAL_PREFIX, History, Lines
    from accelerando.recipes.tensors import OneSetOfBuffers

    device = get_device(recipe.trainer.get("device"))
    if dist.get_world_size() > 1:
        dist.initialize_dist(device, recipe.trainer.get("dist_timeout", 300.0))
    arguments = _defaults(recipe) | recipe.trainer
    with recipe.source.blame("folder", OSError, ValueError):
        recipe.folder.mkdir(parents=True, exist_ok=True)
    # Without a checkpoint to go on from, Composer would look for one among W&B's artifacts, which needs an account.
    resumes = arguments["autoresume"] = arguments["autoresume"] and _has_checkpoint(recipe)
    if resumes:
        _refuse_another_run(recipe)
    if resumes or (arguments.get("load_path") and not arguments.get("load_weights_only")):
        _refuse_sam(recipe)

    history = History()
    loggers = [history] if arguments["progress_bar"] or arguments.get("log_to_console") else [history, Lines(history)]
    loggers += [_wandb_resumes(part, recipe).build() for part in recipe.loggers]
    algorithms = [part.build() for part in recipe.algorithms]
    callbacks = [OneSetOfBuffers(), *(part.build() for part in recipe.callbacks)]
    scheduler = recipe.scheduler.build() if recipe.scheduler else None

    seed = recipe.config["seed"]
    reproducibility.seed_all(seed)
    model = recipe.model.build()
    if not isinstance(model, ComposerModel):
        raise recipe.source.error(recipe.model.key, f"makes a {type(model).__name__}; expected a ComposerModel")
    optimizer = recipe.optimizer.build(model.parameters())
    train_data = recipe.train_data.build(recipe.batch_size, True, seed, device)
    eval_data = recipe.eval_data.build(recipe.eval_batch_size, False, seed, device) if recipe.eval_data else None
    with recipe.source.blame("", *REFUSALS), _blame_checkpoint(recipe, arguments):
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
        _write_config(recipe, resumes)
        trainer.logger.log_hyperparameters(recipe.config)
        elapsed = trainer.state.get_elapsed_duration()
        if elapsed is not None and elapsed < 1:
            trainer.fit()
        if eval_data and not any(name.startswith(EVAL_PREFIX) for name in history.records[-1]):
            trainer.eval()  # an eval_interval that left out the end, or a kill in the last evaluation
        result = _report(recipe, trainer, history)
    except BaseException:
        # Trainer.close waits for the other ranks, which may never come.
        trainer.engine.close()
        raise
    trainer.close()
    return result


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


def _has_checkpoint(recipe: Recipe) -> bool:
    """Whether rank 0 finds the link to the latest checkpoint; ranks that disagreed would wait for each other."""
    from composer.utils import dist

    found = [False]
    if dist.get_global_rank() == 0:
        with recipe.source.blame("folder", OSError):
            found = [_mend_link(recipe)]
    dist.broadcast_object_list(found)
    return found[0]


def _links(recipe: Recipe) -> list[Path]:
    return [path for path in recipe.folder.glob("checkpoints/*") if path.is_symlink()]


def _mend_link(recipe: Recipe) -> bool:
    """Composer removes the link once the new checkpoint is whole, then links that: a kill in between leaves no link.

    Without one, a checkpoint older than config.yaml belongs to a run that was there before this one.
    """
    from composer.utils.file_helpers import format_name_with_dist

    links, saved = _links(recipe), recipe.folder / "config.yaml"
    if any(link.exists() for link in links):
        return True
    since = saved.stat().st_mtime if saved.exists() and not links else 0.0
    # A kill may also leave half a file, which lacks the directory that ends a zip.
    files = [path for path in recipe.folder.glob("checkpoints/*.pt") if path.is_file() and zipfile.is_zipfile(path)]
    files = sorted((file for file in files if file.stat().st_mtime >= since), key=lambda file: file.stat().st_mtime)
    for link in links:
        link.unlink()
    name = recipe.trainer.get("save_latest_filename", "latest-rank{rank}.pt")
    if files and name:
        (recipe.folder / "checkpoints" / format_name_with_dist(name, recipe.run_name)).symlink_to(files[-1].name)
    return bool(files and name)


def _refuse_sam(recipe: Recipe) -> None:
    from composer.algorithms import SAM

    for part in recipe.algorithms:
        if isinstance(part.target, type) and issubclass(part.target, SAM):
            hint = "its optimizer's state is in no checkpoint; start anew with autoresume=false"
            raise recipe.source.error(part.key, f"cannot resume from a checkpoint, {hint}")


@contextmanager
def _blame_checkpoint(recipe: Recipe, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Says which file could not be loaded, and what to do; other errors pass."""
    try:
        yield
    except REFUSALS as error:
        if "load_checkpoint" not in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            raise
        message = f"cannot be loaded; {type(error).__name__}: {error}"
        if not arguments["autoresume"]:
            raise recipe.source.error("load_path", f"{arguments['load_path']} {message}") from error
        file = next((link.resolve() for link in _links(recipe)), recipe.folder / "checkpoints")
        hint = f"delete it to go on from another one, or {recipe.folder} to start anew"
        raise ConfigError(str(file), "", f"{message}; {hint}") from error


def _refuse_another_run(recipe: Recipe) -> None:
    """The checkpoints in the folder must come from this config."""
    saved = recipe.folder / "config.yaml"
    if not saved.exists():
        return
    try:
        was = OmegaConf.to_container(OmegaConf.load(saved))
        if not (isinstance(was, dict) and was):
            raise ValueError("expected a mapping of keys to values")
    except UNREADABLE as error:
        hint = "delete it if the checkpoints beside it are of this config, or the folder to start anew"
        raise ConfigError(str(saved), "", f"unreadable; {hint}; {error}") from error
    old, new = _flatten(was), _flatten(recipe.config)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not MAY_CHANGE.fullmatch(key.partition(".")[0]):
            there, here = (values.get(key, "absent") for values in (old, new))
            hint = "choose another run_name, or delete the folder"
            raise recipe.source.error(key, f"{here} given, but the run in {recipe.folder} has {there}; {hint}")


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys. An entry of a section stands for itself too, so that one without arguments counts."""
    if not isinstance(value, dict):
        return {key: value}
    itself = {key: "present"} if "." in key else {}
    return itself | {k: v for name in value for k, v in _flatten(value[name], f"{key}.{name}" if key else name).items()}


def _wandb_resumes(part: Part, recipe: Recipe) -> Part:
    """Gives a WandBLogger a run id made of the run's name, so that a resumed run continues its W&B run."""
    from composer.loggers import WandBLogger
    from composer.utils import dist

    if part.target is not WandBLogger:
        return part
    rank = None if part.arguments.get("rank_zero_only", True) else f"rank{dist.get_global_rank()}"
    name = "-".join(filter(None, (part.arguments.get("project"), recipe.run_name, rank)))
    plain = re.sub(r"[^\w.-]", "-", name)
    ours = {
        # Other names may look the same without their slashes.
        "id": plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}",
        "resume": "allow",
        "dir": str(recipe.folder),
        "allow_val_change": True,  # max_duration, say, when a finished run is prolonged
    }
    return replace(part, arguments=part.arguments | {"init_kwargs": ours | (part.arguments.get("init_kwargs") or {})})


def _write_config(recipe: Recipe, resumes: bool) -> None:
    from composer.utils import dist

    from accelerando.recipes.report import write

    if dist.get_global_rank() == 0:
        with recipe.source.blame("folder", OSError):
            # From here on the folder is this run's: a kill must not leave it with the checkpoint of another.
            for link in [] if resumes else _links(recipe):
                link.unlink()
            write(recipe.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe.config)).encode())
    dist.barrier()


def _report(recipe: Recipe, trainer: Any, history: History) -> Result:
    from composer.utils import dist

    from accelerando.recipes.report import Result, draw, final_metrics, table

    last = history.records[-1]
    result = Result(
        run_name=recipe.run_name,
        folder=str(recipe.folder),
        algorithms=[type(algorithm).__name__ for algorithm in trainer.state.algorithms],
        metrics=final_metrics(history.records),
        batches=int(last["batch"]),
        samples=int(last["samples"]),
        seconds=history.seconds,
        samples_per_second=last["samples"] / history.seconds,
        records=history.records,
    )
    if dist.get_global_rank() == 0:
        result.save()
        pixels = draw([result], recipe.folder / "curves.png", recipe.run_name)
        trainer.logger.log_images(pixels, name="curves", channels_last=True, use_table=False)
        print(f"\n{table([result])}\n\n{recipe.folder}: config.yaml, results.json, curves.png, checkpoints", flush=True)
    return result


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with code 2 after an error in the config."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if arguments else 2)
    try:
        train(check(*load(arguments[0], arguments[1:])))
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
