"""What every callback for Lightning promises, one suite for all of them. A new one joins by one entry in CASES."""

import csv
import inspect
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import accelerando.algorithms.lightning as ours
from accelerando.algorithms import BlurConv2d, BlurMaxPool2d, MultiplicativeCyclicLR, find_snapshot, mixup_batch
from accelerando.algorithms.lightning.losses import LossTechnique
from accelerando.algorithms.pruning import prunable_weights
from accelerando.algorithms.pruning.masks import digest
from accelerando.algorithms.validation import NoEffectWarning
from launcher import run_two_ranks
from light import SEED, TENSORS_ALONE, Kill, Module, Shuffled, checkpoints, loader, module_for, trainer, weights
from small import assert_same, differ, hugging_face_lm, mixup_draws, network, timeless

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # for ModelCheckpoint, too
    pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument"),
    pytest.mark.filterwarnings("ignore:LinearPath. the path is not drawn, as matplotlib is missing"),
]


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


@dataclass
class Run:
    trainer: Trainer
    module: Module
    callbacks: dict[str, Any]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return weights(self.module)


@dataclass(kw_only=True)
class Case:
    """How to build a callback, and what it says of itself."""

    build: Callable[[], Callback]
    changed: Callable[[Run, Run], bool]
    """Whether the training shows the effect, beside one without the callback."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Arguments that do nothing or cannot work; the error must name the first of them."""
    required: Callable[[], dict[str, Any]] = dict
    """Arguments without a default."""
    changes_training: bool = True
    """Whether the trained weights differ from the plain training's."""
    on: tuple[str, ...] = ("images", "text")
    """What it can train on; the first is what it is tried with alone."""
    build_on_text: Callable[[], Callback] | None = None
    """Where it is built in another way for text."""
    schedule: Callable[[Any], Any] | None = None
    """Makes the scheduler that it needs out of the optimizer; the plain training has it too."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the Trainer is given beside the callback; the plain one too."""
    validates: bool = False
    """Whether it needs validation data."""
    never_with: Sequence[str] = ()
    """Those that it cannot be combined with."""
    updates: int = 8
    """How long the training is."""
    chooses_weights: bool = False
    """Whether rounding may tip a choice between two weights."""
    chosen: Callable[[Any], Any] = lambda callback: None
    """What it has chosen for all ranks, as builtins; asked after every batch."""
    in_parts: Callable[[], dict[str, torch.Tensor]] | None = None
    """The weights of 24 samples in batches of 2, 4 of which make an update, where it is not that of a batch of 8."""
    over_two_ranks: Callable[[], dict[str, torch.Tensor]] | None = None
    """The weights of 24 samples over two ranks, where they are not those of one process."""


def trains_on(*names: str) -> str | None:
    """What all of them can train on."""
    return next((kind for kind in ("images", "text") if all(kind in CASES[name].on for name in names)), None)


def build(name: str, kind: str | None) -> Callback:
    case = CASES[name]
    return case.build_on_text() if kind == "text" and case.build_on_text else case.build()


def start(*names: str, without: Sequence[str] = (), extra: Sequence[Callback] = (), **options: Any) -> Run:
    """A training with the callbacks named, or only with what those in `without` need."""
    cases, kind = [CASES[name] for name in names], trains_on(*names)
    module = module_for(str(kind), schedule=next((case.schedule for case in cases if case.schedule), None))
    callbacks = {name: build(name, kind) for name in names if name not in without}
    for case in cases:
        options = case.options | options
    return Run(trainer([*callbacks.values(), *extra], **options), module, callbacks)


def fit(
    *names: str,
    data: Any = None,
    compiled: Any = None,
    resumed: Path | None = None,
    killed: bool = False,
    **options: Any,
) -> Run:
    run, kind = start(*names, **options), str(trains_on(*names))
    validation = loader(kind, 5) if any(CASES[name].validates for name in names) else None
    module: Any = torch.compile(run.module, **compiled) if compiled else run.module
    place = {"ckpt_path": resumed, **TENSORS_ALONE} if resumed else {}
    run.trainer.fit(module, data or loader(kind), validation, **place)
    return run


@cache
def usual(*names: str, without: tuple[str, ...] = ()) -> Run:
    """The training that many tests compare with, once."""
    return fit(*names, without=without)


def mixed(parts: int, ranks: int) -> dict[str, torch.Tensor]:
    """MixUp from the formula, of 24 samples: an update takes several batches in turn, or one of each rank."""
    module = module_for("images")
    optimizer, number = module.configure_optimizers(), 0
    for _ in range(2):
        for inputs, targets in loader("images", 8, samples=24):
            optimizer.zero_grad()
            for part in range(parts * ranks):
                rows = slice(part, None, ranks) if ranks > 1 else slice(2 * part, 2 * part + 2)
                x, y, rank = inputs[rows], targets[rows], part if ranks > 1 else 0
                mixing, pairs = mixup_draws(0.5, len(x), SEED, number, rank)
                x, other, _ = mixup_batch(x, y, mixing, indices=pairs)
                outputs = module.network(x)
                loss = (1 - mixing) * F.cross_entropy(outputs, y) + mixing * F.cross_entropy(outputs, other)
                (loss / parts / ranks).backward()
                number += rank == ranks - 1
            optimizer.step()
    return weights(module)


def blurred(run: Run, plain: Run) -> bool:
    return any(isinstance(module, BlurConv2d) for module in run.module.modules())


def in_channels_last(run: Run, plain: Run) -> bool:
    weight = next(parameter for parameter in run.module.parameters() if parameter.ndim == 4)
    held = [weight, *(batch[0] for batch in run.module.given)]
    return all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in held)


def trains_differently(run: Run, plain: Run) -> bool:
    return differ(run.weights, plain.weights)


def sees_labelled_positions(run: Run, plain: Run) -> bool:
    return {batch["labels"].shape for batch in run.module.given} == {(24,), (18,)}


def masks_of(pruning: Any) -> str:
    return digest(pruning.masks)


def half_pruned(run: Run, plain: Run) -> bool:
    """49 % of the prunable weights are left, but for rounding, perhaps in each layer."""
    held = prunable_weights(run.module).values()
    return abs(sum(int(w.count_nonzero()) - 0.49 * w.numel() for w in held)) <= 0.5 * len(held)


def has_points(run: Run, plain: Run) -> bool:
    curve = run.callbacks.get("TradeoffCurve")
    return curve is not None and [point["batch"] for point in curve.points if "loss" in point] == [2, 4, 6, 8]


def has_snapshots(run: Run, plain: Run) -> bool:
    own = run.callbacks.get("Snapshots")
    if own is None:
        return False
    held = [find_snapshot(SNAPSHOTS, moment) for moment in own.kept]
    return [*own.kept.values()] == [0, 3, run.trainer.global_step] and all(each.full for each in held)


def has_path(run: Run, plain: Run) -> bool:
    own = run.callbacks.get("LinearPath")
    if own is None or (path := own.result) is None:
        return False
    losses = path.curves["train/loss"]
    return path.end == run.trainer.global_step and len(losses) == 3 and losses[0] > losses[-1]


def has_forgotten(run: Run, plain: Run) -> bool:
    own = run.callbacks.get("ForgettingEvents")
    return own is not None and own.forgetting.looks == run.trainer.global_step // 2 and own.forgetting.learned.any()


def loss_of(module: nn.Module, batch: Any) -> torch.Tensor:
    outputs = module(batch)
    return F.cross_entropy(outputs, batch[1]) if isinstance(outputs, torch.Tensor) else outputs.loss


SNAPSHOTS = tempfile.mkdtemp()
PATH = tempfile.mkdtemp()
FORGETTING = tempfile.mkdtemp()
EVERY_TWO: dict[str, Any] = {"val_check_interval": 2, "check_val_every_n_epoch": None}
PATTERNS: list[dict[str, Any]] = [{"include": ()}, {"include": "conv"}, {"exclude": "conv"}, {"scope": "local"}]
CASES = {
    "BlurPool": Case(
        build=ours.BlurPool,
        changed=blurred,
        refused=[{"replace_convs": False, "replace_maxpools": False}],
        on=("images",),
    ),
    "ChannelsLast": Case(build=ours.ChannelsLast, changed=in_channels_last, changes_training=False, on=("images",)),
    "Distillation": Case(
        build=lambda: ours.Distillation([network(seed=5), network(seed=6)], teachers_per_step=1),
        changed=trains_differently,
        refused=[{"teachers": []}, {"teachers_per_step": 2}, {"temperature": 0.0}, {"start": "soon"}, {"end": "0ba"}],
        required=lambda: {"teachers": network()},
        chosen=lambda distillation: distillation.drawn,
        build_on_text=lambda: ours.Distillation(
            [hugging_face_lm(seed=5), hugging_face_lm(seed=6)], teachers_per_step=1
        ),
    ),
    "ForgettingEvents": Case(
        build=lambda: ours.ForgettingEvents(loader("images", 7), "2ba", save_folder=FORGETTING),
        changed=has_forgotten,
        refused=[
            *({"interval": time} for time in ("0ba", "soon", "3sp", 3)),
            {"save_folder": "s3://bucket/forgetting"},
        ],
        required=lambda: {"data": loader("images", 7)},
        changes_training=False,
        on=("images",),
        build_on_text=lambda: ours.ForgettingEvents(loader("text", 7), "2ba", save_folder=FORGETTING),
        chosen=lambda forgetting: timeless(forgetting.forgetting.state_dict()),
    ),
    "LabelSmoothing": Case(
        build=lambda: ours.LabelSmoothing(0.2),
        changed=trains_differently,
        refused=[{"smoothing": -0.1}, {"smoothing": 1.1}],
    ),
    "LabelledPositions": Case(
        build=ours.LabelledPositions, changed=sees_labelled_positions, changes_training=False, on=("text",)
    ),
    "LinearPath": Case(
        build=lambda: ours.LinearPath(points=3, train=True, save_folder=PATH),
        changed=has_path,
        refused=[
            *({"start": time} for time in ("1dur", "soon", "3sp", 3)),
            {"points": 1},
            {"batch_norm": "none"},
            {"batches": 0},
            {"save_folder": "s3://bucket/path"},
        ],
        changes_training=False,
        chosen=lambda path: [*path.kept.values()],
    ),
    "LotteryTicket": Case(
        build=lambda: ours.LotteryTicket(levels=2, fraction=0.3, rewind_to="2ba"),
        changed=half_pruned,
        refused=[
            {"levels": 0},
            *({"fraction": fraction} for fraction in (0.0, 1.0)),
            {"fraction": 0.6, "schedule": "arithmetic"},
            {"schedule": "cubic"},
            *({"rewind_to": time} for time in ("-1ba", "soon", "0.5dur", "3sp")),
            {"rewind": "never"},
            {"finetune_multiplier": 0.0},
            *PATTERNS,
        ],
        required=lambda: {"levels": 2},
        options={"max_steps": 8} | EVERY_TWO,
        validates=True,
        never_with=("MagnitudePruning", "PruneAtInit", "TradeoffCurve"),
        chosen=masks_of,
        updates=20,
        chooses_weights=True,
    ),
    "MagnitudePruning": Case(
        build=lambda: ours.MagnitudePruning(0.49, start="1ba", end="4ba", interval="1ba"),
        changed=half_pruned,
        refused=[
            *({"density": value} for value in (0.0, 1.0, {}, {"*": 1.0})),
            *({"start": time} for time in ("-1ba", "soon", "1dur", "3sp")),
            *({"end": time} for time in ("0ba", "never", "3tok")),
            *({"interval": time, "end": "0.5dur"} for time in ("0dur", "soon", "0.7dur")),
            {"interval": "1ba"},
            {"schedule": "geometric"},
            *PATTERNS,
        ],
        required=lambda: {"density": 0.5},
        never_with=("LotteryTicket", "PruneAtInit"),
        chosen=masks_of,
        chooses_weights=True,
    ),
    "MixUp": Case(
        build=lambda: ours.MixUp(0.5),
        changed=trains_differently,
        refused=[{"alpha": -1.0}, {"alpha": float("inf")}],
        chosen=lambda mixup: mixup.mixing,
        in_parts=lambda: mixed(parts=4, ranks=1),
        over_two_ranks=lambda: mixed(parts=1, ranks=2),
        on=("images",),
    ),
    "PruneAtInit": Case(
        build=lambda: ours.PruneAtInit("snip", 0.49, samples_per_class=2, batch_loss=loss_of),
        changed=half_pruned,
        refused=[
            {"criterion": "hessian"},
            *({"density": value} for value in (None, 0.0, 1.0)),
            {"ticket": "nowhere.safetensors", "density": None},
            {"ticket": __file__},
            {"iterations": 0},
            *({"at": time} for time in ("-1ba", "soon", "0.5dur")),
            {"reinitialize": True, "at": "1ba"},
            {"samples_per_class": 0},
            {"temperature": 0.0},
            {"loss": F.cross_entropy},
            *PATTERNS,
        ],
        required=lambda: {"density": 0.5},
        build_on_text=lambda: ours.PruneAtInit("snip", 0.49, scope="layerwise", batch_loss=loss_of),
        never_with=("LotteryTicket", "MagnitudePruning"),
        chosen=masks_of,
        chooses_weights=True,
    ),
    "Snapshots": Case(
        build=lambda: ours.Snapshots(["0ba", "3ba", "1dur"], full=True, save_folder=SNAPSHOTS),
        changed=has_snapshots,
        refused=[
            *({"at": moments} for moments in ([], "1ep", ["soon"], ["1ep", "1ep"], ["2dur"], ["3sp"], [3])),
            {"save_folder": "s3://bucket/snapshots", "at": ["1ep"]},
        ],
        required=lambda: {"at": ["1ep"]},
        changes_training=False,
        chosen=lambda snapshots: [*snapshots.kept.values()],
    ),
    "TradeoffCurve": Case(
        build=ours.TradeoffCurve,
        changed=has_points,
        changes_training=False,
        schedule=lambda optimizer: MultiplicativeCyclicLR(optimizer, 0, 2, growth=1),
        options=EVERY_TWO,
        validates=True,
        never_with=("LotteryTicket",),
    ),
}

every = pytest.mark.parametrize("name", CASES)


def test_every_callback_is_here():
    exported = [getattr(ours, name) for name in ours.__all__]
    assert {item.__name__ for item in exported if inspect.isclass(item) and issubclass(item, Callback)} == set(CASES)


@every
def test_1_changes_what_it_says(name):
    case, run, plain = CASES[name], usual(name), usual(name, without=(name,))
    assert case.changed(run, plain) and not case.changed(plain, fit(name, without=[name]))
    assert differ(run.weights, plain.weights) == case.changes_training
    assert run.trainer.global_step == case.updates


@every
def test_2_resumes_bit_for_bit_after_a_kill(name, tmp_path, monkeypatch):
    kind = str(trains_on(name))
    whole = fit(name, data=Shuffled(kind))
    with pytest.raises(KeyError, match="killed"):  # after 5 updates, in the middle of the second epoch
        fit(name, data=Shuffled(kind), extra=[checkpoints(tmp_path), Kill(5)])
    monkeypatch.setenv("PL_GLOBAL_SEED", "999")
    resumed = fit(name, data=Shuffled(kind), resumed=tmp_path / "step=5.ckpt")
    assert resumed.trainer.global_step == CASES[name].updates
    assert_same(resumed.weights, whole.weights)
    states = [run.callbacks[name].state_dict() for run in (resumed, whole)]
    assert timeless(states[0]) == timeless(states[1])


@every
def test_3_accumulated_batches_make_one_update(name):
    kind, case = str(trains_on(name)), CASES[name]
    split = fit(name, data=loader(kind, 2, samples=24), accumulate_grad_batches=4)
    expected = case.in_parts() if case.in_parts else fit(name, data=loader(kind, 8, samples=24)).weights
    assert_same(split.weights, expected, atol=1e-5)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> Path:
    """One launch for all: each callback trains under two gloo processes, which leave their weights here."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(Path(__file__).with_name("lightning_ranks.py"), folder, *CASES, PL_GLOBAL_SEED=str(SEED))
    return folder


@every
def test_4_two_ranks_agree_with_each_other_and_with_one(name, two_ranks):
    first, second = (torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same(first["weights"], second["weights"])
    assert first["choices"] == second["choices"]
    case, data = CASES[name], loader(str(trains_on(name)), 8, samples=24)
    one = case.over_two_ranks() if case.over_two_ranks else fit(name, data=data).weights
    assert_same(first["weights"], one, atol=1e-5)


@every
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which torch itself hides
def test_6_trains_a_compiled_module(name):
    torch._dynamo.reset()
    data = loader(str(trains_on(name)), samples=16)
    compiled, plain = (fit(name, data=data, compiled=options) for options in ({"backend": "eager"}, None))
    assert_same(compiled.weights, plain.weights, atol=1e-5)
    assert differ(compiled.weights, fit(name, data=data, without=[name]).weights) == CASES[name].changes_training


@every
def test_7_bf16_autocast(name):
    run = fit(name, precision="bf16-mixed", max_epochs=1)
    assert run.module.precisions == {torch.bfloat16}
    exact = fit(name, max_epochs=1).weights
    if CASES[name].chooses_weights:
        apart = torch.cat([(value - exact[key]).abs().flatten() > 0.01 for key, value in run.weights.items()])
        assert apart.float().mean() < 0.05
    else:
        assert_same(run.weights, exact, atol=0.01)


PAIRS = list(itertools.combinations(CASES, 2))
NEVER = [pair for pair in PAIRS if pair[1] in CASES[pair[0]].never_with]
TOGETHER = [pair for pair in PAIRS if trains_on(*pair) and pair not in NEVER]


@pytest.mark.filterwarnings("ignore:LinearPath. the start is not zero where the network is pruned")
@pytest.mark.parametrize("pair", TOGETHER, ids="-".join)
def test_8_pairs_train_together_in_either_order(pair):
    one, other = fit(*pair), fit(*pair[::-1])
    assert_same(one.weights, other.weights, atol=1e-5)
    for name in pair:
        without = fit(*pair, without=[name])
        for run in (one, other):
            assert CASES[name].changed(run, without)
            assert differ(run.weights, without.weights) == CASES[name].changes_training


@pytest.mark.parametrize("pair", NEVER, ids="-".join)
def test_8_pairs_that_contradict_each_other_say_so(pair):
    for names in (pair, pair[::-1]):
        with pytest.raises(ValueError, match=f"{'|'.join(pair)}.*(cannot|leave)"):
            fit(*names)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not trains_on(*pair)], ids="-".join)
def test_8_pairs_that_no_model_can_have_say_so(pair):
    for kind in ("images", "text"):
        with pytest.raises((ValueError, TypeError, NoEffectWarning), match="|".join(pair)):
            trainer([build(name, kind) for name in pair]).fit(module_for(kind), loader(kind))


@every
def test_8_twins_are_refused(name):
    with pytest.raises((ValueError, RuntimeError), match=f"more than one .*{name}"):
        trainer([CASES[name].build(), CASES[name].build()]).fit(module_for(CASES[name].on[0]))


def shown(value):
    """Without addresses, by which the workers of pytest-xdist would tell tests apart."""
    return (
        ", ".join(f"{k}={getattr(v, '__name__', v)!r}" for k, v in value.items()) if isinstance(value, dict) else value
    )


@pytest.mark.parametrize(
    "name, arguments", [(name, arguments) for name, case in CASES.items() for arguments in case.refused], ids=shown
)
def test_9_constructor_refuses(name, arguments):
    with pytest.raises(ValueError, match=f"{name}.*{next(iter(arguments))}"):
        getattr(ours, name)(**CASES[name].required() | arguments)


class Forgets(Module):
    def loss(self, batch: Any, outputs: Any) -> torch.Tensor:
        return outputs.sum()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.build(), LossTechnique)])
def test_a_training_step_that_does_not_ask_for_its_loss_is_an_error(name):
    callback = CASES[name].build()
    with pytest.raises(ValueError, match=rf"{name} acts where training_step asks.*Forgets.*training_loss\(self"):
        trainer([callback]).fit(Forgets(network()), loader("images"))
    trainer([callback]).fit(module_for("images"), loader("images"))  # the next training may


def test_evaluation_and_a_module_without_trainer_have_the_plain_loss():
    teacher = network(seed=5)
    run = fit("MixUp", extra=[ours.LabelSmoothing(0.2), ours.Distillation(teacher)])
    (found,) = run.trainer.validate(run.module, loader("images"), verbose=False)
    inputs, targets = next(iter(loader("images", 30)))
    with torch.no_grad():
        outputs = run.module.network(inputs)
        losses = [F.cross_entropy(outputs[i : i + 8], targets[i : i + 8]) for i in range(0, 30, 8)]
        assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-6)
        alone = Module(network())
        plain = F.cross_entropy(alone.network(inputs), targets)
        assert ours.training_loss(alone, F.cross_entropy, alone.network(inputs), targets) == plain


def test_the_training_step_is_put_back():
    module = module_for("images")
    with pytest.raises(KeyError, match="killed"):
        trainer([ours.MixUp(), Kill(2)]).fit(module, loader("images"))
    assert "training_step" not in vars(module)
    trainer([ours.MixUp(), ours.BlurPool()]).fit(module, loader("images"))
    assert not {"training_step", "configure_model"} & set(vars(module))


class Late(Module):
    """Builds its layers when the Trainer tells it to."""

    def __init__(self, hook: str):
        super().__init__(nn.Identity())
        setattr(self, hook, self._build)

    def _build(self, stage: str = "") -> None:
        if isinstance(self.network, nn.Identity):
            self.network = network()


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_are_built_late_are_changed_too(hook):
    module = Late(hook)
    trainer([ours.BlurPool(), ours.ChannelsLast()]).fit(module, loader("images"))
    expected = fit("BlurPool", extra=[ours.ChannelsLast()])
    assert_same(weights(module), expected.weights)
    assert in_channels_last(Run(expected.trainer, module, {}), expected)


@pytest.mark.parametrize("arguments", [{}, {"replace_convs": False}], ids=["convolutions", "pools"])
def test_weights_trained_with_blurpool_do_not_load_without(arguments, tmp_path):
    trainer([ours.BlurPool(**arguments), checkpoints(tmp_path)], max_steps=2).fit(
        module_for("images"), loader("images")
    )
    place = {"ckpt_path": tmp_path / "step=2.ckpt", **TENSORS_ALONE}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*(blur_filter|conv\.weight)"):
        trainer().fit(module_for("images"), loader("images"), **place)
    with pytest.raises(ValueError, match="Give BlurPool the arguments of the checkpoint"):
        trainer([ours.BlurPool(**arguments, blur_first=False)]).fit(module_for("images"), loader("images"), **place)
    module = module_for("images")
    trainer([ours.BlurPool(**arguments)]).validate(module, loader("images"), verbose=False, **place)
    assert any(isinstance(layer, BlurMaxPool2d) for layer in module.modules())


def test_a_teacher_that_shares_weights_with_the_student_is_refused():
    module = module_for("images")
    with pytest.raises(ValueError, match="a teacher shares weights with the student"):
        trainer([ours.Distillation(module.network)]).fit(module, loader("images"))


def test_labelled_positions_want_one_hugging_face_model():
    with pytest.raises(TypeError, match=r"LabelledPositions needs a LightningModule that holds one .* holds none"):
        trainer([ours.LabelledPositions()]).fit(module_for("images"), loader("images"))


class Fetches(LightningModule):
    def training_step(self, dataloader_iter):
        raise AssertionError

    def configure_optimizers(self):
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)


def test_a_training_step_that_fetches_its_batches_is_refused():
    with pytest.raises(ValueError, match="MixUp needs the batch that training_step is given"):
        trainer([ours.MixUp()]).fit(Fetches(), loader("images"))


def test_batches_of_any_form_are_mixed():
    class Named(Module):
        def forward(self, batch):
            return self.network(batch["image"])

        def loss(self, batch, outputs):
            return ours.training_loss(self, F.cross_entropy, outputs, batch["labels"])

    module = Named(network())
    data = DataLoader([{"image": x, "labels": y} for x, y in loader("images").dataset], 8)
    trainer([ours.MixUp(0.5, input_key="image")]).fit(module, data)
    assert_same(weights(module), usual("MixUp").weights)


def test_the_parts_of_a_distilled_loss_are_logged_when_the_trainer_logs(tmp_path):
    class Logs(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    logger = CSVLogger(tmp_path)
    distillation = ours.Distillation(network(seed=5), base_weight=0.3, distillation_weight=0.6)
    run = trainer([distillation], max_steps=7, logger=logger, log_every_n_steps=3)
    run.fit(Logs(network()), loader("images"))  # epochs of four steps
    with open(Path(logger.log_dir, "metrics.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert [int(row["step"]) for row in rows] == [2, 5]
    for row in rows:
        loss, plain, added = (float(row[name]) for name in ("loss", "loss/train/plain", "loss/train/distillation"))
        assert loss == pytest.approx(0.3 * plain + added, rel=1e-5)


def test_the_parts_of_a_distilled_loss_can_be_monitored():
    seen = []

    class Monitor(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.callback_metrics["loss/train/distillation"])

    trainer([ours.Distillation(network(seed=5)), Monitor()], max_steps=8, log_every_n_steps=7).fit(
        module_for("images"), loader("images")
    )
    expected = []
    for steps in (4, 8):  # of which the last one is an epoch's
        distillation = ours.Distillation(network(seed=5))
        trainer([distillation], max_steps=steps).fit(module_for("images"), loader("images"))
        expected.append(distillation.distiller.parts["distillation"])
    assert seen == expected
