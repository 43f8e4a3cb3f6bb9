"""LinearPath in Composer: the path is that of a plain loop, after a kill too, and nothing of the run is changed."""

import csv
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback
from composer.algorithms import EMA
from composer.core import DataSpec
from composer.devices import DeviceCPU
from composer.loggers import LoggerDestination
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset

from accelerando.algorithms import LinearPath, MagnitudePruning, barrier, distance, find_snapshot, interpolate
from accelerando.algorithms.composer.batches import parts
from accelerando.recipes.train import train
from runs import KILL, settings
from runs import trained as trained_by_recipe
from tiny import (
    Kill,
    assert_same,
    classifier,
    examples,
    fit,
    loader,
    masked_lm,
    noisy_network,
    sentences,
    token_loader,
    trainer,
    weights,
)

POINTS = 4
pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")


def noisy(algorithms: Any = (), **options: Any) -> Any:
    """With batch norm and dropout."""
    given = {"train_dataloader": loader(shuffle=True), "eval_dataloader": loader(batch_size=7)}
    return trainer(algorithms, model=classifier(noisy_network()), **given | options)


def path_in(folder: Any, **options: Any) -> LinearPath:
    return LinearPath(points=POINTS, save_folder=str(folder), **options)


def states_along(folder: Any, run: Any, start: str) -> list[dict[str, torch.Tensor]]:
    first = find_snapshot(folder, start).weights()
    return [interpolate(first, weights(run), number / (POINTS - 1)) for number in range(POINTS)]


def test_its_curves_are_those_of_a_plain_loop(tmp_path):
    path = path_in(tmp_path, start="2ba", train=True)
    run = noisy([path])
    run.fit()
    inputs, targets = examples()
    expected: dict[str, list[float]] = {}
    for state in states_along(tmp_path, run, "2ba"):
        for mode in ("interpolate", "recompute"):
            model = noisy_network()
            model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
            model.eval()
            if mode == "recompute":
                norm = model[1].train()
                norm.reset_running_stats()
                norm.momentum = None
                sampler = loader(shuffle=True)
                sampler.sampler.set_epoch(0)
                with torch.no_grad():
                    for batch, _ in sampler:
                        model(batch)
                model.eval()
            with torch.no_grad():
                outputs = model(inputs)
            for data in ("eval", "train"):
                expected.setdefault(f"{mode}/{data}/loss", []).append(float(F.cross_entropy(outputs, targets)))
                accuracy = float((outputs.argmax(1) == targets).float().mean())
                expected.setdefault(f"{mode}/{data}/MulticlassAccuracy", []).append(accuracy)
    found = path.result
    assert (found.start, found.end, found.alphas) == (2, 8, [0, 1 / 3, 2 / 3, 1])
    for name, values in expected.items():
        assert found.curves[name] == pytest.approx(values, abs=1e-5), name
    assert found.curves["interpolate/eval/loss"] != pytest.approx(found.curves["recompute/eval/loss"], abs=1e-3)
    first = find_snapshot(tmp_path, "2ba").weights()
    assert found.distance == pytest.approx(distance(first, weights(run)), rel=1e-6)
    assert found.numbers()["barrier/recompute/eval/loss"] == barrier(found.curves["recompute/eval/loss"])
    accuracies = found.curves["interpolate/eval/MulticlassAccuracy"]
    worst = (accuracies[0] + accuracies[-1]) / 2 - min(accuracies)
    assert found.numbers()["barrier/interpolate/eval/MulticlassAccuracy"] == pytest.approx(worst)


def test_its_last_point_is_the_evaluation(tmp_path):
    path = path_in(tmp_path, batch_norm="interpolate")
    run = noisy([path])
    run.fit()
    assert {name.partition("/")[0] for name in path.result.curves} == {"interpolate"}
    for name, metric in run.state.eval_metrics["eval"].items():
        assert path.result.curves[f"interpolate/eval/{name}"][-1] == float(metric.compute())


class Ends(Callback):
    """What the generators and the run hold when others have acted at the end."""

    def fit_end(self, state, logger):
        numpy: Any = np.random.get_state()
        self.generators = (torch.get_rng_state().tolist(), numpy[1].tolist())
        self.training = [module.training for module in state.model.modules()]
        self.labels = vars(state.model).keys()


def test_the_run_is_as_without_it(tmp_path):
    def fitted(name, algorithms):
        data = TensorDataset(*examples())
        shuffled = RandomSampler(data, generator=torch.Generator().manual_seed(3))
        options = {"train_dataloader": DataLoader(data, 8, sampler=shuffled), "save_interval": "1ba"}
        ends = Ends()
        run = noisy([*algorithms, EMA(half_life="1ba")], callbacks=[ends], save_folder=str(tmp_path / name), **options)
        run.fit()
        run.fit(duration="1ep")
        return run, ends

    (run, ends), (plain, plain_ends) = fitted("with", [path_in(tmp_path, train=True)]), fitted("without", [])
    assert_same(weights(run), weights(plain))
    assert vars(ends) == vars(plain_ends)
    for file in ("ep1-ba8-rank0.pt", "ep2-ba12-rank0.pt"):
        one, other = (torch.load(tmp_path / name / file, weights_only=False) for name in ("with", "without"))
        assert_same(one["state"]["model"], other["state"]["model"])
        for generators, others in zip(one["rng"], other["rng"], strict=True):
            assert generators["python"] == others["python"] and torch.equal(generators["torch"], others["torch"])
            assert (generators["numpy"][1] == others["numpy"][1]).all()


@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method")  # only an end is left
@pytest.mark.parametrize("killed", [1, 3, 4, 5, 7, 8])
def test_a_killed_run_finds_the_same_path(killed, tmp_path):
    def path(folder):
        return path_in(tmp_path / folder, start="3ba", train=True)

    whole = path("whole")
    noisy([whole]).fit()
    options = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba", "save_overwrite": True}

    class KilledAtTheEnd(Callback):
        def epoch_checkpoint(self, state, logger):
            if state.timestamp.batch == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noisy([path("killed")], callbacks=[Kill(killed), KilledAtTheEnd()], **options).fit()
    latest = max((tmp_path / "checkpoints").glob("ep*-ba*.pt"), key=lambda file: int(file.name.split("-")[1][2:]))
    resumed = path("killed")
    noisy([resumed], load_path=str(latest), **options).fit()
    assert resumed.result == whole.result


def test_a_start_that_is_gone_or_never_comes_is_told_in_one_line(tmp_path):
    options = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba"}
    noisy([path_in(tmp_path / "own")], max_duration="3ba", **options).fit()
    checkpoint = str(tmp_path / "checkpoints" / "ep0-ba3-rank0.pt")
    shutil.rmtree(tmp_path / "own")
    for start in ("0ba", "2ba"):
        resumed = noisy([path_in(tmp_path / "own", start=start)], load_path=checkpoint)
        with pytest.raises(ValueError, match=f"LinearPath: start={start} had passed at 3ba, .* not in .*own") as error:
            resumed.fit()
        assert "\n" not in str(error.value)
    for late in ("9ba", "8ba", "2ep"):
        with pytest.raises(
            ValueError, match=f"LinearPath: start must be .* the training, which lasts 2ep, got '{late}'"
        ):
            noisy([path_in(tmp_path, start=late)], max_duration="2ep").fit()
    never = path_in(tmp_path / "never", start="59sp")
    with pytest.warns(UserWarning, match="LinearPath: the training has ended after 1ba, before 59sp"):
        noisy([never], max_duration="1ba").fit()
    assert never.result is None


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="LinearPath has nothing to measure on"):
        fit(path_in(tmp_path))
    assert fit(path := path_in(tmp_path, train=True)) and {*path.result.curves} == {
        f"train/{name}" for name in ("loss", "CrossEntropy", "MulticlassAccuracy")
    }
    path, state = path_in(tmp_path), SimpleNamespace(fsdp_config={}, tp_config=None)
    with pytest.raises(ValueError, match="LinearPath does not keep weights that FSDP"):
        path._begin(state, None)


@pytest.mark.parametrize("start", ["0ba", "3ba"])
def test_the_support_of_a_pruned_network(start, tmp_path):
    path, zeros = path_in(tmp_path, start=start), []
    pruning = MagnitudePruning(0.5, start="2ba")
    run = trainer([path, pruning], eval_dataloader=loader())
    run.state.model.register_forward_hook(
        lambda model, *given: (
            None
            if model.training
            else zeros.append([int((w[~pruning.masks[n]] != 0).sum()) for n, w in pruning.weights.items()])
        )
    )
    if start == "3ba":
        run.fit()
        assert path.result.outside == [] and len(zeros) == 4 * POINTS and not any(map(any, zeros))
        return
    with pytest.warns(
        UserWarning, match="LinearPath: the start is not zero where the network is pruned at the end, in"
    ):
        run.fit()
    assert set(path.result.outside) == {*pruning.masks}
    assert any(map(any, zeros))


def test_the_weights_are_those_that_are_trained_beside_averages(tmp_path):
    paths = [path_in(tmp_path / name) for name in ("with", "without")]
    noisy([paths[0], EMA(half_life="2ba")], save_folder=str(tmp_path / "saved"), save_interval="1ba").fit()
    noisy([paths[1]]).fit()
    assert paths[0].result == paths[1].result


def test_losses_and_metrics_of_hugging_face_models(tmp_path):
    path = path_in(tmp_path)
    run = fit(path, model=masked_lm(), train_dataloader=token_loader(), eval_dataloader=token_loader(batch_size=30))
    for state, found in zip(states_along(tmp_path, run, "0ba"), path.result.curves["eval/loss"], strict=True):
        model = masked_lm().eval()
        model.load_state_dict(state)
        with torch.no_grad():
            assert found == pytest.approx(float(model.model(**sentences()).loss), abs=1e-5)
    assert path.result.curves["eval/LanguageCrossEntropy"] == pytest.approx(path.result.curves["eval/loss"], abs=1e-5)
    assert path.result.curves["eval/MaskedAccuracy"][-1] == float(
        run.state.eval_metrics["eval"]["MaskedAccuracy"].compute()
    )


class Logged(LoggerDestination):
    def __init__(self):
        self.metrics: dict[str, float] = {}
        self.tables: dict[str, Any] = {}
        self.images: dict[str, Any] = {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_table(self, columns, rows, name="", step=None):
        self.tables[name] = [columns, *rows]

    def log_images(self, images, name="", *rest):
        self.images[name] = images


def test_it_is_logged_and_stands_in_the_folder(tmp_path):
    path, logged = path_in(tmp_path), Logged()
    fit(path, eval_dataloader=loader(), loggers=[logged])
    assert {
        f"linear_path/{name}": value for name, value in path.result.numbers().items()
    }.items() <= logged.metrics.items()
    table = logged.tables["linear_path"]
    assert (
        table[0] == ["alpha", "eval/loss", "eval/CrossEntropy", "eval/MulticlassAccuracy"] and len(table) == 1 + POINTS
    )
    assert [row[1] for row in table[1:]] == path.result.curves["eval/loss"]
    with (tmp_path / "path.csv").open() as file:
        assert [[float(cell) for cell in row] for row in [*csv.reader(file)][1:]] == table[1:]
    pixels = logged.images["linear_path"]
    assert pixels.ndim == 3 and pixels.std() > 0 and (tmp_path / "path.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_figure_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = path_in(tmp_path)
    with pytest.warns(UserWarning, match=r"the path is not drawn, as .* pip install 'accelerando\[landscape\]'"):
        fit(path, eval_dataloader=loader())
    assert path.result and (tmp_path / "path.csv").exists() and not (tmp_path / "path.png").exists()


@pytest.mark.parametrize("batch_size", [2, 3])
def test_what_fills_up_the_ranks_does_not_count(batch_size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        data = TensorDataset(torch.arange(5))
        batches = DataLoader(data, batch_size, sampler=DistributedSampler(data, 2, rank, shuffle=False))
        for part in parts(SimpleNamespace(device=DeviceCPU()), DataSpec(batches), 2):
            seen += part.batch[0][: part.samples].tolist()
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_a_recipe_has_it_in_its_results(tmp_path, capsys):
    config = settings(tmp_path) | {"algorithms": {"linear_path": {"points": 3, "train": True, "batches": 1}}}
    whole, _ = trained_by_recipe(config, run_name="whole")
    found = whole.found["linear_path"]
    assert (found["start"], found["end"], found["alphas"]) == (0, 8, [0, 0.5, 1])
    assert {name.rpartition("/")[0] for name in found["curves"]} == {
        f"{mode}/{data}" for mode in ("interpolate", "recompute") for data in ("eval", "train")
    }
    assert whole.records[-1]["linear_path/distance"] == found["distance"] > 0
    assert (tmp_path / "whole" / "linear_path" / "path.png").exists()
    assert "setback" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    assert trained_by_recipe(config)[0].found == whole.found
    # Killed when training had ended, and nothing was reported yet.
    (tmp_path / "run" / "results.json").unlink()
    again = trained_by_recipe(config)[0]
    assert again.found == whole.found and again.records[-1]["linear_path/distance"] == found["distance"]
