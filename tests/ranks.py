"""Trains with the algorithms named, and leaves weights, choices and points: `composer -n 2 ranks.py FOLDER NAME...`."""

import sys
from pathlib import Path

import torch
from composer import Callback
from composer.utils import dist

from accelerando.algorithms.pruning.masks import digest
from tiny import weights


class Choices(Callback):
    """What an algorithm chose for all ranks, batch by batch."""

    def __init__(self):
        self.record = []

    def batch_end(self, state, logger):
        for algorithm in state.algorithms:
            chosen = [getattr(algorithm, name, None) for name in ("mixing", "drawn")]
            self.record.append([*chosen, digest(getattr(algorithm, "masks", {}))])


def main(folder: Path, names: list[str]) -> None:
    from test_contract import data, fit, points

    for name in names:
        choices = Choices()
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
