"""The four algorithms against Composer's own, arms taken in turn within one run: medians, ratios, run counts.

    python benchmarks/speedups.py [--runs 25] [--batch 8] [--device cpu]

ResNet-50 at 224 x 224: the whole step, forward and backward, plain, with Composer's and with ours. Labels: what the
algorithm itself does to a batch's targets or inputs, for ImageNet's 1000 classes and for BERT's vocabulary of 30522.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from plain import vision
from torch import Tensor, nn
from torch.nn import functional as F

import accelerando.algorithms as ours
from harness import hardware, keep_memory, measure, missing, report, versions


def step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad()

    return run


def surgeries(ours: Callable[[nn.Module], Any], name: str) -> dict[str, Callable[[nn.Module], Any]]:
    """Of a model, by arm; Composer's only where it is installed, which its functions of the same names need."""
    found: dict[str, Callable[[nn.Module], Any]] = {"plain": lambda model: None}
    if not missing("composer.functional"):
        import composer.functional as theirs

        found["Composer"] = getattr(theirs, name)
    return found | {"ours": ours}


def resnet_arms(given: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, str]:
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, given.side, given.side, device=given.device)
    labels = torch.randint(1000, (given.batch,), device=given.device)
    network = given.networks[0]
    size = f"{given.batch} images of {given.side} x {given.side}, {'bf16' if given.bf16 else 'float32'}"
    return vision(network), images, labels, f"{network} step, {size}"


def blurpool(given: argparse.Namespace) -> None:
    plain, images, labels, title = resnet_arms(given)
    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        arms = {}
        for arm, surgery in surgeries(ours.apply_blurpool, "apply_blurpool").items():
            model = copy.deepcopy(plain)
            surgery(model)
            model.to(given.device, memory_format=memory_format)  # type: ignore[call-overload]
            arms[arm] = step(model, images.to(memory_format=memory_format), labels, given.bf16)
        medians = measure(arms, given.runs, given.device, given.seconds)
        added = {arm: seconds - medians["plain"] for arm, seconds in medians.items() if arm != "plain"}
        notes = "added: " + ", ".join(f"{arm} {seconds * 1e3:.1f} ms" for arm, seconds in added.items())
        if "Composer" in added:
            notes += f", ours / Composer {added['ours'] / added['Composer']:.2f}"
        report(f"BlurPool: {title}, {name}", medians, "plain", notes)


def channels_last(given: argparse.Namespace) -> None:
    plain, images, labels, title = resnet_arms(given)
    arms = {}
    for arm, surgery in surgeries(ours.apply_channels_last, "apply_channels_last").items():
        model = copy.deepcopy(plain).to(given.device)
        surgery(model)
        arms[arm] = step(model, images, labels, given.bf16)
    model, converted = copy.deepcopy(plain).to(given.device), ours.channels_last.batch_channels_last
    ours.apply_channels_last(model)
    arms["ours"] = lambda: step(model, converted(images), labels, given.bf16)()
    medians = measure(arms, given.runs, given.device, given.seconds)
    report(f"ChannelsLast: {title}, inputs as a loader gives them", medians, "plain")


def label_arithmetic(given: argparse.Namespace) -> None:
    """What a batch's targets and inputs cost; in plain torch, where Composer is not installed."""
    runs, device = 5 * given.runs, given.device
    for title, rows, classes in (
        ("1000 classes, 256 images", 256, 1000),
        (f"BERT, {given.tokens} tokens of 30522", given.tokens, 30522),
    ):
        logits, target = torch.randn(rows, classes, device=device), torch.randint(classes, (rows,), device=device)
        permuted = target[torch.randperm(rows, device=device)]

        def smooth_one_hot(x=logits, y=target):
            return F.one_hot(y, x.shape[1]).float().mul_(0.9).add_(0.1 / x.shape[1])

        def mix_one_hot(x=logits, y=target, other=permuted):
            return 0.7 * F.one_hot(y, x.shape[1]) + 0.3 * F.one_hot(other, x.shape[1])

        smooth: dict[str, Callable[[], object]] = {"plain torch": smooth_one_hot}
        mix: dict[str, Callable[[], object]] = {"plain torch": mix_one_hot}
        if not missing("composer.functional"):
            import composer.functional as theirs
            from composer.loss.utils import ensure_targets_one_hot

            def mix_as_composer(x=logits, y=target, other=permuted, one_hot=ensure_targets_one_hot):
                return 0.7 * one_hot(x, y) + 0.3 * one_hot(x, other)

            smooth["Composer"] = lambda x=logits, y=target, smooth=theirs.smooth_labels: smooth(x, y, 0.1)
            mix["Composer"] = mix_as_composer
        smooth["ours"] = lambda x=logits, y=target: ours.smooth_labels(x, y, 0.1)
        mix["ours"] = lambda x=logits, y=target, other=permuted: ours.mixup.mix_targets(x, y, other, 0.3)
        report(f"LabelSmoothing: index targets, {title}", measure(smooth, runs, device, given.seconds), "ours")
        report(f"MixUp: targets, {title}", measure(mix, runs, device, given.seconds), "ours")

    images, target = torch.randn(64, 3, 224, 224, device=device), torch.randint(1000, (64,), device=device)
    indices = torch.randperm(64)
    there = indices.to(device)
    inputs: dict[str, Callable[[], object]] = {"plain torch": lambda: 0.7 * images + 0.3 * images[there]}
    if not missing("composer.functional"):
        import composer.functional as theirs

        inputs["Composer"] = lambda: theirs.mixup_batch(images, target, 0.3, indices=indices)
    inputs["ours"] = lambda: ours.mixup_batch(images, target, 0.3, indices=indices)
    report("MixUp: inputs, 64 images of 224 x 224", measure(inputs, runs, device, given.seconds), "ours")


def graph_breaks() -> None:
    """Counted with plain torch.compile; Composer's layers read their padding from a tensor."""
    import composer.functional as theirs

    images = torch.randn(1, 3, 64, 64)
    print("\nBlurPool: graph breaks of a compiled ResNet-50")
    for arm, surgery in (("Composer", theirs.apply_blurpool), ("ours", ours.apply_blurpool)):
        model = vision("ResNet-50")
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
    parser.set_defaults(seconds=math.inf, side=224, networks=["ResNet-50"], tokens=2048)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{hardware(given.device)}; {versions()}")
    blurpool(given)
    channels_last(given)
    label_arithmetic(given)
    graph_breaks()


if __name__ == "__main__":
    keep_memory()
    main()
