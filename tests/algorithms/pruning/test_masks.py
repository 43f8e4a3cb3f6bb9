import copy
import math
import random

import pytest
import torch
import torchvision
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from accelerando.algorithms.pruning import keep_highest, kept_counts, prunable_weights
from accelerando.algorithms.pruning.masks import collapsed, density, digest, packed, shuffled, size, unpacked
from tiny import network


def kept_by_sorting(scores, kept, masks=None):
    """The plain version: sort all, stably, and take the first."""
    places = [
        (name, index)
        for name, score in scores.items()
        for index in range(score.numel())
        if masks is None or masks[name].flatten()[index]
    ]
    places.sort(key=lambda place: -scores[place[0]].flatten()[place[1]].item())
    result = {name: torch.zeros(score.shape, dtype=torch.bool) for name, score in scores.items()}
    for name, index in places[:kept]:
        result[name].view(-1)[index] = True
    return result


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scores_of(seed, ties, shapes=((7, 5), (3, 4, 2, 2), (1, 1), (40,))):
    generator = torch.Generator().manual_seed(seed)
    made = {f"layer{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    return {name: (score * 2).round() if ties else score for name, score in made.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_exactly_those_that_sorting_keeps(seed, ties):
    scores = scores_of(seed, ties)
    total = sum(score.numel() for score in scores.values())
    for kept in (0, 1, 2, total // 3, total // 2, total - 1, total):
        masks = keep_highest(scores, kept)
        assert same(masks, kept_by_sorting(scores, kept))
        assert sum(map(size, masks.values())) == kept
    fewer = keep_highest(scores, total // 2)
    other = scores_of(seed + 100, ties)  # what was pruned would now be among the highest
    for kept in (0, 1, total // 4, total // 2):
        again = keep_highest(other, kept, fewer)
        assert same(again, kept_by_sorting(other, kept, fewer))
        assert not any((again[name] & ~fewer[name]).any() for name in again)


@pytest.mark.parametrize("made", ["normal", "ties", "sorted", "periodic", "constant", "one outlier"])
def test_large_layers_too_where_a_sample_finds_the_place(made):
    n = 600_000  # above what is sampled
    x = torch.randn(n, generator=torch.Generator().manual_seed(3))
    x = {
        "normal": x,
        "ties": (x * 8).round(),
        "sorted": x.sort().values,
        "periodic": torch.arange(n).remainder(4).float(),  # whose sample shows one value only
        "constant": torch.ones(n),
        "one outlier": torch.zeros(n).index_fill(0, torch.tensor([n - 1]), 1e30),
    }[made]
    scores = {"a": x[: n // 3].view(-1, 1000), "b": x[n // 3 :]}
    order = torch.argsort(x, descending=True, stable=True)
    within = {"a": torch.rand(200, 1000) < 0.3, "b": torch.rand(n - n // 3) < 0.3}
    remains = torch.cat([mask.flatten() for mask in within.values()])
    for kept in (1, n // 10, n // 2, n - 1):
        expected = torch.zeros(n, dtype=torch.bool).index_fill(0, order[:kept], True)
        masks = keep_highest(scores, kept)
        assert torch.equal(torch.cat([masks["a"].flatten(), masks["b"]]), expected)
    for kept in (1, n // 10, int(remains.sum()) - 1):
        expected = torch.zeros(n, dtype=torch.bool).index_fill(0, order[remains[order]][:kept], True)
        masks = keep_highest(scores, kept, within)
        assert torch.equal(torch.cat([masks["a"].flatten(), masks["b"]]), expected)


def test_memory_formats_and_types_make_no_difference():
    score = torch.randn(8, 4, 3, 3).mul(2).round()
    expected = keep_highest({"w": score}, 100)["w"]
    last = score.to(memory_format=torch.channels_last)
    assert torch.equal(keep_highest({"w": last}, 100)["w"], expected)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(keep_highest({"w": score.to(dtype)}, 100)["w"], expected)


def test_layer_by_layer():
    scores = scores_of(0, ties=False)
    sizes = {name: score.numel() for name, score in scores.items()}
    each = kept_counts(sizes, 0.5, "layerwise")
    assert each == {"layer0": 18, "layer1": 24, "layer2": 1, "layer3": 20}  # 17.5 and 0.5 are rounded up
    masks = keep_highest(scores, each)
    for name, score in scores.items():
        assert torch.equal(masks[name], kept_by_sorting({name: score}, each[name])[name])
    assert kept_counts(sizes, 0.5) == 62
    given = kept_counts(sizes, {"layer[01]": 0.1, "*3": 0.25, "layer1": 0.9})  # the first pattern that fits
    assert given == {"layer0": 4, "layer1": 5, "layer2": 1, "layer3": 10}
    with pytest.raises(ValueError, match=r"'conv\*'; there are layer0, layer1, layer2 and 1 more"):
        kept_counts(sizes, {"conv*": 0.5})


def test_what_cannot_be_ranked_or_kept_is_refused_by_name():
    scores = scores_of(0, ties=False)
    masks = keep_highest(scores, 10)
    with pytest.raises(ValueError, match=r"layer0.*11 weights cannot be kept of the 10"):
        keep_highest(scores, 11, masks)
    with pytest.raises(ValueError, match="-1 weights"):
        keep_highest(scores, -1)
    for bad in (math.nan, math.inf, -math.inf):
        broken = copy.deepcopy(scores)
        broken["layer1"].view(-1)[3] = bad
        with pytest.raises(ValueError, match="scores of layer1 are not finite"):
            keep_highest(broken, 10)
    large = {"w": torch.full((4,), 3e38)}  # whose sum is infinite
    assert size(keep_highest(large, 2)["w"]) == 2


def test_prunable_by_default():
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.Conv3d(1, 1, 1), nn.BatchNorm2d(2))
    model += nn.Sequential(
        nn.Embedding(5, 4), nn.LayerNorm(4), nn.GRU(4, 4), nn.Linear(4, 3), nn.MultiheadAttention(4, 2)
    )
    names = ["0.weight", "1.weight", "2.weight", "7.weight", "8.in_proj_weight", "8.out_proj.weight"]
    assert [*prunable_weights(model)] == names
    assert [*prunable_weights(model, exclude=["8.*"])] == names[:4]
    assert [*prunable_weights(model, include=["?.weight"], exclude=["0*"])] == names[1:4]
    assert [*prunable_weights(network(), classifier=False)] == ["0.weight", "3.weight", "6.weight"]
    assert [*prunable_weights(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))] == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ]
    for patterns, message in ((["conv*"], "called 'conv\\*'; there are 0.weight"), (["0.bias"], "called '0.bias'")):
        with pytest.raises(ValueError, match=message):
            prunable_weights(model, include=patterns)
        with pytest.raises(ValueError, match=message):
            prunable_weights(model, exclude=patterns)
    with pytest.raises(ValueError, match="BatchNorm1d has nothing to prune"):
        prunable_weights(nn.BatchNorm1d(3))
    with pytest.raises(
        ValueError, match=r"exclude leaves nothing to prune of 0\.weight, 1\.weight, 2\.weight and 3 more"
    ):
        prunable_weights(model, exclude=["*"])


def test_shared_weights_count_once_and_those_of_embeddings_never():
    model = nn.ModuleDict(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "words": nn.Embedding(9, 4), "out": nn.Linear(4, 9)}
    )
    model["b"].weight = model["a"].weight
    model["out"].weight = model["words"].weight
    assert [*prunable_weights(model)] == ["a.weight"]
    assert [*prunable_weights(model, classifier=False)] == ["a.weight"]  # the last linear layer is the tied one


def test_known_networks():
    weights = prunable_weights(torchvision.models.resnet50())
    assert len(weights) == 54 and sum(weight.numel() for weight in weights.values()) == 25_502_912
    with torch.device("meta"):
        config = BertConfig()
        tickets = {"include": ["*encoder.layer.*", "*pooler.*"]}
        weights = prunable_weights(BertForSequenceClassification(config), **tickets)
        assert len(weights) == 73 and sum(weight.numel() for weight in weights.values()) == 85_524_480
        names = [*prunable_weights(BertForMaskedLM(config))]  # whose decoder is tied to the embedding
    assert len(names) == 73 and names[-1] == "cls.predictions.transform.dense.weight"


def test_shuffled_masks_keep_each_layers_density():
    masks = keep_highest(scores_of(0, ties=False, shapes=((30, 20), (16, 3, 3, 3))), 300)
    other, again, third = (shuffled(masks, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert same(other, again) and not same(other, masks) and not same(other, third)
    assert [size(mask) for mask in other.values()] == [size(mask) for mask in masks.values()]
    both = size(other["layer0"] & masks["layer0"])
    expected = size(masks["layer0"]) ** 2 / 600  # of two independent masks
    assert abs(both - expected) < 40 and not torch.equal(other["layer0"], masks["layer0"])


def test_packed_masks_are_one_bit_per_weight_and_come_back():
    masks = {"a": torch.rand(13, 7) < 0.5, "b": torch.rand(1) < 0.5, "c": torch.rand(4, 2, 3, 3) < 0.1}
    state = packed(masks)
    assert state["bits"].dtype == torch.uint8 and state["bits"].shape == (21,)  # of 91 + 1 + 72 weights
    assert same(unpacked(state), masks)
    assert unpacked(packed({})) == {}
    assert density(masks) == sum(mask.sum().item() for mask in masks.values()) / 164


def test_a_digest_tells_masks_apart():
    masks = {"a": torch.rand(13, 7) < 0.5, "b": torch.rand(24) < 0.5}
    changed = {name: mask.clone() for name, mask in masks.items()}
    changed["b"][23] ^= True
    renamed = {"a": masks["a"], "c": masks["b"]}
    reshaped = {"a": masks["a"], "b": masks["b"].view(4, 6)}
    assert len({digest(each) for each in (masks, changed, renamed, reshaped, {})}) == 5
    assert digest(dict(reversed(masks.items()))) == digest(masks)
    last = {"w": (torch.rand(4, 3, 2, 2) < 0.5)}
    assert digest({"w": last["w"].to(memory_format=torch.channels_last)}) == digest(last)


def test_damaged_bits_are_refused():
    for damage in ("bit", "shape", "name", "length"):
        state = packed({"a": torch.rand(13, 7) < 0.5, "b": torch.rand(24) < 0.5})
        match damage:
            case "bit":
                state["bits"][random.Random(0).randrange(14)] ^= 1
            case "shape":
                state["shapes"]["a"] = [7, 13]
            case "name":
                state["shapes"]["c"] = state["shapes"].pop("b")
            case "length":
                state["bits"] = state["bits"][:-1]
        with pytest.raises(ValueError, match="digest does not fit"):
            unpacked(state)


def test_layer_collapse_is_found():
    masks = {"a": torch.zeros(3, 3, dtype=torch.bool), "b": torch.eye(3, dtype=torch.bool)}
    assert collapsed(masks) == ["a"]
