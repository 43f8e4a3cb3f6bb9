"""What the tests of studies share: a base run that takes no time, the table that a study leaves, and kills."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf

from accelerando.algorithms.composer.pruning.sparsity import Pruning
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.studies.density import DENSE
from accelerando.recipes.studies.driver import run
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.stability_cells import Cell
from accelerando.recipes.studies.table import read_table
from runs import settings


def config(folder, study, **changes):
    """A study whose base run is `runs.settings` without algorithms: two epochs of four batches."""
    base = settings(folder) | {"run_name": "study", "algorithms": {}, "eval_interval": "1ep", **changes}
    return {**base, "study": study}


def of_pruning(folder, name, own, length):
    """A study of pruning by its own keys, in YAML, whose runs `Watch` sees."""
    base = {"max_duration": length, "eval_interval": "1dur", "save_interval": "1ep"}
    base |= {"scheduler": {"cosine_annealing": {}}, "callbacks": {"studies:Watch": {}}}
    return OmegaConf.create(config(folder, {name: OmegaConf.create(own)}, **base))


def table(folder):
    return read_table(Path(folder) / "table.csv")


def without_seconds(rows):
    return [
        (row.node, dict(row.tags), row.batches, row.samples, {k: repr(v) for k, v in row.metrics.items()})
        for row in rows
    ]


def outcome(given):
    return run(plan(given))


def trained_whole(folder, given, batches):
    """The folder of a study that has been trained to its end, by so many batches; what `Watch` sees begins with it."""
    Watch.reset()
    assert not outcome(given).failures
    assert Watch.batches == batches
    return folder / "study"


def weights(folder):
    """Those of the run's newest checkpoint."""
    (file,) = sorted(Path(folder, "checkpoints").glob("ep*.pt"))[-1:]
    return torch.load(file, weights_only=False)["state"]["model"]


def command(*arguments, cwd=None, **environment):
    """`python -m accelerando.recipes.study` with these arguments, in a process of its own."""
    import os

    words = [sys.executable, "-m", "accelerando.recipes.study", *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def lines(file):
    with Path(file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


class FailsOnce(Callback):
    """Fails in the run of that name, unless it has done so before."""

    def __init__(self, folder: str, node: str):
        self.mark, self.node = Path(folder, "failed-once"), node

    def before_train_batch(self, state, logger):
        if state.run_name.endswith(self.node) and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("on purpose")


def refused(folder, given, *overrides):
    """The line by which a plan of this config in a file, with these overrides after it, is refused."""
    file = Path(folder, "study.yaml")
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(given)))
    with pytest.raises(ConfigError) as error:
        plan(*load(file, overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


class Watch(Callback):
    """Counts the batches of all runs, keeps what each starts from and prunes, and may kill or stop at one of them."""

    batches = 0
    kill_at = stop_at = -1
    starts: dict[str, torch.Tensor]
    masks: dict[str, dict[str, torch.Tensor]]
    orders: dict[str, list[list[int]]]  # the labels of its batches
    rates: dict[str, list[float]]  # of its updates

    @classmethod
    def reset(cls, kill_at=-1, stop_at=-1):
        cls.batches, cls.kill_at, cls.stop_at, cls.starts, cls.masks = 0, kill_at, stop_at, {}, {}
        cls.orders, cls.rates = {}, {}

    def fit_start(self, state, logger):
        Watch.starts[state.run_name.rpartition("/")[2]] = next(state.model.parameters()).detach().clone()

    def batch_start(self, state, logger):
        rate = state.optimizers[0].param_groups[0]["lr"]
        Watch.rates.setdefault(state.run_name.rpartition("/")[2], []).append(rate)

    def batch_end(self, state, logger):
        Watch.batches += 1
        labels = state.batch["labels" if isinstance(state.batch, dict) else 1]
        Watch.orders.setdefault(state.run_name.rpartition("/")[2], []).append(labels.tolist())
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt
        if Watch.batches == Watch.stop_at:
            state.stop_training()

    def fit_end(self, state, logger):
        name = state.run_name.rpartition("/")[2]
        Watch.masks[name] = next((dict(one.masks) for one in state.algorithms if isinstance(one, Pruning)), {})


def cells(arm, barrier, gap, density=0.1, error=10.0, spread=(0.02, -0.03, 0.01), how="interpolate"):
    """Those of a network of three seeds, made up: their barrier in points, and by how much they beat the dense one."""
    for seed, more in enumerate(spread):
        along = {f"path/{how}/{place:02}": error + bump for place, bump in enumerate((0, barrier, 0))}
        yield Cell(
            arm=arm,
            density=1.0 if arm == DENSE else density,
            step="0ba",
            k=0,
            share=0.0,
            seed=seed,
            value=0.9 + gap,
            gap=gap + more / 1000,
            tolerance=0.002,
            measured={f"barrier/test/error/{how}": barrier + more, **along},
        )


def first_weights(model, weights, masks):
    """A method of one's own for `shrinkbench`: scores that fall from a layer's first weight to its last."""
    return {name: torch.linspace(1, 0, weight.numel()).view(weight.shape) for name, weight in weights.items()}
