"""What the benchmarks share: arms taken in turn within one run, medians, and what they ran on."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import composer
import torch

# glibc returns big blocks to the system at once, and then the time of page faults drowns that of the arms.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


def keep_memory() -> None:
    """Start anew with these settings, which a process reads when it begins."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)


def measure(arms: Mapping[str, Callable[[], object]], runs: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each arm over `runs` rounds, after two to warm up; every round takes every arm once.

    An arm that returns a float has taken its time itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round in range(runs + 2):
        for name, arm in arms.items():
            wait(device)
            start = time.perf_counter()
            taken = arm()
            wait(device)
            if round >= 2:
                seconds[name].append(taken if isinstance(taken, float) else time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(title: str, medians: Mapping[str, float], baseline: str, notes: str = "") -> None:
    print(f"\n{title}")
    width = max(map(len, medians))
    for name, median in medians.items():
        print(f"  {name:{width}}  {median * 1e3:10.3f} ms   {median / medians[baseline]:7.3f} x {baseline}")
    if notes:
        print(f"  {notes}")


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as lines:
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, Composer {composer.__version__}"


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far. (`ru_maxrss` may be the parent's.)"""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
