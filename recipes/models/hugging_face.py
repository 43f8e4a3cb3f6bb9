"""Hugging Face's encoders by name: BERT, and whatever else transformers has for these objectives."""

import copy
import logging
from importlib.util import find_spec
from typing import Any, Literal

from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from torch.nn import Module
from torchmetrics import MeanSquaredError, Metric

from accelerando.algorithms.checkpoints import read_content

from ..config.errors import ArgumentError
from ..config.lookup import nearest
from ..data.checks import check_hub_name, check_least, hub_or_cache
from .answers import ANSWERS, AnswerMetricName
from .metrics import CLASSES, CrossEntropy, MaskedAccuracy, MetricName, build_metrics
from .pretrained import (
    auto_class,
    check_encoder,
    classes_for,
    config_of,
    fields_in,
    find_checkpoint,
    load_encoder,
)

# Composer warns of it at every model, and a study builds hundreds; whoever wants it in checkpoints names one.
logging.getLogger("composer.models.huggingface").addFilter(
    lambda record: "tokenizer was not provided" not in record.msg
)

Objective = Literal["masked_lm", "classification", "question_answering"]
AnyMetricName = Literal[MetricName, AnswerMetricName]


def bert(
    objective: Objective = "masked_lm",
    config: dict[str, Any] | None = None,
    num_labels: int = 2,
    pretrained: str | None = None,
    tokenizer: str | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
    metrics: tuple[AnyMetricName, ...] | None = None,
    random_weights: bool = False,
) -> HuggingFaceModel:
    """Hugging Face's BERT.

    For the other arguments see `hugging_face`.

    Args:
        config: fields of transformers' `BertConfig`; those left out keep BERT-base's values, or `pretrained`'s.
        pretrained: hub name or local folder whose weights are the start, or a Composer checkpoint, or the folder of a
            run, with its latest one; otherwise they are random.
    """
    return _encoder(
        "bert", objective, config or {}, num_labels, pretrained, tokenizer, attention, metrics, random_weights
    )


def hugging_face(
    objective: Objective = "classification",
    pretrained: str | None = None,
    num_labels: int = 2,
    config: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    attention: Literal["sdpa", "eager"] | None = None,
    metrics: tuple[AnyMetricName, ...] | None = None,
    random_weights: bool = False,
) -> HuggingFaceModel:
    """Any encoder of transformers, such as RoBERTa, DistilBERT, ELECTRA or ModernBERT, which computes its own loss.

    The loss is of the batch's `labels`, or of its `start_positions` and `end_positions`.

    Args:
        objective: with `classification`, the labels are one class per sequence; with `question_answering` the data are
            `squad`'s.
        pretrained: hub name or local folder whose weights are the start, or a Composer checkpoint, or the folder of a
            run, with its latest one; otherwise they are random. ValueError if the encoder would not be complete.
        num_labels: classes of `classification`; 1 is regression with the mean squared error.
        config: fields of transformers' configuration; those left out keep its own values, or `pretrained`'s. Without
            `pretrained` it names the `model_type`, such as roberta.
        tokenizer: hub name or local folder, to be saved inside Composer's checkpoints.
        attention: PyTorch's fused attention, or one matrix product after the other; null for what transformers takes.
        metrics: of `classification`, by default accuracy, or for regression mean squared error and Pearson's; of
            `question_answering`, by default exact_match and squad_f1. Of `classification` evaluation tells the loss
            too.
        random_weights: whether `pretrained` gives its architecture alone.
    """
    fields = dict(config or {})
    model_type = fields.pop("model_type", None)
    return _encoder(
        model_type, objective, fields, num_labels, pretrained, tokenizer, attention, metrics, random_weights
    )


def _encoder(
    model_type: str | None,
    objective: Objective,
    fields: dict[str, Any],
    num_labels: int,
    pretrained: str | None,
    tokenizer: str | None,
    attention: str | None,
    metrics: tuple[AnyMetricName, ...] | None,
    random_weights: bool,
) -> HuggingFaceModel:
    file = find_checkpoint(pretrained) if pretrained else None
    for name in filter(None, (None if file else pretrained, tokenizer)):
        check_hub_name(name)
    check_least(1, num_labels=num_labels)
    if random_weights and not pretrained:
        raise ArgumentError("random_weights", "true given without `pretrained`, whose architecture it takes")
    if find_spec("transformers") is None:
        raise ImportError("encoders need transformers: pip install 'accelerando[nlp]'")
    from transformers import AutoTokenizer

    answers = objective == "question_answering"
    measured = _metrics(objective, metrics, num_labels)
    model = _network(model_type, objective, fields, num_labels, pretrained, attention, random_weights)
    saved = None
    if tokenizer:
        with hub_or_cache(tokenizer):
            saved = AutoTokenizer.from_pretrained(tokenizer)
    evaluated = copy.deepcopy(measured)
    if objective == "classification":  # the loss, which training tells by itself
        loss = CrossEntropy() if num_labels > 1 else MeanSquaredError()
        evaluated += [] if any(type(metric) is type(loss) for metric in measured) else [loss]
    # Only batches of evaluation hold the texts that answers are compared with.
    trained = [] if answers else measured
    return HuggingFaceModel(model, saved, use_logits=not answers, metrics=trained, eval_metrics=evaluated)


def _metrics(objective: Objective, names: tuple[str, ...] | None, num_labels: int) -> list[Metric]:
    if objective == "masked_lm":
        if names:
            raise ArgumentError("metrics", f"{', '.join(names)} given; masked_lm has its own")
        return [LanguageCrossEntropy(), MaskedAccuracy()]
    known: dict[Any, Any] = CLASSES if objective == "classification" else ANSWERS
    for name in names or ():
        if name not in known:
            raise ArgumentError("metrics", f"{name} is none of {objective}{nearest(name, known)}")
    if objective == "classification":
        return build_metrics(names or (("accuracy",) if num_labels > 1 else ("mse", "pearson")), num_labels)  # type: ignore[arg-type]
    if num_labels != 2:
        raise ArgumentError("num_labels", f"{num_labels} given; question_answering has 2, the start and the end")
    return [ANSWERS[name]() for name in names or ANSWERS]  # type: ignore[index]


def _network(
    model_type: str | None,
    objective: Objective,
    fields: dict[str, Any],
    num_labels: int,
    pretrained: str | None,
    attention: str | None,
    random_weights: bool,
) -> Module:
    """The network with the weights that it starts from."""
    from transformers import PretrainedConfig

    file = find_checkpoint(pretrained) if pretrained else None
    content = read_content(file) if file else {}
    saved = fields_in(content)
    if pretrained and not file:
        with hub_or_cache(pretrained):
            saved = PretrainedConfig.get_config_dict(pretrained)[0]
    config = config_of(model_type, saved, fields, num_labels, pretrained)
    auto, classes = auto_class(objective), classes_for(objective)
    if type(config) not in classes:
        raise ArgumentError("objective", f"transformers has no {config.model_type} for {objective}")
    if attention == "sdpa" and not getattr(classes[type(config)], "_supports_sdpa", True):
        raise ArgumentError("attention", f"sdpa given, which {config.model_type} does not have; expected eager")
    if file or not pretrained or random_weights:
        model = auto.from_config(config, attn_implementation=attention)
        if file and not random_weights:
            load_encoder(model, content, file)
        return model.float()
    with hub_or_cache(pretrained):
        model, found = auto.from_pretrained(
            pretrained,
            config=config,
            attn_implementation=attention,
            # Fine-tuning may start from the checkpoint of another task, with another number of classes.
            ignore_mismatched_sizes=objective != "masked_lm",
            output_loading_info=True,
        )
    # With their shapes in older versions.
    wrong = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    check_encoder(pretrained, model.base_model_prefix, found["missing_keys"], wrong)
    return model.float()  # which newer transformers leave in the precision of the file
