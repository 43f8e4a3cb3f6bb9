"""The runs that the recipes' tests share: a small one of `train` on digits, and what a Trainer is served."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from composer import Callback, ComposerModel, Trainer
from composer.models import ComposerClassifier
from torch import Tensor, nn

from accelerando.recipes.run.buffers import OneSetOfBuffers
from accelerando.recipes.train import train


def settings(folder):
    return {
        "run_name": "run",
        "folder": str(folder),
        "max_duration": "2ep",
        "train_subset_num_batches": 4,
        "eval_subset_num_batches": 1,
        "save_interval": "3ba",
        "global_batch_size": 32,
        "model": {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 1}},
        "train_data": {"digits": {}},
        "eval_data": {"digits": {"split": "test"}},
        "optimizer": {"decoupled_sgdw": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"cosine_annealing_with_warmup": {"t_warmup": "0.25dur"}},
        "algorithms": {"mix_up": {}, "label_smoothing": {"smoothing": 0.1}},
        "device": "cpu",
    }


class Watch(Callback):
    """Sees whether the run trained and which weights it ended with; may kill it before batch `kill_at`."""

    weights: dict[str, torch.Tensor]
    trained: bool

    def __init__(self, kill_at: int = -1):
        self.kill_at = kill_at

    def init(self, state, logger):
        Watch.trained = False
        assert any(isinstance(callback, OneSetOfBuffers) for callback in state.callbacks)

    def before_train_batch(self, state, logger):
        Watch.trained = True
        if state.timestamp.batch == self.kill_at:
            raise KeyboardInterrupt

    def close(self, state, logger):
        Watch.weights = {name: value.clone() for name, value in state.model.state_dict().items()}


# In the middle of the second epoch, two batches after a checkpoint.
KILL = {"callbacks": {"runs:Watch": {"kill_at": 5}}}


def trained(config, **changes):
    Watch.trained = False
    return train(config | {"callbacks": {"runs:Watch": {}}} | changes), Watch.weights


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Followed(Callback):
    """Copies what each update begins with, batch and learning rates, and the weights that are left."""

    batches: dict[int, list[Tensor]]
    rates: dict[int, list[float]]
    dropped: dict[int, Tensor]
    generator: dict[int, Tensor]  # torch's, whose next draws are the update's
    first: dict[str, Tensor]
    end: dict[str, Tensor]

    def __init__(self, kill_at: int = -1):
        self.kill_at = kill_at
        Followed.batches, Followed.rates, Followed.dropped, Followed.generator, Followed.first = {}, {}, {}, {}, {}

    def fit_start(self, state, logger):
        Followed.first = {name: value.clone() for name, value in state.model.state_dict().items()}

        def keep(module, inputs, outputs):
            Followed.dropped[state.timestamp.batch.value] = (outputs == 0) & (inputs[0] != 0)

        self.hooks = [m.register_forward_hook(keep) for m in state.model.modules() if isinstance(m, nn.Dropout)]

    def batch_start(self, state, logger):
        now = state.timestamp.batch.value
        if now == self.kill_at:
            raise KeyboardInterrupt
        Followed.batches[now] = [tensor.clone() for tensor in state.batch]
        Followed.generator[now] = torch.get_rng_state()
        Followed.rates[now] = [group["lr"] for group in state.optimizers[0].param_groups]

    def close(self, state, logger):
        Followed.end = {name: value.clone() for name, value in state.model.state_dict().items()}


class Counting(torch.optim.SGD):
    """Counts its updates in its groups, as schedule-free optimizers do."""

    counts: ClassVar[list[int]] = []
    momenta: ClassVar[set[float]] = set()

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
        Counting.counts.append(self.param_groups[0]["k"])
        Counting.momenta = {group["momentum"] for group in self.param_groups}
        return super().step(closure)


def noisy() -> ComposerClassifier:
    """With all that makes one training differ from another, for the digits: batch norm, dropout."""
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(72, 10),
    )
    return ComposerClassifier(network, num_classes=10, loss_fn=torch.nn.functional.cross_entropy)


def measured(result):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in result.records]


def free_of_seconds(levels):
    return [{name: value for name, value in level.items() if name != "seconds"} for level in levels]


class Served(Callback):
    """Keeps a copy of every batch."""

    def __init__(self):
        self.batches: list[list[Tensor]] = []

    def after_dataloader(self, state, logger):
        self.batches.append([tensor.clone() for tensor in state.batch])


def served(
    model: ComposerModel, data: Any, folder: Any, max_duration: str, duration: str | None = None, resume: Any = None
) -> Sequence[Sequence[Tensor]]:
    """Trains on the CPU; returns all batches. The checkpoint after batch n is {n}.pt in `folder`, which may be resumed.

    It trains for `duration`, by default to the end.
    """
    watch = Served()
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=data,
        max_duration=max_duration,
        save_folder=str(folder),
        save_interval="1ba",
        save_filename="{batch}.pt",
        load_path=resume and str(resume),
        callbacks=[watch],
        progress_bar=False,
        device="cpu",
        seed=5,
    )
    trainer.fit(duration=duration)
    trainer.close()
    return watch.batches
