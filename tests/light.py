"""The tiny training that the tests of Lightning's callbacks share."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms.lightning import training_loss
from accelerando.algorithms.teachers import logits_of
from small import examples, hugging_face_lm, network, sentences

SEED = 7
# A checkpoint holds tensors and builtins alone: Lightning can be told so from 2.6 on.
TENSORS_ALONE = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}


class Module(LightningModule):
    """A network trained by SGD, whose training step asks for its loss by `training_loss`.

    `schedule` makes a scheduler, for every update, out of the optimizer.
    """

    def __init__(self, network: nn.Module, schedule: Callable[[Any], Any] | None = None):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.given: list[Any] = []  # the batches, and the precisions of the logits, that training steps have had
        self.precisions: set[torch.dtype] = set()

    def forward(self, batch: Any) -> Any:
        return self.network(**batch) if isinstance(batch, Mapping) else self.network(batch[0])

    def loss(self, batch: Any, outputs: Any) -> Tensor:
        if isinstance(batch, Mapping):
            return training_loss(self, None, outputs, batch["labels"])
        return training_loss(self, F.cross_entropy, outputs, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch)
        self.given.append(batch)
        self.precisions.add(logits_of(outputs).dtype)
        return self.loss(batch, outputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self(batch)
        self.log("loss", self.loss(batch, outputs), batch_size=8)
        if not isinstance(batch, Mapping):
            self.log("accuracy", (outputs.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)
        if not self.schedule:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


def module_for(kind: str, **options: Any) -> Module:
    return Module(network() if kind == "images" else hugging_face_lm(), **options)


def loader(kind: str, batch_size: int = 8, samples: int = 30) -> DataLoader:
    """The first samples, in their order."""
    if kind == "images":
        return DataLoader(TensorDataset(*(tensor[:samples] for tensor in examples())), batch_size)
    rows = [dict(zip(sentences(), row, strict=True)) for row in zip(*sentences().values(), strict=True)]
    return DataLoader(rows[:samples], batch_size)  # type: ignore[arg-type]


class Shuffled(DataLoader):
    """Batches in another order in each epoch, which tell Lightning how far they are, as torchdata's loader does."""

    def __init__(self, kind: str, batch_size: int = 8):
        batches = loader(kind, batch_size)
        super().__init__(batches.dataset, batch_size)
        self.batches = [*batches]
        self.epoch = self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for number in order[self.done :]:
            self.done += 1
            if self.done == len(self):
                self.epoch, self.done = self.epoch + 1, 0
            yield self.batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.done = state["epoch"], state["done"]


class Kill(Callback):
    """Ends the training after so many updates."""

    def __init__(self, updates: int):
        self.updates = updates

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.updates:
            raise KeyError("killed")


def checkpoints(folder: Path) -> ModelCheckpoint:
    """One after every update: step=1.ckpt and so on."""
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def trainer(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    options = {"max_epochs": 2, "accelerator": "cpu", "logger": False} | options
    return Trainer(
        callbacks=[*callbacks],
        enable_checkpointing=checkpointing,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies, by the names that they have without what `torch.compile` adds."""
    return {name.replace("_orig_mod.", ""): value.clone() for name, value in module.state_dict().items()}
