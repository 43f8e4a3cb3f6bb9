"""What the benchmarks share: arms taken in turn within one run, medians, and what they ran on."""

import math
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# glibc returns big blocks to the system at once, and then the time of page faults drowns that of the arms.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


def keep_memory() -> None:
    """Start anew with these settings, which a process reads when it begins."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)


class Medians(dict[str, float]):
    """Seconds by arm: medians over the rounds, of which `taken` has each."""

    def __init__(self, taken: Mapping[str, Sequence[float]]):
        super().__init__({name: statistics.median(values) for name, values in taken.items()})
        self.taken = taken
        self.rounds = len(next(iter(taken.values())))

    def quartiles(self, figure: Callable[[Mapping[str, float]], float]) -> tuple[float, float, float]:
        """Those, the median between them, of a figure of the arms' seconds in one round.

        What drifts from round to round, as the clock of a machine that others share, is in all arms of one.
        """
        by_round = zip(*self.taken.values(), strict=True)
        rounds = [figure(dict(zip(self.taken, values, strict=True))) for values in by_round]
        first, middle, last = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
        return first, middle, last

    def ratio(self, arm: str, baseline: str) -> float:
        return self.quartiles(lambda seconds: seconds[arm] / seconds[baseline])[1]


def measure(
    arms: Mapping[str, Callable[[], object]], runs: int, device: torch.device, seconds: float = math.inf
) -> Medians:
    """Seconds of each arm over `runs` rounds, after two to warm up; every round takes every arm once, in an order of
    its own, as an arm may leave something behind for the next.

    Where that would take more than `seconds`, by how long the second round took, there are fewer rounds: 3 at least.
    An arm that returns a float has taken its time itself.
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    begun = time.perf_counter()
    last = begun
    for _ in range(2):
        last = time.perf_counter()
        for arm in arms.values():
            arm()
            wait(device)
    now = time.perf_counter()
    if seconds < math.inf:
        runs = min(runs, max(3, int((seconds - (now - begun)) / (now - last))))
    for number in range(runs):
        for name in random.Random(number).sample([*arms], len(arms)):
            wait(device)
            start = time.perf_counter()
            own = arms[name]()
            wait(device)
            taken[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return Medians(taken)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(title: str, medians: Medians, baseline: str, notes: str = "") -> None:
    """Prints medians, and how many times the baseline's seconds of the same round they are."""
    print(f"\n{title}; medians of {medians.rounds} rounds")
    width = max(map(len, medians))
    for name, median in medians.items():
        print(f"  {name:{width}}  {median * 1e3:10.3f} ms   {medians.ratio(name, baseline):7.3f} x {baseline}")
    if notes:
        print(f"  {notes}")


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as lines:
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> str:
    names = {"torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "mosaicml": "Composer"}
    return ", ".join([f"Python {platform.python_version()}", *(f"{names[n]} {_version(n)}" for n in names)])


def missing(module: str) -> str:
    """Why it cannot be imported, or ""."""
    try:
        import_module(module)
    except Exception as error:  # of whatever kind, in what it imports itself
        return f"{module} cannot be imported ({type(error).__name__}: {error})"
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far. (`ru_maxrss` may be the parent's.)"""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` takes at most, beside those in use before; on a CPU, of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


class HostReads(TorchDispatchMode):
    """Counts the operations that make a host wait for what a tensor on a device holds, on whatever device."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::unique")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().startswith(self.NAMES)
        return func(*args, **(kwargs or {}))


def host_reads(run: Callable[[], object], device: torch.device) -> int:
    """How often the host waits for the device during `run`: by CUDA's own account, and elsewhere by operations."""
    if device.type != "cuda":
        with HostReads() as reads:
            run()
        return reads.count
    wait(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)
