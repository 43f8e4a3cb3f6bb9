"""Metrics of classification and regression by name, as GLUE's are; each takes a model's raw outputs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torchmetrics.classification
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

MetricName = Literal["accuracy", "f1", "matthews", "mse", "pearson", "spearman"]


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
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": lambda classes: BinaryF1Score(),
    "matthews": MatthewsCorrCoef,
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
