"""Folders of MDS shards, which MosaicML Streaming reads."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from composer.utils import dist
from torch.utils.data import Dataset

from accelerando.algorithms.examples.files import data_digest

from .loaders import worker_loader
from .shared_memory import free_dropped, free_places, is_streamed, opened


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
        dataset = opened(partial(kind, local=local, remote=remote, split=split, batch_size=batch_size, **options))
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
    free_places(dataset)
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
        free_dropped()
        dist.barrier()
        yield
    finally:
        lock.release()


def same_shards(one: Any, other: Any) -> bool:
    """Whether two sources, each with `local`, `remote` and `split`, read the same samples."""
    same_place = Path(one.local).resolve() == Path(other.local).resolve()
    return one.split == other.split and (same_place or (bool(one.remote) and one.remote == other.remote))


class ShardedExamples(Dataset):
    """The samples of a `StreamingDataset` by their places in its shards, in the place of Streaming's own order."""

    def __init__(self, streamed: Any):
        self.streamed, self.rows = streamed, [*range(streamed.num_samples)]
        self.targets: list[int] | None = None  # in the place of those in the shards
        self._held: list[int] | None = None  # those, once they are read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        sample = self.streamed[self.rows[place]]
        return sample if self.targets is None else (sample[0], self.targets[place])

    def take(self, places: Sequence[int]) -> None:
        """Leaves these alone, in this order."""
        self.rows = [self.rows[place] for place in places]
        self.targets, self._held = (of and [of[place] for place in places] for of in (self.targets, self._held))

    def labels(self) -> list[int]:
        """Those in the column `y`, for which each sample is read once, but no image decoded."""
        from streaming import StreamingDataset

        if self.targets is not None:
            return self.targets
        if self._held is None:
            self._held = [int(StreamingDataset.get_item(self.streamed, row)["y"]) for row in self.rows]
        return self._held

    def digest(self) -> str:
        """That of the shards, where nothing is changed."""
        of_shards, whole = data_digest(self.streamed), len(self.rows) == self.streamed.num_samples
        if whole and self.targets is None:
            return of_shards
        return hashlib.sha256(repr((of_shards, self.rows, self.targets)).encode()).hexdigest()


def one_by_one(loader: Any, train: bool, seed: int) -> Any:
    """A loader of shards whose samples can be chosen, as those in other files can; other loaders as they are."""
    if not is_streamed(getattr(loader, "dataset", None)):
        return loader
    size = loader.batch_size
    return worker_loader(ShardedExamples(loader.dataset), loader.collate_fn, size, train, seed, loader.num_workers)
