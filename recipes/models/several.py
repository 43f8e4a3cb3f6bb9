"""One encoder for several tasks, each with its own head, loss and metrics; batches tell in `task` which they are of.

model: {several_tasks: {models: {topic: {bert: {...}}, order: {bert: {...}}}}}
train_data: {several: {sources: {topic: {...}, order: {...}}}}
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from composer.models import HuggingFaceModel
from torch import nn
from torchmetrics import Metric

from accelerando.algorithms.checkpoints import some
from accelerando.algorithms.generators import untouched_generators

from ..config.errors import ArgumentError, ConfigError, Source
from ..config.lookup import Part
from ..config.sections import check_section
from ..data.checks import check_tasks


class SeveralTasks(HuggingFaceModel):
    """Models of Hugging Face's that share the encoder of the first.

    The first is the attribute `model`: its parameters, the encoder's among them, have the names that they have in a run
    of its task alone, so that masks and weights of the encoder fit both. What is the others' own is in `heads`, by
    task. All start as in a run of their task alone with the same seed, but for the encoder, which is the first's.

    A step changes the encoder and the head of the batch's task. Metrics are taken in evaluation only, where they are
    named after their task: `topic/MulticlassAccuracy`.

    Args:
        models: by task, a model's name with its arguments. With `pretrained` its encoder must be the first's; without,
            it has the first's all the same.
        shared: the name of the module that all share, by default what Hugging Face calls the base model, such as
            `bert`. What the first lacks of it, as masked language modelling lacks BERT's pooler, is each task's own.
    """

    def __init__(self, models: dict[str, Any], shared: str | None = None):
        check_tasks("models", models)
        self.parts = {task: _part(task, given) for task, given in models.items()}
        first, *others = self.parts
        built = {}
        for task in others:
            with untouched_generators():
                built[task] = _build(task, self.parts[task])
        self.tasks = {first: _build(first, self.parts[first])} | built  # a mapping, so that none is registered twice
        lead = self.tasks[first]
        super().__init__(lead.model, tokenizer=lead.tokenizer, use_logits=lead.use_logits)
        shared = shared or lead.model.base_model_prefix
        encoder = _find(lead.model, shared, "shared", first)
        for task in others:
            network = built[task].model
            own = _find(network, shared, f"models.{task}", task)
            _compare(encoder, own, f"models.{task}", f"{shared} of {first}", "pretrained" in self.parts[task].arguments)
            _share(encoder, own, network, shared)
        self.heads = nn.ModuleDict({task: built[task].model for task in others})
        for task, model in self.tasks.items():
            for metric in model.get_metrics().values():
                metric.task = task  # type: ignore[assignment]

    def forward(self, batch: Any) -> Any:
        return self._of(batch)(batch)

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        return self._of(batch).eval_forward(batch, outputs)

    def loss(self, outputs: Any, batch: Any) -> Any:
        return self._of(batch).loss(outputs, batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Those of all tasks; none of a step, which is of one task, while Composer would take those of all."""
        found = {task: {} if is_train else model.get_metrics() for task, model in self.tasks.items()}
        return {f"{task}/{name}": metric for task, own in found.items() for name, metric in own.items()}

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> dict[str, Any]:
        """Of another task's metric than the batch's nothing is changed."""
        own = metric.task == batch["task"][0]
        return self._of(batch).update_metric(batch, outputs, metric) if own else {}

    def _of(self, batch: Any) -> HuggingFaceModel:
        told = batch.get("task") if isinstance(batch, Mapping) else None
        if not told or told[0] not in self.tasks:
            raise ValueError(
                f"a batch is of no task among {', '.join(self.tasks)}; expected data of the source several"
            )
        return self.tasks[told[0]]


def _part(task: str, given: Any) -> Part:
    try:
        return check_section(Source(), "model", given or {})[0]
    except ConfigError as error:
        raise ArgumentError(f"models.{task}{error.key.removeprefix('model')}", error.message) from error


def _build(task: str, part: Part) -> HuggingFaceModel:
    try:
        model = part.build()
    except ConfigError as error:
        raise ArgumentError(f"models.{task}{error.key.removeprefix('model')}", error.message) from error
    if not isinstance(model, HuggingFaceModel) or isinstance(model, SeveralTasks):
        raise ArgumentError(f"models.{task}", f"makes a {type(model).__name__}; expected one of Hugging Face's models")
    return model


def _find(network: nn.Module, name: str, argument: str, task: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        known = some([name for name, _ in network.named_children()])
        message = f"{type(network).__name__} of {task} has no module {name}, to be shared; it has {known}"
        raise ArgumentError(argument, message) from None


def _compare(encoder: nn.Module, own: nn.Module, argument: str, name: str, trained: bool) -> None:
    """ArgumentError where the modules, as far as both have the same parts, are not alike."""
    here, there = ({*dict(module.named_children())} for module in (own, encoder))
    found, wanted = (
        {place: kind for place, kind in _structure(module).items() if place.partition(".")[0] not in here ^ there}
        for module in (own, encoder)
    )
    hint = f"than the {name}; expected one encoder in all tasks"
    if other := [place for place in {**wanted, **found} if wanted.get(place) != found.get(place)]:
        raise ArgumentError(argument, f"has another {other[-1] or type(own).__name__} {hint}")
    if trained and (other := [place for place, own, wanted in _common(own, encoder) if not torch.equal(own, wanted)]):
        raise ArgumentError(argument, f"has other weights in {other[0]} {hint}, from the same pretrained weights")


def _structure(module: nn.Module) -> dict[str, Any]:
    """By place the class of each module inside, the numbers and texts that it holds, and the shapes of its weights."""
    found: dict[str, Any] = {}
    left_out = "training", "name_or_path"
    for place, each in module.named_modules():
        held = {key: value for key, value in vars(each).items() if isinstance(value, int | float | str)}
        plain = {key: value for key, value in held.items() if key not in left_out and not key.startswith("_")}
        shapes = {key: tuple(weight.shape) for key, weight in each.named_parameters(recurse=False)}
        attention = getattr(getattr(each, "config", None), "_attn_implementation", None)
        found[place] = type(each), plain, shapes, attention
    return found


def _share(encoder: nn.Module, own: nn.Module, network: nn.Module, name: str) -> None:
    """Puts the encoder, or those parts of it that both have, in the place of the network's own.

    It can be used there, but is registered at the first network alone: to torch, its parameters have one name.
    """
    same = {id(weight): wanted for _, weight, wanted in _common(own, encoder)}
    parts, extra = dict(own.named_children()), {*dict(own.named_children())} - {*dict(encoder.named_children())}
    if extra:
        for part in parts.keys() - extra:
            _put(own, part, getattr(encoder, part))
    else:
        parent, _, last = name.rpartition(".")
        _put(network.get_submodule(parent), last, encoder)
    for module in network.modules():
        for key, weight in module._parameters.items():
            module._parameters[key] = same.get(
                id(weight), weight
            )  # such as words' embeddings, of which a head predicts


def _common(own: nn.Module, encoder: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    there = dict(encoder.named_parameters())
    return ((place, weight, there[place]) for place, weight in own.named_parameters() if place in there)


def _put(parent: nn.Module, name: str, module: nn.Module) -> None:
    del parent._modules[name]
    vars(parent)[name] = module
