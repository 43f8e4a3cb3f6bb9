"""Snapshots: files of the right moments with the right weights, whatever else writes them, also after a kill."""

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback
from composer.algorithms import EMA, SWA
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from accelerando.algorithms import MagnitudePruning, Snapshots, SnapshotWriter, find_snapshot, find_snapshots
from accelerando.algorithms.checkpoints import read_metadata, read_weights
from accelerando.algorithms.generators import seeded
from accelerando.algorithms.progress import Moment, Progress
from launcher import run_two_ranks
from tiny import (
    CLASSES,
    Kill,
    assert_same,
    classifier,
    examples,
    fit,
    loader,
    masked_lm,
    noisy_network,
    plain_loop,
    token_loader,
    trainer,
)


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


def normed_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, CLASSES)
    )


def after(step, tokens):
    """What Composer counts after so many updates of the tiny run."""
    epoch, batch = divmod(step, 4)
    counts = {"batch": step, "epoch": epoch, "batch_in_epoch": batch}
    counts |= {"sample": 30 * epoch + 8 * batch, "sample_in_epoch": 8 * batch}
    counts |= {"token": tokens * counts["sample"], "token_in_epoch": tokens * 8 * batch}
    return Progress(**counts, batches_per_epoch=4, length=Moment(2, "ep"))


def test_a_plain_loop_leaves_the_files_of_composers(tmp_path):
    at = ["0ba", "3ba", "1ep", "40sp", "0.75dur", "1dur"]
    fit(Snapshots(at, save_folder=str(tmp_path / "composer")), model=classifier(normed_network()))
    composers = kept(tmp_path / "composer")
    tokens = find_snapshot(tmp_path / "composer", "3ba").place["token"] // 24
    with seeded(7):
        model = classifier(normed_network())
        torch.default_generator.manual_seed(7)
        writer = SnapshotWriter(tmp_path / "plain", at)
        for step in plain_loop(model.module, 8):
            writer(model, after(step, tokens))
    assert kept(tmp_path / "plain") == composers and len(composers) == 5
    assert writer.kept == {"0ba": 0, "3ba": 3, "1ep": 4, "40sp": 6, "0.75dur": 6, "1dur": 8} and not writer.missing


class Resumable:
    """A training with dropout in a loop of one's own, in which every generator is drawn from."""

    def __init__(self, folder, full=False):
        self.batches = [*loader()]  # which draws
        self.model = noisy_network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        kept = (lambda: self.parts | {"note": [1, "two"]}) if full else None
        at = ["0ba", "2ba", "1ep", "5ba", "1dur"]
        self.writer = SnapshotWriter(folder, at, steps=8, batches_per_epoch=4, full=kept)

    def train(self, start, end):
        self.writer(self.model, start)
        for step in range(start, end):
            inputs, targets = self.batches[step % 4]
            inputs = inputs * (1 + 0.1 * random.random()) + 0.1 * np.random.random()
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs), targets).backward()
            self.optimizer.step()
            self.scheduler.step()
            self.writer(self.model, step + 1)
        return self.model.state_dict()


@pytest.mark.parametrize("at, step", [("0ba", 0), ("2ba", 2), ("1ep", 4), ("5ba", 5)])
def test_a_plain_loop_goes_on_from_a_full_one(at, step, tmp_path):
    with seeded(3):
        whole = Resumable(tmp_path, full=True).train(0, 8)
    snapshot = find_snapshot(tmp_path, at)
    assert torch.load(snapshot.full, weights_only=True)["note"] == [1, "two"]
    with seeded(4):
        again = Resumable(tmp_path / "again")
        again.writer = lambda model, step: None
        assert snapshot.restore(again.model, **again.parts) == step
        assert_same(again.train(step, 8), whole)


def test_what_a_snapshot_does_not_hold_is_named(tmp_path):
    with seeded(3):
        Resumable(tmp_path).train(0, 2)
        again = Resumable(tmp_path)
        find_snapshot(tmp_path, "2ba").restore(again.model)
        with pytest.raises(ValueError, match=r"ba2.safetensors has no optimizer, scheduler beside it; give Snapshot"):
            find_snapshot(tmp_path, "2ba").restore(again.model, **again.parts)
        with pytest.raises(ValueError, match="does not fit Linear"):
            find_snapshot(tmp_path, "2ba").restore(nn.Linear(2, 2))


def test_a_plain_loop_that_is_resumed_leaves_the_same_files(tmp_path):
    with seeded(3):
        Resumable(tmp_path / "whole").train(0, 8)
    whole = kept(tmp_path / "whole")
    assert [*whole] == [f"ba{n}.safetensors" for n in (0, 2, 4, 5, 8)]
    for killed in range(8):
        with seeded(3):
            second, first = (Resumable(tmp_path / str(killed)) for _ in range(2))
            first.train(0, killed)
            for one, other in zip(
                (first.model, first.writer, *first.parts.values()),
                (second.model, second.writer, *second.parts.values()),
                strict=True,
            ):
                other.load_state_dict(one.state_dict())
            written = {path: path.stat().st_mtime_ns for path in (tmp_path / str(killed)).iterdir()}
            second.train(killed, 8)
            assert all(path.stat().st_mtime_ns == time for path, time in written.items())
        assert kept(tmp_path / str(killed)) == whole


def test_a_plain_loop_is_told_what_has_passed_and_begins_anew_without_its_state(tmp_path):
    with seeded(3):
        Resumable(tmp_path).train(0, 3)
        stale = kept(tmp_path)
        state = SnapshotWriter(tmp_path, ["2ba"]).state_dict() | {"kept": {"0ba": 0, "2ba": 2}}
        (tmp_path / "ba2.safetensors").unlink()
        resumed = Resumable(tmp_path)
        resumed.writer.load_state_dict(state)
        with pytest.warns(UserWarning, match="SnapshotWriter: 2ba had passed at 3ba, where the run goes on; it is not"):
            resumed.train(3, 4)
        assert resumed.writer.kept == {"0ba": 0, "1ep": 4}
    with seeded(5):
        other = Resumable(tmp_path)
        torch.nn.init.zeros_(other.model[0].weight)
        other.train(0, 3)
    assert kept(tmp_path)["ba0.safetensors"] != stale["ba0.safetensors"]


def test_tied_weights_of_a_plain_loop(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    SnapshotWriter(tmp_path, ["0ba"])(torch.compile(model), 0)
    found = find_snapshot(tmp_path, "0ba").weights()
    assert found.keys() == model.state_dict().keys() and torch.equal(found["0.weight"], found["1.weight"])


class Sharded(torch.Tensor):
    pass


def test_what_a_plain_loop_cannot_keep_is_refused(tmp_path):
    model = nn.Sequential(Scaled(2, 2))
    with pytest.raises(ValueError, match=r"SnapshotWriter: 0\._extra_state of the model's state_dict is no tensor"):
        SnapshotWriter(tmp_path, ["0ba"])(model, 0)
    odd = nn.Module()
    odd.register_buffer("part", torch.zeros(2).as_subclass(Sharded))
    with pytest.raises(ValueError, match=r"part \(a Sharded\) of the model's state_dict is no plain tensor; use DDP"):
        SnapshotWriter(tmp_path, ["0ba"])(odd, 0)
    plain = nn.Linear(2, 2)
    for at, options in [("1ep", {"steps": 8}), ("0.5dur", {"batches_per_epoch": 4}), ("8sp", {"steps": 8})]:
        with pytest.raises(ValueError, match=f"a number of updates does not tell when {at} is; give steps for dur, "):
            SnapshotWriter(tmp_path, ["0ba", at], **options)(plain, 0)
    with pytest.raises(ValueError, match="a share of the training has no meaning where its length is not known"):
        SnapshotWriter(tmp_path, ["0.5dur"])(plain, Progress())
    with pytest.raises(ValueError, match="at must be within the training, which lasts 8ba, got '9ba'"):
        SnapshotWriter(tmp_path, ["9ba"], steps=8)(plain, 0)
    with pytest.raises(ValueError, match=r"SnapshotWriter: at must be a list of moments, such as .*, got '1ep'"):
        SnapshotWriter(tmp_path, "1ep")
    assert not [*tmp_path.iterdir()]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    writer = SnapshotWriter(tmp_path, ["0ba"], full={"odd": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        writer(nn.Linear(2, 2), 0)
    assert not [*tmp_path.iterdir()]


AS_ONE_OF_TWO = """
import sys
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from accelerando.algorithms import SnapshotWriter

distributed.init_process_group("gloo")
model = DistributedDataParallel(nn.Linear(2, 2))
own = f"{sys.argv[1]}/{distributed.get_rank()}"  # which another rank cannot see
writer = SnapshotWriter(own, ["0ba", "1ba"], full={})
writer(model, 0)
resumed = SnapshotWriter(own, ["0ba", "1ba"], full={})
resumed.load_state_dict(writer.state_dict())
resumed(model, 1)
assert resumed.kept == {"0ba": 0, "1ba": 1} and not resumed.passed
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.programs
def test_the_first_rank_writes_by_the_names_of_the_network(tmp_path):
    (script := tmp_path / "script.py").write_text(AS_ONE_OF_TWO)
    run_two_ranks(script, tmp_path, timeout=120)
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == [
        f"ba{n}{s}" for n in (0, 1) for s in (".pt", ".safetensors")
    ]
    assert not (tmp_path / "1").exists()
    assert find_snapshot(tmp_path / "0", "1ba").weights().keys() == {"weight", "bias"}
