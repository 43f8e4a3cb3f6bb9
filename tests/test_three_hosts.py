"""The same data and seed give the same weights in Composer, in Lightning and in a plain loop, for every technique."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import accelerando.algorithms as ours
import accelerando.algorithms.lightning as lightnings
import light
import tiny
from small import assert_same, differ, hugging_face_lm, network

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(light.SEED))


Loop = Callable[[nn.Module, torch.optim.Optimizer, Iterator[Any]], Iterator[Tensor]]


@dataclass(kw_only=True)
class Technique:
    """The arguments that Composer's and Lightning's class are given, and a plain loop with the technique's object.

    The loop gives the loss of each batch, and goes on when the update is made.
    """

    plain: Loop
    arguments: Callable[[], dict[str, Any]] = dict
    kind: str = "images"
    changes_training: bool = True
    composer_arguments: Callable[[], dict[str, Any]] = dict
    """What Composer's class is given alone."""
    composers: Callable[[Any], dict[str, Any]] = lambda algorithm: {}
    """What Composer's Trainer is given beside it."""
    lightnings: dict[str, Any] = field(default_factory=dict)
    """What the LightningModule is given beside it."""
    trainers: dict[str, Any] = field(default_factory=dict)
    """What Lightning's Trainer is given beside it."""
    updates: int = 8
    """How long the training is."""


def bare(model, optimizer, batches):
    for inputs, targets in batches:
        yield F.cross_entropy(model(inputs), targets)


def blurpool(model, optimizer, batches):
    ours.apply_blurpool(model)
    yield from bare(model, optimizer, batches)


def channels_last(model, optimizer, batches):
    ours.apply_channels_last(model)
    yield from bare(model, optimizer, map(ours.batch_channels_last, batches))


def distillation(model, optimizer, batches):
    distiller = ours.Distiller(**teachers(), seed=light.SEED, steps=8)
    for step, (inputs, targets) in enumerate(batches):
        outputs = model(inputs)
        yield distiller(F.cross_entropy(outputs, targets), outputs, inputs, step)


def label_smoothing(model, optimizer, batches):
    smoother = ours.Smoother(0.2)
    for inputs, targets in batches:
        yield smoother.loss(F.cross_entropy, model(inputs), targets)


def labelled_positions(model, optimizer, batches):
    positions = ours.HeadPositions(model)
    for batch in batches:
        yield model(**positions.select(batch)).loss


def lottery_ticket(model, optimizer, batches):
    lottery = ours.Lottery(model, optimizer, None, **tickets(), steps=8, rewind_to=2, seed=light.SEED)
    for _, (inputs, targets) in zip(lottery, batches, strict=True):
        yield F.cross_entropy(model(inputs), targets)


def magnitude_pruning(model, optimizer, batches):
    pruner = ours.MagnitudePruner(model, optimizer, **gradual(), steps=8)
    for loss in bare(model, optimizer, batches):
        yield loss
        pruner.step()


def mixup(model, optimizer, batches):
    mixer = ours.Mixer(0.5, seed=light.SEED)
    for step, (inputs, targets) in enumerate(batches):
        yield mixer.loss(F.cross_entropy, model(mixer(inputs, targets, step)), targets)


def prune_at_init(model, optimizer, batches):
    pruner = ours.Pruner(model, optimizer)
    pruner.prune(ours.prune_at_init(model, **at_init(), seed=light.SEED))
    yield from bare(model, optimizer, batches)


def tradeoff_curve(model, optimizer, batches):
    scheduler = ours.MultiplicativeCyclicLR(optimizer, 0, 2, growth=3)
    for loss in bare(model, optimizer, batches):
        yield loss
        scheduler.step()


def tickets() -> dict[str, Any]:
    return {"levels": 2, "fraction": 0.3}


def gradual() -> dict[str, Any]:
    return {"density": 0.4, "start": "1ba", "end": "0.75dur", "interval": "1ba"}


def at_init() -> dict[str, Any]:
    return {"criterion": "random", "density": 0.4}


def teachers() -> dict[str, Any]:
    return {
        "teachers": [network(seed=5), network(seed=6)],
        "teachers_per_step": 1,
        "start": "0.25dur",
        "end": "0.75dur",
    }


TECHNIQUES = {
    "BlurPool": Technique(plain=blurpool),
    "ChannelsLast": Technique(plain=channels_last, changes_training=False),
    "Distillation": Technique(plain=distillation, arguments=teachers),
    "ForgettingEvents": Technique(
        plain=bare,
        arguments=lambda: {"data": light.loader("images"), "save_folder": tempfile.mkdtemp()},
        changes_training=False,
    ),
    "LabelSmoothing": Technique(plain=label_smoothing, arguments=lambda: {"smoothing": 0.2}),
    "LabelledPositions": Technique(plain=labelled_positions, kind="text", changes_training=False),
    "LinearPath": Technique(
        plain=bare,
        arguments=lambda: {"points": 3, "train": True, "save_folder": tempfile.mkdtemp()},
        changes_training=False,
    ),
    "LotteryTicket": Technique(
        plain=lottery_ticket,
        arguments=lambda: tickets() | {"rewind_to": "2ba"},
        composers=lambda ticket: {"schedulers": ticket.wrap(None)},
        trainers={"max_steps": 8},
        updates=20,
    ),
    "MagnitudePruning": Technique(plain=magnitude_pruning, arguments=gradual),
    "MixUp": Technique(plain=mixup, arguments=lambda: {"alpha": 0.5}),
    "PruneAtInit": Technique(plain=prune_at_init, arguments=at_init),
    "Snapshots": Technique(
        plain=bare,
        arguments=lambda: {"at": ["1dur"], "save_folder": tempfile.mkdtemp()},
        changes_training=False,
    ),
    "TradeoffCurve": Technique(
        plain=tradeoff_curve,
        composer_arguments=lambda: {"scheduler": ours.MultiplicativeCyclicScheduler("0ba", "2ba", growth=3)},
        composers=lambda curve: {"schedulers": curve.scheduler, "eval_dataloader": tiny.loader()},
        lightnings={"schedule": lambda optimizer: ours.MultiplicativeCyclicLR(optimizer, 0, 2, growth=3)},
        trainers={"val_check_interval": 2, "check_val_every_n_epoch": None},
    ),
}
every = pytest.mark.parametrize("name", TECHNIQUES)


def test_every_technique_is_here():
    assert {name for name in lightnings.__all__ if isinstance(getattr(lightnings, name), type)} == set(TECHNIQUES)


def in_composer(name: str) -> dict[str, Tensor]:
    technique = TECHNIQUES[name]
    algorithm = getattr(ours, name)(**technique.arguments(), **technique.composer_arguments())
    text = {"model": tiny.masked_lm(), "train_dataloader": tiny.token_loader()} if technique.kind == "text" else {}
    run = tiny.fit(algorithm, **text, **technique.composers(algorithm))
    return {key.removeprefix("module.").removeprefix("model."): value for key, value in tiny.weights(run).items()}


def in_lightning(name: str) -> dict[str, Tensor]:
    technique = TECHNIQUES[name]
    module = light.module_for(technique.kind, **technique.lightnings)
    callback = getattr(lightnings, name)(**technique.arguments())
    validation = light.loader(technique.kind) if technique.lightnings else None
    light.trainer([callback], **technique.trainers).fit(module, light.loader(technique.kind), validation)
    return light.weights(module.network)


def in_a_plain_loop(loop: Loop, kind: str, updates: int = 8) -> dict[str, Tensor]:
    model = network() if kind == "images" else hugging_face_lm()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = islice(chain.from_iterable(light.loader(kind) for _ in count()), updates)
    for loss in loop(model, optimizer, batches):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return light.weights(model)


@every
def test_same_weights(name):
    technique = TECHNIQUES[name]
    plain = in_a_plain_loop(technique.plain, technique.kind, technique.updates)
    assert_same(in_lightning(name), plain)
    assert_same(in_composer(name), plain)
    if technique.kind == "images":
        assert differ(plain, in_a_plain_loop(bare, "images")) == technique.changes_training


class Exact(light.Module):
    """Says how many examples a loss is of."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self(batch)
        right = (outputs.argmax(1) == batch[1]).float().mean()
        self.log_dict({"loss": self.loss(batch, outputs), "accuracy": right}, batch_size=len(batch[1]))


def test_same_path(tmp_path):
    arguments = {"start": "2ba", "points": 5, "train": True}
    composers = ours.LinearPath(**arguments, save_folder=str(tmp_path / "composer"))
    tiny.fit(composers)
    callback = lightnings.LinearPath(**arguments, save_folder=str(tmp_path / "lightning"))
    light.trainer([callback]).fit(Exact(network()), light.loader("images"))
    kept: dict[int, dict[str, Tensor]] = {}

    def keeping(model, optimizer, batches):
        for step, loss in enumerate(bare(model, optimizer, batches)):
            kept[step] = light.weights(model)
            yield loss

    end, model = in_a_plain_loop(keeping, "images"), network()
    plain = ours.evaluate_path(model, (kept[2], end), 5, light.loader("images"))
    for path, accuracy in ((composers.result, "MulticlassAccuracy"), (callback.result, "accuracy")):
        assert path and (path.start, path.end, path.alphas) == (2, 8, plain.alphas)
        assert path.curves["train/loss"] == pytest.approx(plain.means["loss"], abs=1e-6)
        assert path.curves[f"train/{accuracy}"] == pytest.approx([1 - e for e in plain.means["error"]], abs=1e-6)
        assert path.distance == pytest.approx(ours.distance(kept[2], end), rel=1e-12)


@every
def test_a_class_of_another_host_says_so(name):
    technique = TECHNIQUES[name]
    with pytest.raises(TypeError, match=f"from accelerando.algorithms.lightning import {name}"):
        algorithm = getattr(ours, name)(**technique.arguments(), **technique.composer_arguments())
        lightning.pytorch.Trainer(callbacks=[algorithm], logger=False)
    callback = getattr(lightnings, name)(**technique.arguments())
    for place in ("algorithms", "callbacks"):
        with pytest.raises(TypeError, match=f"from accelerando.algorithms import {name}"):
            tiny.trainer(**{place: callback})
