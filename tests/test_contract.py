"""What every algorithm promises, one suite for all of them. A new algorithm joins by one entry in CASES."""

import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import composer.algorithms
import numpy as np
import pytest
import torch
from composer import Algorithm, Callback, ComposerModel, Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.optim import CosineAnnealingScheduler
from torch.utils.data import DataLoader

import accelerando.algorithms as ours
import ranks
from accelerando.algorithms.composer.host import composer_model
from accelerando.algorithms.pruning import prunable_weights
from accelerando.algorithms.pruning.masks import digest
from accelerando.algorithms.teachers import logits_of
from harness import HostReads
from small import mixup_draws
from tiny import (
    Kill,
    assert_same,
    classifier,
    differ,
    examples,
    launch,
    loader,
    masked_lm,
    network,
    timeless,
    token_loader,
    trainer,
    weights,
)


@dataclass
class Case:
    """How to build an algorithm, and what it says of itself."""

    build: Callable[[], Algorithm]
    changed: Callable[[Trainer, Trainer], bool]
    """Whether the trained run shows the effect, beside one without the algorithm."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Arguments that do nothing or cannot work; the error must name the first of them."""
    idle: dict[str, Any] | None = None
    """Arguments that Composer's own accepts and that do nothing."""
    required: Callable[[], dict[str, Any]] = dict
    """Arguments without a default."""
    changes_training: bool = True
    """Whether the trained weights differ from the plain run's."""
    needs: Callable[[Any, Callable[..., Any]], dict[str, Any]] | None = None
    """What the Trainer must be given beside the algorithm; the plain run is given the same."""
    on: tuple[str, ...] = ("images", "text")
    """What it can train on; the first is what it is tried with alone."""
    build_on_text: Callable[[], Algorithm] | None = None
    """Where it is built in another way for text."""
    never_with: Sequence[str] = ()
    """Those that it cannot be combined with."""
    updates: int = 8
    """How long the run is."""
    shortest: str = "1ba"
    """What a run must last for it at least."""
    chooses_weights: bool = False
    """Whether rounding may tip a choice between two weights."""
    reads_to_choose: bool = False
    """Whether it reads from the device when it chooses anew; not at every step."""
    chosen: Callable[[Any], Any] = lambda algorithm: None
    """What it has chosen for all ranks, as builtins; asked after every update."""
    points: Callable[[Any], list[dict[str, float]]] = lambda algorithm: []
    """What it has measured on its way, as dicts of numbers."""
    over_two_ranks: Callable[[], dict[str, torch.Tensor]] | None = None
    """The weights that two ranks come to, where they are not those of one process with the global batch."""
    ordered_with: Sequence[str] = ()
    """Those with which it makes a difference who comes first."""


def trains_on(*names: str) -> str | None:
    """What all of them can train on."""
    return next((kind for kind in ("images", "text") if all(kind in CASES[name].on for name in names)), None)


def build(name: str, kind: str) -> Algorithm:
    case = CASES[name]
    return case.build_on_text() if kind == "text" and case.build_on_text else case.build()


def data(*names: str, kind: str | None = None, **options: Any) -> DataLoader:
    return {"images": loader, "text": token_loader}[kind or trains_on(*names)](**options)


def model_for(*names: str, kind: str | None = None) -> ComposerModel:
    if (kind or trains_on(*names)) == "images":
        return classifier()
    model = masked_lm()
    model.projected = []
    decoder = model.model.get_output_embeddings()
    decoder.register_forward_hook(lambda module, inputs, output: model.projected.append(output.ndim))
    return model


def start(*names: str, without: Sequence[str] = (), kind: str | None = None, **options: Any) -> Trainer:
    """A run with the algorithms named, or only with what those in `without` need."""
    kind = kind or trains_on(*names)
    algorithms = {name: build(name, kind) for name in names}
    for name, algorithm in algorithms.items():
        if needs := CASES[name].needs:
            options = needs(algorithm, functools.partial(data, kind=kind)) | options
    options = {"model": model_for(kind=kind), "train_dataloader": data(kind=kind)} | options
    return trainer([algorithms[name] for name in names if name not in without], **options)


def fit(*names: str, without: Sequence[str] = (), **options: Any) -> Trainer:
    run = start(*names, without=without, **options)
    run.fit()
    return run


@functools.cache
def alone(name: str, kind: str) -> Trainer:
    """A run with this one algorithm, for all tests that compare with it and leave it as it is."""
    return fit(name, kind=kind)


def by_itself(name: str) -> Trainer:
    return alone(name, trains_on(name))


def fit_without(name: str, other: str) -> Trainer:
    """A run as those of both, but with the other one alone."""
    if CASES[name].needs:
        return fit(name, other, without=[name])
    return alone(other, trains_on(name, other))


def blurred(run: Trainer, plain: Trainer) -> bool:
    return any(isinstance(module, ours.BlurConv2d) for module in run.state.model.modules())


def in_channels_last(run: Trainer, plain: Trainer) -> bool:
    weight = next(parameter for parameter in run.state.model.parameters() if parameter.ndim == 4)
    return weight.is_contiguous(memory_format=torch.channels_last)


def trains_differently(run: Trainer, plain: Trainer) -> bool:
    return differ(weights(run), weights(plain))


def has_points(run: Trainer, plain: Trainer) -> bool:
    return [point["batch"] for point in points(run) if "cycle" in point] == [2, 8]


def points(run: Trainer) -> list[dict[str, float]]:
    cases = [(each, CASES.get(type(each).__name__)) for each in run.state.algorithms]
    return [point for algorithm, case in cases if case for point in case.points(algorithm)]


def masks_of(pruning: Any) -> str:
    return digest(pruning.masks)


def mixup_over_two_ranks(alpha: float = 0.5, seed: int = 7) -> dict[str, torch.Tensor]:
    """One process that mixes each rank's half of the global batch as that rank does; Composer deals out in turn."""
    run = trainer()
    model, optimizer = run.state.model, run.state.optimizers[0]
    batches = [*zip(*(tensor.split(8) for tensor in examples()), strict=True)]
    for step, (x, y) in enumerate(batches * 2):
        loss = torch.zeros(())
        for rank in (0, 1):
            mixing, pairs = mixup_draws(alpha, len(x) // 2, seed, step, rank)
            mixed, other, _ = ours.mixup_batch(x[rank::2], y[rank::2], mixing, indices=pairs)
            outputs = model.module(mixed)
            both = [torch.nn.functional.cross_entropy(outputs, target) for target in (y[rank::2], other)]
            loss = loss + ((1 - mixing) * both[0] + mixing * both[1]) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights(run)


def projects_labelled_positions(run: Trainer, plain: Trainer) -> bool:
    return 2 in run.state.model.projected


def half_pruned(run: Trainer, plain: Trainer) -> bool:
    """49 % of the prunable weights are left, but for rounding, perhaps in each layer."""
    held = prunable_weights(composer_model(run.state)).values()
    return abs(sum(int(w.count_nonzero()) - 0.49 * w.numel() for w in held)) <= 0.5 * len(held)


def has_snapshots(run: Trainer, plain: Trainer) -> bool:
    own = [algorithm for algorithm in run.state.algorithms if isinstance(algorithm, ours.Snapshots)]
    if not own:
        return False
    held = [ours.find_snapshot(SNAPSHOTS, moment) for moment in own[0].kept]
    return [*own[0].kept.values()] == [0, 3, run.state.timestamp.batch.value] and all(each.full for each in held)


def has_path(run: Trainer, plain: Trainer) -> bool:
    own = [algorithm for algorithm in run.state.algorithms if isinstance(algorithm, ours.LinearPath)]
    if not own or (path := own[0].result) is None:
        return False
    losses = path.curves["eval/loss"]
    return path.end == run.state.timestamp.batch.value and len(losses) == 3 and losses[0] > losses[-1]


def has_forgotten(run: Trainer, plain: Trainer) -> bool:
    own = [algorithm.forgetting for algorithm in run.state.algorithms if isinstance(algorithm, ours.ForgettingEvents)]
    return bool(own) and own[0].looks == run.state.timestamp.batch.value // 2 and len(own[0].events) == 30


def has_scores(run: Trainer, plain: Trainer) -> bool:
    own = [algorithm for algorithm in run.state.algorithms if isinstance(algorithm, ours.ExampleScores)]
    if not own:
        return False
    assert [*own[0].kept.values()] == [3, run.state.timestamp.batch.value]
    early, late = (ours.find_snapshot(SCORES, moment).weights()["loss"] for moment in own[0].kept)
    return len(early) == len(late) == 30 and bool((early != late).any())


SNAPSHOTS = tempfile.mkdtemp()
PATH = tempfile.mkdtemp()
FORGETTING = tempfile.mkdtemp()
SCORES = tempfile.mkdtemp()
PATTERNS: list[dict[str, Any]] = [
    {"include": ()},
    {"include": "conv"},
    {"exclude": "conv"},
    {"scope": "local"},
]
CASES = {
    "BlurPool": Case(ours.BlurPool, blurred, [{"replace_convs": False, "replace_maxpools": False}], on=("images",)),
    "ChannelsLast": Case(ours.ChannelsLast, in_channels_last, changes_training=False, on=("images",)),
    "Distillation": Case(
        lambda: ours.Distillation([network(seed=5), network(seed=6)], teachers_per_step=1),
        trains_differently,
        [
            {"teachers": []},
            *({"teachers_per_step": number} for number in (0, 2, -1)),
            *({"base_weight": weight} for weight in (-0.1, float("nan"), float("inf"))),
            *({"distillation_weight": weight} for weight in (0.0, float("nan"))),
            *({"temperature": number} for number in (0.0, -1.0, float("inf"))),
            {"loss": "l1"},
            {"teacher_dtype": "int8"},
            *({"start": time} for time in ("1.5dur", "1dur", "-1ba", "3sec", "soon", "10iter")),
            *({"end": time} for time in ("0dur", "0ba", "2", "1.1dur")),
            {"end": "3ba", "start": "3ba"},
        ],
        required=lambda: {"teachers": network()},
        chosen=lambda distillation: distillation.drawn,
        build_on_text=lambda: ours.Distillation([masked_lm(seed=5), masked_lm(seed=6)], teachers_per_step=1),
    ),
    "ExampleScores": Case(
        lambda: ours.ExampleScores(loader(7), ["3ba", "1dur"], ["el2n", "loss"], save_folder=SCORES),
        has_scores,
        [
            *({"at": moments} for moments in ([], "1ep", ["soon"], ["1ep", "1ep"])),
            *({"scores": names} for names in ([], ["gradient"])),
            {"data": None},
            {"save_folder": "s3://bucket/scores"},
        ],
        required=lambda: {"data": loader(7), "at": ["1ep"]},
        changes_training=False,
        on=("images",),
        build_on_text=lambda: ours.ExampleScores(token_loader(7), ["3ba"], save_folder=SCORES),
        chosen=lambda scores: [*scores.kept.values()],
        shortest="3ba",
        reads_to_choose=True,
    ),
    "ForgettingEvents": Case(
        lambda: ours.ForgettingEvents(loader(7), "2ba", save_folder=FORGETTING),
        has_forgotten,
        [
            *({"interval": time} for time in ("0ba", "0dur", "soon", "-1ba", "3sec", 3)),
            {"data": None},
            {"save_folder": "s3://bucket/forgetting"},
        ],
        required=lambda: {"data": loader(7)},
        changes_training=False,
        on=("images",),
        build_on_text=lambda: ours.ForgettingEvents(token_loader(7), "2ba", save_folder=FORGETTING),
        chosen=lambda forgetting: timeless(forgetting.forgetting.state_dict()),
        points=lambda forgetting: [
            {
                "forgotten": float(forgetting.forgetting.events.sum()),
                "learned": float(forgetting.forgetting.learned.sum()),
            }
        ],
        reads_to_choose=True,
    ),
    "LabelSmoothing": Case(
        lambda: ours.LabelSmoothing(0.2),
        trains_differently,
        [{"smoothing": -0.1}, {"smoothing": 1.1}, {"smoothing": float("nan")}],
        idle={"smoothing": 0.0},
        reads_to_choose=True,
    ),
    "LabelledPositions": Case(
        ours.LabelledPositions, projects_labelled_positions, changes_training=False, on=("text",)
    ),
    "LinearPath": Case(
        lambda: ours.LinearPath(points=3, save_folder=PATH),
        has_path,
        [
            *({"start": time} for time in ("1dur", "-1ba", "soon", "3sec", 3)),
            *({"points": number} for number in (1, 0, 2.5)),
            {"batch_norm": "none"},
            {"batches": 0},
            {"save_folder": "s3://bucket/path"},
        ],
        changes_training=False,
        needs=lambda path, loader: {"eval_dataloader": loader(batch_size=5)},
        points=lambda path: [path.result.numbers()] if path.result else [],
        chosen=lambda path: [*path.kept.values()],
        reads_to_choose=True,
    ),
    "LotteryTicket": Case(
        lambda: ours.LotteryTicket(levels=2, fraction=0.3, rewind_to="2ba"),
        half_pruned,
        [
            *({"levels": levels} for levels in (0, -1)),
            *({"fraction": fraction} for fraction in (0.0, 1.0, -0.1, float("nan"))),
            {"fraction": 0.6, "schedule": "arithmetic"},
            {"schedule": "cubic"},
            *({"rewind_to": time} for time in ("-1ba", "soon", "0.5dur", "3sp")),
            {"rewind": "never"},
            *({"finetune_multiplier": value} for value in (0.0, float("inf"))),
            *PATTERNS,
        ],
        required=lambda: {"levels": 2},
        needs=lambda ticket, loader: {
            "schedulers": ticket.wrap(CosineAnnealingScheduler()),
            "eval_dataloader": loader(batch_size=5),
        },
        never_with=("MagnitudePruning", "PruneAtInit", "TradeoffCurve"),
        points=lambda ticket: ticket.results,
        chosen=masks_of,
        updates=20,
        shortest="3ba",
        chooses_weights=True,
        reads_to_choose=True,
    ),
    "MagnitudePruning": Case(
        lambda: ours.MagnitudePruning(0.49, start="1ba", end="5ba", interval="2ba"),
        half_pruned,
        [
            *({"density": value} for value in (0.0, 1.0, -0.1, float("nan"), {}, {"*": 1.0}, {"*": 0.0})),
            *({"start": time} for time in ("-1ba", "soon", "1dur", "3sec")),
            *({"end": time} for time in ("0dur", "0ba", "never")),
            *({"interval": time, "end": "0.5dur"} for time in ("0dur", "soon", "0.7dur")),
            {"interval": "1ba"},
            {"schedule": "geometric"},
            *PATTERNS,
        ],
        required=lambda: {"density": 0.5},
        never_with=("LotteryTicket", "PruneAtInit"),
        chosen=masks_of,
        shortest="5ba",
        chooses_weights=True,
        reads_to_choose=True,
    ),
    "MixUp": Case(
        lambda: ours.MixUp(0.5),
        trains_differently,
        [{"alpha": -1.0}, {"alpha": float("nan")}, {"alpha": float("inf")}],
        idle={"alpha": 0.0},
        chosen=lambda mixup: mixup.mixing,
        over_two_ranks=mixup_over_two_ranks,
        on=("images",),
        reads_to_choose=True,
    ),
    "PruneAtInit": Case(
        lambda: ours.PruneAtInit("snip", 0.49, samples_per_class=3),
        half_pruned,
        [
            {"criterion": "hessian"},
            *({"density": value} for value in (None, 0.0, 1.0, float("nan"))),
            {"ticket": "nowhere.safetensors", "density": None},
            {"ticket": __file__},
            *({"iterations": number} for number in (0, -1)),
            *({"at": time} for time in ("-1ba", "soon", "0.5dur")),
            {"reinitialize": True, "at": "1ba"},
            {"samples_per_class": 0},
            *({"temperature": value} for value in (0.0, float("inf"))),
            *PATTERNS,
        ],
        required=lambda: {"density": 0.5},
        build_on_text=lambda: ours.PruneAtInit("snip", 0.49, scope="layerwise"),  # all together, it empties layers
        never_with=("LotteryTicket", "MagnitudePruning"),
        chosen=masks_of,
        chooses_weights=True,
        reads_to_choose=True,
    ),
    "Snapshots": Case(
        lambda: ours.Snapshots(["0ba", "3ba", "1dur"], full=True, save_folder=SNAPSHOTS),
        has_snapshots,
        [
            *({"at": moments} for moments in ([], "1ep", ["soon"], ["-1ba"], ["1ep", "1ep"], ["2dur"], ["3sec"], [3])),
            {"save_folder": "s3://bucket/snapshots", "at": ["1ep"]},
        ],
        required=lambda: {"at": ["1ep"]},
        changes_training=False,
        chosen=lambda snapshots: [*snapshots.kept.values()],
        shortest="3ba",
    ),
    "TradeoffCurve": Case(
        lambda: ours.TradeoffCurve(ours.MultiplicativeCyclicScheduler("0dur", "0.25dur", growth=3)),
        has_points,
        changes_training=False,
        points=lambda curve: curve.points,
        needs=lambda curve, loader: {"schedulers": curve.scheduler, "eval_dataloader": loader(batch_size=5)},
        never_with=("LotteryTicket",),
    ),
}

every = pytest.mark.parametrize("name", CASES)


def test_every_algorithm_is_here():
    exported = [getattr(ours, name) for name in ours.__all__]
    classes = {item.__name__ for item in exported if isinstance(item, type) and issubclass(item, Algorithm)}
    assert classes == set(CASES)


@every
def test_1_changes_what_it_says(name):
    case = CASES[name]
    run, plain = by_itself(name), fit(name, without=[name])
    assert case.changed(run, plain) and not case.changed(plain, fit(name, without=[name]))
    assert differ(weights(run), weights(plain)) == case.changes_training


@every
def test_2_resumes_bit_for_bit_after_a_kill(name, tmp_path):
    whole = fit(name, train_dataloader=data(name, shuffle=True))
    with pytest.raises(KeyboardInterrupt):  # after 5 updates of 8, in the middle of the second epoch
        fit(
            name,
            train_dataloader=data(name, shuffle=True),
            save_folder=str(tmp_path),
            save_interval="1ba",
            callbacks=Kill(5),
        )
    torch.manual_seed(999)
    np.random.seed(999)
    resumed = fit(name, train_dataloader=data(name, shuffle=True), load_path=str(tmp_path / "ep1-ba5-rank0.pt"))
    assert resumed.state.timestamp.batch == CASES[name].updates
    assert_same(weights(resumed), weights(whole))
    assert timeless(resumed.state.algorithms[0].state_dict()) == timeless(whole.state.algorithms[0].state_dict())


@every
def test_3_microbatches_change_nothing(name):
    assert_same(weights(fit(name, device_train_microbatch_size=2)), weights(by_itself(name)), atol=1e-5)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> Path:
    """One launch for all: each algorithm trains under two gloo processes, which leave their weights here."""
    folder = tmp_path_factory.mktemp("ranks")
    done = launch(2, ranks.__file__, folder, *CASES)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@every
def test_4_two_ranks_agree_with_each_other_and_with_one(name, two_ranks):
    first, second = (torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same(first["weights"], second["weights"])
    assert first["choices"] == second["choices"]
    assert first["points"] == second["points"]
    one = fit(name, train_dataloader=data(name, batch_size=8, drop_last=True))
    over_two_ranks = CASES[name].over_two_ranks
    assert_same(first["weights"], over_two_ranks() if over_two_ranks else weights(one), atol=1e-5)
    for point, expected in zip(timeless(first["points"]), timeless(points(one)), strict=True):
        assert point == pytest.approx(expected, abs=1e-5)


@every
def test_5_state_is_tensors_and_builtins(name, tmp_path):
    state = by_itself(name).state.algorithms[0].state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert timeless(torch.load(tmp_path / "state.pt", weights_only=True)) == timeless(state)
    json.dumps(timeless(state))
    CASES[name].build().load_state_dict(state)


@every
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_6_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    compiled = fit(name, compile_config={"fullgraph": True, "backend": "aot_eager"})
    assert_same(weights(compiled), weights(by_itself(name)), atol=1e-5)


@every
def test_7_bf16_autocast(name):
    # Composer refuses its own amp_bf16 on the CPU.
    seen = set()
    model = model_for(name)
    model.register_forward_hook(lambda module, inputs, outputs: seen.add(logits_of(outputs).dtype))
    run = start(name, model=model, max_duration=CASES[name].shortest)
    with torch.autocast("cpu", torch.bfloat16):
        run.fit()
    assert seen == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in weights(run).values())
    exact = weights(fit(name, max_duration=CASES[name].shortest))
    if CASES[name].chooses_weights:
        apart = torch.cat([(value - exact[key]).abs().flatten() > 0.01 for key, value in weights(run).items()])
        assert apart.float().mean() < 0.05
    else:
        assert_same(weights(run), exact, atol=0.01)


def same_but_for_rounding(one: Trainer, other: Trainer) -> bool:
    assert_same(weights(one), weights(other), atol=1e-5)
    return True


PAIRS = list(itertools.combinations(CASES, 2))
NEVER = [pair for pair in PAIRS if pair[1] in CASES[pair[0]].never_with]
TOGETHER = [pair for pair in PAIRS if trains_on(*pair) and pair not in NEVER]


@pytest.mark.filterwarnings("ignore:LinearPath. the start is not zero where the network is pruned")
@pytest.mark.parametrize("pair", TOGETHER, ids="-".join)
def test_8_pairs_train_together_in_either_order(pair):
    one, other = fit(*pair), fit(*pair[::-1])
    ordered = pair[1] in CASES[pair[0]].ordered_with or pair[0] in CASES[pair[1]].ordered_with
    assert differ(weights(one), weights(other)) if ordered else same_but_for_rounding(one, other)
    for name in pair:
        without = fit_without(*(pair if name == pair[0] else pair[::-1]))
        for run in (one, other):
            assert CASES[name].changed(run, without)
            assert differ(weights(run), weights(without)) == CASES[name].changes_training


@pytest.mark.parametrize("pair", NEVER, ids="-".join)
def test_8_pairs_that_contradict_each_other_say_so(pair):
    for names in (pair, pair[::-1]):
        with pytest.raises(ValueError, match=f"{'|'.join(pair)}.*(cannot|leave)"):
            start(*names)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not trains_on(*pair)], ids="-".join)
def test_8_pairs_that_no_model_can_have_say_so(pair):
    for kind, model, batches in (("images", classifier(), loader()), ("text", masked_lm(), token_loader())):
        with pytest.raises((ValueError, TypeError, NoEffectWarning), match="|".join(pair)):
            trainer([build(name, kind) for name in pair], model=model, train_dataloader=batches).fit()


@every
def test_8_twins_are_refused(name):
    for build in (CASES[name].build, getattr(composer.algorithms, name, CASES[name].build)):
        for order in ([CASES[name].build(), build()], [build(), CASES[name].build()]):
            with pytest.raises(ValueError, match=f"more than one {name}"):
                trainer(order, model=model_for(name))


def test_8_mixed_losses_beside_smoothed_labels_are_refused():
    with pytest.raises(ValueError, match="Use interpolate_loss=False beside LabelSmoothing"):
        trainer([ours.MixUp(interpolate_loss=True), ours.LabelSmoothing()])


@pytest.mark.parametrize(
    "name, arguments", [(name, arguments) for name, case in CASES.items() for arguments in case.refused], ids=str
)
def test_9_constructor_refuses(name, arguments):
    with pytest.raises(ValueError, match=f"{name}.*{next(iter(arguments))}"):
        getattr(ours, name)(**CASES[name].required() | arguments)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.idle])
def test_9_what_composer_accepts_without_effect_is_accepted_with_a_warning(name):
    getattr(composer.algorithms, name)(**CASES[name].idle)
    with pytest.warns(NoEffectWarning, match=f"{name}: {next(iter(CASES[name].idle))}"):
        idle = getattr(ours, name)(**CASES[name].required() | CASES[name].idle)
    run = trainer([idle], model=model_for(name), train_dataloader=data(name))
    run.fit()
    assert_same(weights(run), weights(fit(name, without=[name])))


class StepsOnly(Callback):
    """Counts by batch, and takes back what an evaluation added."""

    def __init__(self, reads: HostReads):
        self.reads = reads
        self.by_batch: list[int] = []

    def before_dataloader(self, state, logger):
        self.by_batch.append(self.reads.count - sum(self.by_batch))

    def eval_before_all(self, state, logger):
        self.before = self.reads.count

    def eval_after_all(self, state, logger):
        self.reads.count = self.before


@every
def test_10_reads_nothing_from_the_device(name):
    def reads(**options):
        model, counter = model_for(name), HostReads()
        steps = StepsOnly(counter)
        model.get_metrics = lambda is_train: {}
        run = start(name, model=model, callbacks=steps, **options)
        with counter:
            run.fit()
        # Between the last but one and the last batch nothing is chosen.
        return steps.by_batch[-1] if CASES[name].reads_to_choose else counter.count

    assert 0 < reads() <= reads(without=[name])
