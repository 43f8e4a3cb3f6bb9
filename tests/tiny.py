"""The tiny run that the algorithm tests share."""

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, Callback, Trainer
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4
SAMPLES = 30  # batches of 8 leave a last one of 6


def network() -> nn.Module:
    """Max-pool, strided 3x3 and strided 1x1; no batch norm, so that microbatches and ranks add up."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Conv2d(16, 32, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def classifier(module: nn.Module | None = None) -> ComposerClassifier:
    return ComposerClassifier(module or network(), num_classes=CLASSES, loss_fn=F.cross_entropy)


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(SAMPLES, 3, 12, 12, generator=generator),
        torch.randint(CLASSES, (SAMPLES,), generator=generator),
    )


def loader(batch_size: int = 8, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    data = TensorDataset(*examples())
    return DataLoader(data, batch_size, sampler=dist.get_sampler(data, shuffle=shuffle, drop_last=drop_last))


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


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() != b.keys() or any(not torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def timeless(state: Any) -> Any:
    """The same without the seconds, in which no two runs agree."""
    if isinstance(state, dict):
        return {name: timeless(value) for name, value in state.items() if name != "seconds"}
    return [timeless(value) for value in state] if isinstance(state, list) else state


def launch(processes: int, *command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """`composer -n processes ...`, as somebody would launch it; plain Python for a single process."""
    launcher = [Path(sys.executable).with_name("composer"), "-n", str(processes)] if processes > 1 else [sys.executable]
    return subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | environment,
    )
