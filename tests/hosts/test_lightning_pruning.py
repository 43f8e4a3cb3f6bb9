"""What holds for pruning, tickets, curves and snapshots in Lightning beyond what its contract suite asks of all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader

import accelerando.algorithms.lightning as ours
from accelerando.algorithms import MultiplicativeCyclicLR, find_snapshot
from accelerando.algorithms.pruning import load_masks, prunable_weights
from accelerando.algorithms.validation import NoEffectWarning
from light import SEED, TENSORS_ALONE, Kill, Module, Shuffled, checkpoints, loader, module_for, trainer, weights
from small import assert_same, differ, network, noisy_network, timeless

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
EVERY_TWO: dict[str, Any] = {"val_check_interval": 2, "check_val_every_n_epoch": None}
LEVELS: dict[str, Any] = {"max_epochs": -1, "max_steps": 8} | EVERY_TWO


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


def fit(*given: Callback, module: Any = None, data: Any = None, resumed: Path | None = None, **options: Any) -> Module:
    module = module or module_for("images")
    place = {"ckpt_path": resumed, **TENSORS_ALONE} if resumed else {}
    validation = loader("images", 5) if "check_val_every_n_epoch" in options else None
    trainer(given, **options).fit(module, data or loader("images"), validation, **place)
    return module


def cosine(optimizer: Any) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, 8)


def gradual() -> ours.MagnitudePruning:
    return ours.MagnitudePruning(0.3, start="1ba", end="6ba", interval="1ba")


def ticket(**options: Any) -> ours.LotteryTicket:
    return ours.LotteryTicket(**{"levels": 2, "fraction": 0.3, "rewind_to": "2ba"} | options)


class Watch(Callback):
    """Whether what is pruned is zero, wherever a callback of a user's may look."""

    def __init__(self, pruning: Any):
        self.pruning, self.places, self.norms = pruning, set(), []

    def check(self, trainer, pl_module, place):
        self.places.add(place)
        held = prunable_weights(pl_module)
        for name, mask in self.pruning.masks.items():
            assert not held[name].detach()[~mask].any(), f"{name} at {place}"
            momentum = trainer.optimizers[0].state.get(held[name], {}).get("momentum_buffer")
            assert momentum is None or place == "validation" or not momentum[~mask].any(), f"{name} at {place}"

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.check(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.check(trainer, pl_module, "epoch")

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.check(trainer, pl_module, "zero_grad")


class Writes(Module):
    """Writes into its weights at the end of each batch, as somebody who clips or adds noise does."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.01)


def test_masks_hold_whoever_writes():
    pruning = gradual()
    watch = Watch(pruning)
    module = Writes(network())
    fit(pruning, watch, module=module, **EVERY_TWO)
    assert watch.places == {"validation", "epoch", "zero_grad"} and pruning.share_left() == pytest.approx(0.3, abs=1e-3)


def test_what_is_pruned_does_not_count_in_the_norm_that_is_clipped():
    class Norms(Module):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            kept = [parameter.grad for parameter in self.parameters()]
            pruned = [w.grad[~pruning.masks[name]] for name, w in prunable_weights(self).items() if pruning.masks]
            assert not any(gradient.any() for gradient in pruned)
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            assert torch.stack([gradient.norm() for gradient in kept]).norm() <= 0.011

    pruning = gradual()
    module = fit(pruning, module=Norms(network()), gradient_clip_val=0.01)
    assert pruning.share_left() == pytest.approx(0.3, abs=1e-3)
    assert differ(weights(module), weights(fit(gradual())))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_module_that_optimizes_by_itself(accumulate):
    class Manual(Module):
        def __init__(self):
            super().__init__(network())
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch, self(batch)) / accumulate)
            if (batch_idx + 1) % accumulate == 0:
                self.clip_gradients(optimizer, 0.1, "norm")
                optimizer.step()
                optimizer.zero_grad()

    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.1}
    times = {"start": "1ba", "end": "3ba", "interval": "1ba"}
    pruning = ours.MagnitudePruning(0.3, **times)
    module = fit(pruning, module=Manual())
    assert_same(weights(module), weights(fit(ours.MagnitudePruning(0.3, **times), **options)))
    with pytest.raises(ValueError, match="LotteryTicket needs automatic_optimization=True, which Manual"):
        fit(ticket(), module=Manual(), **LEVELS)


def test_several_optimizers_are_refused():
    class Several(Module):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.network[0], self.network[3])]

    for callback in (gradual(), ours.Snapshots(["1ep"])):
        with pytest.raises(ValueError, match="counts the updates of one optimizer, and Several has 2"):
            fit(callback, module=Several(network()))


def test_a_strategy_that_splits_weights_is_refused():
    run = trainer()
    split = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy), callbacks=[])
    for callback in (gradual(), ours.TradeoffCurve(), ours.Snapshots(["1ep"]), ticket(), ours.PruneAtInit(density=0.5)):
        with pytest.raises(ValueError, match=r"does not work on weights that FSDPStrategy splits; .*'ddp'"):
            callback.setup(split, module_for("images"), "fit")
        callback.setup(run, module_for("images"), "fit")


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.parametrize("make", [network, noisy_network], ids=["without batch norm", "batch norm"])
def test_stochastic_weight_averaging_averages_masked_weights(make, tmp_path):
    pruning = ours.MagnitudePruning(0.3, start="1ba", end="9ba", interval="1ba")
    averaging = callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1)
    module = fit(pruning, averaging, checkpoints(tmp_path), module=Module(make()), max_epochs=4)
    for name, mask in pruning.masks.items():
        assert not prunable_weights(module)[name].detach()[~mask].any()
    assert_masked(tmp_path / "step=16.ckpt", pruning.masks)
    alone = fit(ours.MagnitudePruning(0.3, start="1ba", end="9ba", interval="1ba"), module=Module(make()), max_epochs=4)
    assert differ(weights(module), weights(alone))


def assert_masked(path: Path, masks: dict[str, torch.Tensor]) -> None:
    """In all of the checkpoint's tensors of the names and shapes of what is pruned."""
    checkpoint = torch.load(path, weights_only=False)  # SWA keeps a function in it
    held = [checkpoint["state_dict"], checkpoint.get("current_model_state", {})]
    held += [state.get("average_model_state") or {} for state in checkpoint["callbacks"].values()]
    for name, mask in masks.items():
        tensors = [tensors[name] for tensors in held if name in tensors]
        assert tensors and not any(tensor[~mask].any() for tensor in tensors), name


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning before 2.6 has none")
def test_weight_averaging_averages_masked_weights(tmp_path):
    pruning = gradual()
    watch = Watch(pruning)
    module = fit(pruning, watch, callbacks.EMAWeightAveraging(decay=0.5), checkpoints(tmp_path), **EVERY_TWO)
    assert watch.places >= {"validation"}
    for name, mask in pruning.masks.items():
        assert not prunable_weights(module)[name].detach()[~mask].any()
    assert_masked(tmp_path / "step=8.ckpt", pruning.masks)


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning before 2.6 has none")
def test_weight_averaging_begins_anew_with_each_level():
    class Starts(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if lottery.level and trainer.global_step in (8, 14):
                average = averaging._average_model.module
                assert_same(weights(average), weights(pl_module))
                self.levels = lottery.level

    lottery, averaging, starts = ticket(), callbacks.EMAWeightAveraging(decay=0.9), Starts()
    fit(lottery, averaging, starts, **LEVELS)
    assert starts.levels == 2
    with pytest.raises(ValueError, match="LotteryTicket: leave this EMAWeightAveraging out"):
        fit(ticket(), callbacks.EMAWeightAveraging(update_starting_at_step=3), **LEVELS)


def test_others_who_prune_are_refused():
    with pytest.raises(ValueError, match="MagnitudePruning cannot share the masks with ModelPruning"):
        fit(gradual(), callbacks.ModelPruning("l1_unstructured", amount=0.5))


def test_a_checkpoint_without_masks_is_refused(tmp_path):
    fit(checkpoints(tmp_path), max_steps=3)
    for pruning in (gradual(), ours.PruneAtInit(density=0.5), ticket()):
        with pytest.raises(ValueError, match=f"{type(pruning).__name__}: the checkpoint, of update 3, holds no masks"):
            fit(pruning, resumed=tmp_path / "step=3.ckpt", **LEVELS)


def test_another_plan_is_refused(tmp_path):
    with pytest.raises(KeyError, match="killed"):
        fit(gradual(), checkpoints(tmp_path), Kill(4))
    with pytest.raises(ValueError, match=r"MagnitudePruning: the checkpoint's run had density=0\.3"):
        fit(ours.MagnitudePruning(0.2, start="1ba", end="6ba", interval="1ba"), resumed=tmp_path / "step=4.ckpt")


def test_warns_of_a_training_that_ends_before():
    with pytest.warns(UserWarning, match="MagnitudePruning: the training has ended after 4ba, before end=6"):
        fit(gradual(), Stop(4))
    with pytest.warns(NoEffectWarning, match="PruneAtInit: the training has ended after 4ba, before at=5ba"):
        fit(ours.PruneAtInit(density=0.5, at="5ba"), Stop(4))
    with pytest.warns(UserWarning, match="LotteryTicket: the training was stopped in level 0 of 2, after 4ba of 20ba"):
        fit(ticket(), Stop(4), **LEVELS)
    with pytest.warns(UserWarning, match="Snapshots: the training has ended after 4ba, before 1dur"):
        fit(ours.Snapshots(["1dur"]), Stop(4))


class Stop(Callback):
    def __init__(self, updates: int):
        self.updates = updates

    def on_train_batch_end(self, trainer, *rest):
        trainer.should_stop = trainer.global_step >= self.updates


def test_prunes_at_an_epoch_by_data_that_the_modules_hooks_have_seen():
    class Scaled(Module):
        def forward(self, inputs):
            return self.network(inputs)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [2 * batch[0], batch[1]]

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    seen = []

    def loss(outputs, targets):
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    def at_init(**options):
        return ours.PruneAtInit("snip", 0.4, at="1ep", samples_per_class=3, **options)

    def batch_loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    first, second = at_init(loss=loss), at_init(batch_loss=batch_loss)
    for pruning in (first, second):
        fit(pruning, module=Scaled(network()))
    assert_same(first.masks, second.masks)
    assert seen == [8, 4] and first.share_left() == pytest.approx(0.4, abs=1e-3)


def test_snip_per_batch_asks_for_a_batch_size():
    whole = DataLoader(loader("images").dataset, batch_sampler=torch.arange(30).split(8))
    with pytest.raises(ValueError, match="snip_per_batch needs a loader with a batch_size, which this one has not"):
        fit(ours.PruneAtInit("snip_per_batch", 0.4, loss=F.cross_entropy), data=whole)


def test_a_ticket_of_a_lottery_is_trained_again(tmp_path):
    lottery = ticket(save_folder=str(tmp_path))
    fit(lottery, **LEVELS)
    again = ours.PruneAtInit(ticket=str(tmp_path / "level-2.safetensors"))
    fit(again, max_steps=1)
    assert_same({n: mask.cpu() for n, mask in again.masks.items()}, lottery.masks_of(2))
    assert_same(load_masks(tmp_path / "level-2.safetensors", again.weights), lottery.masks_of(2))
    assert (tmp_path / "rewind.safetensors").is_file()


class Log(Callback):
    """The rates and weights of every update."""

    def __init__(self):
        self.rates, self.weights = [], {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.weights[trainer.global_step] = weights(pl_module)


def test_levels_start_from_step_k_with_its_rates():
    lottery, log = ticket(), Log()
    module = fit(lottery, log, module=module_for("images", schedule=cosine), **LEVELS)
    assert len(log.rates) == 20 == lottery.lottery.total
    assert log.rates[8:14] == log.rates[14:20] == pytest.approx(log.rates[2:8], abs=1e-12)
    assert log.rates[0] == 0.1 and log.rates[7] < 0.01
    for level, first in enumerate((8, 14), 1):
        masks = lottery.masks_of(level)
        expected = {n: w * masks[n] if n in masks else w for n, w in log.weights[2].items()}
        assert_same(log.weights[first], expected)
    assert [result["batch"] for result in lottery.results] == [8, 14, 20]
    assert [result["density"] for result in lottery.results] == pytest.approx([1, 0.7, 0.49], abs=1e-3)
    found = lottery.results[-1]
    (last,) = trainer().validate(module, loader("images", 5), verbose=False)
    assert {name: found[name] for name in last} == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize("rewind", ["learning_rate", "finetune"])
def test_other_ways_to_rewind(rewind):
    lottery, log = ticket(rewind=rewind), Log()
    fit(lottery, log, module=module_for("images", schedule=cosine), **LEVELS)
    expected = [0.001] * 12 if rewind == "finetune" else [*log.rates[2:8], *log.rates[2:8]]
    assert log.rates[8:] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("updates", [8, 11, 14, 17])
def test_a_search_goes_on_bit_for_bit(updates, tmp_path, monkeypatch):
    def search(*more, resumed=None):
        lottery = ticket()
        module = module_for("images", schedule=cosine)
        data = Shuffled("images")
        return lottery, fit(lottery, *more, module=module, data=data, resumed=resumed, **LEVELS)

    whole, expected = search()
    with pytest.raises(KeyError, match="killed"):
        search(checkpoints(tmp_path), Kill(updates))
    monkeypatch.setenv("PL_GLOBAL_SEED", "999")
    place = tmp_path / f"step={updates}.ckpt"
    if updates in (8, 14):  # written before the validation, which Lightning leaves out
        with pytest.warns(UserWarning, match=f"LotteryTicket: the level that ended after {updates} updates has no met"):
            resumed, module = search(resumed=place)
    else:
        resumed, module = search(resumed=place)
        assert timeless(resumed.results) == timeless(whole.results)
    assert_same(weights(module), weights(expected))
    assert [result["digest"] for result in resumed.results] == [result["digest"] for result in whole.results]


def test_a_search_goes_on_from_the_checkpoint_of_a_validation(tmp_path):
    def search(*more, resumed=None):
        lottery = ticket(rewind_to="1ep")
        # In one order: at an epoch's end Lightning does not tell a loader how far it was.
        fit(lottery, *more, resumed=resumed, max_epochs=2, check_val_every_n_epoch=1)
        return lottery

    whole = search()
    assert [result["batch"] for result in whole.results] == [8, 12, 16]
    each = callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    with pytest.raises(KeyError, match="killed"):
        search(each, Kill(14))
    for updates in (8, 12):
        assert timeless(search(resumed=tmp_path / f"step={updates}.ckpt").results) == timeless(whole.results)


def test_the_trainer_keeps_its_limits():
    run, lottery = trainer([ticket()], **LEVELS), None
    run.fit(module_for("images"), loader("images"), loader("images", 5))
    assert (run.global_step, run.max_steps, run.max_epochs) == (20, 8, -1)
    with pytest.raises(KeyError, match="killed"):
        run = trainer([lottery := ticket(rewind_to="1ep"), Kill(9)], max_epochs=2)
        run.fit(module_for("images"), loader("images"))
    assert (run.max_steps, run.max_epochs) == (-1, 2) and lottery.results[0]["batch"] == 8


def test_accumulated_batches_of_a_search():
    lottery = ticket()
    fit(lottery, data=loader("images", 2), accumulate_grad_batches=4, **LEVELS | {"val_check_interval": 1})
    assert [result["batch"] for result in lottery.results] == [8, 14, 20]


@pytest.mark.parametrize(
    ("given", "options", "error"),
    [
        ({}, {"max_epochs": -1}, "needs max_steps or max_epochs, the length of one training"),
        ({"rewind_to": "8ba"}, {}, "rewind_to must be before the end of one training, 2ep"),
        ({"rewind_to": "3ba"}, {}, r"rewind_to=3ba lies within an epoch; give it in ep, or Trainer\(max_steps=8\)"),
        ({}, {"max_time": "00:01:00:00", **LEVELS}, r"leave Timer \(or max_time\) out"),
        (
            {"rewind_to": "1ep"},
            {"check_val_every_n_epoch": 5},
            "a level ends after 8, 12, 16 updates, when no validation falls due; give the Trainer "
            "check_val_every_n_epoch=1 or val_check_interval=4, check_val_every_n_epoch=None",
        ),
        (
            {},
            LEVELS | {"val_check_interval": 3},
            "a level ends after 8, 14, 20 updates, .* give the Trainer val_check_interval=2",
        ),
    ],
    ids=["no length", "k after T", "within an epoch", "max_time", "epochs", "interval"],
)
def test_a_search_that_cannot_work(given, options, error):
    with pytest.raises(ValueError, match=f"LotteryTicket: .*{error}"):
        fit(ticket(**given), **options)


@pytest.mark.parametrize(
    "other",
    [
        callbacks.EarlyStopping("loss"),
        callbacks.StochasticWeightAveraging(0.05),
        callbacks.GradientAccumulationScheduler({1: 2}),
        ours.Distillation([network(seed=5)], start="0.5dur"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_what_follows_the_whole_training_is_refused_beside_a_search(other):
    with pytest.raises(ValueError, match=f"LotteryTicket: leave (this )?{type(other).__name__} out"):
        fit(ticket(), other, **LEVELS)


class Scheduled(Module):
    def __init__(self, **config: Any):
        super().__init__(network())
        self.config = config

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        make = self.config.pop("make", StepLR)
        scheduler = make(optimizer, 1) if make is StepLR else make(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}


def test_schedulers_by_epoch_are_set_back_to_epochs_only():
    with pytest.raises(ValueError, match="LotteryTicket: rewind_to or the length lies within an epoch"):
        fit(ticket(), module=Scheduled(interval="epoch"), **LEVELS)
    with pytest.raises(ValueError, match=r'LotteryTicket needs schedulers of "frequency": 1, got 2'):
        fit(ticket(), module=Scheduled(interval="step", frequency=2), **LEVELS)
    log = Log()
    fit(ticket(rewind_to="1ep"), log, module=Scheduled(interval="epoch"), max_epochs=2)
    assert log.rates == pytest.approx([0.1] * 4 + [0.01] * 12)


def cyclic(optimizer: Any) -> MultiplicativeCyclicLR:
    return MultiplicativeCyclicLR(optimizer, 0, 2, growth=3)


CYCLES: dict[str, Any] = {"max_epochs": -1, "max_steps": 8} | EVERY_TWO


def test_points_are_what_the_validations_at_the_ends_of_cycles_find():
    class Found(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                kept[trainer.global_step] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    kept: dict[int, dict[str, float]] = {}
    curve, log = ours.TradeoffCurve(), Log()
    fit(Found(), curve, log, module=module_for("images", schedule=cyclic), **CYCLES)
    assert [(point["cycle"], point["batch"]) for point in curve.points] == [(0, 2), (1, 8)]
    for point in curve.points:
        assert kept[int(point["batch"])] == {name: point[name] for name in ("loss", "accuracy")}
    assert 0 < curve.points[0]["seconds"] < curve.points[1]["seconds"]
    assert log.rates[0] == log.rates[2] == 0.1 and log.rates[1] == pytest.approx(0.05)


def test_a_curve_goes_on(tmp_path):
    def points(*more, resumed=None):
        curve = ours.TradeoffCurve()
        module, data = module_for("images", schedule=cyclic), Shuffled("images")
        fit(curve, *more, module=module, data=data, resumed=resumed, **CYCLES)
        return timeless(curve.points)

    whole = points()
    with pytest.raises(KeyError, match="killed"):
        points(checkpoints(tmp_path), Kill(5))
    assert points(resumed=tmp_path / "step=5.ckpt") == whole
    with pytest.warns(UserWarning, match="TradeoffCurve: the cycle that ended after 2 updates has no metrics"):
        assert points(resumed=tmp_path / "step=2.ckpt") == whole[1:]


@pytest.mark.parametrize(
    ("module", "options", "error"),
    [
        (lambda: module_for("images"), CYCLES, "needs the module's scheduler to be a MultiplicativeCyclicLR, got none"),
        (lambda: Scheduled(interval="step"), CYCLES, "to be a MultiplicativeCyclicLR, got StepLR"),
        (lambda: Scheduled(make=cyclic, interval="epoch"), CYCLES, 'of "interval": "step", "frequency": 1'),
        (lambda: module_for("images", schedule=cyclic), {"max_steps": 8}, "nothing to evaluate on"),
        (lambda: module_for("images", schedule=cyclic), CYCLES | {"max_steps": 7}, "a training of 7 updates ends"),
        (
            lambda: module_for("images", schedule=cyclic),
            CYCLES | {"val_check_interval": 4},
            "a cycle ends after 2 updates, .* val_check_interval=2, check_val_every_n_epoch=None",
        ),
        (lambda: module_for("images", schedule=cyclic), EVERY_TWO | {"max_epochs": -1}, "needs a training of known"),
    ],
    ids=["no scheduler", "another", "by epoch", "no data", "length", "validations", "endless"],
)
def test_a_curve_that_cannot_be(module, options, error):
    with pytest.raises(ValueError, match=error):
        fit(ours.TradeoffCurve(), module=module(), **options)


def test_snapshots_are_the_weights_after_those_updates(tmp_path):
    snapshots, log = ours.Snapshots(["0ba", "3ba", "1ep", "1dur"], save_folder=str(tmp_path)), Log()
    module = fit(snapshots, gradual(), log)
    assert snapshots.kept == {"0ba": 0, "3ba": 3, "1ep": 4, "1dur": 8}
    for at, updates in {"0ba": 0, "3ba": 3, "1ep": 4}.items():
        assert_same(find_snapshot(tmp_path, at).weights(), log.weights[updates])
    assert_same(find_snapshot(tmp_path, "1dur").weights(), weights(module))


@pytest.mark.parametrize("updates", [0, 3, 4])
def test_a_training_goes_on_from_a_full_snapshot(updates, tmp_path):
    given = {"at": ["0ba", "3ba", "1ep"], "full": True, "save_folder": str(tmp_path)}
    module = fit(ours.Snapshots(**given), data=Shuffled("images"))
    again = ours.Snapshots(**given)
    resumed = fit(again, data=Shuffled("images"), resumed=tmp_path / f"ba{updates}.pt")
    assert_same(weights(resumed), weights(module))
    assert again.kept == {"0ba": 0, "3ba": 3, "1ep": 4}


def test_the_results_reach_the_loggers(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path))
    fit(ticket(), logger=logger, **LEVELS)
    head = Path(logger.log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"lottery/level", "lottery/loss", "pruning/density", "pruning/compression_ratio"} <= set(head)


def test_a_layer_of_its_own_name_can_be_pruned_alone():
    pruning = ours.MagnitudePruning(0.5, include=["network.9.*"])
    module = fit(pruning, max_steps=2)
    assert [*pruning.masks] == ["network.9.weight"]
    assert isinstance(module.network[9], nn.Linear)
