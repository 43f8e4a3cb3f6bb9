"""The record of a run, and the table and figure made of it."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from accelerando.recipes import report
from accelerando.recipes.report import History, Result, draw, label, table, write

ACCURACY = "metrics/eval/MulticlassAccuracy"


def result(folder, name="plain", loss=1.0):
    records = [{"batch": b, "samples": 8 * b, "seconds": b / 10, "loss/train/total": loss / (b + 1)} for b in range(40)]
    records[20][ACCURACY] = 0.5 / loss
    records += [{"batch": 40, "samples": 320, "seconds": 4.0, ACCURACY: 0.75}]
    algorithms = ["BlurPool", "MixUp"] if name == "all" else []
    return Result(name, str(folder), algorithms, {ACCURACY: 0.75}, 40, 320, 4.0, 80.0, records)


def test_history_counts_training_and_nothing_else(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(report.time, "perf_counter", lambda: clock)
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
    resumed.load_state_dict(json.loads(json.dumps(history.state_dict())))
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
            history.log_metrics({"tradeoff/step": 1})
    return history


@pytest.fixture
def stopped_clock(monkeypatch):
    monkeypatch.setattr(report.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(report, "MOST_RECORDS", 16)


@pytest.mark.parametrize(("batches", "stride"), [(15, 1), (16, 2), (31, 2), (32, 4), (100, 8), (255, 16), (256, 32)])
def test_a_long_history_is_thinned_evenly(stopped_clock, batches, stride):
    records = run(History(), 1, batches).records
    always = {b for b in range(7, batches + 1, 7)} | {b for b in range(45, batches + 1, 45)} | {batches - 1, batches}
    assert [r["batch"] for r in records] == sorted(always | set(range(0, batches + 1, stride)))
    assert len(range(0, batches + 1, stride)) <= 16
    assert all(r["samples"] == 8 * r["batch"] for r in records)
    assert all(r["loss/train/total"] == 1 / (r["batch"] + 1) for r in records[:-1])


@pytest.mark.parametrize("killed", [1, 15, 16, 17, 31, 32, 33, 70, 128])
def test_a_thinned_history_goes_on_after_a_resume(stopped_clock, killed):
    whole, saved = run(History(), 1, 200), run(History(), 1, killed).state_dict()
    resumed = History()
    resumed.load_state_dict(json.loads(json.dumps(saved)))
    assert resumed.records == saved["records"]
    assert run(resumed, killed + 1, 200).records == whole.records


def test_an_older_checkpoint_is_thinned_as_it_is_loaded(stopped_clock, monkeypatch):
    thinned = run(History(), 1, 100).records
    monkeypatch.setattr(report, "MOST_RECORDS", 1000)
    everything = run(History(), 1, 100).state_dict()
    assert len(everything["records"]) == 101
    monkeypatch.setattr(report, "MOST_RECORDS", 16)
    resumed = History()
    resumed.load_state_dict(everything)
    assert resumed.records == thinned
    resumed.load_state_dict({"records": [], "seconds": 0.0})
    assert resumed.records == []


def test_a_result_survives_its_file_even_after_divergence(tmp_path):
    written = result(tmp_path)
    written.save()
    assert Result.load(tmp_path) == written
    written.records[3]["loss/train/total"] = math.nan
    written.records[-1][ACCURACY] = written.metrics[ACCURACY] = math.inf
    written.save()
    read = Result.load(tmp_path)
    assert read.records[3]["loss/train/total"] is None and read.metrics[ACCURACY] is None
    assert table([read]).splitlines()[1].split() == ["plain", "4.0", "80", "none"]
    assert np.array_equal(draw([read], tmp_path / "a.png", ""), draw([written], tmp_path / "b.png", ""))


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write(file, b"old")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        write(file, b"new")
    assert file.read_bytes() == b"old"
    write(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["results.json"]


def test_the_table_is_aligned_and_whole(tmp_path):
    assert table([result(tmp_path), result(tmp_path, "all")]).splitlines() == [
        "run    accuracy  seconds  samples/s  algorithms",
        "plain    0.7500      4.0         80  none",
        "all      0.7500      4.0         80  BlurPool, MixUp",
    ]


def test_metrics_have_names_for_people():
    assert label("metrics/eval/MulticlassAccuracy") == "accuracy"
    assert label("metrics/eval/LanguageCrossEntropy") == "language cross entropy"


def test_the_figure_shows_both_runs(tmp_path):
    pixels = draw([result(tmp_path), result(tmp_path, "all", loss=2.0)], tmp_path / "demo.png", "Two runs")
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    for colour in report.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        left, right = np.split((pixels == rgb).all(-1), 2, axis=1)
        assert left.any() and right.any()
