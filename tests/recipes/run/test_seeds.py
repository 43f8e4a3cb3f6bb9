"""Seeds apart: each changes what it names, and nothing else."""

import pytest
import torch

import runs
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.train import train
from runs import Followed, same

SEEDS = ("seed", "weights_seed", "data_seed")


def followed(folder, name, **seeds):
    config = {
        "run_name": name,
        "folder": str(folder),
        "max_duration": "6ba",
        "global_batch_size": 64,
        "model": {"runs:noisy": {}},
        "train_data": {"fashion_mnist": {"split": "train[:300]", "resize": 8, "augment": True}},
        "optimizer": {"sgd": {"lr": 0.1}},
        "callbacks": {"runs:Followed": {}},
        "algorithms": {"squeeze_excite": {"min_channels": 4, "latent_channels": 2}},  # which adds weights at INIT
        "device": "cpu",
    }
    train(config | seeds)
    return {name: getattr(Followed, name) for name in ("first", "batches", "generator", "end")}


def equal(one, other):
    """What of the two runs is the same: initial weights; order; order with augmentation; what dropout draws."""
    numbers = one["batches"].keys()
    sets = [{tuple(batch[1].tolist()) for batch in run["batches"].values()} for run in (one, other)]
    return {
        "weights": same(one["first"], other["first"]),
        "order": sets[0] == sets[1],
        "augmentation": all(torch.equal(one["batches"][n][0], other["batches"][n][0]) for n in numbers),
        "noise": all(torch.equal(one["generator"][n], other["generator"][n]) for n in numbers),
        "result": same(one["end"], other["end"]),
    }


def test_each_changes_what_it_names_and_nothing_else(tmp_path):
    base = followed(tmp_path, "base", seed=17)
    everything = dict.fromkeys(("weights", "order", "augmentation", "noise", "result"), True)
    data = {"order": False, "augmentation": False}
    for number, (seeds, changed) in enumerate(
        [
            ({"seed": 17, "weights_seed": 17, "data_seed": 17}, {}),
            ({"seed": 17, "weights_seed": 18}, {"weights": False, "result": False}),
            ({"seed": 17, "data_seed": 18}, {**data, "result": False}),
            ({"seed": 18, "weights_seed": 17, "data_seed": 17}, {"noise": False, "result": False}),
            ({"seed": 18}, dict.fromkeys(everything, False)),
        ]
    ):
        assert equal(base, followed(tmp_path, f"other{number}", **seeds)) == everything | changed, seeds


@pytest.mark.parametrize("key", SEEDS)
@pytest.mark.parametrize("value", [-1, 2**32, True, 1.5, "a", None, [1]])
def test_what_is_no_seed_is_refused(key, value, tmp_path):
    with pytest.raises(ConfigError, match=f"^config: {key}: "):
        check(runs.settings(tmp_path) | {key: value})
