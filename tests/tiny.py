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
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import ComposerClassifier, HuggingFaceModel
from composer.utils import dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForMaskedLM

CLASSES = 4
SAMPLES = 30  # batches of 8 leave a last one of 6


def network(seed: int = 0) -> nn.Module:
    """Max-pool, strided 3x3 and strided 1x1; no batch norm, so that microbatches and ranks add up."""
    torch.manual_seed(seed)
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


def noisy_network(seed: int = 0) -> nn.Module:
    """With all that makes one training differ from another: batch norm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
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


WORDS, TOKENS = 40, 12


def masked_lm(kind: str = "bert", seed: int = 0, **fields: Any) -> HuggingFaceModel:
    """A Hugging Face masked LM of one small layer, without dropout; `kind` is bert, roberta, distilbert, ..."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
    elif kind != "modernbert":
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(kind, vocab_size=WORDS, max_position_embeddings=32, pad_token_id=0, **sizes, **fields)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    return HuggingFaceModel(model, use_logits=True, metrics=[LanguageCrossEntropy(), MaskedAccuracy()])


def sentences(samples: int = SAMPLES) -> dict[str, torch.Tensor]:
    """Every third of them padded at its end; a quarter of the tokens has a label, as many in every sentence."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, WORDS, (samples, TOKENS), generator=generator)
    chosen = torch.rand(samples, TOKENS - 4, generator=generator).argsort(1)[:, :3]
    labels = torch.full_like(ids, -100).scatter_(1, chosen, ids.gather(1, chosen))
    ids[::3, -4:] = 0
    return {"input_ids": ids.scatter(1, chosen, 1), "attention_mask": (ids != 0).long(), "labels": labels}


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
    """The same without the seconds, in which no two runs agree, and with numbers for tensors."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
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
