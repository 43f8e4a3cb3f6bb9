"""EL2N of Fashion-MNIST's training images by ten networks, and norms of gradients, beside plain scripts; arms in turn.

    python benchmarks/examples.py [--rounds 5] [--network LeNet-300-100 ResNet-8] [--threads 1] [--small]

The plain script evaluates the loader once for each network, and takes EL2N of its outputs; ours is `score_examples`,
which reads the data once for all. Each is timed on batches of 1000 that lie in memory, and on those of torch's
DataLoader over the same images. Norms of gradients are those of 1000 images, by one backward pass each in the plain
script, and by `gradient_norms`. `--small` tells that it runs, and nothing else.
"""

import argparse
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from loop import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import gradient_norms, score_examples
from accelerando.recipes.data.images import FashionMnist
from accelerando.recipes.models import builders
from harness import hardware, keep_memory, measure, report, versions

BATCH = 1000


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    ((model, arguments),) = NETWORKS[name]["model"].items()
    return getattr(builders, model)(**arguments).module


@torch.no_grad()
def plain_scores(models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """EL2N of each example by each network, which is evaluated by itself."""
    found = []
    for model in models:
        model.eval()
        scores = []
        for inputs, targets in batches:
            errors = model(inputs).softmax(1) - F.one_hot(targets, 10)
            scores.append(errors.norm(dim=1))
        found.append(torch.cat(scores))
    return torch.stack(found)


def plain_norms(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The norm of each example's gradient, by a backward pass of its own."""
    model.eval()
    weights, norms = [*model.parameters()], []
    for example, target in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(example[None]), target[None]), weights)
        norms.append(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
    return torch.stack(norms)


def compared(title: str, arms: dict[str, Callable[[], Tensor]], given: argparse.Namespace) -> None:
    """Times both, and tells how far apart what they find is."""
    plain, ours = (arm() for arm in arms.values())
    apart = float((plain - ours).abs().max() / plain.abs().max())
    medians = measure(arms, given.rounds, torch.device("cpu"))
    ratio = medians.ratio("ours", "plain script")
    report(
        title,
        medians,
        "plain script",
        f"ours / plain script {ratio:.3f}; at most {apart:.0e} of the largest value apart",
    )


def measured(name: str, given: argparse.Namespace) -> None:
    models = [network(name, seed) for seed in range(given.replicates)]
    source = {**NETWORKS[name]["train_data"]["fashion_mnist"], "split": given.split}
    in_memory: Any = FashionMnist(**source).build(BATCH, False, 17, "cpu").dataloader
    x, y = (torch.cat(parts) for parts in zip(*in_memory, strict=True))
    for kind, batches in {"in memory": in_memory, "DataLoader": DataLoader(TensorDataset(x, y), BATCH)}.items():
        compared(
            f"{name}: EL2N of {len(y)} images by {len(models)} networks, {kind}",
            {
                "plain script": lambda batches=batches: plain_scores(models, batches),
                "ours": lambda batches=batches: score_examples(models, batches)["el2n"],
            },
            given,
        )
    inputs, targets = x[: given.gradients], y[: given.gradients]
    compared(
        f"{name}: norms of the gradients of {len(targets)} images",
        {
            "plain script": lambda: plain_norms(models[0], inputs, targets),
            "ours": lambda: gradient_norms(models[0], inputs, targets),
        },
        given,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--small", action="store_true", help="100 images, 2 networks of each kind")
    given = parser.parse_args(arguments)
    given.replicates, given.split, given.gradients = 10, "train", 1000
    if given.small:
        given.rounds, given.replicates, given.split, given.gradients = 1, 2, "train[:100]", 10
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
