"""Snapshots: files of the right moments with the right weights, whatever else writes them, also after a kill."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.algorithms import EMA, SWA
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from accelerando.algorithms import MagnitudePruning, Snapshots, find_snapshot, find_snapshots
from accelerando.algorithms.checkpoints import read_metadata, read_weights
from tiny import Kill, assert_same, classifier, examples, fit, loader, masked_lm, noisy_network, token_loader, trainer


class Weights(Callback):
    """Copies the weights with which each update begins, and those of the end."""

    def __init__(self):
        self.by_batch: dict[int, dict[str, torch.Tensor]] = {}

    def _keep(self, state, logger):
        held = state.model.state_dict().items()
        self.by_batch[state.timestamp.batch.value] = {name: value.detach().clone() for name, value in held}

    batch_start = fit_end = _keep


def kept(folder: Path) -> dict[str, Any]:
    """All that the files hold; safetensors writes metadata in any order."""
    files = sorted(folder.glob("*.safetensors"))
    return {path.name: (read_metadata(path), {n: v.tolist() for n, v in read_weights(path).items()}) for path in files}


def noisy(*algorithms, **options):
    return trainer(algorithms, model=classifier(noisy_network()), train_dataloader=loader(shuffle=True), **options)


def test_each_moment_has_the_weights_and_buffers_with_which_training_goes_on(tmp_path):
    seen = Weights()
    run = noisy(
        Snapshots(["0ba", "3ba", "1ep", "40sp", "0.75dur", "1dur"], save_folder=str(tmp_path)), callbacks=[seen]
    )
    run.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"ba{n}.safetensors" for n in (0, 3, 4, 6, 8)]
    for at, batch in {
        "0ba": 0,
        "3ba": 3,
        "1ep": 4,
        "4ba": 4,
        "40sp": 6,
        "0.75dur": 6,
        "8ba": 8,
        "2ep": 8,
        "60sp": 8,
    }.items():
        assert_same(find_snapshot(tmp_path, at).weights(), seen.by_batch[batch])
    found = find_snapshots(tmp_path)
    assert [each.place["batch"] for each in found] == [0, 3, 4, 6, 8]
    assert found[2].place | {"token": 0} == {
        "epoch": 1,
        "batch": 4,
        "sample": 30,
        "token": 0,
        "batch_in_epoch": 0,
        "sample_in_epoch": 0,
        "token_in_epoch": 0,
    }
    assert found[2].place_before["batch"] == 3 and found[2].place_before["sample"] == 24 and found[2].seed == 7
    assert all(each.full is None for each in found)


@pytest.mark.parametrize("save", ["1ba", "4ba", "1ep"])
def test_it_keeps_what_is_trained_and_not_averages(save, tmp_path):
    """EMA puts its averages into the model for each checkpoint, and leaves them there until the next update."""
    seen, at = Weights(), ["3ba", "1ep", "6ba"]
    both = Snapshots(at, full=True, save_folder=str(tmp_path / "snapshots")), EMA(half_life="1ba")
    checkpoints = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": save}
    for order in (both, both[::-1]):
        noisy(*order, callbacks=[seen], **checkpoints, save_overwrite=True).fit()
        for moment in at:
            snapshot = find_snapshot(tmp_path / "snapshots", moment)
            assert_same(snapshot.weights(), seen.by_batch[snapshot.place["batch"]])
            full = torch.load(snapshot.full, weights_only=False)["state"]
            assert_same(full["model"], snapshot.weights())
            assert not dict(full["algorithms"])["EMA"]["ema_weights_active"]


def test_checkpoints_and_averages_are_as_without_it(tmp_path):
    states = []
    for name, own in {"with": [Snapshots(["3ba", "1ep"], True, str(tmp_path / "own"))], "without": []}.items():
        noisy(*own, EMA(half_life="1ba"), save_folder=str(tmp_path / name), save_interval="1ba").fit()
        states += [
            torch.load(tmp_path / name / f"ep{epoch}-ba{n}-rank0.pt", weights_only=False)["state"]
            for epoch, n in ((0, 3), (1, 5))
        ]
    for one, other in zip(states[:2], states[2:], strict=True):
        assert_same(one["model"], other["model"])
        assert (
            dict(one["algorithms"])["EMA"]["ema_weights_active"]
            == dict(other["algorithms"])["EMA"]["ema_weights_active"]
        )


@pytest.mark.filterwarnings("ignore:SWA has known issues")
def test_what_others_write_at_the_same_moment_is_in_it(tmp_path):
    for number, order in enumerate([[0, 1], [1, 0]]):
        folder, seen = tmp_path / str(number), Weights()
        both = [
            Snapshots(["3ba"], save_folder=str(folder)),
            MagnitudePruning(0.5, start="0ba", end="2ba", interval="1ba"),
        ]
        fit([both[i] for i in order], callbacks=[seen])
        assert_same(find_snapshot(folder, "3ba").weights(), seen.by_batch[3])
        weights = find_snapshot(folder, "3ba").weights()
        assert any((value == 0).float().mean() > 0.4 for value in weights.values())
    swa = SWA(swa_start="0.25dur", swa_end="0.9dur", update_interval="1ba")
    seen = Weights()
    fit([Snapshots(["1ep"], save_folder=str(tmp_path / "swa")), swa], callbacks=[seen])
    assert_same(find_snapshot(tmp_path / "swa", "1ep").weights(), seen.by_batch[4])


@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method")  # only an end is left
@pytest.mark.parametrize("killed", range(1, 8))
def test_a_killed_run_leaves_the_same_files(killed, tmp_path):
    at = ["0ba", "2ba", "1ep", "5ba", "1dur"]
    noisy(Snapshots(at, save_folder=str(tmp_path / "whole"))).fit()
    for interval in ("1ba", "2ba"):
        folder = tmp_path / interval
        options = {"save_folder": str(folder / "checkpoints"), "save_interval": interval, "save_overwrite": True}
        own = {"save_folder": str(folder / "snapshots"), "full": True}
        with pytest.raises(KeyboardInterrupt):
            noisy(Snapshots(at, **own), callbacks=[Kill(killed)], **options).fit()
        if checkpoints := sorted((folder / "checkpoints").glob("ep*-ba*.pt"), key=lambda path: path.stat().st_mtime_ns):
            noisy(Snapshots(at, **own), load_path=str(checkpoints[-1]), **options).fit()
            assert kept(folder / "snapshots") == kept(tmp_path / "whole")
            assert len([*(folder / "snapshots").glob("*.pt")]) == 5


def test_a_file_that_is_gone_or_a_moment_that_has_passed_is_told(tmp_path):
    whole, options = loader(batch_size=6), {"save_folder": str(tmp_path), "save_interval": "1ba"}
    own = {"save_folder": str(tmp_path / "own")}
    trainer(Snapshots(["2ba"], **own), max_duration="7ba", train_dataloader=whole, **options).fit()
    shutil.rmtree(tmp_path / "own")
    later = Snapshots(["2ba", "3ba", "8ba"], **own)
    resumed = trainer(later, load_path=str(tmp_path / "ep1-ba7-rank0.pt"), train_dataloader=whole)
    with pytest.warns(UserWarning, match="Snapshots: 2ba, 3ba had passed at 7ba, where the run goes on; it is not"):
        resumed.fit()
    assert [*kept(tmp_path / "own")] == ["ba8.safetensors"]


def test_a_longer_run_keeps_its_own_end(tmp_path):
    options = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba"}
    own = {"at": ["1dur"], "save_folder": str(tmp_path / "snapshots")}
    noisy(Snapshots(**own), max_duration="5ba", **options).fit()
    noisy(Snapshots(**own), load_path=str(tmp_path / "checkpoints" / "ep1-ba5-rank0.pt")).fit()
    assert sorted(kept(tmp_path / "snapshots")) == ["ba5.safetensors", "ba8.safetensors"]


def test_moments_that_never_come_are_refused_or_told(tmp_path):
    with pytest.raises(ValueError, match="Snapshots: at must be within the training, which lasts 2ep, got '9ba'"):
        noisy(Snapshots(["9ba"], save_folder=str(tmp_path))).fit()
    run = trainer(Snapshots(["61sp"], save_folder=str(tmp_path)), train_dataloader=loader(batch_size=6))
    with pytest.warns(UserWarning, match="the training has ended after 10ba, before 61sp"):
        run.fit()


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(*examples(), strict=True)


def test_epochs_of_unknown_length_are_kept_at_their_end(tmp_path):
    seen = Weights()
    own = Snapshots(["1ep", "2ba", "4ba"], full=True, save_folder=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(own, train_dataloader=DataLoader(Endless(), 8), callbacks=[seen], max_duration="8ba")
    assert own.kept == {"1ep": 4, "2ba": 2, "4ba": 4}
    for at in own.kept:
        assert_same(find_snapshot(tmp_path, at).weights(), seen.by_batch[own.kept[at]])
        assert find_snapshot(tmp_path, at).full


def test_tied_weights_stand_under_each_of_their_names(tmp_path):
    model = masked_lm()
    trainer([Snapshots(["2ba"], save_folder=str(tmp_path))], model=model, train_dataloader=token_loader()).fit()
    found = find_snapshot(tmp_path, "2ba").weights()
    assert found.keys() == model.state_dict().keys()
    other = masked_lm(seed=3)
    other.load_state_dict(found)
    assert other.state_dict().keys() == found.keys() and find_snapshot(tmp_path, "2ba").place["token"] > 0


def test_composer_goes_on_from_a_full_one(tmp_path):
    whole = noisy(Snapshots(["3ba"], full=True, save_folder=str(tmp_path)))
    whole.fit()
    again = noisy(load_path=str(find_snapshot(tmp_path, "3ba").full), load_exclude_algorithms=["Snapshots"])
    again.fit()
    assert_same(again.state.model.state_dict(), whole.state.model.state_dict())


def test_by_default_they_lie_in_the_runs_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noisy(Snapshots(["1ep"]), run_name="mine").fit()
    assert [*kept(tmp_path / "mine" / "snapshots")] == ["ba4.safetensors"]


def test_files_that_are_no_snapshots_are_named(tmp_path):
    with pytest.raises(LookupError, match="holds no snapshots, which the algorithm Snapshots keeps"):
        find_snapshot(tmp_path, "3ba")
    noisy(Snapshots(["3ba", "1ep"], save_folder=str(tmp_path))).fit()
    for at in ("2ba", "2ep", "soon", "7sp", "3tok"):
        with pytest.raises(LookupError, match=f"has no snapshot of {at}, but of 3ba, 4ba"):
            find_snapshot(tmp_path, at)
    place = (tmp_path / "ba3.safetensors").read_bytes()
    for damaged in (b"", place[:50], place[:-8].replace(b"batch", b"bitch", 1), b"\xff" * 100):
        (tmp_path / "ba3.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ba3\.safetensors is no snapshot"):
            find_snapshot(tmp_path, "3ba")
    save_file({"weight": torch.zeros(3)}, tmp_path / "ba3.safetensors", {"place": "{}", "place_before": "[]"})
    with pytest.raises(ValueError, match=r"ba3\.safetensors is no snapshot"):
        find_snapshots(tmp_path)


class Scaled(torch.nn.Linear):
    def get_extra_state(self):
        return {"scale": 1.0}

    def set_extra_state(self, state):
        pass


def test_a_model_with_more_than_tensors_is_refused(tmp_path):
    model = classifier()
    model.module[-1] = Scaled(32, 4)
    with pytest.raises(ValueError, match=r"module\.9\._extra_state of the model's state_dict is no tensor"):
        fit(Snapshots(["1ep"], save_folder=str(tmp_path)), model=model, callbacks=[Kill(0)])
