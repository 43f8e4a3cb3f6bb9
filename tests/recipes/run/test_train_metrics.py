"""The interval at which a run measures the metrics of its training."""

import pytest
from composer import Callback
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import Digits
from accelerando.recipes.train import train
from runs import measured, settings

TRAIN = "metrics/train/"
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
    return settings(folder) | {"algorithms": {"mix_up": {}}} | given


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
            train(killed | {"callbacks": kill})
        assert measured(train(killed)) == whole

    without, all_without = (
        [{name: value for name, value in record.items() if not name.startswith(TRAIN)} for record in records]
        for records in (whole, each)
    )
    assert without == all_without
    told = train_metrics(each)
    assert all(told) and len(told) == 9
    ends = [] if data == "endless" else [4, 8]
    expected = [metrics if batch % interval == 0 or batch + 1 in ends else {} for batch, metrics in enumerate(told)]
    # Of the batch measured last they are told again at the end of an epoch, and of the run.
    for end in [*ends, 8]:
        newest = [metrics for metrics in expected[:end] if metrics][-1]
        expected[end] = newest if end == 8 else expected[end] or newest
    assert train_metrics(whole) == expected


@pytest.mark.parametrize("given", ["0ba", "-1ba", "1ep", "10", "often", 10, None])
def test_an_interval_that_is_no_number_of_batches_is_refused(tmp_path, given):
    with pytest.raises(ConfigError, match=r"^config: train_metrics_interval: "):
        check(config(tmp_path, train_metrics_interval=given))
