"""When moments in ep and dur come, where the updates of an epoch are not all alike, or nobody knows how many come."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import accelerando.algorithms.lightning as ours
from accelerando.algorithms import find_snapshot
from light import TENSORS_ALONE, Module, Shuffled, checkpoints, loader, module_for, trainer, weights
from small import assert_same, network

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]
GROWS, FALLS = {0: 1, 2: 4}, {0: 4, 2: 1}  # how many batches make an update, from which epoch on


class Manual(Module):
    """A module that steps its optimizer as often as it likes."""

    def __init__(self, steps: int = 1, every: int = 1):
        super().__init__(network())
        self.automatic_optimization = False
        self.steps, self.every = steps, every

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for _ in range(self.steps):
            self.manual_backward(self.loss(batch, self(batch)))
            if (batch_idx + 1) % self.every == 0:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()


class Two(Manual):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.network[0], self.network[3])]


class Stream(IterableDataset):
    """Examples without a length: 30 of them."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader("images").dataset)  # type: ignore[arg-type]


def stream() -> DataLoader:
    return DataLoader(Stream(), 8)


class Log(Callback):
    """Takes down after which batch, from 1, something was so; after all others that act there."""

    late = 5

    def __init__(self, ask: Any):
        self.ask, self.batches, self.found = ask, 0, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        if self.ask():
            self.found.append(self.batches)


def fit(*callbacks: Callback, module: Any = None, data: Any = None, resumed: Any = None, **options: Any) -> Any:
    module = module or module_for("images")
    place = {"ckpt_path": resumed, **TENSORS_ALONE} if resumed else {}
    trainer(callbacks, **({"max_epochs": 4} | options)).fit(module, loader("images") if data is None else data, **place)
    return module


def distilled(module: Any = None, data: Any = None, extra: Any = (), start: str = "0dur", end: str = "1dur", **options):
    """The batches, from 1, that asked a teacher."""
    technique = ours.Distillation(network(), start=start, end=end)
    log = Log(lambda: bool(technique.distiller.parts))
    fit(technique, *extra, log, module=module, data=data, **options)
    return log.found


def pruned(*, module: Any = None, data: Any = None, extra: Any = (), density: float = 0.3, **times: str) -> list[int]:
    """The batches, from 1, after which fewer weights were left than before."""
    technique, left = ours.MagnitudePruning(density, **times), []

    def fewer() -> bool:
        left.append(technique.remaining())
        return len(left) > 1 and left[-1] < left[-2]

    log = Log(fewer)
    fit(technique, *extra, log, module=module, data=data)
    assert technique.share_left() == pytest.approx(density, abs=1e-3)
    return log.found


def kept(
    folder: Any, *at: str, module: Any = None, data: Any = None, extra: Any = (), **options: Any
) -> dict[str, int]:
    snapshots = ours.Snapshots(at, save_folder=str(folder))
    module = fit(snapshots, *extra, module=module, data=data, **options)
    if "1dur" in at:
        assert_same(find_snapshot(folder, "1dur").weights(), weights(module))
    return snapshots.kept


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(GROWS, [4, 8, 8, 9, 10]), (FALLS, [1, 2, 2, 6, 10])],
    ids=["grows", "falls"],
)
def test_moments_where_accumulation_changes_with_the_epochs(schedule, expected, tmp_path):
    at = ["1ep", "2ep", "0.5dur", "3ep", "1dur"]
    extra = [GradientAccumulationScheduler(schedule)]
    assert [*kept(tmp_path, *at, extra=extra).values()] == expected
    extra = [GradientAccumulationScheduler(schedule)]
    assert distilled(extra=extra, start="0.25dur", end="0.75dur") == [*range(5, 13)]
    extra = [GradientAccumulationScheduler(schedule)]
    assert pruned(extra=extra, start="3ep") == [12]


def gone_on(folder: Any, at: int, build: Any, **options: Any) -> tuple[Any, Any]:
    """Moments and weights of a whole training, and of one that goes on from a checkpoint of it."""

    def run(*extra: Callback, resumed: Any = None) -> Any:
        snapshots = ours.Snapshots(["1ep", "3ep", "1dur"], save_folder=str(folder))
        pruning = ours.MagnitudePruning(0.3, start="1ep", end="3ep", interval="1ep")
        module, data, others = build()
        module = fit(snapshots, pruning, *others, *extra, module=module, data=data, resumed=resumed, **options)
        return snapshots.kept, weights(module)

    each = ModelCheckpoint(folder, "epoch={epoch}", save_top_k=-1, auto_insert_metric_name=False)
    whole = run(checkpoints(folder), each)
    return whole, run(resumed=folder / (f"step={at}.ckpt" if at > 0 else f"epoch={-at - 1}.ckpt"))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_training_whose_accumulation_changes_goes_on_from_an_epochs_end(epoch, tmp_path):
    def build() -> Any:
        return None, loader("images"), [GradientAccumulationScheduler(GROWS)]

    whole, again = gone_on(tmp_path, -epoch - 1, build)
    assert whole[0] == again[0] == {"1ep": 4, "3ep": 9, "1dur": 10}
    assert_same(whole[1], again[1])


@pytest.mark.parametrize("at", [2, 6, 8, 12, 24, 26, -1, -2])  # updates, or epochs
def test_a_module_that_optimizes_by_itself_goes_on(at, tmp_path):
    whole, again = gone_on(
        tmp_path, at, lambda: (Manual(steps=2), Shuffled("images") if at > 0 else loader("images"), [])
    )
    assert whole[0] == again[0] == {"1ep": 8, "3ep": 24, "1dur": 32}
    assert_same(whole[1], again[1])


@pytest.mark.parametrize("at", [4, 8, 12, -1, -2])
def test_a_training_on_data_without_a_length_goes_on_from_an_epochs_end(at, tmp_path):
    whole, again = gone_on(tmp_path, at, lambda: (None, stream(), []))
    assert whole[0] == again[0] == {"1ep": 4, "3ep": 12, "1dur": 16}
    assert_same(whole[1], again[1])


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(1, 1, [4, 8, 12, 16]), (2, 1, [8, 16, 24, 32]), (1, 2, [2, 4, 6, 8]), (1, 3, [1, 2, 3, 4])],
    ids=["one a batch", "two a batch", "every second batch", "every third batch"],
)
def test_moments_of_a_module_that_optimizes_by_itself(steps, every, expected, tmp_path):
    at = ["1ep", "0.5dur", "3ep", "1dur"]
    assert [*kept(tmp_path, *at, module=Manual(steps, every)).values()] == expected
    assert distilled(Manual(steps, every), start="1ep", end="0.75dur") == [*range(5, 13)]
    if every < 3:
        assert pruned(module=Manual(steps, every), start="0.5dur") == [8]
    module = Manual(steps, every)
    assert [*kept(tmp_path / "steps", "0.5dur", module=module, max_epochs=-1, max_steps=4).values()] == [2]


def test_distillation_beside_two_optimizers():
    assert distilled(Two(), start="0.5dur") == [*range(9, 17)]


def test_pruning_at_an_epochs_end_that_comes_without_an_update():
    technique = ours.MagnitudePruning(0.3, start="1ep", end="1dur", interval="1ep")
    fit(technique, module=Manual(every=3), max_epochs=2)
    assert technique.share_left() == pytest.approx(0.3, abs=1e-3)


def test_whole_epochs_of_a_loader_without_a_length(tmp_path):
    at = ["1ep", "0.5dur", "3ep", "1dur"]
    assert kept(tmp_path, *at, data=stream()) == {"1ep": 4, "0.5dur": 8, "3ep": 12, "1dur": 16}
    extra = {"data": stream(), "max_epochs": -1, "max_steps": 10}
    assert kept(tmp_path / "steps", "2ba", "0.7dur", **extra) == {"2ba": 2, "0.7dur": 7}
    assert distilled(data=stream(), start="1ep", end="0.75dur") == [*range(5, 13)]
    assert pruned(data=stream(), start="0.25dur", end="3ep", interval="1ep") == [8, 12]
    assert pruned(data=stream(), start="5ba") == [5]
    assert pruned(data=stream(), extra=[GradientAccumulationScheduler(GROWS)], start="3ep") == [12]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ours.Snapshots(["1ep", "0.3dur"]),
        lambda: ours.Distillation(network(), start="0.3dur"),
        lambda: ours.MagnitudePruning(0.3, start="0.3dur"),
        lambda: ours.LinearPath(start="0.3dur", train=True),
        lambda: ours.ForgettingEvents(loader("images"), interval="0.3dur"),
    ],
)
def test_a_share_of_a_training_that_cannot_be_told_is_refused(build, tmp_path):
    with pytest.raises(
        ValueError, match=r"0\.3dur lies within an epoch, and the loader has no length; give whole epochs"
    ):
        fit(build(), data=stream(), default_root_dir=tmp_path)
    with pytest.raises(
        ValueError, match="length is not known; give the Trainer max_steps or max_epochs, or the moment"
    ):
        fit(build(), max_epochs=-1, default_root_dir=tmp_path)
    for options in ({"module": Manual()}, {"data": stream()}):
        with pytest.raises(ValueError, match="may end by max_steps or by max_epochs; give the Trainer one of the two"):
            fit(build(), max_steps=6, default_root_dir=tmp_path, **options)


def test_gradual_pruning_within_epochs_of_unknown_length_is_refused():
    with pytest.raises(
        ValueError, match=r"MagnitudePruning: 0\.02ep lies within an epoch, and the loader has no length"
    ):
        fit(ours.MagnitudePruning(0.3, end="2ep"), data=stream())
    with pytest.raises(ValueError, match="MagnitudePruning: start=2ba, end=2ep cannot be compared; give them in one"):
        fit(ours.MagnitudePruning(0.3, start="2ba", end="2ep"), module=Manual())


def test_teachers_that_were_let_go_are_none_of_another_training():
    technique = ours.Distillation(network(), end="0.5dur")
    fit(technique)
    with pytest.raises(ValueError, match=r"let go at end=0\.5dur of an earlier training; make a new one for each"):
        fit(technique)


def test_a_batch_without_an_input_at_the_key_says_which_argument_tells():
    @dataclass
    class Batch:
        images: torch.Tensor
        labels: torch.Tensor

    class Named(Module):
        def forward(self, batch: Any) -> torch.Tensor:
            return self.network(batch.images)

        def loss(self, batch: Any, outputs: torch.Tensor) -> torch.Tensor:
            return ours.training_loss(self, F.cross_entropy, outputs, batch.labels)

    data: Any = DataLoader([Batch(*batch) for batch in loader("images")], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Distillation finds nothing at 0 in a batch \(Batch\): give input_key"):
        fit(ours.Distillation(network()), module=Named(network()), data=data)
    fit(ours.Distillation(network(), input_key="images", target_key="labels"), module=Named(network()), data=data)


def test_distillation_to_the_end_needs_no_length():
    assert distilled(data=stream(), start="1ep", max_epochs=-1, max_steps=6) == [5, 6]
    assert distilled(start="1ep", max_epochs=-1, limit_train_batches=2, extra=[_Stops(3)]) == [3, 4, 5, 6]


class _Stops(Callback):
    """Ends the training after so many epochs."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_a_curve_needs_updates_of_as_many_batches_each():
    from accelerando.algorithms import MultiplicativeCyclicLR

    module = module_for("images", schedule=lambda optimizer: MultiplicativeCyclicLR(optimizer, 2, 2))
    given = [ours.TradeoffCurve(), GradientAccumulationScheduler(GROWS)]
    with pytest.raises(ValueError, match="TradeoffCurve: leave GradientAccumulationScheduler out"):
        options = {"max_steps": 8, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        trainer(given, **options).fit(module, loader("images"), loader("images"))
