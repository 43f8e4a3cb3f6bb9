"""Every figure of this project that a GPU decides, in one command and one text file; arms in turn: medians, ratios.

    python benchmarks/gpu.py [--minutes 8] [--only blurpool masks ...] [--out FILE]
    python benchmarks/gpu.py --small --device cpu

ResNet-50 at 224 x 224 in batches of 256 and BERT-base's masked LM with 128 sentences of 128 tokens, in bfloat16
autocast: BlurPool and ChannelsLast, targets of label smoothing and MixUp, distillation, LabelledPositions, pruning, and
how often the host waits for the device. `--small` is the same in sizes that a CPU bears, which tells that it runs and
nothing else. What needs Composer, torchvision or transformers is left out where they are missing, and a line says so.
The minutes are shared out by the weights in `PARTS`: the number of rounds follows from them, and stands in each title.
"""

import argparse
import contextlib
import io
import logging
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pruning
import speedups
import torch
from plain import BASE, TECHNIQUES, Distilled, Loop, Plain, masked_lm, sentences, vision
from torch import Tensor, nn
from torch.nn import functional as F

import accelerando.algorithms as ours
from accelerando.algorithms.labelled_positions import HeadPositions
from harness import hardware, host_reads, keep_memory, measure, missing, peak_memory, report, versions

TEACHERS = 3
COMPOSER = "composer.functional"
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


class Given(argparse.Namespace):
    """Sizes, and the seconds that the next measurement of a part may take."""

    until, measurements = math.inf, 1

    def start(self, seconds: float, measurements: int) -> None:
        self.until, self.measurements = time.perf_counter() + seconds, measurements

    @property
    def seconds(self) -> float:
        share = max(0.0, self.until - time.perf_counter()) / max(self.measurements, 1)
        self.measurements -= 1
        return share


def images(given: Given) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(given.batch, 3, given.side, given.side, device=given.device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs, torch.randint(1000, (given.batch,), device=given.device)


def network(given: Given) -> nn.Module:
    torch.manual_seed(0)
    return vision(given.networks[0]).to(given.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def distillation(given: Given) -> None:
    inputs, target = images(given)
    plain = network(given)

    def arm(count: int, per_step: int | None = None) -> Loop:
        teachers = [network(given) for _ in range(count)]
        return Loop(plain, lambda model, optimizer: Distilled(teachers, per_step), given.bf16)

    loops = {
        "plain": Loop(plain, TECHNIQUES["plain"], given.bf16),
        "one teacher": arm(1),
        f"one drawn of {TEACHERS}": arm(TEACHERS, 1),
        f"all {TEACHERS}": arm(TEACHERS),
    }
    arms: dict[str, Callable[[], object]] = {n: lambda loop=loop: loop(inputs, target) for n, loop in loops.items()}
    medians = measure(arms, given.runs, given.device, given.seconds)
    bare, one, drawn, every = medians.values()
    size = f"{given.batch} images of {given.side} x {given.side}"
    report(
        f"Distillation: {given.networks[0]} step, {size}, teachers of the same size",
        medians,
        "plain",
        f"one drawn of {TEACHERS} / one teacher {drawn / one:.3f}, all {TEACHERS} / one teacher {every / one:.2f}, "
        f"added by one teacher / plain {(one - bare) / bare:.3f}",
    )


class MaskedLM(Plain):
    """Hugging Face's own loss; its labels are those of the rows that the head is given."""

    def __init__(self, index: Tensor | None):
        self.index, self.head = index, None

    def loss(self, model: Any, inputs: Any, target: Tensor) -> Tensor:
        if self.index is not None:
            self.head = self.head or HeadPositions(model)
            self.head.index, target = self.index, target.flatten()[self.index]
        return model(**inputs, labels=target).loss


def labelled_positions(given: Given) -> None:
    torch.manual_seed(0)
    batch = {name: value.to(given.device) for name, value in sentences(given.sentences).items()}
    target = batch.pop("labels")
    index = (target.flatten() != -100).nonzero().flatten()
    model = masked_lm(given.sizes).to(given.device)
    loops = {
        "plain": Loop(model, lambda model, optimizer: MaskedLM(None), given.bf16),
        "LabelledPositions": Loop(model, lambda model, optimizer: MaskedLM(index), given.bf16),
    }
    arms: dict[str, Callable[[], object]] = {n: lambda loop=loop: loop(batch, target) for n, loop in loops.items()}
    medians = measure(arms, given.runs, given.device, given.seconds)
    size = f"{given.sentences} sentences of {target.shape[1]} tokens, {len(index) / target.numel():.0%} with a label"
    report(f"LabelledPositions: masked LM step, width {given.sizes['hidden_size']}, {size}", medians, "plain")
    if given.device.type != "cuda":
        print("  peak memory of a step: left out, as it is measured on a GPU alone")
        return
    peaks = {name: peak_memory(arm, given.device) for name, arm in arms.items()}
    for name, peak in peaks.items():
        ratio = peak / max(peaks["plain"], 1)
        print(f"  peak memory of a step, {name:17}  {peak / 2**20:10.0f} MiB  {ratio:7.3f} x plain")


def print_reads(title: str, reads: dict[str, int]) -> None:
    print(f"\nHost reads: {title}; of one steady step")
    for name, count in reads.items():
        verdict = "as many as the plain step" if count <= reads["plain"] else "MORE than the plain step"
        print(f"  {name:16}  {count:4}   {verdict}")


def reads_in_a_loop(given: Given) -> None:
    inputs, target = images(given)
    plain, reads = network(given), {}
    for name, technique in TECHNIQUES.items():
        loop = Loop(plain, technique, given.bf16)
        for _ in range(3):
            loop(inputs, target)
        reads[name] = host_reads(lambda loop=loop: loop(inputs, target), given.device)
    print_reads("plain loop", reads)


def reads_in_composer(given: Given) -> None:
    """Of each class of ours in a Trainer without training metrics; what is drawn or chosen at the start is over."""
    from composer import Trainer
    from composer.models import ComposerClassifier

    algorithms: dict[str, Callable[[], Sequence[Any]]] = {
        "plain": lambda: [],
        "BlurPool": lambda: [ours.BlurPool()],
        "ChannelsLast": lambda: [ours.ChannelsLast()],
        "LabelSmoothing": lambda: [ours.LabelSmoothing(0.1)],
        "MixUp": lambda: [ours.MixUp(0.2)],
        "Distillation": lambda: [ours.Distillation([classifier()])],
        "MagnitudePruning": lambda: [ours.MagnitudePruning(0.2, start="0ba", end="1ba", interval="1ba")],
    }

    def classifier() -> ComposerClassifier:
        model = ComposerClassifier(vision(given.networks[0]), num_classes=1000, loss_fn=F.cross_entropy)
        model.get_metrics = lambda is_train=False: {}  # type: ignore[method-assign]
        return model

    batch, reads = [value.cpu() for value in images(given)], {}
    for name, build in algorithms.items():
        model = classifier()
        trainer = Trainer(
            model=model,
            train_dataloader=[batch],
            device_train_microbatch_size=given.batch,
            optimizers=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
            algorithms=build(),
            precision="amp_bf16" if given.bf16 else "fp32",
            device="gpu" if given.device.type == "cuda" else "cpu",
            progress_bar=False,
        )
        trainer.fit(duration="3ba")
        one, two = (
            host_reads(lambda trainer=trainer, n=n: trainer.fit(duration=f"{n}ba"), given.device) for n in (1, 2)
        )
        reads[name] = two - one  # without the start and the end of a fit
        trainer.close()
    print_reads("Composer's Trainer", reads)


@dataclass(frozen=True, kw_only=True)
class Part:
    """`weight`: its share of the time; `measurements`: of how many calls of `measure` it consists."""

    run: Callable[[Any], None]
    weight: float
    measurements: int = 1
    needs: tuple[str, ...] = ()
    without: str = ""  # what is said of a module that is missing, and not needed


PARTS = {
    "blurpool": Part(run=speedups.blurpool, weight=4, measurements=2, needs=("torchvision",), without=COMPOSER),
    "channels_last": Part(run=speedups.channels_last, weight=3, needs=("torchvision",), without=COMPOSER),
    "targets": Part(run=speedups.label_arithmetic, weight=1, measurements=5, without=COMPOSER),
    "distillation": Part(run=distillation, weight=3, needs=("torchvision",)),
    "labelled_positions": Part(run=labelled_positions, weight=2, needs=("transformers",)),
    "selection": Part(run=pruning.selection, weight=2, measurements=2, needs=("torchvision",)),
    "enforcement": Part(run=pruning.enforcement, weight=3, needs=("torchvision",)),
    "masks": Part(run=pruning.masks_in_checkpoint, weight=0.5, needs=("torchvision",)),
    "reads": Part(run=reads_in_a_loop, weight=1, needs=("torchvision",)),
    "reads_in_composer": Part(run=reads_in_composer, weight=1, needs=("torchvision", "composer")),
    "scores": Part(run=pruning.scores, weight=1, needs=("torchvision",)),
}


def run_part(name: str, given: Given, seconds_left: float, weight_left: float) -> None:
    part = PARTS[name]
    if reasons := [*filter(None, map(missing, part.needs))]:
        print(f"\n{name}: left out, {'; '.join(reasons)}")
    elif seconds_left <= 0:
        print(f"\n{name}: left out, the {given.minutes:g} minutes are over")
    else:
        if part.without and (reason := missing(part.without)):
            print(f"\n{name}: without Composer's arm, {reason}")
        given.start(seconds_left * part.weight / weight_left, part.measurements)
        try:
            part.run(given)
        except Exception as error:  # the other parts are worth their time
            print(f"\n{name}: failed, {type(error).__name__}: {' '.join(str(error).split())}")
            traceback.print_exc()
        if given.device.type == "cuda":
            torch.cuda.empty_cache()


class Both(io.TextIOBase):
    """Prints to two places, at once, so that what a stopped run has found is there."""

    def __init__(self, *places: TextIO):
        self.places = places

    def write(self, text: str) -> int:
        for place in self.places:
            place.write(text)
            place.flush()
        return len(text)


@contextlib.contextmanager
def written(file: Path) -> Iterator[None]:
    with open(file, "w") as place, contextlib.redirect_stdout(Both(sys.stdout, place)):
        yield


def short_name(device: torch.device) -> str:
    """Such as h100; of a GPU, what comes after the maker's name."""
    if device.type != "cuda":
        return device.type
    words = torch.cuda.get_device_name(device).lower().replace("nvidia", "").split()
    return words[0] if words else "cuda"


def parse(arguments: Sequence[str] | None = None) -> Given:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--small", action="store_true", help="tiny networks: tells that it runs, and nothing else")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="by default gpu.DEVICE.txt beside this file; with --small none")
    given = parser.parse_args(arguments, Given())
    if given.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; on a CPU it runs with --small --device cpu")
    if given.device.type != "cuda" and not given.small:
        parser.error(f"its sizes are those of a GPU; on {given.device} it runs with --small")
    sizes = {"runs": 100, "batch": 256, "side": 224, "tokens": 2048, "sentences": 128, "sizes": BASE, "bf16": True}
    if given.small:
        sizes = {"runs": 1, "batch": 2, "side": 32, "tokens": 32, "sentences": 2, "sizes": TINY, "bf16": False}
    given.networks = ["ShuffleNet"] if given.small else [*pruning.NETWORKS]
    given.scored, given.samples = ("ShuffleNet", 10) if given.small else ("ResNet-18", 100)
    vars(given).update(sizes)
    return given


def main(given: Given) -> None:
    end = time.perf_counter() + 60 * given.minutes
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    where = given.out or (None if given.small else Path(__file__).with_name(f"gpu.{short_name(given.device)}.txt"))
    with written(where) if where else contextlib.nullcontext():
        print(f"{hardware(given.device)}; {versions()}")
        if given.small:
            print("small networks, which tell that it runs, and nothing else")
        left = list(given.only)
        while left:
            weight = sum(PARTS[name].weight for name in left)
            run_part(left.pop(0), given, end - time.perf_counter(), weight)
        print(f"\n{given.minutes - (end - time.perf_counter()) / 60:.1f} of {given.minutes:g} minutes")


if __name__ == "__main__":
    keep_memory()
    main(parse())
