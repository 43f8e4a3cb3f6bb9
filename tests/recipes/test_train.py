"""Whole runs of `train`: killed, resumed, repeated, prolonged, and logged to W&B, on the real digits."""

import gc
import json
import time

import pytest
import torch
from composer import Callback
from omegaconf import OmegaConf
from PIL import Image

from accelerando.recipes.config import ConfigError
from accelerando.recipes.tensors import OneSetOfBuffers
from accelerando.recipes.train import train


@pytest.fixture
def config(tmp_path):
    return {
        "run_name": "run",
        "folder": str(tmp_path),
        "max_duration": "2ep",
        "train_subset_num_batches": 4,
        "eval_subset_num_batches": 1,
        "save_interval": "3ba",
        "global_batch_size": 32,
        "model": {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 1}},
        "train_data": {"digits": {}},
        "eval_data": {"digits": {"split": "test"}},
        "optimizer": {"decoupled_sgdw": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"cosine_annealing_with_warmup": {"t_warmup": "0.25dur"}},
        "algorithms": {"mix_up": {}, "label_smoothing": {"smoothing": 0.1}},
        "device": "cpu",
    }


class Watch(Callback):
    """Sees whether the run trained and which weights it ended with; may kill it before batch `kill_at`."""

    weights: dict[str, torch.Tensor]
    trained: bool

    def __init__(self, kill_at: int = -1):
        self.kill_at = kill_at

    def init(self, state, logger):
        Watch.trained = False
        assert any(isinstance(callback, OneSetOfBuffers) for callback in state.callbacks)

    def before_train_batch(self, state, logger):
        Watch.trained = True
        if state.timestamp.batch == self.kill_at:
            raise KeyboardInterrupt

    def close(self, state, logger):
        Watch.weights = {name: value.clone() for name, value in state.model.state_dict().items()}


# In the middle of the second epoch, two batches after a checkpoint.
KILL = {"callbacks": {"test_train:Watch": {"kill_at": 5}}}


def trained(config, **changes):
    return train(config | {"callbacks": {"test_train:Watch": {}}} | changes), Watch.weights


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def measured(result):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in result.records]


def test_a_killed_run_goes_on_and_a_finished_one_is_reported_again(config, tmp_path, capsys):
    whole, weights = trained(config, run_name="whole")
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    assert not (tmp_path / "run/results.json").exists()
    resumed, resumed_weights = trained(config)
    assert same(weights, resumed_weights)
    assert measured(resumed) == measured(whole) and len(whole.records) == 9
    seconds = [record["seconds"] for record in resumed.records]
    assert seconds == sorted(seconds) and seconds[-1] == resumed.seconds > 0

    again, weights_again = trained(config)
    assert not Watch.trained and same(weights, weights_again)
    assert again == resumed

    _, prolonged = trained(config, max_duration="3ep")
    assert Watch.trained and not same(weights, prolonged)

    with pytest.raises(ConfigError) as refused:
        trained(config, optimizer={"decoupled_sgdw": {"lr": 0.2, "momentum": 0.9}})
    folder = tmp_path / "run"
    assert str(refused.value) == (
        f"config: optimizer.decoupled_sgdw.lr: 0.2 given, but the run in {folder} has 0.1; "
        "choose another run_name, or delete the folder"
    )


def test_a_run_begun_anew_and_killed_before_its_first_save_leaves_no_trace_of_the_old_one(config, tmp_path):
    anew = {"seed": 5, "autoresume": False}
    whole, weights = trained(config, run_name="whole", seed=5)
    trained(config)
    with pytest.raises(KeyboardInterrupt):
        train(config | anew | {"callbacks": {"test_train:Watch": {"kill_at": 2}}})
    assert [path.is_symlink() for path in (tmp_path / "run/checkpoints").iterdir()] == [False]
    resumed, resumed_weights = trained(config, seed=5)
    assert same(weights, resumed_weights) and measured(resumed) == measured(whole)


@pytest.mark.parametrize("damage", ["no link", "dangling link"])
def test_a_kill_while_linking_loses_no_checkpoint(config, tmp_path, damage):
    config["scheduler"] = {"constant": {}}
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    (link,) = (path for path in (tmp_path / "run/checkpoints").iterdir() if path.is_symlink())
    file = link.resolve()
    link.unlink()
    if damage == "dangling link":
        link.symlink_to("nowhere.pt")
    (file.parent / "half.pt").write_bytes(file.read_bytes()[:1000])
    result, _ = trained(config, max_duration="3ba")
    assert not Watch.trained and result.batches == 3 and link.resolve() == file

    link.unlink()
    file.unlink()
    trained(config)
    assert Watch.trained


@pytest.mark.filterwarnings("ignore:SAM has known issues:UserWarning")
def test_sam_is_not_resumed(config):
    config["algorithms"] = {"sam": {}}
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    with pytest.raises(ConfigError, match=r"algorithms\.sam: cannot resume from a checkpoint, .*autoresume=false"):
        trained(config)
    trained(config, autoresume=False)
    assert Watch.trained


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_what_a_run_cannot_go_on_from_is_named(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    saved, link = tmp_path / "run/config.yaml", tmp_path / "run/checkpoints/latest-rank0.pt"
    file, text = link.resolve(), saved.read_text()
    for whole in (file.read_bytes(), b""):
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ConfigError) as refused:
            trained(config)
        assert refused.value.file == str(file) and f"delete it to go on from another one, or {tmp_path}/run to" in str(
            refused.value
        )
        assert link.exists()
    for broken in (b"\xff\xfe", b"", b"- a", b"a: [", None):
        saved.write_bytes(broken) if broken is not None else (saved.unlink(), saved.mkdir())
        with pytest.raises(ConfigError, match=r"config\.yaml: unreadable; delete it if .* or the folder"):
            trained(config)
    saved.rmdir()
    saved.write_text(text)
    with pytest.raises(ConfigError, match=r"algorithms\.mix_up\.alpha: 0\.3 given, but the run in .* has absent"):
        trained(config, algorithms=config["algorithms"] | {"mix_up": {"alpha": 0.3}})
    with pytest.raises(ConfigError, match=r"algorithms\.mix_up: absent given, but the run in .* has present"):
        trained(config, algorithms={"label_smoothing": {"smoothing": 0.1}})
    del refused
    gc.collect()  # the Trainers that were not to be


def test_the_folder_tells_what_the_run_did(config, tmp_path, capsys):
    result, _ = trained(config, run_name="${.seed}-digits", seed=3)
    folder = tmp_path / "3-digits"
    resolved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert resolved["run_name"] == "3-digits" and resolved["eval_batch_size"] == 32
    assert resolved["algorithms"] == config["algorithms"]

    written = json.loads((folder / "results.json").read_text())
    assert written["algorithms"] == ["MixUp", "LabelSmoothing"]
    assert (written["batches"], written["samples"]) == (8, 256)
    assert (
        written["metrics"]["metrics/eval/MulticlassAccuracy"] == result.records[-1]["metrics/eval/MulticlassAccuracy"]
    )
    assert [record["batch"] for record in written["records"] if "loss/train/total" in record] == list(range(8))
    with Image.open(folder / "curves.png") as image:
        image.verify()

    output = capsys.readouterr()
    assert output.out.splitlines()[1].split()[:2] == ["run", "cross"] and "MixUp, LabelSmoothing" in output.out
    assert output.err.count("\n") == 2 and "epoch 2, batch 8 of 2ep" in output.err


def wandb_records(folder, runs):
    """Every record of the offline W&B runs in `folder`; their service may still be writing when `finish` returns."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    deadline = time.monotonic() + 30
    while True:
        records = []
        for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
            store = DataStore()
            store.open_for_scan(str(file))
            while data := store.scan_data():
                records.append(Record.FromString(data))
            store.close()
        if sum(record.HasField("exit") for record in records) == runs or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def test_wandb_offline_has_the_config_the_id_and_the_figure(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = {"wandb": {"project": "accelerando"}}
    # The hash tells run/one from run-one.
    for name, run_id in (("run/one", "run-one-31501744"), ("two", "two")):  # two runs in one process are two W&B runs
        with pytest.raises(KeyboardInterrupt):
            train(config | {"run_name": name, "loggers": loggers} | KILL)
        trained(config, run_name=name, loggers=loggers)
        records = wandb_records(tmp_path / name, runs=2)
        runs = [record.run for record in records if record.HasField("run")]
        assert {run.run_id for run in runs} == {f"accelerando-{run_id}"}
        assert {run.project for run in runs} == {"accelerando"}
        configs = [*(run.config for run in runs), *(record.config for record in records if record.HasField("config"))]
        values = {item.key: json.loads(item.value_json) for update in configs for item in update.update if item.key}
        assert values["algorithms"] == config["algorithms"] and values["run_name"] == name
        logged = {item.key or "/".join(item.nested_key) for record in records for item in record.history.item}
        assert {"loss/train/total", "metrics/eval/MulticlassAccuracy"} <= logged
        assert "curves/filenames" in logged
        assert list((tmp_path / name).glob("wandb/*/files/media/images/curves*.png"))
