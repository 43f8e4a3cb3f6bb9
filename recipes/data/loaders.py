"""Loaders whose order and noise are functions of (seed, epoch, sample): from memory, or by worker processes."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
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


class Shards(DistributedSampler):
    """Which samples this rank sees, by the run's epoch; they may begin elsewhere than at those of epoch 0.

    Shifted by s batches, of which an epoch has n, the run's epoch e has the n batches of the data from place e n + s
    on, counted from the first batch of their epoch 0. Where the ranks are `alike`, each sees all.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        train: bool,
        seed: int,
        drop_last: bool = True,
        shuffle: bool = True,
        alike: bool = False,
    ):
        # The sampler adds the epoch to its seed: a stride keeps seed 1's second epoch from being seed 2's first.
        ranks = {"num_replicas": 1 if alike else dist.get_world_size(), "rank": 0 if alike else dist.get_global_rank()}
        cut = train and drop_last
        super().__init__(dataset, shuffle=train and shuffle, seed=seed * SEED_STRIDE, drop_last=cut, **ranks)
        self.batch_size, self.shift = batch_size, 0
        self.length, self.rest = divmod(self.num_samples, batch_size)  # of an epoch, in batches
        if not cut and self.rest:
            self.length += 1

    def shift_by(self, batches: int) -> None:
        """ValueError where epochs end in a smaller batch, which would then come in the middle of one."""
        if batches % self.length and self.rest and not self.drop_last:
            raise ValueError("an epoch ends in a smaller batch, and the place lies within an epoch")
        self.shift = batches

    def parts(self) -> Iterator[tuple[int, list[int]]]:
        """The samples of one of the run's epochs, by the epochs of the data that they are of."""
        if not self.shift:
            yield self.epoch, [*super().__iter__()]
            return
        run_epoch, size = self.epoch, self.batch_size
        epoch, place = divmod(run_epoch * self.length + self.shift, self.length)
        halves = slice(place * size, self.length * size), slice(0, place * size)
        for number, half in enumerate(halves):
            self.epoch = epoch + number
            samples = [*super().__iter__()][half]
            self.epoch = run_epoch
            if samples:
                yield epoch + number, samples

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        for _, samples in self.parts():
            yield from samples


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
        self.shards = Shards(TensorDataset(*tensors), batch_size, train, seed, drop_last)
        self.samples_per_batch, self.train = batch_size, train
        super().__init__(self.shards.dataset, batch_size, sampler=self.shards, drop_last=train and drop_last)
        _check_length(self, len(tensors[0]), batch_size)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        left = len(self)
        for epoch, samples in self.shards.parts():
            order = torch.tensor(samples, device=self.tensors[0].device)
            noise = self._noise(epoch)
            for indices in order.split(self.samples_per_batch)[:left]:
                batch = tuple(tensor[indices] for tensor in self.tensors)
                yield self.transform(batch, noise[indices]) if self.transform else batch
                left -= 1

    def _noise(self, epoch: int) -> Tensor:
        """Drawn on the CPU, so that every kind of device gets the same numbers."""
        # Complements are seeds that no sampler uses: the noise must not follow the order.
        seed = ~(self.shards.seed + epoch) if self.train else -1
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(self.tensors[0]), *self.noise_shape, generator=generator)
        return noise.to(self.tensors[0].device)


def mapping_loader(
    batch: Mapping[str, Tensor], batch_size: int, train: bool, seed: int, device: AnyDevice, drop_last: bool = True
) -> TensorLoader:
    """Batches by the names that the tensors have in `batch`, as Hugging Face's models take them."""

    def as_mapping(tensors: Sequence[Tensor], noise: Tensor) -> dict[str, Tensor]:
        return dict(zip(batch, tensors, strict=True))

    tensors = [to_device(tensor, device) for tensor in batch.values()]
    return TensorLoader(tensors, batch_size, train, seed, as_mapping, drop_last=drop_last)


def worker_loader(
    dataset: Dataset,
    collate_fn: Callable[[Any], Any] | None,
    batch_size: int,
    train: bool,
    seed: int,
    num_workers: int,
    *,
    shuffle: bool = True,
    drop_last: bool = True,
    kind: type[DataLoader] = DataLoader,
    **options: Any,
) -> DataLoader:
    """Batches made by worker processes, for data that does not fit in memory; an iterable data set shards itself.

    `shuffle` and `drop_last` are for training alone; `options` are more of `kind`'s.
    """
    iterable, cut = isinstance(dataset, IterableDataset), train and drop_last
    _tell_of_cores(num_workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # told above, of all ranks
        loader = kind(
            dataset,
            batch_size,
            sampler=None if iterable else Shards(dataset, batch_size, train, seed, drop_last, shuffle),
            num_workers=num_workers,
            collate_fn=collate_fn,
            drop_last=cut,
            # Its own generator: what the workers draw repeats on resume, differs from rank to rank, and is drawn from
            # nobody else's.
            generator=torch.Generator().manual_seed(seed + dist.get_global_rank()),
            **{"pin_memory": torch.cuda.is_available(), **options},
        )
    with suppress(TypeError):  # of what does not tell its length
        _check_length(loader, getattr(dataset, "num_samples", None) or len(dataset), batch_size)  # type: ignore
    return loader


def told_batch_size(loader: Any, batch_size: int) -> int:
    """The loader's, or where it tells none, as with a `batch_sampler`, the one that it was to have."""
    return getattr(loader, "batch_size", None) or batch_size


def tell(line: str) -> None:
    """Prints it on the standard error stream of one rank."""
    if dist.get_global_rank() == 0:
        print(line, file=sys.stderr, flush=True)


tell_once = cache(tell)


@cache
def _tell_of_cores(num_workers: int) -> None:
    """Not lowered: what the workers draw hangs on their number, and a run may go on on another machine."""
    cores, ranks = len(os.sched_getaffinity(0)), dist.get_local_world_size()
    if num_workers * ranks > cores and dist.get_local_rank() == 0:
        most = max(cores // ranks, 1)
        told = f"num_workers: {num_workers} processes for each of {ranks} rank(s) share {cores} core(s)"
        print(f"{told}, which is no faster than num_workers={most} and takes more memory", file=sys.stderr, flush=True)


def _check_length(loader: DataLoader, samples: int, batch_size: int) -> None:
    """An epoch without a batch would never end the run."""
    if len(loader) == 0:
        raise ValueError(f"{samples} samples do not fill a batch of {batch_size} on {dist.get_world_size()} rank(s)")
