"""Whoever writes weights, what is pruned is zero: optimizers, averages, callbacks; and where gradients are NaN."""

import math

import pytest
import torch
from composer import Callback
from composer.algorithms import EMA, SWA, GradientClipping
from torch import nn

from accelerando.algorithms import MagnitudePruning, PruneAtInit
from accelerando.algorithms.pruning import (
    Pruner,
    apply_masks,
    keep_highest,
    mask_gradients,
    mask_optimizers,
    prunable_weights,
)
from accelerando.algorithms.pruning.enforcement import Bits, bits_of
from tiny import assert_same, classifier, fit, loader, network, weights


class Soap(torch.optim.Optimizer):
    """As SOAP does: Adam in the eigenbasis of the gradients' rows, whose first step moves nothing."""

    def __init__(self, parameters, lr=0.03, rotates_from=1):
        super().__init__(parameters, {"lr": lr})
        self.rotates_from = rotates_from

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure and torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                rows, state = weight.grad.flatten(1) if weight.ndim > 1 else weight.grad[:, None], self.state[weight]
                if not state:
                    state |= {"step": 0, "GG": [rows @ rows.T], "exp_avg_sq": torch.zeros_like(weight)}
                    continue
                state["step"] += 1
                state["GG"][0].lerp_(rows @ rows.T, 0.1)
                basis = torch.eye(len(rows))
                if state["step"] >= self.rotates_from:
                    basis = torch.linalg.eigh(state["GG"][0]).eigenvectors
                rotated = basis.T @ rows
                second = state["exp_avg_sq"].view_as(rotated).lerp_(rotated**2, 0.1)
                weight.sub_((basis @ (rotated / (second.sqrt() + 1e-8))).view_as(weight), alpha=group["lr"])
        return loss


class Shampoo(torch.optim.SGD):
    """Keeps a matrix for the rows of each weight, which it has the shape of where that is square."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure and torch.enable_grad()(closure)()
        for weight in self.param_groups[0]["params"]:
            rows, state = weight.grad.flatten(1) if weight.ndim > 1 else weight.grad[:, None], self.state[weight]
            state.setdefault("precond", torch.eye(len(rows))).add_(rows @ rows.T)
            values, basis = torch.linalg.eigh(state["precond"])
            weight.grad.copy_((basis @ torch.diag(values**-0.25) @ basis.T @ rows).view_as(weight))
        super().step()
        return loss


class Lookahead(torch.optim.SGD):
    """Slow weights in its state, to which the fast ones return every other step; both have been elsewhere."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            slow = state.setdefault("slow", weight.detach().clone() + 0.1)
            state["n"] = state.get("n", 0) + 1
            if state["n"] % 2 == 0:
                weight.copy_(slow.lerp_(weight, 0.5))
        return loss


class Flattened(torch.optim.Optimizer):
    """One momentum for all weights, as one long vector, smeared over its neighbours."""

    def __init__(self, parameters, lr=0.05):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure and torch.enable_grad()(closure)()
        held = self.param_groups[0]["params"]
        flat = torch.cat([weight.grad.flatten() for weight in held])
        momentum = self.state[held[0]].setdefault("flat", torch.zeros_like(flat)).lerp_(flat.roll(1) + flat, 0.2)
        for weight, part in zip(held, momentum.split([weight.numel() for weight in held]), strict=True):
            weight.sub_(part.view_as(weight), alpha=self.param_groups[0]["lr"])
        return loss


def groups_of_which_one_rests(model):
    first, *others = model.parameters()
    return [{"params": [first], "lr": 0.0}, {"params": others}]


OPTIMIZERS = {
    "SOAP": lambda model: Soap(model.parameters()),
    "SOAP that rotates later": lambda model: Soap(model.parameters(), rotates_from=5),
    "SOAP with a resting group": lambda model: Soap(groups_of_which_one_rests(model)),
    "Shampoo": lambda model: Shampoo(model.parameters(), 0.05),
    "Lookahead": lambda model: Lookahead(model.parameters(), 0.1, momentum=0.9),
    "flattened": lambda model: Flattened(model.parameters()),
    "foreach AdamW": lambda model: torch.optim.AdamW(model.parameters(), 0.01, foreach=True),
    "fused AdamW": lambda model: torch.optim.AdamW(model.parameters(), 0.01, fused=True),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3),
}


class Watch(Callback):
    """At every forward pass, in training and in evaluation, and at every batch's end: nothing pruned is back."""

    def __init__(self, pruning, model):
        self.pruning, self.passes, self.ends = pruning, 0, 0
        model.module.register_forward_pre_hook(lambda *_: self.before())  # which SWA's copy of the model shares

    def zero(self):
        held = self.pruning.weights
        return all((held[name].detach()[~mask] == 0).all() for name, mask in self.pruning.masks.items())

    def before(self):
        self.passes += bool(self.pruning.masks)
        assert self.zero()

    def batch_end(self, state, logger):
        self.ends += bool(self.pruning.masks)
        assert self.zero()

    batch_checkpoint = epoch_checkpoint = batch_end


def zero_in(path, pruning):
    """Weights, averages, and the state of optimizers that treat each weight apart."""
    saved = torch.load(path, weights_only=False)["state"]
    algorithms = dict(saved["algorithms"])
    stores = [saved["model"]]
    if "EMA" in algorithms:
        stores.append(algorithms["EMA"]["ema_model"]["named_parameters_dict"])
    if "SWA" in algorithms:
        stores.append({n.removeprefix("module."): t for n, t in algorithms["SWA"]["swa_model"].items()})
    assert all((store[name][~mask] == 0).all() for store in stores for name, mask in pruning.masks.items())
    return len(stores)


def watched(pruning, optimizer, *others, callbacks=(), order=1, **options):
    model = classifier()
    watch = Watch(pruning, model)
    run = fit(
        [pruning, *others][::order],
        model=model,
        optimizers=optimizer(model),
        callbacks=[watch, *callbacks],  # it looks before they write, who write before the checkpoint is saved
        eval_dataloader=loader(),
        eval_interval="1ba",
        save_interval="1ba",
        **options,
    )
    assert watch.zero() and watch.passes > 10 and watch.ends > 4
    return run


def momentum(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_brings_weights_back(name, tmp_path):
    pruning = PruneAtInit("magnitude", 0.2)
    run = watched(pruning, OPTIMIZERS[name], save_folder=str(tmp_path))
    assert all(value.isfinite().all() for value in weights(run).values())
    assert [zero_in(path, pruning) for path in tmp_path.glob("ep*.pt")] == [1] * 8
    assert pruning.share_left() == 675 / 3376
    if name not in ("LBFGS", "flattened"):  # whose state torch cannot place by the parameters' names
        again, model = PruneAtInit("magnitude", 0.2), classifier()
        path = str(tmp_path / "ep1-ba5-rank0.pt")
        assert_same(weights(fit(again, model=model, optimizers=OPTIMIZERS[name](model), load_path=path)), weights(run))


def test_state_in_other_bases_is_left_alone():
    """SOAP's second moments are of the rotated gradients; the plain loop keeps them, and masks weights alone."""
    model = classifier()
    run = fit(PruneAtInit("magnitude", 0.2), model=model, optimizers=Soap(model.parameters()), max_duration="2ep")
    plain = classifier()
    held = prunable_weights(plain)
    masks = keep_highest({name: weight.detach().abs() for name, weight in held.items()}, 675)
    optimizer = Soap(plain.parameters())
    apply_masks(held, masks)
    for batch in [*loader()] * 2:
        optimizer.zero_grad()
        plain.loss(plain(batch), batch).backward()
        mask_gradients(held, masks)
        optimizer.step()
        apply_masks(held, masks)
    assert_same(weights(run), plain.state_dict())


class CopyIn(Callback):
    """Another network's weights, by `.data` and by `copy_` in turn."""

    def __init__(self, event):
        self.other, self.count = classifier(network(seed=3)).state_dict(), 0
        setattr(self, event, self.write)

    def write(self, state, logger):
        self.count += 1
        for name, parameter in state.model.named_parameters():
            (parameter.data if self.count % 2 else parameter.detach()).copy_(self.other[name])


WRITES = ["batch_start", "after_train_batch", "batch_end", "eval_start", "eval_batch_start", "eval_end"]
WRITES += ["batch_checkpoint", "epoch_end", "epoch_checkpoint"]


@pytest.mark.parametrize("event", WRITES)
def test_no_callback_brings_weights_back(event, tmp_path):
    pruning = MagnitudePruning(0.2, start="1ba", end="5ba", interval="2ba", scope="layerwise")
    write = CopyIn(event)
    watched(pruning, momentum, EMA(half_life="2ba"), callbacks=[write], save_folder=str(tmp_path))
    assert write.count
    assert [zero_in(path, pruning) for path in tmp_path.glob("*-ba8-*.pt")] == [2]


@pytest.mark.filterwarnings("ignore:SWA has known issues")
@pytest.mark.parametrize("interval", ["1ba", "1ep"])
@pytest.mark.parametrize("order", [1, -1])
def test_no_average_brings_weights_back(interval, order, tmp_path):
    """SWA's model takes the place of the trained one after the second epoch, when half is pruned since its first."""
    pruning = MagnitudePruning(0.2, start="4ba", end="7ba", interval="1ba")
    swa = SWA("1ep", "2ep", update_interval=interval)
    others = swa, EMA(half_life="2ba")
    watched(
        pruning, lambda m: Soap(m.parameters()), *others, order=order, save_folder=str(tmp_path), max_duration="3ep"
    )
    assert swa.swa_completed and pruning.share_left() == 675 / 3376
    assert [zero_in(path, pruning) for path in tmp_path.glob("*-ba12-*.pt")] == [3]


def test_layers_unfrozen_later_stay_pruned():
    class Thaw(Callback):
        def epoch_end(self, state, logger):
            state.model.requires_grad_(True)

    def optimizer(model):
        model.module[3].requires_grad_(False)
        return Soap(model.parameters())

    pruning = PruneAtInit("magnitude", 0.2)
    watched(pruning, optimizer, callbacks=[Thaw()])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_where_a_weight_is_pruned(value):
    """The run is the one in which they are finite, clipping included."""

    def run(value):
        model, pruning = classifier(), PruneAtInit("magnitude", 0.2)
        for name, weight in prunable_weights(model).items():
            weight.register_hook(lambda g, name=name: g.masked_fill(~pruning.masks[name], value))
        return weights(fit([GradientClipping("norm", 0.1), pruning], model=model, optimizers=momentum(model)))

    assert_same(run(value), run(1.0))


def test_gradients_that_are_sparse_or_missing():
    layers = nn.ModuleDict({"words": nn.Embedding(5, 3, sparse=True), "unused": nn.Linear(3, 3)})
    held = {name: layer.weight for name, layer in layers.items()}
    masks = {name: torch.arange(weight.numel()).view_as(weight) % 2 == 0 for name, weight in held.items()}
    out = layers["words"](torch.tensor([1, 4, 1]))
    out.backward(torch.full_like(out, math.nan).masked_fill(masks["words"][[1, 4, 1]], 2.0))
    mask_gradients(held, masks)
    expected = torch.zeros(5, 3).index_add(0, torch.tensor([1, 4, 1]), torch.full((3, 3), 2.0)) * masks["words"]
    assert torch.equal(held["words"].grad.to_dense(), expected) and held["unused"].grad is None


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_type_and_memory_format(dtype, memory_format):
    value = torch.tensor([math.nan, math.inf, -math.inf, -3.0, -0.0, 5.0]).repeat(20).view(2, 3, 4, 5)
    tensor = value.to(dtype).contiguous(memory_format=memory_format)
    mask = torch.arange(120).view(2, 3, 4, 5) % 4 == 0
    for given in (mask, bits_of(mask), *(bits_of(mask, torch.zeros(1, dtype=other)) for other in DTYPES)):
        held = tensor.clone()
        apply_masks({"w": held}, {"w": given})
        expected = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
        torch.testing.assert_close(held, expected, equal_nan=True, rtol=0, atol=0)
        assert not held[~mask].signbit().any() and held.stride() == tensor.stride()


def test_masks_go_where_the_weights_have_gone():
    """Here from another device, as there is no second one to go to."""
    model = nn.Linear(6, 4)
    pruner = Pruner(model)
    pruner.prune({"weight": torch.arange(24).view(4, 6) % 3 == 0})
    pruner._bits = {name: Bits(bits.integers.to("meta")) for name, bits in pruner._bits.items()}
    with torch.no_grad():
        model.weight.fill_(1.0)
    pruner.hold()
    assert torch.equal(model.weight.detach() != 0, pruner.masks["weight"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_masks_of_ones_and_zeros(dtype):
    weight = nn.Parameter(torch.tensor([1.5, math.nan, -3.25, 4.0]))
    weight.grad = torch.full((4,), 2.0)
    optimizer = torch.optim.SGD([weight], 0.1)
    optimizer.state[weight]["momentum_buffer"] = torch.full((4,), 3.0)
    masks = {"w": torch.tensor([1, 0, 1, 0]).to(dtype)}
    apply_masks({"w": weight}, masks)
    mask_gradients({"w": weight}, masks)
    mask_optimizers([optimizer], {"w": weight}, masks)
    held = [weight.tolist(), weight.grad.tolist(), optimizer.state[weight]["momentum_buffer"].tolist()]
    assert held == [[1.5, 0, -3.25, 0], [2, 0, 2, 0], [3, 0, 3, 0]]


def test_optimizers_that_keep_numbers_in_codes_are_left_alone():
    """In which 0 is another number."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], 0.1)
    optimizer.state[weight] = {"codes": torch.tensor([200, 7], dtype=torch.uint8), "momentum": torch.ones(2)}
    mask_optimizers([optimizer], {"w": weight}, {"w": torch.tensor([False, True])})
    assert optimizer.state[weight]["codes"].tolist() == [200, 7]
    assert optimizer.state[weight]["momentum"].tolist() == [0, 1]


def test_a_figure_shows_what_is_not_zero():
    pruning = PruneAtInit("magnitude", 0.2)
    run = fit(pruning)
    name, weight = next(iter(pruning.weights.items()))
    before, ratio = pruning.share_left(), pruning.size(run.state).compression_ratio
    weight.data[~pruning.masks[name]] = 1.0
    assert pruning.share_left() > before and pruning.size(run.state).compression_ratio < ratio


def test_a_subclass_is_obeyed():
    called = []

    class Mine(MagnitudePruning):
        def _trace(self, state, logger):
            called.append("trace")
            super()._trace(state, logger)

        def _hold_gradients(self, state, event):
            called.append("gradients")
            super()._hold_gradients(state, event)

    fit(Mine(0.5), max_duration="1ba")
    assert called == ["trace", "gradients"]
