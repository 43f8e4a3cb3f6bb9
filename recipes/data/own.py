"""Data of one's own: what an import path names, with the loader's keys beside its own arguments.

    train_data: {mycode:Fashion: {root: data, num_workers: 4, collate_fn: mycode:collate}}
    eval_data: {mycode:Fashion: {root: data, train: false}}

`mycode:Fashion`, in `mycode.py` of the current folder, is a `torch.utils.data.Dataset`, map-style or iterable, or a
function that returns one, a `DataLoader` or Composer's `DataSpec`. It is called once the whole config is checked, each
time from the same state of the random generators, and is given `batch_size`, the samples per rank, if it has such an
argument and that is left out. The loader's keys are those of `Keys`; a name that is its own argument too is that one.

A class with `check()` and `build(batch_size, train, seed, device)` is a source of data like those of this package, such
as `Digits` in `images.py`, and is built while the config is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from accelerando.algorithms.generators import seeded

from ..config.arguments import check_arguments, parameters
from ..config.errors import ArgumentError, show
from ..config.lookup import function_at, nearest
from .checks import check_least
from .loaders import AnyDevice, tell_once, worker_loader
from .shared_memory import is_streamed
from .streams import Stream, StreamLoader, UnsizedLoader, length_of, stateful

EXPECTED = "expected a Dataset, a DataLoader, or Composer's DataSpec"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Those of the loader of a data set: of `torch.utils.data.DataLoader`, but for what the recipe itself chooses.

    Args:
        num_workers: processes per rank that make batches.
        collate_fn: import path of a function of a list of samples that returns a batch.
        shuffle: the order in training, which changes from epoch to epoch; in evaluation it is always that of the data.
        drop_last: leave out what does not fill a batch on each rank, in training.
        sharded: of an iterable data set, that each rank and each worker gets examples of its own from it, which its
            `__iter__` divides by Composer's `dist` and `torch.utils.data.get_worker_info()`; what has a length and
            places is shared out here.
        pin_memory: by default on machines with a GPU.
        prefetch_factor: batches that each worker has ready.
        persistent_workers: whether they live on from epoch to epoch.
        worker_init_fn: import path of a function of the worker's number.
        timeout: seconds to wait for a batch of a worker; 0 is for ever.
    """

    num_workers: int = 0
    collate_fn: str | None = None
    shuffle: bool = True
    drop_last: bool = True
    sharded: bool = False
    pin_memory: bool | None = None
    prefetch_factor: int | None = None
    persistent_workers: bool = False
    worker_init_fn: str | None = None
    timeout: float = 0.0


FUNCTIONS = ("collate_fn", "worker_init_fn")
OF_A_LOADER = (
    *("num_workers", "collate_fn", "drop_last", "pin_memory", "prefetch_factor", "persistent_workers"),
    *("worker_init_fn", "timeout"),
)


def own_data(path: str, target: Callable[..., Any], given: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """Returns the source, and its arguments, that stand for a class or function at an import path; nothing is called.

    Raises ArgumentError for what is wrong with its own arguments or the loader's.
    """
    if inspect.isclass(target) and not _may_hold(target):
        raise TypeError(f"is a class without __getitem__ or __iter__; {EXPECTED}, or a class with check() and build()")
    named, known = [parameter.name for parameter in parameters(target)], [key.name for key in fields(Keys)]
    keys = {name: value for name, value in given.items() if name in known and name not in named}
    own = {name: value for name, value in given.items() if name not in keys}
    free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    for name in map(str, own):
        if name not in named and not free:
            raise ArgumentError(name, f"unknown argument{nearest(name, [*named, *known])}")
    made = ["batch_size"] if "batch_size" in named and "batch_size" not in own else []
    checked = check_arguments(Keys, keys)
    check_least(0, **{name: checked[name] for name in ("num_workers",) if name in checked})
    for name in FUNCTIONS:
        if checked.get(name) is not None:
            checked[name] = function_at(name, checked[name])
    return OwnData, {
        "path": path,
        "make": target,
        "own": check_arguments(target, own, made=made),
        "keys": checked,
        "sized": bool(made),
    }


def _may_hold(kind: type) -> bool:
    return any(hasattr(kind, name) for name in ("__getitem__", "__iter__")) or issubclass(kind, DataSpec)


@dataclass
class OwnData:
    """What `make` makes of its `own` arguments, behind a loader.

    A map-style data set is shared out among the ranks in an order that is a function of seed and epoch, and a run that
    goes on in the middle of an epoch gets the batches that the uninterrupted one would have. So is a `DataLoader` of
    one, unless it has a sampler of its own. An iterable data set goes on exactly if it has `state_dict()` and
    `load_state_dict(state)`, and no workers, in which copies of it would have states of their own; or its loader has
    both, as torchdata's StatefulDataLoader. Of others a line says what happens. Each evaluation begins with the state
    that such data have at first, and reads those without a length to their end.
    """

    path: str
    make: Callable[..., Any]
    own: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    sized: bool = False  # whether it is given the batch size

    def check(self) -> None:
        """What there is to check was checked before; nothing is called."""

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        supplied = {"batch_size": batch_size} if self.sized else {}
        # So that what is divided at random is divided alike for training and for evaluation, and on all ranks.
        with seeded(seed):
            made: Any = self.make(**self.own, **supplied)
        spec = made if isinstance(made, DataSpec) else None
        loader: Any = spec.dataloader if spec else made
        if spec or isinstance(loader, DataLoader):
            self._refuse_keys(type(made).__name__)
        if isinstance(loader, DataLoader):
            loader = self._checked(loader, batch_size, train, seed)
        elif spec is None:
            loader = self._loader(made, self.keys, batch_size, train, seed)
        if train:
            self._tell(loader)
        if spec is None:
            return DataSpec(loader)
        spec.dataloader = loader
        return spec

    def _loader(self, data: Any, keys: Mapping[str, Any], batch_size: int, train: bool, seed: int) -> DataLoader:
        options = {"collate_fn": None, "num_workers": 0, **keys}
        sharded, workers = options.pop("sharded", None), options["num_workers"]
        if is_map_style(data):
            if sharded is not None:
                raise ArgumentError("sharded", f"{show(sharded)} given, but {self.path} has a length and places")
            return worker_loader(data, batch_size=batch_size, train=train, seed=seed, **options)
        if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable) or iter(data) is data:
            hint = ", not what can be read once" if isinstance(data, Iterable) else ""
            raise ValueError(f"makes a {type(data).__name__}; {EXPECTED}{hint}")
        if "shuffle" in options:
            raise ArgumentError("shuffle", f"{show(options['shuffle'])} given, but {self.path} has an order of its own")
        if not is_streamed(data):
            if (copies := dist.get_world_size() * max(workers, 1)) > 1 and not sharded:
                raise ArgumentError("sharded", self._shares(copies, several_ranks=copies > workers))
            data = Stream(data)
        source: Any = data
        kind = StreamLoader if train or length_of(data) is not None else UnsizedLoader
        return worker_loader(source, batch_size=batch_size, train=train, seed=seed, kind=kind, **options)

    def _shares(self, copies: int, several_ranks: bool) -> str:
        """What a data set that is iterated in several processes must do."""
        problem = f"each of the {copies} processes that read {self.path} would get all of its examples"
        of_rank = "composer.utils.dist.get_global_rank() and get_world_size(), or torch.distributed's"
        own = f"{f'{of_rank}, and ' if several_ranks else ''}torch.utils.data.get_worker_info()"
        hint = f"let its __iter__ give each its own, by {own}, and say sharded: true"
        return f"{problem}; {hint}{'' if several_ranks else ', or say num_workers: 0'}"

    def _refuse_keys(self, kind: str) -> None:
        for name in self.keys.keys() - {"sharded"}:
            raise ArgumentError(name, f"given, but {self.path} makes a {kind}, which has its own; leave it out")

    def _checked(self, loader: DataLoader, batch_size: int, train: bool, seed: int) -> DataLoader:
        """The loader, with an order of ours if it has none of its own."""
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", batch_size)
        if size != batch_size:
            hint = "take the argument batch_size, which the recipe fills in"
            raise ValueError(f"makes batches of {size}, but each rank has {batch_size} of the batch size; {hint}")
        iterable = isinstance(loader.dataset, IterableDataset)
        if type(loader) is DataLoader and (loader.batch_size if iterable else _is_plain(loader)):
            own = {name: getattr(loader, name) for name in OF_A_LOADER}
            shuffle = {} if iterable else {"shuffle": isinstance(loader.sampler, RandomSampler)}
            return self._loader(loader.dataset, {**own, **shuffle, **self.keys}, batch_size, train, seed)
        if dist.get_world_size() > 1 and not iterable and not _is_shared(loader):
            hint = "expected the data set, or a loader with a DistributedSampler"
            raise ValueError(f"makes a {type(loader).__name__} that gives all examples to every rank; {hint}")
        return loader

    def _tell(self, loader: Any) -> None:
        """What a resume does, where it is not exact for sure."""
        if stateful(loader) is None and not _is_shared(loader) and not is_streamed(getattr(loader, "dataset", None)):
            tell_once(
                f"{self.path}: has no state_dict() to go on from; after a kill in the middle of an epoch its first "
                "batches are read again and left out, which is exact if they come in the same order each time"
            )


def is_map_style(data: Any) -> bool:
    """Whether examples are found by their places, of which there are so many."""
    other = isinstance(data, str | bytes | Mapping | IterableDataset)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not other


def _is_plain(loader: DataLoader) -> bool:
    """Whether all examples come by their places, in their order or shuffled."""
    sampler = loader.sampler
    shuffled = type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    ordered = shuffled or type(sampler) is SequentialSampler
    return is_map_style(loader.dataset) and ordered and type(loader.batch_sampler) is BatchSampler


def _is_shared(loader: Any) -> bool:
    found = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    return any(isinstance(one, DistributedSampler) for one in found)
