"""Random numbers that are nobody else's: global generators that are put back, and generators of one's own.

What a generator of one's own draws is a function of what it is made from, so that it repeats after a resume.
"""

import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def untouched_generators(devices: Iterable[int | torch.device] | None = None) -> Iterator[None]:
    """Whatever is drawn inside, the global generators of Python, NumPy and PyTorch are as before.

    Of PyTorch's they are the CPU's and those of these CUDA devices, by default of the current one, if CUDA is in use.
    """
    if devices is None:
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        with torch.random.fork_rng([*devices]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded(seed: int, devices: Iterable[int] = ()) -> Iterator[None]:
    """The global random generators of Python, NumPy and PyTorch start from `seed`, and are put back afterwards.

    Of PyTorch's it is the CPU's and those of the CUDA devices of these indices; others are left alone.
    """
    devices = [*devices]
    with untouched_generators(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # torch.manual_seed would reach every other device as well, of which nothing is put back.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def seed_all(seed: int) -> None:
    """The global random generators of Python, NumPy and PyTorch, those of all devices, go on from `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def numpy_generator(seed: int, *place: int | str) -> np.random.Generator:
    """Returns a generator seeded by the run's seed and a place: step, rank, a number or a text for the purpose."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in place]
    return np.random.default_rng((seed, *numbers))


def torch_generator(seed: int, purpose: int) -> torch.Generator:
    """Returns a generator on the CPU, seeded by the run's seed and a number below 2**16 that stands for the purpose."""
    return torch.Generator().manual_seed((seed << 16) + purpose)


def generator_of(text: str) -> torch.Generator:
    """Returns a generator on the CPU that is seeded by a text."""
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def generator_states() -> dict[str, Any]:
    """Returns the states of the global generators of Python, NumPy and PyTorch, all CUDA devices included, in tensors
    and builtins."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def set_generator_states(states: dict[str, Any]) -> None:
    """Puts the global generators back to these states, which `generator_states` has returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = states["numpy"]
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
