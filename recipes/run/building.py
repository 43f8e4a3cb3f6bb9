"""From a checked recipe to a Composer Trainer, which goes on from a checkpoint if there is one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from composer import ComposerModel, Trainer
from composer.algorithms import SAM
from composer.core import Evaluator, TimeUnit, ensure_data_spec, ensure_time
from composer.devices import Device
from composer.loggers import LoggerDestination
from composer.utils import dist, ensure_tuple, reproducibility

from accelerando.algorithms.composer.for_recipes import declared_by

from ..config.errors import REFUSALS
from ..config.lookup import Part
from ..config.recipe import Recipe
from ..data.loaders import tell_once, told_batch_size
from ..data.streams import length_of
from ..models.several import SeveralTasks
from .agreement import agree_by_task, specs
from .algorithms import SeenByModel, build_algorithms, for_recipes
from .buffers import OneSetOfBuffers
from .checkpoints import Checkpoint, Saved, nothing_executed
from .events import call_those_who_act
from .folder import as_rank_zero_finds, blame_checkpoint, blame_disk
from .grouped import KeepsGroups
from .history import VALIDATION, History
from .loggers import build_loggers
from .origin import find_origin
from .place import BeginsAlike, KeepsPlace
from .progress import Lines
from .seeds import SeedOfWeights
from .start import StartedRun
from .tasks import OneTaskAtATime
from .train_metrics import TrainMetricsInterval


@dataclass(frozen=True, kw_only=True)
class Run:
    """A Trainer that is ready to train, what it records, and what its batches go through to the model.

    `begun` counts, as `batch` and `sample`, what another run had trained on, from which this one starts.
    """

    recipe: Recipe
    trainer: Trainer
    history: History
    seen: SeenByModel
    begun: Mapping[str, int]

    def batch(self) -> Any:
        """One batch of the training data, on the device and as the model sees it."""
        assert self.seen.data
        return self.seen(self.trainer.state.device.batch_to_device(next(iter(self.seen.data.dataloader))))


def build(
    recipe: Recipe, *, device: Device, checkpoint: Checkpoint | None, name: str, watch: LoggerDestination | None
) -> Run:
    """The run of that id, which `watch` shows in place of what is shown otherwise."""
    # Composer says so of every smaller last batch.
    warnings.filterwarnings("ignore", "Cannot split (tensor|list) of length", UserWarning)
    arguments = _defaults(recipe) | recipe.trainer | _load_arguments(recipe, checkpoint)
    history, seen = History(_kept_records(recipe)), SeenByModel()
    shown = _shown_by(history, watch, arguments)
    loggers = [history, *shown, *build_loggers(recipe, name), Saved(recipe, checkpoint)]
    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    algorithms = build_algorithms(recipe, scheduler, seen)
    for algorithm in for_recipes(algorithms):
        scheduler = algorithm.wrap(scheduler)
    callbacks = [TrainMetricsInterval(recipe.train_metrics_interval), OneSetOfBuffers()]
    callbacks += [part.build() for part in recipe.callbacks]
    origin = as_rank_zero_finds(lambda: find_origin(recipe)) if recipe.start and not checkpoint else None

    reproducibility.seed_all(recipe.weights_seed)
    model = _build_model(recipe)
    algorithms += [OneTaskAtATime()] if isinstance(model, SeveralTasks) else []
    optimizer = recipe.optimizer.build(model)
    callbacks.append(KeepsGroups(model, optimizer))
    reproducibility.seed_all(seed := recipe.data_seed)
    train_data = recipe.train_data.build(recipe.batch_size, True, seed, device)
    evaluated = [
        (part, part.build(recipe.eval_batch_size, False, seed, device))
        for part in (recipe.eval_data, recipe.validation_data)
        if part
    ]
    agree_by_task(recipe, model, [(recipe.train_data, train_data), *evaluated])
    for part, data in evaluated:
        _see_to_its_end(recipe, part, data)
    seen.data = ensure_data_spec(train_data)
    _refuse_epochs_without_length(recipe, seen.data.dataloader)
    arguments["device_train_microbatch_size"] = _microbatch_size(recipe, seen.data.dataloader)
    started = StartedRun(recipe, origin, seen.data.dataloader) if recipe.start else None
    place = KeepsPlace(recipe, seen.data.dataloader)
    callbacks += [place, BeginsAlike([spec for _, data in evaluated for spec in specs(data)])]
    callbacks += [started] if started else []
    with (
        recipe.source.blame("", *REFUSALS),
        blame_checkpoint(recipe, checkpoint.path if checkpoint else None),
        blame_disk(recipe.folder, recipe.source),
        nothing_executed(),
    ):
        trainer = Trainer(
            model=model,
            train_dataloader=train_data,
            eval_dataloader=_evaluators(recipe, evaluated),
            optimizers=optimizer,
            schedulers=scheduler,
            algorithms=[SeedOfWeights(recipe.weights_seed), *algorithms],
            callbacks=callbacks,
            loggers=loggers,
            **arguments,
        )
    place.trainer = trainer
    call_those_who_act(trainer.engine)
    if started and started.generators:
        trainer._rng_state = started.generators
    begun = started.begun if started else {"batch": 0, "sample": 0}
    return Run(recipe=recipe, trainer=trainer, history=history, seen=seen, begun=begun)


def _refuse_epochs_without_length(recipe: Recipe, loader: Any) -> None:
    """Composer does so when the training begins."""
    given = recipe.config["max_duration"]
    in_epochs = ensure_time(given, TimeUnit.EPOCH).unit == TimeUnit.EPOCH
    if in_epochs and length_of(loader) is None and recipe.trainer.get("train_subset_num_batches", -1) == -1:
        given = given if isinstance(given, str) else f"{given} epoch(s)"
        own = "give it __len__, or " if dist.get_world_size() == 1 else ""
        where = "has no length" if own else "has no length that holds for each rank"
        hint = f"{own}say how long in batches, such as 100ba, or train_subset_num_batches"
        raise recipe.source.error("max_duration", f"{given} given, but {recipe.train_data.key} {where}: {hint}")


def _microbatch_size(recipe: Recipe, loader: Any) -> Any:
    """What is given, or else a whole batch; with auto, Composer begins with the loader's batch size."""
    given = recipe.trainer.get("device_train_microbatch_size")
    if given == "auto" and not getattr(loader, "batch_size", None):
        told = f"auto given, but the loader of {recipe.train_data.key} tells no batch size to begin with; say a number"
        raise recipe.source.error("device_train_microbatch_size", told)
    return told_batch_size(loader, recipe.batch_size) if given is None else given


def _see_to_its_end(recipe: Recipe, part: Part, data: Any) -> None:
    """Of data without a length an evaluation is all that they give, if their loader does not hide it from Composer."""
    if recipe.trainer.get("eval_subset_num_batches", -1) != -1:
        return
    whole = [each for each in ensure_tuple(data) if getattr(each, "subset_num_batches", None) in (None, -1)]
    for loader in [spec.dataloader for spec in specs(whole) if length_of(spec.dataloader) is None]:
        if isinstance(loader, Sized):
            raise part.source.error(part.key, "has no length; say eval_subset_num_batches: N, or give it __len__")
        tell_once(
            f"{part.key}: has no length, so each evaluation goes on until its data end; if they have no end, say "
            "eval_subset_num_batches: N"
        )


def _kept_records(recipe: Recipe) -> list[str]:
    return [name for part in recipe.algorithms for name in declared_by(part.target).kept_records]


def _shown_by(history: History, watch: LoggerDestination | None, arguments: Mapping[str, Any]) -> list[Any]:
    if watch:
        return [watch]
    return [] if arguments["progress_bar"] or arguments.get("log_to_console") else [Lines(history)]


def _evaluators(recipe: Recipe, evaluated: Sequence[tuple[Part, Any]]) -> list[Evaluator]:
    """What there is to evaluate; the metrics on the validation data are told apart by their label."""
    found: list[Evaluator] = []
    for part, data in evaluated:
        several = ensure_tuple(data)
        if part is recipe.validation_data and len(several) > 1:
            raise part.source.error(part.key, f"gives {len(several)} data sets; expected one")
        found += [_evaluator(one, recipe.eval_batch_size) for one in several]
    if recipe.validation_data is None:
        return found
    found[-1].label = VALIDATION  # those data come last
    labels = [one.label for one in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        key = recipe.validation_data.key
        raise recipe.source.error(key, f"a split of eval_data has its name, {twice}; leave out one of them")
    return found


def _evaluator(data: Any, batch_size: int) -> Evaluator:
    """Of batches that stay whole, also where their loader does not tell Composer a batch size."""
    if isinstance(data, Evaluator):
        data.device_eval_microbatch_size = data.device_eval_microbatch_size or batch_size
        return data
    size = told_batch_size(ensure_data_spec(data).dataloader, batch_size)
    return Evaluator(label="eval", dataloader=data, device_eval_microbatch_size=size)


def _build_model(recipe: Recipe) -> ComposerModel:
    model = recipe.model.build()
    if not isinstance(model, ComposerModel):
        raise recipe.source.error(recipe.model.key, f"makes a {type(model).__name__}; expected a ComposerModel")
    return model


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
    for part in recipe.algorithms:
        if isinstance(part.target, type) and issubclass(part.target, SAM):
            hint = "its optimizer's state is in no checkpoint; start anew with autoresume=false"
            raise recipe.source.error(part.key, f"cannot resume from a checkpoint, {hint}")
