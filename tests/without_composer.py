"""Uses all of `accelerando.algorithms` that is for a loop of one's own, where no host can be imported.

A new name needs one line in `USES`; `test_without_composer.py` runs this in a process of its own.
"""

import sys
import tempfile
from pathlib import Path

HOSTS = {"composer", "lightning", "llmfoundry", "omegaconf", "pytorch_lightning", "torchmetrics", "transformers"}


class NoHosts:
    """Stands before all that finds modules."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HOSTS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoHosts())

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from accelerando import algorithms as ours  # noqa: E402

folder = Path(tempfile.mkdtemp())
image, labels = torch.randn(2, 16, 8, 8), torch.tensor([0, 2])
logits, other = torch.randn(2, 3), torch.randn(2, 3)
linear, norm = nn.Linear(4, 3), nn.BatchNorm1d(4)
optimizer = torch.optim.SGD(linear.parameters(), 0.1)
torch.save(linear.state_dict(), folder / "teacher.pt")
cycles = ours.Cycles.of(1, 1, 2)


def network():
    return nn.Sequential(nn.Conv2d(16, 16, 3, 2), nn.MaxPool2d(2))


def add_point(schedule):
    curve = ours.Curve(schedule)
    return curve.due(2) and curve.add(2, accuracy=0.5)


def write_snapshot():
    ours.SnapshotWriter(folder, ["0ba"])(linear, 0)
    return ours.find_snapshot(folder, "0ba")


def changed(change):
    model = network()
    change(model)
    return model(image)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def diagonal():
    return ours.hessian_diagonal(linear, [batch], cross_entropy, 2)


def eigenvalues():
    return ours.hessian_eigenvalues(linear, [batch], cross_entropy)


def plane():
    return ours.plane_through([nn.Linear(4, 3).state_dict() for _ in range(3)])


def plane_metrics():
    return ours.evaluate_plane(linear, plane(), [batch], points=2)


def traced():
    return ours.trace_multiply_adds(linear, lambda model: model(batch[0]))


def saved_masks():
    ours.save_masks(folder / "masks.safetensors", masks)
    return ours.load_masks(folder / "masks.safetensors", weights)


def scores():
    return ours.score_examples([linear, linear], [batch])


def saved_scores():
    ours.save_scores(folder / "scores.safetensors", scores(), ours.data_digest(batch))
    return ours.load_scores(folder / "scores.safetensors", ours.data_digest(batch), 6)


def saved_set():
    ours.save_distilled(folder / "set.safetensors", image, labels)
    return ours.load_distilled(folder / "set.safetensors")


def path():
    ends = (linear.state_dict(), {name: value + 1 for name, value in linear.state_dict().items()})
    return ours.evaluate_path(linear, ends, 3, [batch])


def curves():
    values = {"start": 0, "end": 9, "alphas": [0.0, 1.0], "curves": {"eval/loss": [2.0, 1.0]}, "distance": 1.0}
    return ours.PathCurves(**values, outside=[])


def refused(kind, what, *arguments):
    try:
        return what(*arguments) and None
    except kind as error:
        return str(error)


def measured():
    lines = ["density,error"] + [f"{0.8**i},{law.error(0.1, 0.8**i) if i else 0.1}" for i in range(20)]
    (folder / "errors.csv").write_text("\n".join(lines))
    return ours.read_measurements(folder / "errors.csv")


def fitted():
    return ours.fit_scaling_law(measured(), resamples=10)


def smallest():
    return ours.smallest_network(fitted(), [ours.PrunableNetwork(name="one", dense_error=0.1, weights=9)], 0.2)


law = ours.ScalingLaw(eps_up=0.9, gamma=1.5, p=0.05)
batch = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
weights = ours.prunable_weights(linear)
masks = ours.keep_highest(ours.magnitude(weights), 6)

USES = {
    "BlurConv2d": lambda: ours.BlurConv2d(16, 4, 3, 2)(image),
    "BlurMaxPool2d": lambda: ours.BlurMaxPool2d(2)(image),
    "BlurPool2d": lambda: ours.BlurPool2d(16)(image),
    "Curve": lambda: add_point(cycles),
    "Cycles": lambda: [cycles.ended(4), cycles.within(4), cycles.misfit(5), cycles.scaled(0.1).multiplier(0.15)],
    "DatasetDistiller": lambda: ours.DatasetDistiller(network, 1, 3, (16, 8, 8))(image, labels),
    "DistilledSet": lambda: isinstance(saved_set(), ours.DistilledSet) or None,
    "Distiller": lambda: ours.Distiller(nn.Linear(4, 3))(logits.mean(), linear(batch[0]), batch[0], 0),
    "FittedLaw": lambda: isinstance(fitted(), ours.FittedLaw) or None,
    "Forgetting": lambda: ours.Forgetting([batch], "1ba")(linear, 1) or True,
    "HeadPositions": lambda: refused(TypeError, ours.HeadPositions, linear),
    "HessianDiagonal": lambda: isinstance(diagonal(), ours.HessianDiagonal) or None,
    "HessianEigenvalues": lambda: isinstance(eigenvalues(), ours.HessianEigenvalues) or None,
    "Labelled": lambda: ours.Labelled().start(labels) or labels,
    "LayerCollapseWarning": lambda: issubclass(ours.LayerCollapseWarning, UserWarning),
    "Lottery": lambda: [*ours.Lottery(nn.Linear(4, 3), optimizer, None, levels=1, steps=2)],
    "MagnitudePruner": lambda: ours.MagnitudePruner(nn.Linear(4, 3), optimizer, 0.5).remaining(),
    "Measurements": lambda: isinstance(measured(), ours.Measurements) or None,
    "Mixer": lambda: ours.Mixer(0.2)(image, labels, 0),
    "MostlyDenseWarning": lambda: issubclass(ours.MostlyDenseWarning, UserWarning),
    "MultiplicativeCyclicLR": lambda: ours.MultiplicativeCyclicLR(optimizer, 1, 1).check_steps(4) or optimizer,
    "NoEffectWarning": lambda: issubclass(ours.NoEffectWarning, UserWarning),
    "PathCurves": lambda: curves().numbers(),
    "PathMetrics": lambda: isinstance(path(), ours.PathMetrics),
    "Plane": lambda: isinstance(plane(), ours.Plane) or None,
    "PlaneMetrics": lambda: isinstance(plane_metrics(), ours.PlaneMetrics) or None,
    "PrunableNetwork": lambda: smallest().network,
    "Pruner": lambda: ours.Pruner(nn.Linear(4, 3), optimizer).prune(masks) or masks,
    "ScalingLaw": lambda: law.error(0.1, 0.5),
    "Smoother": lambda: ours.Smoother(0.1).loss(F.cross_entropy, logits, labels),
    "Snapshot": lambda: isinstance(write_snapshot(), ours.Snapshot) and write_snapshot().weights(),
    "SnapshotWriter": lambda: write_snapshot().restore(linear) == 0,
    "Teacher": lambda: ours.Teacher(nn.Linear(4, 3))(batch[0], device=torch.device("cpu")),
    "TiedScoresWarning": lambda: issubclass(ours.TiedScoresWarning, UserWarning),
    "add_distillation": lambda: ours.add_distillation(logits.mean(), other.mean(), 0.5, 0.5),
    "apply_blurpool": lambda: changed(ours.apply_blurpool),
    "apply_channels_last": lambda: changed(ours.apply_channels_last),
    "apply_masks": lambda: ours.apply_masks(dict(nn.Linear(4, 3).named_parameters()), masks) or masks,
    "barrier": lambda: ours.barrier(path().means["loss"]),
    "batch_channels_last": lambda: ours.batch_channels_last((image, labels)),
    "blocks_of": lambda: ours.blocks_of(linear),
    "blur_2d": lambda: ours.blur_2d(image),
    "blurmax_pool2d": lambda: ours.blurmax_pool2d(image, 2),
    "class_balanced": lambda: ours.class_balanced([*zip(*batch, strict=True)], 1, 17),
    "compression_ratio": lambda: ours.compression_ratio(linear),
    "cycle_ends": lambda: next(ours.cycle_ends(1, 1)),
    "cyclic_multiplier": lambda: ours.cyclic_multiplier(1.5, 1, 1),
    "data_digest": lambda: ours.data_digest(batch),
    "dense_targets": lambda: ours.dense_targets(logits, labels),
    "disagreement": lambda: ours.disagreement([0, 1], [0, 2]),
    "distance": lambda: ours.distance({"w": logits}, {"w": other}),
    "distances": lambda: ours.distances({"w": logits}, {"w": other}),
    "distillation_kl": lambda: ours.distillation_kl(logits, other),
    "distillation_mse": lambda: ours.distillation_mse(logits, other),
    "draw_teachers": lambda: ours.draw_teachers(17, 0, 3, 2),
    "easiest_first": lambda: ours.easiest_first(scores()["el2n"]),
    "el2n": lambda: ours.el2n(logits, labels),
    "error_l1": lambda: ours.error_l1(logits, labels),
    "error_per_example": lambda: ours.error_per_example(logits, labels),
    "evaluate_path": lambda: path().means,
    "evaluate_plane": lambda: plane_metrics().means["loss"],
    "example_barriers": lambda: ours.example_barriers(logits, other, logits),
    "exponential_densities": lambda: [*ours.exponential_densities(0.1, 3)],
    "find_snapshot": lambda: write_snapshot() and ours.find_snapshot(folder, "0ba"),
    "find_snapshots": lambda: write_snapshot() and ours.find_snapshots(folder),
    "fit_power_law": lambda: ours.fit_power_law(measured()),
    "fit_scaling_law": lambda: fitted().law,
    "gradient_magnitude": lambda: ours.gradient_magnitude(linear, weights, [batch], cross_entropy),
    "gradient_norms": lambda: ours.gradient_norms(linear, *batch),
    "gradual_density": lambda: ours.gradual_density(0.5, 0.1),
    "grasp": lambda: ours.grasp(linear, weights, [batch], cross_entropy),
    "hessian_diagonal": lambda: diagonal().values,
    "hessian_eigenvalues": lambda: eigenvalues().values,
    "interpolate": lambda: ours.interpolate({"w": logits}, {"w": other}, 0.3),
    "is_monotone": lambda: ours.is_monotone([2.0, 1.0]),
    "keep_highest": lambda: ours.keep_highest(ours.magnitude(weights), 6),
    "kept_counts": lambda: ours.kept_counts({"weight": 12}, 0.5),
    "largest_rise": lambda: ours.largest_rise([2.0, 1.0]),
    "layers_of": lambda: ours.layers_of(linear),
    "level_densities": lambda: ours.level_densities(3, 0.2, "geometric"),
    "linear_path": lambda: ours.linear_path({"w": logits}, {"w": other})(0.3),
    "load_distilled": lambda: saved_set(),
    "load_masks": lambda: saved_masks(),
    "load_scores": lambda: saved_scores(),
    "load_teacher": lambda: ours.load_teacher(folder / "teacher.pt", nn.Linear(4, 3)),
    "loss_per_example": lambda: ours.loss_per_example(logits, labels),
    "magnitude": lambda: ours.magnitude(weights),
    "margins": lambda: ours.margins(logits, labels),
    "mask_gradients": lambda: ours.mask_gradients(weights, masks) or masks,
    "mask_optimizers": lambda: ours.mask_optimizers([optimizer], weights, masks) or masks,
    "mix_targets": lambda: ours.mix_targets(logits, labels, labels.flip(0), 0.3),
    "mixup_batch": lambda: ours.mixup_batch(image, labels),
    "model_size": lambda: ours.model_size(linear, traced()).table(),
    "plane_through": lambda: plane().state(0, 1),
    "prunable_weights": lambda: ours.prunable_weights(linear),
    "prune_at_init": lambda: ours.prune_at_init(linear, "snip", 0.5, [batch], F.cross_entropy),
    "random_scores": lambda: ours.random_scores(weights, torch.Generator()),
    "read_measurements": lambda: measured().error,
    "recompute_statistics": lambda: ours.recompute_statistics(norm, [norm.state_dict()] * 2, 3, [batch])(0.5),
    "save_distilled": lambda: saved_set(),
    "save_masks": lambda: saved_masks(),
    "save_scores": lambda: saved_scores(),
    "score_examples": lambda: scores()["el2n"],
    "smallest_network": lambda: smallest().weights,
    "smooth_labels": lambda: F.cross_entropy(logits, ours.smooth_labels(logits, labels)),
    "snip": lambda: ours.snip(linear, weights, [batch], cross_entropy),
    "support_mismatch": lambda: ours.support_mismatch({"w": logits}, {"w": other}),
    "synflow": lambda: ours.synflow(linear, weights, batch[0]),
    "trace_multiply_adds": lambda: traced(),
}

if __name__ == "__main__":
    own = [name for name in ours.__all__ if name in vars(ours)]
    guests = [name for name in ours.__all__ if name not in own]
    for name in own:
        if name not in USES:
            sys.exit(f"{name} has no use in {__file__}")
        if USES[name]() is None:
            sys.exit(f"the use of {name} gives nothing")
    for name in guests:
        try:
            getattr(ours, name)
        except ImportError as error:
            print(error)
        else:
            sys.exit(f"{name} came without Composer")
    if gone := USES.keys() - {*own}:
        sys.exit(f"{sorted(gone)} are no names of accelerando.algorithms")
    if hosts := HOSTS & {name.partition(".")[0] for name in sys.modules}:
        sys.exit(f"{sorted(hosts)} are imported")
