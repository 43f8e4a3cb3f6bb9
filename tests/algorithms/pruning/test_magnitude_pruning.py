from itertools import pairwise

import pytest
import torch
from composer import Callback

from accelerando.algorithms import MagnitudePruning
from accelerando.algorithms.pruning import gradual_density, keep_highest
from accelerando.algorithms.pruning.masks import size
from tiny import classifier, fit, loader, network, trainer, weights

TOTAL = 3376
SIZES = {"module.0.weight": 432, "module.3.weight": 2304, "module.6.weight": 512, "module.9.weight": 128}


class Counts(Callback):
    """How many weights are not zero, after each update: in the evaluation and in the checkpoint that follow."""

    def __init__(self):
        self.of = []

    def batch_checkpoint(self, state, logger):
        self.of.append(sum(int(state.model.get_parameter(name).count_nonzero()) for name in SIZES))


def counts(pruning, **options):
    seen = Counts()
    fit(pruning, callbacks=seen, **options)
    return seen.of


@pytest.mark.parametrize("schedule, power", [("linear", 1), ("cubic", 3)])
@pytest.mark.parametrize(
    "start, end, interval, times",
    [
        ("1ba", "7ba", "2ba", {1: 0, 3: 2 / 6, 5: 4 / 6, 7: 1}),
        ("1ba", "6ba", "2ba", {1: 0, 3: 2 / 5, 5: 4 / 5, 6: 1}),
        ("0.25dur", "1dur", "0.125dur", {2 + k: k / 6 for k in range(7)}),
        ("0ep", "2ep", "1ep", {4: 1 / 2, 8: 1}),
        ("8sp", "48sp", "16sp", {1: 0, 3: 16 / 40, 6: 32 / 40, 7: 1}),  # batches of 8, 8, 8 and 6
    ],
)
def test_the_density_follows_the_formula(schedule, power, start, end, interval, times):
    """Zhu and Gupta's equation 1, in densities; every step is in force when it is due."""
    expected, share = [], 1.0
    for batch in range(1, 9):
        if batch in times:
            share = 0.4 + 0.6 * (1 - times[batch]) ** power
        expected.append(int(share * TOTAL + 0.5))
    pruning = MagnitudePruning(0.4, start, end, interval, schedule)
    assert counts(pruning) == expected


def test_gradual_density():
    assert [gradual_density(x, 0.1, "linear") for x in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert [gradual_density(x, 0.1) for x in (0, 0.5, 1)] == pytest.approx([1, 0.1 + 0.9 / 8, 0.1])
    assert gradual_density(0.5, 0.1, "linear", initial=0.5) == pytest.approx(0.3)


@pytest.mark.parametrize("start, first", [("0dur", 1), ("0ba", 1), ("3ba", 3), ("0.5dur", 4), ("1ep", 4), ("7ba", 7)])
def test_one_shot(start, first):
    assert counts(MagnitudePruning(0.25, start)) == [TOTAL if batch < first else 844 for batch in range(1, 9)]


def test_the_weights_of_least_magnitude_go():
    plain = weights(fit(max_duration="3ba"))
    scores = {name: plain[name].abs() for name in SIZES}
    for scope, kept in (("global", 1688), ("layerwise", {name: count // 2 for name, count in SIZES.items()})):
        pruning = MagnitudePruning(0.5, "3ba", scope=scope)
        run = fit(pruning, max_duration="3ba")
        expected = keep_highest(scores, kept)
        for name, mask in pruning.masks.items():
            assert torch.equal(mask, expected[name])
            assert torch.equal(weights(run)[name], plain[name] * expected[name])


def test_densities_by_layer():
    pruning = MagnitudePruning({"*.0.*": 0.5, "module.[36].weight": 0.25}, "1ba", "5ba", "2ba", "linear")
    fit(pruning)
    assert {name: size(mask) for name, mask in pruning.masks.items()} == {
        "module.0.weight": 216,
        "module.3.weight": 576,
        "module.6.weight": 128,
        "module.9.weight": 128,
    }


def test_nothing_comes_back():
    masks = []

    class Look(Callback):
        def batch_checkpoint(self, state, logger):
            masks.append({name: mask.clone() for name, mask in pruning.masks.items()})

    pruning = MagnitudePruning(0.1, "0ba", "8ba", "1ba", scope="layerwise")
    fit(pruning, callbacks=Look())
    for before, after in pairwise(masks):
        for name in SIZES:
            assert not (after[name] & ~before[name]).any()
    assert size(masks[-1]["module.3.weight"]) == 230


def test_some_layers_only():
    pruning = MagnitudePruning(0.5, include=["*.weight"], exclude=["*.0.*"], classifier=False)
    run = fit(pruning)
    assert [*pruning.masks] == ["module.3.weight", "module.6.weight"]
    assert all(weights(run)[name].all() for name in ("module.0.weight", "module.9.weight"))


def test_a_pretrained_network_is_evaluated_pruned():
    seen = []

    class Look(Callback):
        def eval_start(self, state, logger):
            seen.append(sum(int(state.model.get_parameter(name).count_nonzero()) for name in SIZES))

    run = trainer(
        MagnitudePruning(0.5, "2ba"),
        model=classifier(network(seed=3)),
        eval_dataloader=loader(),
        eval_interval="1ba",
        callbacks=Look(),
        max_duration="3ba",
    )
    run.fit()
    assert seen == [TOTAL, 1688, 1688]


def test_what_is_pruned_stays_so_beside_survivors_that_are_zero_too():
    before: dict[str, torch.Tensor] = {}

    class Zero(Callback):
        def batch_start(self, state, logger):
            if state.timestamp.batch == 3:
                before.update({name: mask.clone() for name, mask in pruning.masks.items()})
                pruning.weights["module.3.weight"].data.zero_()  # more than are pruned next, behind those of 0

    pruning, model = MagnitudePruning(0.5, "1ba", "5ba", "2ba", "linear"), classifier()
    fit(pruning, model=model, optimizers=torch.optim.SGD(model.parameters(), 0.0), callbacks=Zero(), max_duration="5ba")
    assert pruning.remaining() == 1688 and before
    for name in SIZES:
        assert not (pruning.masks[name] & ~before[name]).any()
