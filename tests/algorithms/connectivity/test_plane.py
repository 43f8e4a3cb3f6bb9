"""Planes beside Gram-Schmidt and the singular value decomposition of all weights in one vector; their metrics."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accelerando.algorithms import distance, evaluate_path, evaluate_plane, plane_through


def network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for _ in range(seed + 1):
            model(1 + torch.randn(8, 1, 6, 6))  # statistics and a counter of its own
    return model.eval()


def states(count):
    return [network(seed).state_dict() for seed in range(count)]


def weights(state):
    """Parameters in one vector, in float64."""
    names = [name for name in state if "running" not in name and "tracked" not in name]
    return torch.cat([state[name].flatten().double() for name in names])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cast(state, dtype):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


torch.manual_seed(9)
BATCHES = [(torch.randn(size, 1, 6, 6), torch.randint(3, (size,))) for size in (8, 8, 5)]


def plain_loss(state):
    model = network(0)
    model.load_state_dict(state)
    with torch.no_grad():
        losses = [F.cross_entropy(model(inputs), targets, reduction="none") for inputs, targets in BATCHES]
    return (sum(values.double().sum() for values in losses) / 21).item()


def test_three_networks_have_the_coordinates_of_gram_schmidt():
    networks = states(3)
    a, b, c = map(weights, networks)
    u = (b - a) / (b - a).norm()
    v = c - a - ((c - a) @ u) * u
    expected = torch.tensor([[0, 0], [(b - a).norm(), 0], [(c - a) @ u, v.norm()]])
    v = v / v.norm()
    plane = plane_through(networks)
    torch.testing.assert_close(plane.coordinates, expected, check_dtype=False)
    assert plane.distances == (0, 0, 0)
    for x, y in itertools.product((-1.3, 0.4, 2.0), repeat=2):
        point = a + x * u + y * v
        torch.testing.assert_close(weights(plane.state(x, y)), point, rtol=1e-5, atol=1e-6)
    for (x, y), state in zip(plane.coordinates.tolist(), networks, strict=True):
        assert same(plane.state(x, y), state)  # bit for bit


def test_of_four_networks_it_is_the_nearest_and_tells_how_far_they_are():
    networks = states(4)
    matrix = torch.stack([*map(weights, networks)])
    mean = matrix.mean(0)
    _, _, directions = torch.linalg.svd(matrix - mean, full_matrices=False)
    projected = mean + (matrix - mean) @ directions[:2].T @ directions[:2]
    plane = plane_through(networks)
    torch.testing.assert_close(torch.tensor(plane.distances).double(), (matrix - projected).norm(dim=1))
    assert min(plane.distances) > 0.1
    for (x, y), point in zip(plane.coordinates.tolist(), projected, strict=True):
        torch.testing.assert_close(weights(plane.state(x, y)), point, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(plane.state(0, 0)), mean, rtol=1e-5, atol=1e-6)
    spread = plane.coordinates.square().sum(0)
    assert spread[0] > spread[1]
    outermost = plane.coordinates.abs().argmax(0)
    assert (plane.coordinates[outermost, [0, 1]] > 0).all()  # so that a figure is the same on every machine


def test_four_networks_in_a_plane_are_all_on_it():
    a, b, c = states(3)
    fourth = {name: (b[name] + c[name] - a[name]) if a[name].is_floating_point() else a[name] for name in a}
    plane = plane_through([a, b, c, fourth])
    assert max(plane.distances) < 1e-5
    torch.testing.assert_close(torch.cdist(plane.coordinates, plane.coordinates)[0, 3].item(), distance(a, fourth))


def test_statistics_of_batch_norm_move_along_but_do_not_count():
    a, b, c = states(3)
    far = {name: value + 1000 if name.endswith("running_mean") else value for name, value in c.items()}
    plane, other = plane_through([a, b, c]), plane_through([a, b, far])
    assert torch.equal(plane.coordinates, other.coordinates)
    middle = (plane.coordinates[0] + plane.coordinates[2]) / 2
    state = other.state(*middle.tolist())
    torch.testing.assert_close(state["1.running_mean"], (a["1.running_mean"] + far["1.running_mean"]) / 2)
    some = plane_through([a, b, c], include=["4.*"])
    expected = (a["4.weight"] - b["4.weight"]).norm().hypot((a["4.bias"] - b["4.bias"]).norm())
    assert some.coordinates[1, 0].item() == pytest.approx(expected.item())


def test_counters_are_the_nearest_networks_and_small_floats_stay_small():
    networks = states(3)
    plane = plane_through(networks)
    near = 0.9 * plane.coordinates[1] + 0.1 * plane.coordinates[2]
    assert plane.state(*near.tolist())["1.num_batches_tracked"] == 2
    half = [cast(state, torch.bfloat16) for state in networks]
    point = plane_through(half).state(0.3, 0.2)
    assert point["0.weight"].dtype == torch.bfloat16
    exact = plane_through([cast(state, torch.float64) for state in half]).state(0.3, 0.2)
    torch.testing.assert_close(point["0.weight"].double(), exact["0.weight"], rtol=2**-8, atol=1e-6)


def test_what_all_networks_share_stays_and_supports_are_united():
    networks = states(4)
    masks = [torch.rand(3, 64) < 0.4 for _ in networks]
    for state, mask in zip(networks, masks, strict=True):
        state["4.weight"] = state["4.weight"] * mask
        state["0.weight"] = networks[0]["0.weight"]
    plane = plane_through(networks[:3])
    for place, state in zip(plane.coordinates.tolist(), networks, strict=False):
        assert same(plane.state(*place), state)  # of its own support, not a rounding of the others'
    for count in (3, 4):
        point = plane_through(networks[:count]).state(0.31, -0.17)
        assert torch.equal(point["0.weight"], networks[0]["0.weight"])
        union = torch.stack(masks[:count]).any(0)
        assert not point["4.weight"][~union].any() and point["4.weight"][union].all()


class Weights(nn.Module):
    """A network whose outputs are its weights, one copy for each example."""

    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(values)

    def forward(self, inputs):
        return self.w.expand(len(inputs), -1)


@pytest.mark.parametrize("count", (3, 4))
def test_on_a_quadratic_loss_the_grid_is_the_formula(count):
    torch.manual_seed(0)
    dtype = torch.float64
    networks = [{"w": torch.randn(6, dtype=dtype)} for _ in range(count)]
    root, minimum = torch.randn(6, 6, dtype=dtype), torch.randn(6, dtype=dtype)
    hessian = root @ root.T

    def quadratic(points):
        return ((points - minimum) @ hessian * (points - minimum)).sum(-1) / 2

    batches = [(torch.zeros(n, 1), torch.zeros(n)) for n in (3, 2)]
    metrics = {"loss": lambda outputs, _: quadratic(outputs)}
    found = evaluate_plane(Weights(torch.zeros(6, dtype=dtype)), networks, batches, metrics, 7, margin=0.5)
    matrix = torch.stack([state["w"] for state in networks])
    if count == 3:
        origin = matrix[0]
        basis = torch.linalg.qr((matrix[1:] - origin).T).Q.T  # Gram-Schmidt, but for signs
        basis = basis * ((matrix[1:] - origin) * basis).sum(1, keepdim=True).sign()
    else:
        origin = matrix.mean(0)
        basis = torch.linalg.svd(matrix - origin).Vh[:2]
        basis = basis * ((matrix - origin) @ basis.T * found.plane.coordinates).sum(0)[:, None].sign()
    y, x = torch.meshgrid(torch.tensor(found.y, dtype=dtype), torch.tensor(found.x, dtype=dtype), indexing="ij")
    expected = quadratic(origin + x[..., None] * basis[0] + y[..., None] * basis[1])
    assert found.means["loss"].shape == (7, 7) and found.examples == 5
    torch.testing.assert_close(found.means["loss"], expected)
    low, high = found.plane.coordinates.min(0).values, found.plane.coordinates.max(0).values
    for axis, values in enumerate((found.x, found.y)):
        reach = 0.5 * (high - low)[axis].item()
        assert (values[0], values[-1]) == pytest.approx((low[axis].item() - reach, high[axis].item() + reach))
    assert found.networks["loss"] == pytest.approx(quadratic(matrix).tolist())


@pytest.mark.parametrize("count", (3, 4))
def test_networks_have_their_own_metrics_bit_for_bit(count):
    networks = states(count)
    model = network(7)
    before = copy.deepcopy(model.state_dict())
    plane = plane_through(networks)
    axes = plane.coordinates[:, 0].tolist(), plane.coordinates[:, 1].tolist()
    found = evaluate_plane(model, plane, BATCHES, points=axes)
    own = [plain_loss(state) for state in networks]
    assert found.networks["loss"] == own and found.networks.keys() == {"loss", "error"}
    there = found.means["loss"].diagonal().tolist()
    if count == 3:
        assert there == own
    else:  # the nearest points on the plane are not the networks
        assert there == [plain_loss(plane.state(*place)) for place in plane.coordinates.tolist()] != own
    assert same(model.state_dict(), before) and not model.training
    assert found.plane.distances == plane.distances


def test_recomputed_statistics_are_those_of_the_point():
    networks, model = states(3), network(0)
    how = {"batch_norm": "recompute", "statistics": BATCHES[:2]}
    found = evaluate_plane(model, networks, BATCHES, points=2, **how)
    plane = found.plane
    point = plane.state(found.x[1], found.y[0])
    alone = evaluate_path(model, lambda _: point, [0.0], BATCHES, **how)
    assert found.means["loss"][0, 1].item() == alone.means["loss"][0]
    assert (
        found.means["loss"][0, 1].item() != evaluate_plane(model, plane, BATCHES, points=2).means["loss"][0, 1].item()
    )


def test_networks_that_span_no_plane_are_refused_in_one_line():
    a, b, c = states(3)
    line = {name: torch.lerp(a[name], b[name], 0.3) if a[name].is_floating_point() else a[name] for name in a}
    beyond = {name: torch.lerp(a[name], b[name], 3) if a[name].is_floating_point() else a[name] for name in a}
    broken = {**a, "4.bias": a["4.bias"] / 0}
    for networks, message in (
        ([a, b], "networks must be three or four states, got 2"),
        ([a, b, a], "networks must be different, but 1 and 3 are equal"),
        ([a, b, c, b], "networks must be different, but 2 and 4 are equal"),
        ([a, b, line], "networks must be in a plane, not on a line, got 'width by length"),
        ([a, b, line, beyond], "networks must be in a plane, not on a line"),
        ([a, b, broken], "networks must be finite"),
        ([a, b, {**c, "4.bias": torch.zeros(4)}], "networks 1 and 3 must be of one network: they differ in shape"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            plane_through(networks)
        assert len(str(caught.value).splitlines()) == 1


def test_a_grid_that_cannot_be_is_refused():
    networks = states(3)
    for points, margin, message in (
        (1, 0.2, "points must be at least 2"),
        (([0.0], []), 0.2, "points must be a number, or finite coordinates on two axes"),
        (([0.0], [float("nan")]), 0.2, "points must be"),
        (([0.0],), 0.2, "points must be"),
        (3, -1, "margin must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_plane(network(0), networks, BATCHES, points=points, margin=margin)
