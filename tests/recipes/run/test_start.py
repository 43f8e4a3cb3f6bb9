"""Starts from another run's moment: bit for bit what they promise, and one line where they cannot be."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from composer.algorithms import EMA
from formats import write_images
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from starts import KEPT, MOMENTS, RUNS, followed, same_batches, settings, started

import runs
from accelerando.algorithms import Snapshots, find_snapshot
from accelerando.algorithms.checkpoints import read_metadata
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.train import train
from runs import same
from tiny import launch, trainer


@pytest.mark.parametrize("name", RUNS)
def test_with_all_kept_it_is_the_uninterrupted_run_bit_for_bit(name, tmp_path):
    config = settings(tmp_path, **RUNS[name])
    whole, wanted = followed(config)
    for at, batch in {"0ba": 0, **MOMENTS}.items():
        result, found = started(config, at, **KEPT)
        left = [number for number in wanted["batches"] if number >= batch]
        assert same(found["end"], wanted["end"])
        assert [*found["batches"]] == left and same_batches(found["batches"], wanted["batches"])
        assert found["rates"] == {number: wanted["rates"][number] for number in left}
        assert all(torch.equal(found["dropped"][number], wanted["dropped"][number]) for number in left)
        assert result.batches == len(left) and result.samples == 64 * len(left)
        assert result.records[-1]["batch"] == whole.records[-1]["batch"] == whole.batches


@pytest.mark.parametrize(
    "optimizer", [{"adamw": {"lr": 0.01}}, {"sgd": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}}]
)
def test_to_keep_all_changes_nothing_of_the_run(optimizer, tmp_path):
    _, kept = followed(settings(tmp_path, optimizer=optimizer))
    _, plain = followed(settings(tmp_path, optimizer=optimizer, algorithms={"snapshots": False}, run_name="plain"))
    assert same(kept["end"], plain["end"])


@pytest.mark.programs
def test_under_two_ranks_too(tmp_path):
    done = launch(2, Path(runs.__file__).with_name("starts.py"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert found == {name: dict.fromkeys(MOMENTS, True) for name in RUNS}


def test_after_a_kill_the_started_run_goes_on_as_it_would(tmp_path):
    config = settings(tmp_path)
    for start in (KEPT, {}, {"schedule": "restart"}, {"data": "restart"}):
        followed(config | {"autoresume": False})
        result, wanted = started(config, "3ba", **start)
        later = {"start": {"run": "whole", "at": "3ba", **start}, "run_name": "killed", "save_interval": "1ba"}
        later["algorithms"] = {"mix_up": {}}
        for kill_at in (3, 5, 9):
            shutil.rmtree(tmp_path / "killed", ignore_errors=True)
            with pytest.raises(KeyboardInterrupt):
                train(config | later | {"callbacks": {"runs:Followed": {"kill_at": kill_at}}})
            shutil.move(tmp_path / "whole", tmp_path / "gone")  # of which nothing more is needed
            again, found = followed(config | later) if kill_at > 3 else (result, wanted)
            shutil.move(tmp_path / "gone", tmp_path / "whole")
            assert same(found["end"], wanted["end"]) and again.batches == result.batches


def test_by_default_weights_are_rewound_and_all_else_is_as_it_was_there(tmp_path):
    config = settings(tmp_path, algorithms={"mix_up": False})
    _, wanted = followed(config)
    result, found = started(config, "6ba")
    assert same(found["first"], find_snapshot(tmp_path / "whole" / "snapshots", "6ba").weights())
    assert [*found["batches"]] == [*range(6, 12)] and same_batches(found["batches"], wanted["batches"])
    assert found["rates"] == {number: wanted["rates"][number] for number in range(6, 12)}
    # A plain loop from there, with fresh momenta.
    model = runs.noisy()
    model.load_state_dict(find_snapshot(tmp_path / "whole" / "snapshots", "6ba").weights())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    dropped = iter(found["dropped"].values())
    model.module[4].register_forward_hook(lambda module, inputs, _: inputs[0] * ~next(dropped) / 0.7)
    for number, batch in found["batches"].items():
        optimizer.param_groups[0]["lr"] = found["rates"][number][0]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), batch[1]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["end"][name], value, atol=1e-6, rtol=0)
    assert result.batches == 6


def test_schedule_and_data_go_on_or_begin_anew_each_by_itself(tmp_path):
    augmented = {"fashion_mnist": {"split": "train[:300]", "resize": 8, "augment": True}}
    config = settings(tmp_path, train_data=augmented, algorithms={"mix_up": False})
    _, wanted = followed(config)
    _, longer = followed(config | {"run_name": "longer", "max_duration": "5ep"})
    for at, k in MOMENTS.items():
        _, both = started(config, at, schedule="restart", data="restart")
        assert [*both["batches"]] == [*range(12)] and same_batches(both["batches"], wanted["batches"])
        assert both["rates"] == wanted["rates"]
        _, data = started(config, at, schedule="restart")  # the data go on
        assert data["rates"] == wanted["rates"] and same_batches(data["batches"], longer["batches"], shift=k)
        _, schedule = started(config, at, data="restart", snapshots={"at": ["7ba"]})
        assert schedule["rates"] == {number: wanted["rates"][number] for number in range(k, 12)}
        assert same_batches(schedule["batches"], wanted["batches"], shift=-k)
        # A start from a run that was itself started so.
        _, chain = started(config, "7ba", run="started", name="chain")
        assert same_batches(chain["batches"], wanted["batches"], shift=-k) and min(chain["batches"]) == 7


@pytest.mark.parametrize("source", ["image_folder", "streaming_images"])
def test_files_and_shards_go_on_too(source, tmp_path):
    write_images(tmp_path)
    folders = {"path": f"{tmp_path}/imagenet/train"}, {"local": f"{tmp_path}/shards/train"}
    places = dict(zip(("image_folder", "streaming_images"), folders, strict=True))
    data = {source: {**places[source], "crop_size": 32, "num_workers": 2}}
    model = {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 3, "num_classes": 2}}
    config = settings(tmp_path / "runs", train_data=data, global_batch_size=4, model=model, max_duration="10ba")
    config["algorithms"] = {"snapshots": {"at": ["2ba", "7ba"], "full": True}}
    _, wanted = followed(config)
    for at, batch in {"2ba": 2, "7ba": 7}.items():
        _, found = started(config, at, **KEPT)
        assert [*found["batches"]] == [*range(batch, 10)]
        if source == "image_folder":
            assert same_batches(found["batches"], wanted["batches"]) and same(found["end"], wanted["end"])
        labels = [[run["batches"][n][1].tolist() for n in range(batch, 10)] for run in (found, wanted)]
        assert labels[0] == labels[1]
        refused = pytest.raises(ConfigError, match=r"start\.data: of these data the place cannot be chosen")
        with refused if source == "streaming_images" else nullcontext():
            started(config, at, schedule="restart", data="continue")


def test_another_seed_of_the_data_makes_a_twin(tmp_path):
    config = settings(tmp_path)
    followed(config)
    _, one = started(config, "3ba", **KEPT)
    _, other = started(config | {"data_seed": 99}, "3ba", name="other", **KEPT)
    assert same(one["first"], other["first"]) and not same(one["end"], other["end"])
    assert not any(torch.equal(one["batches"][n][0], other["batches"][n][0]) for n in one["batches"])
    assert all(torch.equal(one["generator"][n], other["generator"][n]) for n in one["generator"])
    _, noise = started(config | {"seed": 98, "data_seed": 17}, "3ba", name="noise", **KEPT)
    assert noise["batches"].keys() == one["batches"].keys() and not same(noise["end"], one["end"])
    assert all(
        torch.equal(noise["batches"][n][1], one["batches"][n][1]) for n in one["batches"]
    )  # MixUp's draws differ
    assert not any(torch.equal(one["generator"][n], noise["generator"][n]) for n in one["generator"])


def test_the_file_says_what_the_options_are_not_the_snapshot(tmp_path):
    config = settings(tmp_path, max_duration="8ba")
    followed(config)
    given = {"optimizer": {"sgd": {"lr": 0.01, "momentum": 0.5}}, "scheduler": None}
    _, found = started(config | given, "3ba", **KEPT)
    assert {rate for rates in found["rates"].values() for rate in rates} == {0.01}


def test_other_data_begin_anew(tmp_path):
    config = settings(tmp_path, max_duration="12ba", algorithms={"mix_up": False})
    followed(config)
    others = {"train_data": {"digits": {"split": "train[300:400]"}}}  # an epoch of one batch
    _, wanted = followed(config | others | {"run_name": "others"})
    _, found = started(config | others, "3ba")
    assert [*found["batches"]] == [*range(3, 12)] and same_batches(found["batches"], wanted["batches"], shift=-3)
    assert found["rates"] == {number: wanted["rates"][number] for number in range(3, 12)}


def test_from_the_end_of_a_run_as_from_pretrained_weights(tmp_path):
    config = settings(tmp_path)
    _, wanted = followed(config)
    result, found = started(config, None)
    assert same(found["first"], wanted["end"]) and found["rates"] == wanted["rates"] and result.batches == 12
    assert same_batches(found["batches"], wanted["batches"])
    _, kept = started(config, None, optimizer="keep", data="continue")
    assert not same(kept["end"], found["end"]) and same(kept["first"], wanted["end"])


def test_snapshots_of_any_composer_run_are_taken(tmp_path):
    """Whose folder does not tell what it was trained on."""
    model = runs.noisy()
    images = torch.utils.data.TensorDataset(torch.randn(30, 1, 8, 8), torch.randint(10, (30,)))
    plain = torch.utils.data.DataLoader(images, 10)
    trainer(
        [Snapshots(["2ba"], save_folder=str(tmp_path / "theirs")), EMA()], model=model, train_dataloader=plain
    ).fit()
    config = settings(tmp_path)
    _, found = started(config, "2ba", run=str(tmp_path / "theirs"), data="restart", schedule="restart")
    assert same(found["first"], find_snapshot(tmp_path / "theirs", "2ba").weights())
    with pytest.raises(ConfigError, match=r"start.data: missing; .*theirs has no config.yaml that would tell"):
        started(config, "2ba", run=str(tmp_path / "theirs"))


def test_a_ladder_from_a_moment_counts_its_own_cost(tmp_path):
    config = settings(tmp_path)
    followed(config)
    ladder = {"levels": 1, "rewind_to": "3ba"}
    result, found = started(config | {"algorithms": {"lottery_ticket": ladder}}, "3ba")
    assert [level["batches"] for level in result.found["levels"]] == [9, 9] and result.batches == 18
    assert same(found["first"], find_snapshot(tmp_path / "whole" / "snapshots", "3ba").weights())


def refused(config):
    with pytest.raises(ConfigError) as error:
        train({"algorithms": {}} | config | {"run_name": "refused"})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_one_line(tmp_path):
    config = settings(tmp_path)
    followed(config)
    followed(settings(tmp_path, run_name="light", algorithms={"snapshots": {"at": ["3ba"]}}))
    a, bare, broken = {"run": "whole", "at": "3ba"}, {"run": "bare"}, {"run": "broken"}
    other = {"model": {"resnet_cifar": {"depth": 8, "width": 4, "in_channels": 1}}}
    prune = {"algorithms": {"prune_at_init": {"criterion": "magnitude", "density": 0.5}}}
    digits, subset, adam = (
        {"train_data": "digits"},
        {"train_subset_num_batches": 3, "max_duration": "12ba"},
        {"optimizer": {"adam": {"lr": 0.1}}},
    )
    for folder in ("bare", "refused", "broken/snapshots"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "broken" / "snapshots" / "ba3.safetensors").write_bytes(b"\x08" * 40)
    OmegaConf.save(config, tmp_path / "broken" / "config.yaml")
    after = "given, but the schedule, which goes on from there, ends at max_duration"
    for start, changes, *wanted in (
        (a | {"run": "nowhere"}, {}, "start.run: nowhere is no folder; expected the folder of a run, or a run_name in"),
        ({"run": "refused"}, {}, "start.run: refused is this run itself"),
        (a | bare | {"data": "restart"}, {}, "start.at: ", "holds no snapshots, which the algorithm Snapshots keeps"),
        (a | {"at": "5ba"}, {}, "start.at: ", "has no snapshot of 5ba, but of 0ba, 3ba, 4ba, 6ba"),
        (a, other, "start.run: ", "does not fit"),
        (a | {"at": "3ep"}, {}, f"start.at: 3ep {after}, 3ep"),
        (a, {"max_duration": "2ba"}, f"start.at: 3ba {after}, 2ba"),
        (a | {"at": "6ba"}, {"max_duration": "1ep"}, f"start.at: 6ba {after}, 1ep"),
        (a | {"at": "soon"}, {}, "start.at: 'soon' given; expected a moment"),
        (a | {"optimizer": "keep", "run": "light"}, {}, "start.optimizer: keep given, but of 3ba there is only"),
        (a | {"optimizer": "keep"}, adam, "start.optimizer: keep given, but that run has trained with SGD, not Adam"),
        (a | {"optimizer": "old"}, {}, "start.optimizer: 'old' given; expected"),
        (a | {"from": "3ba"}, {}, "start.from: unknown argument"),
        ({"at": "3ba"}, {}, "start.run: missing"),
        ("whole", {}, "start: 'whole' given; expected a mapping"),
        ({"run": "whole", "schedule": "continue"}, {}, "start.schedule: continue given without at"),
        (broken, {}, "start.run: the run in", "is not finished: it has no results.json"),
        (a | broken, {}, "start.run: ", "ba3.safetensors is no snapshot"),
        (a | {"data": "continue"}, digits, "start.data: continue given, but that run has another train_data"),
        (a, digits, "start.schedule: the schedule goes on, but epochs of other data"),
        (a, {"load_path": "x.pt"}, "start: given beside load_path"),
        (a, prune, "holds no masks, as it should; prune at that moment or later"),
        (a, {"spin_dataloaders": False}, "spin_dataloaders: false given beside start"),
        (a | {"at": "6ba"}, subset, "start.data: of these data the place cannot be chosen"),
    ):
        text = refused(config | changes | {"start": start})
        assert all(part in text for part in wanted), (wanted, text)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    config = settings(tmp_path)
    followed(config)
    file = tmp_path / "whole" / "snapshots" / "ba3.safetensors"
    about, weights = read_metadata(file), load_file(file)
    weights["module.0.weight"][0] = float("nan")
    save_file(weights, file, about)
    assert "holds weights that are not finite: module.0.weight" in refused(
        config | {"start": {"run": "whole", "at": "3ba"}}
    )


def test_a_run_begun_anew_keeps_nothing_of_the_old_one(tmp_path):
    config = settings(tmp_path)
    followed(config)
    (tmp_path / "disk").mkdir()
    shutil.move(tmp_path / "whole" / "snapshots", tmp_path / "disk" / "snapshots")
    (tmp_path / "whole" / "snapshots").symlink_to(tmp_path / "disk" / "snapshots")
    followed(config | {"autoresume": False, "algorithms": {"snapshots": {"at": ["2ba"]}}})
    assert [path.name for path in (tmp_path / "disk" / "snapshots").iterdir()] == ["ba2.safetensors"]
    followed(config | {"autoresume": False, "algorithms": {}})
    assert not [*(tmp_path / "disk" / "snapshots").iterdir()]


def test_what_is_finished_is_not_trained_again(tmp_path):
    config = settings(tmp_path)
    followed(config)
    for start in ({"at": "3ba"}, {"at": "3ba", **KEPT}, {"at": "3ba", "schedule": "restart"}, {}):
        given = config | {"run_name": "started", "algorithms": {}, "start": {"run": "whole", **start}}
        result, found = followed(given)
        again, kept = followed(given)
        assert again == result and kept["batches"] is found["batches"]  # of the first call: nothing was begun
        shutil.rmtree(tmp_path / "started")


def test_the_same_data_in_other_words_go_on(tmp_path):
    config = settings(tmp_path, algorithms={"mix_up": False}, train_data="digits")
    followed(config)
    _, plain = started(config, "3ba")
    _, found = started(config | {"train_data": {"Digits": {"split": "train", "resize": None}}}, "3ba")
    assert same(plain["end"], found["end"])
    with pytest.raises(ConfigError, match=r"start\.schedule: the schedule goes on, but epochs of other data"):
        started(config | {"train_data": {"digits": {"split": "train[:99%]"}}}, "3ba")


def test_the_state_beside_a_snapshot_is_of_its_moment(tmp_path):
    config = settings(tmp_path)
    followed(config)
    folder = tmp_path / "whole" / "snapshots"
    start = {"start": {"run": "whole", "at": "3ba", "optimizer": "keep"}}
    shutil.copy(folder / "ba6.pt", folder / "ba3.pt")
    assert "ba3.pt is of batch 6 of a run with seed 17, not of the moment of ba3.safetensors" in refused(config | start)
    torch.save({"weight": torch.zeros(3)}, folder / "ba3.pt")
    assert "ba3.pt is no whole checkpoint of Composer's" in refused(config | start)
    content = torch.load(folder / "ba6.pt", weights_only=False)
    content["state"]["timestamp"]["Timestamp"]["batch"], content["state"]["algorithms"] = 3, [("MixUp", 3)]
    torch.save(content, folder / "ba3.pt")
    assert "start.optimizer: " in refused(config | start)


def test_what_was_frozen_there_has_no_state_to_keep(tmp_path):
    config = settings(tmp_path)
    frozen = {"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9, "groups": {"0.*": False}}}}
    followed(config | frozen)
    start = {"start": {"run": "whole", "at": "3ba", "optimizer": "keep"}}
    assert "keep given, but that run has not trained module.0.weight; expected fresh" in refused(config | start)
    followed(config | {"run_name": "whole", "autoresume": False})
    _, found = started(config | frozen, "3ba", **KEPT)
    assert torch.equal(found["first"]["module.0.weight"], found["end"]["module.0.weight"])


def test_counters_in_the_optimizers_groups_are_kept_or_begin_anew(tmp_path):
    """Options that a class takes by ``**kwargs`` are the file's all the same."""
    config = settings(tmp_path, optimizer={"runs:Counting": {"lr": 0.1, "momentum": 0.9}}, algorithms={"mix_up": False})
    counts = runs.Counting.counts
    counts.clear()
    _, wanted = followed(config)
    _, kept = started(config, "3ba", **KEPT)
    assert same(kept["end"], wanted["end"]) and counts[-9:] == [*range(4, 13)]
    counts.clear()
    slower = {"optimizer": {"runs:Counting": {"lr": 0.01, "momentum": 0.5}}, "scheduler": None}
    _, found = started(config | slower, "3ba", **KEPT)
    assert {rate for rates in found["rates"].values() for rate in rates} == {0.01}
    assert counts[-9:] == [*range(4, 13)] and runs.Counting.momenta == {0.5}
    counts.clear()
    started(config | {"algorithms": {"lottery_ticket": {"levels": 1, "rewind_to": "3ba"}}}, "3ba")
    assert counts[-18:] == [*range(1, 10)] * 2
