"""The loop of bare.py, counting how often each example is forgotten: classified correctly, and wrong an epoch later.

python examples/plain/forgetting_events.py [CHECKPOINT [UPDATES]]
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import Forgetting

EPOCHS, BATCH, SEED = 4, 64, 17
checkpoint, updates = ([*sys.argv[1:], None, None])[:2]

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)
train, test = slice(0, 1437), slice(1437, None)
batches_per_epoch = 1437 // BATCH
steps = EPOCHS * batches_per_epoch

torch.manual_seed(SEED)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
examples = DataLoader(TensorDataset(x[train], y[train]), 500)
forgetting = Forgetting(examples, interval="1ep", batches_per_epoch=batches_per_epoch)
saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "forgetting": forgetting}


def batch_of(step):
    """The order of an epoch is a function of its number, so that a training goes on in the middle of one."""
    epoch, batch = divmod(step, batches_per_epoch)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(epoch))
    rows = order[batch * BATCH : (batch + 1) * BATCH]
    return x[train][rows], y[train][rows]


start = 0
if checkpoint and Path(checkpoint).exists():
    content = torch.load(checkpoint, weights_only=True)
    start = content.pop("step")
    for name, state in content.items():
        saved[name].load_state_dict(state)

end = min(int(updates or steps), steps)
for step in range(start, end):
    inputs, targets = batch_of(step)
    model.train()
    loss = F.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    forgetting(model, step + 1)

model.eval()
with torch.no_grad():
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"{int((forgetting.events > 0).sum())} examples were forgotten, {int((~forgetting.learned).sum())} never learned")
print(f"accuracy {accuracy:.4f} after {end} updates")
if checkpoint:
    torch.save({name: part.state_dict() for name, part in saved.items()} | {"step": end}, checkpoint)
