"""The loop of bare.py with distillation: the student learns from a teacher, too.

accelerate launch examples/accelerate/bare.py teacher.pt
accelerate launch examples/accelerate/distillation.py [CHECKPOINT [UPDATES]]

The teacher is a network that was trained before; its weights are read from teacher.pt, where `bare.py` leaves its own.
"""

import copy
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from accelerando.algorithms import Distiller, load_teacher

EPOCHS, BATCH, SEED = 4, 64, 17
checkpoint, updates = ([*sys.argv[1:], None, None])[:2]

accelerator = Accelerator()
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
saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
distiller = Distiller(load_teacher("teacher.pt", copy.deepcopy(model)))
network, stepper = accelerator.prepare(model, optimizer)


def batch_of(step):
    """The order of an epoch is a function of its number, so that a training goes on in the middle of one."""
    epoch, batch = divmod(step, batches_per_epoch)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(epoch))
    rows = order[batch * BATCH : (batch + 1) * BATCH]
    rows = rows[accelerator.process_index :: accelerator.num_processes]
    return x[train][rows].to(accelerator.device), y[train][rows].to(accelerator.device)


start = 0
if checkpoint and Path(checkpoint).exists():
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    start = content.pop("step")
    for name, state in content.items():
        saved[name].load_state_dict(state)

end = min(int(updates or steps), steps)
for step in range(start, end):
    inputs, targets = batch_of(step)
    model.train()
    loss = distiller(F.cross_entropy(outputs := network(inputs), targets), outputs, inputs, step)
    stepper.zero_grad()
    accelerator.backward(loss)
    stepper.step()
    scheduler.step()

model.eval()
with torch.no_grad():
    accuracy = (model(x[test].to(accelerator.device)).cpu().argmax(1) == y[test]).float().mean().item()
accelerator.print(f"accuracy {accuracy:.4f} after {end} updates")
if checkpoint:
    accelerator.save({name: part.state_dict() for name, part in saved.items()} | {"step": end}, checkpoint)
