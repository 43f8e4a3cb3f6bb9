"""The shared memory of MosaicML Streaming's data sets, which it frees when the process ends.

It is that of each data set, and that of all others on the machine, which Streaming opens while it looks for a free
name. For a study of many runs in one process that would be more files than a process may have open.
"""

import atexit
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import MethodType, SimpleNamespace
from typing import Any

_recorded: list[Any] = []  # each `SharedMemory` that is to be freed
_opened: list[tuple[weakref.ref[Any], str]] = []  # our data sets, and what the names of the memory of each begin with
os.register_at_fork(after_in_child=lambda: (_recorded.clear(), _opened.clear()))  # what they hold is the parent's


def is_streamed(dataset: Any) -> bool:
    """Whether it is a `StreamingDataset`; that library is imported by those alone who use it."""
    streaming = sys.modules.get("streaming")
    return streaming is not None and isinstance(dataset, streaming.StreamingDataset)


def opened(kind: Callable[[], Any]) -> Any:
    """The `StreamingDataset` that `kind` makes, whose memory is freed by `free_dropped` once it is gone."""
    import streaming.base.shared.memory

    module: Any = streaming.base.shared.memory
    if module.atexit is atexit:
        module.atexit = SimpleNamespace(register=_record)
    before = len(_recorded)
    try:
        dataset = kind()
    except BaseException:
        _free(_recorded[before:])
        raise
    _opened.append((weakref.ref(dataset), _names_of(dataset)))
    _free([shared for shared in _recorded[before:] if not shared.shm.name.startswith(_names_of(dataset))])
    return dataset


def free_dropped() -> None:
    """Frees the memory of data sets that are gone; while a rank does so, none of any job may look for a free name."""
    for each in [*_opened]:
        dataset, names = each
        if dataset() is None:
            _opened.remove(each)
            _free([shared for shared in _recorded if shared.shm.name.startswith(names)])


def free_places(dataset: Any) -> None:
    """Frees what is opened anew whenever it is asked at which place to go on, at each epoch and checkpoint."""
    from streaming.base.constant import RESUME

    name, own = f"{_names_of(dataset)}{RESUME}", getattr(dataset, "_resume_shm", None)
    _free([shared for shared in _recorded if shared.shm.name == name and shared is not own])


def stop_reading(loader: Any) -> None:
    """Ends the threads that read ahead in the middle of an epoch, which would keep the data set for ever."""
    dataset = getattr(loader, "dataset", None)
    if iterator := getattr(dataset, "_iterator", None) if is_streamed(dataset) else None:
        iterator.non_blocking_exit()


def _record(cleanup: MethodType) -> None:
    """In the place of `atexit.register`, of the method that frees a `SharedMemory`."""
    _recorded.append(cleanup.__self__)
    atexit.register(cleanup)


def _names_of(dataset: Any) -> str:
    return f"{dataset._shm_prefix_int:06}_"


def _free(memory: Sequence[Any]) -> None:
    for shared in memory:
        with suppress(BufferError):  # somebody looks at it, so that it stays until the end of the process
            shared.cleanup()
            atexit.unregister(shared.cleanup)
            _recorded.remove(shared)
