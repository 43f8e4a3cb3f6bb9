"""The in-memory loader: what it serves, to whom, and again after a kill."""

import pytest
import torch
from composer.models import ComposerClassifier
from torch.utils.data import TensorDataset

import runs
from accelerando.recipes.data import loaders
from accelerando.recipes.data.loaders import TensorLoader, worker_loader

N = 23


def loader(batch_size=4, train=True, seed=7, epoch=0, world=1, rank=0, monkeypatch=None, **kwargs):
    if monkeypatch:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("RANK", str(rank))
    built = TensorLoader([torch.arange(N)], batch_size, train, seed, **kwargs)
    built.sampler.set_epoch(epoch)
    return built


def served(**kwargs):
    return torch.cat([batch[0] for batch in loader(**kwargs)]).tolist()


def test_training_shuffles_anew_each_epoch_and_drops_the_last_incomplete_batch():
    first, second = served(epoch=0), served(epoch=1)
    assert len(loader()) == 5 and len(set(first)) == len(first) == 20
    assert first != second and first == served(epoch=0) and first != sorted(first)


def test_the_last_incomplete_batch_can_be_kept(monkeypatch):
    sizes = [len(batch[0]) for batch in loader(drop_last=False)]
    assert sizes == [4, 4, 4, 4, 4, 3] and len(loader(drop_last=False)) == 6
    kept = served(drop_last=False)
    assert sorted(kept) == list(range(N)) and kept[:20] == served() and kept != served(drop_last=False, epoch=1)
    assert noise_by_sample(drop_last=False).items() >= noise_by_sample().items()
    ranks = [served(batch_size=2, world=2, rank=r, monkeypatch=monkeypatch, drop_last=False) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 12 and set(ranks[0]) | set(ranks[1]) == set(range(N))


def test_no_epoch_of_one_seed_is_an_epoch_of_the_next():
    assert served(seed=1, epoch=1) != served(seed=2, epoch=0)


def test_evaluation_is_in_order_and_complete():
    assert served(train=False) == list(range(N)) and len(loader(train=False)) == 6


def test_ranks_share_each_global_batch_of_one_process(monkeypatch):
    whole = [set(batch[0].tolist()) for batch in loader(batch_size=6)]
    ranks = [list(loader(batch_size=3, world=2, rank=r, monkeypatch=monkeypatch)) for r in (0, 1)]
    halves = [[set(batch[0].tolist()) for batch in rank] for rank in ranks]
    assert len(whole) == len(halves[0]) == len(halves[1]) == 3
    for together, left, right in zip(whole, *halves, strict=True):
        assert left | right == together and not left & right


def noise_by_sample(**kwargs):
    batches = loader(transform=lambda batch, noise: (batch[0], noise), noise_shape=(2,), **kwargs)
    return {int(i): tuple(noise.tolist()) for batch in batches for i, noise in zip(*batch, strict=True)}


def test_noise_depends_on_seed_epoch_and_sample_alone(monkeypatch):
    one = noise_by_sample(batch_size=1)
    assert len(set(one.values())) == N
    assert noise_by_sample(batch_size=1, epoch=1) != one != noise_by_sample(batch_size=1, seed=8)
    assert noise_by_sample(batch_size=8).items() <= one.items()
    assert noise_by_sample(batch_size=2, world=2, rank=1, monkeypatch=monkeypatch).items() <= one.items()


def test_noise_of_evaluation_never_changes():
    assert noise_by_sample(train=False) == noise_by_sample(train=False, epoch=3, seed=9)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="23 samples do not fill a batch of 24 on 1 rank"):
        loader(batch_size=24)
    with pytest.raises(ValueError, match="23 samples do not fill a batch of 24 on 1 rank"):
        worker_loader(TensorDataset(torch.arange(N)), list, 24, True, 0, num_workers=0)


def test_more_workers_than_cores_are_told_once_and_left_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    loaders._tell_of_cores.cache_clear()
    data = TensorDataset(torch.arange(N))
    counts = [worker_loader(data, list, 2, True, 0, workers).num_workers for workers in (3, 4, 4)]
    told = "num_workers: 4 processes for each of 1 rank(s) share 3 core(s), which is no faster than num_workers=3"
    assert counts == [3, 4, 4] and capsys.readouterr().err.count(told) == 1


def run(folder, drop_last, duration, resume=None):
    """The weights after so many batches, and these."""
    torch.manual_seed(0)
    images, labels = torch.randn(N, 3), torch.arange(N) % 2
    data = TensorLoader(
        [images, labels], 4, True, 3, lambda batch, noise: (batch[0] + noise, batch[1]), (3,), drop_last
    )
    model = ComposerClassifier(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()), num_classes=2)
    batches = runs.served(model, data, folder, "3ep", duration, resume)
    return model.state_dict(), batches


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(drop_last, tmp_path):
    expected, whole = run(tmp_path / "whole", drop_last, "15ba")
    weights, resumed = run(tmp_path / "resumed", drop_last, "7ba", tmp_path / "whole" / "8.pt")
    assert len(whole) == 15 and len(resumed) == 7
    for ours, theirs in zip(resumed, whole[8:], strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
