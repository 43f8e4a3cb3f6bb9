from itertools import pairwise

import pytest
import torch
from composer import Callback

from accelerando.algorithms import MagnitudePruning, PruneAtInit
from accelerando.algorithms.pruning import gradual_density, keep_highest
from accelerando.algorithms.pruning.masks import size
from tiny import classifier, fit, loader, network, trainer, weights

TOTAL = 3376
SIZES = {"module.0.weight": 432, "module.3.weight": 2304, "module.6.weight": 512, "module.9.weight": 128}


WHOLE = {"device_train_microbatch_size": 2}  # by which every batch can be divided, of which Composer else warns


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


@pytest.mark.parametrize("base, arguments", [(MagnitudePruning, {}), (PruneAtInit, {"criterion": "magnitude"})])
def test_a_subclass_prunes_before_a_later_update(base, arguments):
    class Mine(base):
        def before_update(self, state, logger):
            super().before_update(state, logger)
            if state.timestamp.batch == 4:
                scores = {name: weight.detach().abs() for name, weight in self.weights.items()}
                self.prune(keep_highest(scores, TOTAL // 4, self.masks), state, logger)

    assert counts(Mine(density=0.5, **arguments)) == [TOTAL // 2] * 4 + [TOTAL // 4] * 4


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


@pytest.mark.parametrize(
    "start, end, interval, first, last",  # the last two in batches
    [
        ("1ba", "5ba", None, 1, 5),
        ("1ep", "2ep", None, 4, 8),
        ("0.25dur", "0.75dur", None, 2, 6),
        ("0dur", "1ep", None, 0, 4),
        ("0ep", "6ba", None, 0, 6),
        ("1ep", "0.75dur", None, 4, 6),
        ("0.25dur", "6ba", None, 2, 6),
        ("2ba", "2ep", "0.125dur", 2, 8),
        ("0dur", "1ep", "2ba", 0, 4),
    ],
)
def test_the_interval_is_there_in_every_unit_and_the_units_may_differ(start, end, interval, first, last):
    step = 2 if interval == "2ba" else 1
    expected = []
    for batch in range(1, 9):
        over = min(max((batch - first) // step * step / (last - first), 0), 1)
        over = int(100 * over + 1e-6) / 100 if interval is None else over
        expected.append(int((0.4 + 0.6 * (1 - over) ** 3) * TOTAL + 0.5))
    assert counts(MagnitudePruning(0.4, start, end, interval)) == expected


def test_samples_have_an_interval_too():
    assert counts(MagnitudePruning(0.4, "8sp", "48sp", schedule="linear"))[-2:] == [1350, 1350]


@pytest.mark.parametrize(
    "times, message",
    [
        (("1ep", "48sp"), "start=1ep, end=48sp cannot be compared; give them in one unit"),
        (("1ep", "3ba"), "end must be after start=1ep, got '3ba'"),
        (("2ba", "1ep", "0.5dur"), "interval must be up to the time from start to end, got '0.5dur'"),
        (("1ba", "3ep"), r"end must be within the training, which lasts 2ep, got '3ep'"),
    ],
)
def test_times_that_make_no_sense_together_are_refused_before_training(times, message):
    with pytest.raises(ValueError, match=message):
        counts(MagnitudePruning(0.5, *times))


def sparse():
    """A model most of whose weights are zero, and the masks of those that are not."""
    model = classifier()
    held = {name: model.get_parameter(name).data for name in SIZES}
    shares = {"module.0.weight": 0.5, "module.3.weight": 0.1, "module.6.weight": 0.04, "module.9.weight": 1.0}
    kept = {name: round(shares[name] * count) for name, count in SIZES.items()}
    masks = keep_highest({name: weight.abs() for name, weight in held.items()}, kept)
    for name, weight in held.items():
        weight[~masks[name]] = 0.0
    return model, masks


@pytest.mark.filterwarnings("ignore:MagnitudePruning. layer collapse")
@pytest.mark.parametrize("end", ["8ba", None])
@pytest.mark.parametrize("scope", ["global", "layerwise", "by patterns"])
def test_a_network_that_has_zeros_already_goes_on_from_there(scope, end):
    """Zhu and Gupta's equation 1 with the initial sparsity that there is; what is zero stays so."""
    (model, masks), share = sparse(), 0.05
    kept = {name: size(mask) for name, mask in masks.items()}
    if scope == "global":
        groups = [(TOTAL, sum(kept.values()), share)]
    else:  # one of the layers is sparser than asked for, and stays so
        shares = dict.fromkeys(SIZES, share) if scope == "layerwise" else {"module.3.weight": share}
        groups = [(SIZES[name], kept[name], shares.get(name, 1.0)) for name in SIZES]

    def due(over):
        for count, first, share in groups:
            share = min(share, first / count)
            yield int((share + (first / count - share) * (1 - over) ** 3) * count + 0.5)

    density = {"module.3.*": share} if scope == "by patterns" else share
    pruning = MagnitudePruning(density, end=end, scope="layerwise" if scope == "layerwise" else "global")
    expected = [sum(due(int(100 * batch / 8) / 100 if end else 1)) for batch in range(1, 9)]
    assert counts(pruning, model=model) == expected
    assert expected[0] < sum(kept.values()) and expected == sorted(expected, reverse=True)
    assert not any((pruning.masks[name] & ~masks[name]).any() for name in masks)


def test_what_is_sparser_than_asked_for_stays_as_it_is():
    model, masks = sparse()
    assert counts(MagnitudePruning(0.5, end="1ep"), model=model) == [sum(map(size, masks.values()))] * 8
    model, masks = sparse()  # before the start, it is trained densely
    seen = counts(MagnitudePruning(0.5, "1ep"), model=model)
    assert seen[0] > sum(map(size, masks.values())) and seen[3:] == [TOTAL // 2] * 5


@pytest.mark.filterwarnings("ignore:MagnitudePruning. layer collapse")
def test_gradual_pruning_of_a_sparse_network_resumes_from_what_it_was(tmp_path):
    def start(**options):
        seen, model = Counts(), sparse()[0]
        run = trainer(MagnitudePruning(0.05, end="8ba"), model=model, callbacks=seen, **options)
        run.fit()
        return seen.of, weights(run)

    whole = start(save_folder=str(tmp_path), save_interval="1ba", save_filename="{batch}.pt")
    resumed = start(load_path=str(tmp_path / "3.pt"))
    assert resumed[0] == whole[0][3:]
    assert all(torch.equal(resumed[1][name], whole[1][name]) for name in SIZES)


def test_a_layer_that_is_zero_before_the_first_update_is_refused_but_not_once_it_is_trained():
    def headless():
        model = classifier()
        model.module[9].weight.data.zero_()
        return model

    for end in (None, "1ep"):
        with pytest.raises(
            ValueError, match=r"all of module\.9\.weight is zero, and would never be trained; begin later"
        ):
            counts(MagnitudePruning(0.5, end=end), model=headless())
    assert counts(MagnitudePruning(0.5, "1ba", scope="layerwise"), model=headless()) == [TOTAL // 2] * 8


class Stop(Callback):
    """Stops the training at an event, once there were so many updates."""

    def __init__(self, batch, event="eval_end"):
        self.batch = batch
        setattr(self, event, self.stop)

    def stop(self, state, logger):
        if state.timestamp.batch == self.batch:
            state.stop_training()


@pytest.mark.parametrize(
    "start, end, event, before",
    [
        ("1ba", "7ba", "eval_end", 5),
        ("0ep", "2ep", "batch_end", 5),
        ("0.25dur", "0.875dur", "eval_end", 5),
        ("0.25dur", "0.875dur", "batch_start", 4),
        ("8sp", "56sp", "eval_end", 5),
    ],
)
def test_a_training_that_is_stopped_says_so_and_prunes_no_more_than_was_due(start, end, event, before):
    whole, seen, pruning = counts(MagnitudePruning(0.25, start, end)), Counts(), MagnitudePruning(0.25, start, end)
    message = rf"the training has ended after 5ba, before end={end}, so that {whole[4]} weights are left, not 844"
    with pytest.warns(UserWarning, match=message):
        fit(pruning, callbacks=[seen, Stop(before, event)], eval_dataloader=loader(5), eval_interval="1ba", **WHOLE)
    assert seen.of == whole[:5] and whole[4] > whole[7] == 844


def test_samples_that_never_come_are_told_of():
    with pytest.warns(UserWarning, match="before start=99sp, so that 3376 weights are left, not 844"):
        fit(MagnitudePruning(0.25, "99sp"), **WHOLE)


@pytest.mark.parametrize("end", [None, "3ba"])
def test_what_is_complete_still_counts_and_heeds_another_density(end):
    pruning = MagnitudePruning(0.5, start="1ba", end=end)
    run = fit(pruning, max_duration="6ba")
    assert pruning.state_dict()["updates"] == 6
    half, total = pruning.remaining(), sum(weight.numel() for weight in pruning.weights.values())
    pruning.gradual.density = 0.2
    run.fit(duration="2ba")
    assert pruning.state_dict()["updates"] == 8
    assert (half, pruning.remaining()) == (round(0.5 * total), round(0.2 * total))


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


@pytest.mark.filterwarnings("ignore:.* are chosen by their index alone")
def test_what_is_pruned_stays_so_beside_survivors_that_are_zero_too():
    before: dict[str, torch.Tensor] = {}

    class Zero(Callback):
        def batch_start(self, state, logger):
            if state.timestamp.batch == 3:
                before.update({name: mask.clone() for name, mask in pruning.masks.items()})
                weight, kept = pruning.weights["module.3.weight"].data, pruning.masks["module.3.weight"]
                weight[kept] = torch.eye(1, int(kept.sum()))[0]  # all but one 0: more than are pruned next

    pruning, model = MagnitudePruning(0.5, "1ba", "5ba", "2ba", "linear"), classifier()
    fit(pruning, model=model, optimizers=torch.optim.SGD(model.parameters(), 0.0), callbacks=Zero(), max_duration="5ba")
    assert pruning.remaining() == 1688 and before
    for name in SIZES:
        assert not (pruning.masks[name] & ~before[name]).any()
