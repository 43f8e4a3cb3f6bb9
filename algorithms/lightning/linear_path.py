"""LinearPath in a training by Lightning's Trainer."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics import Metric, MetricCollection

from ..connectivity.curves import PathCurves
from ..connectivity.training_path import Means, StartWriter, TrainingLine, checked_arguments, say_outside, unmoved
from ..generators import seeded
from ..pruning.samples import samples_in
from .counted import log_numbers
from .host import callbacks_of
from .pruning.sparsity import Pruning
from .snapshots import KeepsWeights

_LOGGED = "linear_path"


class LinearPath(KeepsWeights):
    """When training ends, measure the straight line from the module of an earlier moment to that of the end.

        path = LinearPath(start="0ba", points=30)
        Trainer(..., callbacks=[path]).fit(module, train, validation)
        path.result.curves["val/loss"]

    At each point all is taken that `validation_step` logs by `self.log` or `self.log_dict`: the mean over the batches
    by their samples, or what a metric of torchmetrics says; in the Trainer's precision, on the validation data and,
    where asked, on the training data, whose batches `validation_step` must understand. Hooks of the module around the
    step are not called. Each data set is read once for all points. `result`, a `PathCurves`, has the curves with the
    barriers and the L2 distance. They are logged as `linear_path/...`, to loggers that take them with a table and a
    figure, and stand in the folder as `path.csv` and `path.png`.

    The weights of the start are a snapshot in the folder, where a training finds them that goes on after a kill. Of
    several ranks each measures its share of the data: sums, metrics and recomputed statistics are put together. Nothing
    of the training is changed. Where the network is pruned at the end and not at the start, a warning and
    `result.outside` say so.

    Args:
        start: the moment in ep, ba or dur; `0ba` is before the first update.
        points, batch_norm: see `accelerando.algorithms.LinearPath`, Composer's class.
        train: measure on the training data too, as their loader gives them, augmented, in the order of epoch 0.
        batches: how many of the training batches to use, of each rank; by default all of an epoch.
        save_folder: where; by default in `linear_path` in the Trainer's `default_root_dir`.
    """

    folder = "linear_path"

    def __init__(
        self,
        start: str = "0ba",
        points: int = 30,
        batch_norm: Literal["both", "interpolate", "recompute"] = "both",
        train: bool = False,
        batches: int | None = None,
        save_folder: str | None = None,
    ):
        checked_arguments(start, points, batch_norm, batches, save_folder, ("ep", "ba", "dur"))
        self.start, self.points, self.batch_norm, self.train, self.batches = start, points, batch_norm, train, batches
        self.result: PathCurves | None = None
        super().__init__(save_folder)

    def new_writer(self, folder: Path) -> StartWriter:
        return StartWriter(folder, self.start)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.result = None
        if not (self.train or trainer.enable_validation):
            raise ValueError("LinearPath has nothing to measure on: give it train=True, or fit() validation data.")
        super().begin(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self._writer.missing:
            with _validating(trainer):
                self.result = self._measured(trainer, pl_module)
            self._log(trainer, self.result)

    def _measured(self, trainer: Trainer, pl_module: LightningModule) -> PathCurves:
        writer, device = self._writer, pl_module.device
        assert isinstance(writer, StartWriter)
        begun, start = writer.read()
        with seeded(self._seed, [torch.cuda.current_device()] if device.type == "cuda" else []):
            line = TrainingLine(
                pl_module,
                start,
                None,
                self.points,
                self.batch_norm,
                statistics=lambda: self._training_batches(trainer, pl_module),
                forward=lambda module, batch: _logged(trainer, module, batch),
                masks=next((each.masks for each in callbacks_of(trainer) if isinstance(each, Pruning)), None),
            )
            if line.outside and trainer.is_global_zero:
                warnings.warn(say_outside(line.outside), stacklevel=2)
            found = {}
            loaders = trainer.val_dataloaders if trainer.enable_validation else []
            loaders = [*loaders] if isinstance(loaders, list | tuple) else [loaders]
            for number, loader in enumerate(loaders):
                index = number if len(loaders) > 1 else None
                batches = _batches(trainer, pl_module, loader, trainer.num_val_batches[number], index)
                found |= _metrics_on("val" if index is None else f"val{index}", batches, line)
            if self.train:
                found |= _metrics_on("train", self._training_batches(trainer, pl_module), line)
        return line.curves(found, begun, trainer.global_step)

    def _training_batches(self, trainer: Trainer, pl_module: LightningModule) -> Iterator["_Batch"]:
        return _batches(trainer, pl_module, trainer.train_dataloader, self.batches or trainer.num_training_batches)

    def _log(self, trainer: Trainer, result: PathCurves) -> None:
        log_numbers(trainer, f"{_LOGGED}/", result.numbers())
        if not trainer.is_global_zero:
            return
        pixels, (columns, rows) = result.write(self._writer.folder, "LinearPath"), result.table()
        for logger in map(_of_any_kind, trainer.loggers):
            if hasattr(logger, "log_table"):
                logger.log_table(_LOGGED, columns, rows)
            if pixels is not None and hasattr(logger, "log_image"):
                logger.log_image(_LOGGED, [pixels])
            elif pixels is not None and hasattr(logger.experiment, "add_image"):  # TensorBoard's
                logger.experiment.add_image(_LOGGED, pixels, trainer.global_step, dataformats="HWC")


class _Batch(NamedTuple):
    """A batch on the device, its number, and that of its loader where there are several."""

    batch: Any
    number: int
    loader: int | None


def _batches(
    trainer: Trainer, pl_module: LightningModule, loader: Any, limit: float, index: int | None = None
) -> Iterator[_Batch]:
    with unmoved(loader):
        for number, batch in enumerate(islice(loader, int(limit) if math.isfinite(limit) else None)):
            batch = pl_module.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), index or 0)
            yield _Batch(trainer.strategy.batch_to_device(batch, dataloader_idx=index or 0), number, index)


def _logged(trainer: Trainer, pl_module: nn.Module, batch: _Batch) -> dict[str, tuple[Any, float]]:
    """What `validation_step` logs of a batch, by name, and how much it counts."""
    found: dict[str, tuple[Any, float]] = {}

    def log(name: str, value: Any, *rest: Any, batch_size: int | None = None, **options: Any) -> None:
        found[name] = value, batch_size or samples_in(batch.batch)

    vars(pl_module)["log"] = log  # the walk puts back what a module has of its own
    index = () if batch.loader is None else (batch.loader,)
    with trainer.precision_plugin.val_step_context():
        pl_module.validation_step(batch.batch, batch.number, *index)  # type: ignore[operator]
    return found


def _metrics_on(label: str, batches: Iterator[_Batch], line: TrainingLine) -> dict[str, list[float]]:
    """What is logged on one data set at each place of the line; each has metrics of its own."""
    means, metrics = Means(line.places), _metrics_of(line.model)
    own = [{name: copy.deepcopy(metric) for name, (_, _, metric) in metrics.items()} for _ in range(line.places)]
    for metric in (metric for of_place in own for metric in of_place.values()):
        metric.reset()
    asked: dict[str, list[Any]] = {}

    def observe(place: int, batch: _Batch, logged: dict[str, tuple[Any, float]]) -> None:
        for name, (value, weight) in logged.items():
            if isinstance(value, Metric):
                asked.setdefault(name, [None] * line.places)[place] = value
            else:
                means.add(place, name, float(value), weight)

    def enter(place: int) -> None:
        for name, (parent, key, _) in metrics.items():
            parent._modules[key] = own[place][name]

    line.walk(batches, observe, enter)
    found = means.found() | {name: [float(metric.compute()) for metric in held] for name, held in asked.items()}
    return {f"{label}/{name}": values for name, values in found.items()}


def _metrics_of(module: nn.Module) -> dict[str, tuple[nn.Module, str, Any]]:
    """The metrics of torchmetrics in a module by name, each with its parent and the name there; collections whole."""
    found: dict[str, tuple[nn.Module, str, Any]] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(child, Metric | MetricCollection) and not inside:
            parent, _, key = name.rpartition(".")
            found[name] = module.get_submodule(parent), key, child
    return found


@contextmanager
def _validating(trainer: Trainer) -> Iterator[None]:
    """Modules and callbacks see that no training step is made."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


def _of_any_kind(logger: Any) -> Any:
    """Loggers have what their service takes."""
    return logger
