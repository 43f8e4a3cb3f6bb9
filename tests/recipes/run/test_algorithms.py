"""Algorithms in recipes: nothing is guessed by a parameter's name, and what one declares it gets."""

import json
from typing import ClassVar

import pytest
import torch
from composer import Algorithm
from composer.core import Event
from composer.utils import get_device
from torch.utils.data import IterableDataset

from accelerando.algorithms.composer.for_recipes import Folder, ForRecipes, Milestone, Supply
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import FashionMnist
from accelerando.recipes.run.algorithms import build_algorithms
from accelerando.recipes.run.progress import Progress
from accelerando.recipes.train import train
from runs import Watch, settings, trained

CPU = get_device("cpu")


class Stranger(Algorithm):
    """One that has never heard of recipes."""

    def __init__(
        self, scheduler: str, teachers: int = 1, ticket: int = 0, save_folder: str | None = None, start: str = "left"
    ):
        self.given = {"scheduler": scheduler, "teachers": teachers, "ticket": ticket}
        self.given |= {"save_folder": save_folder, "start": start}

    def wrap(self):
        raise AssertionError("means something else")

    found = tables = milestone = check_found = wrap

    def match(self, event, state):
        return False

    def apply(self, event, state, logger):
        pass


class Rounds(ForRecipes, Stranger):
    """One that counts rounds of two batches."""

    supplied: ClassVar = {
        "plan": Supply.SCHEDULER,
        "experts": Supply.NETWORKS,
        "notes": Folder(name="notes"),
        "map": Supply.FILE,
    }
    may_grow = ("rounds",)
    kept_records = ("rounds/",)

    def __init__(self, rounds: int, map: str = "", notes: str = "", plan=None, experts=()):
        self.rounds, self.map, self.notes, self.plan, self.experts = rounds, map, notes, plan, experts

    def wrap(self, scheduler):
        return lambda state, ssr=1.0: 0.5 * self.plan(state, ssr)

    def match(self, event, state):
        return event == Event.BATCH_END

    def apply(self, event, state, logger):
        if state.timestamp.batch.value % 2 == 0:
            logger.log_metrics({"rounds/number": state.timestamp.batch.value // 2})

    def found(self, run):
        return {"rounds": [record["rounds/number"] for record in run.records if "rounds/number" in record]}

    @classmethod
    def check_found(cls, found):
        if not isinstance(found.get("rounds"), list):
            raise ValueError("rounds is no list")

    @classmethod
    def tables(cls, found):
        return [f"rounds of two batches: {len(found['rounds'])}"]

    def milestone(self, logged):
        number = logged.get("rounds/number")
        return number and Milestone(place=f"round {number}", values={"eval/MulticlassAccuracy": 0.5}, seconds=1.0)


class Reader(ForRecipes, Stranger):
    """One that reads folders and the training data."""

    supplied: ClassVar = {"others": Supply.FOLDERS, "plain": Supply.TRAINING_DATA}

    def __init__(self, others: list[str], plain=None):
        self.others, self.plain = others, plain


class OnlyRounds(Rounds):
    """A subclass without what its base is given."""

    def __init__(self, rounds: int):
        super().__init__(rounds, plan=lambda state, ssr: 1.0)


def small(folder):
    return settings(folder) | {"scheduler": {"constant": {}}}


@pytest.mark.parametrize("name", ["teachers", "ticket", "save_folder", "start"])
def test_names_mean_nothing(tmp_path, name):
    (tmp_path / "3").touch()
    values = {"scheduler": "linear", "teachers": 4, "ticket": 3, "save_folder": "of another meaning", "start": "top"}
    given = {key: values[key] for key in ("scheduler", name)}
    recipe = check(small(tmp_path) | {"algorithms": {f"{__name__}:Stranger": given}})
    (stranger,) = build_algorithms(recipe, object())
    assert stranger.given == {"teachers": 1, "ticket": 0, "save_folder": None, "start": "left"} | given


def test_a_run_with_a_stranger(tmp_path):
    given = {"scheduler": "linear", "save_folder": "of another meaning"}
    result, _ = trained(small(tmp_path), algorithms={f"{__name__}:Stranger": given}, max_duration="2ba")
    assert result.found == {} and not (tmp_path / "run/tickets").exists()
    with pytest.raises(ConfigError, match=r"Stranger\.scheduler: missing; it has no default"):
        train(small(tmp_path) | {"algorithms": {f"{__name__}:Stranger": {}}})


def test_folders_and_training_data_in_evaluation(tmp_path):
    (tmp_path / "here").mkdir()
    data = {"fashion_mnist": {"split": "train[:80]", "augment": True}}
    reader = {f"{__name__}:Reader": {"others": ["here", "/elsewhere"]}}
    config = small(tmp_path) | {"train_data": data, "algorithms": reader}
    (built,) = build_algorithms(check(config), None)
    assert built.others == [str(tmp_path / "here"), "/elsewhere"]
    plain = next(iter(FashionMnist(split="train[:80]").build(80, False, 0, "cpu").dataloader))
    batches = [*built.plain(CPU)]
    assert [len(labels) for _, labels in batches] == [32, 32, 16]
    assert all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*batches, strict=True), plain, strict=True)
    )


class Places(IterableDataset):
    """One that goes on where a pass was broken off."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 80:
            self.place += 1
            yield torch.full((1, 8, 8), float(self.place)), self.place % 10


@pytest.mark.parametrize("data", ["digits", f"{__name__}:Places"])
def test_each_pass_over_the_training_data_begins_where_the_first_one_does(tmp_path, data):
    given = small(tmp_path) | {"train_data": {data: {}}, "max_duration": "2ba"}
    (built,) = build_algorithms(check(given | {"algorithms": {f"{__name__}:Reader": {"others": []}}}), None)
    broken_off, one, other = next(built.plain(CPU)), [*built.plain(CPU)], [*built.plain(CPU)]
    assert torch.equal(broken_off[0], one[0][0]) and len(one) == len(other) > 1
    assert all(torch.equal(mine[0], others[0]) for mine, others in zip(one, other, strict=True))
    mine, others = built.plain(CPU), built.plain(CPU)  # two at once
    assert all(torch.equal(next(mine)[0], next(others)[0]) for _ in one)


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_what_is_declared_is_given_kept_printed_and_may_grow(tmp_path, capsys):
    expert = trained(small(tmp_path), run_name="expert", max_duration="2ba")[0].run_name
    (tmp_path / "map.txt").touch()

    def rounds(number):
        return {"algorithms": {f"{__name__}:Rounds": {"rounds": number, "experts": expert, "map": "map.txt"}}}

    config = small(tmp_path) | {"max_duration": "4ba"}
    watched = {"callbacks": {"runs:Watch": {}, "lr_monitor": {}}}
    recipe = check(config | rounds(1))
    (built,) = build_algorithms(recipe, "the scheduler")
    assert built.plan == "the scheduler" and built.map == str(tmp_path / "map.txt") and len(built.experts) == 1
    assert built.notes == str(tmp_path / "run" / "notes")

    (tmp_path / "run/notes").mkdir(parents=True)
    result, _ = trained(config | rounds(1), **watched)
    assert result.found == {"rounds": [1, 2]}
    rates = [value for record in result.records for name, value in record.items() if name.startswith("lr-")]
    assert max(rates) == pytest.approx(0.05)
    out = capsys.readouterr().out
    assert "rounds of two batches: 2" in out and "checkpoints, notes" in out
    trained(config | rounds(1), **watched)
    assert not Watch.trained and "rounds of two batches: 2" in capsys.readouterr().out

    file = tmp_path / "run" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"found": {"rounds": 7}}))
    assert trained(config | rounds(1), **watched)[0].found == {"rounds": [1, 2]}
    assert "rounds is no list" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"Rounds\.rounds: 0 given, but the run in .* has 1"):
        train(config | rounds(0))
    trained(config | rounds(2), max_duration="6ba", **watched)
    assert Watch.trained

    with pytest.raises(ConfigError, match=r"Rounds\.plan: the recipe makes it; leave it out"):
        check(config | {"algorithms": {f"{__name__}:Rounds": {"rounds": 1, "experts": expert, "plan": "x"}}})
    check(config | {"algorithms": {f"{__name__}:OnlyRounds": {"rounds": 1}}}).algorithms[0].build()


def test_milestones_are_told(tmp_path, capsys):
    config = small(tmp_path) | {"max_duration": "4ba", "algorithms": {f"{__name__}:OnlyRounds": {"rounds": 1}}}
    progress = Progress(total=1.0)
    progress.start("run 1 of 1", 1.0)
    train(config, watch=progress)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"run 1 of 1, round {number}: accuracy 0.5000 after 1.0 s of training" for number in (1, 2)
    ]
