"""The example scripts: each runs as it is, goes on from its checkpoint, and adds as few lines as is promised."""

import difflib
import re
import runpy
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from accelerando.algorithms.generators import untouched_generators

pytestmark = pytest.mark.filterwarnings("ignore:LinearPath. the path is not drawn, as matplotlib is missing")

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES = {  # that a technique adds to a training script of one's own
    "plain": {
        "blurpool": 4,
        "channels_last": 4,
        "cyclic": 8,
        "distillation": 4,
        "forgetting_events": 7,
        "label_smoothing": 4,
        "labelled_positions": 4,
        "linear_path": 8,
        "lottery_ticket": 8,
        "magnitude_pruning": 4,
        "mixup": 4,
        "prune_at_init": 4,
        "snapshots": 8,
        "tradeoff_curve": 8,
    },
    "lightning": {
        "blurpool": 2,
        "channels_last": 2,
        "distillation": 5,
        "forgetting_events": 6,
        "label_smoothing": 3,
        "labelled_positions": 2,
        "linear_path": 4,
        "lottery_ticket": 6,
        "magnitude_pruning": 3,
        "mixup": 3,
        "prune_at_init": 3,
        "snapshots": 3,
        "tradeoff_curve": 7,
    },
    "accelerate": {"distillation": 4, "label_smoothing": 4, "magnitude_pruning": 4, "mixup": 4},
    "transformers": {
        "distillation": 2,
        "label_smoothing": 2,
        "labelled_positions": 2,
        "linear_path": 2,
        "lottery_ticket": 4,
        "magnitude_pruning": 2,
        "prune_at_init": 2,
        "snapshots": 2,
    },
}
# What a script adds to, where that is not bare.py.
BARE = {(host, "labelled_positions"): "bare_mlm" for host in ("plain", "lightning")}
LEAST_ACCURACY = {"bare": 0.8, "bare_mlm": 0.15}
BROKEN_OFF = {"lottery_ticket": 180}  # after so many updates, in the middle of a level
LONGER = {"lottery_ticket": Fraction(88 + 3 * 66, 88 + 66)}  # how much longer the whole training is in Lightning
TEACHERS = {"plain": "teacher.pt", "accelerate": "teacher.pt", "lightning": "teacher.ckpt", "transformers": "teacher"}
BEFORE = {"distillation": ("bare", TEACHERS)}  # what to run first


def bare(host: str, technique: str) -> str:
    return BARE.get((host, technique), technique if technique in LEAST_ACCURACY else "bare")


BARE_SCRIPTS = {host: sorted({bare(host, name) for name in techniques}) for host, techniques in MOST_LINES.items()}
SCRIPTS = [(host, script) for host, techniques in MOST_LINES.items() for script in (*BARE_SCRIPTS[host], *techniques)]


def code(path: Path) -> list[str]:
    """Its lines but for the docstring, comments and blank ones."""
    text = re.sub(r'\A""".*?"""\n', "", path.read_text(), flags=re.DOTALL)
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def added(host: str, technique: str) -> int:
    """How many lines of a script are new, or other ones than in the bare script."""
    before, after = (code(EXAMPLES / host / f"{name}.py") for name in (bare(host, technique), technique))
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(end - start for kind, _, _, start, end in changes if kind in ("insert", "replace"))


@pytest.fixture
def run(monkeypatch, capsys):
    def run(host: str, technique: str, *arguments: object) -> str:
        """What it prints; in this process, as importing torch takes longer than any of them."""
        path = str(EXAMPLES / host / f"{technique}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with untouched_generators():
            runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_here():
    for host, techniques in MOST_LINES.items():
        assert {path.stem for path in (EXAMPLES / host).glob("*.py")} == {*BARE_SCRIPTS[host], *techniques}


@pytest.mark.parametrize(
    ("host", "technique"), [(host, name) for host, techniques in MOST_LINES.items() for name in techniques]
)
def test_a_technique_adds_few_lines(host, technique):
    assert 0 < added(host, technique) <= MOST_LINES[host][technique]


def accuracy_and_updates(printed: str) -> tuple[float, int]:
    found = re.search(r"accuracy (\d\.\d+) after (\d+) updates", printed)
    return float(found[1]), int(found[2])


@pytest.mark.parametrize("technique", [script for host, script in SCRIPTS if host == "lightning"])
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning")
def test_in_lightning_it_learns_and_goes_on_from_its_checkpoint(technique, run, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")  # which the scripts set, put back afterwards
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.chdir(tmp_path)
    if technique in BEFORE:
        run("lightning", BEFORE[technique][0], BEFORE[technique][1]["lightning"])
    _, updates = accuracy_and_updates(run("lightning", technique, "broken.ckpt", 1))
    accuracy, all_updates = accuracy_and_updates(run("lightning", technique, "broken.ckpt"))
    epochs = 2 if bare("lightning", technique) == "bare_mlm" else 4
    assert Fraction(all_updates, updates) == LONGER.get(technique, epochs)
    assert accuracy > LEAST_ACCURACY[bare("lightning", technique)]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.filterwarnings("ignore:.*the training has ended after 41ba:UserWarning")
@pytest.mark.parametrize("technique", [script for host, script in SCRIPTS if host == "transformers"])
def test_in_transformers_it_learns_and_goes_on_from_its_checkpoint(technique, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if technique in BEFORE:
        run("transformers", BEFORE[technique][0], BEFORE[technique][1]["transformers"])
    updates = BROKEN_OFF.get(technique, 41)
    for folder, *broken in (["whole"], ["broken", updates], ["broken"]):
        printed = run("transformers", technique, folder, *broken)
        accuracy, made = re.search(r"accuracy (\d\.\d+) after (\d+) updates", printed).groups()
        assert int(made) == updates if broken else float(accuracy) > 0.4
    one, two = (load_file(Path(folder, "model.safetensors")) for folder in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("host", "technique"), [each for each in SCRIPTS if each[0] not in ("lightning", "transformers")]
)
def test_it_learns_and_goes_on_from_its_checkpoint(host, technique, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if technique in BEFORE:
        run(host, BEFORE[technique][0], BEFORE[technique][1][host])
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    printed = run(host, technique, whole)
    assert accuracy_and_updates(printed)[0] > LEAST_ACCURACY[bare(host, technique)]
    run(host, technique, broken, BROKEN_OFF.get(technique, 41))
    assert run(host, technique, broken) == printed
    one, two = (torch.load(path, weights_only=True)["model"] for path in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)
