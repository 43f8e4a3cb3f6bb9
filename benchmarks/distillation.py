"""What distillation adds to a training step of the Composer Trainer; arms in turn within one run: medians, ratios.

    python benchmarks/distillation.py [--runs 15] [--device cuda --bf16 --images 256 --sentences 128 --base]

ResNet-50 at 224 x 224 and BERT for masked LM, students and teachers alike: one teacher, one drawn of eight, all eight;
and, for BERT with a vocabulary of 30522 of which 15 % of the positions have a label, distillation at every position, at
the labelled ones, and with the student's own head at the labelled ones too.
"""

import argparse
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from composer import Algorithm, Callback, ComposerModel, Event, State, Trainer
from composer.core import get_precision_context
from composer.models import ComposerClassifier, HuggingFaceModel
from plain import BASE, LENGTH, SMALL, masked_lm, sentences
from torch.nn import functional as F

from accelerando.algorithms import ChannelsLast, Distillation, LabelledPositions, distillation_kl
from harness import hardware, keep_memory, measure, peak_memory, report, versions, wait

TEACHERS = 8


class EveryPosition(Algorithm):
    """Distillation as it is commonly written for language models: at each position, whether it has a label or not."""

    def __init__(self, teacher: HuggingFaceModel):
        self.teacher = teacher.eval().requires_grad_(False)

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.FIT_START, Event.BEFORE_BACKWARD)

    def apply(self, event: Event, state: State, logger: Any) -> None:
        if event == Event.FIT_START:
            state.device.module_to_device(self.teacher)
            return
        with torch.no_grad(), get_precision_context(state.precision):
            batch = {name: value for name, value in state.batch.items() if name != "labels"}
            target = self.teacher(batch).logits.flatten(0, 1)
        logits = state.outputs["logits"].flatten(0, 1)  # type: ignore[call-overload,index]
        state.loss = 0.1 * state.loss + 0.9 * distillation_kl(logits, target)  # type: ignore[operator]


class Step(Callback):
    """One more step of a Trainer of its own, from the batch in hand to the end of the update; returns its seconds."""

    def __init__(self, model: ComposerModel, algorithms: Sequence[Algorithm], batch: Any, precision: str):
        model.get_metrics = lambda is_train: {}  # type: ignore[method-assign]
        samples = len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
        self.seconds = 0.0
        self.trainer = Trainer(
            model=model,
            train_dataloader=[batch],
            device_train_microbatch_size=samples,
            optimizers=torch.optim.AdamW(model.parameters(), 1e-5),
            algorithms=[*algorithms],
            callbacks=self,
            precision=precision,
            progress_bar=False,
        )

    def __call__(self) -> float:
        self.trainer.fit(duration="1ba")
        return self.seconds

    def after_dataloader(self, state: State, logger: Any) -> None:
        wait(state.device._device)  # type: ignore[arg-type]
        self.start = time.perf_counter()

    def batch_end(self, state: State, logger: Any) -> None:
        wait(state.device._device)  # type: ignore[arg-type]
        self.seconds = time.perf_counter() - self.start


def resnet() -> ComposerClassifier:
    return ComposerClassifier(torchvision.models.resnet50(), num_classes=1000, loss_fn=F.cross_entropy)


def bert(sizes: dict[str, Any]) -> HuggingFaceModel:
    return HuggingFaceModel(masked_lm(sizes))


def how_many_teachers(
    title: str, make: Callable[[], ComposerModel], batch: Any, given: argparse.Namespace, algorithms: Sequence[Any] = ()
) -> None:
    """One teacher, one drawn of eight, all eight; beside the plain step and the bare forward pass of a teacher."""
    torch.manual_seed(0)
    teachers = [make() for _ in range(TEACHERS)]
    arms: dict[str, Callable[[], object]] = {
        name: Step(make(), [*(kind() for kind in algorithms), *distillation], batch, given.precision)
        for name, distillation in {
            "plain": [],
            "one teacher": [Distillation(teachers[:1])],
            "one drawn of 8": [Distillation(teachers, teachers_per_step=1)],
            "all 8": [Distillation(teachers)],
        }.items()
    }
    on_device: Any = arms["plain"].trainer.state.device.batch_to_device(batch)  # type: ignore[attr-defined]
    if ChannelsLast in algorithms:
        on_device = [on_device[0].contiguous(memory_format=torch.channels_last), on_device[1]]
    if isinstance(batch, dict):
        on_device = {name: value for name, value in on_device.items() if name != "labels"}

    def forward() -> None:
        with torch.no_grad(), torch.autocast(given.device.type, torch.bfloat16, enabled=given.bf16):
            teachers[0](on_device)

    for arm in arms.values():
        arm()  # which moves the teachers to the device
    arms["bare teacher"] = forward
    medians = measure(arms, given.runs, given.device)
    alone = medians["plain"] + medians["bare teacher"]
    report(
        title,
        medians,
        "plain",
        f"one drawn of 8 / one teacher {medians.ratio('one drawn of 8', 'one teacher'):.3f}, "
        f"all 8 / one teacher {medians.ratio('all 8', 'one teacher'):.2f}, "
        f"one teacher / (plain + bare teacher) {medians['one teacher'] / alone:.3f}",
    )


MLM: dict[str, Callable[[Any], list[Algorithm]]] = {
    "plain": lambda make: [],
    "distilled, every position": lambda make: [EveryPosition(make())],
    "distilled, labelled positions": lambda make: [Distillation(make())],
    "the same, student's head too": lambda make: [Distillation(make()), LabelledPositions()],
    "plain, head at labelled positions": lambda make: [LabelledPositions()],
}


def mlm_step(name: str, given: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    sizes = BASE if given.base else SMALL
    batch = sentences(given.sentences)
    return Step(bert(sizes), MLM[name](lambda: bert(sizes)), batch, given.precision)


def labelled_positions(given: argparse.Namespace) -> None:
    medians = measure({name: mlm_step(name, given) for name in MLM}, given.runs, given.device)
    plain, every, labelled, both, _ = medians.values()
    report(
        "Masked LM, where is distilled",
        medians,
        "plain",
        f"added at labelled positions / added at every position {(labelled - plain) / (every - plain):.3f}, "
        f"with the student's head too: distilled / plain {both / plain:.3f}",
    )
    print("  peak memory of a step, beside weights, optimizer and teacher (a process for each)")
    peaks = {name: peak_memory_of(name) for name in MLM}
    for name, peak in peaks.items():
        print(f"  {name:{max(map(len, MLM))}}  {peak / 2**20:10.0f} MiB  {peak / peaks['plain']:7.3f} x plain")


def peak_memory_of(name: str) -> int:
    """Bytes, measured in a process of its own: this one's peak has been reached before."""
    done = subprocess.run([sys.executable, *sys.argv, "--memory-of", name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def print_peak_memory(given: argparse.Namespace) -> None:
    step = mlm_step(given.memory_of, given)
    if given.device.type == "cuda":
        step()  # makes the optimizer's state, and moves the teacher
    print(peak_memory(step, given.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="counted rounds")
    parser.add_argument("--images", type=int, default=4, help="in a ResNet-50 step")
    parser.add_argument("--sentences", type=int, default=16, help="in a BERT step")
    parser.add_argument("--base", action="store_true", help="BERT-base, in place of four layers of width 256")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--bf16", action="store_true", help="mixed precision, which Composer has on GPUs only")
    parser.add_argument("--memory-of", choices=MLM, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.precision = "amp_bf16" if given.bf16 else "fp32"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if given.memory_of:
        return print_peak_memory(given)
    size = "BERT-base" if given.base else "BERT of 4 layers, width 256"
    print(
        f"{hardware(given.device)}; {versions()}; {given.precision}; medians of {given.runs} runs\n"
        f"ResNet-50: {given.images} images of 224 x 224; {size}: {given.sentences} sentences of {LENGTH} tokens"
    )
    images = [torch.randn(given.images, 3, 224, 224), torch.randint(1000, (given.images,))]
    channels_last = [ChannelsLast] if given.device.type == "cuda" else []
    how_many_teachers("ResNet-50, how many teachers", resnet, images, given, channels_last)
    sizes = BASE if given.base else SMALL
    how_many_teachers("BERT, how many teachers", lambda: bert(sizes), sentences(given.sentences), given)
    labelled_positions(given)


if __name__ == "__main__":
    keep_memory()
    main()
