import copy
import math
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from accelerando.algorithms import hessian_diagonal, hessian_eigenvalues


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(sizes=(8, 8, 5)):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (sum(sizes),), generator=generator)
    return [*zip(inputs.split(sizes), labels.split(sizes), strict=True)]


def explicit(model, batches, names=None, masks=None):
    """The matrix over the kept weights, by torch.func, of all examples in one batch."""
    model = copy.deepcopy(model).eval()
    inputs, labels = map(torch.cat, zip(*batches, strict=True))
    weights = {n: p.detach() for n, p in model.named_parameters() if names is None or n in names}
    blocks = hessian(lambda w: F.cross_entropy(functional_call(model, w, (inputs,)), labels))(weights)
    sizes = {n: w.numel() for n, w in weights.items()}
    rows = [torch.cat([blocks[a][b].reshape(sizes[a], sizes[b]) for b in sizes], 1) for a in sizes]
    kept = torch.cat([(masks or {}).get(n, torch.ones_like(w, dtype=torch.bool)).flatten() for n, w in weights.items()])
    return torch.cat(rows)[kept][:, kept]


def pruned(model):
    masks = {name: torch.rand(model.get_parameter(name).shape) < 0.6 for name in ("0.weight", "4.weight")}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return masks


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("names", (None, ["4.weight", "0.weight"]))
def test_exactly_it_is_the_explicit_hessians(masked, names):
    model = small_network()
    masks = pruned(model) if masked else None
    names_ = None if names is None else names[::-1]  # the order in which `explicit` has them
    matrix = explicit(model, data(), names, masks)
    found = hessian_diagonal(model, data(), cross_entropy, names=names_, masks=masks)
    torch.testing.assert_close(torch.cat([*found.values.values()]), matrix.diagonal())
    assert found.trace == pytest.approx(matrix.trace().item()) and found.trace_error == 0
    assert all((error == 0).all() for error in found.errors.values())
    for name, values in found.values.items():
        parameter = model.get_parameter(name)
        kept = parameter[masks[name]] if masks and name in masks else parameter.flatten()
        assert values.shape == kept.shape
    largest = hessian_eigenvalues(model, data(), cross_entropy, 3, names=names_, masks=masks)
    torch.testing.assert_close(largest.values, torch.linalg.eigvalsh(matrix).flip(0)[:3])
    assert (largest.residuals < 1e-6).all()


def test_estimates_are_within_their_errors():
    model, batches = small_network(), data((21,))
    true = explicit(model, batches).diagonal()
    seeds, probes = 120, 24
    found = [hessian_diagonal(model, batches, cross_entropy, probes, seed=s, at_once=probes) for s in range(seeds)]
    values, errors = (
        torch.stack([torch.cat([*each.values()]) for each in both])
        for both in ([f.values for f in found], [f.errors for f in found])
    )
    assert (errors > 0).all()
    within = ((values - true).abs() <= 2 * errors).double().mean().item()
    assert 0.91 < within < 0.97  # of normal estimates 94 in 100 are within 2 estimated errors of 24 probes
    # Unbiased: the mean of all seeds, too; and the errors say how much they differ from seed to seed.
    assert ((values.mean(0) - true).abs() <= 5 * errors.mean(0) / seeds**0.5 + 1e-12).all()
    torch.testing.assert_close(errors.square().mean(0).sum(), values.var(0).sum(), rtol=0.1, atol=0)
    traces = torch.tensor([f.trace for f in found]), torch.tensor([f.trace_error for f in found])
    within = ((traces[0] - true.sum()).abs() <= 2 * traces[1]).double().mean().item()
    assert 0.87 < within < 0.995
    torch.testing.assert_close(traces[1].square().mean(), traces[0].var(), rtol=0.3, atol=0)
    torch.testing.assert_close(traces[0].double(), values.sum(1), rtol=1e-5, atol=1e-5)


def test_masked_estimates_are_of_the_kept_weights():
    model = small_network()
    masks = pruned(model)
    found = hessian_diagonal(model, data(), cross_entropy, 200, masks=masks, at_once=50)
    true = explicit(model, data(), masks=masks)
    values, errors = (torch.cat([*each.values()]) for each in (found.values, found.errors))
    assert len(values) == len(true)
    assert ((values - true.diagonal()).abs() <= 4.5 * errors + 1e-12).all()
    assert abs(found.trace - true.trace().item()) <= 4 * found.trace_error


def test_a_hessian_that_is_diagonal_is_estimated_without_error():
    factors = torch.tensor([3.0, -1.0, 0.1])
    model = nn.ParameterDict({"w": torch.tensor([1.0, 2.0, 0.5])})
    found = hessian_diagonal(model, [torch.ones(2)], lambda m, _: (factors * m["w"] ** 2).sum() / 2, 7)
    torch.testing.assert_close(found.values["w"], factors)
    assert (found.errors["w"] < 1e-7).all() and found.trace_error < 1e-6
    largest = hessian_eigenvalues(model, [torch.ones(2)], lambda m, _: (factors * m["w"] ** 2).sum() / 2, 2)
    torch.testing.assert_close(largest.values, torch.tensor([3.0, 0.1], dtype=torch.float64))  # not -1


def test_a_flat_loss_has_a_hessian_of_zeros():
    flat = hessian_eigenvalues(nn.Linear(3, 2), [torch.ones(4, 3)], lambda m, b: (m(b) - 99).relu().sum(), 2)
    assert flat.values.tolist() == flat.residuals.tolist() == [0.0, 0.0]


def test_probes_are_the_seeds_alone():
    model = small_network()
    several = [
        hessian_diagonal(model, data(), cross_entropy, 6, seed=s, at_once=k) for s, k in ((3, 6), (3, 4), (4, 6))
    ]
    first, again, other = (torch.cat([*f.values.values()]) for f in several)
    torch.testing.assert_close(first, again, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first, other)


def test_float32_eigenvalues_are_within_their_residuals():
    model = small_network()
    true = torch.linalg.eigvalsh(explicit(model, data())).flip(0)
    single = [(inputs.float(), labels) for inputs, labels in data()]
    found = hessian_eigenvalues(model.float(), single, cross_entropy, 4)
    assert found.values.dtype == torch.float64 and (found.values.diff() <= 0).all()
    assert ((found.values - true[:4]).abs() <= found.residuals + 1e-6).all() and (found.residuals < 1e-2).all()


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, dtype=torch.float64)
    inputs = torch.randn(5, 3, 4, dtype=torch.float64)

    def loss(model, batch):
        return model(batch).square().mean() + model(batch).pow(3).mean()

    name = "linear1.weight"
    of_weight = lambda w: loss(lambda x: functional_call(copied, {name: w}, (x,)), inputs)  # noqa: E731
    copied = copy.deepcopy(layer).eval()
    true = hessian(of_weight)(layer.linear1.weight.detach()).reshape(16, 16)
    found = hessian_diagonal(layer, [inputs], loss, names=[name])
    torch.testing.assert_close(found.values[name], true.diagonal())
    attended = hessian_diagonal(layer, [inputs], loss, 3, names=["self_attn.in_proj_weight"])
    assert attended.values["self_attn.in_proj_weight"].abs().max() > 0


def test_nothing_is_left_changed():
    model = small_network()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    hessian_diagonal(model, data(), cross_entropy, 2)
    hessian_eigenvalues(model, data(), cross_entropy)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


class Once(torch.autograd.Function):
    """Has a derivative, of which there is none."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def root(model, batch):
    return model[4].weight.sub(model[4].weight.detach()).abs().sqrt().sum()


REFUSED = {
    "once differentiable": ({"loss": lambda m, b: Once.apply(cross_entropy(m, b)), "names": ["0.bias"]}, "twice"),
    "not finite": ({"loss": lambda m, b: cross_entropy(m, b) * math.nan}, "loss must be finite, but of batch 0"),
    "no second derivative": ({"loss": root, "names": ["4.weight"]}, "Hessian of the loss of Sequential is not finite"),
    "not a scalar": ({"loss": lambda m, b: m(b[0])}, "loss must be a scalar tensor"),
    "no part": (
        {"loss": lambda m, b: m[0](b[0]).square().mean()},
        "weight, 1.bias, 4.weight and 1 more have no grad",
    ),
    "no gradient": ({"loss": lambda m, b: torch.tensor(1.0)}, "have no gradient"),
    "no batches": ({"batches": []}, "batches must be one batch or more"),
    "unknown": ({"names": ["5.weight"]}, "names must be of model.named_parameters.*0.weight.*5.weight"),
    "none": ({"names": []}, "names must be of one parameter or more"),
    "other mask": ({"masks": {"0.weight": torch.ones(4, 4) > 0}}, "masks must be bool tensors by the names and of"),
    "not pruned": ({"masks": {"0.weight": torch.zeros(4, 3) > 0}}, "weights of 0.weight are not zero where"),
    "at once": ({"at_once": 0}, "at_once must be at least 1"),
    "probes": ({"probes": 1}, "probes must be None or at least 2"),
}


@pytest.mark.parametrize("given,message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_in_one_line(given, message):
    given = {"batches": data(), "loss": cross_entropy, **given}
    with pytest.raises(ValueError, match=message) as caught:
        hessian_diagonal(small_network(), **given)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_too_large_or_too_many_is_refused():
    model = nn.Linear(400, 300)
    with pytest.raises(ValueError, match=r"probes must be given beyond 100,000 weights, of which there are 120,300"):
        hessian_diagonal(model, [torch.ones(2, 400)], lambda m, b: m(b).square().mean())
    few = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="count must be less than the 3 weights"):
        hessian_eigenvalues(few, [torch.ones(2, 2)], lambda m, b: m(b).square().mean(), 3)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    for function in (hessian_diagonal, hessian_eigenvalues):
        with pytest.raises(ImportError, match=rf"{function.__name__} needs .*pip install 'accelerando\[landscape\]'"):
            function(small_network(), data(), cross_entropy)
