"""Sources that change the data of another one, example by example, in memory, in a folder of images or in shards."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from composer.core import DataSpec
from torch import Tensor
from torchvision.datasets import DatasetFolder

from ..config.errors import REFUSALS, ArgumentError, ConfigError, Source
from ..config.recipe import looking_in, overlap
from ..config.sections import check_section
from .facts import Described, Facts
from .loaders import AnyDevice, TensorLoader, worker_loader
from .shards import ShardedExamples, one_by_one

SECTION = "train_data"  # any of those of data


@dataclass
class Wrapped:
    """The data of another source, changed."""

    of: dict[str, Any]  # the other source with its arguments, such as {fashion_mnist: {split: train}}

    _runs = Path()

    def look_in(self, runs: Path) -> None:
        """The folder of all runs, in which files of the other source may lie."""
        self._runs = runs

    def check(self) -> None:
        with self._source() as source:
            source.check()

    def overlaps(self, other: Any) -> bool:
        with self._source() as own:
            return overlap(own, other)

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        with self._source() as source:
            spec = source.build(batch_size, train, seed, device)
        examples = Examples(spec, next(iter(self.of)), train, seed)
        self.change(examples)
        return examples.spec

    def change(self, examples: "Examples") -> None:
        """Changes what is held."""
        raise NotImplementedError

    def _source(self) -> AbstractContextManager[Any]:
        return source_at("of", self.of, self._runs)


@contextmanager
def source_at(argument: str, given: Any, runs: Path) -> Iterator[Any]:
    """The source that an argument gives; what is wrong with it is told of that."""
    try:
        (part,) = check_section(Source(), SECTION, given or {})
        with part.source.blame(part.key, *REFUSALS):
            yield looking_in(runs, part.build())
    except ConfigError as error:
        raise ArgumentError(f"{argument}{error.key.removeprefix(SECTION)}", error.message) from error


class Examples:
    """What a source has built, whose examples are told one by one. ArgumentError at `of` where they are not."""

    def __init__(self, spec: Any, source: str, train: bool, seed: int):
        self.source, self.train, self.seed = source, train, seed
        self._loader: Any = one_by_one(getattr(spec, "dataloader", None), train, seed)
        in_files = isinstance(self.dataset, DatasetFolder | ShardedExamples)
        if not isinstance(spec, Described) or not (self._in_memory or in_files):
            self._refuse("the examples")
        self.spec, spec.dataloader = spec, self._loader

    @property
    def dataset(self) -> Any:
        return getattr(self._loader, "dataset", None)

    @property
    def facts(self) -> Facts:
        return self.spec.facts

    @property
    def labels(self) -> Tensor:
        """The classes of the examples, `(N,)`, on the CPU."""
        if self._in_shards and self.facts.labels == "classes":
            labels = torch.tensor(self.dataset.labels())
            self.tell(classes=self.facts.classes or int(labels.max()) + 1)
            return labels
        if not self.facts.classes:
            self._refuse("the labels")
        return self._loader.tensors[-1].cpu() if self._in_memory else torch.tensor(self.dataset.targets)

    @labels.setter
    def labels(self, labels: Tensor) -> None:
        if self._in_memory:
            *inputs, before = self._loader.tensors
            self._loader.tensors = self.dataset.tensors = (*inputs, labels.to(before))
        elif self._in_shards:
            self.dataset.targets = labels.tolist()
        else:
            files = [file for file, _ in self.dataset.samples]
            self._set_samples([*zip(files, labels.tolist(), strict=True)])

    def tell(self, **facts: Any) -> None:
        self.spec.facts = replace(self.facts, **facts)

    def take(self, rows: Sequence[int]) -> None:
        """Leaves these examples alone, in this order."""
        if self._in_memory:
            old, index = self._loader, torch.tensor(rows, device=self._loader.tensors[0].device)
            tensors = [tensor[index] for tensor in old.tensors]
            options = {"transform": old.transform, "noise_shape": old.noise_shape, "drop_last": old.drop_last}
            self._loader = TensorLoader(tensors, old.samples_per_batch, self.train, self.seed, **options)
        else:
            if self._in_shards:
                self.dataset.take(rows)
            else:
                self._set_samples([self.dataset.samples[row] for row in rows])
            old, size = self._loader, self._loader.batch_size
            self._loader = worker_loader(self.dataset, old.collate_fn, size, self.train, self.seed, old.num_workers)
        self.spec.dataloader, self.spec.num_samples = self._loader, len(rows)
        places = {row: place for place, row in enumerate(rows)}
        self.tell(changed=tuple(places[row] for row in self.facts.changed if row in places))

    @property
    def _in_memory(self) -> bool:
        return isinstance(self._loader, TensorLoader)

    @property
    def _in_shards(self) -> bool:
        return isinstance(self.dataset, ShardedExamples)

    def _set_samples(self, samples: list[tuple[str, int]]) -> None:
        self.dataset.samples = self.dataset.imgs = samples
        self.dataset.targets = [label for _, label in samples]

    def _refuse(self, what: str) -> NoReturn:
        hint = "expected images or texts in memory or in shards, or images in a folder with one folder per class"
        raise ArgumentError("of", f"{what} of {self.source} are not told one by one; {hint}")
