"""The contract of the callbacks for Hugging Face's Trainer, on models of one small layer."""

import copy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_constant_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)
from transformers import __version__ as TRANSFORMERS

from accelerando import algorithms
from accelerando.algorithms import find_snapshot, transformers
from accelerando.algorithms.pruning import apply_masks
from accelerando.algorithms.transformers import (
    Distillation,
    ForgettingEvents,
    LabelledPositions,
    LabelSmoothing,
    LinearPath,
    LotteryTicket,
    MagnitudePruning,
    PruneAtInit,
    Snapshots,
)
from launcher import run_two_ranks

WORDS, LENGTH, CLASSES, SAMPLES = 40, 12, 4, 32
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
KILLED = 3  # after so many updates, in the middle of an epoch of four


pytestmark = pytest.mark.filterwarnings("ignore:LinearPath. the path is not drawn, as matplotlib is missing")


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """What TrainingArguments ask of Accelerate (bf16, torch_compile, fsdp) holds for all Trainers of the process."""
    for name in ("MIXED_PRECISION", "DYNAMO_BACKEND"):
        monkeypatch.setenv(f"ACCELERATE_{name}", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")


def bert(kind: Any = BertForSequenceClassification, dropout: float = 0.0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return kind(BertConfig(**SIZES, **rates, num_labels=CLASSES))


def sentences() -> list[dict[str, torch.Tensor]]:
    """The first word tells the class, of which there are as many of each."""
    ids = torch.randint(CLASSES, WORDS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = torch.arange(SAMPLES) % CLASSES
    return [{"input_ids": row, "labels": row[0]} for row in ids]


def masked(count: int | None = 3) -> list[dict[str, torch.Tensor]]:
    """With as many labels in each; in each another number without `count`."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for row, each in enumerate(sentences()):
        ids = each["input_ids"]
        labels = torch.full_like(ids, -100)
        chosen = torch.randperm(LENGTH - 1, generator=generator)[: count or 1 + row % 8] + 1
        labels[chosen] = ids[chosen]
        found.append({"input_ids": torch.where(labels == -100, ids, 1), "labels": labels})
    return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """A technique, and what it needs; `same` as the bare training is one that is another way to the same weights."""

    make: Callable[[], TrainerCallback]
    model: Any = BertForSequenceClassification
    data: Callable[[], list[dict[str, torch.Tensor]]] = sentences
    options: dict[str, Any] = field(default_factory=dict)
    same: bool = False


def ticket() -> LotteryTicket:
    return LotteryTicket(levels=2, fraction=0.3, steps=5, rewind_to="2ba")


def distillation(**options: Any) -> Distillation:
    return Distillation([bert(seed=1), bert(seed=2)], teachers_per_step=1, **options)


def accuracy(outputs: Any, batch: Any) -> torch.Tensor:
    return outputs.logits.argmax(-1) == batch["labels"]


CASES = {
    "Distillation": Case(make=distillation),
    "ForgettingEvents": Case(make=lambda: ForgettingEvents(DataLoader(sentences(), 7), "2ba"), same=True),  # type: ignore
    "LabelSmoothing": Case(make=lambda: LabelSmoothing(0.2)),
    "LabelledPositions": Case(make=LabelledPositions, model=BertForMaskedLM, data=masked, same=True),
    "LinearPath": Case(
        make=lambda: LinearPath(points=3, metrics={"accuracy": accuracy}), options={"eval_strategy": "epoch"}, same=True
    ),
    "LotteryTicket": Case(make=ticket, options={"max_steps": 11, "eval_strategy": "epoch"}),
    "MagnitudePruning": Case(make=lambda: MagnitudePruning(0.3, start="2ba", end="7ba", interval="1ba")),
    "PruneAtInit": Case(make=lambda: PruneAtInit("snip", 0.4, scope="layerwise", samples_per_class=4)),
    "Snapshots": Case(make=lambda: Snapshots(["0ba", "1ep", "1dur"]), same=True),
}


def trainer(folder: Path, callbacks: Any = (), model: Any = None, data: Any = None, **options: Any) -> Trainer:
    of_trainer = {name: options.pop(name) for name in ("compute_loss_func", "optimizers") if name in options}
    given = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(output_dir=str(folder), **{**given, **options})
    data = data or sentences()
    model = model or bert()
    return Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[*callbacks], **of_trainer)


def run(name: str, folder: Path, *, bare: bool = False, dropout: float = 0.0, **options: Any) -> Trainer:
    """A training with a technique, made and not begun."""
    case = CASES[name]
    callbacks = [] if bare else [case.make()]
    made = trainer(folder, callbacks, bert(case.model, dropout), case.data(), **{**case.options, **options})
    made.model_accepts_loss_kwargs = False  # transformers 5 takes BERT's mean for a sum through num_items_in_batch
    return made


def trained(run: Trainer, **options: Any) -> dict[str, torch.Tensor]:
    run.train(**options)
    return weights(run.model)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def callback(run: Trainer) -> Any:
    return next(each for each in run.callback_handler.callbacks if type(each).__name__ in CASES)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def pruned(run: Trainer) -> int:
    """How many weights are masked, all of which are zero."""
    technique = callback(run)
    for name, mask in technique.masks.items():
        assert not run.model.get_parameter(name)[~mask].any()
    return sum(int((~mask).sum()) for mask in technique.masks.values())


def test_every_class_is_tried():
    assert sorted(CASES) == transformers.__all__


@pytest.mark.parametrize("name", CASES)
def test_it_has_the_effect(name, tmp_path):
    bare, found = trained(run(name, tmp_path / "bare", bare=True)), trained(technique := run(name, tmp_path))
    assert far(found, bare) < 1e-5 if CASES[name].same else far(found, bare) > 1e-3
    if hasattr(callback(technique), "masks"):
        assert pruned(technique) > 0


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_from_a_checkpoint_bit_for_bit(name, tmp_path):
    options = {"dropout": 0.1, "save_strategy": "steps", "save_steps": KILLED}
    whole = trained(first := run(name, tmp_path / "a", **options))
    checkpoint = shutil.copytree(tmp_path / "a" / f"checkpoint-{KILLED}", tmp_path / "b" / f"checkpoint-{KILLED}")
    if name == "LinearPath":
        path = callback(first).result
    for folder in ("snapshots", "linear_path"):
        kept = tmp_path / "a" / folder / "ba0.safetensors"
        if kept.exists():
            (tmp_path / "b" / folder).mkdir()
            shutil.copy(kept, tmp_path / "b" / folder)
    shutil.rmtree(tmp_path / "a")
    later = run(name, tmp_path / "b", **options)
    assert equal(trained(later, resume_from_checkpoint=str(checkpoint)), whole)
    if name == "LotteryTicket":
        assert [(level["level"], level["batch"]) for level in callback(later).results] == [(0, 5), (1, 8), (2, 11)]
        assert all("eval_loss" in level for level in callback(later).results)
    if name == "LinearPath":
        assert callback(later).result == path
    if name == "ForgettingEvents":
        one, two = (callback(each).forgetting for each in (first, later))
        assert one.looks == two.looks == 4 and one.learned.any() and one.scores().tolist() == two.scores().tolist()
    if name == "Snapshots":
        assert callback(later).kept == {"0ba": 0, "1ep": 4, "1dur": 8}
        assert (tmp_path / "b" / "snapshots" / "ba8.safetensors").exists()


@pytest.mark.parametrize("name", CASES)
def test_accumulated_microbatches_make_the_same_update(name, tmp_path):
    whole = trained(run(name, tmp_path / "whole"))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert far(trained(run(name, tmp_path, **options)), whole) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_it_trains_in_bf16(name, tmp_path):
    bare = trained(run(name, tmp_path / "bare", bare=True, bf16=True))
    found = trained(technique := run(name, tmp_path, bf16=True))
    assert all(value.isfinite().all() for value in found.values())
    assert far(found, bare) < 0.1 if CASES[name].same else far(found, bare) > 1e-3
    if hasattr(callback(technique), "masks"):
        assert pruned(technique) > 0


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each technique leaves on both ranks of one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(__file__, folder)
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(name, two_ranks, tmp_path):
    first, second = two_ranks[name]
    assert equal(first, second)
    assert far(first, trained(run(name, tmp_path))) < 1e-5


def plain_batches(folder: Path, data: Any, epochs: int = 2) -> list[dict[str, torch.Tensor]]:
    """The Trainer's, in its order."""
    loader, batches = trainer(folder, data=data).get_train_dataloader(), []
    for epoch in range(epochs):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        batches += [*loader]
    return batches


def plain_loop(folder: Path, begin: Callable[..., Any], model: Any = None, updates: int = 8) -> dict[str, torch.Tensor]:
    """Trains as the Trainer does with SGD; `begin(model, optimizer)` gives loss of a batch, and what ends an update."""
    model = model or bert()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = plain_batches(folder, sentences(), -(-updates // 4))
    loss_of, before_clipping, after = begin(model, optimizer, batches)
    for step in range(updates):
        model.train()
        loss_of(batches[step], step).backward()
        before_clipping()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after(step)
    return weights(model)


def by_the_trainer(folder: Path, callbacks: Any, **options: Any) -> dict[str, torch.Tensor]:
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return trained(trainer(folder, callbacks, model, optimizers=(optimizer, constant), **options))


def nothing(*given: Any) -> None:
    pass


def own_loss(model: Any) -> Callable[..., torch.Tensor]:
    return lambda batch, step: model(**batch).loss


def test_a_path_is_that_of_a_plain_loop(tmp_path):
    path = LinearPath("2ba", points=3, train=True, metrics={"accuracy": accuracy})
    run = trainer(tmp_path, [path], eval_strategy="epoch")
    run.train()
    first = find_snapshot(Path(tmp_path, "linear_path"), "2ba").weights()
    data = sentences()
    batch = {name: torch.stack([each[name] for each in data]) for name in data[0]}
    for point, alpha in enumerate(path.result.alphas):
        model = bert().eval()
        model.load_state_dict(algorithms.interpolate(first, weights(run.model), alpha))
        with torch.no_grad():
            outputs = model(**batch)
        for name in ("eval", "train"):
            assert path.result.curves[f"{name}/loss"][point] == pytest.approx(float(outputs.loss), abs=1e-5)
            right = float(accuracy(outputs, batch).float().mean())
            assert path.result.curves[f"{name}/accuracy"][point] == pytest.approx(right)
    assert path.result.curves["eval/loss"][-1] == pytest.approx(run.evaluate()["eval_loss"], abs=1e-5)
    (told,) = [each for each in run.state.log_history if "linear_path/distance" in each]
    assert told["linear_path/barrier/eval/loss"] == path.result.numbers()["barrier/eval/loss"]
    with pytest.raises(ValueError, match="LinearPath has nothing to measure on: give it train=True"):
        trainer(tmp_path, [LinearPath()]).train()


def test_magnitude_pruning_is_that_of_a_plain_loop(tmp_path):
    def begin(model, optimizer, batches):
        pruner = algorithms.MagnitudePruner(model, optimizer, 0.3, start="0.1dur", end="0.7dur", steps=8)
        return own_loss(model), pruner.hold_gradients, lambda step: pruner.step()

    found = by_the_trainer(tmp_path, [MagnitudePruning(0.3, start="0.1dur", end="0.7dur")])
    assert equal(found, plain_loop(tmp_path, begin))


def test_label_smoothing_is_that_of_a_plain_loop(tmp_path):
    def begin(model, optimizer, batches):
        smoother = algorithms.Smoother(0.2)
        return lambda batch, step: smoother.own_loss(model, model(**batch), batch["labels"]), nothing, nothing

    assert equal(by_the_trainer(tmp_path, [LabelSmoothing(0.2)]), plain_loop(tmp_path, begin))


def test_distillation_is_that_of_a_plain_loop(tmp_path):
    def begin(model, optimizer, batches):
        distiller = algorithms.Distiller([bert(seed=1), bert(seed=2)], teachers_per_step=1, seed=7)

        def loss(batch, step):
            outputs = model(**batch)
            return distiller(outputs.loss, outputs, batch, step)

        return loss, nothing, nothing

    assert equal(by_the_trainer(tmp_path, [distillation()]), plain_loop(tmp_path, begin))


def test_pruning_at_initialization_is_that_of_a_plain_loop(tmp_path):
    chosen = PruneAtInit("magnitude", 0.4, shuffle=True)

    def begin(model, optimizer, batches):
        pruner = algorithms.Pruner(model, optimizer)
        pruner.prune(algorithms.prune_at_init(model, "magnitude", 0.4, shuffle=True, seed=7))
        return own_loss(model), pruner.hold_gradients, nothing

    assert equal(by_the_trainer(tmp_path, [chosen]), plain_loop(tmp_path, begin))


def test_tickets_are_those_of_a_plain_loop(tmp_path):
    def begin(model, optimizer, batches):
        lottery = algorithms.Lottery(model, optimizer, None, levels=2, fraction=0.3, steps=5, rewind_to=2, seed=7)
        steps = iter(lottery)

        def loss(batch, step):
            next(steps)
            return model(**batch).loss

        return loss, lottery.hold_gradients, nothing

    found = by_the_trainer(tmp_path, [ticket()], max_steps=11)
    assert equal(found, plain_loop(tmp_path, begin, updates=11))


class Rates(TrainerCallback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_begin(self, args, state, control, optimizer=None, **parts):
        first, second = (group["lr"] for group in optimizer.param_groups)  # with weight decay, and without
        assert first == second
        self.rates.append(first)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize(
    ("kind", "more", "warmup"),
    [
        ("linear", {}, 2),
        ("cosine_with_restarts", {"num_cycles": 2}, 1),
        ("inverse_sqrt", {}, 2),
        ("warmup_stable_decay", {"num_decay_steps": 2}, 1),
        ("warmup_stable_decay", {"num_decay_steps": 2}, 0.4),
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"}, 0),
        ("warmup_stable_decay", {"num_decay_steps": 1, "num_stable_steps": 2}, 1),
        ("inverse_sqrt", {}, 0.4),
    ],
)
def test_the_schedule_of_a_ticket_is_rewound(kind, more, warmup, tmp_path):
    share = {"warmup_ratio" if int(TRANSFORMERS.split(".")[0]) < 5 else "warmup_steps": warmup}
    options = share if isinstance(warmup, float) else {"warmup_steps": warmup}
    options |= {"lr_scheduler_type": kind, "lr_scheduler_kwargs": more}
    trainer(tmp_path, [ticket(), levels := Rates()], max_steps=11, **options).train()
    trainer(tmp_path, [plain := Rates()], max_steps=5, **options).train()
    assert levels.rates == pytest.approx(plain.rates + 2 * plain.rates[2:])
    assert len({*levels.rates}) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: get_linear_schedule_with_warmup(optimizer, 3, 5),
        lambda optimizer: get_wsd_schedule(optimizer, 1, 2, num_training_steps=5),
        lambda optimizer: get_constant_schedule_with_warmup(optimizer, 4),
    ],
)
def test_a_schedule_of_ones_own_is_left_as_it_is(make, tmp_path):
    def rates_of(steps: int, *callbacks: TrainerCallback) -> list[float]:
        model = bert()
        optimizer = torch.optim.SGD(
            [{"params": [*model.bert.parameters()]}, {"params": [*model.classifier.parameters()]}], 0.1
        )
        found = Rates()
        own = {"optimizers": (optimizer, make(optimizer)), "warmup_steps": 1}
        trainer(tmp_path, [*callbacks, found], model, max_steps=steps, **own).train()
        return found.rates

    plain = rates_of(5)
    assert rates_of(11, ticket()) == pytest.approx(plain + 2 * plain[2:])


def test_pruned_gradients_do_not_count_in_the_norm(tmp_path):
    technique = PruneAtInit("magnitude", 0.4)
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **parts):
            norms.append([model.get_parameter(name).grad[~mask].any() for name, mask in technique.masks.items()])

    trainer(tmp_path, [technique, Norm()], max_steps=2, max_grad_norm=0.01).train()
    assert norms and not any(map(any, norms))


def test_labelled_positions_alone_reach_the_vocabulary_and_evaluation_sees_all(tmp_path):
    rows = []
    work = trainer(tmp_path, [LabelledPositions()], bert(BertForMaskedLM), masked())
    work.model.cls.predictions.decoder.register_forward_hook(lambda module, given, out: rows.append(out.shape[:-1]))
    work.train()
    assert set(rows) == {(8 * 3,)}
    rows.clear()
    work.evaluate()
    assert set(rows) == {(8, LENGTH)}


def losses(model: Any, data: Any, callbacks: Any, folder: Path, **options: Any) -> list[float]:
    """Of each update, with which the model does not change."""
    found = []

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **parts):
            found.extend([logs["loss"]] if "loss" in logs else [])

    still = {"learning_rate": 0.0, "logging_steps": 1, "max_steps": 2}
    trainer(folder, [*callbacks, Losses()], model, data, **{**still, **options}).train()
    return found


def mixtral() -> Any:
    torch.manual_seed(0)
    experts = {"num_local_experts": 2, "num_key_value_heads": 2, "router_aux_loss_coef": 0.5}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **experts, output_router_logits=True))


def test_smoothing_keeps_what_a_mixture_of_experts_adds(tmp_path):
    model, data = mixtral(), masked(None)
    batch = plain_batches(tmp_path, data, 1)[0]
    with torch.no_grad():
        outputs = model(**batch)
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.2) + 0.5 * outputs.aux_loss
    found = losses(model, data, [LabelSmoothing(0.2)], tmp_path)
    assert found[0] == pytest.approx(float(smoothed), abs=1e-3)


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


@pytest.mark.parametrize("make", [lambda: LabelSmoothing(0.2), lambda: Distillation(llama(1))])
def test_microbatches_with_other_numbers_of_labels_make_one_mean(make, tmp_path):
    whole = losses(llama(), masked(None), [make()], tmp_path)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert losses(llama(), masked(None), [make()], tmp_path, **options) == pytest.approx(whole, abs=2e-3)


def weighted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels, weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_smoothing_keeps_the_weights_of_a_loss_of_ones_own(tmp_path):
    model, smoothing = bert(), LabelSmoothing(0.2)
    batch = plain_batches(tmp_path, sentences(), 1)[0]
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = float(F.cross_entropy(logits, batch["labels"], weight, label_smoothing=0.2))
    wrapped = smoothing.wrap(weighted)
    assert losses(model, sentences(), [smoothing], tmp_path, compute_loss_func=wrapped)[0] == pytest.approx(
        expected, abs=1e-3
    )
    with torch.no_grad():
        outputs = {"logits": logits}
        assert wrapped(outputs, batch["labels"]) == weighted(outputs, batch["labels"])  # in an evaluation


def test_distillation_beside_a_loss_of_ones_own(tmp_path):
    def begin(model, optimizer, batches):
        distiller = algorithms.Distiller([bert(seed=1), bert(seed=2)], teachers_per_step=1, seed=7)

        def loss(batch, step):
            outputs = model(batch["input_ids"])
            return distiller(weighted(outputs, batch["labels"]), outputs, batch, step)

        return loss, nothing, nothing

    technique = distillation()
    found = by_the_trainer(tmp_path, [technique], compute_loss_func=technique.wrap(weighted))
    assert far(found, plain_loop(tmp_path, begin)) < 1e-5


def test_techniques_work_together(tmp_path):
    """Teachers see all of the batch, and teach where labels stand, also where these are all that the head sees."""
    teacher = bert(BertForMaskedLM, seed=1)

    def both(*more):
        callbacks = [*more, Distillation(copy.deepcopy(teacher)), LabelSmoothing(0.1), MagnitudePruning(0.5)]
        return trained(trainer(tmp_path, callbacks, bert(BertForMaskedLM), masked()))

    assert far(both(LabelledPositions()), both()) < 1e-4


def test_it_trains_a_compiled_model(tmp_path):
    def both(**options):
        callbacks = [LabelledPositions(), LabelSmoothing(0.1), MagnitudePruning(0.5)]
        return trained(trainer(tmp_path, callbacks, bert(BertForMaskedLM), masked(), **options))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = both(torch_compile=True, torch_compile_backend="eager")
    assert far(compiled, both()) < 1e-4


def test_a_ticket_of_somebody_elses_masks(tmp_path):
    first = trainer(tmp_path, [technique := PruneAtInit("magnitude", 0.4)], max_steps=1)
    first.train()
    algorithms.pruning.save_masks(tmp_path / "masks.safetensors", technique.masks)
    second = trainer(tmp_path, [again := PruneAtInit(ticket=str(tmp_path / "masks.safetensors"))], max_steps=1)
    second.train()
    assert equal(again.masks, technique.masks)


def test_snapshots_are_of_the_weights_that_a_pruner_has_left(tmp_path):
    technique = MagnitudePruning(0.3, start="4ba")
    work = trainer(tmp_path, [Snapshots(["0ba", "4ba", "1dur"]), technique])
    start = weights(work.model)
    work.train()
    kept = {at: find_snapshot(tmp_path / "snapshots", at).weights() for at in ("0ba", "4ba", "1dur")}
    assert equal(kept["0ba"], start) and equal(kept["1dur"], weights(work.model))
    masked_out = {name: kept["4ba"][name].clone() for name in technique.masks}
    apply_masks(masked_out, technique.masks)
    assert equal(masked_out, {name: kept["4ba"][name] for name in technique.masks})


def test_a_checkpoint_that_was_moved_is_told_of(tmp_path):
    options = {"save_strategy": "steps", "save_steps": KILLED}
    whole = trained(run("MagnitudePruning", tmp_path / "a", **options))
    shutil.move(tmp_path / "a" / f"checkpoint-{KILLED}", tmp_path / "moved")
    with pytest.raises(ValueError, match=r"has no accelerando-MagnitudePruning.pt in .*resume_from_checkpoint"):
        run("MagnitudePruning", tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "moved"))
    told = run("MagnitudePruning", tmp_path / "b", resume_from_checkpoint=str(tmp_path / "moved"))
    assert equal(trained(told, resume_from_checkpoint=str(tmp_path / "moved")), whole)


def test_a_checkpoint_without_masks_is_not_gone_on_with(tmp_path):
    run("MagnitudePruning", tmp_path, bare=True, save_strategy="steps", save_steps=4).train()
    with pytest.raises(ValueError, match="MagnitudePruning: the checkpoint of step 4 holds no masks"):
        run("MagnitudePruning", tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_another_plan_is_not_gone_on_with(tmp_path):
    run("MagnitudePruning", tmp_path, save_strategy="steps", save_steps=4).train()
    other = trainer(tmp_path, [MagnitudePruning(0.1, start="2ba", end="7ba", interval="1ba")])
    with pytest.raises(ValueError, match=r"the checkpoint's run had density=0\.3"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_what_cannot_work_is_refused_in_one_line(tmp_path):
    refused = [
        (lambda: trainer(tmp_path, [LabelSmoothing()], label_smoothing_factor=0.1), "leave it at 0"),
        (lambda: MagnitudePruning(0.5, start="10sp"), "10sp cannot be told here; give ba, ep or dur"),
        (lambda: Distillation(bert(seed=1), end="10tok"), "10tok cannot be told here"),
        (lambda: trainer(tmp_path, [LabelSmoothing(), LabelSmoothing()]).train(), "LabelSmoothing too; keep one"),
        (
            lambda: trainer(tmp_path, [MagnitudePruning(0.5), PruneAtInit("magnitude", 0.5)]).train(),
            "PruneAtInit: the Trainer was given MagnitudePruning too",
        ),
        (
            lambda: trainer(tmp_path, [LabelSmoothing()], compute_loss_func=weighted).train(),
            r"give the Trainer callback\.wrap\(compute_loss_func\)",
        ),
        (
            lambda: trainer(
                tmp_path, [LabelledPositions()], bert(BertForMaskedLM), masked(), compute_loss_func=weighted
            ).train(),
            "needs 'labels' that come to the model",
        ),
        (lambda: trainer(tmp_path, [LabelledPositions()]).train(), "is not one of the masked language models"),
        (lambda: trainer(tmp_path, [ticket()]).train(), "max_steps must be 11, which is 5"),
        (lambda: trainer(tmp_path, [MagnitudePruning(0.5, start="9ba")]).train(), "within the training"),
        (lambda: PruneAtInit("snip", 0.5, at="1dur"), "in ep or ba"),
    ]
    for attempt, sentence in refused:
        with pytest.raises((ValueError, TypeError), match=sentence) as error:
            attempt()
        assert "\n" not in str(error.value)


class Stream(IterableDataset):
    """The sentences, as many as are asked for."""

    def __iter__(self):
        while True:
            yield from sentences()


IN_EPOCHS: dict[str, tuple[Callable[[], TrainerCallback], str]] = {
    "Distillation from": (lambda: distillation(start="1ep"), "1ep"),
    "Distillation to": (lambda: distillation(end="1ep"), "1ep"),
    "ForgettingEvents": (lambda: ForgettingEvents(DataLoader(sentences(), 7)), "1ep"),  # type: ignore[arg-type]
    "LinearPath": (lambda: LinearPath("1ep", points=3, train=True), "1ep"),
    "MagnitudePruning from": (lambda: MagnitudePruning(0.5, start="1ep"), "1ep"),
    "MagnitudePruning to": (lambda: MagnitudePruning(0.5, end="2ep"), "2ep"),
    "MagnitudePruning every": (lambda: MagnitudePruning(0.5, "2ba", "6ba", interval="1ep"), "1ep"),
    "PruneAtInit": (lambda: PruneAtInit("magnitude", 0.5, at="1ep"), "1ep"),
    "Snapshots": (lambda: Snapshots(["0ba", "1ep", "1dur"]), "1ep"),
}


@pytest.mark.parametrize("name", IN_EPOCHS)
def test_epochs_of_a_stream_never_come_and_are_refused(name, tmp_path):
    make, told = IN_EPOCHS[name]
    run = trainer(tmp_path, [make()], data=Stream(), max_steps=8)
    before = weights(run.model)
    start = f"^{name.split()[0]}: when {told} comes cannot be told, as the training data have no length"
    with pytest.raises(ValueError, match=start) as error:
        run.train()
    assert "\n" not in str(error.value) and equal(weights(run.model), before)


def test_other_moments_of_a_stream_come(tmp_path):
    """Among them the beginning, which is the same in every unit."""
    pruning, kept = MagnitudePruning(0.5, start="0ep"), Snapshots(["0ep", "3ba", "0.5dur", "1dur"])
    taught = distillation(start="2ba", end="0.5dur")
    trainer(tmp_path, [pruning, kept, taught], data=Stream(), max_steps=8).train()
    assert kept.kept == {"0ep": 0, "3ba": 3, "0.5dur": 4, "1dur": 8} and taught.distiller.over
    assert all(not mask.all() for mask in pruning.masks.values())
    at_once = PruneAtInit("magnitude", 0.5, at="0ep")
    trainer(tmp_path, [at_once], data=Stream(), max_steps=1).train()
    assert at_once.masks


@pytest.mark.parametrize("name", CASES)
def test_the_trainer_of_another_host_is_told_of_its_own_class(name):
    technique = CASES[name].make()
    for asked, host, module in (
        ("state_key", "Lightning's", "accelerando.algorithms.lightning"),
        ("match", "Composer's", "accelerando.algorithms"),
        ("run_event", "Composer's", "accelerando.algorithms"),
    ):
        with pytest.raises(TypeError) as error:
            getattr(technique, asked)
        expected = f"is the class for Hugging Face's Trainer: for {host}, from {module} import {name}."
        assert str(error.value) == f"This {name} {expected}"


@pytest.mark.filterwarnings("ignore")
def test_lightning_asks_for_it_at_first():
    lightning = pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    for technique in (LabelSmoothing(), Snapshots(["1ba"])):
        with pytest.raises(TypeError, match=f"from accelerando.algorithms.lightning import {technique.name}"):
            lightning.Trainer(callbacks=[technique], **quiet)


@pytest.mark.parametrize("name", CASES)
def test_split_weights_are_refused(name, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), fsdp="full_shard", use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=f"{name} does not work on weights that FSDP splits"):
        CASES[name].make().on_init_end(args, None, None)  # a Trainer with FSDP needs a GPU


def test_without_transformers_one_line_says_what_to_install():
    program = (
        "import sys; sys.modules['transformers'] = None; from accelerando.algorithms.transformers import Snapshots"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (
        "needs transformers, which is missing: pip install 'accelerando[transformers]'" in done.stderr.splitlines()[-1]
    )


if __name__ == "__main__":
    for each in CASES:
        left = trained(run(each, Path(sys.argv[1], each), per_device_train_batch_size=4))
        torch.save(left, Path(sys.argv[1], f"{each}-{torch.distributed.get_rank()}.pt"))
    torch.distributed.destroy_process_group()
