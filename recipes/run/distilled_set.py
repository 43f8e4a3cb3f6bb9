"""What a run that distils its training data begins with, and the file and the picture that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from composer.core import Algorithm, DataSpec, Event, State
from composer.devices import Device
from composer.loggers import Logger
from composer.utils import dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from accelerando.algorithms.composer.for_recipes import FinishedRun, Folder, ForRecipes, Supply
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.examples.distillation import save_distilled
from accelerando.algorithms.examples.files import data_digest
from accelerando.algorithms.figures import save_figure
from accelerando.algorithms.ranks import rank, world_size

from ..models.distilling import DatasetDistiller
from .algorithms import as_seen
from .history import TRAIN_LOSS

FOUND = "distilled"  # in the results, and the folder in the run's
FILE, FIRST, PICTURE = "images.safetensors", "begin.safetensors", "images.png"


class KeepsDistilledSet(ForRecipes, Algorithm):
    """Lets a DatasetDistiller begin, and keeps its set: as `begin.safetensors`, and what has become of it at the end as
    `images.safetensors`, which is drawn as `images.png`.

    Args:
        begin: with `real` images, chosen at random from the training data, or with `noise`. On several ranks the first
            one chooses from its share of them.
    """

    supplied: ClassVar[Mapping[str, Supply | Folder]] = {
        "examples": Supply.EXAMPLES,
        "save_folder": Folder(name=FOUND),
    }

    def __init__(
        self,
        begin: Literal["real", "noise"] = "real",
        examples: Callable[[Device], DataSpec] | None = None,
        save_folder: str = "",
    ):
        self.begin, self.save_folder, self._examples = begin, save_folder, examples
        self._source: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "source": self._source}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source = state["source"]

    def match(self, event: Event, state: State) -> bool:
        return event is Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = _model_of(state)
        if state.evaluators:
            raise ValueError("nothing is evaluated of a distilled set: expected no eval_data and no validation_data")
        model.kept = True
        if state.timestamp.batch > 0:
            return
        assert self._examples is not None
        data: Any = self._examples(state.device)
        dataset = data.dataloader.dataset
        # Others would be read as a whole.
        told = any(hasattr(dataset, name) for name in ("tensors", "samples", "digest"))
        self._source = {"examples": len(dataset), "digest": data_digest(dataset) if told else ""}
        if self.begin == "real":
            model.distiller.begin_with(as_seen(data, state.device))
        if world_size() > 1:
            dist.broadcast(model.distiller.images.data, src=0)
        self._save(model, FIRST)

    def _save(self, model: DatasetDistiller, name: str) -> dict[str, Any]:
        """What the file tells besides."""
        own = model.distiller
        told = {"per_class": own.per_class, "factor": own.factor, "augment": own.augment, **self._source}
        if rank() == 0:
            save_distilled(Path(self.save_folder) / name, own.images.detach().float().cpu(), own.labels.cpu(), **told)
        return told

    def found(self, run: FinishedRun) -> dict[str, Any]:
        model = _model_of(run.state)
        images, labels = model.distiller.images.detach().float().cpu(), model.distiller.labels.cpu()
        told = self._save(model, FILE)
        if rank() == 0:
            figure = Figure(figsize=(5, 5), dpi=150)
            draw_images(figure.add_axes((0, 0, 1, 1)), images, labels)
            save_figure(figure, Path(self.save_folder) / PICTURE)
        losses = [record[TRAIN_LOSS] for record in run.records if TRAIN_LOSS in record]
        return {FOUND: {"images": len(labels), "small_images": model.small_images, **told, "loss": losses[-1]}}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        wanted = {"images", "small_images", "examples", "loss"}
        if not (isinstance(given := found.get(FOUND), dict) and wanted <= given.keys()):
            raise ValueError(f"{FOUND} is {given!r}; expected {', '.join(sorted(wanted))}")


def _model_of(state: State) -> DatasetDistiller:
    model = composer_model(state)
    if not isinstance(model, DatasetDistiller):
        raise ValueError(f"KeepsDistilledSet is for the model dataset_distiller, not for a {type(model).__name__}")
    return model


def draw_images(axes: Axes, images: Tensor, labels: Tensor, most: int = 10) -> None:
    """The first images (N, C, H, W) of each of the first classes, a class a row, from the darkest to the brightest."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    low, high = np.quantile(images.numpy(), (0.01, 0.99))
    shown = F.pad(((images - low) / max(high - low, 1e-9)).clamp(0, 1), (1, 1, 1, 1), value=1.0)
    rows = [shown[labels == label][:most] for label in labels.unique()[:most]]
    blank = [torch.ones_like(shown[0])] * most
    lines = [torch.cat([*row, *blank[: max(map(len, rows)) - len(row)]], 2) for row in rows]
    axes.imshow(torch.cat(lines, 1).permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
