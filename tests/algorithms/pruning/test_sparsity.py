"""What is pruned stays zero, whoever trains, averages, saves or loads."""

import copy
import functools

import pytest
import torch
from composer import Callback
from composer.algorithms import EMA, SAM, GradientClipping
from composer.callbacks import CheckpointSaver
from composer.core import DataSpec, Event
from composer.loggers import InMemoryLogger
from composer.optim import ConstantScheduler, DecoupledAdamW, DecoupledSGDW, LinearWithWarmupScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from accelerando.algorithms import ChannelsLast, LotteryTicket, MagnitudePruning, PruneAtInit, ranks
from accelerando.algorithms.pruning import (
    LayerCollapseWarning,
    apply_masks,
    keep_highest,
    mask_gradients,
    mask_optimizers,
    prunable_weights,
    save_masks,
)
from accelerando.algorithms.pruning.masks import digest, size
from tiny import assert_same, classifier, examples, fit, loader, network, trainer, weights

CONV_WEIGHTS = prunable_weights(classifier())


class Mixing(torch.optim.SGD):
    """Like Muon, it moves each weight by the gradients of others too."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure and torch.enable_grad()(closure)()  # which makes the gradients
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.grad.mean() + 0.01)
        super().step()
        return loss


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "momentum and weight decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "Composer's SGD": lambda p: DecoupledSGDW(p, 0.1, momentum=0.9, weight_decay=0.01),
    "Composer's AdamW": lambda p: DecoupledAdamW(p, 0.01, weight_decay=0.01),
    "one that mixes": lambda p: Mixing(p, 0.1, momentum=0.9),
}


class AlwaysZero(Callback):
    """At every batch's end: weights, the optimizer's state and averages, of all that the masks have pruned."""

    def __init__(self, pruning):
        self.pruning, self.checked, self.counts = pruning, 0, []

    def batch_checkpoint(self, state, logger):
        masks = self.pruning.masks
        self.counts.append(self.pruning.remaining())
        optimizers = [*state.optimizers, *(o.base_optimizer for o in state.optimizers if hasattr(o, "base_optimizer"))]
        for name, mask in masks.items():
            weight = state.model.get_parameter(name)
            tensors = [weight.detach()]
            for optimizer in optimizers:
                tensors += [v for v in optimizer.state.get(weight, {}).values() if getattr(v, "shape", 0) == mask.shape]
            for algorithm in state.algorithms:
                if isinstance(algorithm, EMA):
                    tensors.append(algorithm.ema_model.named_parameters_dict[name])
            for tensor in tensors:
                assert (tensor[~mask] == 0).all(), name
            self.checked += len(tensors)


class Writes(Callback):
    """Revives all that is pruned, after the algorithms have acted at a batch's end."""

    def batch_end(self, state, logger):
        for parameter in state.model.parameters():
            parameter.data = parameter.data + 1


class Reads(Callback):
    """Keeps the weights as they are when checkpoints are written."""

    def batch_checkpoint(self, state, logger):
        self.read = weights_of(state)


class ReadsByEvent(Reads):
    def run_event(self, event, state, logger):
        if event is Event.BATCH_CHECKPOINT:
            self.read = weights_of(state)


class ReadsBeforeData(Callback):
    def before_dataloader(self, state, logger):
        self.read = weights_of(state)


def patched():
    callback = Callback()
    callback.run_event = functools.partial(ReadsByEvent.run_event, callback)
    return callback


def weights_of(state):
    return copy.deepcopy(state.model.state_dict())


@pytest.mark.parametrize("reader", [Reads, ReadsByEvent, ReadsBeforeData, patched, "whole checkpoint", "weights only"])
def test_whoever_reads_finds_zero_what_a_callback_has_revived(reader, tmp_path):
    callbacks, pruning = [Writes()], MagnitudePruning(0.2)
    if isinstance(reader, str):
        callbacks.append(CheckpointSaver(str(tmp_path), save_interval="1ba", weights_only=reader == "weights only"))
    else:
        callbacks.append(reader())
    fit(pruning, callbacks=callbacks)
    if isinstance(reader, str):
        last = max(tmp_path.glob("ep*.pt"), key=lambda path: path.stat().st_mtime)
        found = torch.load(last, weights_only=False)["state"]["model"]
    else:
        found = callbacks[-1].read
    assert len(pruning.masks) == 4
    for name, mask in pruning.masks.items():
        assert (found[name][~mask] == 0).all() and (found[name][mask] != 0).any(), name


def gradual():
    return MagnitudePruning(0.1, start="1ba", end="6ba", interval="2ba", schedule="linear", scope="layerwise")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_their_momenta_stay_zero(name, tmp_path):
    model, pruning = classifier(), gradual()
    zero = AlwaysZero(pruning)
    optimizer = OPTIMIZERS[name](model.parameters())
    # Under a warmup, whose first update moves nothing, and so shows nothing.
    schedule = LinearWithWarmupScheduler("3ba")
    options = {"callbacks": zero, "save_folder": str(tmp_path), "save_interval": "1ba", "schedulers": schedule}
    fit(pruning, model=model, optimizers=optimizer, **options)
    assert zero.counts[-1] == 43 + 230 + 51 + 13 and zero.checked
    assert zero.counts == sorted(zero.counts, reverse=True)
    for path in tmp_path.glob("ep*.pt"):
        saved = torch.load(path, weights_only=False)["state"]
        state = dict(saved["algorithms"])["MagnitudePruning"]
        fresh = gradual()
        fresh.load_state_dict(state)
        for key, mask in fresh.masks.items():
            assert (saved["model"][key][~mask] == 0).all() and saved["model"][key][mask].count_nonzero() > 0
            for value in saved["optimizers"][type(optimizer).__qualname__]["state"].get(key, {}).values():
                if value.shape == mask.shape:
                    assert (value[~mask] == 0).all()


@pytest.mark.filterwarnings("ignore:SAM has known issues")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "other", [lambda: SAM(rho=0.5), lambda: EMA(half_life="2ba"), lambda: GradientClipping("norm", 0.1)]
)
def test_beside_composers_own(other, order):
    pruning = gradual()
    zero = AlwaysZero(pruning)
    algorithms = [pruning, other()][::order]
    fit(algorithms, callbacks=zero, eval_dataloader=loader(), eval_interval="1ba")
    assert zero.checked > 20 and zero.counts[-1] == 43 + 230 + 51 + 13


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_sam_climbs_within_the_subnetwork():
    """Else its second gradient is that of a network which the masks do not have."""
    seen = []

    class Look(Callback):
        def after_forward(self, state, logger):
            seen.append(all((w.detach()[~pruning.masks[n]] == 0).all() for n, w in pruning.weights.items()))

    pruning = PruneAtInit("magnitude", 0.3)
    fit([pruning, SAM(rho=0.5)], callbacks=Look(), max_duration="1ep")
    assert len(seen) == 8 and all(seen)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("clipping", [None, 0.05])
def test_a_run_is_the_plain_loop_with_masked_gradients(clipping, order):
    """Bit for bit; and the norm by which gradients are clipped is that of the subnetwork's."""
    pruning = PruneAtInit("magnitude", 0.3)
    algorithms = [pruning] + ([GradientClipping("norm", clipping)] if clipping else [])
    run = fit(algorithms[::order], max_duration="2ep")
    model = classifier()
    held = prunable_weights(model)
    masks = keep_highest({name: weight.detach().abs() for name, weight in held.items()}, round(0.3 * 3376))
    for name, weight in held.items():
        weight.data[~masks[name]] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        for x, y in zip(*(tensor.split(8) for tensor in examples()), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model.module(x), y).backward()
            for name, weight in held.items():
                weight.grad[~masks[name]] = 0.0
            if clipping:
                nn.utils.clip_grad_norm_(model.parameters(), clipping)
            optimizer.step()
    assert_same(weights(run), model.state_dict())


def test_without_composer():
    """The pure functions are all that a loop of one's own needs."""
    module = network()
    held = prunable_weights(module)
    masks = keep_highest({name: weight.detach().abs() for name, weight in held.items()}, 500)
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    x, y = examples()
    F.cross_entropy(module(x), y).backward()
    optimizer.step()
    apply_masks(held, masks)
    mask_optimizers([optimizer], held, masks)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        mask_gradients(held, masks)
        optimizer.step()
    assert sum(int(weight.count_nonzero()) for weight in held.values()) == 500


def test_zero_even_where_a_weight_is_not_finite():
    tensors = {"w": torch.tensor([float("inf"), float("nan"), -3.0, 2.0])}
    apply_masks(tensors, {"w": torch.tensor([False, False, False, True])})
    assert tensors["w"].tolist() == [0, 0, 0, 2] and not tensors["w"].signbit().any()


def test_parameters_without_a_gradient_are_left_alone():
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    held = prunable_weights(module)
    module[0](torch.ones(1, 3)).sum().backward()
    mask_gradients(held, {name: torch.eye(3, dtype=torch.bool) for name in held})
    assert module[0].weight.grad.count_nonzero() == 3 and module[1].weight.grad is None


def saved(folder, *algorithms, **options):
    fit([*algorithms], save_folder=str(folder), save_interval="1ba", **options)
    return torch.load(folder / "ep1-ba5-rank0.pt", weights_only=False)


def resume(path, pruning, **options):
    return trainer(pruning, load_path=str(path), **options)


@pytest.mark.filterwarnings("ignore:.* is not in the state_dict")
def test_missing_or_other_masks_are_an_error(tmp_path):
    checkpoint = saved(tmp_path, PruneAtInit("magnitude", 0.3))
    path = tmp_path / "ep1-ba5-rank0.pt"
    assert resume(path, PruneAtInit("magnitude", 0.3)).state.timestamp.batch == 5

    def with_change(change):
        changed = copy.deepcopy(checkpoint)
        change(changed["state"], dict(changed["state"]["algorithms"])["PruneAtInit"])
        torch.save(changed, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    def no_algorithm(state, own):
        state["algorithms"] = []

    def no_masks(state, own):
        del own["masks"]

    def another_bit(state, own):
        own["masks"]["bits"][7] ^= 4

    def of_other_weights(state, own):
        state["model"]["module.3.weight"] += 0.01

    def other_layers(state, own):
        pass

    for change, message in (
        (no_algorithm, "of batch 5, holds no masks, as it should"),
        (no_masks, "the checkpoint holds no readable masks"),
        (another_bit, "digest does not fit"),
        (of_other_weights, r"not of these weights; what they prune is not 0 in module\.3\.weight"),
        (other_layers, "had classifier=True; go on as it was"),
    ):
        pruning = PruneAtInit("magnitude", 0.3, classifier=change is not other_layers)
        with pytest.raises(ValueError, match=f"PruneAtInit: .*{message}"):
            resume(with_change(change), pruning)


def test_weights_alone_can_be_loaded_and_pruned_anew(tmp_path):
    saved(tmp_path, PruneAtInit("magnitude", 0.3))
    pruning = PruneAtInit("magnitude", 0.2)
    resume(tmp_path / "ep1-ba5-rank0.pt", pruning, load_weights_only=True).fit()
    assert sum(map(size, pruning.masks.values())) == round(0.2 * 3376)


@pytest.mark.filterwarnings("ignore:.* is not in the state_dict")
def test_a_run_goes_on_as_it_was_or_not_at_all(tmp_path):
    saved(tmp_path, PruneAtInit("magnitude", 0.3))
    path = tmp_path / "ep1-ba5-rank0.pt"
    for arguments, message in (
        ({"density": 0.6}, r"had density=0\.3;"),
        ({"criterion": "random", "density": 0.3}, "had criterion='magnitude';"),
        ({"density": 0.3, "scope": "layerwise"}, "had scope='global';"),
        ({"ticket": str(tmp_path / "masks.safetensors")}, r"had density=0\.3"),
    ):
        save_masks(tmp_path / "masks.safetensors", {n: torch.ones_like(w) > 0 for n, w in CONV_WEIGHTS.items()})
        with pytest.raises(ValueError, match=f"PruneAtInit: the checkpoint's run {message}"):
            resume(path, PruneAtInit(**arguments))
    dense = tmp_path / "dense"
    saved(dense)
    with pytest.raises(
        ValueError, match=r"MagnitudePruning: the checkpoint \(or start\), of batch 5, holds no masks, as it should"
    ):
        resume(dense / "ep1-ba5-rank0.pt", MagnitudePruning(0.3, "4ba"))
    for later in (MagnitudePruning(0.3, "6ba"), MagnitudePruning(0.3, "5ba", "8ba", "2ba")):  # nothing is due yet
        resume(dense / "ep1-ba5-rank0.pt", later).fit()
        assert later.remaining() == round(0.3 * 3376)
    gradual_from_here = MagnitudePruning(0.3, "2ba", "8ba", "6ba")
    saved(tmp_path / "gradual", gradual_from_here)
    again = MagnitudePruning(0.3, "2ba", "8ba", "6ba")
    resume(tmp_path / "gradual" / "ep1-ba5-rank0.pt", again).fit()  # within the first interval, in which none is pruned
    assert digest(again.masks) == digest(gradual_from_here.masks)


def test_what_would_never_be_pruned_is_refused():
    for pruning, message in (
        (PruneAtInit("magnitude", 0.3, at="2ep"), "at must be within the training, which lasts 2ep, got '2ep'"),
        (PruneAtInit("magnitude", 0.3, at="8ba"), "at must be within"),
        (MagnitudePruning(0.3, "100ep"), "start must be within"),
        (MagnitudePruning(0.3, "0ba", "20ba", "2ba"), "end must be within"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(pruning)
    fit(MagnitudePruning(0.3, "0ba", "8ba", "2ba", scope="layerwise"))


def test_weights_that_others_make_are_refused_by_name():
    module = network()
    nn.utils.parametrizations.weight_norm(module[3])
    with pytest.raises(ValueError, match=r"module\.3\.weight cannot be pruned, being computed from other parameters"):
        trainer(MagnitudePruning(0.5), model=classifier(module))
    trainer(MagnitudePruning(0.5, exclude=["*.3.*"]), model=classifier(module))


def test_masks_have_the_memory_format_of_their_weights(tmp_path):
    pruning = PruneAtInit("magnitude", 0.3)
    saved(tmp_path, ChannelsLast(), pruning)
    again = PruneAtInit("magnitude", 0.3)
    resume(tmp_path / "ep1-ba5-rank0.pt", [ChannelsLast(), again])
    for each in (pruning, again):
        assert each.masks["module.3.weight"].is_contiguous(memory_format=torch.channels_last)


def test_images_that_are_normalised_on_the_way_to_the_model():
    """As those of recipes are: bytes in the loader, floats in the model."""
    x, y = examples()
    data = DataLoader([*zip((x * 40).round().to(torch.int8), y, strict=True)], 8)

    def normalised(batch):
        return batch[0].float() / 40, batch[1]

    spec = DataSpec(data, microbatch_transforms=normalised)
    of_data = [PruneAtInit(name, 0.5, samples_per_class=4, transform=normalised) for name in ("snip", "synflow")]
    for pruning in (MagnitudePruning(0.5), PruneAtInit("magnitude", 0.5), *of_data):
        run = fit(pruning, train_dataloader=spec)
        assert pruning.remaining() == 1688 and 1 < pruning.size(run.state).theoretical_speedup < 3


def test_ranks_that_disagree_are_told(tmp_path, monkeypatch):
    saved(tmp_path, PruneAtInit("magnitude", 0.3))
    monkeypatch.setattr(ranks, "gathered", lambda own: [own, "another"])
    for start in (fit, functools.partial(resume, tmp_path / "ep1-ba5-rank0.pt")):
        with pytest.raises(RuntimeError, match="ranks have chosen different masks"):
            start(PruneAtInit("magnitude", 0.3))


def test_layer_collapse_is_told():
    with pytest.warns(LayerCollapseWarning, match=r"nothing is left of module\.3\.weight; prune less"):
        fit(PruneAtInit("magnitude", {"*.3.*": 0.0001}), max_duration="1ba")


def test_split_weights_are_refused(monkeypatch):
    run = trainer()
    pruning = MagnitudePruning(0.5)
    run.state.algorithms.append(pruning)
    monkeypatch.setattr(type(run.state), "fsdp_config", property(lambda state: object()))
    with pytest.raises(ValueError, match="MagnitudePruning does not work on weights that FSDP"):
        pruning.apply(Event.INIT, run.state, run.logger)


def test_nothing_to_prune_and_wrong_patterns_say_so():
    for arguments, message in (
        ({"include": ["conv*"]}, r"no prunable weight is called 'conv\*'; there are module\.0\.weight"),
        ({"exclude": ["*"]}, "exclude leaves nothing to prune"),
    ):
        with pytest.raises(ValueError, match=f"MagnitudePruning: {message}"):
            trainer(MagnitudePruning(0.5, **arguments))


def test_an_algorithm_serves_one_run_after_the_other(tmp_path):
    for pruning in (PruneAtInit("magnitude", 0.3), MagnitudePruning(0.3, "2ba"), LotteryTicket(1, 0.7)):
        options = {}
        if isinstance(pruning, LotteryTicket):
            options["schedulers"] = pruning.wrap(ConstantScheduler())
        first, before = weights(fit(pruning, **options)), digest(pruning.masks)
        assert pruning.remaining() == round(0.3 * 3376)
        assert_same(weights(fit(pruning, **options)), first)
        assert digest(pruning.masks) == before
    pruning = PruneAtInit("magnitude", 0.3)
    first = weights(fit(pruning))
    save_masks(tmp_path / "masks.safetensors", pruning.masks)
    ticket = PruneAtInit(ticket=str(tmp_path / "masks.safetensors"))
    assert_same(weights(fit(ticket)), first)


def test_what_is_logged_is_the_size():
    memory = InMemoryLogger()
    pruning = PruneAtInit("magnitude", {"*.3.*": 0.25})
    run = fit(pruning, loggers=memory)
    values = {name: data[-1][1] for name, data in memory.data.items() if name.startswith("pruning/")}
    kept, total = 3376 - 2304 + 576, sum(parameter.numel() for parameter in run.state.model.parameters())
    per_sample = {
        "module.0.weight": 432 * 144,
        "module.3.weight": 2304 * 9,
        "module.6.weight": 512 * 4,
        "module.9.weight": 128,
    }
    dense = sum(per_sample.values())
    assert values == pytest.approx(
        {
            "pruning/density": kept / 3376,
            "pruning/compression_ratio": total / (total - 3376 + kept),
            "pruning/speedup": dense / (dense - 0.75 * per_sample["module.3.weight"]),
        }
    )
