"""Labels that are wrong on purpose, whatever data they belong to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.errors import ArgumentError
from .wrapped import Examples, Wrapped


@dataclass
class NoisyLabels(Wrapped):
    """The data of another source, of whose examples a share, chosen at random, has wrong labels.

    Each is drawn uniformly from the other classes: labels that say nothing of the images are a fraction of 1 - 1/C of
    C classes, .9 of ten. Which examples these are, and their labels, follow from `seed` and the data alone: they are
    the same in every epoch, on every rank, in training and in evaluation. `changed_by` tells which they are, and the
    facts of the data that are built (`changed`). The source must hold classes in memory, or in a folder of images.
    """

    fraction: float = 0.15  # of the examples, from 0, which leaves all labels as they are, and below 1
    seed: int = 0

    def check(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ArgumentError("fraction", f"{self.fraction} given; expected a share from 0 and below 1")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError("seed", f"{self.seed} given; expected a whole number from 0 to {2**32 - 1}")
        super().check()

    def change(self, examples: Examples) -> None:
        labels, classes = examples.labels, examples.facts.classes or 0
        if classes < 2:
            raise ArgumentError("of", f"{examples.source} has a single class; expected two or more")
        if examples.facts.changed:  # those that are changed twice may be right again
            raise ArgumentError("of", f"{examples.source} has wrong labels already; expected a source that has none")
        changed = changed_by(len(labels), self.fraction, self.seed).tolist()
        if self.fraction and not changed:
            raise ArgumentError("fraction", f"{self.fraction} given, which changes none of {len(labels)} labels")
        examples.labels = noisy(labels, classes, self.fraction, self.seed)
        examples.tell(changed=tuple(changed))


def changed_by(size: int, fraction: float, seed: int) -> Tensor:
    """Returns the places of the examples, of so many, whose labels `noisy` changes: round(fraction * size) of them."""
    return _chosen(size, fraction, torch.Generator().manual_seed(seed)).sort().values


def noisy(labels: Tensor, classes: int, fraction: float, seed: int) -> Tensor:
    """Returns labels (N,) of which round(fraction * N), chosen at random, are others of so many classes."""
    generator = torch.Generator().manual_seed(seed)
    chosen = _chosen(len(labels), fraction, generator).to(labels.device)
    steps = torch.randint(1, classes, (len(chosen),), generator=generator).to(labels)
    found = labels.clone()
    found[chosen] = (labels[chosen] + steps) % classes
    return found


def _chosen(size: int, fraction: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)[: round(fraction * size)]
