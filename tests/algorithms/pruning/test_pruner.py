"""Masks that hold in a loop of one's own: by the formula, whoever writes the weights, and as in Composer's classes."""

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from accelerando.algorithms import MagnitudePruner, MagnitudePruning, PruneAtInit, Pruner, prune_at_init
from accelerando.algorithms.pruning import LayerCollapseWarning, class_balanced, keep_highest, prunable_weights
from accelerando.algorithms.pruning.masks import size
from tiny import assert_same, classifier, examples, fit, weights

TOTAL = 3376
OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def batches():
    return [*zip(*(tensor.split(8) for tensor in examples()), strict=True)]


def loss_of(model, batch):
    return F.cross_entropy(model.module(batch[0]), batch[1])


def train(model, optimizer, steps, after=lambda: None, accumulated=1):
    """The whole loop of one's own; nothing in it knows of masks."""
    data = batches()
    for step in steps:

        def closure(step=step):
            optimizer.zero_grad()
            for part in range(accumulated):
                loss = loss_of(model, data[(step + part) % len(data)]) / accumulated
                loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        after()
    return model.state_dict()


def largest(model, kept=TOTAL // 4):
    return keep_highest({name: weight.detach().abs() for name, weight in prunable_weights(model).items()}, kept)


def reloaded(state):
    """Through a file that holds tensors and builtins only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_leaves_at_zero_what_is_pruned(name, accumulated):
    """Also where pruning comes when momenta have grown already."""
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner, checked = Pruner(model, optimizer), []

    def look():
        for layer, mask in pruner.masks.items():
            weight = model.get_parameter(layer)
            held = [v for v in optimizer.state[weight].values() if getattr(v, "shape", None) == weight.shape]
            for tensor in (weight.detach(), *held):
                assert (tensor[~mask] == 0).all() and tensor[mask].any()
                checked.append(layer)

    train(model, optimizer, range(3), look, accumulated)
    assert not checked and pruner.remaining() == TOTAL
    pruner.prune(largest(model))
    train(model, optimizer, range(3, 9), look, accumulated)
    assert len(checked) >= 24 and pruner.remaining() == TOTAL // 4 and pruner.share_left() == 0.25


def test_it_is_the_loop_with_masked_gradients():
    model, plain = classifier(), classifier()
    masks = largest(model)
    optimizer = sgd(model)
    Pruner(model, optimizer).prune(masks)
    found = train(model, optimizer, range(8))
    optimizer = sgd(plain)
    for name, weight in prunable_weights(plain).items():
        weight.data *= masks[name]
    for step in range(8):
        optimizer.zero_grad()
        loss_of(plain, batches()[step % 4]).backward()
        for name, weight in prunable_weights(plain).items():
            weight.grad *= masks[name]
        optimizer.step()
    assert_same(found, plain.state_dict())


def test_averages_hold_too_where_told():
    model = classifier()
    optimizer = sgd(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    pruner = Pruner(model, optimizer)
    pruner.hold_also(dict(average.named_parameters()))
    train(model, optimizer, range(3), lambda: average.update_parameters(model))
    pruner.prune(largest(model))
    train(model, optimizer, range(3), lambda: average.update_parameters(model))
    for name, mask in pruner.masks.items():
        held = average.module.get_parameter(name)
        assert not held[~mask].any() and held[mask].all()


def test_it_acts_from_attach_to_detach():
    model = classifier()
    optimizer, pruner = sgd(model), Pruner(None)
    pruner.bind(model, optimizer)
    pruner.prune(largest(model))
    train(model, optimizer, range(1))
    assert pruner.share_left() > 0.5
    pruner.attach()
    train(model, optimizer, range(1))
    assert pruner.share_left() == 0.25
    pruner.detach()
    train(model, optimizer, range(1))
    assert pruner.share_left() > 0.5


def test_masks_that_do_not_fit_are_refused_and_collapse_is_told():
    model = classifier()
    pruner, masks = Pruner(model, sgd(model)), largest(model)
    for wrong in (masks | {"module.9.weight": torch.ones(3, 3, dtype=torch.bool)}, dict([*masks.items()][:-1])):
        with pytest.raises(ValueError, match=r"Pruner: masks do not fit .*: module\.9\.weight"):
            pruner.prune(wrong)
    with pytest.warns(LayerCollapseWarning, match=r"Pruner: layer collapse, nothing is left of module\.6\.weight"):
        pruner.prune(masks | {"module.6.weight": torch.zeros(32, 16, 1, 1, dtype=torch.bool)})


@pytest.mark.parametrize("order", [1, -1])
def test_a_loop_goes_on_from_its_checkpoint(order):
    """Whichever of model and pruner is loaded first."""

    def begin():
        model = classifier()
        optimizer = sgd(model)
        pruner = MagnitudePruner(model, optimizer, 0.25, end="9ba", scope="layerwise")
        return {"model": model, "optimizer": optimizer, "pruner": pruner}

    def go(parts, steps):
        train(parts["model"], parts["optimizer"], steps, parts["pruner"].step)

    go(whole := begin(), range(12))
    go(first := begin(), range(5))
    state = reloaded({name: part.state_dict() for name, part in first.items()})
    second = begin()
    for name in [*state][::order]:
        second[name].load_state_dict(state[name])
    go(second, range(5, 12))
    assert_same(second["model"].state_dict(), whole["model"].state_dict())
    assert second["pruner"].remaining() == TOTAL // 4 < first["pruner"].remaining()


def test_a_checkpoint_of_other_masks_is_refused():
    model = classifier()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer)
    pruner.prune(largest(model))
    state = reloaded(pruner.state_dict())

    def load(change=lambda state: None, **options):
        changed, model = copy.deepcopy(state), classifier()
        change(changed)
        fresh = Pruner(model, optimizer := sgd(model), **options)
        fresh.load_state_dict(changed)
        train(model, optimizer, range(1))

    for change, options, message in (
        (lambda state: state.pop("masks"), {}, "holds no readable masks; 'masks'"),
        (lambda state: state["masks"]["bits"].add_(1), {}, "digest does not fit"),
        (lambda state: None, {"classifier": False}, "had classifier=True; go on as it was"),
        (lambda state: state.update(plan={}), {"exclude": ["*.9.*"]}, r"do not fit .*: module\.9\.weight; include"),
        (lambda state: None, {}, r"not of these weights; what they prune is not 0 in module\.0\.weight"),
    ):
        with pytest.raises(ValueError, match=f"Pruner: .*{message}"):
            load(change, **options)


TIMES = [
    {},
    {"start": "3ba"},
    {"start": "1ba", "end": "7ba", "interval": "2ba"},
    {"start": "0.25dur", "end": "0.75dur", "schedule": "linear", "scope": "layerwise"},
    {"end": "6ba", "exclude": ["*.0.*"], "classifier": False},
]


@pytest.mark.parametrize("given", TIMES, ids=str)
def test_gradual_pruning_is_that_of_composers_class(given):
    """Bit for bit, with two epochs of the same batches."""
    run = fit(composers := MagnitudePruning(0.2, **given))
    model = classifier()
    optimizer = sgd(model)
    pruner = MagnitudePruner(model, optimizer, 0.2, **given, steps=8)
    assert_same(train(model, optimizer, range(8), pruner.step), weights(run))
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in composers.masks.items())
    assert pruner.remaining() == round(0.2 * sum(w.numel() for w in pruner.weights.values()))


def test_gradual_pruning_refuses_times_that_it_cannot_tell():
    model = classifier()

    def begin(**given):
        return MagnitudePruner(model, sgd(model), 0.2, **given)

    with pytest.raises(ValueError, match=r"MagnitudePruner: steps must be given, as 0\.5dur is a share of them"):
        begin(start="0.5dur")
    with pytest.raises(ValueError, match=r"start, end and interval must be in ba or dur, got .*'1ep'"):
        begin(start="1ep").step()
    with pytest.raises(ValueError, match="end must be within the training, which lasts 8ba, got '9ba'"):
        begin(start="1ba", end="9ba", steps=8)
    with pytest.raises(ValueError, match="end must be after start=2ba, got '1ba'"):
        begin(start="2ba", end="1ba")
    late = begin(start="5ba")
    late.step()
    with pytest.warns(UserWarning, match="ended after 1ba, before start=5ba, so that 3376 weights are left, not 675"):
        late.finish()


def of_nothing_finite(pruner):
    next(iter(pruner.weights.values())).data[0] = math.nan
    return "scores of module.0.weight are not finite"


def of_a_layer_that_would_collapse(pruner):
    [*pruner.weights.values()][1].data.mul_(1e-9)
    warnings.simplefilter("error", LayerCollapseWarning)
    return "layer collapse"


@pytest.mark.parametrize("given", [{"start": "1ba"}, {"start": "1ba", "end": "3ba", "interval": "1ba"}], ids=str)
@pytest.mark.parametrize("broken", [of_nothing_finite, of_a_layer_that_would_collapse])
def test_what_could_not_be_pruned_is_still_due(broken, given):
    """Whoever mends the weights and goes on is not left with a network that counts as pruned."""
    model = classifier()
    pruner = MagnitudePruner(model, sgd(model), 0.2, **given)
    was = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        message = broken(pruner)
        for updates in (3, 4, 5):
            with pytest.raises((ValueError, LayerCollapseWarning), match=message):
                pruner.update(updates)
    assert not pruner.complete and pruner.remaining() == sum(weight.numel() for weight in pruner.weights.values())
    model.load_state_dict(was)
    for _ in range(2):
        pruner.step()
    assert pruner.complete and pruner.remaining() == round(0.2 * sum(w.numel() for w in pruner.weights.values()))


CHOICES = [
    ("magnitude", {}),
    ("random", {"shuffle": True}),
    ("snip", {"iterations": 3, "invert": True, "scope": "layerwise"}),
    ("snip", {"reinitialize": True, "shuffle": True}),
    ("gradient_magnitude", {"scope": "layerwise"}),
    ("grasp", {"temperature": 200.0}),
    ("synflow", {"iterations": 5}),
]


@pytest.mark.parametrize("criterion, given", CHOICES, ids=str)
def test_pruning_at_initialization_is_that_of_composers_class(criterion, given):
    """Bit for bit, where the loop gives the same samples of each class in the same batches."""
    run = fit(composers := PruneAtInit(criterion, 0.5, samples_per_class=4, **given))
    model, (x, y) = classifier(), examples()
    chosen = class_balanced([*zip(x, y, strict=True)], 4, seed=7)
    seen = [(x[chosen[i : i + 8]], y[chosen[i : i + 8]]) for i in (0, 8)]
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer)
    given = given | {"forward": lambda model, inputs: model.module(inputs), "seed": 7}
    pruner.prune(prune_at_init(model, criterion, 0.5, seen, F.cross_entropy, **given))
    assert_same(train(model, optimizer, range(8)), weights(run))
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in composers.masks.items())


def test_pruning_at_initialization_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 4))
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = examples()
    for criterion in ("snip", "synflow", "grasp"):
        masks = prune_at_init(model, criterion, 0.3, [(x, y)], F.cross_entropy, iterations=2)
        assert sum(map(size, masks.values())) == round(0.3 * (108 + 1600))
    of_batch = prune_at_init(
        model, "grasp", 0.3, [(x, y)], batch_loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        iterations=2,
    )  # fmt: skip
    assert all(torch.equal(masks[name], of_batch[name]) for name in masks)
    assert_same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), drawn) and all(p.grad is None for p in model.parameters())


def test_what_pruning_at_initialization_cannot_do_says_so():
    model, (x, y) = classifier(), examples()
    for wrong, message in (
        ({"criterion": "hessian"}, "criterion must be a function or one of magnitude, random"),
        ({"density": None}, "density must be given where no ticket is"),
        ({"density": 1.0}, r"density must be a share in \(0, 1\)"),
        ({"loss": None}, "loss must be given, as snip takes its gradient"),
        ({"batches": []}, "There are no samples"),
        ({"criterion": "synflow", "batches": []}, "synflow needs batches of"),
        ({"temperature": 2.0, "batch_loss": loss_of}, "temperature must be 1 beside batch_loss"),
    ):
        given: dict[str, Any] = {
            "criterion": "snip",
            "density": 0.5,
            "batches": [(x, y)],
            "loss": F.cross_entropy,
            **wrong,
        }
        with pytest.raises(ValueError, match=f"prune_at_init: {message}"):
            prune_at_init(model.module, **given)
