import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from accelerando.algorithms.pruning import keep_highest, load_masks, prunable_weights, save_masks
from accelerando.algorithms.pruning.masks import digest
from tiny import classifier, network


@pytest.fixture
def weights():
    return prunable_weights(network())


@pytest.fixture
def masks(weights):
    return keep_highest({name: weight.detach().abs() for name, weight in weights.items()}, 1000)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_masks_come_back(tmp_path, weights, masks):
    save_masks(tmp_path / "new" / "ticket.safetensors", masks, level="3")
    assert same(load_masks(tmp_path / "new" / "ticket.safetensors", weights), masks)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ticket.safetensors"]


def test_anybody_can_read_the_file(tmp_path, masks):
    path = tmp_path / "ticket.safetensors"
    save_masks(path, masks, level="3")
    assert same({name.removesuffix("_mask"): mask for name, mask in load_file(path).items()}, masks)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "digest": digest(masks), "level": "3"}


def test_a_model_pruned_by_torch_hands_its_masks_over(tmp_path, weights):
    model = network()
    layers = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in weights]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.75)
    expected = {name: model.state_dict()[f"{name}_mask"].bool() for name in weights}
    save_file(model.state_dict(), tmp_path / "pruned.safetensors")
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    for name in ("pruned.safetensors", "pruned.pt"):
        assert same(load_masks(tmp_path / name, weights), expected)
    in_composer = prunable_weights(classifier())
    loaded = load_masks(tmp_path / "pruned.pt", in_composer)  # whose names begin with "module."
    assert [*loaded] == [f"module.{name}" for name in weights] and same(
        {name.removeprefix("module."): mask for name, mask in loaded.items()}, expected
    )


def foreign(masks):
    first, *_ = masks
    return {
        "holds no masks": {"0.weight": torch.ones(3)},
        r"lacks the masks of 0\.weight": {name: mask for name, mask in masks.items() if name != first},
        r"has masks of other\.weight, which are not pruned here": masks | {"other.weight": torch.ones(2)},
        r"other shapes: 0\.weight of \(432,\) for \(16, 3, 3, 3\)": masks | {first: masks[first].flatten()},
        r"values other than 0 and 1 in 0\.weight": masks | {first: masks[first] * 0.5},
        r"values other than 0 and 1 in 9\.weight": masks | {"9.weight": torch.full((4, 32), torch.nan)},
    }


@pytest.mark.parametrize("number", range(6))
def test_masks_of_others_are_refused_by_name(number, tmp_path, weights, masks):
    message, wrong = [*foreign(masks).items()][number]
    suffix = "" if "no masks" in message else "_mask"
    save_file({f"{name}{suffix}": tensor.clone() for name, tensor in wrong.items()}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=f"theirs.safetensors.*{message}"):
        load_masks(tmp_path / "theirs.safetensors", weights)


def test_files_that_are_none(tmp_path, weights, masks):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_masks(tmp_path / "nowhere.safetensors", weights)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pt").write_text("masks")
    save_file({}, tmp_path / "nothing.safetensors")
    for name in ("empty.safetensors", "text.pt", "nothing.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_masks(tmp_path / name, weights)


class Attack:
    def __reduce__(self):
        return print, ("this must not run",)


def test_nothing_in_a_file_is_run(tmp_path, weights, capsys):
    torch.save({"0.weight_mask": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt is refused"):
        load_masks(tmp_path / "evil.pt", weights)
    assert "this must not run" not in capsys.readouterr().out


def test_damaged_files_are_refused_or_hold_what_they_held(tmp_path, weights, masks):
    path, chance = tmp_path / "ticket.safetensors", random.Random(0)
    save_masks(path, masks)
    whole, refused = path.read_bytes(), 0
    for trial in range(200):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(3 if damaged else 0):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            loaded = load_masks(path, weights)
        except ValueError as error:
            assert "ticket.safetensors" in str(error)
            refused += 1
        else:
            assert same(loaded, masks)
    assert refused > 190


def test_masks_that_others_put_in_are_noticed(tmp_path, weights, masks):
    """The digest tells, where every value could be one of a mask."""
    path = tmp_path / "ticket.safetensors"
    save_masks(path, masks, digest="of the user")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ticket\.safetensors is damaged"):
        load_masks(path, weights)


def test_tensors_that_are_no_masks_are_refused(tmp_path, weights, masks):
    for odd in (masks["0.weight"].to_sparse(), masks["0.weight"] * 1j, masks["0.weight"].to("meta")):
        held = {f"{name}_mask": mask for name, mask in masks.items()} | {"0.weight_mask": odd}
        torch.save(held, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=r"odd\.pt"):
            load_masks(tmp_path / "odd.pt", weights)
