"""Batches of several tasks, each of one of them: in turn, and with what each task's own source says of them."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from composer.core import DataSpec
from torch.utils.data import DataLoader

from .facts import Described, Facts
from .loaders import Shards


class OfTasks(Described):
    """A `DataSpec` of batches, each of one task, which each have a `DataSpec` in `tasks`, and an argument in `keys`."""

    def __init__(self, dataloader: Any, tasks: Mapping[str, DataSpec], keys: Mapping[str, str], **options: Any):
        self.tasks, self.keys = dict(tasks), keys
        transforms = {"batch_transforms": self._change_batch, "microbatch_transforms": self._change_microbatch}
        super().__init__(dataloader, Facts(), **transforms, **options)

    def _change_batch(self, batch: Any) -> Any:
        if len(self.tasks) == 1:
            batch = told(batch, *self.tasks)
        return self.tasks[batch["task"][0]].batch_transforms(batch)

    def _change_microbatch(self, batch: Any) -> Any:
        return self.tasks[batch["task"][0]].microbatch_transforms(batch)


class InTurn(DataLoader):
    """The batches of several loaders, each of whose epochs is one of theirs.

    It is a `DataLoader` with a sampler for what Composer and a start elsewhere do with those of one data set (see
    `TensorLoader`). All ranks draw the same turns, and each loader gives the rank its share of a batch.
    """

    def __init__(self, loaders: Mapping[str, DataLoader], seed: int):
        self.loaders = loaders
        turns: Any = [task for task, loader in loaders.items() for _ in range(len(loader))]
        self.turns = Shards(turns, 1, True, seed, alike=True)
        super().__init__(turns, 1, sampler=self.turns, collate_fn=_refuse)
        # The sampler's are turns, one at a time; but Composer cuts each batch into parts of the loader's batch size.
        vars(self)["batch_size"] = max(loader.batch_size or 1 for loader in loaders.values())

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for part, (epoch, turns) in enumerate(self.turns.parts()):
            order = [self.turns.dataset[turn] for turn in turns]
            batches = {}
            for task, loader in self.loaders.items():
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
                # The first part of an epoch that begins elsewhere is the end of one of the data's.
                batches[task] = islice(loader, 0 if part else len(loader) - order.count(task), None)
            for task in order:
                yield told(next(batches[task]), task)


def told(batch: Any, task: str) -> dict[str, Any]:
    """The batch, a mapping, with a list of as many names as samples: a tensor would have to be waited for on a GPU."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch of {task} is a {type(batch).__name__}; expected a mapping, as of texts")
    return {**batch, "task": [task] * len(next(iter(batch.values())))}


def _refuse(samples: Any) -> NoReturn:
    raise ValueError("the examples of several tasks are not told one by one; expected what needs no examples")
