"""Trains with the algorithms named, and leaves weights, choices and points: `composer -n 2 ranks.py FOLDER NAME...`."""

import sys
from pathlib import Path

import torch
from composer import Callback
from composer.utils import dist

from tiny import weights

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # which pytest adds by itself for test_contract


class Choices(Callback):
    """What an algorithm chose for all ranks, batch by batch."""

    def __init__(self, cases):
        self.cases, self.record = cases, []

    def batch_end(self, state, logger):
        cases = [(algorithm, self.cases.get(type(algorithm).__name__)) for algorithm in state.algorithms]
        self.record.append([case.chosen(algorithm) for algorithm, case in cases if case])


def main(folder: Path, names: list[str]) -> None:
    from test_contract import CASES, data, fit, points

    for name in names:
        choices = Choices(CASES)
        run = fit(
            name,
            train_dataloader=data(name, batch_size=4, drop_last=True),
            device="cpu",
            callbacks=choices,
        )
        left = {"weights": weights(run), "choices": choices.record, "points": points(run)}
        torch.save(left, folder / f"{name}-{dist.get_global_rank()}.pt")
        run.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
