"""Metrics along paths, beside scripts that load each state and evaluate it; and a model that stays as it was."""

import copy
import math
import random
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import (
    NoEffectWarning,
    barrier,
    disagreement,
    evaluate_path,
    example_barriers,
    interpolate,
    linear_path,
    recompute_statistics,
)

RECOMPUTE = "recompute"


def data(seed, count=6):
    torch.manual_seed(seed)
    return [(torch.randn(size, 1, 6, 6), torch.randint(3, (size,))) for size in [8] * (count - 1) + [5]]


TEST, TRAIN = data(1), data(2, 4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )


def trained(seed, make=network, steps=15):
    """Its weights from one start, by other batches."""
    model, noise = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(steps):
        inputs, targets = TRAIN[int(torch.randint(3, (), generator=noise))]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


A, B = trained(1), trained(2)


@torch.no_grad()
def plainly(state, make=network, averaged_over=None):
    """Losses and errors of each example, by a script: load the state, perhaps average anew, evaluate."""
    model = make()
    model.load_state_dict(state)
    if averaged_over:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        for inputs, _ in averaged_over:
            model(inputs)
    model.eval()
    logits = [model(inputs) for inputs, _ in TEST]
    losses = [F.cross_entropy(z, y, reduction="none") for z, (_, y) in zip(logits, TEST, strict=True)]
    errors = [(z.argmax(1) != y).float() for z, (_, y) in zip(logits, TEST, strict=True)]
    return torch.cat(losses), torch.cat(errors)


@pytest.mark.parametrize("averaged_over", [None, TRAIN], ids=["interpolate", "recompute"])
def test_each_point_is_what_a_script_finds_for_its_state_bit_for_bit(averaged_over):
    how = {"batch_norm": RECOMPUTE, "statistics": averaged_over} if averaged_over else {}
    found = evaluate_path(network(9), (A, B), 5, iter(TEST), per_example=True, **how)
    assert found.alphas == [0, 0.25, 0.5, 0.75, 1] and found.examples == 45
    for point, alpha in enumerate(found.alphas):
        losses, errors = plainly(interpolate(A, B, alpha), averaged_over=averaged_over)
        assert torch.equal(found.per_example["loss"][point], losses)
        assert torch.equal(found.per_example["error"][point], errors)
        assert found.means["loss"][point] == pytest.approx(losses.double().mean().item(), rel=1e-12)
        assert found.means["error"][point] == pytest.approx(errors.double().mean().item(), rel=1e-12)
    assert found.means["loss"][0] != found.means["loss"][-1]
    without = evaluate_path(network(9), (A, B), 5, TEST, **how)
    assert without.means == found.means and without.per_example == {}


def test_recomputed_statistics_are_others_than_interpolated_ones():
    one = evaluate_path(network(), (A, B), 3, TEST)
    two = evaluate_path(network(), (A, B), 3, TEST, batch_norm=RECOMPUTE, statistics=TRAIN)
    assert abs(one.means["loss"][1] - two.means["loss"][1]) > 1e-3


def test_recomputed_statistics_serve_several_data_sets():
    read = []
    path = recompute_statistics(network(), (A, B), 3, (read.append(batch) or batch for batch in TRAIN))
    assert len(read) == len(TRAIN)
    for batches in (TEST, TRAIN):
        found = evaluate_path(network(), path, 3, batches)
        assert found == evaluate_path(network(), (A, B), 3, batches, batch_norm=RECOMPUTE, statistics=TRAIN)
    assert path(0.5)["1.num_batches_tracked"] == len(TRAIN)
    with pytest.raises(ValueError, match=r"alpha must be one of the points that were given, got 0\.3"):
        path(0.3)


def test_a_wrapped_model_and_synchronised_batch_norm():
    how = {"batch_norm": RECOMPUTE, "statistics": TRAIN}
    expected = evaluate_path(network(), (A, B), 3, TEST, **how)
    for model in (nn.DataParallel(network()), nn.SyncBatchNorm.convert_sync_batchnorm(network())):
        assert evaluate_path(model, (A, B), 3, TEST, **how) == expected


class Recorded(nn.Module):
    """Keeps its last features, shares a batch norm, and has one that keeps no statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.again, self.stateless = self.norm, nn.BatchNorm2d(4, track_running_stats=False)
        self.head, self.frozen = nn.Linear(144, 3), nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        self.features = self.again(self.second(self.norm(self.first(x)).relu()))
        return self.head(self.stateless(self.features).flatten(1)) * self.frozen


def recorded(seed=0):
    torch.manual_seed(seed)
    return Recorded()


def test_shared_batch_norm_and_one_without_statistics():
    a, b = trained(1, recorded), trained(2, recorded)
    found = evaluate_path(recorded(5), (a, b), [0, 0.3], TEST, batch_norm=RECOMPUTE, statistics=TRAIN, per_example=True)
    for point, alpha in enumerate(found.alphas):
        losses, _ = plainly(interpolate(a, b, alpha), recorded, TRAIN)
        assert torch.equal(found.per_example["loss"][point], losses)


def everything(model):
    """All that a model holds, by value, and which tensors hold its weights and buffers."""

    def value(held):
        return (held.tolist(), held.requires_grad) if isinstance(held, torch.Tensor) else held

    simple = (bool, int, float, str, torch.Tensor, type(None))
    return [
        [
            (key, value(held))
            for module in model.modules()
            for key, held in vars(module).items()
            if isinstance(held, simple)
        ],
        [(name, value(held), value(held.grad), id(held)) for name, held in model.named_parameters()],
        [(name, value(held), id(held)) for name, held in model.named_buffers()],
    ]


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["nowhere", "batches", "statistics", "metric"])
def test_nothing_of_the_model_is_left_changed(where):
    model = recorded()
    model.second.eval()
    model.norm.momentum = 0.3
    F.cross_entropy(model(TRAIN[0][0]), TRAIN[0][1]).backward()
    ends = trained(1, recorded), trained(2, recorded)
    before, drawn = everything(model), generators()

    def batches(name, of):
        loader = DataLoader(TensorDataset(*map(torch.cat, zip(*of, strict=True))), 8, shuffle=True)
        for number, batch in enumerate(loader):
            torch.rand(3), random.random(), np.random.rand()
            if number == 1 and name == where:
                raise Broken
            yield batch

    def metric(outputs, targets):
        if where == "metric":
            raise Broken
        return outputs[:, 0]

    run = dict(metrics={"logit": metric}, batch_norm=RECOMPUTE, statistics=batches("statistics", TRAIN))
    try:
        evaluate_path(model, ends, 4, batches("batches", TEST), **run)
        assert where == "nowhere"
    except Broken:
        assert where != "nowhere"
    assert generators() == drawn
    assert everything(model) == before


class Value(nn.Module):
    """A function of its weights alone, for each example."""

    def __init__(self, function, *shape):
        super().__init__()
        self.weights, self.function = nn.Parameter(torch.zeros(shape)), function

    def forward(self, inputs):
        return self.function(self.weights).expand(len(inputs))


def along(function, a, b, alphas):
    """The values of a function along the line from a to b."""
    model = Value(function, *a.shape).to(a.dtype)
    value = {"value": lambda outputs, targets: outputs}
    return evaluate_path(model, ({"weights": a}, {"weights": b}), alphas, TEST[:1], value).means["value"]


def test_on_a_quadratic_the_middle_lies_an_eighth_of_the_curvature_below_the_ends():
    generator = torch.Generator().manual_seed(0)
    h, a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 5), (5,), (5,)))
    h = h @ h.T
    start, middle, end = along(lambda w: w @ h @ w / 2 + w.sum(), a, b, 3)
    assert middle - (start + end) / 2 == pytest.approx((-(b - a) @ h @ (b - a) / 8).item(), rel=1e-12)
    assert barrier([start, middle, end]) == pytest.approx(abs(start - end) / 2)  # of a convex function


def test_a_double_well_has_its_known_barrier():
    values = along(lambda w: (w**2 - 1).square().sum(), torch.tensor([-1.0]), torch.tensor([1.0]), 21)
    assert barrier(values) == 1 == max(values) == values[10]


def test_a_network_has_no_barrier_to_itself():
    found = evaluate_path(network(), (A, A), 7, TEST)
    assert barrier(found.means["loss"]) == barrier(found.means["error"]) == 0


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3)).double()


def test_permuted_units_change_no_end_and_make_a_barrier():
    model, (inputs, targets) = mlp(), map(torch.cat, zip(*TRAIN, strict=True))
    batches = [(inputs.double(), targets)]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.double()), targets).backward()
        optimizer.step()
    end = copy.deepcopy(model.state_dict())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    permuted = {"1.weight": end["1.weight"][order], "1.bias": end["1.bias"][order]}
    permuted |= {"3.weight": end["3.weight"][:, order], "3.bias": end["3.bias"]}
    loss = evaluate_path(model, (end, permuted), 11, batches).means["loss"]
    assert loss[0] == pytest.approx(loss[-1], rel=1e-12) and barrier(loss) > 0.05


def test_layers_alone_and_joined_lines_are_paths_too():
    c = trained(3)
    head = linear_path(A, B, include=["5.*"], fixed=A)
    found = evaluate_path(network(), head, [0, 0.5, 1], TEST, per_example=True)
    for point, state in enumerate(
        (A, interpolate(A, B, 0.5, include=["5.*"], fixed=A), {**A, "5.weight": B["5.weight"], "5.bias": B["5.bias"]})
    ):
        assert torch.equal(found.per_example["loss"][point], plainly(state)[0])
    first, second = linear_path(A, B), linear_path(B, c)
    joined = evaluate_path(
        network(), lambda alpha: first(2 * alpha) if alpha < 0.5 else second(2 * alpha - 1), 5, TEST, per_example=True
    )
    for point, state in enumerate((A, interpolate(A, B, 0.5), B, interpolate(B, c, 0.5), c)):
        assert torch.equal(joined.per_example["loss"][point], plainly(state)[0])


def test_the_end_of_a_line_may_be_the_model_itself():
    model = network()
    model.load_state_dict(B)
    expected = evaluate_path(network(), (A, B), 5, TEST).means
    assert evaluate_path(model, (A, model.state_dict()), 5, TEST).means == expected
    assert evaluate_path(model, linear_path(A, model.state_dict()), 5, TEST).means == expected
    with pytest.raises(ValueError, match=r"states must be copies: 0\.weight is the model's own"):
        evaluate_path(model, lambda alpha: model.state_dict(), 5, TEST)


def test_one_pass_gives_predictions_and_the_barrier_of_each_example():
    read = []

    def batches():
        for batch in TEST:
            read.append(batch)
            yield batch

    metrics = {"loss": lambda z, y: F.cross_entropy(z, y, reduction="none"), "class": lambda z, y: z.argmax(1)}
    found = evaluate_path(network(), (A, B), 3, batches(), metrics, per_example=True)
    assert len(read) == len(TEST)
    classes = found.per_example["class"]
    assert classes.dtype == torch.int64
    assert disagreement(classes[0], classes[-1]) == (classes[0] != classes[2]).double().mean().item() > 0
    of_each = example_barriers(*found.per_example["loss"])
    assert of_each.mean().item() == pytest.approx(
        found.means["loss"][1] - (found.means["loss"][0] + found.means["loss"][2]) / 2
    )


def test_batches_of_other_forms():
    expected = evaluate_path(network(), (A, B), 3, TEST).means
    for kind in (dict, UserDict):
        named = [kind(pixels=inputs, labels=targets) for inputs, targets in TEST]
        by_name = {"forward": lambda model, batch: model(batch["pixels"])}
        assert evaluate_path(network(), (A, B), 3, named, **by_name).means == expected
    reversed_pairs = [(targets, inputs) for inputs, targets in TEST]
    other = {"forward": lambda model, batch: model(batch[1]), "target_key": 0}
    assert evaluate_path(network(), (A, B), 3, reversed_pairs, **other).means == expected


def test_in_half_precision():
    half = [(inputs.bfloat16(), targets) for inputs, targets in TEST]
    found = evaluate_path(network().bfloat16(), (A, B), 3, half, per_example=True)
    assert found.per_example["loss"].dtype == torch.float32
    model = network().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        automatic = evaluate_path(model, (A, B), 3, TEST, per_example=True)
    for point, alpha in enumerate(found.alphas):
        state = interpolate(A, B, alpha)
        plain = network().bfloat16().eval()
        plain.load_state_dict(state)
        with torch.no_grad():
            logits = torch.cat([plain(inputs) for inputs, _ in half]).float()
        targets = torch.cat([targets for _, targets in TEST])
        assert torch.equal(found.per_example["loss"][point], F.cross_entropy(logits, targets, reduction="none"))
        model.load_state_dict(state)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # a new one, which has cast no weights yet
            logits = torch.cat([model(inputs) for inputs, _ in TEST]).float()
        assert torch.equal(automatic.per_example["loss"][point], F.cross_entropy(logits, targets, reduction="none"))


def test_losses_that_are_not_finite_stay_visible():
    broken = {name: value.clone() for name, value in B.items()}
    broken["5.bias"][0] = math.nan
    loss = evaluate_path(network(), (A, broken), 3, TEST).means["loss"]
    assert math.isfinite(loss[0]) and math.isnan(loss[1]) and math.isnan(loss[2]) and math.isnan(barrier(loss))


def test_without_batch_norm_there_is_nothing_to_recompute():
    ends = mlp().state_dict(), {name: value + 0.1 for name, value in mlp().state_dict().items()}
    batches = [(inputs.double(), targets) for inputs, targets in TEST]
    with pytest.warns(NoEffectWarning, match="Sequential has no batch norm with running statistics"):
        found = evaluate_path(mlp(), ends, 3, batches, batch_norm=RECOMPUTE, statistics=batches)
    assert found == evaluate_path(mlp(), ends, 3, batches)


def test_what_cannot_be_evaluated_is_refused_in_one_line():
    def refused(message, model=None, states=(A, B), alphas=3, batches=TEST, *args, **options):
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            evaluate_path(model or network(), states, alphas, batches, *args, **options)
        assert len(str(caught.value).splitlines()) == 1

    refused("batch_norm must be interpolate or recompute, got 'train'", batch_norm="train")
    refused("statistics must be given for batch_norm='recompute', and for nothing else, got 'list'", statistics=TRAIN)
    refused("statistics must be given for batch_norm='recompute'.*NoneType", batch_norm=RECOMPUTE)
    refused("batches must be batches of training data, got 'none'", batch_norm=RECOMPUTE, statistics=[])
    refused(r"batches must be batches of \(inputs, targets\), got 'none'", batches=iter([]))
    refused("alphas must be at least 2", alphas=1)
    refused("alphas must be one point or more", alphas=[])
    refused("alpha must be a finite number", alphas=[math.inf])
    refused("metrics must be one function or more", metrics={})
    refused(r"metrics\['mean'\] must be of one value for each example, \(8,\)", metrics={"mean": F.cross_entropy})
    refused(r"states must be \(start, end\) or a function of alpha, got 'OrderedDict'", states=A)
    refused("the ends of the path must be of one network", states=(A, mlp().state_dict()))
    refused("states must fit the model: only one of them has 0.bias", model=mlp())
    wider = {**A, "5.weight": torch.ones(4, 64), "5.bias": torch.ones(4)}
    refused(r"5.weight is \(4, 64\) of torch.float32, the model's \(3, 64\)", states=(wider, wider))
    counted = {**A, "1.num_batches_tracked": torch.tensor(1.5)}
    refused("1.num_batches_tracked is .* of torch.float32, the model's", states=(counted, counted))
    refused("forward must be given for batches other than", batches=[{"labels": torch.ones(3)}])
    refused("evaluate_path finds nothing at 'labels' in a batch of pixels", batches=[{"pixels": torch.ones(3)}])
