"""The four algorithms against Composer's own, arms taken in turn within one run: medians, ratios, run counts.

    python benchmarks/speedups.py [--runs 25] [--batch 8] [--device cpu]

ResNet-50 at 224 x 224: the whole step, forward and backward, plain, with Composer's and with ours. Labels: what the
algorithm itself does to a batch's targets or inputs, for ImageNet's 1000 classes and for BERT's vocabulary of 30522.
"""

import argparse
import copy
import warnings
from collections.abc import Callable

import composer.functional as theirs
import torch
import torchvision
from composer.loss.utils import ensure_targets_one_hot
from harness import hardware, keep_memory, measure, report, versions
from torch import Tensor, nn
from torch.nn import functional as F

import accelerando.algorithms as ours


def resnet50_steps(runs: int, batch: int, device: torch.device, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.resnet50()
    images, labels = torch.randn(batch, 3, 224, 224, device=device), torch.randint(1000, (batch,), device=device)

    def step(model: nn.Module, images: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            model.zero_grad()

        return run

    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        arms = {}
        for arm, surgery in (("plain", None), ("Composer", theirs.apply_blurpool), ("ours", ours.apply_blurpool)):
            model = copy.deepcopy(plain)
            if surgery is not None:
                surgery(model)
            model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
            arms[arm] = step(model, images.to(memory_format=memory_format))
        medians = measure(arms, runs, device)
        added = {arm: medians[arm] - medians["plain"] for arm in ("Composer", "ours")}
        report(
            f"BlurPool: ResNet-50 step, {name}",
            medians,
            "plain",
            f"added: Composer {added['Composer'] * 1e3:.1f} ms, ours {added['ours'] * 1e3:.1f} ms, "
            f"ours / Composer {added['ours'] / added['Composer']:.2f}",
        )

    models = {arm: copy.deepcopy(plain).to(device) for arm in ("plain", "Composer", "ours")}
    theirs.apply_channels_last(models["Composer"])
    ours.apply_channels_last(models["ours"])
    converted = ours.channels_last.batch_channels_last
    arms = {arm: step(models[arm], images) for arm in ("plain", "Composer")}
    arms["ours"] = lambda: step(models["ours"], converted(images))()
    report("ChannelsLast: ResNet-50 step, inputs as a loader gives them", measure(arms, runs, device), "Composer")


def label_arithmetic(runs: int, device: torch.device) -> None:
    for title, rows, classes in (("1000 classes, 256 images", 256, 1000), ("BERT, 2048 tokens of 30522", 2048, 30522)):
        logits, target = torch.randn(rows, classes, device=device), torch.randint(classes, (rows,), device=device)
        arms = {
            "Composer": lambda x=logits, y=target: theirs.smooth_labels(x, y, 0.1),
            "ours": lambda x=logits, y=target: ours.smooth_labels(x, y, 0.1),
        }
        report(f"LabelSmoothing: index targets, {title}", measure(arms, 5 * runs, device), "Composer")
        permuted = target[torch.randperm(rows, device=device)]

        def composers_mix(x=logits, y=target, other=permuted):
            return 0.7 * ensure_targets_one_hot(x, y) + 0.3 * ensure_targets_one_hot(x, other)

        def our_mix(x=logits, y=target, other=permuted):
            return ours.mixup.mix_targets(x, y, other, 0.3)

        arms = {"Composer": composers_mix, "ours": our_mix}
        report(f"MixUp: targets, {title}", measure(arms, 5 * runs, device), "Composer")

    images, target = torch.randn(64, 3, 224, 224, device=device), torch.randint(1000, (64,), device=device)
    indices = torch.randperm(64)
    arms = {
        "Composer": lambda: theirs.mixup_batch(images, target, 0.3, indices=indices),
        "ours": lambda: ours.mixup_batch(images, target, 0.3, indices=indices),
    }
    report("MixUp: inputs, 64 images of 224 x 224", measure(arms, 5 * runs, device), "Composer")


def graph_breaks() -> None:
    """Counted with plain torch.compile; Composer's layers read their padding from a tensor."""
    images = torch.randn(1, 3, 64, 64)
    print("\nBlurPool: graph breaks of a compiled ResNet-50")
    for arm, surgery in (("Composer", theirs.apply_blurpool), ("ours", ours.apply_blurpool)):
        model = torchvision.models.resnet50()
        surgery(model)
        torch._dynamo.reset()
        explained = torch._dynamo.explain(model)(images)  # type: ignore[operator]
        print(f"  {arm:8}  {explained.graph_break_count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="counted rounds; five times as many for the small parts")
    parser.add_argument("--batch", type=int, default=8, help="images in a ResNet-50 step")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--bf16", action="store_true", help="run the ResNet-50 steps under bfloat16 autocast")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{hardware(arguments.device)}; {versions()}; {'bf16' if arguments.bf16 else 'float32'}\n"
        f"ResNet-50 steps: batch {arguments.batch}, medians of {arguments.runs} runs; "
        f"the rest: medians of {5 * arguments.runs} runs"
    )
    precision = torch.bfloat16 if arguments.bf16 else torch.float32
    resnet50_steps(arguments.runs, arguments.batch, arguments.device, precision)
    label_arithmetic(arguments.runs, arguments.device)
    graph_breaks()


if __name__ == "__main__":
    keep_memory()
    main()
