"""Whether the data fit the model, and what is evaluated what is trained on: compared before anything is trained.

Whoever says nothing of itself, as what comes from elsewhere may, is not compared; but no label beyond a classifier's
classes gets as far as its loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torchvision
from composer.core import DataSpec, Evaluator
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from torch import Tensor, nn

from accelerando.algorithms.checkpoints import some

from ..data.facts import IGNORED, Described, Facts
from ..data.turns import OfTasks
from ..models.classifier import ImageClassifier, binary_cross_entropy
from ..models.pretrained import classes_for
from ..models.several import SeveralTasks

if TYPE_CHECKING:
    from ..config.errors import ConfigError
    from ..config.lookup import Part
    from ..config.recipe import Recipe

# Their labels are classes, from 0.
LOSSES = (F.cross_entropy, soft_cross_entropy, binary_cross_entropy)


def agree_by_task(recipe: Recipe, model: ComposerModel, data: Sequence[tuple[Part, Any]]) -> None:
    """As `agree`, but the data of each task with its own model, where the model has several tasks."""
    tasks = model.tasks if isinstance(model, SeveralTasks) else {}
    for part, built in data:
        _compare_tasks(recipe, part, [*tasks], list(specs(built)))
    if not isinstance(model, SeveralTasks):
        return agree(recipe, takes(model), data)
    for task, of_model in model.parts.items():
        key = of_model.key.replace("model", f"{recipe.model.key}.models.{task}", 1)
        own = [
            (replace(part, key=f"{part.key}.{spec.keys[task]}"), spec.tasks[task])
            for part, built in data
            for spec in specs(built)
            if isinstance(spec, OfTasks) and task in spec.tasks
        ]
        agree(replace(recipe, model=replace(of_model, key=key), train_data=own[0][0]), takes(model.tasks[task]), own)


def _compare_tasks(recipe: Recipe, part: Part, tasks: list[str], specs: list[DataSpec]) -> None:
    """ConfigError where a source has other tasks than the model; what is evaluated may lack some."""
    model, error = recipe.model.key, recipe.source.error
    held = [task for spec in specs for task in (spec.tasks if isinstance(spec, OfTasks) else ())]
    if not tasks and held:
        raise error(part.key, f"is of several tasks, but {model} is not; expected several_tasks")
    if tasks and not held:
        raise error(part.key, f"is not of several tasks, but {model} is; expected the source several")
    if unknown := [task for task in held if task not in tasks]:
        raise error(f"{part.key}.sources.{unknown[0]}", f"{model} has no such task; expected {', '.join(tasks)}")
    if part is recipe.train_data and (lacking := [task for task in tasks if task not in held]):
        raise error(part.key, f"has no data of {some(lacking)}, a task of {model}")


def agree(recipe: Recipe, takes: Facts, data: Sequence[tuple[Part, Any]]) -> None:
    """ConfigError where a source does not fit the model, or what is evaluated the training, which is the first.

    Labels that are not known beforehand are compared with the model's classes batch by batch, while on the host.
    """
    _, train_data = data[0]
    training = getattr(train_data, "facts", Facts())
    if recipe.trainer.get("accumulate_train_batch_on_tokens"):
        _refuse_without_tokens(recipe, train_data)
    for part, built in data:
        for spec in specs(built):
            holds = getattr(spec, "facts", Facts())
            if problem := _difference(recipe, part, training, holds) or _problem(recipe, part, takes, holds):
                raise problem
            if takes.pairs and holds.labels is None:
                spec.microbatch_transforms = _of_pairs(spec.microbatch_transforms, takes, recipe, part)
            if takes.labels == "classes" and takes.classes and holds.classes is None:
                spec.batch_transforms = _checked(spec.batch_transforms, takes.classes, recipe, part)


def specs(data: Any) -> Iterator[DataSpec]:
    """All that a source has built."""
    for each in data if isinstance(data, list | tuple) else [data]:
        spec = each.dataloader if isinstance(each, Evaluator) else each
        if isinstance(spec, DataSpec):
            yield spec


def _problem(recipe: Recipe, data: Part, takes: Facts, holds: Facts) -> ConfigError | None:
    """Of a source with the model."""
    model, error = recipe.model, recipe.source.error
    for kind in ("inputs", "labels"):
        taken, held = getattr(takes, kind), getattr(holds, kind)
        if taken and held and taken != held:
            what = {"inputs": "holds {}", "labels": "has labels that are {}"}[kind].format(held)
            return error(data.key, f"{what}, but {model.key} takes {taken}{_hint(data, taken, held)}")
    if takes.classes and holds.classes and holds.labels == "classes":
        exact = holds.names or data is recipe.train_data
        if holds.classes > takes.classes or (exact and holds.classes < takes.classes):
            names = f"{holds.classes}: {some(holds.names, most=4)}" if holds.names else ""
            found = f"{data.key} has {names or f'labels up to {holds.classes - 1}'}"
            return error(_key(model, "num_classes", "num_labels"), f"is for {takes.classes} classes, but {found}")
    if takes.channels and holds.channels and takes.channels != holds.channels:
        found = f"those of {data.key} have {holds.channels}"
        return error(_key(model, "in_channels"), f"is for images of {takes.channels} channel(s), but {found}")
    if takes.side and holds.side and takes.side != holds.side:
        found = f"those of {data.key} have {holds.side}"
        return error(_key(model, "image_size"), f"is for images of {takes.side} pixels per side, but {found}")
    if takes.least_side and holds.side and holds.side < takes.least_side:
        found = f"has images of {holds.side} pixels per side"
        return error(data.key, f"{found}, but {model.key} takes {takes.least_side} or more")
    if takes.words and holds.words and holds.words > takes.words:
        key = f"{data.key}.tokenizer" if hasattr(_source(data), "tokenizer") else data.key
        return error(key, f"has a vocabulary of {holds.words} words, but {model.key} is for {takes.words}")
    if takes.positions and holds.positions and holds.positions > takes.positions:
        return error(f"{data.key}.seq_len", f"is {holds.positions}, but {model.key} has {takes.positions} positions")
    return None


def _difference(recipe: Recipe, data: Part, training: Facts, holds: Facts) -> ConfigError | None:
    """Of a source from the one that is trained on: a label must mean the same in both."""
    assert recipe.train_data
    if not (training.names and holds.names) or training.names == holds.names:
        return None
    sets = {
        "lacks": [name for name in training.names if name not in holds.names],
        "has": [name for name in holds.names if name not in training.names],
    }
    found = " and ".join(f"{verb} {some(names, most=3)}" for verb, names in sets.items() if names)
    hint = f"expected the classes of {recipe.train_data.key}, in the same order"
    return recipe.source.error(data.key, f"{found or 'has its classes in another order'}; {hint}")


def _source(data: Part) -> Any:
    return getattr(data.target, "__self__", None)


def _hint(data: Part, taken: str, held: str) -> str:
    if "tokens" in (taken, held) and hasattr(_source(data), "label_column"):
        return ", for masked language modelling: leave out label_column" if taken == "tokens" else "; give label_column"
    if {taken, held} == {"classes", "numbers"}:
        return ": whole numbers are classes, fractional ones are for regression, which is num_labels: 1"
    return ""


def _key(part: Part, *arguments: str) -> str:
    """That of the argument, if there is one of that name."""
    known = inspect.signature(part.target).parameters
    return next((f"{part.key}.{name}" for name in arguments if name in known), part.key)


def _refuse_without_tokens(recipe: Recipe, data: Any) -> None:
    """Composer would take all tokens, or none, for those with a label."""
    if isinstance(data, Described):
        counts = data.facts.labels == "tokens"
    else:
        own = getattr(data, "_get_num_tokens_in_batch", None)
        counts = own is not None and getattr(own, "__func__", own) is not DataSpec._default_get_num_tokens_in_batch
    if not counts:
        key = "accumulate_train_batch_on_tokens"
        raise recipe.source.error(
            key, f"true given, but {recipe.train_data.key} counts no labelled tokens; leave it out"
        )


def _of_pairs(transform: Callable[[Any], Any], takes: Facts, recipe: Recipe, data: Part) -> Callable[[Any], Any]:
    """What reaches the model, of which torch and Composer would say something else."""
    model = recipe.model.key

    def check(batch: Any) -> Any:
        batch = transform(batch)
        if isinstance(batch, Mapping) or not (isinstance(batch, list | tuple) and len(batch) == 2):
            found = f"a mapping of {some([*map(str, batch)])}" if isinstance(batch, Mapping) else _kind(batch)
            raise recipe.source.error(data.key, f"a batch is {found}; {model} takes (inputs, labels)")
        if takes.labels == "classes" and not _is_a_class_each(labels := batch[1], takes.classes):
            hint = f"{model} takes whole numbers of torch.int64 in the shape (N,), a class for each example"
            raise recipe.source.error(data.key, f"the labels of a batch are {_kind(labels)}; {hint}")
        return batch

    return check


def _kind(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} in the shape {tuple(found.shape)}"
    return f"a {type(found).__name__}{f' of {len(found)}' if isinstance(found, list | tuple) else ''}"


def _is_a_class_each(labels: Any, classes: int | None) -> bool:
    """Or the probabilities of all classes."""
    if not isinstance(labels, Tensor):
        return False
    rows = labels.ndim == 2 and labels.shape[1] == classes and labels.dtype.is_floating_point
    return rows or (labels.ndim == 1 and labels.dtype in (torch.int64, torch.uint8))


def _checked(transform: Callable[[Any], Any], classes: int, recipe: Recipe, data: Part) -> Callable[[Any], Any]:
    def check(batch: Any) -> Any:
        batch = transform(batch)
        labels = batch.get("labels") if isinstance(batch, Mapping) else batch[-1]
        # What is on the device already would have to be waited for.
        if isinstance(labels, Tensor) and labels.device.type == "cpu" and labels.ndim == 1 and _whole(labels):
            wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
            if len(wrong):
                found = f"has the label {int(wrong[0])}, but {recipe.model.key} is for {classes} classes"
                raise recipe.source.error(data.key, f"{found}: expected whole numbers from 0 to {classes - 1}")
        return batch

    return check


def _whole(labels: Tensor) -> bool:
    return not (labels.dtype.is_floating_point or labels.dtype is torch.bool)


def takes(model: ComposerModel) -> Facts:
    """What can be told of a model's data: of Hugging Face's, and of a classifier by one of LOSSES."""
    if isinstance(model, HuggingFaceModel):
        return _takes_text(model.model)
    if isinstance(model, ComposerClassifier) and model._loss_fn in LOSSES:
        said = model.takes if isinstance(model, ImageClassifier) else Facts()
        channels = said.channels or _channels(model.module)
        inputs = "images" if channels else None
        return replace(said, inputs=inputs, labels="classes", classes=model.num_classes, channels=channels)
    said = getattr(model, "takes", None)
    return said if isinstance(said, Facts) else Facts()


def _takes_text(network: Any) -> Facts:
    """Of a network of transformers for one of the objectives that recipes know."""
    labels: dict[str, Any] = {"masked_lm": "tokens", "classification": "classes", "question_answering": "spans"}
    for objective, kind in labels.items():
        if isinstance(network, classes_for(objective).get(type(network.config), ())):
            text = Facts(inputs="texts", labels=kind, words=network.config.vocab_size, positions=_positions(network))
            classes = network.config.num_labels
            if kind == "classes":
                return replace(text, labels="classes" if classes > 1 else "numbers", classes=classes)
            return text
    return Facts()


def _positions(network: nn.Module) -> int | None:
    """Of how many tokens there are embeddings; RoBERTa and its kin number them from behind the padding's."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _channels(module: nn.Module) -> int | None:
    """Of the images that its first convolution takes, where it is plain which one is the first."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    if isinstance(module, torchvision.models.ResNet):
        module = module.conv1
    return module.in_channels if isinstance(module, nn.Conv2d) else None
