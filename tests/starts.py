"""Runs that start from another run's moment; `composer -n 2 starts.py FOLDER` tells whether they are that run."""

import json
import shutil
import sys
from pathlib import Path

import torch
from composer.utils import dist

from accelerando.recipes.train import train
from runs import Followed, same

SNAPSHOTS = {"snapshots": {"at": ["0ba", "3ba", "1ep", "6ba"], "full": True}}


def settings(folder, **changes):
    """A run with all that is random or has a state."""
    given = {
        "run_name": "whole",
        "folder": str(folder),
        "max_duration": "3ep",
        "global_batch_size": 64,
        "model": {"runs:noisy": {}},
        "train_data": {"digits": {"split": "train[:300]"}},
        "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"cosine_annealing_with_warmup": {"t_warmup": "2ba"}},
        "callbacks": {"runs:Followed": {}},
        "device": "cpu",
    } | changes
    return given | {"algorithms": SNAPSHOTS | {"mix_up": {}} | changes.get("algorithms", {})}


def followed(config):
    result = train(config)
    return result, {
        name: getattr(Followed, name) for name in ("batches", "rates", "dropped", "generator", "first", "end")
    }


def started(config, at, run="whole", name="started", snapshots=False, **start):
    given = {"run_name": name, "start": {"run": run, **({"at": at} if at else {}), **start}}
    given["algorithms"] = config["algorithms"] | {"snapshots": snapshots}
    shutil.rmtree(Path(config["folder"], name), ignore_errors=True)
    return followed(config | given)


def same_batches(found, wanted, shift=0):
    """Whether each batch is that of the wanted ones which comes `shift` later."""
    pairs = [zip(batch, wanted[number + shift], strict=True) for number, batch in found.items()]
    return all(torch.equal(one, other) for pair in pairs for one, other in pair)


MOMENTS = {"3ba": 3, "1ep": 4, "6ba": 6}
KEPT = {"optimizer": "keep", "schedule": "continue", "data": "continue"}
RUNS = {
    "momentum, by batch": {},
    "adamw": {"optimizer": {"adamw": {"lr": 0.01}}},
    "decoupled decay": {"optimizer": {"decoupled_sgdw": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}},
    "by epoch": {"step_schedulers_every_batch": False, "scheduler": {"step": {"step_size": "1ep", "gamma": 0.5}}},
    "augmentation": {"train_data": {"fashion_mnist": {"split": "train[:300]", "resize": 8, "augment": True}}},
    "averages": {"algorithms": {"ema": {"half_life": "2ba"}}, "save_interval": "1ba"},
    "pruned": {"algorithms": {"magnitude_pruning": {"density": 0.5, "start": "1ba", "end": "8ba", "interval": "1ba"}}},
    "without a schedule": {"scheduler": None, "max_duration": "11ba"},
    "cyclic": {"scheduler": {"multiplicative_cyclic": {"t_warmup": "1ep", "t_period": "2ep"}}},
}


def main(folder: Path) -> None:
    rank, found = dist.get_global_rank(), {}
    for name, changes in RUNS.items():
        config = settings(folder / name.replace(" ", "-"), **changes)
        _, wanted = followed(config)
        found[name] = {}
        for at in MOMENTS:
            _, own = started(config, at, **KEPT)
            # Each rank's batch norm follows its own share; of what is averaged of it, only rank 0's is kept anywhere.
            ends = [
                {key: v for key, v in run["end"].items() if not rank or "running" not in key} for run in (own, wanted)
            ]
            found[name][at] = same(*ends) and same_batches(own["batches"], wanted["batches"])
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
