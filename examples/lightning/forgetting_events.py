"""The training of bare.py, counting how often each example is forgotten: right at the end of an epoch, then wrong.

python examples/lightning/forgetting_events.py [CHECKPOINT [EPOCHS]]
"""

import sys
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms.lightning import ForgettingEvents

EPOCHS, BATCH, SEED = 4, 64, 17
checkpoint, epochs = ([*sys.argv[1:], None, None])[:2]
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)
train = DataLoader(TensorDataset(x[:1437], y[:1437]), BATCH, shuffle=True, drop_last=True)
test = DataLoader(TensorDataset(x[1437:], y[1437:]), BATCH)


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("accuracy", (self(inputs).argmax(1) == targets).float().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


lightning.seed_everything(SEED)
module = Digits()
examples = DataLoader(train.dataset, 500)
forgetting = ForgettingEvents(examples, save_folder=f"{checkpoint or 'training'}.forgetting")
trainer = lightning.Trainer(max_epochs=int(epochs or EPOCHS), callbacks=[forgetting], **options)
trainer.fit(module, train, ckpt_path=checkpoint if checkpoint and Path(checkpoint).exists() else None)
(found,) = trainer.validate(module, test)
print(f"accuracy {found['accuracy']:.4f} after {trainer.global_step} updates")
if checkpoint:
    trainer.save_checkpoint(checkpoint)
