"""Optimizers by groups of parameters: each is trained as a plain loop with its own options does it, or not at all."""

import math

import pytest
import torch
from composer import Callback
from composer.algorithms import EMA
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.config.recipe import check
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.train import train
from runs import KILL, measured, same, settings, trained

BATCHES = 6


class Net(nn.Module):
    """Of digits; `tied` is another name of the classifier's weight."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU())
        self.fc = nn.Linear(32, 10)
        self.tied = nn.Linear(32, 10, bias=False)
        self.tied.weight = self.fc.weight

    def forward(self, x):
        return self.fc(self.layer1(F.relu(self.bn1(self.conv1(x)))).flatten(1))


def network(channels: int = 16):
    return ComposerClassifier(Net(channels), num_classes=10, loss_fn=F.cross_entropy)


class Seen(Callback):
    """What a plain loop needs, and what came of it: all weights are those in training."""

    start: dict[str, torch.Tensor]
    batches: dict[int, tuple[torch.Tensor, torch.Tensor]]
    end: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    groups: dict[str, dict]
    masks: dict[str, torch.Tensor]

    def fit_start(self, state, logger):
        names = {id(parameter): name for name, parameter in state.model.named_parameters()}
        Seen.start, Seen.batches, Seen.groups = self._weights(state), {}, {}
        for group in state.optimizers[0].param_groups:
            options = {name: value for name, value in group.items() if name != "params"}
            Seen.groups |= {names[id(parameter)].removeprefix("module."): options for parameter in group["params"]}

    def before_forward(self, state, logger):
        Seen.batches[state.timestamp.batch.value] = state.batch

    def batch_end(self, state, logger):
        Seen.end = self._weights(state)
        for algorithm in state.algorithms:
            if isinstance(algorithm, EMA):
                held = algorithm.ema_model.named_parameters_dict
                Seen.average = {name.removeprefix("module."): value.clone() for name, value in held.items()}
            Seen.masks = getattr(algorithm, "masks", None) or getattr(Seen, "masks", {})

    def _weights(self, state):
        return {n.removeprefix("module."): p.detach().clone() for n, p in state.model.named_parameters()}


def config(folder, optimizer, **changes):
    return settings(folder) | {
        "max_duration": f"{BATCHES}ba",
        "model": {f"{__name__}:network": {}},
        "optimizer": optimizer,
        "scheduler": {"linear": {}},
        "algorithms": {},
        "callbacks": {f"{__name__}:Seen": {}},
        **changes,
    }


def linear(t, T=BATCHES):
    """By which rates are multiplied; Composer asks for it before it has counted the last update."""
    return 1 - max(t - 1, 0) / T


# By hand: what one update does to a parameter `p` of gradient `g`, whose state is `s`; `lr` is scheduled from `rate`.
def sgd(p, g, s, *, lr, rate, momentum=0.0, weight_decay=0.0):
    g = g + weight_decay * p
    s["m"] = g if "m" not in s else momentum * s["m"] + g
    return p - lr * s["m"]


def decoupled_sgdw(p, g, s, *, lr, rate, momentum=0.0, weight_decay=0.0):
    s["m"] = g if "m" not in s else momentum * s["m"] + g
    return p * (1 - lr / rate * weight_decay) - lr * s["m"]


def adamw(p, g, s, *, lr, rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    s["t"] = t = s.get("t", 0) + 1
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g * g
    step = s["m"] / (1 - betas[0] ** t) / ((s["v"] / (1 - betas[1] ** t)).sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * step


SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAM = {"lr": 0.01, "weight_decay": 0.1}
NO_DECAY = {"*bias|bn1.weight": {"weight_decay": 0}}
SGD_GROUPS = NO_DECAY | {"layer1.0.weight": {"lr": 0.02, "momentum": 0.0}, "conv1.*": False}
ADAM_GROUPS = NO_DECAY | {"layer1.0.weight": {"lr": 0.002, "betas": [0.5, 0.9]}, "conv1.*": False}
OPTIMIZERS = {
    "sgd": (sgd, {"sgd": SGD | {"groups": SGD_GROUPS}}),
    "decoupled_sgdw": (decoupled_sgdw, {"decoupled_sgdw": SGD | {"groups": SGD_GROUPS}}),
    "adamw": (adamw, {"torch.optim:AdamW": ADAM | {"groups": ADAM_GROUPS}}),
}


def plain(update, optimizer, rate_at, ascend=0.0, rewind="", k=0, T=0):
    """The weights after the batches that were seen, and their averages of half-life 2 from the first update on."""
    ((_, own),) = optimizer.items()
    own = dict(own)
    groups = own.pop("groups")
    net, weights = Net(), dict(Seen.start)
    options = {name: own for name in weights}
    options |= {name: own | groups["*bias|bn1.weight"] for name in weights if "bias" in name or name == "bn1.weight"}
    options["layer1.0.weight"] = own | groups["layer1.0.weight"]
    trained_ones = [name for name in weights if name != "conv1.weight"]
    states, masks, average, at_k = {name: {} for name in weights}, {}, {}, {}

    def gradients(at, batch):
        at = {name: w.clone().requires_grad_(name in trained_ones) for name, w in at.items()}
        loss = F.cross_entropy(torch.func.functional_call(net, at, batch[0]), batch[1])
        found = dict(zip(trained_ones, torch.autograd.grad(loss, [at[name] for name in trained_ones]), strict=True))
        return {name: g * masks.get(name, 1) for name, g in found.items()}

    for t, batch in sorted(Seen.batches.items()):
        if t == k:
            at_k = dict(weights)
        if rewind and t == T:
            pruned = [name for name in weights if weights[name].dim() > 1]
            scores = torch.cat([weights[name].abs().flatten() for name in pruned])
            least = scores.topk(math.floor(0.8 * len(scores) + 0.5)).values[-1]
            masks = {name: (weights[name].abs() >= least).float() for name in pruned}
            weights = dict(at_k) if rewind == "weights" else weights
            weights = {name: w * masks.get(name, 1) for name, w in weights.items()}
            states = {name: {} for name in weights}
        g = gradients(weights, batch)
        if ascend:
            norm = torch.stack([g[name].norm() for name in trained_ones]).norm()
            up = {name: w + ascend / (norm + 1e-12) * g[name] if name in g else w for name, w in weights.items()}
            g = gradients(up, batch)
        for name in trained_ones:
            rate = options[name]["lr"]
            given = {key: value for key, value in options[name].items() if key != "lr"}
            weights[name] = update(weights[name], g[name], states[name], lr=rate * rate_at(t), rate=rate, **given)
        share = math.exp(-math.log(2) / 2)
        average = (
            {name: share * average[name] + (1 - share) * weights[name] for name in weights} if t else dict(weights)
        )
    return weights, average


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_group_is_updated_as_a_plain_loop_does_it(name, tmp_path):
    update, optimizer = OPTIMIZERS[name]
    train(config(tmp_path, optimizer))
    expected, _ = plain(update, optimizer, linear)
    assert_close(Seen.end, expected)
    assert torch.equal(Seen.end["conv1.weight"], Seen.start["conv1.weight"]) and "conv1.weight" not in Seen.groups
    with pytest.raises(AssertionError):  # so near that the groups' own options show
        ((key, own),) = optimizer.items()
        same_for_all = {key: own | {"groups": {patterns: {} for patterns in own["groups"]}}}
        assert_close(Seen.end, plain(update, same_for_all, linear)[0])


@pytest.mark.filterwarnings("ignore:SAM has known issues:UserWarning")
def test_sam(tmp_path):
    update, optimizer = OPTIMIZERS["sgd"]
    train(config(tmp_path, optimizer, algorithms={"sam": {"rho": 0.5}}))
    assert_close(Seen.end, plain(update, optimizer, linear, ascend=0.5)[0])
    assert torch.equal(Seen.end["conv1.weight"], Seen.start["conv1.weight"])


def test_ema(tmp_path):
    update, optimizer = OPTIMIZERS["decoupled_sgdw"]
    train(config(tmp_path, optimizer, algorithms={"ema": {"half_life": "2ba", "update_interval": "1ba"}}))
    weights, average = plain(update, optimizer, linear)
    assert_close(Seen.end, weights)
    del average["conv1.weight"]  # Composer averages what is trained
    assert_close(Seen.average, average)
    assert torch.equal(Seen.end["conv1.weight"], Seen.start["conv1.weight"])


@pytest.mark.parametrize(
    ("rewind", "rate_at"),
    [
        ("weights", lambda t: linear(t if t < 4 else t - 2, 4)),
        ("learning_rate", lambda t: linear(t if t < 4 else t - 2, 4)),
        ("finetune", lambda t: linear(t, 4) if t < 4 else 0.5),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lottery_ticket(name, rewind, rate_at, tmp_path):
    update, optimizer = OPTIMIZERS[name]
    ticket = {"levels": 1, "rewind_to": "2ba", "rewind": rewind, "finetune_multiplier": 0.5}
    train(config(tmp_path, optimizer, algorithms={"lottery_ticket": ticket}, max_duration="4ba"))
    assert len(Seen.batches) == 6
    assert_close(Seen.end, plain(update, optimizer, rate_at, rewind=rewind, k=2, T=4)[0])
    kept = Seen.masks["module.conv1.weight"]
    assert torch.equal(Seen.end["conv1.weight"], Seen.start["conv1.weight"] * kept) and not kept.all()


@pytest.mark.parametrize("criterion", ["gradient_magnitude", "snip", "grasp", "synflow"])
def test_a_frozen_weight_is_pruned_as_if_it_were_trained(criterion, tmp_path):
    """Criteria that look at gradients compute those of frozen weights too."""
    algorithms = {"prune_at_init": {"criterion": criterion, "density": 0.5}}
    masks = []
    for groups in ({}, {"conv1.*|fc.weight": False}):
        optimizer = {"sgd": SGD | {"groups": groups}}
        train(config(tmp_path / str(len(groups)), optimizer, algorithms=algorithms, max_duration="2ba"))
        masks.append(Seen.masks)
    assert same(*masks) and not masks[0]["module.conv1.weight"].all()
    for name in ("conv1.weight", "fc.weight"):
        assert torch.equal(Seen.end[name], Seen.start[name] * masks[0][f"module.{name}"])


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lottery_ticket"])
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path):
    _, optimizer = OPTIMIZERS.get(name, OPTIMIZERS["sgd"])
    algorithms = {"lottery_ticket": {"levels": 2, "rewind_to": "2ba"}} if name == "lottery_ticket" else {}
    length = "4ba" if algorithms else "2ep"
    given = config(tmp_path / "whole", optimizer, algorithms=algorithms, max_duration=length)
    whole, weights = trained(given)
    killed = given | {"folder": str(tmp_path / "killed")}
    with pytest.raises(KeyboardInterrupt):
        train(killed | KILL)
    ((key, own),) = optimizer.items()
    other_order = {key: own | {"groups": dict(reversed(own["groups"].items()))}}
    result, resumed = trained(killed | {"optimizer": other_order})
    assert measured(result) == measured(whole) and same(resumed, weights)


def test_other_groups_make_another_run(tmp_path):
    given = config(tmp_path, {"sgd": SGD | {"groups": {"conv1.*": {"lr": 0.01}}}}, max_duration="2ba")
    train(given)
    for groups, key in [({"conv1.*": {"lr": 0.02}}, "conv1.*.lr"), ({"conv1.*": False}, "conv1.*"), ({}, "groups")]:
        with pytest.raises(ConfigError, match="but the run in") as error:
            train(given | {"optimizer": {"sgd": SGD | {"groups": groups}}})
        assert key in error.value.key


def test_a_checkpoint_of_other_groups_is_refused(tmp_path):
    first = config(tmp_path, {"sgd": SGD}, max_duration="2ba", save_interval="1ba")
    train(first)
    (file,) = tmp_path.glob("run/checkpoints/ep*.pt")
    given = first | {"run_name": "next", "load_path": str(file), "max_duration": "4ba"}
    for options, message in [({"weight_decay": 0}, "weight_decay would be"), ({"lr": 0.3}, "lr would be")]:
        with pytest.raises(ConfigError, match=f"groups are not the checkpoint's: {message}"):
            train(given | {"optimizer": {"sgd": SGD | {"groups": {"*bias": options}}}})
    train(given | {"optimizer": {"sgd": SGD | {"groups": {"*bias": options}}}, "load_weights_only": True})


def test_surgery_leaves_parameters_in_their_groups(tmp_path):
    train(config(tmp_path, {"sgd": SGD | {"groups": SGD_GROUPS}}, algorithms={"blur_pool": {}}, max_duration="1ba"))
    (moved,) = [name for name in Seen.groups if "layer1.0" in name and name.endswith("weight")]
    assert Seen.groups[moved]["initial_lr"] == 0.02 and Seen.groups["fc.bias"]["weight_decay"] == 0
    assert Seen.groups["fc.weight"]["initial_lr"] == 0.1 and len(Seen.groups) == 6


FACTORIZE = {"factorize": {"min_channels": 8, "latent_channels": 2, "min_features": 10**6}}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"layer1.*": False},
            "module.layer1.0.weight, module.layer1.0.bias would be trained, as an algorithm replaces",
        ),
        ({"layer1.0.weight": {"lr": 0.02}}, "Not all removed parameters are in the same parameter group"),
    ],
)
def test_surgery_that_would_train_what_is_frozen_or_that_knows_no_group_is_refused(groups, message, tmp_path):
    given = config(tmp_path, {"sgd": SGD | {"groups": groups}}, algorithms=FACTORIZE)
    with pytest.raises(ConfigError) as error:
        train(given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Checkpoints with layer freezing:UserWarning")
def test_layers_frozen_in_training_beside_those_frozen_from_the_start(tmp_path):
    freezing = {"layer_freezing": {"freeze_start": 0.0, "freeze_level": 1.0}}
    train(config(tmp_path, {"sgd": SGD | {"groups": SGD_GROUPS}}, algorithms=freezing, max_duration="2ep"))
    assert torch.equal(Seen.end["conv1.weight"], Seen.start["conv1.weight"])
    assert not torch.equal(Seen.end["fc.weight"], Seen.start["fc.weight"])


class Grouped(torch.optim.SGD):
    """Has an argument `groups` of its own."""

    def __init__(self, params, lr: float = 0.1, groups: int = 1):
        super().__init__(params, lr)
        self.groups = groups


class Whole(torch.optim.SGD):
    """Has an option that is none of a group."""

    def __init__(self, params, lr: float = 0.1, sync: bool = False):
        super().__init__(params, lr)


def built(optimizer):
    recipe = check(config("runs", optimizer))
    return recipe.optimizer.build(recipe.model.build())


def test_names_with_and_without_the_wrapper_and_of_shared_weights():
    for pattern in ("module.fc.*", "fc.*", "tied.weight|*fc.bias", " fc.weight | fc.bias "):
        first, second = built({"sgd": {"lr": 0.1, "groups": {pattern: {"lr": 0.2}}}}).param_groups
        assert len(first["params"]) == 5 and [p.numel() for p in second["params"]] == [320, 10] and second["lr"] == 0.2


def test_a_class_with_groups_of_its_own_gets_them():
    assert built({f"{__name__}:Grouped": {"groups": 3}}).groups == 3
    with pytest.raises(ConfigError, match=r"groups: \{\} given; expected a whole number"):
        built({f"{__name__}:Grouped": {"groups": {}}})


def test_no_group_for_the_rest_where_nothing_is_left():
    (only,) = built({"sgd": {"lr": 0.1, "groups": {"*": {"lr": 0.2}}}}).param_groups
    assert len(only["params"]) == 7 and only["lr"] == 0.2
    assert len(built({"sgd": {"lr": 0.1, "groups": None}}).param_groups) == 1


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"conv2.*": {"lr": 0.1}}, ".conv2.*: no parameter is called 'conv2.*'; did you mean conv1.weight?"),
        ({"conv1.*|conv2.*": False}, ".conv1.*|conv2.*: no parameter is called 'conv2.*'; did you mean conv1.weight?"),
        ({"": False}, "no parameter is called ''; there are conv1.weight, bn1.weight, bn1.bias and 4 more"),
        ({"CONV1.*": False}, "no parameter is called 'CONV1.*'"),
        ({"*bias": {"lr": 0.1}, "bn1.*": False}, ".bn1.*: meets bn1.bias, as '*bias' does; narrow one of them"),
        ({"fc.weight": {"lr": 0.1}, "tied.*": False}, ".tied.*: meets fc.weight, as 'fc.weight' does"),
        ({"*": False}, ".sgd.groups: every parameter is frozen; expected some to train"),
        ({"*bias": {"weight_dcay": 0}}, ".*bias.weight_dcay: unknown argument; did you mean weight_decay?"),
        ({"*bias": {"params": 0}}, ".*bias.params: unknown argument"),
        ({"*bias": {"lr": "high"}}, ".*bias.lr: 'high' given; expected a number"),
        ({"*bias": {"lr": None}}, ".*bias.lr: null given; expected a number"),
        ({"conv1.*": {"lr": -0.1}}, ".conv1.*: Invalid learning rate: -0.1"),
        ({"conv1.*": {"nesterov": True, "momentum": 0}}, ".conv1.*: Nesterov momentum requires a momentum"),
        ({"conv1.*": True}, ".conv1.*: true given; expected options such as {lr: 0.01}, or false to freeze"),
        ({"conv1.*": {}}, ".conv1.*: {} given; expected options"),
        ({"conv1.*": None}, ".conv1.*: null given; expected options"),
        ({"conv1": {"*": False}}, ".conv1.*: no option of an optimizer; a pattern with dots stands"),
        (["*bias"], ".sgd.groups: ['*bias'] given; expected patterns"),
        (False, ".sgd.groups: false given; expected patterns"),
        ({3: False}, ".3: no parameter is called '3'"),
    ],
)
def test_what_nobody_means_is_one_line(groups, message):
    with pytest.raises(ConfigError) as error:
        built({"sgd": {"lr": 0.1, "groups": groups}})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({f"{__name__}:Whole": {"groups": {"*bias": {"sync": True}}}}, ":Whole.groups.*bias.sync: is of the whole op"),
        ({"lbfgs": {"groups": {"*bias": {"lr": 0.1}}}}, "LBFGS doesn't support per-parameter options"),
    ],
)
def test_optimizers_that_lack_groups_or_options_of_groups(optimizer, message):
    with pytest.raises(ConfigError) as error:
        built(optimizer)
    assert message in str(error.value) and "\n" not in str(error.value)


FILE = """
optimizer:
  decoupled_sgdw:
    groups:
      "*bias|*bn*": {weight_decay: 0}
      "4.*": {lr: "${variables.low}"}
variables: {low: 0.01}
extends: digits/baseline.yaml
"""


def test_files_that_extend_others_and_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(FILE)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\noptimizer: {decoupled_sgdw: {groups: {'4.*': false}}}\n")

    def groups(file, *overrides):
        return check(*load(tmp_path / file, overrides)).optimizer.arguments.get("groups")

    key = "optimizer.decoupled_sgdw.groups"
    decay = {"*bias|*bn*": {"weight_decay": 0.0}}
    assert groups("a.yaml") == decay | {"4.*": {"lr": 0.01}}
    assert groups("b.yaml") == decay | {"4.*": False}
    assert groups("b.yaml", f"{key}[4.*].lr=0.5") == decay | {"4.*": {"lr": 0.5}}
    assert groups("a.yaml", f"{key}[4.*]=false", "variables.low=3") == decay | {"4.*": False}
    assert groups("a.yaml", f"{key}=null", f"{key}={{'0.*': false}}") == {"0.*": False}
    assert groups("a.yaml", f"{key}=null") is None
    with pytest.raises(ConfigError, match=r"^command line: .*\.groups\.4\.\*\.lr: 'x' given; expected a number"):
        groups("a.yaml", f"{key}[4.*].lr=x")
    with pytest.raises(ConfigError, match=r"a\.yaml: .*\.groups\.4\.\*\.lr: 'x' given") as error:
        groups("a.yaml", "variables.low=x")
    assert "command line" not in str(error.value)


def test_a_study_tries_out_the_groups_of_its_arms():
    arm = "study.tradeoff.arms={baseline: {}, frozen: {optimizer: {decoupled_sgdw: {groups: {conv9: false}}}}}"
    with pytest.raises(ConfigError, match=r"frozen\.optimizer\.decoupled_sgdw\.groups\.conv9: no parameter is called"):
        plan(*load("digits/tradeoff.yaml", [arm, "study.tradeoff.seeds=[17]"]))
