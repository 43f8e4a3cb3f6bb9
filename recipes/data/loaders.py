"""Loaders whose order and noise are functions of (seed, epoch, sample): from memory, or by worker processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from composer.devices import Device
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

AnyDevice = Device | torch.device | str

SEED_STRIDE = 100_000


def to_device(tensor: Tensor, device: AnyDevice) -> Tensor:
    return device.tensor_to_device(tensor) if isinstance(device, Device) else tensor.to(device)  # type: ignore


class TensorLoader(DataLoader):
    """Batches of in-memory tensors: shuffled anew each epoch in training, in order and complete in evaluation.

    No worker processes, and one transfer an epoch. It is a `DataLoader` with a `DistributedSampler`, because that is
    what Composer looks for when it sets the epoch, spins to the middle of an epoch on resume, and drops padded samples
    in evaluation. All randomness is a function of (seed, epoch, sample): it depends neither on the number of ranks, nor
    on the batch size, nor on interruptions.

    Args:
        tensors: the data set, equally long along dimension 0, on the device that trains.
        batch_size: samples per batch on this rank.
        train: shuffle, and by default drop the last incomplete global batch.
        seed: of the order and of the noise.
        transform: called as `transform(batch, noise)` with a tuple of tensors; what it returns is served instead.
        noise_shape: shape of the uniform [0, 1) noise that `transform` gets for each sample; redrawn each epoch in
            training, the same every time in evaluation.
        drop_last: in training, leave out what does not fill a batch on each rank. Otherwise the last one is smaller,
            and where the ranks do not divide the samples, each may train on one that another has too.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        train: bool,
        seed: int,
        transform: Callable[[tuple[Tensor, ...], Tensor], Any] | None = None,
        noise_shape: Sequence[int] = (),
        drop_last: bool = True,
    ):
        self.tensors, self.transform, self.noise_shape = tuple(tensors), transform, noise_shape
        self.shards = _sampler(TensorDataset(*tensors), train, seed, drop_last)
        self.samples_per_batch, self.train = batch_size, train
        super().__init__(self.shards.dataset, batch_size, sampler=self.shards, drop_last=train and drop_last)
        _check_length(self, len(tensors[0]), batch_size)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order = torch.tensor(list(self.shards), device=self.tensors[0].device)
        noise = self._noise()
        for indices in order.split(self.samples_per_batch)[: len(self)]:
            batch = tuple(tensor[indices] for tensor in self.tensors)
            yield self.transform(batch, noise[indices]) if self.transform else batch

    def _noise(self) -> Tensor:
        """Drawn on the CPU, so that every kind of device gets the same numbers."""
        # Complements are seeds that no sampler uses: the noise must not follow the order.
        seed = ~(self.shards.seed + self.shards.epoch) if self.train else -1
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(self.tensors[0]), *self.noise_shape, generator=generator)
        return noise.to(self.tensors[0].device)


def worker_loader(
    dataset: Dataset, collate_fn: Callable[[Any], Any], batch_size: int, train: bool, seed: int, num_workers: int
) -> DataLoader:
    """Batches made by worker processes, for data that does not fit in memory; an iterable data set shards itself."""
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=None if isinstance(dataset, IterableDataset) else _sampler(dataset, train, seed),
        num_workers=num_workers,
        collate_fn=collate_fn,
        drop_last=train,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: what the workers draw repeats on resume, differs from rank to rank, and is drawn from
        # nobody else's.
        generator=torch.Generator().manual_seed(seed + dist.get_global_rank()),
    )
    _check_length(loader, getattr(dataset, "num_samples", None) or len(dataset), batch_size)  # type: ignore[arg-type]
    return loader


def _check_length(loader: DataLoader, samples: int, batch_size: int) -> None:
    """An epoch without a batch would never end the run."""
    if len(loader) == 0:
        raise ValueError(f"{samples} samples do not fill a batch of {batch_size} on {dist.get_world_size()} rank(s)")


def _sampler(dataset: Dataset, train: bool, seed: int, drop_last: bool = True) -> DistributedSampler:
    # The sampler adds the epoch to its seed: a stride keeps seed 1's second epoch from being seed 2's first.
    return dist.get_sampler(dataset, drop_last=train and drop_last, shuffle=train, seed=seed * SEED_STRIDE)
