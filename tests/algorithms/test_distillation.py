import copy
import functools
import gc
import itertools
import random
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from composer import Callback
from composer.algorithms import SAM, ProgressiveResizing
from composer.algorithms.warnings import NoEffectWarning
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from scipy import stats
from torch import nn
from torch.nn import functional as F

from accelerando.algorithms import (
    ChannelsLast,
    Distillation,
    Distiller,
    HeadPositions,
    LabelledPositions,
    LabelSmoothing,
    MixUp,
    add_distillation,
    distillation_kl,
    draw_teachers,
    mixup_batch,
)
from accelerando.algorithms.progress import Progress, moment
from accelerando.algorithms.teachers import Teacher, rows
from small import mixup_draws
from tiny import (
    CLASSES,
    WORDS,
    Kill,
    assert_same,
    classifier,
    differ,
    examples,
    fit,
    loader,
    masked_lm,
    network,
    sentences,
    token_loader,
    trainer,
    weights,
)


def teacher(seed: int = 1, classes: int = CLASSES) -> nn.Module:
    """Sure of itself: its logits are large."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(classes)]
    module = nn.Sequential(*layers)
    module(torch.randn(16, 3, 12, 12))
    nn.init.normal_(module[-1].weight, std=0.2)
    return module


def plain_kl(student, teacher, T):
    """The mean over rows of sum_c p_c (ln p_c - ln q_c), written out in float64, times T^2."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = (torch.exp(x / T) / torch.exp(x / T).sum() for x in (t, s))
        total = total + sum(p[c] * (torch.log(p[c]) - torch.log(q[c])) for c in range(len(p)))
    return T**2 * total / len(student)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_kl_is_the_formula(T):
    torch.manual_seed(0)
    student, target = torch.randn(6, 5, requires_grad=True), 3 * torch.randn(6, 5)
    loss = distillation_kl(student, target, T)
    torch.testing.assert_close(loss.double(), plain_kl(student, target, T), rtol=1e-5, atol=0)
    assert loss > 0 and distillation_kl(target, target, T) == 0
    assert abs(loss - distillation_kl(target, student, T)) > 0.01 * loss  # the arguments are not exchangeable
    loss.backward()
    p, q = (F.softmax(x.detach() / T, -1) for x in (target, student))
    torch.testing.assert_close(student.grad, T * (q - p) / 6)


def by_hand(step_loss, steps=8, model=None, batches=None):
    """The tiny run without a Trainer: `step_loss(model, batch, step)` on every batch of two epochs."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = batches or [*zip(*(tensor.split(8) for tensor in examples()), strict=True)] * 2
    for step, batch in enumerate(batches[:steps]):
        optimizer.zero_grad()
        step_loss(model, batch, step).backward()
        optimizer.step()
    return {f"module.{name}": value for name, value in model.state_dict().items()}


def asked(module, x):
    with torch.no_grad():
        return module.eval()(x)


CASES = {
    "one": {"teachers_per_step": None},
    "all": {"teachers_per_step": None},
    "drawn": {"teachers_per_step": 1},
    "two of three": {"teachers_per_step": 2},
    "mse": {"loss": "mse"},
    "callable": {"loss": lambda s, t: F.l1_loss(s, t)},
    "weights": {"base_weight": 0.7, "distillation_weight": 2.0, "temperature": 1.5},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("microbatch", [8, 3])
def test_training_is_the_plain_loop(name, microbatch):
    options = {
        "teachers_per_step": None,
        "loss": "kl",
        "temperature": 4.0,
        "base_weight": 0.1,
        "distillation_weight": 0.9,
    }
    options |= CASES[name]
    teachers = [teacher(seed) for seed in range(1 if name == "one" else 3)]
    run = fit(Distillation(copy.deepcopy(teachers), **options), device_train_microbatch_size=microbatch)

    def step_loss(model, batch, step):
        x, y = batch
        drawn = draw_teachers(7, step, len(teachers), options["teachers_per_step"] or len(teachers))
        target, logits = sum(asked(teachers[i], x) for i in drawn) / len(drawn), model(x)
        if options["loss"] == "kl":
            distilled = plain_kl(logits, target, options["temperature"]).float()
        else:
            distilled = F.mse_loss(logits, target) if options["loss"] == "mse" else F.l1_loss(logits, target)
        return options["base_weight"] * F.cross_entropy(logits, y) + options["distillation_weight"] * distilled

    assert_same(weights(run), by_hand(step_loss), atol=2e-5)


def test_the_draw_is_uniform_and_repeats():
    draws = [draw_teachers(3, step, 5, 1)[0] for step in range(4000)]
    assert stats.chisquare([*Counter(draws).values()]).pvalue > 0.01
    pairs = [tuple(draw_teachers(3, step, 4, 2)) for step in range(3000)]
    assert {*pairs} == {*itertools.combinations(range(4), 2)}
    assert stats.chisquare([*Counter(pairs).values()]).pvalue > 0.01
    assert draws[:50] == [draw_teachers(3, step, 5, 1)[0] for step in range(50)]
    assert draws[:50] != [draw_teachers(4, step, 5, 1)[0] for step in range(50)]
    follows = Counter(itertools.pairwise(draws))  # nor does a draw depend on the one before
    assert stats.chisquare([*follows.values()]).pvalue > 0.01 and len(follows) == 25


def test_no_generator_moves():
    def states(ours):
        run = trainer(ours)
        run.fit()
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    assert states([]) == states([Distillation([teacher(), teacher(2)], teachers_per_step=1)])


@pytest.mark.parametrize(
    "start, end, active",
    [
        ("0dur", "0.25dur", range(0, 2)),
        ("0.25dur", "0.5dur", range(2, 4)),
        ("3ba", "1ep", range(3, 4)),
        ("16sp", "5ba", range(2, 5)),
        ("0dur", "0.3dur", range(0, 3)),
        ("0dur", "1dur", range(0, 8)),
    ],
)
def test_outside_the_window_the_loss_is_the_plain_one(start, end, active):
    one = teacher()
    run = fit(Distillation(copy.deepcopy(one), start=start, end=end))

    def step_loss(model, batch, step):
        logits = model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        distilled = distillation_kl(logits, asked(one, batch[0])) if step in active else None
        return loss if distilled is None else 0.1 * loss + 0.9 * distilled

    assert_same(weights(run), by_hand(step_loss), atol=1e-6)


@pytest.mark.parametrize("start, same", [("3ba", True), ("2ba", False)])
@pytest.mark.filterwarnings("ignore:Distillation. the training ended before start")
def test_up_to_the_window_the_run_is_the_plain_one_bit_for_bit(start, same):
    runs = [trainer(ours) for ours in ([], [Distillation(teacher(), start=start)])]
    for run in runs:
        run.fit(duration="3ba")
    plain, distilled = map(weights, runs)
    assert all(torch.equal(plain[name], distilled[name]) for name in plain) == same


def test_teachers_are_released_after_the_end():
    class Watch(Callback):
        def after_backward(self, state, logger):
            if state.timestamp.batch < 8:  # to collect takes long
                gc.collect()
                here.append(gone() is not None)

    module, here = teacher(), []
    gone, algorithm = weakref.ref(module), Distillation(module, end="0.5dur")
    del module
    run = fit(algorithm, callbacks=Watch())
    assert here == [True] * 4 + [False] * 4 and algorithm.teachers == []
    run.fit(duration="20ba")  # of which the end would be a smaller part: over is over
    assert run.state.timestamp.batch == 28


def test_evaluation_at_the_end_finds_no_teachers():
    class Watch(Callback):
        def eval_start(self, state, logger):
            here.append(len(algorithm.teachers))

    here, algorithm = [], Distillation(teacher(), end="0.5dur")
    fit(algorithm, eval_dataloader=loader(), eval_interval="2ba", callbacks=Watch())
    assert here == [1, 0, 0, 0]


def test_without_an_end_of_its_own_it_goes_on_with_the_training():
    algorithm = Distillation(teacher())
    run = fit(algorithm)
    before = weights(run)
    run.fit(duration="1ba")
    assert algorithm.drawn == [0] and differ(weights(run), before)


def test_a_start_that_never_comes_is_said():
    with pytest.warns(NoEffectWarning, match="Distillation: the training ended before start=500ba"):
        fit(Distillation(teacher(), start="500ba"), train_dataloader=loader(10))


def test_teachers_are_where_they_are_needed(monkeypatch):
    module = teacher()
    one, before = Teacher(module), {name: value.data_ptr() for name, value in module.state_dict().items()}
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *place, **how: tensor.clone())  # as another device would
    for _ in range(2):
        one.enter(torch.device("cpu"))
        there = {name: value.data_ptr() for name, value in module.state_dict().items()}
        assert not set(there.values()) & set(before.values())
        one.enter(torch.device("cpu"))
        assert {name: value.data_ptr() for name, value in module.state_dict().items()} == there
        one.leave()
        assert {name: value.data_ptr() for name, value in module.state_dict().items()} == before


@pytest.mark.parametrize("per_step", [1, None])
@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_teachers_leave_between_batches(offload, per_step, monkeypatch):
    entered, most = [], []
    enter, leave = Teacher.enter, Teacher.leave

    def watched_enter(self, device):
        entered.append(self) if self not in entered else None
        most.append(len(entered))
        enter(self, device)

    def watched_leave(self):
        entered.remove(self) if self in entered else None
        leave(self)

    class Watch(Callback):
        def batch_end(self, state, logger):
            left.append(len(entered))

    left = []
    monkeypatch.setattr(Teacher, "enter", watched_enter)
    monkeypatch.setattr(Teacher, "leave", watched_leave)
    fit(Distillation([teacher(), teacher(2)], per_step, offload=offload), callbacks=Watch())
    assert left == [0 if offload else 2] * 8 and max(most) == (1 if offload else 2)


def test_teachers_are_put_into_evaluation_again():
    class Train(Callback):
        def batch_start(self, state, logger):
            module.train()

    module = teacher()
    before = copy.deepcopy(module.state_dict())
    run = fit(Distillation(module), callbacks=Train())
    assert_same(module.state_dict(), before)
    assert_same(weights(run), weights(fit(Distillation(teacher()))))


def test_teachers_run_in_the_students_precision(monkeypatch):
    def outputs(**options):
        kinds, module = set(), teacher()
        module.register_forward_hook(lambda m, i, o: kinds.add(o.dtype))
        fit(Distillation(module, **options), max_duration="1ba")
        return kinds

    # Composer has no mixed precision on the CPU.
    bf16 = lambda precision, config: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    assert outputs() == {torch.float32}
    monkeypatch.setattr("accelerando.algorithms.composer.distillation.get_precision_context", bf16)
    assert outputs() == {torch.bfloat16}
    assert outputs(teacher_dtype="float32") == {torch.float32}


def test_the_divergence_of_half_precision_logits_is_computed_in_float32():
    torch.manual_seed(0)
    student, target = (4 * torch.randn(16, 300).bfloat16() for _ in range(2))
    torch.testing.assert_close(
        distillation_kl(student, target).double(), plain_kl(student, target, 4.0), rtol=1e-5, atol=0
    )


@pytest.mark.filterwarnings("ignore:SAM has known issues")
@pytest.mark.parametrize("microbatch", [8, 3])
def test_each_pass_of_sam_asks_the_teachers(microbatch):
    # The first pass of a step goes uphill from the distilled loss, the second one down from there.
    runs = [
        fit(
            [SAM(rho=0.3), Distillation(masked_lm(seed=5)), *ours],
            model=masked_lm(),
            train_dataloader=token_loader(),
            device_train_microbatch_size=microbatch,
        )
        for ours in ([], [LabelledPositions()])
    ]
    assert_same(weights(runs[1]), weights(runs[0]), atol=1e-5)
    model, one = masked_lm().model, masked_lm(seed=5).model.eval()
    batch = {name: value[:8] for name, value in sentences().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def backward():
        optimizer.zero_grad()
        where = batch["labels"] != -100
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits, target = (net(**inputs).logits[where] for net in (model, one))
        (
            0.1 * F.cross_entropy(logits, batch["labels"][where]) + 0.9 * distillation_kl(logits, target.detach())
        ).backward()

    backward()
    used = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([parameter.grad.norm() for parameter in used]).norm()
    steps = [parameter.grad * (0.3 / (norm + 1e-12)) for parameter in used]
    for parameter, step in zip(used, steps, strict=True):
        parameter.data.add_(step)
    backward()
    for parameter, step in zip(used, steps, strict=True):
        parameter.data.sub_(step)
    optimizer.step()
    run = fit(
        [SAM(rho=0.3), Distillation(masked_lm(seed=5)), LabelledPositions()],
        model=masked_lm(),
        train_dataloader=token_loader(),
        device_train_microbatch_size=microbatch,
        max_duration="1ba",
    )
    assert_same(weights(run), {f"model.{name}": value for name, value in model.state_dict().items()}, atol=1e-5)


def test_the_seed_of_the_draw_comes_back(tmp_path):
    build = lambda: Distillation([teacher(), teacher(2)], teachers_per_step=1)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fit(build(), save_folder=str(tmp_path), save_interval="1ba", callbacks=Kill(3))
    resumed = fit(build(), load_path=str(tmp_path / "ep0-ba3-rank0.pt"), seed=8)
    assert_same(weights(resumed), weights(fit(build())))
    with pytest.raises(ValueError, match="the checkpoint's run has 2 teachers, got 1"):
        fit(Distillation(teacher()), load_path=str(tmp_path / "ep0-ba3-rank0.pt"))


def test_the_draw_is_not_what_others_draw():
    def like_mixup(step):
        return int(np.random.default_rng((3, step)).choice(5, 1, replace=False)[0])

    same = sum(draw_teachers(3, step, 5, 1)[0] == like_mixup(step) for step in range(1000))
    assert 150 < same < 250


def test_teachers_stay_as_they_are(tmp_path):
    module = teacher()
    before = copy.deepcopy(module.state_dict())
    modes = []
    module.register_forward_hook(lambda m, i, o: modes.append((m.training, torch.is_grad_enabled(), o.requires_grad)))
    module.train()
    run = fit(Distillation(module), save_folder=str(tmp_path), train_dataloader=loader(shuffle=True))
    assert_same(module.state_dict(), before)
    assert set(modes) == {(False, False, False)} and len(modes) == 9  # once more, to compare the classes
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())
    held = {id(parameter) for group in run.state.optimizers[0].param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in module.parameters()}
    plain = fit(save_folder=str(tmp_path / "plain"), train_dataloader=loader(shuffle=True))
    saved, other = (
        torch.load(folder / "ep2-ba8-rank0.pt", weights_only=False) for folder in (tmp_path, tmp_path / "plain")
    )
    assert saved["state"]["model"].keys() == other["state"]["model"].keys() == plain.state.model.state_dict().keys()
    ((_, state),) = saved["state"]["algorithms"]
    assert state.keys() == {"repr", "seed", "over", "teachers"}


def test_resumed_after_the_end_it_is_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Distillation(teacher(), end="0.5dur"), save_folder=str(tmp_path), save_interval="1ba", callbacks=Kill(5))
    algorithm = Distillation(teacher(2), end="0.5dur")
    resumed = fit(algorithm, load_path=str(tmp_path / "ep1-ba5-rank0.pt"), max_duration="4ep")
    plain = fit(load_path=str(tmp_path / "ep1-ba5-rank0.pt"), max_duration="4ep")
    assert_same(weights(resumed), weights(plain))


@pytest.mark.parametrize("options", [{"offload": True}, {"teacher_dtype": "float32"}, {"compile": True}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_how_teachers_are_kept_changes_nothing(options, monkeypatch):
    if "compile" in options:  # a C++ compiler is not what is tried here
        compiled, real = [], nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda m: (compiled.append(m), real(m, backend="aot_eager")))
    teachers = [teacher(), teacher(2)]
    plain = fit(Distillation(copy.deepcopy(teachers), teachers_per_step=1))
    other = fit(Distillation(given := copy.deepcopy(teachers), teachers_per_step=1, **options))
    assert_same(weights(other), weights(plain), atol=1e-6)
    if "compile" in options:
        assert compiled == given


def test_teachers_in_bfloat16():
    teachers = [teacher(), teacher(2)]
    plain = fit(Distillation(copy.deepcopy(teachers)))
    other = fit(Distillation(teachers, teacher_dtype="bfloat16"))
    assert {parameter.dtype for module in teachers for parameter in module.parameters()} == {torch.bfloat16}
    assert differ(weights(other), weights(fit()))
    assert_same(weights(other), weights(plain), atol=0.01)


def test_teachers_follow_the_memory_format():
    formats, module = [], teacher()
    module[0].register_forward_hook(
        lambda m, i, o: formats.append(m.weight.is_contiguous(memory_format=torch.channels_last))
    )
    fit([Distillation(module), ChannelsLast()])
    assert formats and all(formats)


class Outputs(ComposerClassifier):
    """The tiny classifier with outputs, batches and losses of another form."""

    def __init__(self, outputs, loss):
        super().__init__(network(), num_classes=CLASSES)
        self.form, self.loss_form = outputs, loss

    def forward(self, batch):
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        logits = self.module(x)
        return {"tensor": logits, "tuple": (x.mean(), logits, x), "mapping": {"logits": logits, "aux": x}}[self.form]

    def loss(self, outputs, batch):
        y = batch["y"] if isinstance(batch, dict) else batch[1]
        logits = outputs if self.form == "tensor" else outputs[1] if self.form == "tuple" else outputs["logits"]
        loss = F.cross_entropy(logits, y)
        parts = {"tensor": loss, "tuple": (0.75 * loss, 0.25 * loss), "mapping": {"a": 0.75 * loss, "b": 0.25 * loss}}
        return parts.get(self.loss_form, {"total": loss, "twice": 2 * loss})

    def get_metrics(self, is_train):
        return {}


@pytest.mark.parametrize("outputs", ["tensor", "tuple", "mapping"])
@pytest.mark.parametrize("loss", ["tensor", "tuple", "mapping", "total"])
@pytest.mark.parametrize("mapped", [False, True])
def test_forms_of_batches_outputs_and_losses(outputs, loss, mapped):
    options = {"input_key": "x", "target_key": "y"} if mapped else {}
    batches = [dict(zip("xy", batch, strict=True)) if mapped else batch for batch in loader()]
    before = copy.deepcopy(batches)
    run = fit(
        Distillation(teacher(), **options),
        model=Outputs(outputs, loss),
        train_dataloader=batches,
        device_train_microbatch_size=8,
    )
    assert_same(weights(run), weights(fit(Distillation(teacher()))), atol=1e-6)
    for batch, was in zip(batches, before, strict=True):
        assert type(batch) is type(was) and len(batch) == len(was)
        for part, old in zip(*(batch.values() if mapped else batch for batch in (batch, was)), strict=True):
            assert torch.equal(part, old)


def test_losses_are_weighed():
    loss = {"total": torch.tensor(3.0), "aux": torch.tensor(5.0)}
    assert add_distillation(loss, torch.tensor(2.0), 0.1, 0.9) == {"total": 0.3 + 1.8, "aux": 5.0, "distillation": 1.8}
    assert loss["total"] == 3
    assert add_distillation((torch.tensor(3.0),), torch.tensor(2.0), 0.5, 0.25) == (1.5, 0.5)


@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize("first", ["MixUp", "Distillation"])
def test_with_mixup_the_teacher_sees_what_the_student_sees(interpolate_loss, first):
    one, seen, mixup = teacher(), [], MixUp(0.5, interpolate_loss=interpolate_loss)
    taken = copy.deepcopy(one)
    taken.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    both = [mixup, Distillation(taken)] if first == "MixUp" else [Distillation(taken), mixup]
    model, own = classifier(), []
    model.module.register_forward_pre_hook(lambda module, inputs: own.append(inputs[0].clone()))
    run = fit(both, model=model, device_train_microbatch_size=4)
    for mine, its in zip(own, seen[1:], strict=True):  # the first one compares the classes
        assert torch.equal(mine, its)

    def step_loss(model, batch, step):
        mixing, pairs = mixup_draws(0.5, len(batch[0]), 7, step)
        mixed, other, m = mixup_batch(*batch, mixing, indices=pairs)
        logits = model(mixed)
        loss = (1 - m) * F.cross_entropy(logits, batch[1]) + m * F.cross_entropy(logits, other)
        return 0.1 * loss + 0.9 * distillation_kl(logits, asked(one, mixed))

    assert_same(weights(run), by_hand(step_loss), atol=1e-5)


def test_with_progressive_resizing_the_teacher_sees_what_the_student_sees():
    sizes, module, own = [], network(), []
    module.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-1]))
    model = classifier()
    model.module.register_forward_pre_hook(lambda module, inputs: own.append(inputs[0].shape[-1]))
    resizing = ProgressiveResizing(mode="resize", initial_scale=0.5, delay_fraction=0.0, size_increment=1)
    fit([Distillation(module), resizing], model=model)
    assert sizes[1:] == own and len(set(own)) > 1


def lm_by_hand(teachers, smoothing=0.0, steps=8):
    batches = [{k: v[i : i + 8] for k, v in sentences().items()} for i in range(0, 30, 8)] * 2

    def step_loss(model, batch, step):
        where = batch["labels"] != -100
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits[where]
        target = sum(torch.no_grad()(lambda t: t(**inputs).logits[where])(one) for one in teachers) / len(teachers)
        loss = F.cross_entropy(logits, batch["labels"][where], label_smoothing=smoothing)
        return 0.1 * loss + 0.9 * plain_kl(logits, target, 4.0).float()

    found = by_hand(step_loss, steps, masked_lm().model, batches)
    return {name.replace("module.", "model.", 1): value for name, value in found.items()}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_lm_is_distilled_where_labels_stand(sparse, raw, smoothing):
    models = [masked_lm(kind, seed=5) for kind in ("bert", "distilbert")]
    for model in models:
        for parameter in model.parameters():
            parameter.data.mul_(3)
    given = [copy.deepcopy(model.model if raw else model) for model in models]
    rows = []
    for one in given:
        head = (one if raw else one.model).get_output_embeddings()
        head.register_forward_hook(lambda module, inputs, output: rows.append(tuple(output.shape)))
    algorithms = [Distillation(given), *([LabelledPositions()] if sparse else [])]
    algorithms += [LabelSmoothing(smoothing)] if smoothing else []
    run = fit(algorithms, model=masked_lm(), train_dataloader=token_loader(), device_train_microbatch_size=4)
    assert set(rows) == {(12, WORDS), (6, WORDS)}
    expected = lm_by_hand([model.model.eval() for model in models], smoothing)
    assert_same(weights(run), expected, atol=1e-5)


def test_causal_lm_is_distilled_where_the_next_token_has_a_label():
    from composer.models import HuggingFaceModel
    from transformers import GPT2Config, GPT2LMHeadModel

    def model(seed):
        torch.manual_seed(seed)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12, "vocab_size": WORDS}
        return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))

    labels = sentences()["input_ids"].masked_fill(sentences()["attention_mask"] == 0, -100)
    batches = [{"input_ids": sentences()["input_ids"][:4], "labels": labels[:4]}]
    student, one = model(0), model(1)
    run = fit(
        Distillation(copy.deepcopy(one)),
        model=HuggingFaceModel(copy.deepcopy(student), shift_labels=True),
        train_dataloader=batches,
        device_train_microbatch_size=4,
        max_duration="1ba",
    )

    def step_loss(model, batch, step):
        where = batch["labels"][:, 1:] != -100
        logits, target = (net(batch["input_ids"]).logits[:, :-1][where] for net in (model, one.eval()))
        return 0.1 * F.cross_entropy(logits, batch["labels"][:, 1:][where]) + 0.9 * distillation_kl(
            logits, target.detach()
        )

    expected = by_hand(step_loss, 1, student.train(), batches)
    assert_same(weights(run), {name.replace("module.", "model.", 1): v for name, v in expected.items()}, atol=1e-5)


@pytest.mark.parametrize("classes_last", [True, False])
def test_as_many_positions_as_classes_are_told_apart_by_the_kind_of_output(classes_last):
    logits, labels = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    found = rows(logits, torch.tensor([3, 7]), labels, classes_last)
    assert torch.equal(found, (logits if classes_last else logits.movedim(1, -1)).reshape(10, 5)[[3, 7]])


def test_images_with_a_label_for_each_pixel():
    torch.manual_seed(3)
    student, one = nn.Conv2d(3, CLASSES, 3, padding=1), nn.Conv2d(3, CLASSES, 3, padding=1)
    x, y = torch.randn(6, 3, 8, 8), torch.randint(-1, CLASSES, (6, 8, 8))
    batch = (x, y.masked_fill(y < 0, -100))
    model = ComposerClassifier(copy.deepcopy(student), num_classes=CLASSES, loss_fn=F.cross_entropy)
    model.get_metrics = lambda is_train: {}
    one_batch = {"device_train_microbatch_size": 6, "max_duration": "1ba"}
    run = fit(Distillation(copy.deepcopy(one)), model=model, train_dataloader=[batch], **one_batch)

    def step_loss(model, batch, step):
        logits, target = (net(batch[0]).permute(0, 2, 3, 1)[batch[1] != -100] for net in (model, one))
        distilled = distillation_kl(logits, target.detach())
        return 0.1 * F.cross_entropy(model(batch[0]), batch[1]) + 0.9 * distilled

    assert_same(weights(run), by_hand(step_loss, 1, student, [batch]), atol=1e-6)


def test_other_classes_are_an_error_before_the_first_step():
    run = trainer(Distillation([teacher(), teacher(2, classes=7)], teachers_per_step=1, start="0.5dur"))
    before = weights(run)
    with pytest.raises(ValueError, match=r"teacher 1 \(Sequential\) gives logits of \(8, 7\).* student gives \(8, 4\)"):
        run.fit()
    assert_same(weights(run), before)
    other = masked_lm("bert", seed=1)
    other.model.resize_token_embeddings(WORDS + 3)
    run = trainer(Distillation(other), model=masked_lm(), train_dataloader=token_loader())
    with pytest.raises(ValueError, match=rf"logits of \(24, {WORDS + 3}\).* student gives \(24, {WORDS}\)"):
        run.fit()


def test_teachers_that_cannot_teach_are_refused():
    diverged = teacher()
    diverged[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="a Sequential has weights that are not finite"):
        Distillation(diverged)
    for wrong in (5, None, [None], [teacher(), 3]):
        with pytest.raises(ValueError, match="Distillation: teachers must be modules"):
            Distillation(wrong)
    assert len(Distillation(nn.ModuleList([teacher(), teacher(2)])).teachers) == 2


def test_a_teacher_may_know_fewer_inputs():
    batches = [{**sentences(), "token_type_ids": torch.zeros_like(sentences()["input_ids"])}]
    options = {"device_train_microbatch_size": 30, "max_duration": "1ba"}
    runs = [
        fit(Distillation(one), model=masked_lm(), train_dataloader=batches, **options)
        for one in (masked_lm("distilbert", seed=5), masked_lm("distilbert", seed=5).model)
    ]
    assert_same(weights(runs[0]), weights(runs[1]))


def test_the_student_is_no_teacher():
    model = classifier()
    with pytest.raises(ValueError, match="shares weights with the student; give copy"):
        trainer(Distillation(model.module), model=model)
    one = teacher()
    with pytest.raises(ValueError, match="got one of them twice"):
        Distillation([one, one])


def test_logits_must_be_found():
    class Two(Outputs):
        def forward(self, batch):
            return {"a": batch[0], "b": batch[0]}

        def loss(self, outputs, batch):
            return self.module(batch[0]).sum()

    with pytest.raises(TypeError, match="no logits in a dict with a, b; expected 'logits'"):
        fit(Distillation(teacher()), model=Two("mapping", "tensor"))
    regression = nn.Sequential(nn.Flatten(), nn.Linear(432, 1))
    model = ComposerClassifier(copy.deepcopy(regression), num_classes=2, loss_fn=lambda out, y: out.mean())
    model.get_metrics = lambda is_train: {}
    with pytest.raises(ValueError, match="loss='kl' is always 0; use loss='mse'"):
        fit(Distillation(regression), model=model)


def test_a_subclass_overrides_a_step():
    class Own(Distillation):
        def _restart(self, state, logger):
            asked_for.append(state.timestamp.batch.value)
            super()._restart(state, logger)

    asked_for = []
    fit(Own(teacher()), max_duration="2ba")
    assert asked_for == [0, 1]


def test_a_subclass_distills_in_its_own_way_in_both_passes_of_sam():
    class Own(Distillation):
        def _distill(self, state, logger):
            taken.append(self._labelled.next(state.batch[1]))
            state.loss = self._weighed(state.loss, state.loss)

    taken = []
    x, y = torch.randn(6, 3, 8, 8), torch.randint(1, CLASSES, (6, 8, 8))
    student, one = (nn.Conv2d(3, CLASSES, 3, padding=1) for _ in range(2))
    data = {"train_dataloader": [(x, y)] * 2, "device_train_microbatch_size": 4, "max_duration": "2ba"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SAM has known issues")
        fit([Own(one), SAM(rho=0.05, interval=1)], model=Segments(student, -1), **data)
    assert [len(index) for index in taken] == [4 * 64, 2 * 64] * 4


def test_a_run_in_double_precision_is_distilled():
    torch.set_default_dtype(torch.float64)
    try:
        x, y = torch.randn(4, 3, 8, 8), torch.randint(1, CLASSES, (4, 8, 8))
        student, one = (nn.Conv2d(3, CLASSES, 3, padding=1) for _ in range(2))
        before = copy.deepcopy(student.weight)
        data = {"train_dataloader": [(x, y)], "device_train_microbatch_size": 4, "max_duration": "1ba"}
        fit(Distillation(one), model=Segments(student, -1), **data)
    finally:
        torch.set_default_dtype(torch.float32)
    assert student.weight.dtype == torch.float64 and not torch.equal(student.weight, before)


class Segments(ComposerClassifier):
    def __init__(self, module, ignore_index):
        loss = lambda out, y: F.cross_entropy(out, y.long(), ignore_index=ignore_index)  # noqa: E731
        super().__init__(module, num_classes=CLASSES, loss_fn=loss)

    def get_metrics(self, is_train):
        return {}


@pytest.mark.parametrize("ignored, dtype", [(255, torch.long), (255, torch.uint8), (-1, torch.long), (0, torch.int32)])
def test_pixels_of_the_ignored_label_are_not_taught(ignored, dtype):
    torch.manual_seed(3)
    student, one = nn.Conv2d(3, CLASSES, 3, padding=1), nn.Conv2d(3, CLASSES, 3, padding=1)
    x, y = torch.randn(6, 3, 8, 8), torch.randint(1, CLASSES, (6, 8, 8))
    y = y.masked_fill(torch.rand(y.shape) < 0.3, ignored).to(dtype)
    options = {"model": Segments(copy.deepcopy(student), ignored), "train_dataloader": [(x, y)], "max_duration": "1ba"}
    run = fit(Distillation(copy.deepcopy(one), ignore_index=ignored), device_train_microbatch_size=6, **options)

    def step_loss(model, batch, step):
        where = batch[1] != ignored
        logits, target = (net(batch[0]).permute(0, 2, 3, 1)[where] for net in (model, one))
        return 0.1 * F.cross_entropy(logits, batch[1][where].long()) + 0.9 * plain_kl(logits, target.detach(), 4.0)

    assert_same(weights(run), by_hand(step_loss, 1, student, [(x, y)]), atol=1e-6)


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "total"])
@pytest.mark.parametrize("microbatch", [8, 3])
def test_both_parts_of_the_loss_are_logged(form, microbatch):
    log, one = InMemoryLogger(), teacher()
    model = Outputs("mapping", form)
    algorithm = Distillation(copy.deepcopy(one), base_weight=0.25, distillation_weight=2.0, end="6ba")
    fit(algorithm, model=model, device_train_microbatch_size=microbatch, loggers=log)
    expected: list[tuple[float, float]] = []

    def step_loss(model, batch, step):
        logits = model(batch[0])
        plain, distilled = F.cross_entropy(logits, batch[1]), 2 * distillation_kl(logits, asked(one, batch[0]))
        expected.append((plain.item(), distilled.item()))
        return 0.25 * plain + distilled if step < 6 else plain

    by_hand(step_loss)
    names = ("plain", "distillation")
    found = [{time.batch.value: float(v) for time, v in log.data[f"loss/train/{name}"]} for name in names]
    assert [*found[0]] == [*found[1]] == [*range(6)]
    assert [*zip(*(each.values() for each in found), strict=True)] == [pytest.approx(e, rel=1e-4) for e in expected[:6]]
    total = [value for _, value in log.data["loss/train/total"]]
    assert total[:6] == pytest.approx([0.25 * plain + distilled for plain, distilled in expected[:6]], rel=1e-4)
    if form in ("tensor", "tuple"):
        assert len(log.data["loss/train/plain"]) == len(log.data["loss/train/distillation"]) == 6


@pytest.mark.parametrize("sizes", [[7], [3], [7, 3], [6, 5]])
@pytest.mark.parametrize("per_step", [1, None])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_common_classes_alone_are_taught_where_asked(sizes, per_step, loss):
    teachers, common = [teacher(i, classes=size) for i, size in enumerate(sizes)], min(CLASSES, *sizes)
    ours = Distillation(copy.deepcopy(teachers), per_step, loss=loss, common_classes=True)
    run = fit(ours, device_train_microbatch_size=8)

    def step_loss(model, batch, step):
        drawn, logits = draw_teachers(7, step, len(sizes), per_step or len(sizes)), model(batch[0])
        target = sum(asked(teachers[i], batch[0])[:, :common] for i in drawn) / len(drawn)
        cut = logits[:, :common]
        distilled = plain_kl(cut, target, 4.0).float() if loss == "kl" else F.mse_loss(cut, target)
        return 0.1 * F.cross_entropy(logits, batch[1]) + 0.9 * distilled

    assert_same(weights(run), by_hand(step_loss), atol=2e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("more", [-4, 4])
def test_vocabularies_that_differ_by_padding(sparse, more):
    one = masked_lm("bert", seed=1).model
    one.resize_token_embeddings(WORDS + more, mean_resizing=False)
    algorithms = [Distillation(copy.deepcopy(one), common_classes=True), *([LabelledPositions()] if sparse else [])]
    batches = [{name: value[:8] for name, value in sentences().items()}]
    options = {"train_dataloader": batches, "device_train_microbatch_size": 8, "max_duration": "1ba"}
    batches[0]["input_ids"] = batches[0]["input_ids"].clamp(max=WORDS - 5)
    run = fit(algorithms, model=masked_lm(), **options)

    def step_loss(model, batch, step):
        where, inputs = batch["labels"] != -100, {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits, target = (net(**inputs).logits[where] for net in (model, one.eval()))
        common = WORDS + min(more, 0)
        distilled = plain_kl(logits[:, :common], target[:, :common].detach(), 4.0).float()
        return 0.1 * F.cross_entropy(logits, batch["labels"][where]) + 0.9 * distilled

    expected = by_hand(step_loss, 1, masked_lm().model, batches)
    assert_same(weights(run), {name.replace("module.", "model.", 1): v for name, v in expected.items()}, atol=1e-5)


def test_where_it_was_not_asked_for_the_error_names_it():
    with pytest.raises(ValueError, match=r"must be the same \(common_classes=True teaches those that all have\)"):
        fit(Distillation(teacher(2, classes=7)))
    for wrong in ({"ignore_index": 2.5}, {"ignore_index": None}, {"common_classes": 1}):
        with pytest.raises(ValueError, match=f"Distillation: {next(iter(wrong))} must be"):
            Distillation(teacher(), **wrong)


def test_outputs_named_labels_are_not_taken_for_those_of_labelled_positions():
    class Named(Segments):
        def forward(self, batch):
            return {"logits": self.module(batch[0]), "labels": batch[1]}

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs["logits"], batch[1][:, 0])

    x, y = examples()
    batch = (x, torch.stack([y, y.masked_fill(y == 0, -100)], 1))
    options = {"max_duration": "1ba", "device_train_microbatch_size": len(x)}
    run = fit(Distillation(teacher()), model=Named(network(), -100), train_dataloader=[batch], **options)
    plain = fit(Distillation(teacher()), train_dataloader=[(x, y)], **options)
    assert_same(weights(run), weights(plain), atol=1e-6)


def plain_loop(distiller, microbatch=8, steps=8, start=0, **parts):
    """The tiny run as somebody would write it; `parts` has the model and the optimizer of a run that goes on."""
    model = parts.get("model") or network()
    optimizer = parts.get("optimizer") or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = [*zip(*(tensor.split(8) for tensor in examples()), strict=True)] * 2
    for step in range(start, steps):
        optimizer.zero_grad()
        for inputs, targets in zip(*(tensor.split(microbatch) for tensor in batches[step]), strict=True):
            outputs = model(inputs)
            loss = distiller(F.cross_entropy(outputs, targets), outputs, inputs, step)
            (loss * (len(inputs) / len(batches[step][0]))).backward()
        optimizer.step()
    return {f"module.{name}": value.clone() for name, value in model.state_dict().items()}


WINDOWS = {
    "always": {},
    "one drawn of three": {"teachers_per_step": 1},
    "two drawn of three, offloaded": {"teachers_per_step": 2, "offload": True},
    "a share of the training": {"start": "0.25dur", "end": "0.75dur"},
    "some batches": {"start": "1ba", "end": "5ba", "loss": "mse"},
    "in bfloat16": {"teacher_dtype": "bfloat16", "temperature": 2.0},
    "common classes": {"common_classes": True},
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("microbatch", [8, 4])
def test_a_loop_of_ones_own_ends_in_the_trainers_weights(name, microbatch):
    classes = (CLASSES, 7, CLASSES) if name == "common classes" else (CLASSES,) * 3
    teachers = [teacher(seed, size) for seed, size in enumerate(classes)]
    run = fit(Distillation(copy.deepcopy(teachers), **WINDOWS[name]), device_train_microbatch_size=microbatch)
    found = plain_loop(Distiller(teachers, **WINDOWS[name], seed=7, steps=8), microbatch)
    assert_same(found, weights(run))


def test_a_loop_that_says_how_far_it_is_may_count_in_anything():
    batches, one = [*zip(*(tensor.split(8) for tensor in examples()), strict=True)] * 2, teacher()
    distiller = Distiller(copy.deepcopy(one), start="16sp", end="1ep")
    distilled = []
    for step, (inputs, targets) in enumerate(batches):
        progress = Progress(batch=step, sample=8 * step, epoch=step // 4, length=moment("2ep"))
        logits = network()(inputs)
        loss = F.cross_entropy(logits, targets)
        found = distiller(loss, logits, inputs, progress)
        expected = 0.1 * loss + 0.9 * plain_kl(logits, asked(one, inputs), 4.0).float() if step in (2, 3) else loss
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        distilled += [step] if distiller.parts else []
    assert distilled == [2, 3] and distiller.over


def test_both_parts_of_the_last_loss_are_at_hand():
    one, (x, y) = teacher(), examples()
    distiller, logits = (
        Distiller(copy.deepcopy(one), base_weight=0.25, distillation_weight=2.0, end="1ba"),
        network()(x),
    )
    loss = F.cross_entropy(logits, y)
    total = distiller({"total": loss, "twice": 2 * loss}, logits, x, 0)["total"]
    plain, distilled = distiller.parts["plain"], distiller.parts["distillation"]
    torch.testing.assert_close(plain, loss.detach())
    torch.testing.assert_close(distilled.double(), 2 * plain_kl(logits, asked(one, x), 4.0).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(total.detach(), 0.25 * plain + distilled)
    assert not plain.requires_grad and not distilled.requires_grad
    assert distiller(loss, logits, x, 1) is loss and distiller.parts == {}


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_teacher_is_given_inputs_in_the_precision_of_its_weights(dtype, own):
    """As where a whole student is of another precision, without autocast."""
    (x, y), one = examples(), teacher().to(own).eval()
    x = x.to(dtype)
    logits = network().to(dtype)(x)
    loss = F.cross_entropy(logits, y)
    with torch.no_grad():
        expected = distillation_kl(logits, one(x.to(own)))
    for module, inputs in ((one, x), (OfMapping(one), {"x": x, "labels": y})):
        distiller = Distiller(copy.deepcopy(module), base_weight=0.0, distillation_weight=1.0)
        torch.testing.assert_close(distiller(loss, logits, inputs, 0).detach().float(), expected.float())
    assert x.dtype == dtype


class OfMapping(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module(batch["x"])


def test_teachers_that_were_let_go_are_no_teachers_of_another_training():
    algorithm = Distillation(teacher(), end="0.5dur")
    fit(algorithm)
    with pytest.raises(ValueError, match=r"let go at end=0\.5dur of an earlier training; make a new one for each"):
        fit(algorithm)
    distiller = Distiller(teacher(), end="1ba")
    state = distiller.state_dict()
    (x, y), student = examples(), network()
    for step in range(2):
        distiller(F.cross_entropy(logits := student(x), y), logits, x, step)
    with pytest.raises(ValueError, match="the checkpoint's has them; make a new one to go on from it"):
        distiller.load_state_dict(state)


def test_an_encoder_decoder_is_asked_with_what_its_decoder_sees_of_the_labels():
    from transformers import T5Config, T5ForConditionalGeneration

    def model(width):
        sizes = {"vocab_size": 30, "d_model": width, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))

    torch.manual_seed(5)
    student, one, ids = model(16), model(8).eval(), torch.randint(1, 30, (3, 5))
    labels = torch.where(torch.rand(3, 4) < 0.3, -100, torch.randint(1, 30, (3, 4)))
    batch = {"input_ids": ids, "labels": labels}
    outputs = student(**batch)
    found = Distiller(copy.deepcopy(one))(outputs.loss, outputs, batch, 0)
    with torch.no_grad():
        asked = one(**batch).logits[labels != -100]
    expected = 0.1 * outputs.loss + 0.9 * distillation_kl(outputs.logits[labels != -100], asked)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_what_is_at_hand_does_not_change_with_the_loss(form):
    one, (x, y) = teacher(), examples()
    distiller, logits = Distiller(one), network()(x)
    plain = F.cross_entropy(logits, y)
    loss = {"tensor": plain, "tuple": (plain,), "mapping": {"loss": plain}}[form]
    found = distiller(loss, logits, x, 0)
    was = {name: part.clone() for name, part in distiller.parts.items()}
    returned = found if form == "tuple" else found.values() if form == "mapping" else [found]
    with torch.no_grad():
        for tensor in (plain, *returned):
            tensor.mul_(0.25)
    assert distiller.parts == was


@pytest.mark.parametrize("without_gradient", ["always", "at the last microbatch"])
def test_a_distilled_loss_without_gradient_is_logged_too(without_gradient):
    def loss(student, target):
        distilled = F.mse_loss(student, target)
        return distilled.detach() if without_gradient == "always" or len(student) == 2 else distilled

    log, one, expected = InMemoryLogger(), teacher(), []
    fit(Distillation(copy.deepcopy(one), loss=loss), device_train_microbatch_size=3, loggers=log)

    def step_loss(model, batch, step):
        logits, target = model(batch[0]), asked(one, batch[0])
        parts = [
            loss(*pair) * len(pair[0]) / len(target) for pair in zip(logits.split(3), target.split(3), strict=True)
        ]
        plain = F.cross_entropy(logits, batch[1])
        expected.append((plain.item(), 0.9 * sum(parts).item()))
        return 0.1 * plain + 0.9 * sum(parts)

    by_hand(step_loss)
    names = ("plain", "distillation")
    found = zip(*([float(value) for _, value in log.data[f"loss/train/{name}"]] for name in names), strict=True)
    assert [*found] == [pytest.approx(pair, rel=1e-4) for pair in expected]


def test_who_differentiates_the_loss_before_changes_no_log():
    class Looks(Callback):
        def before_backward(self, state, logger):
            torch.autograd.grad(state.loss, [*state.model.parameters()], retain_graph=True)

    logs = [InMemoryLogger(), InMemoryLogger()]
    for log, callbacks in zip(logs, ([], [Looks()]), strict=True):
        fit(Distillation(teacher()), device_train_microbatch_size=3, loggers=log, callbacks=callbacks)
    for name in ("plain", "distillation"):
        plain, looked_at = ([float(value) for _, value in log.data[f"loss/train/{name}"]] for log in logs)
        assert plain == looked_at


def test_teachers_are_let_go_by_a_loop_of_ones_own():
    module = teacher()
    gone, distiller = weakref.ref(module), Distiller(module, end="0.5dur", steps=8)
    del module
    plain_loop(distiller, steps=4)
    assert gone() is not None
    plain_loop(distiller, start=4, steps=5)
    gc.collect()
    assert gone() is None and distiller.over


def test_a_loop_of_ones_own_goes_on_from_its_state():
    build = lambda seed: Distiller([teacher(), teacher(2)], 1, end="6ba", seed=seed)  # noqa: E731
    whole, other = plain_loop(build(3)), plain_loop(build(4))
    assert differ(whole, other)
    for kill in (5, 7):
        model, first = network(), build(3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        plain_loop(first, steps=kill, model=model, optimizer=optimizer)
        second = build(4)
        second.load_state_dict(first.state_dict())
        assert_same(plain_loop(second, start=kill, model=model, optimizer=optimizer), whole)
        assert second.over and second.teachers == []
    with pytest.raises(ValueError, match="the checkpoint's run has 2 teachers, got 1"):
        Distiller(teacher()).load_state_dict(first.state_dict())


def test_autocast_of_the_loop_is_the_teachers():
    def dtype(**options):
        kinds, module = [], teacher()
        module.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
        distiller, (x, y) = Distiller(module, **options), examples()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network()(x)
            loss = distiller(F.cross_entropy(logits, y), logits, x, 0)
        assert loss.dtype == torch.float32
        return kinds[-1]

    assert dtype() == torch.bfloat16
    assert dtype(teacher_dtype="float32") == torch.float32


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("given", ["in the batch", "beside it"])
def test_a_masked_lm_of_ones_own_is_distilled_where_labels_stand(sparse, given):
    one, model, batch = masked_lm("distilbert", seed=5).model, masked_lm().model, sentences(8)
    for parameter in one.parameters():
        parameter.data.mul_(3)
    distiller = Distiller(copy.deepcopy(one))
    outputs = model(**(HeadPositions(model).select(batch) if sparse else batch))
    inputs = {name: value for name, value in batch.items() if name != "labels" or given == "in the batch"}
    labels = None if given == "in the batch" else batch["labels"]
    found = distiller(outputs.loss, outputs, inputs, 0, labels=labels)
    where, inputs = batch["labels"] != -100, {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits, target = (net.eval()(**inputs).logits[where] for net in (masked_lm().model, one))
    expected = 0.1 * F.cross_entropy(logits, batch["labels"][where]) + 0.9 * plain_kl(logits, target, 4.0).float()
    torch.testing.assert_close(found, expected)


def test_a_causal_lm_of_ones_own_is_distilled_where_the_next_token_has_a_label():
    torch.manual_seed(0)
    student, one = (nn.Embedding(WORDS, WORDS) for _ in range(2))  # logits (N, T, C) of token ids
    ids = sentences()["input_ids"]
    labels = ids.masked_fill(sentences()["attention_mask"] == 0, -100)
    distiller = Distiller(copy.deepcopy(one), base_weight=0.0, distillation_weight=1.0, shift_labels=True)
    outputs = {"logits": student(ids)}
    found = distiller(torch.zeros(()), outputs, ids, 0, labels)
    where = labels[:, 1:] != -100
    logits, target = (net(ids)[:, :-1][where] for net in (student, one))
    torch.testing.assert_close(found.double(), plain_kl(logits, target, 4.0), rtol=1e-5, atol=0)


def test_teachers_may_be_asked_in_another_way():
    class Scaled(nn.Sequential):
        def forward(self, x, scale):
            return super().forward(x) * scale

    one, (x, y) = teacher(), examples()
    make = functools.partial(Teacher, ask=lambda module, inputs: module(*inputs))
    logits = network()(x)
    loss = F.cross_entropy(logits, y)
    found = Distiller(Scaled(*copy.deepcopy(one)), make=make)(loss, logits, (x, 2.0), 0)
    expected = 0.1 * loss + 0.9 * plain_kl(logits, 2 * asked(one, x), 4.0).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_the_number_of_a_step_does_not_tell_is_refused():
    x, y = examples()
    logits = network()(x)
    for options, message in {
        ("start", "0.5dur"): "steps must be the number of updates in all, for start=0.5dur, got None",
        ("end", "0.5dur"): "steps must be the number of updates in all, for end=0.5dur, got None",
        ("start", "1ep"): "start=1ep cannot be told from the number of a step; give start in ba or dur",
        ("end", "100sp"): "end=100sp cannot be told from the number of a step; give end in ba or dur, or a Progress",
    }.items():
        with pytest.raises(ValueError, match=message):
            Distiller(teacher(), **dict([options]))(F.cross_entropy(logits, y), logits, x, 0)
    with pytest.raises(ValueError, match="start=1ep cannot be told"):  # though the end tells that it is over
        Distiller(teacher(), start="1ep", end="3ba")(F.cross_entropy(logits, y), logits, x, 9)
    with pytest.raises(ValueError, match=r"teacher 0 \(Sequential\) gives logits of \(30, 7\)"):
        Distiller(teacher(classes=7))(F.cross_entropy(logits, y), logits, x, 0)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="Distillation: steps must be None or a whole number above 0"):
            Distiller(teacher(), steps=wrong)
