"""Sizes against counts by hand, published figures, and torch's own FLOP counter."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
import torchvision
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accelerando import algorithms as ours
from accelerando.algorithms.pruning.size import compression_ratio, model_size, trace_multiply_adds
from tiny import CLASSES, TOKENS, WORDS, assert_same, masked_lm, network, sentences


def size(model, *inputs, **keywords):
    return model_size(model, trace_multiply_adds(model, lambda model: model(*inputs, **keywords)))


def rows(model, *inputs, **keywords):
    """Dense and effective multiply-adds by name, of the tensors that have any."""
    tensors = size(model, *inputs, **keywords).tensors
    return {t.name: (t.multiply_adds, t.effective_multiply_adds) for t in tensors if t.multiply_adds}


@torch.no_grad()
def prune(model, seed=0, share=0.5):
    """Exact zeros, in every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameter[torch.rand(parameter.shape, generator=generator) < share] = 0
    return model


def nonzero(tensor):
    return int(torch.count_nonzero(tensor))


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 8, 6), 2 * 8 * 6),
    "stride": (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (2, 3, 8, 6), 2 * 4 * 3),
    "dilation": (nn.Conv2d(3, 8, 3, dilation=2), (2, 3, 8, 6), 2 * 4 * 2),
    "groups": (nn.Conv2d(6, 8, (3, 1), groups=2), (2, 6, 8, 6), 2 * 6 * 6),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding="same"), (1, 6, 8, 6), 8 * 6),
    "circular": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (2, 3, 8, 6), 2 * 8 * 6),
    "one sample": (nn.Conv2d(3, 8, 3), (3, 8, 6), 6 * 4),
    "1d": (nn.Conv1d(3, 8, 3), (2, 3, 10), 2 * 8),
    "3d": (nn.Conv3d(3, 8, 3), (2, 3, 4, 5, 6), 2 * 2 * 3 * 4),
    # A transposed one uses each weight once for each position of its input.
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 7), 2 * 5 * 7),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5), 2 * 5),
    "linear": (nn.Linear(4, 5), (3, 4), 3),
    "linear on sequences": (nn.Linear(4, 5), (3, 7, 4), 3 * 7),
    "linear on one": (nn.Linear(4, 5, bias=False), (4,), 1),
}


@pytest.mark.parametrize("layer,shape,uses", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_layers_by_hand(layer, shape, uses, memory):
    layer, input = prune(copy.deepcopy(layer)), torch.randn(shape)
    if len(shape) == 4:
        layer, input = layer.to(memory_format=memory), input.to(memory_format=memory)
    assert rows(layer, input) == {"weight": (uses * layer.weight.numel(), uses * nonzero(layer.weight))}
    assert size(layer, input).other_multiply_adds == 0


@pytest.mark.parametrize(
    "layer,shape",
    [
        (nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, groups=2), (2, 4, 9, 8)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 7)),
        (nn.Linear(4, 5), (2, 3, 4)),
    ],
)
def test_layers_by_their_own_arithmetic(layer, shape):
    """With ones for inputs and for the weights that are left, the outputs sum up to the number of products."""
    found = size(prune(layer), torch.randn(shape))
    ones = copy.deepcopy(layer)
    ones.weight.data, ones.bias.data = (layer.weight != 0).float(), torch.zeros_like(layer.bias)
    assert found.effective_multiply_adds == ones(torch.ones(shape)).sum()
    ones.weight.data.fill_(1)
    assert found.multiply_adds == ones(torch.ones(shape)).sum()


class Functional(nn.Module):
    def __init__(self, use, *shape):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.use = use

    def forward(self, x):
        return self.use(x, self.w)


FUNCTIONS = {
    "linear": (lambda x, w: F.linear(x, w), (5, 4), (2, 3, 4), 6),
    "matmul": (lambda x, w: x @ w, (4, 5), (2, 3, 4), 6),
    "batched": (lambda x, w: x @ w, (2, 4, 5), (2, 3, 4), 3),
    "broadcast": (lambda x, w: x[:, None] @ w, (7, 4, 5), (2, 3, 4), 6),  # every one of 7 matrices on 2 x 3 rows
    "from the left": (lambda x, w: w @ x.mT, (5, 4), (2, 3, 4), 6),
    "from the left of a matrix": (lambda x, w: w @ x[0].mT, (5, 4), (2, 3, 4), 3),
    "vector": (lambda x, w: x @ w, (4,), (2, 3, 4), 6),
    "dot": (lambda x, w: x[0, 0] @ w, (4,), (2, 3, 4), 1),
    "einsum": (lambda x, w: torch.einsum("ntc,chd->nthd", x, w), (4, 2, 5), (2, 3, 4), 6),
    "einsum of experts": (lambda x, w: torch.einsum("ntc,ecd->nted", x, w), (7, 4, 5), (2, 3, 4), 6),
    "twice": (lambda x, w: x @ w @ w, (4, 4), (2, 3, 4), 12),
    "with its transpose": (lambda x, w: x @ w @ w.T, (4, 5), (2, 3, 4), 12),
    "reshaped": (lambda x, w: x @ w.permute(1, 0, 2).reshape(4, 10), (2, 4, 5), (2, 3, 4), 6),
    "half precision": (lambda x, w: x.half() @ w.half(), (4, 5), (2, 3, 4), 6),
    "convolution": (lambda x, w: F.conv1d(x.mT, w.float().contiguous()), (5, 4, 2), (2, 3, 4), 4),
    "inference mode": (torch.inference_mode()(lambda x, w: x @ w), (4, 5), (2, 3, 4), 6),
    "with gradients": (torch.enable_grad()(lambda x, w: x @ w.T), (5, 4), (2, 3, 4), 6),
    "elementwise": (lambda x, w: F.layer_norm(x * w + w, (4,), w, w), (4,), (2, 3, 4), 0),
    "lookup": (lambda x, w: F.embedding(x.argmax(-1), w), (4, 9), (2, 3, 4), 0),
}


@pytest.mark.parametrize("use,weight,input,uses", FUNCTIONS.values(), ids=FUNCTIONS)
def test_weights_are_found_in_functions(use, weight, input, uses):
    model = prune(Functional(use, *weight))
    model.w.data.view(-1)[0] = 1e-9  # not zero, though it is in half precision
    found = size(model, torch.randn(input))
    assert found.multiply_adds == uses * model.w.numel() and found.other_multiply_adds == 0
    assert found.effective_multiply_adds == uses * nonzero(model.w)


def test_parts_of_a_weight_are_used_differently():
    model = prune(Functional(lambda x, w: (x @ w[:, 2:6] + x @ w.split(4, 1)[1], x[0] @ w.unbind(1)[0]), 4, 8))
    w, found = model.w, size(model, torch.randn(3, 4))
    assert found.multiply_adds == 3 * 16 + 3 * 16 + 4
    assert found.effective_multiply_adds == 3 * nonzero(w[:, 2:6]) + 3 * nonzero(w[:, 4:]) + nonzero(w[:, 0])


@pytest.mark.parametrize("cached", [False, True])
def test_under_autocast(cached):
    model, input = prune(network()), torch.randn(2, 3, 12, 12)
    expected = rows(model, input)
    with torch.autocast("cpu", torch.bfloat16):
        if cached:
            model(input)
        assert rows(model, input) == expected
        model(input).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_compiled_model():
    model, input = prune(nn.Sequential(network(), nn.BatchNorm1d(CLASSES))), torch.randn(2, 3, 12, 12)
    expected = rows(model, input)
    # What it is compiled to shows no operation, and returns zeros.
    compiled = torch.compile(model, backend=lambda graph, inputs: lambda *inputs: (torch.zeros(2, CLASSES),))
    for training in (False, True):  # before it is compiled, and after that
        model.train(training)
        state = copy.deepcopy(model.state_dict())
        assert rows(compiled, input) == {f"_orig_mod.{name}": counts for name, counts in expected.items()}
        assert_same(model.state_dict(), state)
        assert all(module.training == training for module in model.modules())
        assert not compiled(input).any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind):
    model = prune(kind(3, 4, num_layers=2, bidirectional=True))
    found = rows(model, torch.randn(5, 2, 3))
    assert found == {
        name: (5 * 2 * weight.numel(), 5 * 2 * nonzero(weight))
        for name, weight in model.named_parameters()
        if "weight" in name
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(training, need_weights, batch_first):
    model = prune(nn.MultiheadAttention(8, 2, batch_first=batch_first)).train(training)
    n, q, k = 3, 5, 7
    query, key = (torch.randn((n, t, 8) if batch_first else (t, n, 8)) for t in (q, k))
    packed, out = model.in_proj_weight, nonzero(model.out_proj.weight)
    own = size(model, query, query, query, need_weights=need_weights)
    assert own.multiply_adds == n * q * 4 * 64
    assert own.effective_multiply_adds == n * q * (nonzero(packed) + out)
    assert own.other_multiply_adds == n * 2 * q * q * 8
    # Here a third of the packed projection sees the queries, and two thirds the keys.
    cross = size(model, query, key, key, need_weights=need_weights)
    assert cross.multiply_adds == n * (2 * q + 2 * k) * 64
    assert cross.effective_multiply_adds == n * (q * (nonzero(packed[:8]) + out) + k * nonzero(packed[8:]))
    assert cross.other_multiply_adds == n * 2 * q * k * 8
    assert model.training == training and torch.backends.mha.get_fastpath_enabled()


def test_fused_transformer_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = prune(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    found = size(model, torch.randn(3, 5, 8))
    assert found.multiply_adds == 2 * 3 * 5 * (4 * 64 + 2 * 8 * 16)
    assert found.effective_multiply_adds == 3 * 5 * sum(nonzero(p) for p in model.parameters() if p.ndim == 2)
    assert found.other_multiply_adds == 2 * 3 * 2 * 5 * 5 * 8


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert(attention):
    batch = {name: value[:2] for name, value in sentences(4).items()}
    model = masked_lm()
    model.model.config._attn_implementation = attention
    model = prune(type(model.model)(model.model.config))
    found = size(model, **batch)
    tokens, hidden, intermediate = 2 * TOKENS, 16, 32
    assert found.multiply_adds == tokens * (4 * hidden**2 + 2 * hidden * intermediate + hidden**2 + hidden * WORDS)
    assert found.effective_multiply_adds == tokens * sum(t.nonzero for t in found.tensors if t.multiply_adds)
    assert found.other_multiply_adds == 2 * 2 * TOKENS**2 * hidden
    by_name = {tensor.name: tensor for tensor in found.tensors}
    # The vocabulary's matrix looks up for nothing; it is counted once, and multiplies in the head.
    words = by_name["bert.embeddings.word_embeddings.weight"]
    assert words.multiply_adds == tokens * words.parameters and "cls.predictions.decoder.weight" not in by_name
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_a_composer_model_takes_a_batch():
    found = size(masked_lm(), sentences(2))
    assert found.multiply_adds == 2 * TOKENS * (4 * 16**2 + 2 * 16 * 32 + 16**2 + 16 * WORDS)

    class Takes(ComposerModel):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, batch):
            return self.linear(batch[0])

        def loss(self, outputs, batch):
            raise AssertionError

    assert size(Takes(), (torch.randn(2, 4), None)).multiply_adds == 2 * 4 * 5


# Parameters and GFLOPS (which are multiply-adds) as torchvision documents them.
NETWORKS = [
    ("resnet50", 25_557_032, 4.09e9),
    ("mobilenet_v2", 3_504_872, 0.30e9),
    ("resnext50_32x4d", 25_028_904, 4.23e9),
    ("vit_b_16", 86_567_656, 17.56e9),
    ("convnext_tiny", 28_589_128, 4.46e9),
]


@pytest.mark.parametrize("name,parameters,multiply_adds", NETWORKS)
def test_published_figures(name, parameters, multiply_adds):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)().eval()
        input = torch.randn(1, 3, 224, 224)
    trace = trace_multiply_adds(model, lambda model: model(input))
    uses = {weight: uses * model.get_parameter(weight).numel() for (weight, _), uses in trace.uses.items()}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(input)
    assert sum(p.numel() for p in model.parameters()) == parameters
    total = sum(uses.values()) + trace.other
    assert total == counter.get_total_flops() // 2
    assert total == pytest.approx(multiply_adds, rel=0.01)


def test_resnet50_traced_without_computing_and_pruned():
    with torch.device("meta"):
        trace = trace_multiply_adds(torchvision.models.resnet50(), lambda model: model(torch.randn(1, 3, 224, 224)))
    model = torchvision.models.resnet50()
    dense = model_size(model, trace)
    assert dense.theoretical_speedup == pytest.approx(1) and dense.multiply_adds == pytest.approx(4.09e9, rel=0.01)
    assert dense.compression_ratio > 1  # biases of batch norm begin at zero
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[: len(module.weight) // 2] = 0
    pruned = model_size(model, trace)
    head = 2048 * 1000
    assert pruned.effective_multiply_adds == (dense.multiply_adds - head) // 2 + head
    assert pruned.theoretical_speedup == dense.multiply_adds / pruned.effective_multiply_adds
    convolutions = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert pruned.nonzero == 25_557_032 - convolutions // 2
    assert pruned.compression_ratio == compression_ratio(model) == 25_557_032 / pruned.nonzero
    # The same from a computed pass, in another memory format.
    model = model.to(memory_format=torch.channels_last)
    assert size(model, torch.randn(1, 3, 224, 224)) == pruned


def test_blur_filters_are_no_weights():
    plain = torchvision.models.resnet18()
    model, input = copy.deepcopy(plain), torch.randn(1, 3, 64, 64)
    ours.apply_blurpool(model)
    found, before = size(model, input), size(plain, input)
    assert found.multiply_adds == before.multiply_adds and found.parameters == before.parameters
    assert before.other_multiply_adds == 0
    with FlopCounterMode(display=False) as counter:
        model.eval()(input)
    assert found.other_multiply_adds == counter.get_total_flops() // 2 - found.multiply_adds > 0


def test_computed_weights_are_others():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    found = size(model, torch.randn(3, 4))
    assert (found.multiply_adds, found.other_multiply_adds, found.theoretical_speedup) == (0, 60, 1.0)


def test_shared_weights_count_once_and_multiply_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    prune(model)
    found = size(model, torch.randn(3, 4))
    assert found.parameters == 16 + 4 + 4 and [tensor.name for tensor in found.tensors] == [
        "0.weight",
        "0.bias",
        "2.bias",
    ]
    assert found.multiply_adds == 3 * 16 * 2
    assert found.effective_multiply_adds == 3 * nonzero(model[0].weight) * 2
    assert compression_ratio(model) == found.compression_ratio == 24 / sum(nonzero(p) for p in model.parameters())


@pytest.mark.parametrize("layer", [nn.Linear(4, 5), nn.Conv1d(2, 3, 1), nn.ConvTranspose1d(2, 3, 1)])
def test_a_learned_input_is_not_the_weight(layer):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.layer = nn.Parameter(torch.randn(1, 2, 4)), layer

        def forward(self, x):
            return self.layer(self.input) * x

    found = size(Learned(), torch.randn(1))
    uses = 2 if isinstance(layer, nn.Linear) else 4
    assert [tensor.multiply_adds for tensor in found.tensors] == [0, uses * layer.weight.numel(), 0]


def test_other_multiply_adds_bound_the_speedup():
    model = nn.MultiheadAttention(8, 2)
    trace = trace_multiply_adds(model, lambda model: model(*[torch.randn(5, 1, 8)] * 3))
    with torch.no_grad():
        model.in_proj_weight.zero_()
    found = model_size(model, trace)
    assert found.theoretical_speedup == 4
    assert found.theoretical_speedup_of_all == (5 * 256 + 400) / (5 * 64 + 400)


def test_nothing_left_and_nothing_there():
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = size(model, torch.randn(1, 3, 12, 12))
    assert found.compression_ratio == found.theoretical_speedup == found.theoretical_speedup_of_all == math.inf
    assert compression_ratio(model) == math.inf and found.nonzero == found.effective_multiply_adds == 0
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["compression_ratio"] is None
    assert "inf" in found.table()
    empty = size(Functional(lambda x, w: x @ w, 4, 0), torch.randn(2, 4))
    assert (empty.parameters, empty.multiply_adds, empty.tensors[0].density) == (0, 0, 0)
    nothing = size(nn.ReLU(), torch.randn(2))
    assert nothing.compression_ratio == nothing.theoretical_speedup == compression_ratio(nn.ReLU()) == 1
    assert "total" in nothing.table()


def test_one_trace_serves_every_mask():
    model, input = network(), torch.randn(2, 3, 12, 12)
    trace = trace_multiply_adds(model, lambda model: model(input))
    with torch.device("meta"):
        other = trace_multiply_adds(network(), lambda model: model(torch.empty(2, 3, 12, 12)))
    for seed in range(3):
        prune(model, seed)
        assert model_size(model, trace) == model_size(model, other) == size(model, input)
    with pytest.raises(ValueError, match=r"Linear has no 0\.weight: trace this model"):
        model_size(nn.Linear(3, 4), trace)


def test_dict_and_table():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1000))
    with torch.no_grad():
        model[0].weight[:1] = 0
    found = size(model, torch.randn(1, 3, 4, 4))
    plain = found.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["tensors"][0] == {
        "name": "0.weight",
        "shape": [4, 3, 3, 3],
        "parameters": 108,
        "nonzero": 81,
        "density": 0.75,
        "multiply_adds": 432,
        "effective_multiply_adds": 324,
    }
    assert plain["theoretical_speedup"] == 16_432 / 16_324 and plain["other_multiply_adds"] == 0
    lines = [line.split() for line in found.table().splitlines()]
    assert lines[1] == ["0.weight", "4x3x3x3", "75.00%", "108", "81", "432", "324"]
    assert lines[2] == ["3.weight", "1000x16", "100.00%", "16,000", "16,000", "16,000", "16,000"]
    assert [line[0] for line in lines[3:]] == ["others", "total", "compression"]
    for column in (2, 3, 4, 5):  # of others and total, where there is no shape
        values = [int(line[column + (len(line) == 7)].replace(",", "")) for line in lines[1:5]]
        assert sum(values[:3]) == values[3]


def test_what_does_not_divide_by_the_samples_is_exact():
    """160 nodes of 8 graphs: the head multiplies once for a graph."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 32, bias=False))
    with torch.no_grad():
        model[1].weight[:24] = 0

    def forward(model):
        nodes = model[0](torch.ones(160, 4))
        return model[1](nodes.view(8, 20, 1).mean(1))

    traced = trace_multiply_adds(model, forward)
    assert {name: uses for (name, _), uses in traced.uses.items()} == {"0.weight": 160, "1.weight": 8}
    for samples in (1, 7, 8, 160, None):
        found = model_size(model, traced._replace(samples=samples))
        assert found.theoretical_speedup == (160 * 4 + 8 * 32) / (160 * 4 + 8 * 8)
        if samples:
            assert found.multiply_adds == pytest.approx(896 / samples)
            assert [t.effective_multiply_adds for t in found.tensors] == pytest.approx([640 / samples, 64 / samples])
            assert isinstance(found.multiply_adds, int) == (896 % samples == 0)
    assert math.isnan(found.multiply_adds) and found.as_dict()["multiply_adds"] is None
    assert "nan" in found.table() and found.as_dict()["tensors"][0]["effective_multiply_adds"] is None
    unknown = model_size(model, None)
    assert math.isnan(unknown.theoretical_speedup) and math.isnan(unknown.other_multiply_adds)
    assert unknown.compression_ratio == 36 / 12


class Unruly(nn.Module):
    """Draws, keeps count in its buffers and attributes, and has a frozen part."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.norm.eval()
        self.seen, self.times, self.average, self.kept = [0], 0, torch.zeros(4), {"x": [1]}
        self.linear.also_seen = self.seen

    def eval(self):
        raise AssertionError("some merge their weights here")

    def forward(self, x):
        assert not self.training and not self.dropout.training and not torch.is_grad_enabled()
        self.calls += 1
        self.calls = self.calls + 1
        self.register_buffer("new", torch.rand(3))
        np.random.rand(), random.random()
        self.features, self.times = self.linear(x), self.times + 1
        self.seen.append(self.features), self.kept["x"].append(2), self.average.add_(self.features.mean(0))
        assert self.linear.also_seen is self.seen
        return self.dropout(self.norm(self.features))


def backends():
    attention = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    return torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled, *attention


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_changes(fails):
    model = Unruly()
    model.linear(torch.randn(2, 4)).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [copy.deepcopy(p.grad) for p in model.parameters()]
    buffers, parameters = dict(model.named_buffers()), dict(model.named_parameters())
    modes = [module.training for module in model.modules()]
    settings = backends()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)

    def forward(model):
        model(torch.randn(3, 4))
        if fails:
            raise KeyError

    if fails:
        with pytest.raises(KeyError):
            trace_multiply_adds(model, forward)
    else:
        assert model_size(model, trace_multiply_adds(model, forward)).multiply_adds == 3 * 16
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert_same(model.state_dict(), state)
    assert all(a is buffers[name] for name, a in model.named_buffers()) and len(buffers) == 4
    assert all(a is parameters[name] and a.requires_grad for name, a in model.named_parameters())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)
    assert [module.training for module in model.modules()] == modes
    assert not hasattr(model, "features") and (model.times, model.seen, model.kept) == (0, [0], {"x": [1]})
    assert not model.average.any() and model.linear.also_seen is model.seen
    assert backends() == settings and torch.is_grad_enabled()


def test_with_masks_only_the_weights_that_have_one_are_counted():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    nn.init.zeros_(model[0].bias)  # as those of batch norm
    model[0].weight.data[0] = 0.0
    traced = trace_multiply_adds(model, lambda network: network(torch.ones(1, 4)))
    assert model_size(model, traced).nonzero == 12 - 4 + 3 + 6
    assert model_size(model, traced, {}).compression_ratio == 1.0
    masks = {"2.weight": torch.tensor([[True, False, False], [True, True, False]])}
    assert model_size(model, traced, masks).nonzero == 27  # as they are, whatever the masks say
    model[2].weight.data[~masks["2.weight"]] = 0.0
    size = model_size(model, traced, masks)
    assert (size.parameters, size.nonzero) == (27, 24)
    assert size.theoretical_speedup == 18 / 15
