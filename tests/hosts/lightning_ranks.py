"""Trains with the callbacks named, over as many ranks as there are: `torchrun lightning_ranks.py FOLDER NAME...`."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from test_lightning import CASES, fit, trains_on
from torch.utils.data import DataLoader, DistributedSampler

from light import loader


class Choices(Callback):
    """What a callback has chosen for all ranks, batch by batch."""

    def __init__(self, name):
        self.chosen, self.name, self.record = CASES[name].chosen, name, []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        own = next(callback for callback in trainer.callbacks if type(callback).__name__ == self.name)
        self.record.append(self.chosen(own))


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        choices, data = Choices(name), loader(str(trains_on(name)), samples=24).dataset
        in_turn = DistributedSampler(data, shuffle=False, num_replicas=2, rank=int(os.environ["RANK"]))
        run = fit(name, data=DataLoader(data, 4, sampler=in_turn), extra=[choices], strategy="ddp", devices=2)
        left = {"weights": run.weights, "choices": choices.record}
        torch.save(left, folder / f"{name}-{run.trainer.global_rank}.pt")
    # Lightning leaves the group while the interpreter ends, when a rank may still be at work for another one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
