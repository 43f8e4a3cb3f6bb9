"""The techniques in a plain torch loop, for the benchmarks: what our objects for such a loop do to a step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accelerando.algorithms import Distiller, MagnitudePruner, Mixer, Smoother

# BERT-base, or what a probe on two CPU cores can bear.
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
VOCABULARY, LENGTH = 30522, 128


def vision(network: str, **options: Any) -> nn.Module:
    """torchvision's, of random weights."""
    import torchvision

    names = {"ResNet-50": "resnet50", "ResNet-18": "resnet18", "ShuffleNet": "shufflenet_v2_x0_5"}
    return getattr(torchvision.models, names[network])(**options)


def masked_lm(sizes: dict[str, Any]) -> Any:
    """Hugging Face's BERT with its head, of random weights."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes))


def sentences(count: int) -> dict[str, Tensor]:
    """Token ids of which 15 % have a label."""
    ids = torch.randint(VOCABULARY, (count, LENGTH))
    labels = ids.masked_fill(torch.rand(count, LENGTH) >= 0.15, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Plain:
    """A step's loss without any technique, and what is done after the update."""

    def loss(self, model: nn.Module, inputs: Any, target: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), target)

    def after_update(self) -> None:
        pass


class Smoothed(Plain):
    def __init__(self) -> None:
        self.smoother = Smoother(0.1)

    def loss(self, model: nn.Module, inputs: Any, target: Tensor) -> Tensor:
        return self.smoother.loss(F.cross_entropy, model(inputs), target)


class Mixed(Plain):
    def __init__(self) -> None:
        self.mixer, self.step = Mixer(0.2), 0

    def loss(self, model: nn.Module, inputs: Any, target: Tensor) -> Tensor:
        inputs = self.mixer(inputs, target, self.step)
        self.step += 1
        return self.mixer.loss(F.cross_entropy, model(inputs), target)


class Distilled(Plain):
    """By the mean logits of all teachers, or of so many drawn at each step."""

    def __init__(self, teachers: Sequence[nn.Module], per_step: int | None = None):
        self.distiller, self.step = Distiller([*teachers], per_step), 0

    def loss(self, model: nn.Module, inputs: Any, target: Tensor) -> Tensor:
        logits = model(inputs)
        loss = self.distiller(F.cross_entropy(logits, target), logits, inputs, self.step)
        self.step += 1
        return loss


class Pruned(Plain):
    """Masks by magnitude, which hold in gradients, weights and the optimizer's state."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, density: float):
        self.pruner = MagnitudePruner(model, optimizer, density)

    def after_update(self) -> None:
        self.pruner.step()


Technique = Callable[[nn.Module, torch.optim.Optimizer], Plain]  # of the model that is trained
TECHNIQUES: dict[str, Technique] = {
    "plain": lambda model, optimizer: Plain(),
    "LabelSmoothing": lambda model, optimizer: Smoothed(),
    "MixUp": lambda model, optimizer: Mixed(),
    "Distillation": lambda model, optimizer: Distilled([copy.deepcopy(model)]),
    "MagnitudePruning": lambda model, optimizer: Pruned(model, optimizer, 0.2),
}


class Loop:
    """A copy of a network in training, with a technique; a call is one step. Under bfloat16 autocast if so asked."""

    def __init__(self, network: nn.Module, technique: Technique, bf16: bool = False):
        self.model, self.bf16 = copy.deepcopy(network).train(), bf16
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.technique = technique(self.model, self.optimizer)

    def __call__(self, inputs: Any, target: Tensor) -> None:
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.technique.loss(self.model, inputs, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.technique.after_update()
