"""Somebody's own Lightning script, where Composer is not installed: a network pruned at its start, smoothed labels.

    python lightning_script.py FOLDER [KILL_AT]

It trains one run to the end; then, from the same start, a second one, which dies without warning where epoch KILL_AT
begins. Started again, it goes on from the last checkpoint.
"""

import os
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import smooth_labels
from accelerando.algorithms.pruning import apply_masks, keep_highest, magnitude, mask_gradients, prunable_weights


class Pruned(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
        self.weights = prunable_weights(self.network)
        self.masks = keep_highest(magnitude(self.weights), 160)
        apply_masks(self.weights, self.masks)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)

    def training_step(self, batch, index):
        torch.manual_seed(self.global_step)  # dropout; Lightning's checkpoints hold no state of generators
        inputs, labels = batch
        logits = self.network(inputs)
        return F.cross_entropy(logits, smooth_labels(logits, labels))

    def on_after_backward(self):
        mask_gradients(self.weights, self.masks)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["masks"] = self.masks

    def on_load_checkpoint(self, checkpoint):
        self.masks = checkpoint["masks"]


class Kill(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, kill_at=None):
    assert find_spec("composer") is None, "this is to show what works without Composer"
    warnings.simplefilter("ignore")
    for run in ("whole", "broken"):
        torch.manual_seed(3)
        data = TensorDataset(torch.randn(48, 16), torch.randint(4, (48,)))
        module, checkpoints = Pruned(), ModelCheckpoint(Path(folder, run), save_last=True)
        killed = [Kill(int(kill_at))] if kill_at and run == "broken" else []
        trainer = lightning.Trainer(
            max_epochs=4,
            accelerator="cpu",
            callbacks=[checkpoints, *killed],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        last = Path(folder, run, "last.ckpt")
        trainer.fit(module, DataLoader(data, 8), ckpt_path=last if last.exists() else None)
        torch.save({"weights": module.state_dict(), "step": trainer.global_step}, Path(folder, f"{run}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
