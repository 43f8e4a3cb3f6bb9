"""The results of a run, and the table and figure made of them."""

import math
import os

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from accelerando.algorithms.figures import COLOURS
from accelerando.recipes.run import figures
from accelerando.recipes.run.figures import draw
from accelerando.recipes.run.files import write
from accelerando.recipes.run.results import Result, label, table

ACCURACY = "metrics/eval/MulticlassAccuracy"


def result(folder, name="plain", loss=1.0):
    records = [{"batch": b, "samples": 8 * b, "seconds": b / 10, "loss/train/total": loss / (b + 1)} for b in range(40)]
    records[20][ACCURACY] = 0.5 / loss
    records += [{"batch": 40, "samples": 320, "seconds": 4.0, ACCURACY: 0.75}]
    algorithms = ["BlurPool", "MixUp"] if name == "all" else []
    cost = {"batches": 40, "samples": 320, "seconds": 4.0, "samples_per_second": 80.0}
    about = {"run_name": name, "folder": str(folder), "algorithms": algorithms, "metrics": {ACCURACY: 0.75}}
    return Result(**about, **cost, records=records, found={})


def test_a_result_survives_its_file_even_after_divergence(tmp_path):
    written = result(tmp_path)
    written.save()
    assert Result.load(tmp_path) == written
    written.records[3]["loss/train/total"] = math.nan
    written.records[-1][ACCURACY] = written.metrics[ACCURACY] = math.inf
    written.save()
    read = Result.load(tmp_path)
    assert read.records[3]["loss/train/total"] is None and read.metrics[ACCURACY] is None
    assert table([read]).splitlines()[1].split() == ["plain", "-", "4.0", "80", "none"]
    assert table([read]).splitlines()[2] == "-: not finite, or not evaluated"
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
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        left, right = np.split((pixels == rgb).all(-1), 2, axis=1)
        assert left.any() and right.any()


STEEP = (0.1, 0.1, 0.1, 0.1, *(0.9 + i / 1000 for i in range(16)))
BELOW = "below the frame: 4 values, the least 0.1000"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.3472, 0.6, 0.7472], []),
        ([0.1, 0.9, 0.91], []),
        ([0.7], []),
        (STEEP[3:12], []),
        (STEEP, [BELOW]),
        ([0.1 + i / 25 for i in range(20)], []),
    ],
    ids=["three", "steep", "one", "nine", "a long curve's steep rise", "a long even rise"],
)
def test_what_is_below_the_frame_is_told_and_the_last_number_is_inside(values, words, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "save_figure", lambda figure, _: figure)
    one = result(tmp_path)
    one.records[20:] = [{"batch": i, "samples": i, "seconds": 20 + i, ACCURACY: v} for i, v in enumerate(values)]
    figure = draw([one], tmp_path / "a.png", "")
    axes = figure.axes[0]
    last, *others = axes.texts
    assert (last.get_text(), [text.get_text() for text in others]) == (f"{values[-1]:.4f}", words)
    bottom, top = axes.get_ylim()
    assert sum(not bottom < value < top for value in values) == 4 * len(words)
    FigureCanvasAgg(figure).draw()
    frame = axes.get_window_extent()
    for inner in (text.get_window_extent() for text in axes.texts):
        assert frame.x0 < inner.x0 and inner.x1 < frame.x1 and frame.y0 < inner.y0 and inner.y1 < frame.y1


def test_of_a_single_batch_there_is_a_figure_too(tmp_path):
    one = result(tmp_path)
    one.records[1:] = [{"batch": 1, "samples": 8, "seconds": 0.1, ACCURACY: 0.75}]
    assert one.records[0]["seconds"] == 0 and draw([one], tmp_path / "a.png", "").std() > 0
