"""Metrics of classification and regression by name, as GLUE's are; each takes a model's raw outputs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import composer.metrics
import torch
import torch.nn.functional as F
import torchmetrics.classification
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassMatthewsCorrCoef

from ..config.errors import ArgumentError
from ..data.facts import IGNORED

MetricName = Literal["accuracy", "f1", "matthews", "mse", "pearson", "spearman"]


class MulticlassAccuracy(Metric):
    """The share of examples whose highest logit is that of their class; torchmetrics' value with `average="micro"`.

    Composer takes it at every microbatch. torchmetrics' looks for strange labels, for which the host waits for the
    device, and holds four counts where two suffice; `benchmarks/loop.py` measures what either adds to a step.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def to(self, *where: Any, **options: Any) -> Any:
        """Composer asks at every microbatch, and a look at each state on the same device costs more than `update`."""
        return self if where == (self.device,) and not options else super().to(*where, **options)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Logits (N, num_classes) and classes (N,); ValueError for other shapes."""
        if preds.ndim == 2 and target.shape == preds.shape[:1] and preds.shape[1] != self.num_classes:
            found = f"but the network returns {preds.shape[1]} numbers for each example"
            raise ArgumentError("num_classes", f"{self.num_classes} given, {found}; expected one for each class")
        if preds.shape != (*target.shape, self.num_classes):
            raise ValueError(
                f"{type(self).__name__} got outputs {tuple(preds.shape)} and labels {tuple(target.shape)}; "
                f"expected logits (N, {self.num_classes}) and classes (N,)."
            )
        self.counts[0].add_(self._right(preds, target).sum())
        self.counts[1].add_(target.numel())

    def _right(self, preds: Tensor, target: Tensor) -> Tensor:
        return preds.argmax(-1) == target

    def compute(self) -> Tensor:
        right, seen = self.counts.float()
        return right / seen.clamp(min=1)


class MulticlassTop5Accuracy(MulticlassAccuracy):
    """The share of examples of whose class the logit is among the five highest."""

    def _right(self, preds: Tensor, target: Tensor) -> Tensor:
        return (preds.topk(5, dim=-1).indices == target[..., None]).any(-1)


class CrossEntropy(Metric):
    """The mean over all examples, however these come in batches; Composer's is the mean of the batches' means.

    An example of the class -100 does not count, and one whose label is a row of probabilities counts as their sum.
    """

    full_state_update = False
    sum_loss: Tensor
    total: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("sum_loss", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Logits (N, C) and classes (N,), or probabilities (N, C); either may have more dimensions behind these."""
        rows = preds.shape == target.shape
        self.sum_loss += F.cross_entropy(preds.float(), target.float() if rows else target, reduction="sum")
        self.total += target.sum() if rows else (target != IGNORED).sum()

    def compute(self) -> Tensor:
        return self.sum_loss / self.total


class MaskedAccuracy(composer.metrics.MaskedAccuracy):
    """Composer's, without its reads from the device: no prediction is the label that is ignored."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.correct += (preds.argmax(-1) == target).sum()
        self.total += (target != self.ignore_index).sum()


class BinaryF1Score(torchmetrics.classification.BinaryF1Score):
    """Of class 1, from the outputs (N, 2) of both classes."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(1), target)


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Gorodkin 2004, equation 8; 0 where all predictions are one class, for which torchmetrics finds another limit."""

    def compute(self) -> Tensor:
        confusion = self.confmat.double()
        n, true, predicted = confusion.sum(), confusion.sum(1), confusion.sum(0)
        covariance = n * confusion.trace() - true @ predicted
        spread = ((n**2 - true @ true) * (n**2 - predicted @ predicted)).sqrt()
        return torch.where(spread > 0, covariance / spread, 0.0).float()


CLASSES: dict[MetricName, type[Metric]] = {
    "accuracy": MulticlassAccuracy,
    "f1": BinaryF1Score,
    "matthews": MatthewsCorrCoef,
    "mse": MeanSquaredError,
    "pearson": PearsonCorrCoef,
    "spearman": SpearmanCorrCoef,
}
_BUILD: dict[MetricName, Callable[[int], Metric]] = {
    "accuracy": MulticlassAccuracy,
    "f1": lambda classes: BinaryF1Score(validate_args=False),
    "matthews": lambda classes: MatthewsCorrCoef(classes, validate_args=False),
}


def build_metrics(names: Sequence[MetricName], num_labels: int) -> list[Metric]:
    """One of each for so many classes, or for regression if `num_labels` is 1; ValueError for what does not fit."""
    for name in names:
        if (name in _BUILD) != (num_labels > 1) or (name == "f1" and num_labels != 2):
            kind = "two classes" if name == "f1" else "classes" if name in _BUILD else "regression, num_labels 1"
            raise ValueError(f"the metric {name} is for {kind}; num_labels is {num_labels}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `SpearmanCorrcoef` will save all targets")  # a few thousand numbers
        return [_BUILD[name](num_labels) if name in _BUILD else CLASSES[name]() for name in names]
