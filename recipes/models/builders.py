"""Models by name, each a function that returns a `ComposerModel`; a YAML gives the arguments."""

import inspect
import logging
import math
from importlib.util import find_spec
from typing import Any, Literal

import torch.nn.functional as F
import torchvision
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import Tensor, nn
from torchmetrics import Metric

from accelerando.algorithms.targets import dense_targets

from ..config.lookup import nearest
from ..data.checks import check_hub_name, check_least
from .metrics import MetricName, build_metrics
from .pretrained import check_encoder, find_checkpoint, forget_problem, from_checkpoint

Loss = Literal["cross_entropy", "bce"]

# Composer warns of it at every model, and a study builds hundreds; whoever wants it in checkpoints names one.
logging.getLogger("composer.models.huggingface").addFilter(
    lambda record: "tokenizer was not provided" not in record.msg
)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Summed over classes, which keeps the learning rate at cross entropy's scale, and averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, dense_targets(logits, target), reduction="sum") / len(logits)


def _classifier(module: nn.Module, head: nn.Linear, loss: Loss) -> ComposerClassifier:
    """The initialisation is that of MosaicML's ResNet examples: Kaiming-normal weights and uniform BatchNorm scales."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if loss == "bce":
        # Each class starts at a probability of about 1 / num_classes.
        nn.init.constant_(head.bias, -math.log(head.out_features))
    # F.cross_entropy takes dense targets too; Composer's soft_cross_entropy would read them back from the device.
    loss_fn = F.cross_entropy if loss == "cross_entropy" else binary_cross_entropy
    return ComposerClassifier(module, num_classes=head.out_features, loss_fn=loss_fn)


def resnet(
    depth: Literal[18, 34, 50, 101, 152] = 50, num_classes: int = 1000, loss: Loss = "cross_entropy"
) -> ComposerClassifier:
    """torchvision's ResNet for ImageNet. Images: (N, 3, H, W)."""
    check_least(1, num_classes=num_classes)
    module = getattr(torchvision.models, f"resnet{depth}")(num_classes=num_classes)
    return _classifier(module, module.fc, loss)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet_cifar(
    depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16, loss: Loss = "cross_entropy"
) -> ComposerClassifier:
    """The CIFAR ResNet of He et al. 2015 (section 4.2): a 3x3 stem, then three stages of `width`, 2 and 4 `width`.

    `depth` is 6n + 2: 20 and 56 for CIFAR, 8 for digits. Shortcuts between stages are 1x1 projections (option B).
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ... 56), not {depth}")
    check_least(1, num_classes=num_classes, in_channels=in_channels, width=width)
    stem = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [_Block(width, width, stride=1) for _ in range(depth // 6)]
    for channels in (2 * width, 4 * width):
        blocks += [_Block(channels // 2, channels, stride=2)]
        blocks += [_Block(channels, channels, stride=1) for _ in range(depth // 6 - 1)]
    head = nn.Linear(4 * width, num_classes)
    return _classifier(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), head, loss)


def bert(
    objective: Literal["masked_lm", "classification"] = "masked_lm",
    config: dict[str, Any] | None = None,
    num_labels: int = 2,
    pretrained: str | None = None,
    tokenizer: str | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
    metrics: tuple[MetricName, ...] | None = None,
) -> HuggingFaceModel:
    """Hugging Face's BERT, which computes its own loss from the batch's `labels`.

    Args:
        objective: with `classification`, the labels are one class per sequence.
        config: fields of `transformers.BertConfig`; those left out keep BERT-base's values, or `pretrained`'s.
        num_labels: classes of `classification`; 1 is regression with the mean squared error.
        pretrained: hub name or local folder whose weights are the start, or a Composer checkpoint, or the folder of a
            run, with its latest one; otherwise they are random. ValueError if the encoder would not be complete.
        tokenizer: hub name or local folder, to be saved inside Composer's checkpoints.
        attention: PyTorch's fused attention, or one matrix product after the other.
        metrics: of `classification`; by default accuracy, or for regression mean squared error and Pearson's.
    """
    file = find_checkpoint(pretrained) if pretrained else None
    for name in filter(None, (None if file else pretrained, tokenizer)):
        check_hub_name(name)
    check_least(1, num_labels=num_labels)
    if find_spec("transformers") is None:
        raise ImportError("bert needs transformers: pip install 'accelerando[nlp]'")
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    fields = config or {}
    known = set(inspect.signature(BertConfig).parameters) - {"self", "kwargs"}
    for name in fields:
        if name not in known:
            raise ValueError(f"BertConfig has no field {name}{nearest(name, known)}")
    model_class = AutoModelForMaskedLM if objective == "masked_lm" else AutoModelForSequenceClassification
    measured: list[Metric] = [LanguageCrossEntropy(), MaskedAccuracy()]
    if objective == "classification":
        measured = build_metrics(metrics or (("accuracy",) if num_labels > 1 else ("mse", "pearson")), num_labels)
    elif metrics:
        raise ValueError("metrics are for objective: classification; masked_lm has its own")
    if file:
        model = from_checkpoint(model_class, file, fields, num_labels, attention)
    elif pretrained:
        bert_config = BertConfig.from_pretrained(pretrained, num_labels=num_labels, **fields)
        model, found = model_class.from_pretrained(
            pretrained,
            config=forget_problem(bert_config),
            attn_implementation=attention,
            # Fine-tuning may start from the checkpoint of another task, with another number of classes.
            ignore_mismatched_sizes=objective == "classification",
            output_loading_info=True,
        )
        # With their shapes in older versions.
        wrong = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
        check_encoder(pretrained, found["missing_keys"], wrong)
    else:
        model = model_class.from_config(BertConfig(num_labels=num_labels, **fields), attn_implementation=attention)
    saved = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else None
    return HuggingFaceModel(model, tokenizer=saved, use_logits=True, metrics=measured)
