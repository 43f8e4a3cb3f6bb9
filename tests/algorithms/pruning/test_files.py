import copy
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from accelerando.algorithms.checkpoints import load_weights
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


def odd_tensors(like):
    """Tensors that files may hold, and of which none is a plain one of the shape of `like`."""
    return {
        "sparse_coo": like.to_sparse(),
        "sparse_csr": like.flatten(1).to_sparse_csr(),
        "meta": like.to("meta"),
        "quantized": torch.quantize_per_tensor(like, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([like[0], like[1]]),
        "complex": like * 1j,
        "huge": torch.ones(1).expand(1 << 20, 1 << 20, 1 << 20),
        "long": torch.ones(1).expand(*like.shape[:-1], 1 << 40),
        "nothing": torch.ones(0).expand(1 << 40, 0),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("number", range(9))
def test_odd_tensors_are_refused_in_one_line_before_memory_is_asked_for(number, tmp_path, weights, masks):
    odd = [*odd_tensors(weights["0.weight"].detach()).values()][number]
    path, model = tmp_path / "odd.pt", network()
    torch.save({f"{name}_mask": mask for name, mask in masks.items()} | {"0.weight_mask": odd}, path)
    # Newer torch builds a nested tensor by a function that is refused before anything has a name.
    refused = r"^\S*odd\.pt .*(0\.weight|_rebuild_nested_tensor)[^\n]*$"
    with pytest.raises(ValueError, match=refused):
        load_masks(path, weights)
    before = copy.deepcopy(model.state_dict())
    for wrapped in (False, True):  # a state dict, or one of Composer's checkpoints
        state = model.state_dict() | {"0.weight": odd}
        torch.save({"state": {"model": state}} if wrapped else state, path)
        with pytest.raises(ValueError, match=refused):
            load_weights(model, path)
    assert same(model.state_dict(), before)


def test_an_expanded_mask_of_the_right_shape_is_one(tmp_path, weights, masks):
    torch.save({f"{name}_mask": torch.ones(()).expand_as(weights[name]) for name in weights}, tmp_path / "all.pt")
    assert all(mask.all() for mask in load_masks(tmp_path / "all.pt", weights).values())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_numbers_are_refused_and_of_another_precision_are_not(dtype, tmp_path):
    model, other = network(), network(seed=1)
    torch.save(other.state_dict() | {"3.weight": other.state_dict()["3.weight"].to(dtype)}, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"theirs\.pt does not fit Sequential: it has .* in 3\.weight for floats"):
        load_weights(model, tmp_path / "theirs.pt")
    assert same(model.state_dict(), network().state_dict())
    for precision in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: value.to(precision) for name, value in other.state_dict().items()}, tmp_path / "theirs.pt")
        load_weights(model, tmp_path / "theirs.pt")
        assert torch.equal(model[3].weight, other[3].weight.to(precision).float())


def header(entry, size):
    text = json.dumps({"0.weight_mask": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        header({"dtype": "F32", "shape": [1 << 40, 1 << 10], "data_offsets": [0, 4]}, 4),
        header({"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 50]}, 4),
        header({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, 4),
        *(header({"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}, 8) for dtype in ("F8_E8M0", "X9", "F4")),
        (1 << 60).to_bytes(8, "little") + b"{}",
    ],
)
def test_safetensors_that_declare_what_they_do_not_hold_are_refused(content, tmp_path, weights):
    (tmp_path / "theirs.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S*theirs\.safetensors [^\n]*$"):
        load_masks(tmp_path / "theirs.safetensors", weights)


def test_a_network_without_memory_is_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"0\.weight, .* is on the meta device"):
        load_weights(network().to("meta"), tmp_path / "weights.pt")
