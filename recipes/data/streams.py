"""Iterable data sets behind a loader, in which a run may go on where it was if they keep their place themselves."""

from collections.abc import Iterator
from typing import Any

from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset


class Stream(IterableDataset):
    """An iterable data set, whose state `KeepsPlace` keeps, not Composer, which asks for it as Streaming has it."""

    def __init__(self, of: Any):
        self.of = of

    def __iter__(self) -> Iterator[Any]:
        return iter(self.of)

    def __len__(self) -> int:
        """TypeError, as without a length, where it may be that of all ranks or of one."""
        if dist.get_world_size() > 1:
            raise TypeError("the length is not that of one rank")
        return len(self.of)


class StreamLoader(DataLoader):
    """Batches of an iterable data set; an epoch without one would never end the run.

    Composer asks for no more batches than the loader has by its length: with the last one the data set is taken to its
    end, or its next pass would begin there.
    """

    over = False  # whether the data set has been taken there, and no pass has begun since
    goes_on = False  # in the middle of an epoch, which may have no batch left
    ends = False  # an epoch of which the data set has given all

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        goes_on, ends = self.goes_on, self.ends
        self.over = self.goes_on = self.ends = False
        if ends:
            return
        count, length, batches = 0, length_of(self), super().__iter__()
        for count, batch in enumerate(batches, start=1):
            if count == length and not goes_on:
                self.over = next(batches, None) is None
            yield batch
        if not (count or goes_on):
            raise ValueError(f"an epoch has no batch of {self.batch_size} on each of {dist.get_world_size()} rank(s)")


def length_of(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


class UnsizedLoader(StreamLoader):
    """One of an unknown length. Composer evaluates until its end what is not sized, and refuses what fails to tell."""

    __len__ = None  # type: ignore[assignment]


def stateful(loader: Any) -> Any:
    """What keeps the place in the data by `state_dict()` and `load_state_dict(state)`, the loader or its data set."""
    dataset = getattr(loader, "dataset", None)
    of_data = dataset.of if isinstance(dataset, Stream) and not loader.num_workers else None
    return next(
        (one for one in (loader, of_data) if hasattr(one, "state_dict") and hasattr(one, "load_state_dict")), None
    )
