"""Benchmarks run in their small form on a CPU, and tell all that they promise."""

import logging
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMISED = {  # by title, its lines
    "BlurPool: ShuffleNet step, .*, contiguous": ("plain", "Composer", "ours", "added: Composer .* ours / Composer"),
    "BlurPool: ShuffleNet step, .*, channels_last": ("plain", "Composer", "ours", "added: Composer"),
    "ChannelsLast: ShuffleNet step": ("plain", "Composer", "ours"),
    "LabelSmoothing: index targets, 1000 classes": ("plain torch", "Composer", "ours"),
    "LabelSmoothing: index targets, BERT": ("plain torch", "Composer", "ours"),
    "MixUp: targets, 1000 classes": ("plain torch", "Composer", "ours"),
    "MixUp: targets, BERT": ("plain torch", "Composer", "ours"),
    "MixUp: inputs": ("plain torch", "Composer", "ours"),
    "Distillation: ShuffleNet step": (
        "plain",
        "one teacher",
        "one drawn of 3",
        "all 3",
        "one drawn of 3 / one teacher",
    ),
    "LabelledPositions: masked LM step": (
        "plain",
        "LabelledPositions",
        "peak memory of a step",
    ),
    "Selection: ShuffleNet": ("ours", "torch", "the same masks", "time, torch / ours", "peak memory besides .* ours"),
    "Enforcement: ShuffleNet step": ("dense", "ours", "torch", "masking alone", "masking alone / dense"),
    "Masks in a checkpoint": ("ShuffleNet: float32 weights", "bits / prunable", "file / float32"),
    "Host reads: plain loop": ("plain", "LabelSmoothing", "MixUp", "Distillation", "MagnitudePruning"),
    "Host reads: Composer's Trainer": (
        "plain",
        "BlurPool",
        "ChannelsLast",
        "LabelSmoothing",
        "MixUp",
        "Distillation",
        "MagnitudePruning",
    ),
    "Scores: ShuffleNet": ("forward and backward", "SNIP", "GraSP", "SynFlow"),
}
TIMED = re.compile(r"; medians of \d+ rounds$")


@pytest.fixture
def script(monkeypatch):
    """A script as a module, by name; what it does to the process, and its neighbours' names, go with the test."""
    before, tf32, threads = set(sys.modules), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    monkeypatch.syspath_prepend(BENCHMARKS)
    with warnings.catch_warnings():
        yield import_module
    logging.disable(logging.NOTSET)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def gpu(script):
    return script("gpu")


def sections(text: str) -> dict[str, list[str]]:
    """The lines below each title."""
    _, *parts = text.split("\n\n")
    return {title: lines for title, *lines in (part.splitlines() for part in parts)}


def test_every_promised_line_is_there(gpu, tmp_path, capsys):
    file = tmp_path / "out.txt"
    gpu.main(gpu.parse(["--small", "--device", "cpu", "--out", str(file)]))
    text = file.read_text()
    assert text == capsys.readouterr().out
    assert re.match(r".+, \d+ threads; Python .*, torch .*, Composer ", text)
    assert not re.search(r"failed|: left out, (?!as it is)|without Composer", text)
    found = sections(text)
    for title, lines in PROMISED.items():
        (whole,) = (each for each in found if re.match(title, each))
        for line in lines:
            assert any(re.match(rf" +{line}", each) for each in found[whole]), f"{title}: {line}"
        assert TIMED.search(whole) or whole.startswith(("Masks", "Host")), whole
    reads = [line for title, lines in found.items() if title.startswith("Host") for line in lines]
    assert reads and not [line for line in reads if not line.endswith("as many as the plain step")]


def test_what_is_left_out_is_told(gpu, monkeypatch, capsys):
    """Without Composer, and of what no time is left for."""
    for name in ("composer", "composer.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    only = ["--only", "channels_last", "reads_in_composer"]
    gpu.main(gpu.parse(["--small", "--device", "cpu", *only]))
    text = capsys.readouterr().out
    assert "channels_last: without Composer's arm, composer.functional cannot be imported" in text
    assert "reads_in_composer: left out, composer cannot be imported" in text
    (lines,) = (lines for title, lines in sections(text).items() if title.startswith("ChannelsLast"))
    assert [line.split()[0] for line in lines] == ["plain", "ours"]

    gpu.main(gpu.parse(["--small", "--device", "cpu", "--minutes", "0", "--only", "targets"]))
    assert "targets: left out, the 0 minutes are over" in capsys.readouterr().out


def test_a_part_that_fails_is_told_and_the_others_go_on(gpu, capsys):
    given = gpu.parse(["--small", "--device", "cpu", "--only", "channels_last", "targets"])
    given.side = 0
    gpu.main(given)
    text = capsys.readouterr().out
    assert re.search(r"channels_last: failed, \w+: .+", text) and "MixUp: inputs" in text


PATHS = {  # by title, which arms
    "LeNet-300-100: 3 points of 100 images, in memory": ("plain script", "ours", "ours / plain script"),
    "LeNet-300-100: 3 points of 100 images, DataLoader": ("plain script", "ours", "ours / plain script"),
    "ResNet-8: 3 points of 100 images, in memory": ("plain script", "ours", "ours / plain script"),
    "ResNet-8: 3 points of 100 images, DataLoader": ("plain script", "ours", "ours / plain script"),
    "ResNet-8: statistics recomputed from 100 images": ("plain script", "ours", "ours, recomputed / interpolated"),
}


def test_paths_are_timed_beside_a_script_that_finds_the_same(script, capsys):
    connectivity = script("connectivity")
    connectivity.main(connectivity.parse(["--small"]))
    found = sections(capsys.readouterr().out)
    assert [TIMED.sub("", title) for title in found] == [*PATHS]
    for (title, lines), promised in zip(found.items(), PATHS.values(), strict=True):
        assert TIMED.search(title) and all(any(re.match(rf" +{each}", line) for line in lines) for each in promised)
        (apart,) = re.findall(r"losses at most (\S+) of them apart", "".join(lines))
        assert float(apart) < 1e-6


def test_examples_are_scored_beside_scripts_that_find_the_same(script, capsys):
    examples = script("examples")
    examples.main(examples.parse(["--small"]))
    found = sections(capsys.readouterr().out)
    scored, norms = "EL2N of 100 images by 2 networks", "norms of the gradients of 10 images"
    kinds = (f"{scored}, in memory", f"{scored}, DataLoader", norms)
    titles = [f"{name}: {kind}" for name in ("LeNet-300-100", "ResNet-8") for kind in kinds]
    assert [TIMED.sub("", title) for title in found] == titles
    for lines in found.values():
        assert [line.split()[0] for line in lines] == ["plain", "ours", "ours"]
        (apart,) = re.findall(r"ours / plain script .*; at most (\S+) of the largest value apart", "".join(lines))
        assert float(apart) < 1e-5


def test_the_law_is_fitted_to_what_a_known_one_gives(script, capsys):
    scaling_law = script("scaling_law")
    scaling_law.main(scaling_law.parse(["--small"]))
    ((title, lines),) = sections(capsys.readouterr().out).items()
    assert TIMED.sub("", title) == "Scaling law: 400 points of 10 networks" and TIMED.search(title)
    assert all(line.startswith(f"  {arm}") for line, arm in zip(lines, ("power", "law, 1 ", "law, 500 "), strict=False))
    apart = [float(share) / 100 for share in re.findall(r"([+-][\d.]+)%", lines[-1])]
    assert len(apart) == 5 and max(map(abs, apart)) < 0.5
