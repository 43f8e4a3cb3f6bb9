"""LinearPath in a run of Composer's Trainer."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from composer.core import DataSpec, State, get_precision_context
from composer.loggers import Logger
from torch import Tensor

from ..batches import device_of
from ..connectivity.curves import PathCurves
from ..connectivity.training_path import Means, StartWriter, TrainingLine, checked_arguments, say_outside
from ..distillation import minimised
from ..generators import seeded
from ..pruning.samples import samples_in
from ..pruning.size import aligned
from .batches import Part, parts
from .for_recipes import FinishedRun, Folder, Supply
from .host import composer_model
from .pruning.sparsity import Pruning
from .snapshots import KeepsWeights, is_first, trained_weights

_UNITS = ("ep", "ba", "sp", "tok", "dur")
_LOGGED = "linear_path"


class LinearPath(KeepsWeights):
    """When training ends, measure the straight line from the network of an earlier moment to that of the end.

        path = LinearPath(start="0ba", points=30)
        Trainer(..., algorithms=[path]).fit()
        path.result.curves["eval/loss"]

    At each point the model's own loss (the mean of its batches', by their samples) and its evaluation metrics are
    taken, in evaluation mode and in the run's precision, on the data of every evaluator, as far as that reads them, and
    where asked on the training data; at both ends they are those of a plain evaluation. Each data set is read once for
    all points. `result`, a `PathCurves`, has them with the barriers and the L2 distance. They are logged as
    `linear_path/...`, with a table and a figure, and stand in the folder as `path.csv` and `path.png`.

    The weights of the start are a snapshot in the folder, where a run finds them that is resumed after a kill; those of
    the end are what training has left, not what EMA averages. Of several ranks each measures its share of the data: the
    sums of losses, the metrics and the recomputed statistics are put together. Nothing of the run is changed.

    Where the network is pruned at the end and not at the start, a warning and `result.outside` say that the ends have
    not the same support.

    Args:
        start: the moment in ep, ba, sp, tok or dur; `0ba` is before the first update.
        points: how many, evenly spaced, both ends among them.
        batch_norm: where the network has batch norm, "interpolate" the running statistics, "recompute" them at each
            point from the training data, or "both", which differ much. Recomputed, the ends are not those of training.
        train: measure on the training data too, as their loader gives them, augmented, in the order of epoch 0.
        batches: how many of the training batches to use, of each rank; by default all of an epoch.
        save_folder: where; by default in `{run_name}/linear_path`.
        transform: of training batches, on the device, to what the model sees: what a DataSpec's `batch_transforms` and
            `microbatch_transforms` do together, as Composer does not show them to algorithms.
    """

    supplied: ClassVar = {"save_folder": Folder(name="linear_path"), "transform": Supply.TRANSFORM}
    kept_records = (f"{_LOGGED}/",)

    def __init__(
        self,
        start: str = "0ba",
        points: int = 30,
        batch_norm: Literal["both", "interpolate", "recompute"] = "both",
        train: bool = False,
        batches: int | None = None,
        save_folder: str | None = None,
        transform: Callable[[Any], Any] | None = None,
    ):
        checked_arguments(start, points, batch_norm, batches, save_folder, _UNITS)
        self.start, self.points, self.batch_norm, self.train = start, points, batch_norm, train
        self.batches, self.transform = batches, transform
        self.result: PathCurves | None = None
        self._logger: Logger | None = None
        super().__init__(save_folder)

    def new_writer(self, folder: str) -> StartWriter:
        return StartWriter(folder, self.start)

    def _begin(self, state: State, logger: Logger) -> None:
        super()._begin(state, logger)
        self.result, self._logger = None, logger

    def _start(self, state: State, logger: Logger) -> None:
        if not (state.evaluators or self.train):
            raise ValueError(
                "LinearPath has nothing to measure on; give the Trainer an eval_dataloader, or train=True."
            )
        super()._start(state, logger)

    def _finish(self, state: State, logger: Logger) -> None:
        super()._finish(state, logger)
        if not self._writer.missing:
            self._measure(state, logger)

    def _measure(self, state: State, logger: Logger) -> None:
        model, writer = composer_model(state), self._writer
        assert isinstance(writer, StartWriter)
        begun, start = writer.read()
        device = device_of(model)
        with seeded(state.rank_zero_seed, [torch.cuda.current_device()] if device.type == "cuda" else []):
            line = TrainingLine(
                model,
                start,
                trained_weights(state),
                self.points,
                self.batch_norm,
                statistics=lambda: self._training_parts(state),
                forward=lambda model, part: _forward(state, model, part),
                masks=next((each.masks for each in state.algorithms if isinstance(each, Pruning)), None),
            )
            if line.outside and is_first():
                warnings.warn(say_outside(line.outside), stacklevel=2)
            found = {}
            for each in state.evaluators:
                data = parts(state, each.dataloader, each.device_eval_microbatch_size, _limit(each.subset_num_batches))
                found |= _metrics_on(each.label, data, state.eval_metrics[each.label], state, line)
            if self.train:
                metrics = model.get_metrics(is_train=False)
                found |= _metrics_on("train", self._training_parts(state), metrics, state, line)
        self.result = line.curves(found, begun, state.timestamp.batch.value)
        self._log(self.result, logger)

    def _training_parts(self, state: State) -> Iterator[Part]:
        assert state.train_dataloader is not None
        spec = DataSpec(state.train_dataloader, get_num_samples_in_batch=samples_in)  # the Trainer's is not shown
        limit = self.batches or _limit(state.dataloader_len)
        return parts(state, spec, state.device_train_microbatch_size, limit, self.transform or (lambda batch: batch))

    def _log(self, result: PathCurves, logger: Logger) -> None:
        logger.log_metrics({f"{_LOGGED}/{name}": value for name, value in result.numbers().items()})
        logger.log_table(*result.table(), name=_LOGGED)
        if is_first() and (pixels := result.write(self._writer.folder, "LinearPath")) is not None:
            logger.log_images(pixels, name=_LOGGED, channels_last=True, use_table=False)

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """`linear_path`: the result, as builtins; measured now, if the run was killed when training had just ended."""
        if self.result is None and self._logger:
            self._finish(run.state, self._logger)
        return {_LOGGED: self.result.as_dict()} if self.result else {}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        path, names = found.get(_LOGGED, {}), {"numbers", *PathCurves.__dataclass_fields__}
        if path and (not isinstance(path, Mapping) or path.keys() != names):
            raise ValueError(f"{_LOGGED} does not hold {', '.join(sorted(names))}")

    @classmethod
    def tables(cls, found: Mapping[str, Any]) -> list[str]:
        if _LOGGED not in found:
            return []
        path = found[_LOGGED]
        rows: list[Sequence[str]] = [("path", "start", "end", "barrier", "setback")]
        for name, values in path["curves"].items():
            numbers = (path["numbers"][f"{kind}/{name}"] for kind in ("barrier", "setback"))
            shown = ["" if value is None else f"{value:.4f}" for value in (values[0], values[-1], *numbers)]
            rows.append((name, *shown))
        return [aligned(rows, left=1)]


def _limit(batches: Any) -> int | None:
    """Composer says -1, or None, for all."""
    return int(batches) if batches is not None and int(batches) >= 0 else None


def _forward(state: State, model: Any, part: Part) -> Any:
    with get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False):
        return model(part.batch)


def _metrics_on(
    label: str, data: Iterator[Part], metrics: Mapping[str, Any], state: State, line: TrainingLine
) -> dict[str, list[float]]:
    """The loss and the metrics on one data set at each place of the line."""
    model, means = composer_model(state), Means(line.places)
    own = [{n: state.device.module_to_device(copy.deepcopy(m)) for n, m in metrics.items()} for _ in range(line.places)]
    for metric in (metric for of_place in own for metric in of_place.values()):
        metric.reset()

    def observe(place: int, part: Part, outputs: Any) -> None:
        if not part.samples:
            return
        means.add(place, "loss", float(minimised(model.loss(outputs, part.batch))), part.samples)
        with get_precision_context(state.precision, state.precision_config):
            # Hugging Face's models take the labels out of the batch, and shift them in place.
            batch = copy.deepcopy(part.batch)
            outputs = model.eval_forward(batch, outputs)
            for metric in own[place].values():
                model.update_metric(batch, outputs, metric)

    line.walk(data, observe)
    values = {name: [of_place[name].compute() for of_place in own] for name in metrics}
    found = means.found() | {n: v for n, v in values.items() if isinstance(v[0], Tensor) and v[0].numel() == 1}
    return {f"{label}/{name}": [float(value) for value in values] for name, values in found.items()}
