"""TradeoffCurve: when it evaluates, what it records, and that neither a kill nor company changes it."""

from types import SimpleNamespace

import pytest
import torch
from composer import Callback, Evaluator
from composer.callbacks import EarlyStopper, ThresholdStopper
from composer.core import Event
from composer.loggers import InMemoryLogger
from composer.optim import CosineAnnealingScheduler
from torch.utils.data import DataLoader, IterableDataset

from accelerando.algorithms import (
    Curve,
    Cycles,
    MultiplicativeCyclicLR,
    MultiplicativeCyclicScheduler,
    TradeoffCurve,
    tradeoff_curve,
)
from tiny import (
    Kill,
    assert_same,
    classifier,
    examples,
    fit,
    loader,
    network,
    plain_loop,
    timeless,
    trainer,
    weights,
)

# An epoch has 4 batches, the last one smaller. Troughs: inside an epoch, at the end of one, at the end of the run.
TROUGHS, SAMPLES = [2, 4, 8], [16, 30, 60]


def cyclic():
    return MultiplicativeCyclicScheduler("1ba", "1ba")


class Watch(Callback):
    """Sees the weights after each update and when there are evaluations; tells a time that only it moves on.

    Three seconds for each update, of which one is for the data; all the rest takes long.
    """

    def __init__(self):
        self.weights, self.evaluations, self.now = {}, [], 0.0

    def perf_counter(self):
        return self.now

    def before_dataloader(self, state, logger):
        self.now += 1

    def batch_start(self, state, logger):
        self.now += 2

    def batch_end(self, state, logger):
        batch = state.timestamp.batch.value
        self.weights[batch] = {name: value.clone() for name, value in state.model.state_dict().items()}
        self.now += 100

    def eval_start(self, state, logger):
        self.evaluations.append(state.timestamp.batch.value)
        self.now += 1000

    def epoch_start(self, state, logger):
        self.now += 10000


@pytest.fixture
def start(monkeypatch):
    def start(scheduler=None, callbacks=(), **options):
        curve, watch = TradeoffCurve(scheduler or cyclic()), Watch()
        monkeypatch.setattr(tradeoff_curve, "time", watch)
        options = {"schedulers": curve.scheduler, "eval_dataloader": loader(), **options}
        return SimpleNamespace(
            curve=curve, watch=watch, trainer=trainer([curve], callbacks=[watch, *callbacks], **options)
        )

    return start


@pytest.fixture
def run(start):
    def run(scheduler=None, **options):
        started = start(scheduler, **options)
        started.trainer.fit()
        return started

    return run


@pytest.mark.parametrize(
    "interval, evaluations",
    [
        (0, TROUGHS),
        ("1ep", TROUGHS),
        ("2ep", TROUGHS),
        ("3ba", [2, 3, 4, 6, 8]),
        ("1ba", [*range(1, 9)]),
        (lambda state, event: event == Event.EPOCH_END, TROUGHS),
    ],
)
def test_evaluates_once_at_each_trough(run, interval, evaluations):
    seen = run(eval_interval=interval)
    assert seen.watch.evaluations == evaluations
    points = seen.curve.points
    assert [point["cycle"] for point in points] == [0, 1, 2]
    assert [point["batch"] for point in points] == TROUGHS
    assert [point["samples"] for point in points] == SAMPLES
    assert [point["seconds"] for point in points] == [6, 12, 24]


def test_points_are_those_of_an_evaluation_of_these_weights(run):
    seen = run()
    for point in seen.curve.points:
        other = trainer(eval_dataloader=loader())
        other.state.model.load_state_dict(seen.watch.weights[point["batch"]])
        other.eval()
        metrics = {name: metric.compute().item() for name, metric in other.state.eval_metrics["eval"].items()}
        assert metrics == {name.removeprefix("eval/"): value for name, value in point.items() if "/" in name}
        assert metrics.keys() == {"MulticlassAccuracy", "CrossEntropy"}


@pytest.mark.parametrize(
    "scheduler, max_duration, options, expected",
    [
        (("1ep", "1ep"), "4ep", {}, [8, 16]),
        (("1ep", "1ep", 1.5), "23ba", {}, [8, 14, 23]),
        (("1ep", "1ep"), "4ep", {"train_subset_num_batches": 3}, [6, 12]),
        (("0dur", "0.25dur", 3), "10ba", {}, [3, 10]),
        (("20sp", "20sp"), "80sp", {}, [6, 11]),  # after 46 and 84 samples
        (("1ba", "1ba"), "16ba", {"scale_schedule_ratio": 0.5}, [1, 2, 4, 8]),
        (("2ba", "3ba", 1), "8ba", {"device_train_microbatch_size": 3}, [5, 8]),
    ],
)
def test_troughs_of_other_schedules(run, scheduler, max_duration, options, expected):
    seen = run(MultiplicativeCyclicScheduler(*scheduler), max_duration=max_duration, eval_interval=0, **options)
    assert seen.watch.evaluations == [point["batch"] for point in seen.curve.points] == expected


class Fewer(IterableDataset):
    """Gives 4 batches of 8 where 5 are announced."""

    def __iter__(self):
        return zip(*examples(), strict=True)

    def __len__(self):
        return 40


def test_epochs_shorter_than_announced(run):
    data = DataLoader(Fewer(), 8)
    seen = run(MultiplicativeCyclicScheduler("1ep", "1ep"), max_duration="4ep", train_dataloader=data, eval_interval=0)
    assert [point["batch"] for point in seen.curve.points] == seen.watch.evaluations == [8, 16]


# Where the checkpoint of an epoch's last batch is loaded.
@pytest.mark.filterwarnings("ignore:No batches were trained:UserWarning", "ignore:The ``compute`` method:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is not in the state_dict:UserWarning")
@pytest.mark.parametrize("interval", [0, 1])
def test_a_kill_at_any_batch_loses_no_point_and_adds_none(run, start, interval, tmp_path):
    saved = {"save_interval": "1ba", "save_filename": "{batch}.pt", "eval_interval": interval}
    whole = run(eval_interval=interval)
    plain = trainer(schedulers=cyclic(), **saved | {"eval_interval": 1}, save_folder=str(tmp_path / "plain"))
    plain.fit()
    for batch in range(1, 8):
        folder = tmp_path / str(batch)
        with pytest.raises(KeyboardInterrupt):
            run(**saved, save_folder=str(folder), callbacks=[Kill(batch)])
        resumed = run(eval_interval=interval, load_path=str(folder / f"{batch}.pt"))
        assert resumed.curve.points == whole.curve.points
        assert resumed.watch.evaluations == [trough for trough in TROUGHS if trough > batch]
        assert_same(weights(resumed.trainer), weights(whole.trainer))
        joined = run(eval_interval=0, load_path=str(tmp_path / f"plain/{batch}.pt"))
        assert timeless(joined.curve.points) == [p for p in timeless(whole.curve.points) if p["batch"] > batch]


def test_points_are_logged(run):
    memory = InMemoryLogger()
    seen = run(loggers=memory)
    for name in seen.curve.points[0]:
        logged = [(stamp.batch.value, value) for stamp, value in memory.data[f"tradeoff/{name}"]]
        assert logged == [(point["batch"], point[name]) for point in seen.curve.points]


def test_several_evaluators(start):
    one = Evaluator(label="one", dataloader=loader(), metric_names=["MulticlassAccuracy"], eval_interval="3ba")
    two = Evaluator(label="two", dataloader=loader(4), metric_names=["CrossEntropy"], eval_interval=0)
    seen = start(eval_dataloader=[one, two])
    seen.trainer.eval(Evaluator(label="three", dataloader=loader()))
    seen.watch.evaluations.clear()
    seen.trainer.fit()
    assert seen.watch.evaluations == [2, 2, 3, 4, 4, 6, 8, 8]
    for point in seen.curve.points:
        assert {name for name in point if "/" in name} == {"one/MulticlassAccuracy", "two/CrossEntropy"}


def test_first_trough_is_the_end_of_a_run_of_that_length(run):
    def schedule():
        return MultiplicativeCyclicScheduler("2ba", "4ba")

    whole = run(schedule(), max_duration="14ba", train_dataloader=loader(shuffle=True))
    alone = fit(schedulers=schedule(), max_duration="6ba", train_dataloader=loader(shuffle=True))
    assert whole.curve.points[0]["batch"] == 6
    assert_same(whole.watch.weights[6], weights(alone))


def test_fit_in_pieces_and_another_trainer(run, start):
    whole = run()
    pieces = start(max_duration=None)
    pieces.trainer.fit(duration="4ba")
    pieces.trainer.fit(duration="3ba")
    pieces.trainer.fit(duration="1ba")
    assert pieces.curve.points == whole.curve.points
    assert pieces.watch.evaluations == [2, 4, 7, 8]  # as always at the end of fit()

    before, curve = timeless(whole.curve.points), whole.curve
    fit([curve], schedulers=curve.scheduler, eval_dataloader=loader())
    assert timeless(curve.points) == before

    evaluator = Evaluator(label="eval", dataloader=loader(), eval_interval="1ep")
    run(eval_dataloader=evaluator)
    other = run(MultiplicativeCyclicScheduler("1ba", "2ba"), max_duration="15ba", eval_dataloader=evaluator)
    assert other.watch.evaluations == [3, 4, 7, 8, 12, 15]


@pytest.mark.parametrize("event", ["batch_end", "eval_end", "before_train_batch"])
@pytest.mark.parametrize("times", [("1ba", "1ba"), ("0.125dur", "0.125dur"), ("4sp", "4sp")])
def test_a_run_that_is_stopped_says_so_and_has_the_points_that_it_reached(run, times, event):
    stop = Callback()
    setattr(stop, event, lambda state, logger: state.timestamp.batch == 5 and state.stop_training())
    duration = "8ba" if times[0] != "4sp" else "64sp"
    options = {"max_duration": duration, "eval_interval": "1ba", "device_train_microbatch_size": 2}
    options["eval_dataloader"] = loader(5)
    whole = run(MultiplicativeCyclicScheduler(*times), **options)
    before = 6 if event == "before_train_batch" else 5
    with pytest.warns(UserWarning, match=f"TradeoffCurve: the run was stopped after {before}ba of {duration}; later"):
        seen = run(MultiplicativeCyclicScheduler(*times), callbacks=[stop], **options)
    assert timeless(seen.curve.points) == [p for p in timeless(whole.curve.points) if p["batch"] <= before]
    assert 0 < len(seen.curve.points) < len(whole.curve.points)


def test_what_may_stop_a_run_is_refused(start):
    class Own(EarlyStopper):
        pass

    accuracy = {"monitor": "MulticlassAccuracy", "dataloader_label": "eval"}
    for stopper in (EarlyStopper(**accuracy), ThresholdStopper(threshold=0.9, **accuracy), Own(**accuracy)):
        with pytest.raises(
            ValueError, match=f"TradeoffCurve: leave this {type(stopper).__name__} out: it ends the whole"
        ):
            start(callbacks=[stopper])


def test_a_subclass_that_overrides_a_step_is_obeyed():
    class Shifted(TradeoffCurve):
        def _record(self, state, logger):
            super()._record(state, logger)
            self.points[-1]["cycle"] += 10

    curve = Shifted(cyclic())
    fit(curve, schedulers=curve.scheduler, eval_dataloader=loader(), eval_interval=0)
    assert [point["cycle"] for point in curve.points] == [10, 11, 12]


def test_finds_the_scheduler_of_the_run(run, tmp_path):
    whole, curve = run(), TradeoffCurve()
    for _ in range(2):  # a run of its own each time
        found = fit(
            [curve], schedulers=cyclic(), eval_dataloader=loader(), save_folder=str(tmp_path), save_overwrite=True
        )
        assert timeless(curve.points) == timeless(whole.curve.points)
        assert_same(weights(found), weights(whole.trainer))
    resumed = TradeoffCurve()
    fit([resumed], schedulers=cyclic(), eval_dataloader=loader(), load_path=str(tmp_path / "ep1-ba4-rank0.pt"))
    assert timeless(resumed.points) == timeless(whole.curve.points)
    late = TradeoffCurve()
    trainer([late], eval_dataloader=loader()).fit(schedulers=cyclic())
    assert timeless(late.points) == timeless(whole.curve.points)
    for schedulers, there in (
        (None, "none"),
        ([cyclic(), cyclic()], "Multipl.*, Multipl.*"),
        (lambda s: 1.0, "function"),
    ):
        with pytest.raises(ValueError, match=f"must hold one MultiplicativeCyclicScheduler, and hold {there}; give"):
            fit([TradeoffCurve()], schedulers=schedulers, eval_dataloader=loader())
    with pytest.raises(ValueError, match="finds its scheduler when training starts; give it one"):
        TradeoffCurve().scheduler.cycle_ends()


def test_refusals(start):
    with pytest.raises(TypeError, match="TradeoffCurve: scheduler must be a MultiplicativeCyclicScheduler, got str"):
        TradeoffCurve("cyclic")
    with pytest.raises(ValueError, match="nothing to evaluate on; give the Trainer an eval_dataloader"):
        start(eval_dataloader=None).trainer.fit()
    used = cyclic()
    trainer(schedulers=used)
    for scheduler in (None, CosineAnnealingScheduler(), cyclic()):
        for own in (cyclic(), used):
            with pytest.raises(ValueError, match=r"the Trainer's own scheduler: Trainer\(schedulers=curve.scheduler\)"):
                start(own, schedulers=scheduler).trainer.fit()
    piece = start()
    with pytest.raises(ValueError, match=r"max_duration=5ba ends inside a cycle.*; use 4ba or 8ba"):
        piece.trainer.fit(duration="5ba")
    assert piece.watch.now == 0  # before the first batch


def evaluation(module):
    """What Composer's evaluation of the tiny run finds."""
    metrics = classifier(module.eval()).get_metrics(is_train=False)
    for inputs, targets in loader():
        for metric in metrics.values():
            metric.update(module(inputs), targets)
    return {f"eval/{name}": metric.compute() for name, metric in metrics.items()}


def test_a_plain_loop_has_the_points_of_composers(run):
    whole, module, curves = run(), network(), []

    def schedule(optimizer):
        curves.append(Curve(scheduler := MultiplicativeCyclicLR(optimizer, 1, 1)))
        return scheduler

    for step in plain_loop(module, 8, schedule):
        (curve,) = curves
        if step and curve.due(step):
            curve.add(step, samples=30 * (step // 4) + 8 * (step % 4), **evaluation(module))
    assert timeless(curve.points) == timeless(whole.curve.points)
    assert all(type(value) in (int, float) for point in curve.points for value in point.values())
    assert_same({f"module.{name}": value for name, value in module.state_dict().items()}, weights(whole.trainer))


class Seconds:
    """Time that only the test moves on."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(tradeoff_curve, "time", Seconds())
    return tradeoff_curve.time


def train(curve, clock, start, end):
    """A second for each batch, two for each update; all the rest takes long."""

    def batches():
        for step in range(start, end):
            clock.now += 1
            yield step

    for step in curve.timed(batches()):
        clock.now += 2
        if curve.due(step + 1):
            clock.now += 1000
            curve.add(step + 1, accuracy=torch.tensor(step / 10))


def test_seconds_are_those_of_training_alone_also_after_a_resume(clock):
    whole, before, after = (Curve(Cycles.of(1, 1, 2)) for _ in range(3))
    train(whole, clock, 0, 8)
    assert [point["seconds"] for point in whole.points] == [6, 12, 24]
    assert [point["batch"] for point in whole.points] == TROUGHS
    for killed in range(9):
        before.load_state_dict({})
        train(before, clock, 0, killed)
        clock.now += 100
        after.load_state_dict(before.state_dict())
        train(after, clock, killed, 8)
        assert after.state_dict() == whole.state_dict()


def test_a_step_that_nobody_asks_about_counts_to_its_end(clock):
    curve = Curve(Cycles.of(0, 4, 1))
    for step in curve.timed(range(5)):
        clock.now += 1
        if step == 4:
            break
    assert curve.clock.seconds == 4
    curve.clock.stop()
    assert curve.clock.seconds == 5
    clock.now += 1
    curve.clock.stop()
    assert curve.clock.seconds == 5


def test_a_cycle_that_ends_between_two_updates_is_due_with_the_one_that_completes_it():
    curve = Curve(Cycles.of(2, 3, 1.5))
    assert [step for step in range(1, 30) if curve.due(step)] == [5, 10, 17, 27]
    fast = Curve(Cycles.of(0, 0.4, 1))  # two and a half a step
    assert [fast.add(step)["cycle"] for step in range(1, 5) if fast.due(step)] == [1, 4, 6, 9]


def test_a_curve_needs_cycles():
    with pytest.raises(TypeError, match="Curve: schedule must be a MultiplicativeCyclicLR, or Cycles, got str"):
        Curve("cyclic")
