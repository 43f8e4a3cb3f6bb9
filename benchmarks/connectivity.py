"""A path of 30 points over Fashion-MNIST's test images, beside a plain script; arms in turn within one run.

    python benchmarks/connectivity.py [--rounds 5] [--network LeNet-300-100 ResNet-8] [--threads 1] [--small]

The plain script loads a point's state, evaluates the loader, and takes the next one; ours is `evaluate_path`. Each is
timed on batches of 1000 that lie in memory, and on those of torch's DataLoader over the same images. For ResNet-8 the
statistics of batch norm are then recomputed from as many training images, in memory. `--small` tells that it runs, and
nothing else.
"""

import argparse
import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from loop import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import evaluate_path
from accelerando.recipes.data.images import FashionMnist
from accelerando.recipes.models import builders
from harness import hardware, keep_memory, measure, report, versions

BATCH = 1000
Batches = Iterable[tuple[Tensor, Tensor]]


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    ((model, arguments),) = NETWORKS[name]["model"].items()
    return getattr(builders, model)(**arguments).module


def images(name: str, split: str) -> Any:
    """A loader of batches in memory."""
    source = {**NETWORKS[name]["train_data"]["fashion_mnist"], "split": split}
    return FashionMnist(**source).build(BATCH, False, 17, "cpu").dataloader


@torch.no_grad()
def plain_path(
    model: nn.Module,
    a: dict[str, Tensor],
    b: dict[str, Tensor],
    points: int,
    batches: Batches,
    statistics: Batches = (),
) -> list[tuple[float, float]]:
    """Loss and error at each point; with `statistics`, after batch norm has averaged over those batches anew."""
    found = []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)] if statistics else []
    for alpha in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        model.load_state_dict({n: torch.lerp(v, b[n], alpha) if v.is_floating_point() else v for n, v in a.items()})
        model.train()
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
        for inputs, _ in statistics:
            model(inputs)
        model.eval()
        loss, wrong, count = 0.0, 0.0, 0
        for inputs, targets in batches:
            outputs = model(inputs)
            loss += F.cross_entropy(outputs, targets, reduction="sum").item()
            wrong += (outputs.argmax(1) != targets).sum().item()
            count += len(targets)
        found.append((loss / count, wrong / count))
    return found


def compared(title: str, arms: dict[str, Callable[[], Any]], given: argparse.Namespace) -> dict[str, float]:
    """Times both, and tells how far apart what they find is."""
    plain, ours = (arm() for arm in arms.values())
    losses = zip((loss for loss, _ in plain), ours.means["loss"], strict=True)
    apart = max(abs(one - other) / one for one, other in losses)
    medians = measure(arms, given.rounds, torch.device("cpu"))
    ratio = medians.ratio("ours", "plain script")
    report(title, medians, "plain script", f"ours / plain script {ratio:.3f}; losses at most {apart:.0e} of them apart")
    return medians


def measured(name: str, given: argparse.Namespace) -> None:
    model, scratch = network(name, 0), network(name, 0)
    a, b = (copy.deepcopy(network(name, seed).state_dict()) for seed in (1, 2))
    in_memory = images(name, given.test)
    x, y = (torch.cat(parts) for parts in zip(*in_memory, strict=True))
    interpolated = {}
    for kind, batches in {"in memory": in_memory, "DataLoader": DataLoader(TensorDataset(x, y), BATCH)}.items():
        interpolated[kind] = compared(
            f"{name}: {given.points} points of {len(y)} images, {kind}",
            {
                "plain script": lambda batches=batches: plain_path(scratch, a, b, given.points, batches),
                "ours": lambda batches=batches: evaluate_path(model, (a, b), given.points, batches),
            },
            given,
        )
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return
    train = images(name, given.train)
    recompute = {"batch_norm": "recompute", "statistics": train}
    medians = compared(
        f"{name}: statistics recomputed from {len(y)} images",
        {
            "plain script": lambda: plain_path(scratch, a, b, given.points, in_memory, train),
            "ours": lambda: evaluate_path(model, (a, b), given.points, in_memory, **recompute),  # type: ignore[arg-type]
        },
        given,
    )
    ratio = medians["ours"] / interpolated["in memory"]["ours"]
    print(f"  ours, recomputed / interpolated {ratio:.3f}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--small", action="store_true", help="100 images and 3 points")
    given = parser.parse_args(arguments)
    given.points, given.test, given.train = 30, "test", "train[:10000]"
    if given.small:
        given.rounds, given.points, given.test, given.train = 1, 3, "test[:100]", "train[:100]"
    return given


def main(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{hardware(torch.device('cpu'))}; {versions()}; batches of {BATCH}")
    for name in given.network:
        measured(name, given)


if __name__ == "__main__":
    keep_memory()
    main(parse())
