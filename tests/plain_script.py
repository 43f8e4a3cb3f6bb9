"""Somebody's own Composer script, which knows nothing of our recipes: own model, own loader, own Trainer.

    composer -n 2 plain_script.py FOLDER [KILL_AT]

It trains one run to the end; then, from the same start, a second one, which dies without warning after batch KILL_AT.
Started again, it goes on where checkpoints lie.
"""

import os
import signal
import sys
import warnings

import torch
from composer import Callback, Trainer
from composer.models import ComposerClassifier
from composer.utils import dist
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import BlurPool, ChannelsLast, LabelSmoothing, MixUp


class Kill(Callback):
    def __init__(self, batch):
        self.batch = batch

    def batch_checkpoint(self, state, logger):
        if state.timestamp.batch == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, kill_at=None):
    warnings.simplefilter("ignore")
    for run in ("whole", "broken"):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3),
            torch.nn.BatchNorm2d(16),
            torch.nn.Dropout(0.2),
            torch.nn.Conv2d(16, 32, 3, stride=2),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 4),
        )
        model = ComposerClassifier(network, num_classes=4)
        data = TensorDataset(torch.randn(34, 3, 10, 10), torch.randint(4, (34,)))
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(data, 4, sampler=dist.get_sampler(data, shuffle=True)),
            optimizers=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
            max_duration="3ep",
            algorithms=[BlurPool(), ChannelsLast(), LabelSmoothing(0.1), MixUp(0.4)],
            callbacks=[Kill(int(kill_at))] if kill_at and run == "broken" else [],
            run_name=run,
            seed=3,
            device="cpu",
            save_folder=f"{folder}/{run}",
            save_interval="1ba",
            autoresume=True,
            progress_bar=False,
        )
        trainer.fit()
        if dist.get_global_rank() == 0:
            torch.save(model.state_dict(), f"{folder}/{run}.pt")
        trainer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
