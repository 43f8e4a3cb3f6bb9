"""MixUp against the formula, Composer's function, and a plain training loop."""

from functools import partial
from typing import ClassVar

import composer.functional
import numpy as np
import pytest
import torch
from composer.algorithms import SAM
from composer.core import Event
from composer.models import ComposerModel
from torch.nn import functional as F
from torch.utils.data import DataLoader

from accelerando.algorithms import LabelSmoothing, Mixer, MixUp, Smoother, mixup_batch
from accelerando.algorithms.mixup import draw_mixing
from accelerando.algorithms.validation import NoEffectWarning
from small import mixup_draws
from tiny import CLASSES, SAMPLES, assert_same, classifier, differ, examples, fit, loop, network, trainer, weights


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4), (1, 3)])
def test_mixup_batch_like_composers(shape):
    input, target = torch.randn(shape), torch.randint(9, shape[:1])
    indices = torch.randperm(shape[0])
    mine = mixup_batch(input, target, 0.3, indices=indices)
    other = composer.functional.mixup_batch(input, target, 0.3, indices=indices)
    torch.testing.assert_close(mine[0], other[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(mine[0], 0.7 * input + 0.3 * input[indices], atol=1e-6, rtol=0)
    assert torch.equal(mine[1], other[1]) and mine[2] == other[2] == 0.3


def test_mixup_batch_draws_what_it_is_not_given():
    input, target = torch.randn(64, 2), torch.arange(64)
    before = input.clone()
    mixed, permuted, mixing = mixup_batch(input, target, alpha=1.0)
    assert 0 <= mixing <= 0.5 and sorted(permuted.tolist()) == target.tolist() != permuted.tolist()
    torch.testing.assert_close(mixed, (1 - mixing) * input + mixing * input[permuted])
    assert torch.equal(input, before)
    assert mixup_batch(torch.ones(2, 3, dtype=torch.uint8), target[:2], 0.5)[0].dtype == torch.float32
    assert mixup_batch(input, target, alpha=0)[2] == 0


def test_mixing_has_the_distribution():
    generator = np.random.default_rng(0)
    draws = [draw_mixing(2.0, generator) for _ in range(4000)]
    # min(z, 1 - z) of z ~ Beta(2, 2) has the mean 5/16.
    assert abs(np.mean(draws) - 5 / 16) < 0.01 and max(draws) <= 0.5


def reference(alpha, seed=7, epochs=2, batch=8, rate=0.1):
    """Plain training with the mixed loss, drawing as the class says that it draws."""
    model, (inputs, targets) = network(), examples()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    step = 0
    for _ in range(epochs):
        for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
            lam, other = mixup_draws(alpha, len(x), seed, step)
            outputs = model((1 - lam) * x + lam * x[other])
            loss = (1 - lam) * F.cross_entropy(outputs, y) + lam * F.cross_entropy(outputs, y[other])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return {f"module.{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("microbatch", [8, 3])
@pytest.mark.parametrize("interpolate_loss", [False, True])
def test_trains_like_the_formula(interpolate_loss, microbatch):
    run = fit([MixUp(0.5, interpolate_loss)], device_train_microbatch_size=microbatch)
    assert_same(weights(run), reference(0.5), atol=1e-5)
    assert differ(weights(run), weights(fit()))


def test_leaves_other_random_numbers_and_the_data_alone():
    def drawn(algorithms):
        run = fit(algorithms, max_duration="1ep")
        return torch.rand(1), np.random.rand(), [batch[1].tolist() for batch in run.state.train_dataloader]

    assert drawn([MixUp()]) == drawn([])


def test_a_subclass_may_restart_by_a_method_of_another_name():
    class Own(MixUp):
        steps: ClassVar = {**MixUp.steps, Event.BEFORE_TRAIN_BATCH: "_mine"}

        def _mine(self, state, logger):
            called.append(state.timestamp.batch.value)

    called = []
    fit(Own(0.5), max_duration="3ba")
    assert called == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_an_optimizer_that_passes_twice_mixes_once():
    runs = [fit([MixUp(0.5), SAM(rho=0.05)], device_train_microbatch_size=size, max_duration="1ep") for size in (8, 2)]
    assert_same(*map(weights, runs), atol=1e-5)


class DictClassifier(ComposerModel):
    def __init__(self, with_loss):
        super().__init__()
        self.module, self.with_loss = network(), with_loss

    def forward(self, batch):
        logits = self.module(batch["pixels"])
        if not self.with_loss:
            return logits
        labels = batch["labels"]
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def loss(self, outputs, batch):
        return outputs["loss"] if self.with_loss else F.cross_entropy(outputs, batch["labels"])


@pytest.mark.parametrize("with_loss", [False, True])
@pytest.mark.parametrize("interpolate_loss", [False, True])
def test_dict_batches_and_models_that_compute_their_loss(interpolate_loss, with_loss):
    x, y = examples()
    data = DataLoader([{"pixels": a, "labels": b} for a, b in zip(x, y, strict=True)], 8)
    mixup = MixUp(0.5, interpolate_loss, input_key="pixels", target_key="labels")
    run = fit([mixup], model=DictClassifier(with_loss), train_dataloader=data)
    assert_same(weights(run), reference(0.5), atol=1e-5)


def test_dense_targets():
    x, y = examples()
    data = DataLoader(list(zip(x, F.one_hot(y, CLASSES).float(), strict=True)), 8)
    model = classifier()
    model.get_metrics = lambda is_train: {}
    assert_same(weights(fit([MixUp(0.5)], model=model, train_dataloader=data)), reference(0.5), atol=1e-5)


def test_batches_that_cannot_be_mixed():
    ids = DataLoader([(torch.arange(3), 1)] * SAMPLES, 8)
    with pytest.raises(TypeError, match=r"input_key gives torch.int64, such as token ids"):
        trainer([MixUp()], train_dataloader=ids).fit()
    nested = DataLoader([((torch.rand(3), torch.rand(3)), 1)] * SAMPLES, 8)
    with pytest.raises(TypeError, match=r"one tensor at input_key, but the batch holds list"):
        trainer([MixUp()], train_dataloader=nested).fit()


@pytest.mark.parametrize("microbatch", [8, 3])
@pytest.mark.parametrize("interpolate_loss", [False, True])
def test_a_loop_of_ones_own_ends_in_the_same_weights(interpolate_loss, microbatch):
    mixer = Mixer(0.5, seed=7, interpolate_loss=interpolate_loss)
    mine = loop(partial(mixer.loss, F.cross_entropy), mixer, microbatch)
    run = fit([MixUp(0.5, interpolate_loss)], device_train_microbatch_size=microbatch)
    assert_same(mine, weights(run))


@pytest.mark.parametrize("microbatch", [8, 3])
def test_mixed_and_smoothed_in_a_loop_of_ones_own(microbatch):
    mixer, smoother = Mixer(0.5, seed=7), Smoother(0.3)
    mine = loop(partial(mixer.loss, partial(smoother.loss, F.cross_entropy)), mixer, microbatch)
    run = fit([MixUp(0.5), LabelSmoothing(0.3)], device_train_microbatch_size=microbatch)
    assert_same(mine, weights(run), atol=1e-6)
    assert differ(mine, weights(fit([MixUp(0.5)])))


def test_a_mixer_goes_on_with_the_seed_of_its_state():
    (x, y), mixer = examples(), Mixer(0.5)
    before, random = x.clone(), torch.rand(1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    expected = Mixer(0.5, seed=7)(x, y, 3)
    assert torch.equal(torch.rand(1), random) and torch.equal(x, before)
    assert not torch.equal(mixer(x, y, 3), expected)
    mixer.load_state_dict(Mixer(0.5, seed=7).state_dict())
    assert torch.equal(mixer(x, y, 3), expected)


def test_each_loss_takes_the_next_part_of_the_mixed_batch():
    (x, y), mixer = examples(), Mixer(0.5, seed=7)
    outputs = network()(mixer(x, y, 0))

    def losses():
        parts = zip(outputs.split(16), y.split(16), strict=True)
        return [mixer.loss(F.cross_entropy, *part).item() * len(part[1]) / SAMPLES for part in parts]

    once = losses()
    with pytest.raises(ValueError, match="MixUp: a loss of 16 targets, where 0 of the mixed batch are left"):
        losses()
    mixer.restart()
    assert losses() == once
    mixer.restart()
    assert mixer.loss(F.cross_entropy, outputs, y).item() == pytest.approx(sum(once), abs=1e-6)
    with pytest.raises(ValueError, match="of 3 targets, where 0 of"):
        Mixer().loss(F.cross_entropy, outputs[:3], y[:3])


def test_a_mixer_without_effect_or_use():
    x, y = examples()
    with pytest.warns(NoEffectWarning, match="MixUp: alpha=0 mixes nothing"):
        mixer = Mixer(0.0)
    assert torch.equal(mixer(x, y, 0), x)
    outputs = network()(x)
    assert torch.equal(mixer.loss(F.cross_entropy, outputs, y), F.cross_entropy(outputs, y))
    with pytest.raises(ValueError, match=r"MixUp: alpha must be finite and not below 0, got -1"):
        Mixer(-1)
    with pytest.raises(TypeError, match=r"images or features, but inputs are torch.int64, such as token ids"):
        mixer(y, y, 0)
