"""Guests that are missed when a checkpoint is loaded, and guests that are one too many."""

from pathlib import Path

import composer.algorithms
import pytest
from composer import Algorithm, Callback
from composer.optim import ConstantScheduler

from accelerando.algorithms import LotteryTicket, MagnitudePruning, MixUp, PruneAtInit
from accelerando.algorithms.composer.host import bound_to_the_length, progress_of
from accelerando.algorithms.progress import Moment, Progress
from tiny import SAMPLES, fit, launch, trainer

PRUNING = {
    "LotteryTicket": lambda: LotteryTicket(1, 0.7),
    "MagnitudePruning": lambda: MagnitudePruning(0.2),
    "PruneAtInit": lambda: PruneAtInit("magnitude", 0.2),
}


def saved(name, folder):
    """The path of a checkpoint."""
    pruning = PRUNING[name]()
    options = {"schedulers": pruning.wrap(ConstantScheduler())} if name == "LotteryTicket" else {}
    fit(pruning, save_folder=str(folder / name), save_interval="1ba", max_duration="6ba", **options)
    return str(folder / name / "ep1-ba5-rank0.pt")


class Subclass(PruneAtInit):
    pass


@pytest.mark.parametrize("name", PRUNING)
def test_a_checkpoint_is_not_resumed_without_what_it_needs(name, tmp_path):
    path = saved(name, tmp_path)
    message = rf"trained with {name}, which this Trainer lacks.*load_exclude_algorithms=\['{name}'\]"
    with pytest.raises(ValueError, match=message):
        trainer(load_path=path)
    for options in ({"load_weights_only": True}, {"load_exclude_algorithms": [name]}):
        free = trainer(load_path=path, save_folder=str(tmp_path / "free"), save_overwrite=True, **options)
        assert free.state.algorithms == []
        free.fit()
        free.save_checkpoint(str(tmp_path / "free.pt"))
        trainer(load_path=str(tmp_path / "free.pt"))  # nothing of it is handed on


def test_a_subclass_is_missed_by_its_own_name(tmp_path):
    fit(Subclass("magnitude", 0.2), save_folder=str(tmp_path), save_interval="1ba")
    with pytest.raises(ValueError, match="trained with Subclass"):
        trainer(load_path=str(tmp_path / "ep1-ba5-rank0.pt"))
    assert trainer(Subclass("magnitude", 0.2), load_path=str(tmp_path / "ep1-ba5-rank0.pt")).state.timestamp.batch == 5


ALONE = """
import sys
sys.path.insert(0, {tests!r})
from tiny import trainer
assert not any(name.startswith("accelerando") for name in sys.modules)
for path in sys.argv[1:]:
    try:
        trainer(load_path=path)
    except ValueError as error:
        print(error)
    print(trainer(load_path=path, load_weights_only=True).state.algorithms)
"""


@pytest.mark.programs
def test_nor_by_a_script_that_knows_composer_alone(tmp_path):
    paths = {name: saved(name, tmp_path) for name in PRUNING}
    done = launch(
        1, "-W", "error::UserWarning", "-c", ALONE.format(tests=str(Path(__file__).parents[1])), *paths.values()
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[::2]] == [f"The checkpoint was trained with {name}" for name in paths]
    assert lines[1::2] == ["[]"] * len(paths)


class SWA(Algorithm):
    """Not Composer's."""

    def match(self, event, state):
        return False

    def apply(self, event, state, logger):
        pass


class Longer(composer.algorithms.SWA):
    pass


@pytest.mark.filterwarnings("ignore:SWA has known issues")
def test_algorithms_are_known_by_their_class():
    assert bound_to_the_length(composer.algorithms.SWA()) and bound_to_the_length(Longer())
    assert not bound_to_the_length(SWA())


class Mixed(composer.algorithms.MixUp):
    pass


@pytest.mark.parametrize(
    "other", [lambda: Mixed(), lambda: type("Ours", (MixUp,), {})(), lambda: composer.algorithms.MixUp(), MixUp]
)
def test_twins_are_known_by_their_class(other):
    for order in (1, -1):
        with pytest.raises(ValueError, match="more than one MixUp"):
            trainer([MixUp(), other()][::order])


def test_namesakes_would_get_each_others_state():
    with pytest.raises(ValueError, match="two classes called MixUp, and from a checkpoint"):
        trainer([MixUp(), type("MixUp", (SWA,), {})()])


class Seen(Callback):
    """How far the run has come before and after each update."""

    def __init__(self):
        self.before, self.after = [], []

    def batch_start(self, state, logger):
        self.before.append(progress_of(state))

    def batch_end(self, state, logger):
        assert progress_of(state, state.previous_timestamp) == self.before[-1]
        self.after.append(progress_of(state))


def test_the_progress_of_a_run_is_that_of_a_plain_loop():
    seen = Seen()
    fit(callbacks=[seen], max_duration="8ba")
    uncounted = dict.fromkeys(("sample", "sample_in_epoch", "token", "token_in_epoch"), 0)
    for step, now in enumerate(seen.before):
        assert Progress(**now.counts | uncounted, batches_per_epoch=4, length=Moment(8, "ba")) == Progress.after(
            step, 8, 4
        )
        assert now.length == Moment(8, "ba") and now.batches_per_epoch == 4
        assert now.sample == SAMPLES * (step // 4) + 8 * (step % 4) and now.sample_in_epoch == 8 * (step % 4)
        assert seen.after[step].batch == step + 1 and seen.after[step].elapsed("dur") == (step + 1) / 8
        # The end of an epoch is still to come, and its moment is there all the same.
        assert seen.after[step].elapsed("ep") == (step + 1) / 4
