"""Fitting the scaling law of pruning to 4000 points of 100 networks, without and with the intervals of its constants.

    python benchmarks/scaling_law.py [--rounds 5] [--small]

The points are those of a known law with noise of 3.4 %, as arXiv 2006.10621 tells of seeds; beside the times stands how
far the fitted constants are from the known ones. `--small` tells that it runs, and nothing else.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from accelerando.algorithms import Measurements, ScalingLaw, fit_power_law, fit_scaling_law
from harness import hardware, keep_memory, measure, report, versions

KNOWN = ScalingLaw(eps_up=0.9, gamma=1.4, p=2.0, phi=0.9, psi=1.3)
NOISE = 0.034


def points(networks: int) -> Measurements:
    """Networks of random depths and widths, each at 40 densities, 0.8^i."""
    generator, found = np.random.default_rng(0), []
    for i in range(networks):
        depth, width = generator.integers(8, 100), generator.integers(2, 64)
        for level in range(1, 41):
            error = KNOWN.error(eps_np := 0.5 / width**0.5, 0.8**level, depth, width) * (1 + NOISE * generator.normal())
            found.append((f"network {i}", 0.8**level, min(float(error), 1.0), eps_np, depth, width))
    return Measurements.of_points(found)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--small", action="store_true", help="400 points of 10 networks, one round")
    given = parser.parse_args(arguments)
    given.networks = 10 if given.small else 100
    given.rounds = 1 if given.small else given.rounds
    return given


def main(given: argparse.Namespace) -> None:
    cpu = torch.device("cpu")
    print(f"{hardware(cpu)}; {versions()}")
    measured = points(given.networks)
    arms = {
        "power law": lambda: fit_power_law(measured),
        "law, 1 resample": lambda: fit_scaling_law(measured, 1),
        "law, 500 resamples": lambda: fit_scaling_law(measured, 500),
    }
    found = fit_scaling_law(measured, 1).law
    apart = ", ".join(f"{name} {getattr(found, name) / value - 1:+.2%}" for name, value in vars(KNOWN).items())
    title = f"Scaling law: {len(measured)} points of {given.networks} networks"
    report(title, measure(arms, given.rounds, cpu), "power law", f"fitted / known constants: {apart}")


if __name__ == "__main__":
    keep_memory()
    main(parse())
