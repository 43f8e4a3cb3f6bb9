"""The cyclic learning rate against the formula, the paper's numbers, and Composer's schedulers."""

import math
import re
from fractions import Fraction
from itertools import islice

import pytest
import torch
from composer import Callback, DataSpec
from composer.core import Time, ensure_time
from composer.optim import CosineAnnealingWarmRestartsScheduler, CosineAnnealingWithWarmupScheduler
from torch.utils.data import DataLoader, IterableDataset

from accelerando.algorithms import (
    Cycles,
    MultiplicativeCyclicLR,
    MultiplicativeCyclicScheduler,
    TradeoffCurve,
    cycle_ends,
    cyclic_multiplier,
)
from tiny import SAMPLES, assert_same, examples, fit, loader, network, plain_loop, trainer, weights

ETA_MAX = 0.1  # of the tiny run, whose epochs have 4 batches, the last one smaller


def reference(t, W, T_0, growth=2, eta_min=0.0):
    """The learning rate over eta_max, as the paper's authors write it."""
    if t < W:
        return t / W
    lengths = [T_0 * Fraction(str(growth)) ** i for i in range(40)]
    i = next(i for i in range(40) if t - W < sum(lengths[: i + 1]))
    T_cur = t - W - sum(lengths[:i])
    return eta_min + (1 - eta_min) / 2 * (1 + math.cos(math.pi * T_cur / lengths[i]))


class Rates(Callback):
    """The learning rate that each update uses."""

    def __init__(self):
        self.used = []

    def batch_start(self, state, logger):
        self.used.append(state.optimizers[0].param_groups[0]["lr"])


def rates(scheduler, max_duration, **options):
    seen = Rates()
    trainer(schedulers=scheduler, max_duration=max_duration, callbacks=seen, **options).fit()
    return seen.used


def sample(k):
    return SAMPLES * (k // 4) + 8 * (k % 4)


def late(k):
    return sample(max(k - 1, 0))


def tokens():
    return DataSpec(loader(), get_num_tokens_in_batch=lambda batch: 5 * len(batch[0]))


# t_warmup, t_period and what else the scheduler gets; max_duration; its updates; the time before update k.
RUNS = {
    "ep": (("1ep", "1ep"), "8ep", 32, lambda k: k / 4),
    "ep, not whole": (("1ep", "1ep", 1.5), "23ba", 23, lambda k: k / 4),
    "ep, constant": (("1ep", "2ep", 1), "7ep", 28, lambda k: k / 4),
    "ba": (("3ba", "4ba"), "15ba", 15, lambda k: k),
    "ba, not whole": (("2ba", "3ba", 1.5, 0.1), "17ba", 17, lambda k: k),
    "ba, constant, no warmup": (("0ep", "4ba", 1), "3ep", 12, lambda k: k),
    "dur of ep": (("0.25dur", "0.25dur"), "4ep", 16, lambda k: k / 16),
    "dur of ba": (("0.1dur", "0.36dur", 1.5), "10ba", 10, lambda k: k / 10),
    "dur of sp": (("0.25dur", "0.25dur"), "120sp", 16, lambda k: late(k) / 120),
    "sp": (("30sp", "20sp", 2, 0.2), "90sp", 12, late),
    "tok": (("150tok", "150tok"), "600tok", 16, lambda k: 5 * late(k)),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_update_has_the_rate_of_the_formula(run):
    arguments, max_duration, updates, t = RUNS[run]
    W, T_0 = (ensure_time(time, "ep").value for time in arguments[:2])
    expected = [ETA_MAX * reference(t(k), W, T_0, *arguments[2:]) for k in range(updates)]
    used = rates(MultiplicativeCyclicScheduler(*arguments), max_duration, train_dataloader=tokens())
    assert used == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("growth", [1, 1.25, 1.5, 2, 3])
def test_multiplier_is_the_formula(growth):
    for n in range(1500):
        t = Fraction(n, 20)
        expected = reference(t, 7, 3, growth, 0.05)
        assert cyclic_multiplier(t, 7, 3, Fraction(growth), 0.05) == pytest.approx(expected, abs=1e-12)


def test_the_papers_numbers():
    assert [*islice(cycle_ends(8, 8), 6)] == [16, 32, 64, 128, 256, 512]

    def eta(k):
        return 2.048 * cyclic_multiplier(Fraction(k, 625), 8, 8)

    assert [eta(k) for k in range(5000)] == pytest.approx([2.048 * k / 5000 for k in range(5000)])
    assert sum(eta(k) for k in range(10_000)) == pytest.approx(10_240)
    for end in (16, 32, 64, 128, 256, 512):
        assert eta(625 * end) == 2.048 and eta(625 * end - 1) < 1e-6


@pytest.mark.parametrize("growth", ["1.1", "1.5", "1.3333"])
def test_fractional_growth_does_not_drift(growth):
    g = Fraction(growth)
    ends = [*islice(MultiplicativeCyclicScheduler("5ep", "3ep", float(growth)).cycle_ends(), 40)]
    assert ends == [5 + 3 * (g ** (i + 1) - 1) / (g - 1) for i in range(40)]
    for end in ends:
        assert cyclic_multiplier(end, 5, 3, g) == 1
        assert cyclic_multiplier(end - Fraction(1, 10**5), 5, 3, g) < 1e-9


# Where the checkpoint of an epoch's last batch is loaded.
@pytest.mark.filterwarnings("ignore:No batches were trained:UserWarning", "ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("run", ["ep, not whole", "ba", "dur of ep", "sp"])
def test_rates_go_on_after_a_resume_at_any_batch(run, tmp_path):
    arguments, max_duration, updates, _ = RUNS[run]

    def start(**options):
        return rates(MultiplicativeCyclicScheduler(*arguments), max_duration, **options)

    whole = start(save_folder=str(tmp_path), save_interval="1ba", save_filename="{batch}.pt")
    for batch in range(1, updates):
        assert start(load_path=str(tmp_path / f"{batch}.pt")) == whole[batch:]


def test_what_the_trainer_can_change():
    def per_epoch(n):
        return [ETA_MAX * reference(Fraction(k, n), 1, 1) for k in range(4 * n)]

    cyclic = MultiplicativeCyclicScheduler("1ep", "1ep")
    assert rates(cyclic, "4ep", train_subset_num_batches=3) == pytest.approx(per_epoch(3))
    assert rates(cyclic, "4ep", device_train_microbatch_size=3) == pytest.approx(per_epoch(4))
    seen = Rates()
    run = trainer(schedulers=MultiplicativeCyclicScheduler("2ba", "2ba", 1), max_duration=None, callbacks=seen)
    for piece in ("4ba", "3ba", "1ba"):
        run.fit(duration=piece)
    assert seen.used == pytest.approx([ETA_MAX * reference(k, 2, 2, 1) for k in range(8)])
    seen = Rates()
    run = trainer(schedulers=cyclic, max_duration="4ep", callbacks=seen, train_dataloader=None)
    run.fit(train_dataloader=loader())
    assert seen.used == pytest.approx(per_epoch(4))


@pytest.mark.parametrize(
    "arguments, max_duration", [(("1ep", "1ep"), "4ep"), (("1ba", "2ba"), "3ba"), (("0ba", "8ba"), "2ep")]
)
def test_a_schedule_by_epoch_is_refused_before_the_second_update(arguments, max_duration):
    """Also in a run that ends within its first epoch, and so never asks for another rate."""
    seen, plain, cyclic = Rates(), MultiplicativeCyclicScheduler(*arguments), MultiplicativeCyclicScheduler(*arguments)
    options = {"callbacks": seen, "max_duration": max_duration, "step_schedulers_every_batch": False}
    for schedulers, algorithms in ((plain, ()), (cyclic, TradeoffCurve(cyclic))):
        seen.used.clear()
        evaluation = loader() if algorithms else None
        with pytest.raises(ValueError, match="step_schedulers_every_batch must not be False"):
            trainer(algorithms, schedulers=schedulers, eval_dataloader=evaluation, **options).fit()
        assert len(seen.used) == 2


def test_with_one_batch_an_epoch_both_are_the_same():
    options = {"train_dataloader": loader(SAMPLES), "step_schedulers_every_batch": False}
    used = rates(MultiplicativeCyclicScheduler("1ep", "1ep"), "4ep", **options)
    assert used == pytest.approx([ETA_MAX * reference(k, 1, 1) for k in range(4)])


@pytest.mark.parametrize(
    "cyclic, composers",
    [
        (("5ba", "11ba"), CosineAnnealingWithWarmupScheduler("5ba", "16ba")),
        (("5ba", "11ba", 2, 0.1), CosineAnnealingWithWarmupScheduler("5ba", "16ba", alpha_f=0.1)),
        (("0ba", "4ba", 1), CosineAnnealingWarmRestartsScheduler("4ba")),
    ],
)
def test_like_composers_which_are_one_update_late(cyclic, composers):
    mine, theirs = (rates(each, "16ba") for each in (MultiplicativeCyclicScheduler(*cyclic), composers))
    assert mine[:-1] == pytest.approx(theirs[1:])


@pytest.mark.parametrize(
    "arguments, max_duration, ratio, updates, t",
    [
        (("1ep", "1ep"), "4ep", 0.5, 8, lambda k: k / 4),
        (("2ba", "2ba"), "8ba", 1.5, 12, lambda k: k),
        (("60sp", "60sp"), "240sp", 0.5, 16, late),
        (("0.25dur", "0.75dur"), "8ba", 0.5, 4, lambda k: k / 8),
    ],
)
def test_scale_schedule_ratio(arguments, max_duration, ratio, updates, t):
    used = rates(MultiplicativeCyclicScheduler(*arguments), max_duration, scale_schedule_ratio=ratio)
    W, T_0 = (ensure_time(time, "ep").value for time in arguments[:2])
    assert used == pytest.approx([ETA_MAX * reference(t(k) / ratio, W, T_0) for k in range(updates)], abs=1e-12)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("1ep", "0ep"), "t_period must be finite and above 0, got '0ep'"),
        (("1ep", "-1ep"), "t_period must be finite and above 0, got '-1ep'"),
        (("0dur", "nandur"), "t_period must be finite and above 0, got 'nandur'"),
        (("0dur", "infdur"), "t_period must be finite and above 0, got 'infdur'"),
        (("-1ba", "1ba"), "t_warmup must be finite and not below 0, got '-1ba'"),
        (("nandur", "1dur"), "t_warmup must be finite and not below 0, got 'nandur'"),
        (("1ep", "8ba"), "t_warmup must be in the unit of t_period=8ba, got '1ep'"),
        (("0ep", "8iter"), "t_period must be in one of ep, ba, sp, tok, dur, got '8iter'"),
        (("8sec", "8ep"), "t_warmup must be in one of ep, ba, sp, tok, dur, got '8sec'"),
        *((("1ep", "1ep", x), f"growth must be finite and at least 1, got {x}") for x in (0.9, -2, math.nan, math.inf)),
        *((("1ep", "1ep", 2, x), rf"alpha_f must be in \[0, 1\), got {x}") for x in (-0.1, 1, math.nan, math.inf)),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"MultiplicativeCyclicScheduler: {message}"):
        MultiplicativeCyclicScheduler(*arguments)


INSIDE, SHORT = "ends inside a cycle, at a high learning rate", "is shorter than a cycle"


@pytest.mark.parametrize(
    "arguments, max_duration, batches, message",
    [
        (("8ep", "8ep"), "90ep", 625, f"{INSIDE}; use 64ep or 128ep."),
        (("8ep", "8ep"), "90ep", None, f"{INSIDE}; use 64ep or 128ep."),
        (("8ep", "8ep"), "15ep", 625, f"{SHORT}; use 16ep."),
        (("8ep", "8ep"), "20001ba", 625, f"{INSIDE}; use 20000ba or 40000ba."),
        (("100ba", "100ba"), "9ep", 50, f"{INSIDE}; use 8ep or 16ep."),
        (("1ep", "1ep", 1.5), "3ep", 4, f"{INSIDE}; use 2ep or 14ba."),
        (("1ep", "1ep", 1.5), "3ep", 625, f"{INSIDE}; use 2ep or 2188ba."),
        (("10ba", "20ba"), "2ep", 20, f"{INSIDE}; use 30ba or 70ba."),
        (("2ba", "3ba", 1.5), "11ba", None, f"{INSIDE}; use 10ba or 17ba."),
        (("0sp", "100sp"), "299sp", 4, f"{INSIDE}; use 100sp or 300sp."),
        (("0tok", "5tok"), "4tok", None, f"{SHORT}; use 5tok."),
        (
            ("0.3dur", "0.3dur"),
            "8ba",
            4,
            f"{INSIDE}; choose t_warmup, t_period and growth such that .* add up to 1dur.",
        ),
        (("0.5dur", "0.75dur"), "8ep", 4, f"{SHORT}; choose t_warmup"),
    ],
)
def test_a_run_must_end_with_a_cycle(arguments, max_duration, batches, message):
    cyclic = MultiplicativeCyclicScheduler(*arguments)
    with pytest.raises(ValueError, match=f"max_duration={max_duration} {message}") as refused:
        cyclic.check_duration(max_duration, batches)
    for proposed in re.findall(r"\d+(?:ep|ba|sp|tok)\b", str(refused.value).partition(" use ")[2]):
        cyclic.check_duration(Time.from_timestring(proposed), batches)


@pytest.mark.parametrize("unit, known", [("ep", "ep ba"), ("ba", "ba ep"), ("sp", "sp"), ("tok", "tok")])
@pytest.mark.parametrize("duration", ["7ep", "7ba", "7sp", "7tok"])
def test_what_the_data_decide_is_not_refused(unit, known, duration):
    def check(batches):
        MultiplicativeCyclicScheduler(f"1{unit}", f"1{unit}").check_duration(duration, batches)

    if (needs_length := duration[1:] in known) and duration[1:] == unit:
        with pytest.raises(ValueError, match="use"):
            check(None)
    else:
        check(None)
    if needs_length:
        with pytest.raises(ValueError, match="use"):
            check(3)


def test_the_trainer_refuses_a_run_that_ends_inside_a_cycle():
    def run(*arguments, **options):
        return trainer(schedulers=MultiplicativeCyclicScheduler(*arguments), **options)

    with pytest.raises(ValueError, match=r"max_duration=3ep ends inside a cycle, .*; use 2ep or 4ep"):
        run("1ep", "1ep", max_duration="3ep")
    for late in (
        run("3ba", "3ba", max_duration="2ep", train_dataloader=None),
        run("3ba", "3ba", max_duration=None),
    ):
        with pytest.raises(ValueError, match=r"max_duration=2ep ends inside a cycle, .*; use 6ba or 3ep"):
            late.fit(train_dataloader=loader(), duration=None if late.state.max_duration else "2ep")
    with pytest.raises(ValueError, match=r"max_duration=3ba, stretched by 0\.5, ends inside a cycle"):
        run("2ba", "2ba", max_duration="6ba", scale_schedule_ratio=0.5).fit()


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(*examples(), strict=True)


def test_epochs_of_data_without_a_length():
    endless = DataLoader(Endless(), 8)
    with pytest.raises(ValueError, match="cannot count parts of epochs, because the dataloader has no length; give"):
        rates(MultiplicativeCyclicScheduler("1ep", "1ep"), "8ba", train_dataloader=endless)
    used = rates(MultiplicativeCyclicScheduler("0.5dur", "0.5dur"), "8ba", train_dataloader=endless)
    assert used == pytest.approx([ETA_MAX * reference(k, 4, 4) for k in range(8)])


SCHEDULES = [(3, 4), (2, 3, 1.5, 0.1), (0, 4, 1), (0.1, 0.36, 1.5), (2.5, 0.5, 1)]


def plain(*arguments, groups=1):
    """A scheduler of torch's, whose groups have peaks of 0.1, 0.2, ..."""
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": ETA_MAX * (n + 1)} for n in range(groups)]
    return MultiplicativeCyclicLR(torch.optim.SGD(parameters, 0.1), *arguments)


def plain_rates(scheduler, updates):
    """Those of the next `updates`, of each group."""
    used = []
    for _ in range(updates):
        used.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("arguments", SCHEDULES)
def test_in_a_plain_loop_every_update_has_the_rate_of_the_formula(arguments):
    W, T_0 = (Fraction(str(x)) for x in arguments[:2])
    expected = [reference(k, W, T_0, *arguments[2:]) for k in range(20)]
    for one, two in zip(expected, plain_rates(plain(*arguments, groups=2), 20), strict=True):
        assert two == pytest.approx([0.1 * one, 0.2 * one], abs=1e-12)


@pytest.mark.parametrize("arguments", SCHEDULES[:3])
def test_a_plain_loop_ends_in_the_weights_of_composers(arguments):
    times = [f"{x}ba" for x in arguments[:2]]
    composers = MultiplicativeCyclicScheduler(*times, *arguments[2:])
    updates = next(math.ceil(end) for end in composers.cycle_ends() if end > 9)
    module = network()
    for _ in plain_loop(module, updates, lambda optimizer: MultiplicativeCyclicLR(optimizer, *arguments)):
        pass
    run = fit(schedulers=composers, max_duration=f"{updates}ba")
    assert_same({f"module.{name}": value for name, value in module.state_dict().items()}, weights(run))


@pytest.mark.parametrize("arguments", SCHEDULES)
def test_a_plain_scheduler_goes_on_from_its_state_at_any_update(arguments):
    whole = plain_rates(plain(*arguments), 20)
    for update in range(20):
        before, after = plain(*arguments), plain(5, 7)
        plain_rates(before, update)
        after.load_state_dict(before.state_dict())
        after.optimizer.load_state_dict(before.optimizer.state_dict())
        assert plain_rates(after, 20 - update) == whole[update:]
        assert after.cycles == before.cycles
        again = MultiplicativeCyclicLR(before.optimizer, *arguments, last_epoch=update - 1)
        assert plain_rates(again, 20 - update) == whole[update:]


def test_cycles_are_counted_exactly():
    for W, T_0, growth in [(8, 8, 2), (0, 4, 1), (2, 3, 1.5), (0.3, 0.1, 1), (1, 2.5, 1.1)]:
        cycles = Cycles.of(W, T_0, growth)
        ends = [*islice(cycles.ends(), 12)]
        for i, end in enumerate(ends[:-1]):
            assert cycles.ended(end) == i + 1 and cycles.ended(end - Fraction(1, 10**9)) == i
            assert cycles.scaled(0.5).ended(end / 2) == i + 1
            assert cycles.within(end) == len({e for e in ends if math.ceil(e) <= end})
        assert cycles.ended(0) == 0
    scheduler = plain(2, 3, 1.5)
    assert [scheduler.cycles_ended(k) for k in (4, 5, 9, 10, 17)] == [0, 1, 1, 2, 3]
    assert [*islice(scheduler.cycle_ends(), 3)] == [5, 9.5, 16.25]


def test_a_plain_training_must_end_with_a_cycle():
    for steps in (16, 32, 64):
        plain(8, 8).check_steps(steps)
    plain(2, 3, 1.5).check_steps(17)  # 16.25
    for arguments, steps, use in [((8, 8), 33, "32 or 64"), ((8, 8), 31, "16 or 32"), ((2, 3, 1.5), 16, "10 or 17")]:
        message = f"MultiplicativeCyclicLR: a training of {steps} updates {INSIDE}; use {use}."
        with pytest.raises(ValueError, match=message):
            plain(*arguments).check_steps(steps)
    with pytest.raises(ValueError, match=f"a training of 15 updates {SHORT}; use 16."):
        plain(8, 8).check_steps(15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        *(((x, 1), f"warmup must be finite and not below 0, got {x}") for x in (-1, math.nan, math.inf)),
        *(((1, x), f"period must be finite and above 0, got {x}") for x in (0, -1, math.nan, math.inf)),
        ((1, 1, 0.9), "growth must be finite and at least 1, got 0.9"),
        ((1, 1, 2, 1), r"alpha_f must be in \[0, 1\), got 1"),
    ],
)
def test_refused_arguments_of_the_plain_scheduler(arguments, message):
    with pytest.raises(ValueError, match=f"MultiplicativeCyclicLR: {message}"):
        plain(*arguments)
