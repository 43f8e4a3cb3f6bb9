import os
import random
import threading
from collections import Counter, UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from accelerando.algorithms.pruning.criteria import gradient_magnitude, grasp, magnitude, random_scores, snip, synflow
from accelerando.algorithms.pruning.samples import class_balanced, samples_in

CRITERIA = [gradient_magnitude, snip, grasp]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def smooth(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def rows(samples=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (samples,), generator=generator)


def part(batch, start, end):
    return tuple(tensor[start:end] for tensor in batch)


def names_of(model):
    return [name for name, parameter in model.named_parameters() if parameter.dim() > 1]


def set_generators(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def assert_scores(scores, expected, rtol=1e-5):
    assert [*scores] == [*expected]
    for name, score in scores.items():
        assert not score.requires_grad and score.shape == expected[name].shape
        torch.testing.assert_close(score.double(), expected[name].double(), rtol=rtol, atol=1e-12)


def plain(model, batch, temperature=1.0):
    """Gradient, gradient of a mask and Hessian times gradient, from an explicit Hessian of all weights together."""
    names = names_of(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes, shapes = [weights[name].numel() for name in names], [weights[name].shape for name in names]

    def split(vector):
        return [piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]

    def of_weights(vector):
        changed = {**weights, **dict(zip(names, split(vector), strict=True))}
        return F.cross_entropy(torch.func.functional_call(model, changed, batch[0]) / temperature, batch[1])

    def of_masks(vector):
        return of_weights(vector * flat)

    flat = torch.cat([weights[name].flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(of_weights, flat)
    hessian = torch.autograd.functional.hessian(of_weights, flat)
    masks = torch.autograd.functional.jacobian(of_masks, torch.ones_like(flat))
    found = {gradient_magnitude: gradient.abs(), snip: masks.abs(), grasp: flat * (hessian @ gradient)}
    return {criterion: dict(zip(names, split(vector), strict=True)) for criterion, vector in found.items()}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_like_the_formula(criterion):
    model, batch = smooth(), rows()
    scores = criterion(model, names_of(model), [batch], loss)
    assert all(score.dtype == torch.float32 for score in scores.values())
    assert_scores(scores, plain(model, batch)[criterion])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_unequal_batches_count_by_their_samples(criterion):
    model, batch = smooth(), rows()
    names = names_of(model)
    whole = criterion(model, names, [batch], loss)
    pieces = [part(batch, 0, 5), part(batch, 5, 6), part(batch, 6, 12)]
    assert_scores(criterion(model, names, iter(pieces), loss), whole)  # of an iterator, that can be read once
    assert_scores(criterion(model, names, pieces, loss, samples=lambda batch: len(batch[1])), whole)
    with pytest.raises(AssertionError):
        assert_scores(criterion(model, names, pieces, loss, samples=lambda batch: 1), whole)


def test_magnitude_and_random():
    weights = {"a": nn.Parameter(torch.tensor([-2.0, 0.0, 1.0])), "b": torch.ones(2, 3, dtype=torch.float64)}
    assert_scores(magnitude(weights), {"a": torch.tensor([2.0, 0.0, 1.0]), "b": torch.ones(2, 3)})
    first, again = (random_scores(weights, torch.Generator().manual_seed(3)) for _ in range(2))
    assert_scores(first, again, rtol=0)
    generator = torch.Generator().manual_seed(3)
    scores = torch.cat([random_scores({"w": torch.empty(100, 100)}, generator)["w"] for _ in range(2)]).flatten()
    assert len(scores.unique()) > 19900 and scores.min() >= 0 and scores.max() < 1
    assert torch.allclose(torch.histc(scores, 4, 0, 1), torch.tensor(5000.0), atol=300)
    with pytest.raises(ValueError, match="magnitude: scores of b are not finite"):
        magnitude({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})


class Quadratic(nn.Module):
    def __init__(self, hessian, weight):
        super().__init__()
        self.hessian = torch.tensor(hessian, dtype=torch.float64)
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def gradient_norm_without(self, index):
        kept = self.weight.detach().clone()
        kept[index] = 0
        return (self.hessian @ kept).square().sum()


def half_form(model, batch):
    return model.weight @ model.hessian @ model.weight / 2 * batch.mean()


@pytest.mark.parametrize(
    ("hessian", "weight"),
    [
        ([[3.0, 0.0], [0.0, 1.0]], [1.0, -1.0]),  # scores 9 and 1
        ([[2.0, -1.0], [-1.0, 1.0]], [0.3, 0.4]),  # scores of both signs
        ([[-4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], [0.5, 0.3, -0.7]),
    ],
)
def test_grasp_keeps_the_weights_that_the_gradient_comes_from(hessian, weight):
    model = Quadratic(hessian, weight)
    score = grasp(model, ["weight"], [torch.ones(2)], half_form)["weight"]
    h, w = model.hessian, model.weight.detach()
    torch.testing.assert_close(score.double(), w * (h @ h @ w), rtol=1e-6, atol=0)
    # By the opposite sign the first to go would be the one without which there is least gradient.
    without = torch.stack([model.gradient_norm_without(index) for index in range(len(w))])
    assert score.argmax() == without.argmin() and score.argmin() == without.argmax()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_the_loss_does_not_depend_on_or_depends_on_linearly(criterion):
    model = nn.ModuleDict({"used": nn.Linear(3, 1, bias=False), "unused": nn.Linear(3, 3)})
    scores = criterion(model, ["unused.weight", "used.weight"], [torch.ones(4, 3)], lambda m, x: m["used"](x).mean())
    assert not scores["unused.weight"].any() and bool(scores["used.weight"].any()) == (criterion is not grasp)
    alone = criterion(model, ["used.weight"], [torch.ones(4, 3)], lambda m, x: m["used"](x).mean())
    assert torch.equal(alone["used.weight"], scores["used.weight"])


def test_temperature_is_the_losss():
    model, batch = smooth(), rows()

    def at(temperature):
        def hot_loss(model, batch):
            return F.cross_entropy(model(batch[0]) / temperature, batch[1])

        scores = grasp(model, names_of(model), [batch], hot_loss)
        assert_scores(scores, plain(model, batch, temperature)[grasp])
        return torch.cat([score.flatten() for score in scores.values()]).argsort().tolist()

    assert at(1) != at(200)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(3, 12, dtype=torch.float64)

    def forward(self, x):
        q, k, v = self.qkv(x.unfold(0, 6, 6).transpose(1, 2)).chunk(3, -1)
        return F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in (q, k, v))).mean((1, 2))[:, :2]


def test_grasp_of_fused_attention():
    torch.manual_seed(0)
    model, (x, y) = Attention(), rows()
    batch = x, y[:2]
    with sdpa_kernel(SDPBackend.MATH):
        expected = plain(model, batch)[grasp]
    assert_scores(grasp(model, ["qkv.weight"], [batch], loss), expected)


class Everything(nn.Module):
    """Batch norm, dropout, a frozen layer, one in evaluation mode, gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.body[0].weight.requires_grad_(False)
        self.norm.eval()
        self.head.weight.grad = torch.ones(2, 4)

    def forward(self, x):
        # The other generators, as an augmentation in the model would draw from.
        noise = random.random() + np.random.rand()
        return self.head(self.norm(self.body(x)).mean((2, 3))) + noise * torch.tensor([1.0, 0.0])


def images(samples=6):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, 1, 8, 8, generator=generator), torch.arange(samples) % 2


def everything_about(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
    return state, (modes, parameters, generators(), torch.is_grad_enabled())


def assert_unchanged(model, before):
    state, rest = everything_about(model)
    assert rest == before[1] and state.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())


def flow(model, names, batches, loss):
    return synflow(model, names, batches[0][0], lambda model, x: model(x) + 0 * loss(model, batches[0]))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_changes_and_chance_repeats(criterion):
    model, names = Everything(), names_of(Everything())
    batches = [images(), images(4)]
    set_generators(1)
    before = everything_about(model)
    first = criterion(model, names, batches, loss)
    assert_unchanged(model, before)
    set_generators(2)
    model.eval()
    with torch.no_grad():
        again = criterion(model, names, batches, loss)
        assert not torch.is_grad_enabled()
    assert_scores(first, again, rtol=0)
    assert first["body.0.weight"].abs().min() > 0  # the frozen one
    other = criterion(model, names, batches, loss, seed=1)
    assert not torch.equal(other["head.weight"], first["head.weight"])


@pytest.mark.parametrize("criterion", [*CRITERIA, flow])
def test_nothing_changes_in_an_error(criterion):
    model = Everything().double()
    batch = images()[0].double(), images()[1]
    names, calls = names_of(model), []

    def failing(model, batch):
        calls.append(loss(model, batch))
        torch.rand(1), random.random(), np.random.rand()
        if len(calls) == (3 if criterion is grasp else 1):
            raise RuntimeError("out of order")
        return calls[-1]

    before = everything_about(model)
    with pytest.raises(ValueError if criterion is flow else RuntimeError, match="out of order"):
        criterion(model, names, [batch, batch], failing)
    assert_unchanged(model, before)
    if criterion is flow:
        first = flow(model, names, [batch], loss)
        assert_unchanged(model, before)
        set_generators(2)
        with torch.no_grad():
            assert_scores(flow(model, names, [batch], loss), first, rtol=0)


def test_both_passes_of_grasp_drop_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    batch, weights = rows(), [model[0].weight, model[3].weight]
    torch.manual_seed(4)
    gradients = torch.autograd.grad(loss(model, batch), weights, create_graph=True)
    hg = torch.autograd.grad(sum((g * g.detach()).sum() for g in gradients), weights)
    expected = {"0.weight": weights[0] * hg[0], "3.weight": weights[1] * hg[1]}
    expected = {name: value.detach() for name, value in expected.items()}
    assert_scores(grasp(model, [*expected], [batch], loss, seed=4), expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_errors(criterion):
    model, batch = smooth(), rows()
    with pytest.raises(ValueError, match=f"{criterion.__name__}: scores of 2.weight are not finite"):
        criterion(model, ["2.weight"], [batch], lambda model, batch: loss(model, batch) * float("nan"))
    with pytest.raises(ValueError, match=r"names: 2.wait is no parameter"):
        criterion(model, ["0.weight", "2.wait"], [batch], loss)
    with pytest.raises(ValueError, match="names: none is no parameter"):
        criterion(model, [], [batch], loss)
    with pytest.raises(ValueError, match="no samples to score weights by"):
        criterion(model, ["2.weight"], [], loss)
    with pytest.raises(TypeError, match="No tensor in a batch of type list"):
        criterion(model, ["2.weight"], [["text"]], loss)


class Keeping(nn.Module):
    """Keeps what its forward finds, counts, and has a layer by the old weight normalization."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 5, dtype=torch.float64), nn.Linear(5, 2, dtype=torch.float64)
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(self.head)
        self.seen, self.calls = [], 0

    def forward(self, x):
        self.features, self.calls = torch.tanh(self.body(x)), self.calls + 1
        self.seen.append({"features": self.features})
        return self.head(self.features)


@pytest.mark.parametrize("criterion", [*CRITERIA, flow])
def test_a_network_that_keeps_what_its_forward_finds(criterion):
    model, batch = Keeping(), rows()
    names = ["body.weight", "head.weight_v"]
    expected = criterion(model, names, [batch], loss)
    model(batch[0])
    kept, attributes = model.features, {name: value for name, value in vars(model).items()}
    assert not kept.is_leaf
    assert_scores(criterion(model, names, [batch], loss), expected, rtol=0)
    assert all(score.any() for score in expected.values())
    assert vars(model) == attributes and model.features is kept and len(model.seen) == model.calls == 1


def test_what_cannot_be_copied_is_told_in_a_sentence():
    model = smooth()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="Sequential cannot be copied"):
        snip(model, names_of(model), [rows()], loss)


def test_snip_of_each_batch():
    model, batch = smooth(), rows()
    names, pieces = names_of(model), [part(batch, 0, 5), part(batch, 5, 12)]
    each = [plain(model, piece)[snip] for piece in pieces]
    expected = {name: (5 * each[0][name] + 7 * each[1][name]) / 12 for name in names}
    scores = snip(model, names, pieces, loss, per_batch=True)
    assert_scores(scores, expected)
    assert_scores(snip(model, names, [batch], loss, per_batch=True), snip(model, names, [batch], loss))
    with pytest.raises(AssertionError):
        assert_scores(scores, snip(model, names, pieces, loss))


def test_samples_in_a_batch():
    x = torch.zeros(3, 2)
    for batch in (x, (x, 1), [None, {"scale": torch.tensor(1.0), "x": x}], UserDict(ids=x), ((("a", x), 2), x[:1])):
        assert samples_in(batch) == 3


def test_synflow_like_a_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2))
    with torch.no_grad():
        model[1].running_mean.uniform_()
        model[1].running_var.uniform_(1, 2)
        model[1].weight.uniform_(-1, 1)
    names, x = names_of(model), torch.randn(4, 3)
    w1, b1, w2 = (p.detach().double().abs() for p in (model[0].weight, model[0].bias, model[4].weight))
    norm = model[1]
    scale = norm.weight.detach().double().abs() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double().abs() - norm.running_mean.double() * scale
    hidden = scale * (w1.sum(1) + b1) + shift
    first, last = torch.zeros_like(w1), torch.zeros_like(w2)
    for i in range(2):
        for j in range(5):
            last[i, j] = w2[i, j] * max(hidden[j], 0)
            for k in range(3):
                first[j, k] += w1[j, k] * scale[j] * w2[i, j] * (hidden[j] > 0)
    scores = synflow(model, names, x)
    assert all(score.dtype == torch.float64 for score in scores.values())
    assert_scores(scores, {"0.weight": first, "4.weight": last}, rtol=1e-10)
    assert first.any() and last.any()
    composed = synflow(Batches(model), ["module.0.weight"], x, lambda model, x: model((x, None))["logits"])
    assert torch.equal(composed["module.0.weight"], scores["0.weight"])


class Batches(nn.Module):
    """Takes batches, as a ComposerModel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        x, _ = batch
        return {"logits": self.module(x)}


def relu_mlp(depth, width=8, scale=1.0):
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        layer.weight.data *= scale
    return nn.Sequential(*(step for layer in layers for step in (layer, nn.ReLU())), nn.Linear(width, 3, bias=False))


def test_synflow_is_conserved_where_float32_overflows():
    model = relu_mlp(60, scale=10.0)
    sums = torch.stack([score.sum() for score in synflow(model, names_of(model), torch.zeros(2, 8)).values()])
    assert len(sums) == 61 and sums[0] > torch.finfo(torch.float32).max
    torch.testing.assert_close(sums, sums[:1].expand(61), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"synflow: scores of 0.weight are not finite.*overflow"):
        huge = relu_mlp(60, scale=1e6)
        synflow(huge, names_of(huge), torch.zeros(2, 8))


class Casts(nn.Module):
    def __init__(self, cast, give):
        super().__init__()
        self.net, self.cast, self.give = relu_mlp(2), cast, give

    def forward(self, x):
        x = self.cast(self.net[:2](x))
        return self.give(self.net[2:](x + torch.zeros(8) + torch.zeros(8, dtype=torch.float32)))


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.half().to(dtype=torch.float32),
        lambda x: x @ torch.eye(8),
    ],
)
@pytest.mark.parametrize(
    "give", [lambda y: y, lambda y: {"logits": y, "hidden": y * 2}, lambda y: {"out": y}, lambda y: (y,)]
)
def test_synflow_of_forwards_that_cast_and_of_outputs_in_containers(cast, give):
    model, x = Casts(cast, give), torch.zeros(2, 8)
    expected = synflow(model.net, names_of(model.net), x)
    scores = synflow(model, [f"net.{name}" for name in expected], x)
    assert_scores(scores, {f"net.{name}": score for name, score in expected.items()}, rtol=1e-12)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "give,message",
    [
        (lambda y: {"out": y, "aux": y}, "one tensor of outputs, but finds 2 in a dict"),
        (lambda y: "nothing", "finds none in a str"),
        (lambda y: y.view(7), "a sample of ones, in float64, does not pass through Casts: shape"),
        (lambda y: y.missing, "does not pass through Casts"),
    ],
)
def test_synflow_says_what_it_cannot_sum_up(give, message):
    model = Casts(lambda x: x, give)
    with pytest.raises(ValueError, match=message):
        synflow(model, ["net.0.weight"], torch.zeros(2, 8))


def test_synflow_refuses_token_ids():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"the input is torch.int64, such as token ids"):
        synflow(model, ["1.weight"], torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_hugging_face_bert(criterion):
    from transformers.models.bert.modeling_bert import BertPooler

    from tiny import masked_lm, sentences

    model = masked_lm()
    model.model.bert.pooler = BertPooler(model.model.config)
    names = [name for name in names_of(model) if "encoder" in name or "pooler" in name]
    data = sentences(10)
    pieces = [{key: value[start:end] for key, value in data.items()} for start, end in ((0, 7), (7, 10))]

    def masked_loss(model, batch):
        return model.loss(model(batch), batch)

    scores = criterion(model, names, pieces, masked_loss)
    whole = criterion(model, names, [data], masked_loss)
    for name, score in scores.items():
        assert bool(score.any()) == ("pooler" not in name), name
        torch.testing.assert_close(score, whole[name], rtol=1e-3, atol=1e-6 * float(score.abs().max()))


def rank(number, port, folder):
    store = distributed.TCPStore("127.0.0.1", port)
    distributed.init_process_group("gloo", store=store, rank=number, world_size=2)
    model, batch = smooth(), rows()
    names = names_of(model)
    shares = {
        "unequal": [[part(batch, 0, 7), part(batch, 7, 10)], [part(batch, 10, 12)]],
        "none": [[], [part(batch, 0, 4), part(batch, 4, 12)]],
    }
    left = {
        (criterion.__name__, share): criterion(model, names, batches[number], loss)
        for criterion in CRITERIA
        for share, batches in shares.items()
    }
    synchronised = nn.Sequential(model[0], nn.SyncBatchNorm(5), model[2:]).double()
    left["sync"] = snip(synchronised, ["0.weight"], shares["unequal"][number], loss)
    # One may find other bits, of which the ranks must make the same masks.
    model[0].weight.data *= 1 + number * 1e-9
    left["synflow"] = synflow(model, names, batch[0])
    try:
        snip(model, names, [], loss)
    except ValueError as error:
        left["error"] = str(error)
    torch.save(left, f"{folder}/{number}.pt")
    store.set(f"{number} is done", "")
    store.wait(["0 is done", "1 is done"])
    os._exit(0)  # gloo may wait for ever where its group is destroyed


@pytest.mark.programs
def test_ranks_agree_with_each_other_and_with_one_process(tmp_path: Path):
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(rank, (store.port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert "no samples" in first.pop("error") and "no samples" in second.pop("error")
    assert first.keys() == second.keys()
    for key in first:
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key])
    model, batch = smooth(), rows()
    for criterion in CRITERIA:
        expected = criterion(model, names_of(model), [batch], loss)
        for share in ("unequal", "none"):
            assert_scores(first[criterion.__name__, share], expected)
    assert_scores(first["synflow"], synflow(model, names_of(model), batch[0]), rtol=0)
    assert first["sync"]["0.weight"].any()


class Samples:
    """`kinds` classes in turn; each sample looks random, and is counted when it is read."""

    def __init__(self, count, kinds, form=lambda label: (torch.zeros(2), label), **attributes):
        self.read, self.count, self.kinds, self.form = [], count, kinds, form
        vars(self).update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        torch.rand(1), random.random(), np.random.rand()
        return self.form(index % self.kinds)


FORMS = {
    "int": lambda label: (torch.zeros(2), label),
    "numpy": lambda label: [None, np.int64(label)],
    "tensor": lambda label: (torch.zeros(2), torch.tensor(label)),
    "one element": lambda label: (torch.zeros(2), torch.tensor([label])),
    "labels": lambda label: {"x": 0, "labels": torch.tensor(label)},
    "label": lambda label: UserDict(x=0, label=np.array([label])),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_class_is_held_as_often(form):
    data = Samples(61, 3, FORMS[form])
    set_generators(8)
    chosen = class_balanced(data, 7, seed=1)
    assert sorted(data.read) == [*range(61)]  # once each
    assert len(set(chosen)) == 21 and Counter(i % 3 for i in chosen) == {0: 7, 1: 7, 2: 7}
    assert chosen != sorted(chosen) and chosen == class_balanced(Samples(61, 3), 7, seed=1)
    set_generators(9)
    before = generators()
    assert class_balanced(data, 7, seed=1) == chosen
    assert set(class_balanced(data, 7, seed=2)) != set(chosen)
    assert generators() == before


@pytest.mark.parametrize(
    "known",
    [
        {"classes": ["a", "b", "c", "d"]},
        {"targets": [index % 4 for index in range(10000)]},
        {"labels": torch.arange(10000) % 4, "classes": "misleading"},
        {"labels": [0, 1], "classes": range(4)},
    ],
)
def test_reads_no_more_than_it_needs(known):
    everything = Samples(10000, 4)
    expected = class_balanced(everything, 5, seed=0)
    data = Samples(10000, 4, **known)
    assert class_balanced(data, 5, seed=0) == expected
    assert len(data.read) < 100 < len(everything.read) == 10000
    told = Samples(10000, 4)
    assert class_balanced(told, 5, seed=0, classes=4) == expected and len(told.read) < 100
    unread = Samples(10000, 4)
    assert class_balanced(unread, 5, seed=0, label_of=lambda index: index % 4) == expected and not unread.read


def test_classes_are_spread_over_the_order():
    # 1 in 50 is of class 1: found last, but not to be looked at last.
    chosen = class_balanced(range(5000), 100, 0, label_of=lambda index: int(index % 50 == 0))
    assert 35 < sum(index % 50 == 0 for index in chosen[:100]) < 65


@pytest.mark.parametrize(
    "form",
    [
        lambda label: {"input_ids": torch.zeros(5)},
        lambda label: {"labels": torch.zeros(5, dtype=torch.long)},
        lambda label: {"label": 0.5},
        lambda label: (torch.zeros(5), torch.tensor(0.5)),
        lambda label: torch.zeros(5, 5),
    ],
)
def test_without_classes_any_samples(form):
    data = Samples(1000, 3, form)
    chosen = class_balanced(data, 4, seed=0)
    assert len(set(chosen)) == 40 and len(data.read) == 1 and max(chosen) > 500
    assert chosen == class_balanced(data, 4, seed=0) != class_balanced(data, 4, seed=1)
    assert sorted(class_balanced(Samples(30, 3, form), 4, seed=0)) == [*range(30)]


def test_classes_that_cannot_be_balanced():
    with pytest.raises(ValueError, match="class 2 has 10 samples, 11 are wanted"):
        class_balanced(Samples(32, 3), 11, seed=0)
    with pytest.raises(ValueError, match="4 classes were told, the data set holds 3"):
        class_balanced(Samples(32, 3), 2, seed=0, classes=4)
    labels = [*[1] * 31, None]
    with pytest.raises(ValueError, match="sample 31 has no integer for a label"):
        class_balanced(range(32), 20, seed=0, label_of=labels.__getitem__)
    with pytest.raises(ValueError, match="0 samples per class of 32 samples"):
        class_balanced(Samples(32, 3), 0, seed=0)
