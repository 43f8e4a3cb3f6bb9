"""Lines between states: the ends bit for bit, counters that are never averaged, layers, masks, distances, bad input."""

import math

import pytest
import torch
from torch import nn

from accelerando.algorithms import apply_masks, distance, distances, interpolate, linear_path, support_mismatch


def network(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    for _ in range(seed + 1):
        model(torch.randn(8, 1, 4, 4, dtype=dtype))
    return {name: value.clone() for name, value in model.state_dict().items()}


A, B, C = (network(seed) for seed in (1, 2, 3))


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[n].view(torch.uint8) if a[n].dim() else a[n], b[n].view(torch.uint8) if b[n].dim() else b[n])
        for n in a
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_between_the_ends_floats_are_averaged_and_counters_are_not(dtype):
    a, b = network(1, dtype), network(2, dtype)
    before = {name: value.clone() for name, value in a.items()}
    for alpha in (0.25, 0.5, 0.8, -0.5, 1.5):
        found = interpolate(a, b, alpha)
        assert [*found] == [*a]
        assert found["1.num_batches_tracked"] == (2 if alpha < 0.5 else 3)
        for name in a.keys() - {"1.num_batches_tracked"}:
            assert found[name].dtype == dtype
            expected = (1 - alpha) * a[name].double() + alpha * b[name].double()
            torch.testing.assert_close(found[name].double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)
    assert same(a, before)


def test_the_ends_come_out_bit_for_bit_whatever_they_hold():
    a, b = {**A}, {**B}
    a["0.bias"], b["0.bias"] = torch.tensor([-0.0, math.inf, math.nan, 3e38]), torch.tensor([1.0, -math.inf, 2, -3e38])
    assert same(interpolate(a, b, 0), a) and same(interpolate(a, b, 1), b)
    assert same(interpolate(a, b, 0.0), a) and same(interpolate(a, b, 1.0), b)
    line = linear_path(a, a)
    for alpha in (0.1, 0.5, 0.7):
        assert torch.equal(line(alpha)["3.weight"], a["3.weight"])


def test_complex_numbers_are_averaged_and_channels_last_is_kept():
    a = {"w": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "z": torch.randn(3, dtype=torch.complex64)}
    b = {name: torch.randn_like(value) for name, value in a.items()}
    found = interpolate(a, b, 0.25)
    assert found["w"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found["z"], 0.75 * a["z"] + 0.25 * b["z"])


def test_what_the_path_was_made_from_may_change_later():
    layer = nn.Linear(3, 2)
    start = {name: torch.zeros_like(value) for name, value in layer.state_dict().items()}
    end = {name: value.clone() for name, value in layer.state_dict().items()}
    line = linear_path(start, layer.state_dict())
    with torch.no_grad():
        layer.weight.zero_()
    assert same(line(1), end) and same(interpolate(start, end, 0.3), line(0.3))
    assert not line(0.3)["weight"].requires_grad


def test_some_layers_move_and_the_others_are_fixed():
    for fixed in (None, A, C):
        found = interpolate(A, B, 0.25, include=["0.*", "1.*"], exclude=["*.bias"], fixed=fixed)
        held = B if fixed is None else fixed
        for name, value in found.items():
            if name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
                assert torch.equal(value, torch.lerp(A[name], B[name], 0.25)), name
            elif name != "1.num_batches_tracked":
                assert torch.equal(value, held[name]), name
        assert found["1.num_batches_tracked"] == A["1.num_batches_tracked"]  # which moves, with the layer
    # A layer reset to where it began, in the trained network.
    reset = interpolate(A, B, 0, include=["3.*"])
    assert same(reset, {name: (A if name.startswith("3.") else B)[name] for name in A})


def pruned(state, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(state[name].shape, generator=generator) < 0.5 for name in ("0.weight", "3.weight")}
    state = {name: value.clone() for name, value in state.items()}
    apply_masks(state, masks)
    return state, masks


def test_pruned_networks_of_one_support_stay_in_it():
    a, masks = pruned(A, 0)
    b, _ = pruned(B, 0)
    assert support_mismatch(a, b) == [] and support_mismatch(a, b, masks) == []
    for alpha in (0, 0.3, 1):
        found = interpolate(a, b, alpha, masks=masks)
        for name, mask in masks.items():
            assert torch.equal(found[name] != 0, mask)


def test_other_supports_are_told_and_refused():
    a, masks = pruned(A, 0)
    b, others = pruned(B, 1)
    assert support_mismatch(a, b) == ["0.weight", "3.weight"]
    assert support_mismatch(a, b, masks) == support_mismatch(a, b, others) == ["0.weight", "3.weight"]
    assert support_mismatch(a, B, {"3.weight": masks["3.weight"]}) == ["3.weight"]
    with pytest.raises(ValueError, match=r"b is not zero where the masks prune, in 0\.weight, 3\.weight.*apply_masks"):
        linear_path(a, b, masks=masks)
    same_support, _ = pruned(B, 0)
    with pytest.raises(ValueError, match="fixed is not zero where the masks prune"):
        linear_path(a, same_support, include=["0.*"], fixed=C, masks=masks)
    with pytest.raises(ValueError, match=r"no weight has the name and the shape of the masks of 3\.weight, fc"):
        linear_path(a, b, masks={"3.weight": torch.ones(2, 2, dtype=torch.bool), "fc": masks["0.weight"]})


def test_distances_are_those_of_the_weights():
    weights = [name for name in A if name.startswith(("0.", "3.")) or name in ("1.weight", "1.bias")]
    by_name = {name: (A[name] - B[name]).double().norm().item() for name in weights}
    found = distances(A, B)
    assert [*found] == weights and found == pytest.approx(by_name, rel=1e-6)
    flat = torch.cat([(A[name] - B[name]).flatten() for name in weights])
    assert distance(A, B) == pytest.approx(flat.double().norm().item(), rel=1e-6)
    assert distance(A, B, include=["3.*"]) == pytest.approx(math.hypot(by_name["3.weight"], by_name["3.bias"]))
    moved = (A["1.running_var"] - B["1.running_var"]).double().norm().item()
    assert distance(A, B, ["1.running_var"], []) == pytest.approx(moved)
    assert distance(A, A) == 0
    assert distance({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}) == 5  # which has no batch norm


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


BAD = {
    "a name too few": (A, without(B, "3.bias"), {}, "only one of them has 3.bias"),
    "a name too many": (without(A, "3.bias"), B, {}, "only one of them has 3.bias"),
    "shapes": (A, B | {"3.weight": torch.ones(3, 15)}, {}, r"differ in shape, 3.weight has \(3, 16\) and \(3, 15\)"),
    "precision": (A, B | {"3.bias": torch.ones(3).double()}, {}, "differ in type, 3.bias has float32 and float64"),
    "a counter of floats": (A, B | {"1.num_batches_tracked": torch.tensor(2.0)}, {}, "has int64 and float32"),
    "no tensor": (A | {"extra": {"a": 1}}, B | {"extra": {"a": 1}}, {}, "must hold tensors alone: extra"),
    "unknown layer": (A, B, {"include": ["4.*"]}, r"no tensor is called '4\.\*'; there are 0.weight, 0.bias"),
    "unknown layer left out": (A, B, {"exclude": ["fc"]}, "no tensor is called 'fc'"),
    "nothing left": (A, B, {"exclude": ["*"]}, "leave nothing of 0.weight"),
    "fixed without patterns": (A, B, {"fixed": C}, "fixed must be given beside include or exclude alone"),
    "fixed of another network": (A, B, {"include": ["0*"], "fixed": without(C, "3.bias")}, "only one of them has 3.b"),
    "alpha": (A, B, {"alpha": math.nan}, "alpha must be a finite number, got nan"),
}


@pytest.mark.parametrize("a,b,options,message", BAD.values(), ids=BAD)
def test_ends_that_do_not_fit_are_refused_in_one_line(a, b, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        interpolate(a, b, **{"alpha": 0.5, **options})
    assert len(str(caught.value).splitlines()) == 1
