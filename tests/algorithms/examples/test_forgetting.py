"""Forgetting events against a plain loop, in one's own loop and in Composer's Trainer, after a kill too."""

import pytest
import torch
from composer import Callback
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import ExampleScores, Forgetting, ForgettingEvents, data_digest, load_scores
from accelerando.algorithms.progress import Progress
from small import examples, noisy_network
from tiny import Kill, classifier, fit, loader, trainer

UPDATES = 24


def data(size: int = 7) -> DataLoader:
    return DataLoader(TensorDataset(*examples()), size)


def training(model):
    """A restless one, which forgets; gives the number of updates so far."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    inputs, labels = examples()
    for step in range(UPDATES):
        rows = torch.randperm(len(labels))[:8]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        yield step + 1


def is_correct(model):
    model.eval()
    with torch.no_grad():
        right = model(examples()[0]).argmax(1) == examples()[1]
    model.train()
    return right


@pytest.fixture(scope="module")
def looks():
    """Which examples are correct after each update, (updates, examples), with dropout between the looks."""
    model = noisy_network()
    return torch.stack([is_correct(model) for _ in training(model)])


def expected(looks):
    before = torch.cat([torch.zeros_like(looks[:1]), looks[:-1]])
    return (before & ~looks).sum(0), looks.any(0)


@pytest.mark.parametrize(("interval", "every"), [("1ba", 1), ("3ba", 3), ("2ep", 8), ("0.25dur", 6)])
def test_events_are_those_of_a_plain_loop(interval, every, looks, tmp_path):
    model, file = noisy_network(), tmp_path / "forgetting.safetensors"
    forgetting = Forgetting(data(), interval, steps=UPDATES, batches_per_epoch=4, file=file)
    for updates in training(model):
        forgetting(model, updates)
        forgetting(model, updates)  # a second call after the same update makes no second look
        if updates == 13:
            again = Forgetting(data(1000), interval, steps=UPDATES, batches_per_epoch=4, file=file)
            again.load_state_dict(forgetting.state_dict())
            forgetting = again
    events, learned = expected(looks[every - 1 :: every])
    assert forgetting.looks == UPDATES // every
    assert torch.equal(forgetting.events, events) and torch.equal(forgetting.learned, learned)
    assert events.sum() > 0
    scores = torch.where(learned, events, forgetting.looks)
    assert torch.equal(load_scores(file, data_digest(data()), 30)[0], scores.double())


def test_what_was_never_learned_is_harder_than_what_is_forgotten_at_every_other_look():
    forgetting = Forgetting(None, "1ba")
    for step, right in enumerate(([1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0])):
        forgetting.keep(lambda right=right: torch.tensor(right, dtype=torch.bool), Progress.after(step + 1))
    assert forgetting.events.tolist() == [2, 0, 0] and forgetting.learned.tolist() == [True, True, False]
    assert forgetting.scores().tolist() == [2, 0, 4]


def test_bad_input_is_one_line():
    def refused(call, match):
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)

    refused(lambda: Forgetting(data(), "1ep")(noisy_network(), 1), "Forgetting: interval must be in ba; give steps for")
    refused(lambda: Forgetting(data(), "never"), "Forgetting: interval must be above 0, in ep, ba")
    shuffled = DataLoader(TensorDataset(*examples()), 7, shuffle=True)
    refused(lambda: Forgetting(shuffled), "Forgetting: data must be a loader in the order of its data set")
    refused(lambda: Forgetting(iter(data())), "Forgetting: data must be batches that are there at every look")
    forgetting = Forgetting(data(), "1ba")
    forgetting(noisy_network(), 1)
    other = Forgetting(data(), "2ba")
    refused(
        lambda: other.load_state_dict(forgetting.state_dict()), "interval must be 1ba, as in the training that goes"
    )
    forgetting.data = [*data()][:2]
    refused(lambda: forgetting(noisy_network(), 2), "data must be the 30 examples of the looks before, got 14")


def run(folder, *callbacks, **options):
    algorithms = [
        ForgettingEvents(loader(7), "1ba", save_folder=str(folder / "forgetting")),
        ExampleScores(loader(7), ["3ba", "2ep"], ["el2n", "error"], save_folder=str(folder / "scores")),
    ]
    model = classifier(noisy_network())
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    options = {"model": model, "optimizers": optimizer, "max_duration": "2ep", "callbacks": [*callbacks]} | options
    work = trainer(algorithms, **options)
    return work, algorithms


class Begun(Callback):
    batches = 0

    def batch_start(self, state, logger):
        self.batches += 1


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_in_composer_a_killed_run_finds_what_the_whole_one_does(tmp_path):
    whole, (forgetting, scores) = run(tmp_path / "whole")
    whole.fit()
    assert forgetting.forgetting.looks == 8 and scores.kept == {"3ba": 3, "2ep": 8}
    saved = {"save_folder": str(tmp_path / "saved"), "save_interval": "1ba"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Kill(4), **saved)[0].fit()
    # The checkpoint of an epoch's last batch is written before the end of the epoch.
    resumed, (again, _) = run(tmp_path / "killed", load_path=str(tmp_path / "saved" / "ep0-ba4-rank0.pt"))
    resumed.fit()
    for name in ("events", "learned", "correct"):
        assert torch.equal(getattr(again.forgetting, name), getattr(forgetting.forgetting, name))
    digest, folders = data_digest(loader()), (tmp_path / "whole", tmp_path / "killed")
    for file, name in (("scores/ba3", "el2n"), ("scores/ba8", "error"), ("forgetting/forgetting", None)):
        one, two = (load_scores(folder / f"{file}.safetensors", digest, 30, name) for folder in folders)
        assert torch.equal(one, two)
    right = (whole.state.model.eval().module(examples()[0]).argmax(1) == examples()[1]).cpu()
    errors = load_scores(tmp_path / "whole/scores/ba8.safetensors", digest, 30, "error")[0]
    assert torch.equal(errors == 0, right) and torch.equal(forgetting.forgetting.correct, right)


def test_in_composer_nothing_is_changed(tmp_path):
    plain = fit(model=classifier(noisy_network()))
    work = fit(ForgettingEvents(loader(7), "1ba", save_folder=str(tmp_path)), model=classifier(noisy_network()))
    one, two = plain.state.model.state_dict(), work.state.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_in_composer_data_in_another_order_are_refused_when_training_begins(tmp_path):
    shuffled = DataLoader(TensorDataset(*examples()), 7, shuffle=True)
    for data in (shuffled, lambda device: shuffled):
        with pytest.raises(ValueError, match="ExampleScores: data must be a loader in the order of its data set"):
            fit(ExampleScores(data, ["1dur"], save_folder=str(tmp_path)))


def test_in_composer_what_cannot_be_scored_is_refused_when_training_begins(tmp_path):
    inputs, labels = examples()
    data, begun = DataLoader(TensorDataset(inputs, labels[:, None]), 7), Begun()
    for algorithm in (ForgettingEvents(data, save_folder=str(tmp_path)), ExampleScores(data, ["1dur"])):
        with pytest.raises(ValueError, match=r"data must be of one class an example.* for labels of \(7, 1\)"):
            fit(algorithm, callbacks=begun)
    assert not begun.batches
