"""What hosts cost a small network's training step over a plain loop, and what their callbacks cost; arms in turn.

    python benchmarks/loop.py [--processes 5] [--rounds 60] [--steps 10] [--network LeNet-300-100 ResNet-8]

LeNet-300-100 at 28 x 28 and ResNet-8 of width 8 at 14 x 14, batches of 128 of Fashion-MNIST. Hosts: a plain
loop; Composer's Trainer, without training metrics and with them; our recipe's `train`, with them; Lightning's Trainer.
Techniques: in the plain loop by our objects, in Composer and Lightning by our classes, each beside the host's own
step without it. All arms of a table train at once, each in a thread that waits while the others have their turns of a
few steps: so a round is short, and what other programs do to the processor's clock is the same for all of it. A time is
a tenth of the median of the thread's for ten steps in a row, among which our `train` measures the training's metrics
once; what comes once an epoch is not in it. Costs differ by points from process to process, by where memory lies, and
within one hardly: so they are means over several processes.
"""

import argparse
import contextlib
import copy
import io
import logging
import math
import os
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from statistics import fmean, median, stdev
from typing import Any

import torch
from composer import Algorithm, Callback, Trainer
from composer.core import Event
from composer.models import ComposerClassifier
from lightning import pytorch as pl
from plain import TECHNIQUES, Loop
from torch import nn
from torch.nn import functional as F

from accelerando.algorithms import Distillation, LabelSmoothing, MagnitudePruning, MixUp, lightning
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.images import FashionMnist
from accelerando.recipes.models import builders
from accelerando.recipes.run.building import build
from accelerando.recipes.run.training import join_ranks
from harness import Medians, hardware, keep_memory, measure, report, versions

# Lightning sets it, and then Composer, which asks many times a step whether there is a GPU, loads NVML each time.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

Measured = dict[str, Medians]  # by the title of a table
BATCH, DENSITY = 128, 0.2
TOGETHER = 10
ENDLESS = "100000ep"
NETWORKS: dict[str, dict[str, Any]] = {
    "LeNet-300-100": {"model": {"lenet_300_100": {}}, "train_data": {"fashion_mnist": {"split": "train[:12800]"}}},
    "ResNet-8": {
        "model": {"resnet_cifar": {"depth": 8, "width": 8, "in_channels": 1}},
        "train_data": {"fashion_mnist": {"split": "train[:12800]", "resize": 14}},
    },
}


# The same for each host as `plain.TECHNIQUES` for the plain loop.
IN_COMPOSER: dict[str, Callable[[nn.Module], Algorithm]] = {
    "LabelSmoothing": lambda network: LabelSmoothing(0.1),
    "MixUp": lambda network: MixUp(0.2),
    "Distillation": lambda network: Distillation([copy.deepcopy(network)]),
    "MagnitudePruning": lambda network: MagnitudePruning(DENSITY, start="0ba", end="1ba", interval="1ba"),
}
IN_LIGHTNING: dict[str, Callable[[nn.Module], pl.Callback]] = {
    "LabelSmoothing": lambda network: lightning.LabelSmoothing(0.1),
    "MixUp": lambda network: lightning.MixUp(0.2),
    "Distillation": lambda network: lightning.Distillation([copy.deepcopy(network)]),
    "MagnitudePruning": lambda network: lightning.MagnitudePruning(DENSITY, start="0ba", end="1ba", interval="1ba"),
}


class Idle(Algorithm):
    """One that does nothing, at the events of each step at which another one acts: what is left is Composer's own cost
    of a call."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = frozenset(events)

    def match(self, event: Event, state: Any) -> bool:
        return event in self.events

    def apply(self, event: Event, state: Any, logger: Any) -> None:
        pass


def events_of(algorithm: Any, network: nn.Module, data: Any) -> set[Event]:
    """At which events it acts in every step, once it is at work."""
    counts: Counter[Event] = Counter()
    apply = algorithm.apply

    def counted(event: Event, state: Any, logger: Any) -> Any:
        counts[event] += state.timestamp.batch.value >= 2
        return apply(event, state, logger)

    algorithm.apply = counted
    composer_trainer(network, data, algorithm, max_duration="6ba").fit()
    return {event for event, count in counts.items() if count >= 3}


class InTurns:
    """A training in a thread of its own, which makes so many steps at each call, and then waits for the next.

    `train` is given what to call when a step begins. A call returns seconds of a step.
    """

    def __init__(self, train: Callable[[Callable[[], None]], object], steps: int) -> None:
        self.train, self.steps, self.threads = train, steps, torch.get_num_threads()
        self.times: list[float] = []
        self.error: BaseException | None = None
        self.go, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self) -> float:
        self.go.release()
        self.waits.acquire()
        if self.error:
            raise self.error
        return typical(self.times)

    def _run(self) -> None:
        self.go.acquire()
        torch.set_num_threads(self.threads)  # which each thread has for itself
        try:
            self.train(self._begins)
            raise RuntimeError("the training has come to an end")
        except BaseException as error:
            self.error = error
            self.waits.release()

    def _begins(self) -> None:
        self.times.append(time.thread_time())
        if len(self.times) > self.steps:
            self.waits.release()
            self.go.acquire()
            self.times = [time.thread_time()]


class Starts(Callback):
    """Tells when a step begins."""

    def __init__(self, begins: Callable[[], None]) -> None:
        self.begins = begins

    def batch_start(self, state: Any, logger: Any) -> None:
        self.begins()


class LightningStarts(pl.Callback):
    """The same in Lightning."""

    def __init__(self, begins: Callable[[], None]) -> None:
        self.begins = begins

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begins()


class Module(pl.LightningModule):
    """A user's module; its loss is what callbacks make of it, where there are any that do."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return lightning.training_loss(self, F.cross_entropy, self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Bare(Module):
    """One that does not know our callbacks."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def typical(times: list[float]) -> float:
    return median(after - before for before, after in zip(times, times[TOGETHER:], strict=False)) / TOGETHER


def in_a_loop(network: nn.Module, data: Any, steps: int, technique: str = "plain") -> Callable[[], float]:
    loop = Loop(network, TECHNIQUES[technique])

    def train(begins: Callable[[], None]) -> None:
        while True:
            for inputs, target in data:
                begins()
                loop(inputs, target)

    return InTurns(train, steps)


def fitted(trainer: Trainer, steps: int) -> Callable[[], float]:
    def train(begins: Callable[[], None]) -> None:
        trainer.state.callbacks.append(Starts(begins))
        trainer.fit(duration=ENDLESS)

    return InTurns(train, steps)


def composer_trainer(
    network: nn.Module, data: Any, algorithms: Any = (), metrics: bool = False, **options: Any
) -> Trainer:
    model = ComposerClassifier(copy.deepcopy(network), num_classes=10, loss_fn=F.cross_entropy)
    if not metrics:
        model.get_metrics = lambda is_train=False: {}  # type: ignore[method-assign]
    return Trainer(
        model=model,
        train_dataloader=data,
        optimizers=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
        algorithms=algorithms,
        progress_bar=False,
        device="cpu",
        **options,
    )


def in_lightning(network: nn.Module, data: Any, steps: int, callback: Any = None) -> Callable[[], float]:
    def train(begins: Callable[[], None]) -> None:
        trainer = pl.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[LightningStarts(begins), *([callback(network)] if callback else [])],
        )
        trainer.fit((Module if callback else Bare)(copy.deepcopy(network)), data)

    return InTurns(train, steps)


def in_our_train(config: Mapping[str, Any], folder: str, steps: int) -> Callable[[], float]:
    recipe = check(
        {
            "run_name": "loop",
            "folder": folder,
            "max_duration": ENDLESS,
            "save_interval": ENDLESS,
            "global_batch_size": BATCH,
            "optimizer": {"torch.optim:SGD": {"lr": 0.01, "momentum": 0.9}},
            "device": "cpu",
            **config,
        }
    )
    run = build(recipe, device=join_ranks(recipe), checkpoint=None, name="loop", watch=None)
    return fitted(run.trainer, steps)


def hosts(name: str, network: nn.Module, data: Any, given: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "plain loop": in_a_loop(network, data, given.steps),
            "Composer": fitted(composer_trainer(network, data), given.steps),
            "Composer, its training metrics": fitted(composer_trainer(network, data, metrics=True), given.steps),
            "our train, training metrics": in_our_train(NETWORKS[name], folder, given.steps),
            "Lightning": in_lightning(network, data, given.steps),
        }
        with contextlib.redirect_stderr(io.StringIO()):  # where our train tells how far it is
            return {"hosts": measure(arms, given.rounds, torch.device("cpu"))}


def techniques(name: str, network: nn.Module, data: Any, given: argparse.Namespace) -> Measured:
    """Each beside the host's empty step."""
    found: Measured = {}
    for title in IN_COMPOSER:
        idle = events_of(IN_COMPOSER[title](network), network, data)
        arms = {
            "plain loop": in_a_loop(network, data, given.steps),
            f"plain loop, {title}": in_a_loop(network, data, given.steps, title),
            "Composer": fitted(composer_trainer(network, data), given.steps),
            f"Composer, {title}": fitted(composer_trainer(network, data, IN_COMPOSER[title](network)), given.steps),
            "Composer, nothing": fitted(composer_trainer(network, data, Idle(idle)), given.steps),
            "Lightning": in_lightning(network, data, given.steps),
            f"Lightning, {title}": in_lightning(network, data, given.steps, IN_LIGHTNING[title]),
        }
        found[title] = measure(arms, given.rounds, torch.device("cpu"))
    return found


PARTS = {"hosts": hosts, "techniques": techniques}


def in_a_process(name: str, given: argparse.Namespace) -> Measured:
    """All tables of a network, as this process finds them: how its memory lies is of weight, too."""
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    config = NETWORKS[name]
    ((model, arguments),) = config["model"].items()
    network = getattr(builders, model)(**arguments).module
    data = FashionMnist(**config["train_data"]["fashion_mnist"]).build(BATCH, True, 17, "cpu").dataloader
    found: Measured = {}
    for part in given.only:
        found |= PARTS[part](name, network, data, given)
    return found


def tell(name: str, title: str, found: Sequence[Medians]) -> None:
    """The table of all processes' rounds; below it what follows from it, by each process."""
    pooled = Medians({arm: [time for each in found for time in each.taken[arm]] for arm in found[0]})
    if title == "hosts":
        ratios = [each.ratio("our train, training metrics", "Composer") for each in found]
        notes = f"our train / Composer without training metrics {_mean(ratios, '.3f')}"
    else:
        costs = []
        for host in ("Composer", "Lightning"):
            each_cost = [each.quartiles(partial(_cost, host, title))[1] for each in found]
            shares = [cost / each[host] for cost, each in zip(each_cost, found, strict=True)]
            costs.append(f"{host} {fmean(each_cost) * 1e3:.3f} ms, {_mean(shares, '.1%')}")
        calls = [each.quartiles(lambda taken: taken["Composer, nothing"] - taken["Composer"])[1] for each in found]
        notes = (
            "the callback's cost over the plain loop's technique, and as a share of the host's empty step: "
            f"{'; '.join(costs)}; Composer's own for calling an algorithm at these events, which does nothing: "
            f"{fmean(calls) * 1e3:.3f} ms"
        )
    report(f"{name}: {title}", pooled, "plain loop", notes)


def _cost(host: str, title: str, taken: Mapping[str, float]) -> float:
    """What a technique adds to a host's step beyond what it adds to the plain loop's, in the same round."""
    return taken[f"{host}, {title}"] - taken[host] - (taken[f"plain loop, {title}"] - taken["plain loop"])


def _mean(values: Sequence[float], form: str) -> str:
    """Of the processes, of each of which a value is the median over its rounds, with the standard error."""
    if len(values) == 1:
        return f"{values[0]:{form}} (one process)"
    error = stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):{form}} (standard error {error:{form}}; {min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="one after the other")
    parser.add_argument("--rounds", type=int, default=60, help="counted rounds of each process")
    parser.add_argument("--steps", type=int, default=TOGETHER, help="of each arm in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    given = parser.parse_args()
    if given.steps < TOGETHER:
        parser.error(f"--steps {given.steps}: expected {TOGETHER} at least, which are timed together")
    torch.set_num_threads(given.threads)
    print(
        f"{hardware(torch.device('cpu'))}; {versions()}; batches of {BATCH}; "
        f"{given.processes} processes of {given.rounds} rounds of {given.steps} steps"
    )
    pool = get_context("spawn").Pool(1, maxtasksperchild=1)
    for name in given.network:
        found = pool.starmap(in_a_process, [(name, given)] * given.processes, chunksize=1)
        for title in found[0]:
            tell(name, title, [each[title] for each in found])
    pool.close()
    pool.join()


if __name__ == "__main__":
    keep_memory()
    main()
