"""The lottery in a loop of one's own: as Composer's class, as trainings of their own, and after a resume."""

import copy
import io
import math

import pytest
import torch
from composer.optim import CosineAnnealingScheduler
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR

from accelerando.algorithms import Lottery, LotteryTicket
from accelerando.algorithms.pruning import keep_highest, load_masks, prunable_weights
from accelerando.algorithms.pruning.masks import digest
from tiny import CLASSES, assert_same, classifier, examples, trainer, weights

T, K, LEVELS = 12, 5, 2  # a level has 7 updates


def network():
    """With batch norm; without dropout, of which Composer's first level would draw other numbers."""
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    return classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def batch_of(step):
    return [tensor.split(8)[step % 4] for tensor in examples()]


class Loop:
    """A training script: all its parts, and the loop itself."""

    def __init__(self, scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T), optimizer=sgd, **given):
        self.model = network()
        self.optimizer = optimizer(self.model)
        self.scheduler = scheduler(self.optimizer)
        given = {"levels": LEVELS, "fraction": 0.4, "steps": T, "rewind_to": K} | given
        self.lottery = Lottery(self.model, self.optimizer, self.scheduler, **given)
        self.steps, self.rates, self.ends = [], [], []

    def go(self, until=math.inf, batch=lambda lottery, step: batch_of(step)):
        lottery = self.lottery
        for step in lottery.until(until):
            self.steps.append(step)
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            x, y = batch(lottery, step)
            self.model.train()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model.module(x), y).backward()
            self.optimizer.step()
            if self.scheduler:
                self.scheduler.step()
            if lottery.level_ended:
                self.ends.append(copy.deepcopy(self.model.state_dict()))
                lottery.record(loss=step / 10)
        return self

    @property
    def parts(self):
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "lottery")}


@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "finetune"])
@pytest.mark.parametrize("k", [0, K])
def test_it_is_composers_class(k, rewind):
    """Bit for bit: data go on in their own order, and learning rates are Composer's, which come an update late."""
    ticket, model = LotteryTicket(LEVELS, 0.4, rewind_to=f"{k}ba", rewind=rewind), network()
    scheduler = ticket.wrap(CosineAnnealingScheduler())
    run = trainer(ticket, model=model, optimizers=sgd(model), schedulers=scheduler, max_duration="3ep")
    run.fit()

    def cosine(optimizer):
        return LambdaLR(optimizer, lambda step: (1 + math.cos(max(step - 1, 0) / T * math.pi)) / 2)

    loop = Loop(cosine, rewind_to=k, rewind=rewind, seed=7).go(batch=lambda lottery, step: batch_of(lottery.updates))
    assert_same(loop.model.state_dict(), weights(run))
    for ours, theirs in zip(loop.lottery.results, ticket.results, strict=True):
        assert {name: ours[name] for name in theirs} == theirs
    if rewind == "weights":
        assert_same(loop.lottery.snapshot, ticket.snapshot)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_each_level_is_a_training_of_its_own_from_step_k(tmp_path):
    loop = Loop(save_folder=str(tmp_path)).go()
    assert loop.steps == [*range(T), *range(K, T), *range(K, T)] and loop.lottery.updates == loop.lottery.total
    at_k, before = network(), None

    def train(model, first, masks=None):
        optimizer = sgd(model)
        scheduler = CosineAnnealingLR(optimizer, T)
        states = []
        for step in range(T):
            if step >= first:
                optimizer.zero_grad()
                F.cross_entropy(model.module(batch_of(step)[0]), batch_of(step)[1]).backward()
                for name, weight in prunable_weights(model).items() if masks else ():
                    weight.grad[~masks[name]] = 0.0
                optimizer.step()
            scheduler.step()
            states.append(copy.deepcopy(model.state_dict()))
        return states

    states = train(network(), 0)
    assert_same(loop.ends[0], states[-1])
    for level in (1, 2):
        masks = loop.lottery.masks_of(level)
        trained = {name: loop.ends[level - 1][name].abs() for name in masks}
        expected = keep_highest(trained, round(0.6**level * sum(map(torch.numel, trained.values()))), before)
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
        at_k.load_state_dict(states[K - 1])
        for name, weight in prunable_weights(at_k).items():
            weight.data[~masks[name]] = 0.0
        assert_same(loop.ends[level], train(at_k, K, masks)[-1])
        assert digest(load_masks(tmp_path / f"level-{level}.safetensors", prunable_weights(at_k))) == digest(masks)
        before = masks
    assert [(r["level"], r["batch"], r["loss"]) for r in loop.lottery.results] == [
        (0, 12, 1.1),
        (1, 19, 1.1),
        (2, 26, 1.1),
    ]


@pytest.mark.parametrize("killed", [1, 5, 6, 11, 12, 13, 18, 19, 20, 25])
def test_it_goes_on_from_a_checkpoint_of_any_update(killed):
    whole, first = Loop().go(), Loop().go(killed)
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in first.parts.items()}, file)
    file.seek(0)
    second = Loop()
    for name, state in torch.load(file, weights_only=True).items():
        second.parts[name].load_state_dict(state)
    second.go()
    assert_same(second.model.state_dict(), whole.model.state_dict())
    assert first.steps + second.steps == whole.steps and first.rates + second.rates == whole.rates
    assert second.lottery.results == whole.lottery.results


SCHEDULERS = {
    "none": lambda optimizer: None,
    "steps": lambda optimizer: MultiStepLR(optimizer, [3, 9]),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=T + 1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_go_on_from_k_as_they_did_in_the_first_place(name):
    class Look(torch.optim.SGD):
        momenta = ()

        def step(self, closure=None):
            self.momenta = (*self.momenta, self.param_groups[0]["momentum"])
            return super().step(closure)

    loop = Loop(SCHEDULERS[name], lambda model: Look(model.parameters(), 0.1, momentum=0.9)).go()
    for found in (loop.rates, [*loop.optimizer.momenta]):
        assert found == found[:T] + found[K:T] * LEVELS


def test_fine_tuning_has_a_constant_rate():
    loop = Loop(rewind="finetune", finetune_multiplier=0.5).go()
    assert loop.rates[T:] == [0.05] * 14 and loop.rates[:T] == Loop().go(T).rates
    assert not torch.equal(loop.ends[1]["module.0.weight"], loop.ends[0]["module.0.weight"])


def test_each_level_draws_numbers_of_its_own():
    drawn = {}

    def noisy(lottery, step):
        drawn.setdefault(lottery.level, []).append(torch.rand(1).item())
        return batch_of(step)

    for _ in range(2):
        torch.manual_seed(0)
        drawn.clear()
        Loop(seed=5).go(batch=noisy)
        torch.manual_seed(5 + 1_000_003 * 2)
        assert drawn[2] == [torch.rand(1).item() for _ in range(T - K)] != drawn[1]


def test_what_a_level_found_is_kept_where_nobody_records_it():
    loop = Loop()
    for _ in loop.lottery:
        loop.optimizer.zero_grad()
        F.cross_entropy(loop.model.module(batch_of(0)[0]), batch_of(0)[1]).backward()
        loop.optimizer.step()
    assert [(r["level"], r["batch"]) for r in loop.lottery.results] == [(0, 12), (1, 19), (2, 26)]


def test_a_step_that_is_left_out_counts_and_several_in_one_count_once():
    """As with a GradScaler that has found an overflow, or an optimizer that is stepped again."""
    loop = Loop()
    for step in loop.lottery.until(4):
        for _ in range(step):
            loop.optimizer.step()
    assert loop.lottery.updates == 4


@pytest.mark.parametrize(
    "given, message",
    [
        ({"levels": 0}, "levels must be a whole number, at least 1, got 0"),
        ({"fraction": 0.5, "schedule": "arithmetic"}, "fraction must be below 1/2"),
        ({"steps": 0}, "steps must be the number of updates of one training, got 0"),
        ({"rewind_to": T}, "rewind_to must be from 0 to below steps=12, got 12"),
        ({"rewind": "never"}, "rewind must be one of"),
    ],
)
def test_what_cannot_work_says_so(given, message):
    with pytest.raises(ValueError, match=f"Lottery: {message}"):
        Loop(**given)


def test_a_checkpoint_of_another_search_says_so():
    state = Loop().go(T + 3).lottery.state_dict()
    for given, change, message in (
        ({"fraction": 0.3}, {}, r"had density 1=0\.6, density 2=0\.36"),
        ({"rewind_to": 3}, {}, "had k=5;"),
        ({}, {"level": 2}, "in level 2, after 15 batches; with these levels, rewind_to and steps"),
        ({}, {"snapshot": {"a": torch.zeros(1)}}, "step k is of another model"),
    ):
        with pytest.raises(ValueError, match=f"Lottery: .*{message}"):
            Loop(**given).lottery.load_state_dict(state | change)
    del state["level"]
    with pytest.raises(ValueError, match="of another algorithm; it lacks 'level'"):
        Loop().lottery.load_state_dict(state)
