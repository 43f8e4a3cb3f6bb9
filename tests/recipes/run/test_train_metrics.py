"""The interval at which a run measures the metrics of its training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer import Callback
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import Digits
from accelerando.recipes.run.train_metrics import TrainMetricsInterval
from accelerando.recipes.train import train
from runs import measured, settings

TRAIN = "metrics/train/"
# Which raises an error where there is no such metric.
STOPPER = {"monitor": "MulticlassAccuracy", "dataloader_label": "train", "patience": "50ba"}
KILLS = [{"runs:Watch": {"kill_at": batch}} for batch in (2, 4, 7)] + [{f"{__name__}:AtTheEnd": {}}]


class Endless(IterableDataset):
    """Digits, over and over, of which nobody can tell how many there are."""

    def __init__(self):
        self.data = next(iter(Digits().build(320, False, 0, "cpu").dataloader))

    def __iter__(self):
        while True:
            yield from zip(*self.data, strict=True)


class AtTheEnd(Callback):
    """Kills the run when all is saved."""

    def fit_end(self, state, logger):
        raise KeyboardInterrupt


def endless(batch_size: int):
    return DataLoader(Endless(), batch_size)


def shuffled(batch_size: int):
    return DataLoader(TensorDataset(*Endless().data), batch_size, shuffle=True)


def config(folder, **given):
    """Two epochs of four batches."""
    return settings(folder) | {"algorithms": {"mix_up": {}}, "callbacks": {"early_stopper": STOPPER}} | given


def train_metrics(records):
    return [{name: value for name, value in each.items() if name.startswith(TRAIN)} for each in records]


@pytest.mark.filterwarnings("ignore:No batches were trained")  # Composer's, where only an epoch's end is left to do
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("data", ["digits", "shuffled", "endless"])
def test_those_that_are_measured_are_what_each_batch_has(tmp_path, interval, data):
    """The records of the loss are the same, and a kill changes nothing, wherever it comes."""
    name = data if data == "digits" else f"{__name__}:{data}"
    given = config(tmp_path, train_data={name: {}}, save_interval="1ba")
    if data == "endless":
        given |= {"train_subset_num_batches": -1, "max_duration": "8ba", "scheduler": None}
    each = measured(train(given | {"run_name": "each", "train_metrics_interval": "1ba"}))
    given |= {"train_metrics_interval": f"{interval}ba"}
    whole = measured(train(given | {"run_name": "whole"}))
    for kill in KILLS:
        killed = given | {"run_name": f"killed-{KILLS.index(kill)}"}
        with pytest.raises(KeyboardInterrupt):
            train(killed | {"callbacks": given["callbacks"] | kill})
        assert measured(train(killed)) == whole

    without, all_without = (
        [{name: value for name, value in record.items() if not name.startswith(TRAIN)} for record in records]
        for records in (whole, each)
    )
    assert without == all_without
    told = train_metrics(each)
    assert all(told) and len(told) == 9
    firsts, lasts = ([0], [7]) if data == "endless" else ([0, 4], [3, 7])
    expected = [
        metrics if batch % interval == 0 or batch in firsts + lasts else {} for batch, metrics in enumerate(told[:8])
    ]
    assert train_metrics(whole) == [*expected, told[7]]


def test_a_run_from_another_ones_moment_measures_its_first_batch(tmp_path):
    train(config(tmp_path, run_name="other") | {"algorithms": {"snapshots": {"at": ["5ba"]}}})
    records = measured(train(config(tmp_path, start={"run": "other", "at": "5ba"}, train_metrics_interval="4ba")))
    assert [record["batch"] for record in records if any(name.startswith(TRAIN) for name in record)] == [5, 7, 8]


def test_a_checkpoint_holds_single_numbers_that_can_be_read_safely(tmp_path):
    values = {"a": torch.tensor(0.5), "b": np.float64(0.25), "c": 1, "d": torch.ones(2), "e": np.ones(2), "f": {"g": 1}}
    callback = TrainMetricsInterval(2)
    callback.init(SimpleNamespace(train_metric_values=values), None)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"values": {"a": 0.5, "b": 0.25, "c": 1.0}}


@pytest.mark.parametrize("given", ["0ba", "-1ba", "1ep", "10", "often", 10, None])
def test_an_interval_that_is_no_number_of_batches_is_refused(tmp_path, given):
    with pytest.raises(ConfigError, match=r"^config: train_metrics_interval: "):
        check(config(tmp_path, train_metrics_interval=given))
