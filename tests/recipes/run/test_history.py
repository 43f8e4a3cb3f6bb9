"""The record of a run."""

import time
from types import SimpleNamespace

import pytest
import torch

from accelerando.recipes.run import history as module
from accelerando.recipes.run.history import History

ACCURACY = "metrics/eval/MulticlassAccuracy"
KEPT = ["mine/"]


def test_history_counts_training_and_nothing_else(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    state = SimpleNamespace(timestamp=SimpleNamespace(batch=0, sample=0))
    history = History()
    history.init(state, None)
    for batch in range(2):
        history.before_dataloader(state, None)
        clock += 100  # skipped on the way to where a killed run stopped
        history.before_dataloader(state, None)
        clock += 3
        history.log_metrics({"loss/train/total": torch.tensor(0.5), "time/batch": batch, "text": "ignored"})
        state.timestamp = SimpleNamespace(batch=batch + 1, sample=8 * (batch + 1))
        history.log_metrics({"lr": 0.1})  # by a callback, at the same event and before the clock is read
        history.batch_end(state, None)
        clock += 1000  # evaluation, checkpoint
        history.log_metrics({ACCURACY: 0.25 * (batch + 1)})
    assert history.records == [
        {"batch": 0, "samples": 0, "seconds": 0.0, "loss/train/total": 0.5},
        {"batch": 1, "samples": 8, "seconds": 3.0, "lr": 0.1, ACCURACY: 0.25, "loss/train/total": 0.5},
        {"batch": 2, "samples": 16, "seconds": 6.0, "lr": 0.1, ACCURACY: 0.5},
    ]
    resumed = History()
    resumed.load_state_dict(history.state_dict())
    assert resumed.records == history.records and resumed.seconds == 6.0


def run(history, first, last):
    """Batches `first` to `last`, with a loss before each update and an evaluation at each 7th."""
    for batch in range(first, last + 1):
        state = SimpleNamespace(timestamp=SimpleNamespace(batch=batch - 1, sample=8 * (batch - 1)))
        history.init(state, None)
        history.log_metrics({"loss/train/total": 1 / batch})
        state.timestamp = SimpleNamespace(batch=batch, sample=8 * batch)
        history.batch_end(state, None)
        assert [record["batch"] for record in history.records[-2:]] == [batch - 1, batch]
        if batch % 7 == 0:
            history.log_metrics({ACCURACY: batch / 1000})
        if batch % 45 == 0:
            history.log_metrics({"mine/step": 1})
    return history


@pytest.fixture
def stopped_clock(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(module, "MOST_RECORDS", 16)


@pytest.mark.parametrize(("batches", "stride"), [(15, 1), (16, 2), (31, 2), (32, 4), (100, 8), (255, 16), (256, 32)])
def test_a_long_history_is_thinned_evenly(stopped_clock, batches, stride):
    records = run(History(KEPT), 1, batches).records
    always = {b for b in range(7, batches + 1, 7)} | {b for b in range(45, batches + 1, 45)} | {batches - 1, batches}
    assert [r["batch"] for r in records] == sorted(always | set(range(0, batches + 1, stride)))
    assert len(range(0, batches + 1, stride)) <= 16
    assert all(r["samples"] == 8 * r["batch"] for r in records)
    assert all(r["loss/train/total"] == 1 / (r["batch"] + 1) for r in records[:-1])


@pytest.mark.parametrize("killed", [1, 15, 16, 17, 31, 32, 33, 70, 128])
def test_a_thinned_history_goes_on_after_a_resume(stopped_clock, killed):
    whole, stopped, resumed = run(History(KEPT), 1, 200), run(History(KEPT), 1, killed), History(KEPT)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.records == stopped.records
    assert run(resumed, killed + 1, 200).records == whole.records


def test_an_older_checkpoint_is_thinned_as_it_is_loaded(stopped_clock, monkeypatch):
    thinned = run(History(KEPT), 1, 100).records
    monkeypatch.setattr(module, "MOST_RECORDS", 1000)
    everything = run(History(KEPT), 1, 100).records
    assert len(everything) == 101
    monkeypatch.setattr(module, "MOST_RECORDS", 16)
    resumed = History(KEPT)
    resumed.load_state_dict({"records": everything, "seconds": 0.0})
    assert resumed.records == thinned
    resumed.load_state_dict({"records": [], "seconds": 0.0})
    assert resumed.records == []
