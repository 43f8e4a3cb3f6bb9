"""Slices of a split: which examples they hold, and those that nobody means."""

import re

import pytest
import torch

from accelerando.recipes.config.errors import ArgumentError
from accelerando.recipes.data.images import Digits
from accelerando.recipes.data.python_docs import PythonDocs
from accelerando.recipes.data.splits import overlap, part_of

SIZES = {"train": 1437, "test": 360}


@pytest.mark.parametrize(
    ("split", "name", "rows"),
    [
        ("train", "train", range(1437)),
        ("test", "test", range(360)),
        ("train[:80%]", "train", range(1150)),
        ("train[80%:]", "train", range(1150, 1437)),
        ("train[10:20]", "train", range(10, 20)),
        ("test[50%:90%]", "test", range(180, 324)),
        ("train[:]", "train", range(1437)),
    ],
)
def test_a_slice_holds_those_examples(split, name, rows):
    assert part_of(split, SIZES) == (name, rows)


NO_SLICES = ["", "valid", "train[", "train[:80%", "train[80%]", "train[:101%]", "train[1437:]", "train[5:5]"]
NO_SLICES.append(f"train[:{400 * '9'}%]")


@pytest.mark.parametrize("split", NO_SLICES)
def test_what_is_no_slice_is_refused(split):
    with pytest.raises(ArgumentError, match=r"^split: .*expected train or test, or a slice such as train\[:80%\]"):
        part_of(split, SIZES)


def test_two_slices_overlap_where_they_share_an_example():
    parts = [part_of(split, SIZES) for split in ("train[:80%]", "train[80%:]", "train[1149:1150]", "train", "test")]
    shared = [[overlap(one, other) for other in parts] for one in parts]
    assert shared == [
        [True, False, True, True, False],
        [False, True, False, True, False],
        [True, False, True, True, False],
        [True, True, True, True, False],
        [False, False, False, False, True],
    ]


def test_sources_serve_their_slices_and_nothing_else():
    whole, head, tail = (
        [tensor for batch in Digits(split=split).build(500, False, 0, "cpu").dataloader for tensor in batch[:1]]
        for split in ("train", "train[:80%]", "train[80%:]")
    )
    assert torch.equal(torch.cat(whole), torch.cat([*head, *tail])) and sum(map(len, head)) == 1150
    docs = {split: PythonDocs(split=split, seq_len=32) for split in ("train", "train[:90%]", "train[90%:]", "test")}
    assert docs["train"].overlaps(docs["train[90%:]"]) and not docs["train[:90%]"].overlaps(docs["train[90%:]"])
    assert not docs["train"].overlaps(docs["test"]) and not docs["test"].overlaps(Digits(split="test"))
    samples = {
        split: sum(len(batch["labels"]) for batch in source.build(64, False, 0, "cpu").dataloader)
        for split, source in docs.items()
    }
    assert 0 <= samples["train"] - samples["train[:90%]"] - samples["train[90%:]"] <= 1
    with pytest.raises(ArgumentError, match=re.escape("split: 'train[:200%]' given")):
        Digits(split="train[:200%]").check()
