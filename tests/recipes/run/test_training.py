"""Whole runs of `train`: killed, resumed, repeated, prolonged, and logged to W&B, on the real digits."""

import gc
import json
import time
from pathlib import Path

import pytest
import torch
from composer.core import DataSpec
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.run.algorithms import SeenByModel
from accelerando.recipes.run.results import Result
from accelerando.recipes.train import train
from runs import KILL, Watch, free_of_seconds, measured, same, settings, trained


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path)


def test_a_killed_run_goes_on_and_a_finished_one_is_reported_again(config, tmp_path, capsys):
    whole, weights = trained(config, run_name="whole")
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    assert not (tmp_path / "run/results.json").exists()
    assert "goes on" not in capsys.readouterr().err
    resumed, resumed_weights = trained(config)
    assert f"{tmp_path / 'run'}: goes on at batch 3 of 8\n" in capsys.readouterr().err
    assert same(weights, resumed_weights)
    assert measured(resumed) == measured(whole) and len(whole.records) == 9
    seconds = [record["seconds"] for record in resumed.records]
    assert seconds == sorted(seconds) and seconds[-1] == resumed.seconds > 0

    (tmp_path / "run/curves.png").unlink()
    again, _ = trained(config)
    assert not Watch.trained and again == resumed
    assert f"{tmp_path / 'run'}: finished before; nothing was trained" in capsys.readouterr().err
    assert (tmp_path / "run/curves.png").exists()

    _, prolonged = trained(config, max_duration="3ep")
    assert f"{tmp_path / 'run'}: goes on at batch 8 of 12\n" in capsys.readouterr().err
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
        train(config | anew | {"callbacks": {"runs:Watch": {"kill_at": 2}}})
    assert not list((tmp_path / "run/checkpoints").iterdir())
    resumed, resumed_weights = trained(config, seed=5)
    assert same(weights, resumed_weights) and measured(resumed) == measured(whole)


@pytest.mark.parametrize("asked", [False, True])
def test_composers_texts_for_debugging_are_made_where_they_are_asked_for(config, caplog, monkeypatch, asked):
    monkeypatch.setenv("ENGINE_DEBUG", "1") if asked else monkeypatch.delenv("ENGINE_DEBUG", raising=False)
    with caplog.at_level("DEBUG", logger="composer.core.engine"):
        trained(config, max_duration="4ba")
    assert ("[event=BATCH_END]: Running event" in caplog.text) == asked


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


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_lottery_ticket_goes_on_after_a_kill_and_with_more_levels(config, tmp_path, capsys):
    def ticket(levels):
        return {"algorithms": {"lottery_ticket": {"levels": levels, "rewind_to": "1ep"}}}

    config |= {"save_interval": "1ep", "eval_interval": "1dur"}
    whole, weights = trained(config | ticket(2), run_name="whole")
    assert [(level["batch"], level["batches"], level["samples"]) for level in whole.found["levels"]] == [
        (8, 8, 256),
        (12, 4, 128),
        (16, 4, 128),
    ]
    density, size = whole.found["levels"][2]["density"], whole.found["size"]
    assert density == size["density"] == pytest.approx(0.64, abs=1e-3)
    ratios = [(level["compression_ratio"], level["speedup"]) for level in whole.found["levels"]]
    assert ratios[0] == (1, 1) and ratios[2] == pytest.approx((size["compression_ratio"], size["theoretical_speedup"]))
    assert 1 < ratios[1][0] < ratios[2][0] and 1 < ratios[1][1] < ratios[2][1]
    assert sum(level["seconds"] for level in whole.found["levels"]) == pytest.approx(whole.seconds)
    assert whole.found["levels"][2]["eval/MulticlassAccuracy"] == whole.metrics["metrics/eval/MulticlassAccuracy"]
    assert sorted(file.name for file in (tmp_path / "whole" / "tickets").iterdir()) == [
        "level-1.safetensors",
        "level-2.safetensors",
        "rewind.safetensors",
    ]
    out = capsys.readouterr().out
    assert "64.00%" in out and "compression ratio" in out and "checkpoints, tickets" in out

    with pytest.raises(KeyboardInterrupt):
        train(config | ticket(2) | {"callbacks": {"runs:Watch": {"kill_at": 11}}})
    resumed, resumed_weights = trained(config | ticket(2))
    assert same(weights, resumed_weights) and free_of_seconds(resumed.found["levels"]) == free_of_seconds(
        whole.found["levels"]
    )
    again, _ = trained(config | ticket(2))
    assert not Watch.trained
    assert (again.found["levels"], again.found["size"]) == (resumed.found["levels"], resumed.found["size"])
    loaded = Result.load(tmp_path / "run")
    assert (loaded.found["levels"], loaded.found["size"]) == (resumed.found["levels"], resumed.found["size"])

    anew, weights = trained(config | ticket(3), run_name="anew")
    prolonged, prolonged_weights = trained(config | ticket(3))
    assert Watch.trained and same(weights, prolonged_weights)
    assert free_of_seconds(prolonged.found["levels"]) == free_of_seconds(anew.found["levels"])
    with pytest.raises(ConfigError, match=r"algorithms\.lottery_ticket\.levels: 2 given, but the run in .* has 3"):
        trained(config | ticket(2))
    with pytest.raises(ConfigError, match="LotteryTicket: the checkpoint's run had T"):
        trained(config | ticket(3), max_duration="3ep")


def test_batches_are_seen_as_the_model_sees_them():
    spec = DataSpec(
        DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), 2),
        batch_transforms=lambda batch: (batch[0] + 1, batch[1]),
        microbatch_transforms=lambda batch: (batch[0] / 2, batch[1]),
    )
    seen = SeenByModel()
    batch = next(iter(spec.dataloader))
    with pytest.raises(RuntimeError, match="not known before training begins"):
        seen(batch)
    seen.data = spec
    assert torch.equal(seen(batch)[0], torch.tensor([0.5, 1.0]))


def test_diverged_results_can_be_read(config, tmp_path):
    result, _ = trained(config, max_duration="4ba")
    result.found["levels"] = [{"digest": "a", "eval/CrossEntropy": float("nan")}]
    result.save()
    read = Result.load(tmp_path / "run")
    assert read.found["levels"] == [{"digest": "a", "eval/CrossEntropy": None}] and read.metrics == result.metrics


def test_validation_data_are_evaluated_beside_the_others(config, tmp_path):
    """Each metric is that of a run which evaluates those data alone; what is trained stays the same."""
    config |= {"algorithms": {}, "eval_subset_num_batches": -1, "train_data": {"digits": {"split": "train[:80%]"}}}
    apart = {"digits": {"split": "train[80%:]"}}
    both, weights = trained(config | {"validation_data": apart})[:2]
    alone = {}
    for name, data in {"test": config["eval_data"], "validation": apart}.items():
        result, same_weights = trained(config | {"run_name": name, "eval_data": data})[:2]
        assert same(same_weights, weights)
        alone[name] = result.metrics["metrics/eval/MulticlassAccuracy"]
    assert alone["test"] != alone["validation"]
    found = {name: value for name, value in both.metrics.items() if name.endswith("MulticlassAccuracy")}
    assert found == {
        "metrics/eval/MulticlassAccuracy": alone["test"],
        "metrics/eval/validation/MulticlassAccuracy": alone["validation"],
    }
    last = both.records[-1]
    assert "metrics/eval/validation/CrossEntropy" in last and "metrics/eval/CrossEntropy" in last
    for key, changes in {
        "train_data": {"validation_data": {"digits": {"split": "train[79%:]"}}},
        "eval_data": {"validation_data": {"digits": {"split": "test[:9]"}}},
    }.items():
        with pytest.raises(ConfigError, match=rf"validation_data\.digits: holds examples of {key}; expected others"):
            train(config | {"run_name": "wrong"} | changes)


def test_fine_tuning_needs_no_schedule(config):
    levels = {"levels": 1, "rewind": "finetune", "rewind_to": "1ep", "finetune_multiplier": 1e-9}
    config["scheduler"] = None
    result, _ = trained(config, algorithms={"lottery_ticket": levels}, callbacks={"lr_monitor": {}})
    rates = {record["batch"]: v for record in result.records for name, v in record.items() if name.startswith("lr-")}
    assert rates[7] == 0.1 and rates[9] == pytest.approx(1e-10)


def test_a_ticket_may_lie_in_the_folder_of_all_runs(config, tmp_path):
    trained(config, algorithms={"lottery_ticket": {"levels": 1}}, run_name="finder")
    pruned, _ = trained(config, algorithms={"prune_at_init": {"ticket": "finder/tickets/level-1.safetensors"}})
    assert "levels" not in pruned.found and pruned.found["size"]["density"] == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(ConfigError, match=r"algorithms\.prune_at_init: .* ticket must be a file of masks"):
        trained(config, algorithms={"prune_at_init": {"ticket": "finder/tickets/level-9.safetensors"}}, run_name="no")


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

    deadline = time.monotonic() + 120
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
    config["loggers"] = {"wandb": {"project": "accelerando"}}
    with pytest.raises(KeyboardInterrupt):
        train(config | KILL)
    trained(config)  # resumed
    trained(config)  # finished, and reported again
    records = wandb_records(tmp_path / "run", runs=3)
    runs = [record.run for record in records if record.HasField("run")]
    (name,) = {run.run_id for run in runs}
    assert {run.project for run in runs} == {"accelerando"}
    configs = [*(run.config for run in runs), *(record.config for record in records if record.HasField("config"))]
    values = {item.key: json.loads(item.value_json) for update in configs for item in update.update if item.key}
    assert values["algorithms"] == config["algorithms"] and values["run_name"] == "run"
    logged = {item.key or "/".join(item.nested_key) for record in records for item in record.history.item}
    assert {"loss/train/total", "metrics/eval/MulticlassAccuracy"} <= logged
    assert "curves/filenames" in logged
    assert list((tmp_path / "run").glob("wandb/*/files/media/images/curves*.png"))

    # Another folder, another run, and the same begun anew.
    names = {name}
    config |= {"max_duration": "1ep"}
    for changes in ({"folder": str(tmp_path / "other")}, {"run_name": "two", "seed": 3}, {"autoresume": False}):
        trained(config, **changes)
        folder = Path(changes.get("folder", tmp_path), changes.get("run_name", "run"))
        names.add((folder / "run_id").read_text().strip())
        records = wandb_records(folder, runs=4 if "autoresume" in changes else 1)
        (last,) = {record.run.run_id for record in records if record.HasField("run")} - {name}
        assert last in names
    assert len(names) == 4
