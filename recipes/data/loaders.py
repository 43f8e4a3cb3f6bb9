"""What the data sources share: small sets served from memory, and the folders of those that stay on disk."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
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


class OneSetOfBuffers(Callback):
    """Every rank evaluates with rank 0's buffers, which are those that are saved.

    Each rank's BatchNorm follows its own share of the data; DDP evens that out at the next training forward only.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() > 1:
            for buffer in state.model.buffers():
                dist.broadcast(buffer, src=0)

    eval_standalone_start = eval_start


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


def check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")


def check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected {content}")


def check_hub_name(name: str) -> None:
    """Raise if the name can only be a local folder, and is none."""
    if name.startswith(("/", "./", "../")):
        check_folder(Path(name), "what save_to_disk or save_pretrained wrote, or a name on the hub")


def check_shards(local: str, remote: str | None, split: str | None, columns: set[str]) -> None:
    """Raise if `streaming` is missing, or a folder of MDS shards is missing, unreadable or of other columns."""
    if find_spec("streaming") is None:
        raise ImportError("MDS shards need mosaicml-streaming: pip install 'accelerando[streaming]'")
    if "://" in (source := remote or local):
        return
    index = Path(source, split or "", "index.json")
    if not index.is_file():
        raise FileNotFoundError(f"{index} is missing: expected a folder of MDS shards")
    try:
        contents = json.loads(index.read_text())
        found = {name for shard in contents["shards"] for name in shard["column_names"]}
        if {part["version"] for part in (contents, *contents["shards"])} != {2}:
            raise ValueError("streaming reads version 2 alone")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not the index of MDS shards") from error
    if not columns <= found:
        raise ValueError(f"{index.parent} has the columns {sorted(found)}: expected {sorted(columns)}")


def open_shards(
    kind: Callable[..., Any],
    local: str,
    remote: str | None,
    split: str | None,
    batch_size: int,
    train: bool,
    seed: int,
    **options: Any,
) -> Any:
    """A `StreamingDataset`, or a `kind` of one that takes more options.

    In training an epoch is as many whole global batches as there are samples for, without a repeated one; what is left
    over is drawn anew each epoch. A run that goes on with another number of ranks on as many nodes sees the same global
    batches. Their order does hang on the number of nodes with which the run began, for Streaming cuts the samples into
    one row for each of them: with more rows it would hang on less, and repeat samples to make the rows equally long.
    """
    ranks = dist.get_world_size()
    options |= {"num_canonical_nodes": ranks // dist.get_local_world_size()}
    if train:
        options |= {"shuffle": True, "shuffle_seed": seed}
    with _one_job_at_a_time():
        dataset = kind(local=local, remote=remote, split=split, batch_size=batch_size, **options)
    if train:
        # As `epoch_size` would; but it is asked for before the number of samples is known.
        whole = dataset.num_samples // (batch_size * ranks) * batch_size * ranks
        dataset.epoch_size = dataset.streams[0].choose = whole
        dataset.length = whole // ranks
        dataset.state_dict = partial(_state_of_shards, dataset)
    return dataset


def _state_of_shards(dataset: Any, num_samples: int, from_beginning: bool) -> dict[str, Any]:
    """Between epochs Composer has seen 0 samples, of the next one; Streaming takes that for the start of the last."""
    state = type(dataset).state_dict(dataset, num_samples, from_beginning)
    return state if num_samples else state | {"epoch": max(state["epoch"], dataset.next_epoch)}


@contextmanager
def _one_job_at_a_time() -> Iterator[None]:
    """Streaming looks for a free name of shared memory, then takes it: two jobs on a machine may take the same one.

    All ranks of a job are inside together, for Streaming has them wait for one another.
    """
    from filelock import FileLock, Timeout

    # Another user could not open this one's file.
    lock = FileLock(Path(tempfile.gettempdir(), f"accelerando-{os.getuid()}.lock"))
    try:
        if dist.get_local_rank() == 0:
            # Of two jobs on the same two machines, each may hold one lock: a small risk is better than a deadlock.
            with suppress(Timeout):
                lock.acquire(timeout=60)
        dist.barrier()
        yield
    finally:
        lock.release()
