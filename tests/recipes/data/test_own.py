"""Data of one's own: served as the shipped ones are, kept in place over a kill, or refused by their key."""

from typing import ClassVar

import pytest
import torch
from composer.core import DataSpec
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

import runs
from accelerando.recipes.config.errors import ArgumentError, ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data import own
from accelerando.recipes.data.loaders import TensorLoader
from accelerando.recipes.data.own import own_data
from accelerando.recipes.train import train

N = 26
HERE = __name__


class Images(Dataset):
    """Images of the digits' size, each of its own number, and labels."""

    def __init__(self, size: int = N):
        self.images = torch.arange(size).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8) / size
        self.labels = torch.arange(size) % 10

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return self.images[place], self.labels[place]


class Stream(IterableDataset):
    """The same, one after the other, in an order that changes from pass to pass."""

    def __init__(self, size: int = N):
        self.data, self.passes = Images(size), 0

    def __iter__(self):
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.passes))
        self.passes += 1
        for place in order.tolist():
            yield self.data[place]


class Kept(Stream):
    def __init__(self, size: int = N):
        super().__init__(size)
        self.place = 0

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.passes)).tolist()
        while self.place < len(order):
            self.place += 1
            yield self.data[order[self.place - 1]]
        self.passes, self.place = self.passes + 1, 0

    def state_dict(self):
        return {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state):
        self.passes, self.place = state["passes"], state["place"]


class Broken(Images):
    def __getitem__(self, place):
        return {}[f"missing {place}"]


def exploding(size: int = 1):
    raise LookupError("built")


def halves(part: int):
    return torch.utils.data.random_split(Images(), [N // 2, N // 2])[part]


def loader(batch_size: int, shuffle: bool = True, **options):
    """`DataLoader`'s own **options."""
    return DataLoader(Images(), batch_size, shuffle=shuffle, **options)


def spec(batch_size: int):
    return DataSpec(loader(batch_size), batch_transforms=lambda batch: (batch[0] + 1, batch[1]))


def weighted(batch_size: int):
    return DataLoader(Images(), batch_size, sampler=WeightedRandomSampler([1.0] * N, N))


def once():
    return (example for example in Images())


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return torch.stack(images) + 1, torch.stack(labels)


def built(name, per_rank=4, train=True, **given):
    kind, arguments = own_data(f"{HERE}:{name}", globals()[name], given)
    source = kind(**arguments)
    source.check()
    return source.build(per_rank, train, 3, "cpu")


def labels_and_images(data):
    return [torch.cat([part[:, None].flatten(1)[:, :1].float() for part in parts]) for parts in zip(*data, strict=True)]


def same(ours, theirs):
    return all(map(torch.equal, labels_and_images(ours), labels_and_images(theirs)))


def reference(train=True, epoch=0, **options):
    data = TensorLoader([Images().images, Images().labels], 4, train, 3, **options)
    data.sampler.set_epoch(epoch)
    return [*data]


def ranks(monkeypatch, rank, of):
    monkeypatch.setenv("WORLD_SIZE", str(of))
    monkeypatch.setenv("RANK", str(rank))


@pytest.mark.parametrize("name", ["Images", "loader"])
def test_map_style_data_come_in_the_order_of_the_shipped_sources(name, monkeypatch):
    options, data = {"drop_last": name == "Images"}, built(name).dataloader  # torch's loaders keep what is left
    data.sampler.set_epoch(1)
    assert same(data, reference(epoch=1, **options)) and not same(data, reference(**options))
    assert same(built(name, train=False).dataloader, reference(train=False))
    ranks(monkeypatch, 1, of=2)
    assert same(built(name).dataloader, reference(**options))


def test_the_keys_of_the_loader_act():
    assert same(built("Images", shuffle=False, drop_last=False).dataloader, reference(train=False))
    assert same(built("loader", shuffle=False).dataloader, reference(train=False)[: N // 4 + 1])
    images, _ = next(iter(built("Images", collate_fn=f"{HERE}:collate").dataloader))
    assert images.min() >= 1
    workers = built("Images", num_workers=1).dataloader
    assert workers.num_workers == 1 and same(workers, reference())


def test_a_data_spec_keeps_its_transforms():
    made = built("spec")
    assert same(made.dataloader, reference(drop_last=False)) and made.batch_transforms((torch.zeros(1), 0))[0] == 1


def test_what_is_divided_at_random_is_divided_alike_for_training_and_evaluation():
    before = torch.get_rng_state()
    parts = [labels_and_images(built("halves", 1, train=not part, part=part).dataloader)[0] for part in (0, 1)]
    assert len(torch.cat(parts).unique()) == N and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("Images", {"num_worker": 1}, "num_worker: unknown argument; did you mean num_workers?"),
        ("Images", {"num_workers": -1}, "num_workers must be at least 0, not -1"),
        ("Images", {"num_workers": "two"}, "num_workers: 'two' given; expected a whole number"),
        ("Images", {"size": "two"}, "size: 'two' given; expected a whole number"),
        ("Images", {"collate_fn": f"{HERE}:collat"}, f"collate_fn: {HERE}:collat: the module {HERE} has no collat"),
        ("Images", {"collate_fn": f"{HERE}:N"}, f"collate_fn: {HERE}:N is a int; expected a function"),
        ("Images", {"sharded": True}, "sharded: true given, but .* has a length and places"),
        ("Images", {"size": 3}, "3 samples do not fill a batch of 4 on 1 rank"),
        ("Stream", {"shuffle": True}, "shuffle: true given, but .*:Stream has an order of its own"),
        (
            "Stream",
            {"num_workers": 2},
            "sharded: each of the 2 processes that read .*:Stream .* by torch.utils.data.get_worker_info.*: 0",
        ),
        ("loader", {"batch_size": 8}, "makes batches of 8, but each rank has 4"),
        ("spec", {"num_workers": 1}, "num_workers: given, but .* makes a DataSpec, which has its own"),
        ("once", {}, "makes a generator; expected a Dataset, .*, not what can be read once"),
        ("halves", {}, "part: missing; it has no default"),
        ("ArgumentError", {}, "is a class without __getitem__ or __iter__; expected a Dataset"),
    ],
)
def test_what_does_not_fit_is_refused(name, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        built(name, **given)


def test_on_several_ranks_what_would_give_all_of_them_the_same_is_refused(monkeypatch):
    ranks(monkeypatch, 1, of=2)
    with pytest.raises(ValueError, match="gives all examples to every rank; expected the data set"):
        built("weighted")
    with pytest.raises(
        ArgumentError, match=r"each of the 2 processes .* by composer.utils.dist.get_global_rank.*say sharded: true$"
    ):
        built("Stream")
    assert len([*built("Stream", sharded=True).dataloader]) == N // 4


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="an epoch has no batch of 40"):
        [*built("Stream", 40).dataloader]


def config(folder, name, **given):
    settings = runs.settings(folder)
    del settings["train_subset_num_batches"], settings["algorithms"]
    options = {"global_batch_size": 4, "eval_batch_size": 32, "model": {"runs:noisy": {}}}
    return settings | options | {"train_data": {f"{HERE}:{name}": given}}


def test_nothing_is_called_before_all_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer.nothing: unknown name"):
        check(config(tmp_path, "exploding") | {"optimizer": {"nothing": {}}})
    recipe = check(config(tmp_path, "exploding"))
    with pytest.raises(ConfigError) as error:
        train(recipe)
    place = f"train_data.{HERE}:exploding: LookupError: built; at "
    assert place in str(error.value) and ': raise LookupError("built")' in str(error.value)
    assert "in exploding" in (tmp_path / "run/error.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_where_ones_own_data_fail_is_told(tmp_path, workers):
    with pytest.raises(ConfigError) as error:
        train(config(tmp_path, "Broken", num_workers=workers))
    said = str(error.value)
    assert "training failed after batch 0; KeyError: 'missing " in said and "test_own.py" in said
    assert 'return {}[f"missing {place}"]; where it did is told in' in said and "Traceback" not in said
    assert "in __getitem__" in (tmp_path / "run/error.txt").read_text()


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    ("name", "kill_at", "every"), [("Images", 5, "3ba"), ("Kept", 5, "3ba"), ("Kept", 7, "6ba"), ("Kept", 7, "1ep")]
)
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path, name, kill_at, every):
    """From the middle of an epoch, from its last batch, and from its end, each of 6 batches."""
    given = config(tmp_path, name) | {"save_interval": every}
    whole, expected = runs.trained(given | {"run_name": "whole"})
    with pytest.raises(KeyboardInterrupt):
        train(given | {"callbacks": {"runs:Watch": {"kill_at": kill_at}}})
    resumed, weights = runs.trained(given)
    assert runs.same(weights, expected) and runs.measured(resumed)[-1] == runs.measured(whole)[-1]


def test_of_data_without_a_state_a_line_is_told(tmp_path, capsys):
    own.tell_once.cache_clear()
    result, _ = runs.trained(config(tmp_path, "Stream") | {"scheduler": None, "max_duration": "12ba"})
    assert result.records[-1]["batch"] == 2 * (N // 4)
    assert capsys.readouterr().err.count(f"{HERE}:Stream: has no state_dict() to go on from") == 1


def test_a_place_that_cannot_be_chosen_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train_subset_num_batches: after a resume .*:Kept, which keeps its own"):
        train(config(tmp_path, "Kept") | {"train_subset_num_batches": 3})


class Logged(Kept):
    """Writes down which examples each pass gives, and may keep its length to itself."""

    passed: ClassVar[list[list[int]]] = []

    def __init__(self, size: int = N, sized: bool = True):
        super().__init__(size)
        self.sized = sized

    def __len__(self):
        if not self.sized:
            raise TypeError("no length")
        return super().__len__()

    def __iter__(self):
        Logged.passed.append(given := [])
        for images, label in super().__iter__():
            given.append(round(float(images[0, 0, 0]) * N))
            yield images, label


class Unsized(DataLoader):
    """A loader of one's own, of which Composer would not know when it ends."""


def unsized(batch_size: int):
    return Unsized(Logged(sized=False), batch_size)


def evaluated(folder, monkeypatch, **given):
    """What each evaluation of a run of two epochs saw."""
    monkeypatch.setattr(Logged, "passed", [])
    options = {"eval_data": {f"{HERE}:Logged": {"sized": False}}, "eval_batch_size": 4, "eval_interval": "3ba"}
    settings = {name: value for name, value in (config(folder, "Images") | options | given).items() if value}
    return runs.trained(settings)[0], Logged.passed


@pytest.mark.parametrize("sized", [True, False])
def test_each_evaluation_sees_all_examples_in_the_same_order(tmp_path, monkeypatch, capsys, sized):
    data = {"eval_data": {f"{HERE}:Logged": {"sized": sized}}, "eval_subset_num_batches": None}
    _, passed = evaluated(tmp_path, monkeypatch, **data)
    assert len(passed) == 4 and all(sorted(given) == [*range(N)] for given in passed)
    assert all(given == passed[0] for given in passed)
    told = f"eval_data.{HERE}:Logged: has no length, so each evaluation goes on until its data end"
    assert capsys.readouterr().err.count(told) == (not sized)


def test_evaluations_of_some_batches_see_the_same_ones(tmp_path, monkeypatch):
    _, passed = evaluated(tmp_path, monkeypatch, eval_subset_num_batches=2)
    assert len(passed) == 4 and all(given[:8] == passed[0][:8] for given in passed)


def test_a_length_that_is_needed_is_asked_for_before_the_training(tmp_path, monkeypatch):
    given = config(tmp_path, "Stream") | {"scheduler": None}
    with pytest.raises(
        ConfigError, match=rf"max_duration: 2ep given, but train_data.{HERE}:Stream has no length: give"
    ):
        train(given)
    with pytest.raises(ConfigError, match=rf"eval_data.{HERE}:unsized: has no length; say eval_subset_num_batches: N"):
        evaluated(tmp_path, monkeypatch, eval_data={f"{HERE}:unsized": {}}, eval_subset_num_batches=None)
    assert Logged.passed == []


class Whole(list):
    """Batches that are made as such, of a size that it does not tell."""

    def __init__(self, batch_size: int):
        images = Images(20)
        super().__init__(zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True))


def unbatched(batch_size: int):
    return DataLoader(Whole(batch_size), batch_size=None)


def bucketed(batch_size: int):
    return DataLoader(Images(20), batch_sampler=[*torch.arange(20).split(batch_size)])


def of_a_spec(batch_size: int):
    return DataSpec(Whole(batch_size), num_samples=20)


@pytest.mark.parametrize("name", ["unbatched", "bucketed", "of_a_spec"])
def test_batches_of_which_no_loader_tells_the_size_stay_whole(tmp_path, monkeypatch, name):
    sizes, forward = [], ComposerClassifier.forward
    monkeypatch.setattr(
        ComposerClassifier, "forward", lambda model, batch: sizes.append(len(batch[1])) or forward(model, batch)
    )
    given = {"max_duration": "1ep", "eval_batch_size": 10, "eval_subset_num_batches": -1, "scheduler": None}
    train(config(tmp_path, name) | given | {"eval_data": {f"{HERE}:{name}": {}}})
    assert sizes == [4] * 5 + [10] * 2
    with pytest.raises(ConfigError, match="device_train_microbatch_size: auto given, but the loader of train_data"):
        train(config(tmp_path, name) | {"device_train_microbatch_size": "auto", "autoresume": False})
