"""LinearPath in Hugging Face's Trainer."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from .. import ranks
from ..connectivity.curves import PathCurves
from ..connectivity.training_path import Means, StartWriter, TrainingLine, checked_arguments, say_outside, unmoved
from ..generators import seeded
from ..pruning.samples import samples_in
from .host import Run
from .pruning import Pruning
from .snapshots import KeepsWeights

Metric = Callable[[Any, Any], Tensor]


class LinearPath(KeepsWeights):
    """When training ends, measures the straight line from the model of an earlier moment to that of the end.

        path = LinearPath(start="0ba", points=30)
        Trainer(model, args, callbacks=[path], ...).train()
        path.result.curves["eval/loss"]

    At each point the model's own loss, the mean of its batches' by their samples, and the `metrics` are taken, in
    evaluation mode and in the Trainer's precision: on the data of the Trainer's last evaluation, so that there must be
    an `eval_strategy`, and where asked on the training data. Each data set is read once for all points. `result`, a
    `PathCurves`, has them with the barriers and the L2 distance. They stand in the folder as `path.csv` and `path.png`,
    and the numbers in the Trainer's `state.log_history`; a callback cannot reach the services that it reports to.

    The weights of the start are a snapshot in the folder, where a training finds them that goes on from a checkpoint.
    The end is what the Trainer has then, with `load_best_model_at_end` the best. Of several ranks each measures its
    share of the data, with the samples that fill up the last batches. Nothing of the training is changed. Where the
    model is pruned at the end and not at the start, a warning and `result.outside` say so.

    Args:
        start: the moment in ep, ba (updates) or dur; `0ba` is before the first update.
        points, batch_norm: see `accelerando.algorithms.LinearPath`, Composer's class.
        train: measure on the training data too, as their loader gives them, in the order of epoch 0.
        batches: how many of the training batches to use, of each rank; by default all of an epoch.
        metrics: functions (outputs, batch) -> values, such as one for each example, of which the mean is taken; by
            name. Whether lower is better, the name tells: it ends with loss, error, crossentropy or perplexity.
        save_folder: where; by default in `{output_dir}/linear_path`.
    """

    folder = "linear_path"

    def __init__(
        self,
        start: str = "0ba",
        points: int = 30,
        batch_norm: Literal["both", "interpolate", "recompute"] = "both",
        train: bool = False,
        batches: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        save_folder: str | None = None,
    ):
        time = checked_arguments(start, points, batch_norm, batches, save_folder, ("ep", "ba", "dur"))
        self.at_start, self.points, self.batch_norm = start, points, batch_norm
        self.train, self.batches, self.metrics = train, batches, dict(metrics or {})
        self.result: PathCurves | None = None
        super().__init__(save_folder)
        self.counted([time])

    def new_writer(self, folder: Path, run: Run | None) -> StartWriter:
        return StartWriter(folder, self.at_start)

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.result = None
        if not self.train and str(getattr(run.args.eval_strategy, "value", run.args.eval_strategy)) == "no":
            raise ValueError(f"{self.name} has nothing to measure on: give it train=True, or an eval_strategy.")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        super().on_train_end(args, state, control, **parts)
        evaluated = parts.get("eval_dataloader")
        if self._writer.missing or (evaluated is None and not self.train):
            if not self._writer.missing and ranks.rank() == 0:
                warnings.warn(f"{self.name}: there was no evaluation whose data it could measure on.", stacklevel=2)
            return
        assert self.run
        self.result = self._measured(self.run, evaluated)
        numbers = {f"linear_path/{name}": value for name, value in self.result.numbers().items()}
        state.log_history.append({**numbers, "step": state.global_step})
        if ranks.rank() == 0:
            self.result.write(self._writer.folder, self.name)

    def _measured(self, run: Run, evaluated: Any) -> PathCurves:
        writer, device = self._writer, run.model.device
        assert isinstance(writer, StartWriter)
        begun, start = writer.read()
        at_work = vars(run.state)["_accelerando"]
        with seeded(run.args.seed, [torch.cuda.current_device()] if device.type == "cuda" else []):
            line = TrainingLine(
                run.model,
                start,
                None,
                self.points,
                self.batch_norm,
                statistics=lambda: _batches(run.loader, self.batches),
                forward=lambda model, batch: _outputs(run, model, batch),
                masks=next((each.masks for each in at_work if isinstance(each, Pruning)), None),
            )
            if line.outside and ranks.rank() == 0:
                warnings.warn(say_outside(line.outside), stacklevel=3)
            sets = {"eval": _batches(evaluated, None)} if evaluated is not None else {}
            sets |= {"train": _batches(run.loader, self.batches)} if self.train else {}
            found = {}
            for label, batches in sets.items():
                means = Means(line.places)

                def observe(place: int, batch: Any, outputs: Any, means: Means = means) -> None:
                    means.add(place, "loss", float(outputs["loss"].mean()), samples_in(batch))
                    for name, metric in self.metrics.items():
                        values = metric(outputs, batch)
                        means.add(place, name, float(values.double().mean()), values.numel())

                line.walk(batches, observe)
                found |= {f"{label}/{name}": values for name, values in means.found().items()}
        return line.curves(found, begun, run.state.global_step)


def _outputs(run: Run, model: Any, batch: Any) -> Any:
    with run.autocast():
        outputs = model(**batch)
    if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
        raise ValueError("LinearPath: the model gives no 'loss' among its outputs: give labels, and return_dict=True.")
    return outputs


def _batches(loader: Any, limit: int | None) -> Iterator[Any]:
    """Those of Accelerate's loader, which counts its epochs, and wants to be told when it is left before its end."""
    epoch = getattr(loader, "iteration", None)
    with unmoved(loader):
        try:
            if epoch is not None:
                loader.set_epoch(0)
            rest = iter(loader)
            yield from islice(rest, limit)
            if next(rest, None) is not None and hasattr(loader, "end"):
                loader.end()
        finally:
            if epoch is not None:
                loader.set_epoch(epoch)
