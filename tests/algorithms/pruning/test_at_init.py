import functools
import math
from itertools import product

import numpy as np
import pytest
import torch
from composer import Callback, DataSpec
from composer.algorithms.warnings import NoEffectWarning
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from accelerando.algorithms import PruneAtInit
from accelerando.algorithms.pruning import (
    LayerCollapseWarning,
    MostlyDenseWarning,
    TiedScoresWarning,
    class_balanced,
    exponential_densities,
    gradient_magnitude,
    grasp,
    keep_highest,
    kept_counts,
    magnitude,
    model_size,
    prunable_weights,
    save_masks,
    snip,
    synflow,
    trace_multiply_adds,
)
from accelerando.algorithms.pruning.masks import digest, size
from tiny import (
    CLASSES,
    Kill,
    assert_same,
    classifier,
    examples,
    fit,
    masked_lm,
    network,
    noisy_network,
    token_loader,
    trainer,
    weights,
)

TOTAL = 3376


def masks_of(pruning, **options):
    options = {"model": classifier(), "max_duration": "1ba"} | options
    fit(pruning, optimizers=torch.optim.SGD(options["model"].parameters(), 0.1), **options)
    return pruning.masks


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def balanced(seed=7):
    """The samples that the criteria see, in one batch."""
    x, y = examples()
    chosen = class_balanced([*zip(x, y, strict=True)], 4, seed)
    return x[chosen], y[chosen]


def loss(model, batch, temperature=1.0):
    return F.cross_entropy(model.module(batch[0]) / temperature, batch[1])


REFERENCES = {
    "magnitude": lambda model, names: magnitude({name: model.get_parameter(name) for name in names}),
    "gradient_magnitude": lambda model, names: gradient_magnitude(model, names, [balanced()], loss),
    "snip": lambda model, names: snip(model, names, [balanced()], loss),
    "grasp": lambda model, names: grasp(model, names, [balanced()], functools.partial(loss, temperature=200)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_criterion_chooses(name):
    model = classifier()
    names = [*prunable_weights(model)]
    options = {"temperature": 200} if name == "grasp" else {}
    for scope, kept in (("global", 1013), ("layerwise", dict(zip(names, (130, 691, 154, 38), strict=True)))):
        expected = keep_highest(REFERENCES[name](model, names), kept)
        # In microbatches of 8, whose means must add up.
        pruning = PruneAtInit(name, 0.3, samples_per_class=4, scope=scope, **options)
        masks = masks_of(pruning, device_train_microbatch_size=4)
        agree = sum(size(masks[name] & expected[name]) for name in names) / sum(map(size, expected.values()))
        assert sum(map(size, masks.values())) == sum(map(size, expected.values()))
        assert agree == 1 if name == "magnitude" else agree > 0.998  # rounding may swap two at the threshold


def test_synflow_in_a_hundred_iterations():
    """Each scores what the last has left; in one it would cut layers off."""
    model = classifier()
    held, masks = prunable_weights(model), None
    for share in exponential_densities(0.05, 100):
        scores = synflow(model, [*held], examples()[0], lambda copied, x: copied.module(x))
        masks = keep_highest(scores, math.floor(share * TOTAL + 0.5), masks)
        for name, weight in held.items():
            weight.data[~masks[name]] = 0.0
    assert same(masks_of(PruneAtInit("synflow", 0.05)), masks)
    assert not same(masks_of(PruneAtInit("synflow", 0.05, iterations=2)), masks)
    assert [*exponential_densities(0.01, 2)] == pytest.approx([0.1, 0.01])


def test_a_function_of_ones_own():
    def far_from_half(model, held, masks):
        assert [*held] == [*prunable_weights(model)] and (masks == {} or same(masks, masks))
        return {name: (weight.detach() - 0.05).abs() for name, weight in held.items()}

    held = prunable_weights(classifier())
    expected = keep_highest({name: (weight.detach() - 0.05).abs() for name, weight in held.items()}, TOTAL // 2)
    assert same(masks_of(PruneAtInit(far_from_half, 0.5)), expected)


def test_random_masks_are_a_function_of_the_seed():
    first, again, other, given = (
        masks_of(PruneAtInit("random", 0.5, seed=given), seed=seed)
        for seed, given in ((7, None), (7, None), (8, None), (9, 7))
    )
    assert same(first, again) and same(first, given) and not same(first, other)
    assert sum(map(size, first.values())) == TOTAL // 2
    share = size(first["module.3.weight"]) / 2304
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(2304)


def test_shuffling_keeps_layers_and_inversion_keeps_the_others():
    plain = masks_of(PruneAtInit("snip", 0.3, samples_per_class=3))
    shuffled = masks_of(PruneAtInit("snip", 0.3, samples_per_class=3, shuffle=True))
    assert [size(mask) for mask in shuffled.values()] == [size(mask) for mask in plain.values()]
    for name in ("module.0.weight", "module.3.weight", "module.6.weight"):
        both, n = size(plain[name] & shuffled[name]), plain[name].numel()
        assert abs(both - size(plain[name]) ** 2 / n) < 6 * math.sqrt(n) / 2 and not torch.equal(
            plain[name], shuffled[name]
        )
    lowest = masks_of(PruneAtInit("snip", 0.7, samples_per_class=3, invert=True))
    assert same(lowest, {name: ~mask for name, mask in plain.items()})


def test_new_weights_come_from_the_layers_own():
    before = {name: weight.detach().clone() for name, weight in prunable_weights(classifier()).items()}
    seen = {}

    class Look(Callback):
        def before_train_batch(self, state, logger):
            seen.update({name: weight.detach().clone() for name, weight in pruning.weights.items()})

    pruning = PruneAtInit("magnitude", 0.3, reinitialize=True)
    masks = masks_of(pruning, callbacks=Look())
    assert same(masks, masks_of(PruneAtInit("magnitude", 0.3)))  # that of the old weights
    for name, mask in masks.items():
        kept = seen[name][mask]
        assert torch.isin(kept, before[name]).all() and not torch.equal(kept, before[name][mask])
        assert not seen[name][~mask].any()
    large = seen["module.3.weight"][masks["module.3.weight"]]
    assert abs(large.std() / before["module.3.weight"].std() - 1) < 0.15  # not of the largest, as the old ones were


class Augmented(torch.utils.data.Dataset):
    """Each sample is drawn with the global generators."""

    def __init__(self):
        self.x, self.y = examples()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.randn(3, 12, 12) + np.random.rand()
        return self.x[index] + 0.1 * noise, self.y[index]


def test_criteria_leave_the_training_as_it_was(tmp_path):
    """With dropout, batch norm and augmentation: the same masks out of a file give the same weights, bit for bit."""

    def run(pruning):
        model = classifier(noisy_network())
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return weights(
            fit(pruning, model=model, optimizers=optimizer, train_dataloader=DataLoader(Augmented(), 8, shuffle=True))
        )

    for name in ("snip", "grasp", "synflow", "random", "gradient_magnitude"):
        pruning = PruneAtInit(name, 0.5, samples_per_class=3, scope="layerwise", iterations=2)
        trained = run(pruning)
        save_masks(tmp_path / f"{name}.safetensors", pruning.masks)
        assert_same(run(PruneAtInit(ticket=str(tmp_path / f"{name}.safetensors"))), trained)


def test_at_a_later_step_the_network_is_dense_before():
    counts = []

    class Look(Callback):
        def before_train_batch(self, state, logger):
            counts.append(sum(int(weight.count_nonzero()) for weight in pruning.weights.values()))

    for at, first in (("3ba", 3), ("1ep", 4)):
        counts.clear()
        pruning = PruneAtInit("magnitude", 0.5, at=at)
        run = fit(pruning, callbacks=Look())
        assert counts == [TOTAL] * first + [TOTAL // 2] * (8 - first)
        dense = weights(fit(max_duration=f"{first}ba"))
        expected = keep_highest({name: dense[name].abs() for name in pruning.masks}, TOTAL // 2)
        assert same(pruning.masks, expected) and run.state.timestamp.batch == 8


def test_pruning_that_never_comes_is_told():
    pruning = PruneAtInit("magnitude", 0.2, at="3ba")
    stop = Callback()
    stop.batch_end = lambda state, logger: state.stop_training()  # type: ignore[method-assign]
    with pytest.warns(NoEffectWarning, match="ended after 1ba, before at=3ba; it was dense"):
        masks_of(pruning, max_duration="4ba", callbacks=[stop])
    assert not pruning.masks


def test_a_ticket_can_be_shuffled_or_given_new_weights(tmp_path):
    path = tmp_path / "ticket.safetensors"
    masks = masks_of(PruneAtInit("magnitude", 0.3))
    save_masks(path, masks)
    assert same(masks_of(PruneAtInit(ticket=str(path))), masks)
    assert same(masks_of(PruneAtInit(ticket=str(path), reinitialize=True)), masks)
    shuffled = masks_of(PruneAtInit(ticket=str(path), shuffle=True))
    assert digest(shuffled) != digest(masks)
    assert [size(mask) for mask in shuffled.values()] == [size(mask) for mask in masks.values()]


def test_what_cannot_work_says_so(tmp_path):
    path = tmp_path / "ticket.safetensors"
    save_masks(path, {"module.0.weight": torch.ones(16, 3, 3, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"lacks the masks of module\.3\.weight, module\.6\.weight, module\.9\.weight"):
        trainer(PruneAtInit(ticket=str(path)))  # before anything is trained
    with pytest.raises(ValueError, match=r"PruneAtInit: .*class 3 has 4 samples"):
        masks_of(PruneAtInit("snip", 0.5, samples_per_class=25))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([*zip(*examples(), strict=True)])

    with pytest.raises(ValueError, match="snip needs a DataLoader over a dataset with indices and a length"):
        masks_of(PruneAtInit("snip", 0.5), train_dataloader=DataLoader(Stream(), 8))
    model = masked_lm()
    with pytest.raises(ValueError, match="synflow needs batches of"):
        masks_of(PruneAtInit("synflow", 0.5), model=model, train_dataloader=token_loader())
    with pytest.raises(ValueError, match="temperature must be 1"):
        masks_of(PruneAtInit("snip", 0.5, temperature=2), model=model, train_dataloader=token_loader())
    broken = classifier(network())
    broken.module[3].weight.data[0] = math.nan
    with pytest.raises(ValueError, match=r"PruneAtInit: .*module\.\d\.weight"):
        masks_of(PruneAtInit("snip", 0.5, samples_per_class=3), model=broken)


def test_a_sample_that_is_left_over_joins_the_batch_before():
    sizes = []

    def look(batch):
        sizes.append(len(batch[0]))
        return batch

    samples = torch.utils.data.TensorDataset(*examples())
    whole = torch.arange(len(samples)).split(5)  # a loader with these tells no batch size
    for name, options in product(("snip", "grasp", "snip_per_batch"), ({"batch_size": 5}, {"batch_sampler": whole})):
        sizes.clear()
        # 4 classes of 4: batches of 5 would leave one, of which batch norm has no statistics
        pruning = PruneAtInit(name, 0.5, samples_per_class=4, scope="layerwise", transform=look)
        data = {"train_dataloader": DataLoader(samples, **options), "device_train_microbatch_size": 5}
        masks_of(pruning, model=classifier(noisy_network()), **data)
        assert sizes == [5, 5, 6] and pruning.masks


def test_layers_that_start_at_zero():
    def zeroed(*layers):
        model = classifier()
        for layer in layers:
            torch.nn.init.zeros_(model.module[layer].weight)
        return model

    for name in ("snip", "synflow", "magnitude", "grasp", lambda model, held, masks: magnitude(held)):
        with pytest.raises(ValueError, match=r"PruneAtInit: nothing but ties decides which weights of module"):
            masks_of(PruneAtInit(name, 0.5, samples_per_class=3, scope="layerwise"), model=zeroed(9))
    for name in ("snip", "synflow"):  # no gradient comes through a head of zeros
        with pytest.raises(ValueError, match="nothing but ties decides"):
            masks_of(PruneAtInit(name, 0.5, samples_per_class=3), model=zeroed(9))
    with (
        pytest.warns(TiedScoresWarning, match=r"without scores \(all are 0\) are emptied: module\.9\.weight"),
        pytest.warns(LayerCollapseWarning),
    ):
        masks = masks_of(PruneAtInit("magnitude", 0.5), model=zeroed(9))
    assert sum(map(size, masks.values())) == TOTAL // 2
    assert masks_of(PruneAtInit("magnitude", 0.5, exclude=["*.9.*"], scope="layerwise"), model=zeroed(9))


class Graphs:
    """A batch that is no container, as of graphs or images with boxes."""

    def __init__(self, rows):
        self.x, self.y = (torch.stack(column) for column in zip(*rows, strict=True))

    def to(self, device, **options):
        return self


class OfObjects(ComposerClassifier):
    def forward(self, batch):
        return self.module(batch.x)

    def loss(self, outputs, batch, *args):
        return F.cross_entropy(outputs, batch.y)

    def update_metric(self, batch, outputs, metric):
        metric.update(outputs, batch.y)


def test_a_figure_that_cannot_be_computed_is_left_out():
    x, y = examples()
    data = DataSpec(
        DataLoader([*zip(x, y, strict=True)], 8, collate_fn=Graphs),
        get_num_samples_in_batch=lambda batch: len(batch.x),
        split_batch=lambda batch, size: [batch],
    )
    model, logger = OfObjects(network(), num_classes=CLASSES), InMemoryLogger()
    pruning = PruneAtInit("magnitude", 0.5)
    with pytest.warns(UserWarning, match="the multiply-adds of a sample are not known, and left out") as caught:
        run = fit(
            pruning, model=model, train_dataloader=data, max_duration="2ba", loggers=logger,
            device_train_microbatch_size=8, optimizers=torch.optim.SGD(model.parameters(), 0.1),
        )  # fmt: skip
    assert len([w for w in caught if "multiply-adds" in str(w.message)]) == 1
    found = pruning.size(run.state)
    assert math.isnan(found.multiply_adds) and 1 < found.theoretical_speedup < 3
    assert logger.data["pruning/speedup"]

    class Strange(OfObjects):
        def forward(self, batch):
            if not torch.is_grad_enabled():
                raise RuntimeError("is never evaluated")
            return super().forward(batch)

    model, logger = Strange(network(), num_classes=CLASSES), InMemoryLogger()
    with pytest.warns(
        UserWarning, match="and the theoretical speedup, are not known, and left out: is never evaluated"
    ):
        run = fit(
            pruning, model=model, train_dataloader=data, max_duration="2ba", loggers=logger,
            device_train_microbatch_size=8, optimizers=torch.optim.SGD(model.parameters(), 0.1),
        )  # fmt: skip
    assert math.isnan(pruning.size(run.state).theoretical_speedup) and "pruning/speedup" not in logger.data
    assert logger.data["pruning/compression_ratio"]


def test_little_to_prune_is_told_where_nobody_chose_it():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(36, 16, batch_first=True), torch.nn.Linear(16, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])

    with pytest.warns(
        MostlyDenseWarning, match=r"by default not module\.lstm\.weight_ih_l0, module\.lstm\.weight_hh_l0"
    ):
        masks_of(PruneAtInit("magnitude", 0.5), model=classifier(Recurrent()))
    for name in ("snip", "synflow", "magnitude"):
        masks = masks_of(
            PruneAtInit(name, 0.5, include=["*lstm.weight_*"], samples_per_class=3), model=classifier(Recurrent())
        )
        assert [*masks] == ["module.lstm.weight_ih_l0", "module.lstm.weight_hh_l0"]
        assert sum(map(size, masks.values())) == 64 * 52 // 2


class VGG16(torch.nn.Sequential):
    """Of the SynFlow authors' study: batch norm, CIFAR-100, a single linear layer."""

    def __init__(self):
        widths, layers, last = (64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3), [], 3
        for width in widths:
            if width:
                layers += [torch.nn.Conv2d(last, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
                last = width
            else:
                layers.append(torch.nn.MaxPool2d(2))
        super().__init__(*layers, torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(512, 100))
        for module in self:
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)


# Kept shares per layer at a tenth of the weights, as the SynFlow authors' files give them (of one initialization).
PUBLISHED = [0.892, 0.517, 0.516, 0.358, 0.356, 0.193, 0.194, 0.194, *[0.066] * 5, 0.541]


def test_shares_of_layers_are_those_of_the_papers():
    torch.manual_seed(0)
    model = VGG16()
    held = prunable_weights(model)
    sizes = {name: weight.numel() for name, weight in held.items()}
    masks = keep_highest(magnitude(held), kept_counts(sizes, 0.1))
    shares = [size(mask) / mask.numel() for mask in masks.values()]
    assert shares == pytest.approx(PUBLISHED, abs=0.01)

    # By the formula: a weight of N(0, 2 / fan-in) is kept where it is above one threshold for all.
    fans = torch.tensor([weight[0].numel() for weight in held.values()], dtype=torch.float64)
    counts, low, high = torch.tensor([*sizes.values()], dtype=torch.float64), 0.0, 1.0
    for _ in range(60):
        threshold = (low + high) / 2
        expected = torch.erfc(threshold * fans.sqrt() / 2)
        low, high = (threshold, high) if (expected @ counts) > 0.1 * counts.sum() else (low, threshold)
    deviation = (expected * (1 - expected) / counts).sqrt()
    assert ((torch.tensor(shares) - expected).abs() < 5 * deviation + 1e-4).all()

    dense = model_size(model, trace_multiply_adds(model, lambda model: model(torch.zeros(1, 3, 32, 32))))
    outputs = 64 * 1024 * 2 + 128 * 256 * 2 + 256 * 64 * 3 + 512 * 16 * 3 + 512 * 4 * 3
    # Theirs has also one for each output of a bias, and of the scale and of the shift of a batch norm.
    assert dense.multiply_adds + 3 * outputs + 100 == 314_077_284


def test_masked_language_models(tmp_path):
    for name in ("snip", "grasp"):
        pruning = PruneAtInit(name, 0.5, samples_per_class=2, scope="layerwise")
        masks_of(pruning, model=masked_lm(), train_dataloader=token_loader())
        assert all(abs(size(mask) - mask.numel() / 2) <= 0.5 for mask in pruning.masks.values())


def test_a_kill_right_before_pruning(tmp_path):
    whole, resumed = PruneAtInit("random", 0.5, at="2ba"), PruneAtInit("random", 0.5, at="2ba")
    expected = weights(fit(whole))
    with pytest.raises(KeyboardInterrupt):
        killed = {"save_folder": str(tmp_path), "save_interval": "1ba", "callbacks": Kill(2)}
        fit(PruneAtInit("random", 0.5, at="2ba"), **killed)
    assert_same(weights(fit(resumed, load_path=str(tmp_path / "ep0-ba2-rank0.pt"))), expected)
    assert digest(resumed.masks) == digest(whole.masks)
