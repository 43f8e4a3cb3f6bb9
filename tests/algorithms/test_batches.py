"""Inputs and labels in batches of any form."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from accelerando.algorithms.batches import item, replaced, target_in, tensor_in

Pair = namedtuple("Pair", "image label")
ONE, TWO, THREE = (torch.full((2,), float(i)) for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("batch", "key"),
    [
        ((ONE, TWO), 0),
        ([ONE, TWO], 0),
        (Pair(ONE, TWO), "image"),
        (Pair(ONE, TWO), 0),
        ({"image": ONE, "label": TWO}, "image"),
        (SimpleNamespace(image=ONE, label=TWO), "image"),
        ([{"image": ONE}, TWO], (lambda batch: batch[0]["image"], lambda batch, new: [{"image": new}, batch[1]])),
    ],
    ids=["tuple", "list", "named", "named by index", "mapping", "object", "functions"],
)
def test_a_copy_holds_the_new_value(batch, key):
    changed = replaced(batch, key, THREE)
    assert type(changed) is type(batch)
    assert item(changed, key) is THREE and item(batch, key) is ONE


def test_labels_of_a_mapping_are_called_so():
    assert target_in("MixUp", {"labels": ONE}, 1) is target_in("MixUp", (TWO, ONE), 1) is ONE


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"MixUp finds nothing at 0 in a batch of image \(dict\): give input_key"):
        tensor_in("MixUp", {"image": ONE}, 0, "input_key")
    with pytest.raises(TypeError, match="MixUp needs one tensor at input_key, but the batch holds list there"):
        tensor_in("MixUp", ([ONE], TWO), 0, "input_key")
