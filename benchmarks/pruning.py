"""What pruning costs, beside torch.nn.utils.prune and plain references; arms in turn within one run: medians, ratios.

    python benchmarks/pruning.py [--runs 7] [--batch 32] [--device cpu] [--only selection enforcement masks scores]

Selection by magnitude over all layers, of the weights of ResNet-50 and of BERT-base, and its peak memory; masks that
hold in the steps of ResNet-50 at 224 x 224 (on GPUs in bfloat16 autocast and channels_last); what masks add to a
checkpoint; scores of SNIP, GraSP and SynFlow beside their formulas.
"""

import argparse
import copy
import io
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from plain import vision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from accelerando.algorithms.pruning import apply_masks, keep_highest, kept_counts, mask_gradients, prunable_weights
from accelerando.algorithms.pruning.criteria import grasp, magnitude, snip, synflow
from accelerando.algorithms.pruning.enforcement import bits_of, mask_optimizers
from accelerando.algorithms.pruning.masks import Masks, packed
from harness import hardware, keep_memory, measure, peak_memory, report, versions, wait

DENSITY = 0.2
NETWORKS = ("ResNet-50", "BERT-base")
PARAMETERS = {"ShuffleNet": 1_366_792, "ResNet-50": 25_557_032, "BERT-base": 109_482_240}  # of the whole networks
# glibc returns what is freed at once, so that the resident set is what is in use, and no memory is counted twice.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Weights = dict[str, nn.Parameter]


def claim(what: str, figure: float, bound: float, at_least: bool = False) -> None:
    holds = figure >= bound if at_least else figure <= bound
    asked = f"asked for: at {'least' if at_least else 'most'} {bound:g}"
    print(f"  {what:56}  {figure:10.5g}   {asked:26}  {'holds' if holds else 'does not hold'}")


def weights_of(network: str, device: torch.device) -> Weights:
    torch.manual_seed(0)
    if network != "BERT-base":
        return prunable_weights(vision(network).to(device))
    # Query, key, value, output and the two of the feed-forward part in each of twelve layers, and the pooler.
    shapes = 12 * [*4 * [(768, 768)], (3072, 768), (768, 3072)] + [(768, 768)]
    return {str(i): nn.Parameter(torch.randn(shape, device=device) * 0.02) for i, shape in enumerate(shapes)}


class Layer(nn.Module):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight


def select(weights: Weights) -> Masks:
    kept = kept_counts({name: weight.numel() for name, weight in weights.items()}, DENSITY)
    return keep_highest(magnitude(weights), kept)


def select_by_torch(layers: Mapping[str, Layer]) -> None:
    pairs = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=1 - DENSITY)


def selection(given: argparse.Namespace) -> None:
    for network in given.networks:
        weights = weights_of(network, given.device)
        found: dict[str, Mapping[str, Tensor]] = {}

        def ours(weights=weights, found=found) -> None:
            found["ours"] = select(weights)

        def theirs(weights=weights, found=found) -> float:
            layers = {name: Layer(weight) for name, weight in weights.items()}
            wait(given.device)
            start = time.perf_counter()
            select_by_torch(layers)
            wait(given.device)
            seconds = time.perf_counter() - start
            found["torch"] = {name: layer.get_buffer("weight_mask") for name, layer in layers.items()}
            return seconds

        medians = measure({"ours": ours, "torch": theirs}, given.runs, given.device, given.seconds)
        count = sum(weight.numel() for weight in weights.values())
        differing = compare(weights, found["ours"], found["torch"])
        equal = f"but for {differing} of the very magnitude of the threshold" if differing else "in all of them"
        report(
            f"Selection: {network}, {len(weights)} tensors, {count:,} weights, {1 - DENSITY:.0%} sparsity",
            medians,
            "ours",
            f"the same masks {equal}",
        )
        found.clear()
        peaks = {arm: peak_memory_of(network, arm, given) / (4 * count) for arm in ("ours", "torch")}
        claim("time, torch / ours", medians.ratio("torch", "ours"), 10, at_least=True)
        claim("peak memory besides the weights / weights, ours", peaks["ours"], 1.5)
        print(f"  {'the same, torch':56}  {peaks['torch']:10.5g}")


def compare(weights: Weights, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> int:
    """In how many places masks differ, which they may only in which of equal magnitudes they keep."""
    differing = torch.cat([weight.detach().abs()[ours[n] != theirs[n].bool()] for n, weight in weights.items()])
    kept = [sum(int(mask.count_nonzero()) for mask in masks.values()) for masks in (ours, theirs)]
    assert kept[0] == kept[1] and len(differing.unique()) <= 1, "the masks are not the same"
    return len(differing)


def peak_memory_of(network: str, arm: str, given: argparse.Namespace) -> int:
    """Bytes besides the weights; on a CPU in a process of its own, whose memory nothing else has used before."""
    if given.device.type == "cuda" or given.small:
        return peak_memory_here(network, arm, given.device)
    command = [sys.executable, __file__, "--device", str(given.device), "--memory-of", network, arm]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | RETURN_MEMORY)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def peak_memory_here(network: str, arm: str, device: torch.device) -> int:
    def run(weights: Weights) -> None:
        if arm == "ours":
            select(weights)
        else:
            select_by_torch({name: Layer(weight) for name, weight in weights.items()})

    run({"small": nn.Parameter(torch.randn(512, 512, device=device))})  # threads and kernels are not the selection's
    weights = weights_of(network, device)
    return peak_memory(lambda: run(weights), device)


def enforcement(given: argparse.Namespace) -> None:
    """Three networks of the same weights take the same steps, two of them with the same masks."""
    device, on_gpu = given.device, given.device.type == "cuda"
    memory_format = torch.channels_last if on_gpu else torch.contiguous_format
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, given.side, given.side, device=device).to(memory_format=memory_format)
    labels = torch.randint(1000, (given.batch,), device=device)
    dense = vision(given.networks[0]).to(device, memory_format=memory_format)  # type: ignore[call-overload]
    masked, reparametrized = copy.deepcopy(dense), copy.deepcopy(dense)
    weights = prunable_weights(masked)
    masks = select(weights)
    apply_masks(weights, masks)
    for name, mask in masks.items():
        prune.custom_from_mask(reparametrized.get_submodule(name.removesuffix(".weight")), "weight", mask)

    bits = {name: bits_of(mask, weights[name]) for name, mask in masks.items()}

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def step(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        before_update: Callable[[], None] = lambda: None,
        others: Callable[[], None] = lambda: None,
    ) -> Callable[[], None]:
        def run() -> None:
            optimizer.zero_grad()  # here, as the masking alone wants the gradients after the step
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            before_update()
            optimizer.step()
            others()

        return run

    sgd = optimizer_of(masked)

    def hold() -> None:
        """What an algorithm does besides, at its events: before the forward pass, after the update, after callbacks."""
        for _ in range(3):
            apply_masks(weights, bits)
        mask_optimizers([sgd], weights, bits)

    def hold_alone() -> None:
        mask_gradients(weights, bits)
        hold()

    arms = {
        "dense": step(dense, optimizer_of(dense)),
        "ours": step(masked, sgd, lambda: mask_gradients(weights, bits), hold),
        "torch": step(reparametrized, optimizer_of(reparametrized)),
        "masking alone": hold_alone,
    }
    medians = measure(arms, given.runs, device, given.seconds)
    assert not any(weight.detach()[~masks[name]].any() for name, weight in weights.items()), "a pruned weight is back"
    precision = "bfloat16 autocast, channels_last" if on_gpu else "float32"
    size = f"{given.batch} images of {given.side} x {given.side}"
    report(f"Enforcement: {given.networks[0]} step, {size}, {precision}", medians, "dense")
    claim("masking alone / dense", medians.ratio("masking alone", "dense"), 0.01)
    claim("ours / dense, of whole steps", medians.ratio("ours", "dense"), 1.01)
    print(f"  {'torch / dense, of whole steps':56}  {medians.ratio('torch', 'dense'):10.5g}")
    print("  Between whole steps 1 % is below the noise; the first line is the figure.")


def masks_in_checkpoint(given: argparse.Namespace) -> None:
    print("\nMasks in a checkpoint: bytes")
    for network in given.networks:
        weights = weights_of(network, given.device)
        state, file = packed(select(weights)), io.BytesIO()
        torch.save(state, file)
        prunable, dense = 4 * sum(weight.numel() for weight in weights.values()), 4 * PARAMETERS[network]
        bits, whole = state["bits"].nbytes, file.tell()
        print(f"  {network}: float32 weights {dense:,}, prunable {prunable:,}; bits {bits:,}; file {whole:,}")
        claim(f"bits / prunable float32 weights, {network}", bits / prunable, 1 / 32)
        claim(f"file / float32 weights, {network}", whole / dense, 1 / 32)


Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def plain_snip(model: nn.Module, batch: Batch) -> list[Tensor]:
    w = [*prunable_weights(model).values()]
    return [(w * g).abs() for w, g in zip(w, torch.autograd.grad(loss(model, batch), w), strict=True)]


def plain_grasp(model: nn.Module, batch: Batch) -> list[Tensor]:
    w = [*prunable_weights(model).values()]
    g = torch.autograd.grad(loss(model, batch), w, create_graph=True)
    product = torch.stack([(part * part.detach()).sum() for part in g]).sum()
    return [w * hg for w, hg in zip(w, torch.autograd.grad(product, w), strict=True)]


def plain_synflow(model: nn.Module, batch: Batch) -> list[Tensor]:
    model.double().eval()
    for parameter in model.parameters():
        parameter.data.abs_()
    w, ones = [*prunable_weights(model).values()], torch.ones_like(batch[0][:1], dtype=torch.float64)
    return [(w * d).abs() for w, d in zip(w, torch.autograd.grad(model(ones).sum(), w), strict=True)]


def scores(given: argparse.Namespace) -> None:
    torch.backends.cudnn.allow_tf32 = False  # of which both sides would round differently
    torch.manual_seed(0)
    model = vision(given.scored, num_classes=10).to(given.device)
    weights = prunable_weights(model)
    samples = given.samples
    batch = torch.randn(samples, 3, 32, 32, device=given.device), torch.arange(samples, device=given.device) % 10
    criteria: dict[str, tuple[Callable[[], Mapping[str, Tensor]], Callable[..., list[Tensor]]]] = {
        "SNIP": (lambda: snip(model, weights, [batch], loss), plain_snip),
        "GraSP": (lambda: grasp(model, weights, [batch], loss), plain_grasp),
        "SynFlow": (lambda: synflow(model, weights, batch[0]), plain_synflow),
    }
    deviations = {}
    for name, (ours, plain) in criteria.items():
        expected = plain(copy.deepcopy(model), batch)
        furthest = max((a - b).abs().max() for a, b in zip(ours().values(), expected, strict=True))
        deviations[name] = float(furthest / max(score.abs().max() for score in expected))

    trained = copy.deepcopy(model)

    def forward_and_backward() -> None:
        trained.zero_grad()
        loss(trained, batch).backward()

    arms = {"forward and backward": forward_and_backward} | {name: ours for name, (ours, _) in criteria.items()}
    medians = measure(arms, given.runs, given.device, given.seconds)
    report(f"Scores: {given.scored}, {samples} samples of 3 x 32 x 32", medians, "forward and backward")
    for name, deviation in deviations.items():
        claim(f"{name}, furthest from its formula / highest score", deviation, 1e-5)


PARTS = {"selection": selection, "enforcement": enforcement, "masks": masks_in_checkpoint, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted rounds")
    parser.add_argument("--batch", type=int, help="images in a ResNet-50 step; by default 32, on GPUs 256")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.set_defaults(seconds=math.inf, small=False, side=224, networks=NETWORKS, scored="ResNet-18", samples=100)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.batch = given.batch or (256 if given.device.type == "cuda" else 32)
    warnings.simplefilter("ignore")
    if given.memory_of:
        network, arm = given.memory_of
        print(peak_memory_here(network, arm, given.device))
        return
    print(f"{hardware(given.device)}; {versions()}")
    for part in given.only:
        PARTS[part](given)


if __name__ == "__main__":
    keep_memory()
    main()
