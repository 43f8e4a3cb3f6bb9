"""The tiny run that the algorithm tests share."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, Callback, Trainer
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import ComposerClassifier, HuggingFaceModel
from composer.utils import dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from small import (  # noqa: F401
    CLASSES,
    SAMPLES,
    TOKENS,
    WORDS,
    assert_same,
    differ,
    examples,
    hugging_face_lm,
    network,
    noisy_network,
    sentences,
    timeless,
)


def classifier(module: nn.Module | None = None) -> ComposerClassifier:
    return ComposerClassifier(module or network(), num_classes=CLASSES, loss_fn=F.cross_entropy)


def loader(batch_size: int = 8, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    data = TensorDataset(*examples())
    return DataLoader(data, batch_size, sampler=dist.get_sampler(data, shuffle=shuffle, drop_last=drop_last))


def masked_lm(kind: str = "bert", seed: int = 0, **fields: Any) -> HuggingFaceModel:
    """A Hugging Face masked LM of one small layer, without dropout; `kind` is bert, roberta, distilbert, ..."""
    model = hugging_face_lm(kind, seed, **fields)
    return HuggingFaceModel(model, use_logits=True, metrics=[LanguageCrossEntropy(), MaskedAccuracy()])


def token_loader(batch_size: int = 8, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    data = [dict(zip(sentences(), row, strict=True)) for row in zip(*sentences().values(), strict=True)]
    sampler = dist.get_sampler(data, shuffle=shuffle, drop_last=drop_last)  # type: ignore[arg-type]
    return DataLoader(data, batch_size, sampler=sampler)  # type: ignore[arg-type]


def trainer(algorithms: Algorithm | Sequence[Algorithm] = (), **options: Any) -> Trainer:
    model = options.pop("model", None) or classifier()
    options.setdefault("train_dataloader", loader())
    options.setdefault("optimizers", torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    options.setdefault("max_duration", "2ep")
    options.setdefault("seed", 7)
    return Trainer(model=model, algorithms=algorithms, progress_bar=False, **options)


def fit(algorithms: Algorithm | Sequence[Algorithm] = (), **options: Any) -> Trainer:
    result = trainer(algorithms, **options)
    result.fit()
    return result


def plain_loop(network: nn.Module, updates: int, schedule: Any = None) -> Iterator[int]:
    """Trains as `fit` does, without a Trainer; gives the number of updates so far, at first 0.

    `schedule` makes a scheduler of torch's out of the optimizer.
    """
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    scheduler = schedule and schedule(optimizer)
    batches = cycle(loader())
    yield 0
    for step in range(updates):
        inputs, targets = next(batches)
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        yield step + 1


def loop(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    mix: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] = lambda inputs, targets, step: inputs,
    microbatch: int = 8,
    targets: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The weights of a run like that of `fit`, in a training loop of one's own."""
    model, data = classifier(), examples()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = [*zip(data[0].split(8), (data[1] if targets is None else targets).split(8), strict=True)]
    for step, (x, y) in enumerate(2 * batches):
        mixed = mix(x, y, step)
        optimizer.zero_grad()
        for inputs, labels in zip(mixed.split(microbatch), y.split(microbatch), strict=True):
            (loss(model.module(inputs), labels) * (len(labels) / len(y))).backward()
        optimizer.step()
    return model.state_dict()


class Kill(Callback):
    """Stops the run after `batch` updates and the checkpoint of the last of them, if any."""

    def __init__(self, batch: int):
        self.batch = batch

    def before_dataloader(self, state, logger):
        if state.timestamp.batch == self.batch:
            raise KeyboardInterrupt


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    model = getattr(run.state.model, "module", run.state.model) if dist.get_world_size() > 1 else run.state.model
    return copy.deepcopy({name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()})


def launch(processes: int, *command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """`composer -n processes ...`, as somebody would launch it; plain Python for a single process."""
    launcher = [Path(sys.executable).with_name("composer"), "-n", str(processes)] if processes > 1 else [sys.executable]
    return subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | environment,
    )
