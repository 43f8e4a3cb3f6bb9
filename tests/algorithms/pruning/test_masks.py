import copy
import math
import random

import numpy as np
import pytest
import torch
import torchvision
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D as HuggingFaceConv1D

from accelerando.algorithms.pruning import TiedScoresWarning, keep_highest, kept_counts, prunable_weights
from accelerando.algorithms.pruning.masks import (
    collapsed,
    density,
    digest,
    packed,
    shuffled,
    size,
    unpacked,
)
from accelerando.algorithms.pruning.prunable import left_dense
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


@pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.TiedScoresWarning")
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


@pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.TiedScoresWarning")
@pytest.mark.parametrize("made", ["normal", "ties", "sorted", "periodic", "outliers"])
def test_large_layers_too_where_a_sample_finds_the_place(made):
    n = 600_000  # above what is sampled
    x = torch.randn(n, generator=torch.Generator().manual_seed(3))
    x = {
        "normal": x,
        "ties": (x * 8).round(),
        "sorted": x.sort().values,
        "periodic": torch.arange(n).remainder(4).float(),  # whose sample shows one value only
        "outliers": torch.zeros(n).index_fill(0, torch.arange(0, n, 2000), 1e30),
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


@pytest.mark.filterwarnings("ignore::accelerando.algorithms.pruning.TiedScoresWarning")
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
    for kept in (0.25, {"layer0": 0.25, "layer1": 3}, "all"):
        with pytest.raises(ValueError, match="kept must be a number of weights, or one by layer, got"):
            keep_highest(scores, kept)
    for name, mask in keep_highest(scores, np.int64(10)).items():
        assert torch.equal(mask, masks[name])
    with pytest.raises(ValueError, match=r"layer0.*11 weights cannot be kept of the 10"):
        keep_highest(scores, 11, masks)
    with pytest.raises(ValueError, match="-1 weights"):
        keep_highest(scores, -1)
    for bad in (math.nan, math.inf, -math.inf):
        broken = copy.deepcopy(scores)
        broken["layer1"].view(-1)[3] = bad
        with pytest.raises(ValueError, match="scores of layer1 are not finite"):
            keep_highest(broken, 10)
    large = {"w": torch.tensor([3.0, 2.9, 2.8, 2.7]) * 1e38}  # whose sum is infinite
    assert size(keep_highest(large, 2)["w"]) == 2


Z, ONES, SOME = torch.zeros(4, 4), torch.ones(4, 4), torch.arange(1.0, 17).view(4, 4)
SPARSE = torch.cat([torch.zeros(90), torch.arange(1.0, 11)])
UNDECIDED = {
    "a layer without scores, in part": ({"a": Z, "b": SOME}, 20, "a"),
    "each layer": ({"a": Z, "b": SOME}, {"a": 8, "b": 8}, "a"),
    "several, each": ({"a": Z, "b": SOME, "c": ONES}, {"a": 8, "b": 8, "c": 1}, "a, c"),
    "one whole, another not": ({"a": Z, "b": Z.clone()}, 16, "a, b"),
    "scores below 0 too": ({"a": Z, "b": -SOME}, 5, "a"),
    "negative zeros": ({"a": -Z, "b": SOME}, 20, "a"),
    "equal, not 0": ({"a": 3 * ONES, "b": SOME + 20}, 20, "a"),
    "between others": ({"b": SOME, "a": 3.5 * ONES}, 20, "a"),
}


@pytest.mark.parametrize("scores,kept,named", UNDECIDED.values(), ids=UNDECIDED)
def test_where_nothing_but_ties_decides_is_refused(scores, kept, named):
    with pytest.raises(ValueError, match=f"nothing but ties decides which weights of {named} are kept"):
        keep_highest(scores, kept)


def test_layers_without_scores_that_are_emptied_or_kept_are_named():
    with pytest.warns(TiedScoresWarning, match=r"all are 0\) are emptied: a, c;"):
        masks = keep_highest({"a": Z, "b": SOME, "c": Z.clone()}, 10)
    assert [size(mask) for mask in masks.values()] == [0, 10, 0]
    with pytest.warns(TiedScoresWarning, match=r"are kept whole: a;"):
        masks = keep_highest({"a": Z, "b": -SOME}, 20)
    assert [size(mask) for mask in masks.values()] == [16, 4]
    # Whatever was said of them before is no news; nor is what decides nothing.
    assert size(keep_highest({"a": Z, "b": SOME}, 5, {"a": Z != 0, "b": SOME > 3})["b"]) == 5
    assert size(keep_highest({"a": Z, "b": SOME}, 32)["a"]) == 16
    assert size(keep_highest({"a": Z, "b": SOME}, {"a": 16, "b": 8})["a"]) == 16
    by_layer = keep_highest({"a": ONES, "b": 2 * ONES, "c": 3 * ONES}, 32)  # a score for each layer
    assert [size(mask) for mask in by_layer.values()] == [0, 16, 16]
    hidden = {"a": torch.where(SOME > 8, 0.0, 7.0), "b": SOME}  # what is left of it has none
    with pytest.warns(TiedScoresWarning, match="are emptied: a;"):
        keep_highest(hidden, 5, {"a": SOME > 8, "b": SOME > 3})


def test_a_network_with_many_zeros_is_pruned_and_told_how_much_chance_decides():
    with pytest.warns(
        TiedScoresWarning, match="30 of the 50 weights kept are chosen by their index alone, of 180 of eq"
    ):
        masks = keep_highest({"a": SPARSE, "b": SPARSE.clone()}, 50)
    assert same(masks, kept_by_sorting({"a": SPARSE, "b": SPARSE}, 50))
    with pytest.warns(TiedScoresWarning, match="80 of the 100 weights"):
        keep_highest({"a": SPARSE, "b": SPARSE.clone()}, {"a": 50, "b": 50})
    left = {"a": SPARSE > 4, "b": SPARSE > 5}
    assert size(keep_highest({"a": SPARSE, "b": SPARSE}, 8, left)["a"]) == 4  # two of one score are no news
    with pytest.warns(TiedScoresWarning, match="are emptied: b;"):
        keep_highest({"a": SPARSE, "b": torch.zeros(9)}, 10)


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


class Net(nn.Module):
    """The head comes first, and a layer that nothing uses last."""

    def __init__(self, end=lambda net, hidden: net.head(hidden)):
        super().__init__()
        self.head, self.body, self.more, self.unused = (
            nn.Linear(8, 3),
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.Linear(9, 9),
        )
        self.words, self.raw, self.end = nn.Embedding(5, 8), nn.Parameter(torch.randn(5, 8)), end

    def forward(self, x):
        self.hidden = torch.relu(self.more(self.body(x)))
        return self.end(self, self.hidden)


class Batches(Net):
    def forward(self, batch):
        x, _ = batch
        return super().forward(x)


class OnBert(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.bert = nn.Linear(768, 5), BertModel(BertConfig(num_hidden_layers=1))

    def forward(self, ids, mask):
        return self.out(self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])


VISION, SEGMENTATION = torchvision.models, torchvision.models.segmentation
NO = {"weights": None, "weights_backbone": None}
BERT = BertConfig(num_hidden_layers=1, num_labels=3)
HEADS = {
    "squeezenet": (VISION.squeezenet1_1, ["classifier.1.weight"]),
    "in composer": (
        lambda: ComposerClassifier(VISION.squeezenet1_1(), num_classes=1000),
        ["module.classifier.1.weight"],
    ),
    "deeplab": (
        lambda: SEGMENTATION.deeplabv3_resnet50(**NO, aux_loss=True),
        ["classifier.4.weight", "aux_classifier.4.weight"],
    ),
    "googlenet": (
        lambda: VISION.googlenet(init_weights=False).eval(),
        ["aux1.fc2.weight", "aux2.fc2.weight", "fc.weight"],
    ),
    "vit": (VISION.vit_b_32, ["heads.head.weight"]),
    "convnext": (VISION.convnext_tiny, ["classifier.2.weight"]),
    "bert": (lambda: BertForSequenceClassification(BERT), ["classifier.weight"]),
    "bert mlm": (lambda: BertForMaskedLM(BERT), []),  # whose decoder is an embedding
    "electra mlm": (lambda: ElectraForMaskedLM(ElectraConfig(num_hidden_layers=1)), []),
    "gpt2": (lambda: GPT2ForSequenceClassification(GPT2Config(n_layer=1)), ["score.weight"]),
    "on bert": (OnBert, ["out.weight"]),
    "head first": (Net, ["head.weight"]),
    "batches": (Batches, ["head.weight"]),
    "embedding": (lambda: Net(lambda net, hidden: F.linear(hidden, net.words.weight)), []),
    "two": (
        lambda: Net(lambda net, hidden: {"a": net.head(hidden), "b": net.unused(hidden[..., :3])}),
        ["head.weight", "unused.weight"],
    ),
    "norm after": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)), ["1.weight"]),
}


@pytest.mark.parametrize("make,heads", HEADS.values(), ids=HEADS)
def test_without_the_layers_that_produce_the_outputs(make, heads):
    with torch.device("meta"):
        model = make()
    before, attributes = [module.training for module in model.modules()], [*vars(model)]
    state = torch.get_rng_state()
    found = prunable_weights(model, classifier=False)
    assert [name for name in prunable_weights(model) if name not in found] == heads
    assert [module.training for module in model.modules()] == before and [*vars(model)] == attributes
    assert torch.equal(torch.get_rng_state(), state)


UNKNOWN = {
    "residual": (lambda: Net(lambda net, hidden: hidden + net.more(hidden)), "come from more as well as from"),
    "control flow": (lambda: Net(lambda net, x: net.head(x if x.sum() > 0 else -x)), "cannot be traced"),
    "recurrent": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4)), "come from 1, which is no linear layer"),
    "no head": (lambda: BertModel(BERT), "outside of its base model it has no layer"),
    "two heads": (lambda: BertForPreTraining(BERT), "Beside its head for words it has cls.seq_relationship.weight"),
    "other forward": (lambda: type("Mine", (BertForSequenceClassification,), {})(BERT), "Mine is no class of transf"),
}


@pytest.mark.parametrize("make,why", UNKNOWN.values(), ids=UNKNOWN)
def test_where_the_outputs_come_from_is_never_guessed(make, why):
    model = make()
    with pytest.raises(ValueError, match=f"classifier=False: which layer .*{why}.*exclude=") as caught:
        prunable_weights(model, classifier=False)
    assert len(str(caught.value).splitlines()) == 1


def test_classes_are_known_by_themselves():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1)

        def forward(self, x):
            return self.conv(x)

    own = type("Conv1D", (nn.Conv1d,), {})
    model = nn.Sequential(Conv1D(), own(2, 2, 1), HuggingFaceConv1D(3, 2), nn.Flatten(), nn.Linear(6, 4), own(1, 1, 1))
    model[5].forward = lambda x: x  # registered last
    assert [*prunable_weights(model)] == ["0.conv.weight", "1.weight", "2.weight", "4.weight", "5.weight"]
    assert [*prunable_weights(model[:5], classifier=False)] == ["0.conv.weight", "1.weight", "2.weight"]


def test_include_reaches_any_parameter_that_it_names():
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4), "head": nn.Linear(4, 2), "words": nn.Embedding(5, 3)})
    model["experts"] = nn.ParameterDict({"up": torch.randn(2, 3, 4), "up_bias": torch.randn(2, 4)})
    assert [*prunable_weights(model)] == ["head.weight"]
    for include, names in {
        ("*weight_hh*",): ["lstm.weight_hh_l0"],
        ("lstm.*",): ["lstm.weight_ih_l0", "lstm.weight_hh_l0"],  # no biases
        ("*weight*",): ["head.weight"],  # which fits one of the default ones
        ("*",): ["head.weight"],
        ("*experts*", "head*"): ["head.weight", "experts.up"],
        ("words*",): ["words.weight"],
    }.items():
        assert [*prunable_weights(model, include)] == names
    assert [*prunable_weights(model, ["lstm.*"], ["*_ih_*"])] == ["lstm.weight_hh_l0"]
    with pytest.raises(ValueError, match="called '\\*bias\\*'"):
        prunable_weights(model, ["*bias*"])
    with pytest.raises(ValueError, match="LSTM has nothing to prune"):
        prunable_weights(model["lstm"])
    with torch.device("meta"):
        assert len(prunable_weights(BertForSequenceClassification(BertConfig()), ["*bert.encoder.*"])) == 72
    assert left_dense(model, prunable_weights(model))[:2] == ["lstm.weight_hh_l0", "lstm.weight_ih_l0"]
    model = network()
    assert left_dense(model, prunable_weights(model)) == []


def test_shared_weights_count_once_and_those_of_embeddings_never():
    model = nn.ModuleDict(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "words": nn.Embedding(9, 4), "out": nn.Linear(4, 9)}
    )
    model["b"].weight = model["a"].weight
    model["out"].weight = model["words"].weight
    assert [*prunable_weights(model)] == ["a.weight"]


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
        state = packed({"a": torch.rand(13, 7) < 0.5, "b": torch.ones(24, dtype=torch.bool)})
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
