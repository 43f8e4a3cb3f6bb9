import copy

import pytest
import torch
from composer import Callback, Evaluator
from composer.algorithms import EMA, SAM
from composer.callbacks import EarlyStopper, ThresholdStopper
from composer.optim import (
    ConstantScheduler,
    CosineAnnealingScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    MultiStepScheduler,
    PolynomialScheduler,
)
from torch.nn import functional as F

from accelerando.algorithms import Distillation, LotteryTicket, MultiplicativeCyclicScheduler, TradeoffCurve
from accelerando.algorithms.pruning import keep_highest, level_densities, load_masks, prunable_weights
from accelerando.algorithms.pruning.masks import density, digest, size
from tiny import (
    Kill,
    assert_same,
    classifier,
    fit,
    loader,
    masked_lm,
    network,
    noisy_network,
    timeless,
    token_loader,
    trainer,
    weights,
)

BATCHES = 4  # in an epoch


def at_the_end_of_an_epoch(test):
    """Composer, when it goes on from there, begins with an epoch without batches, and warns."""
    for message in ("No batches were trained", "The ``compute`` method of metric"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


class Rates(Callback):
    """The learning rate of every update."""

    def __init__(self):
        self.of = []

    def before_train_batch(self, state, logger):
        self.of.append(state.optimizers[0].param_groups[0]["lr"])


class Ends(Callback):
    """The weights at every level's end, before the next pruning."""

    def __init__(self, batches):
        self.batches, self.weights = batches, []

    def batch_checkpoint(self, state, logger):
        if state.timestamp.batch.value in self.batches:
            self.weights.append(copy.deepcopy(state.model.state_dict()))


def start(ticket, scheduler=None, epochs=3, **options):
    model = options.pop("model", None) or classifier(noisy_network())
    options = {
        "model": model,
        "train_dataloader": loader(shuffle=True),
        "eval_dataloader": loader(batch_size=5),
        "eval_interval": "100ep",
        "optimizers": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "schedulers": ticket.wrap(scheduler or CosineAnnealingScheduler()),
        "max_duration": f"{epochs}ep",
    } | options
    return trainer(ticket, **options)


def run(ticket, *arguments, **options):
    result = start(ticket, *arguments, **options)
    result.fit()
    return result


def rates(scheduler, epochs=3):
    """Of a plain run, which passes through one training alone."""
    seen = Rates()
    fit(schedulers=scheduler, callbacks=seen, max_duration=f"{epochs}ep")
    return seen.of


def trained_alone(k, T, level, state, masks, learning_rates, seed=7):
    """The plain version: from step k, with that mask and new momenta, to T; the data where the run's have got to."""
    model, data = classifier(noisy_network()), loader(shuffle=True)
    model.load_state_dict(state)
    held = prunable_weights(model)
    for name, weight in held.items():
        weight.data[~masks[name]] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    first = T + (level - 1) * (T - k)
    data.sampler.set_epoch(first // BATCHES)
    batches = iter(data)
    for _ in range(first % BATCHES):
        next(batches)
    torch.manual_seed(seed + 1_000_003 * level)
    model.train()
    for update in range(first, first + T - k):
        if update % BATCHES == 0 and update > first:
            data.sampler.set_epoch(update // BATCHES)
            batches = iter(data)
        x, y = next(batches)
        optimizer.param_groups[0]["lr"] = learning_rates[k + update - first]
        optimizer.zero_grad()
        F.cross_entropy(model.module(x), y).backward()
        for name, weight in held.items():
            weight.grad[~masks[name]] = 0.0
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("k", [0, 3, 4])
def test_each_level_is_bit_for_bit_a_run_of_its_own_from_step_k(k):
    T, levels = 3 * BATCHES, 3
    totals = [T + level * (T - k) for level in range(levels + 1)]
    ticket, ends, at_k = LotteryTicket(levels, fraction=0.4, rewind_to=f"{k}ba"), Ends(totals), Ends([k])
    result = run(ticket, callbacks=[ends, at_k])
    assert result.state.timestamp.batch == totals[-1]
    # Level 0 is the plain run.
    model = classifier(noisy_network())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    dense = fit(
        model=model,
        optimizers=optimizer,
        train_dataloader=loader(shuffle=True),
        eval_dataloader=loader(batch_size=5),  # without it, Composer leaves the generators elsewhere
        eval_interval="100ep",
        schedulers=CosineAnnealingScheduler(),
        max_duration="3ep",
        callbacks=(plain_at_k := Ends([k])),
    )
    assert_same(ends.weights[0], weights(dense))
    start_of_all = plain_at_k.weights[0] if k else classifier(noisy_network()).state_dict()
    assert_same(ticket.snapshot, start_of_all)
    learning_rates = rates(CosineAnnealingScheduler())
    before = None
    for level in range(1, levels + 1):
        masks = ticket.masks_of(level)
        trained = {name: ends.weights[level - 1][name].abs() for name in masks}
        expected = keep_highest(trained, round(0.6**level * sum(map(torch.numel, trained.values()))), before)
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
        assert_same(ends.weights[level], trained_alone(k, T, level, start_of_all, masks, learning_rates))
        before = masks


SCHEDULERS = {
    "constant": lambda: ConstantScheduler(0.5),
    "cosine": CosineAnnealingScheduler,
    "warmup in epochs": lambda: CosineAnnealingWithWarmupScheduler("1ep", alpha_f=0.1),
    "warmup of the whole": lambda: LinearWithWarmupScheduler("0.25dur", alpha_f=0.02),
    "steps in epochs": lambda: MultiStepScheduler(["1ep", "2ep"], gamma=0.1),
    "steps in batches": lambda: MultiStepScheduler(["5ba", "10ba"], gamma=0.1),
    "polynomial in samples": lambda: PolynomialScheduler(2, t_max="90sp"),
    "a function": lambda: lambda state: 1 / (1 + state.timestamp.batch.value),
    "cycles": lambda: MultiplicativeCyclicScheduler("0ba", "4ba", growth=2),
}


@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedule_goes_on_from_k_as_it_did_in_the_first_place(name, k):
    seen = Rates()
    alone = rates(SCHEDULERS[name]())
    run(LotteryTicket(2, rewind_to=f"{k}ba"), SCHEDULERS[name](), callbacks=seen)
    # Composer counts samples late, and there the last batch of an epoch is a smaller one.
    tolerance = 0.02 if "samples" in name else 0.0
    assert seen.of == pytest.approx(alone + 2 * alone[k:], abs=tolerance)


def test_results_masks_and_files_of_each_level(tmp_path):
    ticket = LotteryTicket(2, fraction=0.5, rewind_to="1ep", save_folder=str(tmp_path))
    logged = {}

    class Log(Callback):
        def batch_checkpoint(self, state, logger):
            for metric, values in state.eval_metrics.get("eval", {}).items():
                if state.timestamp.batch.value in (12, 20, 28):
                    logged[state.timestamp.batch.value, metric] = values.compute().item()

    result = run(ticket, callbacks=Log())
    total = sum(weight.numel() for weight in ticket.weights.values())
    kept = [total, (total + 1) // 2, (total + 2) // 4]
    assert [(each["level"], each["batch"]) for each in ticket.results] == [(0, 12), (1, 20), (2, 28)]
    assert [each["density"] for each in ticket.results] == pytest.approx([count / total for count in kept])
    for each in ticket.results:
        assert each["eval/MulticlassAccuracy"] == logged[each["batch"], "MulticlassAccuracy"]
    assert [each["digest"] for each in ticket.results] == [digest(ticket.masks_of(level)) for level in range(3)]
    for level in (1, 2):
        masks = load_masks(tmp_path / f"level-{level}.safetensors", ticket.weights)
        assert digest(masks) == ticket.results[level]["digest"] and sum(map(size, masks.values())) == kept[level]
    other = classifier(noisy_network(seed=5))
    from safetensors.torch import load_file

    other.load_state_dict(load_file(tmp_path / "rewind.safetensors"))
    assert_same(other.state_dict(), ticket.snapshot)
    assert density(ticket.masks) == result.state.algorithms[0].results[-1]["density"]


def test_an_evaluation_due_anyway_does_not_run_twice():
    evaluations = []

    class Count(Callback):
        def eval_start(self, state, logger):
            evaluations.append(state.timestamp.batch.value)

    run(LotteryTicket(2, rewind_to="2ba"), callbacks=Count(), eval_interval="1ep")
    assert evaluations == [4, 8, 12, 16, 20, 22, 24, 28, 32]


@at_the_end_of_an_epoch
@pytest.mark.parametrize("killed", [1, 3, 4, 11, 12, 13, 20, 21, 22, 25, 29])
def test_a_kill_at_any_batch_of_any_level(killed, tmp_path):
    def ticket():
        return LotteryTicket(2, fraction=0.4, rewind_to="3ba")

    whole, stopped, resumed = ticket(), ticket(), ticket()
    expected = weights(run(whole, eval_interval="1ep"))
    with pytest.raises(KeyboardInterrupt):
        run(stopped, eval_interval="1ep", save_folder=str(tmp_path), save_interval="1ba", callbacks=Kill(killed))
    torch.manual_seed(999)
    latest = tmp_path / "latest-rank0.pt"
    found = run(resumed, eval_interval="1ep", load_path=str(latest.resolve()))
    assert_same(weights(found), expected)
    assert timeless(resumed.state_dict()) == timeless(whole.state_dict())


@at_the_end_of_an_epoch
def test_a_finished_run_can_be_given_more_levels(tmp_path):
    expected = run(more := LotteryTicket(3))
    run(LotteryTicket(2), save_folder=str(tmp_path), save_interval="1ba")
    going_on = LotteryTicket(3)
    result = run(going_on, load_path=str(tmp_path / "latest-rank0.pt"))
    assert_same(weights(result), weights(expected))
    assert going_on.results == more.results


def test_learning_rate_rewinding_and_fine_tuning_keep_the_weights():
    T, k = 12, 8
    for mode in ("learning_rate", "finetune"):
        ticket, seen, ends = LotteryTicket(1, 0.5, rewind_to="8ba", rewind=mode), Rates(), Ends([T, T + 1])
        run(ticket, callbacks=[seen, ends])
        assert ticket.snapshot == {}
        alone = rates(CosineAnnealingScheduler())
        assert seen.of == pytest.approx(alone + (alone[k:] if mode == "learning_rate" else [0.1 * 0.01] * (T - k)))
        dense, first = ends.weights
        for name, mask in ticket.masks_of(1).items():
            assert torch.equal(first[name] == 0, ~mask)
            step = (first[name] - dense[name])[mask].abs().max()
            assert 0 < step < 0.1  # one update away from the trained weights


def test_one_shot_arithmetic_and_geometric():
    assert level_densities(1, 0.7, "geometric") == pytest.approx([1, 0.3])
    assert level_densities(3, 0.2, "geometric") == pytest.approx([1, 0.8, 0.64, 0.512])
    assert level_densities(9, 0.1, "arithmetic") == [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_ema_begins_anew_from_the_weights_of_k():
    averages = []

    class Look(Callback):
        def after_train_batch(self, state, logger):
            if state.timestamp.batch.value == 12:
                ema = next(algorithm for algorithm in state.algorithms if isinstance(algorithm, EMA))
                averages.append(copy.deepcopy(ema.ema_model.named_parameters_dict))

    for order in (0, 1):
        ticket, ema = LotteryTicket(1, 0.5, rewind_to="4ba"), EMA(half_life="3ba")
        model = classifier(noisy_network())
        result = trainer(
            [ticket, ema] if order else [ema, ticket],
            model=model,
            schedulers=ticket.wrap(CosineAnnealingScheduler()),
            callbacks=Look(),
            max_duration="3ep",
            save_interval="1ba",
        )
        result.fit()
        for name, average in averages[-1].items():
            expected = ticket.snapshot[name] * ticket.masks[name] if name in ticket.masks else ticket.snapshot[name]
            assert torch.equal(average, expected)


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_sam_goes_through_all_levels():
    ticket = LotteryTicket(1, 0.5)
    model = classifier()
    result = trainer([ticket, SAM(rho=0.1)], model=model, schedulers=ticket.wrap(ConstantScheduler()))
    result.fit()
    assert result.state.timestamp.batch == 16
    for name, weight in ticket.weights.items():
        assert torch.equal(weight == 0, ~ticket.masks[name])


def test_what_cannot_work_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"rewind_to must be before max_duration=3ep, got '12ba'"):
        start(LotteryTicket(1, rewind_to="12ba"))
    with pytest.raises(ValueError, match=r"max_duration must be given, in ep or ba; it is 90sp"):
        start(LotteryTicket(1), max_duration="90sp")
    with pytest.raises(ValueError, match=r"max_duration must be given, in ep or ba; it is None"):
        start(LotteryTicket(1), schedulers=None, max_duration=None)
    with pytest.raises(ValueError, match=r"has to wrap the Trainer's scheduler"):
        start(LotteryTicket(1), schedulers=None).fit(schedulers=CosineAnnealingScheduler())
    with pytest.raises(ValueError, match=r"rewind='finetune' sets the rates of the run's scheduler; give the Trainer"):
        start(LotteryTicket(1, rewind="finetune"), schedulers=None)
    with pytest.raises(ValueError, match=r"and a plain fit\(\)"):
        start(LotteryTicket(1)).fit(duration="9ep")
    ticket = LotteryTicket(1)
    half = Distillation(network(seed=3), end="0.5dur")
    for other in (half, TradeoffCurve(MultiplicativeCyclicScheduler("0ba", "4ba"))):
        with pytest.raises(ValueError, match=f"leave this {type(other).__name__} out"):
            trainer([ticket, other], schedulers=ticket.wrap(ConstantScheduler()))


@pytest.mark.filterwarnings("ignore:.* is not in the state_dict")
@at_the_end_of_an_epoch
def test_a_checkpoint_of_another_run_says_so(tmp_path):
    run(LotteryTicket(2, 0.3, rewind_to="2ba"), save_folder=str(tmp_path), save_interval="1ba", callbacks=[])
    for ticket, message in (
        (LotteryTicket(2, 0.4, rewind_to="2ba"), r"had density 1=0\.7, density 2=0\.4"),
        (LotteryTicket(2, 0.3, rewind_to="3ba"), r"had k=2;"),
        (LotteryTicket(2, 0.3, rewind_to="2ba", rewind="learning_rate"), r"had rewind='weights';"),
        (LotteryTicket(1, 0.3, rewind_to="2ba"), r"in level 2, after 32 batches"),
        (LotteryTicket(2, 0.3, rewind_to="2ba", exclude=["*7*"]), r"had exclude=\[\];"),
    ):
        with pytest.raises(ValueError, match=message):
            start(ticket, load_path=str(tmp_path / "latest-rank0.pt"))
    dense = tmp_path / "dense"
    model = classifier(noisy_network())
    fit(model=model, save_folder=str(dense), save_interval="1ba", max_duration="3ep")
    with pytest.raises(ValueError, match="of batch 12, holds no masks"):
        start(LotteryTicket(1, rewind_to="2ba"), load_path=str(dense / "latest-rank0.pt"))
    begun = start(LotteryTicket(1, rewind_to="2ba"), load_path=str(dense / "ep0-ba2-rank0.pt"))
    begun.fit()  # from a dense run at step k
    assert begun.state.timestamp.batch == 22


def test_the_schedulers_of_the_run_are_found_whether_wrapped_or_not():
    ticket = LotteryTicket(1)
    alone = Rates()
    fit(schedulers=[CosineAnnealingScheduler(), ConstantScheduler(0.5)], callbacks=alone, max_duration="3ep")
    for wrap in (lambda each: each, ticket.wrap):  # the same ticket in each run
        for also in (lambda each: each, ticket.wrap):
            seen, both = Rates(), [wrap(CosineAnnealingScheduler()), also(ConstantScheduler(0.5))]
            run(ticket, schedulers=both, callbacks=seen)
            assert seen.of == pytest.approx(2 * alone.of)
    torchs = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(network().parameters(), 0.1), 1)
    with pytest.raises(TypeError, match=r"wraps Composer's schedulers, .* got a StepLR"):
        ticket.wrap(torchs)
    own = torch.optim.lr_scheduler.LambdaLR(torchs.optimizer, lambda epoch, scheduler=ticket: 1.0)
    for scheduler in (torchs, own):
        with pytest.raises(TypeError, match=f"wraps Composer's schedulers, .* got a {type(scheduler).__name__}"):
            start(ticket, schedulers=scheduler, step_schedulers_every_batch=True)


@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "finetune"])
def test_a_scheduler_that_is_found_gives_the_weights_of_one_that_is_wrapped(rewind, tmp_path):
    def ticket():
        return LotteryTicket(2, 0.3, rewind_to="2ba", rewind=rewind)

    def scheduler():
        return MultiplicativeCyclicScheduler("1ba", "11ba")  # whose first rate is 0

    wrapped = ticket()
    by_hand = run(wrapped, schedulers=wrapped.wrap(scheduler()))
    found = {"schedulers": scheduler(), "save_folder": str(tmp_path), "save_interval": "1ba"}
    itself = run(ticket(), **found)
    assert_same(weights(itself), weights(by_hand))
    resumed = run(ticket(), schedulers=scheduler(), load_path=str(tmp_path / "ep3-ba13-rank0.pt"))
    assert_same(weights(resumed), weights(by_hand))


def test_learning_rates_by_epoch_are_set_back_to_its_beginning():
    def by_epoch(k):
        seen = Rates()
        run(LotteryTicket(1, rewind_to=k), callbacks=seen, step_schedulers_every_batch=False)
        return seen.of

    alone = Rates()
    fit(schedulers=CosineAnnealingScheduler(), step_schedulers_every_batch=False, callbacks=alone, max_duration="3ep")
    assert by_epoch("1ep") == pytest.approx(alone.of + alone.of[4:])
    with pytest.raises(ValueError, match="give them in whole epochs"):
        by_epoch("2ba")


def test_a_stretched_schedule_is_stretched_in_every_level():
    seen, alone = Rates(), Rates()
    run(LotteryTicket(1, rewind_to="2ba"), MultiStepScheduler(["1ep", "2ep"]), callbacks=seen, scale_schedule_ratio=2)
    options = {"schedulers": MultiStepScheduler(["1ep", "2ep"]), "callbacks": alone, "max_duration": "3ep"}
    fit(**options, scale_schedule_ratio=2)
    assert len(alone.of) == 24 and seen.of == pytest.approx(alone.of + alone.of[2:])


@pytest.mark.parametrize("name", ["cosine", "steps in epochs", "by epochs"])
def test_learning_rates_by_epoch_are_those_of_a_run_alone(name):
    def scheduler():
        return SCHEDULERS[name]() if name in SCHEDULERS else lambda state: 0.5**state.timestamp.epoch.value

    seen, alone = Rates(), Rates()
    run(LotteryTicket(2, rewind_to="1ep"), scheduler(), callbacks=seen, step_schedulers_every_batch=False)
    fit(schedulers=scheduler(), step_schedulers_every_batch=False, callbacks=alone, max_duration="3ep")
    assert seen.of == pytest.approx(alone.of + 2 * alone.of[4:])


class Remembering(torch.nn.Module):
    """Holds what no state_dict has, what grows, and what comes only with the first batch; its output depends on it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        if self.training:
            self.steps += 1
            self.seen = torch.cat([self.seen, x.detach().mean().reshape(1)])
            self.cache = x.detach().mean(0)
            if not hasattr(self, "late"):
                self.register_buffer("late", torch.zeros(3), persistent=False)
            self.late += 1
        return x * (1 + self.steps / 10 + len(self.seen) / 10)

    def get_extra_state(self):
        return {"steps": int(self.steps)}

    def set_extra_state(self, state):
        self.restored = state["steps"]


@pytest.mark.parametrize("k", [0, 3])
def test_every_level_begins_with_all_the_buffers_of_k(k):
    def held(module):
        return {name: copy.deepcopy(tensor) for name, tensor in module._buffers.items()}

    found = {}

    class Look(Callback):
        def before_train_batch(self, state, logger):
            found[state.timestamp.batch.value] = held(state.model.module[0]), copy.deepcopy(state.model.state_dict())

    model = classifier(torch.nn.Sequential(Remembering(), *noisy_network()))
    run(LotteryTicket(2, rewind_to=f"{k}ba"), model=model, callbacks=Look())
    assert model.module[0].restored == k and float(found[11][0]["steps"]) == 11
    for begins in (12, 12 + (12 - k)):
        buffers, state = found[begins]
        assert buffers.keys() == found[k][0].keys() and state.keys() == found[k][1].keys()
        assert (buffers["cache"] is None) == (k == 0)
        for name, tensor in buffers.items():
            assert torch.equal(tensor, found[k][0][name]) if tensor is not None else found[k][0][name] is None
    if k:
        assert torch.equal(found[k + 1][0]["late"], found[13][0]["late"])


class Averaging(torch.optim.SGD):
    """Counts its updates, and what it has summed, in its groups, as schedule-free optimizers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["weight_decay"] = 0.1 / group["k"]
        return super().step(closure)


def test_every_level_begins_with_the_options_of_new_optimizers(tmp_path):
    class Look(Callback):
        def __init__(self):
            self.found = []

        def batch_start(self, state, logger):
            group = state.optimizers[0].param_groups[0]
            self.found.append((group.get("k"), group["weight_decay"]))

    def start_one(look, **options):
        model = classifier(noisy_network())
        optimizer = Averaging(model.parameters(), 0.1, weight_decay=0.5)
        return start(LotteryTicket(2), model=model, optimizers=optimizer, callbacks=look, **options)

    whole, rest = Look(), Look()
    start_one(whole, save_folder=str(tmp_path), save_interval="1ba", save_filename="{batch}.pt").fit()
    assert whole.found == [(None, 0.5), *((k, 0.1 / k) for k in range(1, 12))] * 3
    start_one(rest, load_path=str(tmp_path / "11.pt")).fit()
    assert rest.found == whole.found[11:]


def test_zeros_that_a_dense_level_brings_back_are_told_of():
    model = classifier(noisy_network())
    model.module[4].weight.data[:, ::2] = 0.0
    model.module[7].weight.data.zero_()  # as some initialize their last layer
    with pytest.warns(UserWarning, match=r"288 of 824 weights are zero at the start; level 0 is dense"):
        run(LotteryTicket(1), model=model, device_train_microbatch_size=2)


@pytest.mark.parametrize("kind", [EarlyStopper, ThresholdStopper])
def test_what_ends_all_levels_in_one_is_refused(kind):
    class Own(kind):
        pass

    options = {"threshold": 0.9} if kind is ThresholdStopper else {}
    for stopper in (kind, Own):
        callback = stopper(monitor="MulticlassAccuracy", dataloader_label="eval", **options)
        with pytest.raises(
            ValueError, match=f"LotteryTicket: leave this {stopper.__name__} out: it ends the whole run"
        ):
            start(LotteryTicket(2), callbacks=callback)


@at_the_end_of_an_epoch
def test_a_run_that_is_stopped_says_so_has_the_levels_that_ended_and_can_go_on(tmp_path):
    options = {"device_train_microbatch_size": 2, "save_interval": "1ba"}
    run(whole := LotteryTicket(2), **options)
    stops = [
        ("batch_end", 5, 5, 0),
        ("eval_end", 12, 12, 1),
        ("before_train_batch", 12, 13, 1),
        ("batch_end", 24, 24, 2),
    ]
    for event, stopped, after, levels in stops:
        ticket, stop, folder = LotteryTicket(2), Callback(), str(tmp_path / f"{event}-{stopped}")
        setattr(stop, event, lambda state, logger, at=stopped: state.timestamp.batch == at and state.stop_training())
        message = rf"stopped in level {(after - 1) // 12} of 2, after {after}ba of 36ba; results has {levels} levels"
        with pytest.warns(UserWarning, match=message):
            run(ticket, callbacks=stop, save_folder=folder, **options)
        assert ticket.results == whole.results[:levels]
        if after != 24:
            run(resumed := LotteryTicket(2), load_path=f"{folder}/latest-rank0.pt", **options)
            assert resumed.results == whole.results


def test_layer_by_layer():
    ticket = LotteryTicket(2, 0.5, scope="layerwise")
    run(ticket)
    for mask in ticket.masks_of(2).values():
        assert abs(size(mask) - mask.numel() / 4) <= 0.5


def test_ema_of_a_network_with_buffers_that_are_not_saved():
    ticket, model = LotteryTicket(1, 0.5), masked_lm()
    options = {"model": model, "train_dataloader": token_loader(), "schedulers": ticket.wrap(ConstantScheduler())}
    options["optimizers"] = torch.optim.AdamW(model.parameters(), 1e-3)
    trainer([EMA(half_life="2ba"), ticket], max_duration="2ba", **options).fit()
    with pytest.raises(ValueError, match="leave this EMA out"):
        trainer([EMA(ema_start="0.5dur"), ticket], max_duration="2ba", **options)


def test_an_evaluator_of_a_ticket_is_free_again_afterwards():
    evaluations = []

    class Count(Callback):
        def eval_start(self, state, logger):
            evaluations.append(state.timestamp.batch.value)

    evaluator = Evaluator(label="eval", dataloader=loader(), metric_names=["MulticlassAccuracy"])
    run(LotteryTicket(1), eval_dataloader=evaluator, eval_interval="1ep")
    fit(eval_dataloader=evaluator, callbacks=Count())
    assert evaluations == [4, 8]


def test_step_k_of_another_model_is_refused(tmp_path):
    run(LotteryTicket(1), save_folder=str(tmp_path), save_interval="1ba")
    path = tmp_path / "latest-rank0.pt"
    checkpoint = torch.load(path.resolve(), weights_only=False)
    dict(checkpoint["state"]["algorithms"])["LotteryTicket"]["snapshot"].popitem()
    torch.save(checkpoint, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match="step k is of another model"):
        start(LotteryTicket(1), load_path=str(tmp_path / "changed.pt"))
