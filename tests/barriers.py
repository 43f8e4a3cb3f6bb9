"""Barriers in test error between networks of equal initial weights and other orders of data, in plain torch.

What they are trained with stands in yamls/fashion_mnist. Both are one network up to step k, where the optimizer's state
is copied too. A barrier is the highest error at 11 points of the line between them, BatchNorm statistics interpolated,
less the mean of the errors at its ends (Frankle et al., arXiv:1912.05671, section 2). `python tests/barriers.py`
"""

import copy
import gzip
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(__file__).parents[1] / "yamls" / "fashion_mnist"
TRIES = [("lenet", 0), ("resnet8", 0), ("resnet8", 280)]
SEEDS = [1, 2, 3]


def read(split, resize=None):
    part, rows = ("t10k" if split == "test" else "train"), re.search(r":(\d+)", split)
    files = (DEBIAN / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = (gzip.decompress(file.read_bytes()) for file in files)
    x = torch.frombuffer(bytearray(images), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28) / 255
    x = F.interpolate(x, resize, mode="area") if resize else x
    y = torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=8).long()
    return ((x - 0.286) / 0.353)[: rows and int(rows[1])], y[: rows and int(rows[1])]


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        stride = 1 if a == b else 2
        self.first = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        shortcut = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.shortcut = nn.Identity() if a == b else shortcut

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def network(name, width=300, **_):
    if name == "lenet":
        sizes = [784, width, width // 3]
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width // 3, 10))
    else:
        stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks = [Block(a, b) for a, b in pairwise([width, width, 2 * width, 4 * width])]
        model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
    return model


def train(model, optimizer, rates, data, batch, order):
    """One step at each of the learning rates."""
    x, y = data
    model.train()
    whole, rates = len(x) // batch, list(rates)
    for step, rate in enumerate(rates):
        if step % whole == 0:
            batches = torch.randperm(len(x), generator=order).split(batch)
        rows = batches[step % whole]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


@torch.no_grad()
def error(model, data):
    x, y = data
    model.eval()
    wrong = sum((model(a).argmax(1) != b).sum().item() for a, b in zip(x.split(1000), y.split(1000), strict=True))
    return 100 * wrong / len(x)


def barrier(name, k, seed):
    config = OmegaConf.load(SHIPPED / f"{name}.yaml")
    data, test = (read(**config[part].fashion_mnist) for part in ("train_data", "eval_data"))
    batch, (number, unit) = config.global_batch_size, re.fullmatch(r"(\d+)(ep|ba)", config.max_duration).groups()
    steps = int(number) * (len(data[0]) // batch if unit == "ep" else 1)
    rates = np.full(steps, config.optimizer.sgd.lr)
    if "scheduler" in config:
        assert "cosine_annealing" in config.scheduler
        rates *= (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    torch.manual_seed(seed)
    (arguments,) = config.model.values()
    model = network(name, **arguments)
    trunk = model, torch.optim.SGD(model.parameters(), **config.optimizer.sgd)
    train(*trunk, rates[:k], data, batch, torch.Generator().manual_seed(1000 + seed))
    ends = []
    for branch in (2, 3):
        own, optimizer = copy.deepcopy(trunk)  # in one call, so that the one still holds the other
        order = torch.Generator().manual_seed(1000 * branch + seed)
        train(own, optimizer, rates[k:], data, batch, order)
        ends.append(own.state_dict())
    path = []
    for alpha in np.linspace(0, 1, 11):
        model.load_state_dict({key: torch.lerp(a.float(), ends[1][key].float(), alpha) for key, a in ends[0].items()})
        path.append(error(model, test))
    return max(path) - (path[0] + path[-1]) / 2, (path[0] + path[-1]) / 2


if __name__ == "__main__":
    print("settings   k     barrier (points of test error)        test error at the ends")
    for name, k in TRIES:
        found, errors = zip(*(barrier(name, k, seed) for seed in SEEDS), strict=True)
        seeds = "  ".join(f"{value:6.2f}" for value in found)
        print(f"{name:8} {k:4}   mean {np.mean(found):6.2f}; seeds {seeds}   {np.mean(errors):.2f} %", flush=True)
