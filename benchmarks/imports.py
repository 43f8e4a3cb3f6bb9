"""How long `import accelerando.algorithms` takes over `import torch`, which it needs.

    python benchmarks/imports.py [--runs 15]

Each import is in a fresh process, arms in turn within a round, after two rounds to warm the disk's cache; medians. The
interpreter's own start is not counted.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable

import torch

from harness import hardware, measure

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
ARMS = {
    "import torch": "torch",
    "import accelerando.algorithms": "torch, accelerando.algorithms",
}


def timed(modules: str) -> Callable[[], float]:
    def run() -> float:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TIMED.format(modules)], capture_output=True, text=True, check=True
        )
        return float(done.stdout.splitlines()[-1])

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    cpu = torch.device("cpu")
    medians = measure({name: timed(modules) for name, modules in ARMS.items()}, runs, cpu)
    print(
        f"{hardware(cpu)}; Python {platform.python_version()}, torch {torch.__version__}; medians of {runs} processes"
    )
    alone = medians["import torch"]
    width = max(map(len, medians))
    for name, seconds in medians.items():
        print(f"  {name:{width}}  {seconds:7.3f} s   {seconds - alone:+7.3f} s over import torch")
