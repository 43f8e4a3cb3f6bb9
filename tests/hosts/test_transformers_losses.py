"""The loss that callbacks for Hugging Face's Trainer change: of many kinds of models, and of Trainers of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    CTRLConfig,
    CTRLLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.loss.loss_utils import ForMaskedLMLoss

from accelerando.algorithms.transformers import Distillation, LabelSmoothing
from accelerando.algorithms.transformers.losses import shifts_labels

WORDS, LENGTH, SAMPLES, TEMPERATURE = 30, 8, 8, 4.0


def bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, **sizes, **rates, num_labels=3))


def gpt2() -> Any:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **sizes, **rates, bos_token_id=0, eos_token_id=0))


def opt() -> Any:
    sizes = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
    return OPTForCausalLM(
        OPTConfig(vocab_size=WORDS, **sizes, num_attention_heads=2, max_position_embeddings=16, dropout=0.0)
    )


def llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **sizes, num_key_value_heads=2, max_position_embeddings=16))


def bert_decoder() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertLMHeadModel(BertConfig(vocab_size=WORDS, **sizes, **rates, is_decoder=True))


def ctrl() -> Any:
    sizes = {"n_embd": 16, "dff": 24, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return CTRLLMHeadModel(CTRLConfig(vocab_size=WORDS, **sizes, resid_pdrop=0.0, embd_pdrop=0.0))


def t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=WORDS, **sizes, dropout_rate=0.0, decoder_start_token_id=0))


def masked_gpt2() -> Any:
    """Whose user has given it a loss that does not shift."""
    model = gpt2()
    model.loss_function = ForMaskedLMLoss
    return model


MODELS: dict[str, tuple[Callable[[], Any], bool]] = {
    "GPT-2": (gpt2, True),
    "OPT": (opt, True),
    "Llama": (llama, True),
    "BERT as a decoder": (bert_decoder, True),
    "CTRL": (ctrl, True),
    "T5": (t5, False),
    "GPT-2 without a shift": (masked_gpt2, False),
}


def model_of(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return MODELS[name][0]()


def texts(answers: bool = False) -> list[dict[str, torch.Tensor]]:
    """Some words are no labels; of `answers` only the last two are."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, WORDS, (SAMPLES, LENGTH), generator=generator)
    away = torch.rand(ids.shape, generator=generator) < 0.3
    away[:, 0] = False  # so that as many labels of a shifted loss are another number
    if answers:
        away = (torch.arange(LENGTH) < LENGTH - 2).expand_as(ids)
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, ids.masked_fill(away, -100), strict=True)]


class InOrder(Trainer):
    def _get_train_sampler(self, *given: Any, **options: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class Gradient(TrainerCallback):
    """Keeps that of the first update."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **parts):
        self.found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def gradient(model: Any, callbacks: list[Any], folder: Path, data: Any, **options: Any) -> torch.Tensor:
    given = {"max_steps": 1, "per_device_train_batch_size": SAMPLES, "max_grad_norm": 0.0, "use_cpu": True}
    fixed = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(folder), **{**given, **fixed, **options})
    seen = Gradient()
    InOrder(model, args, train_dataset=data, callbacks=[*callbacks, seen]).train()
    return seen.found


def by_formula(model: Any, data: Any, loss_of: Callable[..., torch.Tensor]) -> torch.Tensor:
    batch = {name: torch.stack([each[name] for each in data]) for name in data[0]}
    model.train()
    loss_of(model(**batch).logits, batch).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def labelled(values: torch.Tensor, labels: torch.Tensor, shifts: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, labels = (values[:, :-1], labels[:, 1:]) if shifts else (values, labels)
    return values[labels != -100], labels[labels != -100]


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """But for a factor: the Trainer counts GPT-2's labels before the shift, with our callbacks and without."""
    return float(F.cosine_similarity(found, expected, dim=0)) > 1 - 1e-5


# T5 makes a mean of each microbatch, which is another loss than that of all.
CASES = [(name, accumulated) for name in MODELS for accumulated in ((1,) if name == "T5" else (1, 4))]


@pytest.mark.parametrize(("name", "accumulated"), CASES)
def test_smoothing_is_that_of_the_formula(name, accumulated, tmp_path):
    data, shifts = texts(), MODELS[name][1]

    def smoothed(logits, batch, smoothing=0.2):
        return F.cross_entropy(*labelled(logits, batch["labels"], shifts), label_smoothing=smoothing)

    options = {"per_device_train_batch_size": SAMPLES // accumulated, "gradient_accumulation_steps": accumulated}
    found = gradient(model_of(name), [LabelSmoothing(0.2)], tmp_path, data, **options)
    plain = gradient(model_of(name), [], tmp_path, data, **options)
    expected = by_formula(model_of(name), data, smoothed)
    assert alike(found, expected)
    scale = plain.norm() / by_formula(model_of(name), data, lambda *given: smoothed(*given, smoothing=0.0)).norm()
    assert torch.allclose(found, scale * expected, atol=1e-5)


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_distillation_teaches_the_positions_that_the_loss_predicts(name, answers, tmp_path):
    data = texts(answers)
    teacher = model_of(name, seed=1).eval()
    found = gradient(model_of(name), [Distillation(teacher, base_weight=0.0, distillation_weight=1.0)], tmp_path, data)

    def divergence(shifts: bool) -> Callable[..., torch.Tensor]:
        def loss_of(logits, batch):
            with torch.no_grad():
                target = teacher(**batch).logits
            of_student, of_teacher = (
                F.log_softmax(labelled(each, batch["labels"], shifts)[0] / TEMPERATURE, -1) for each in (logits, target)
            )
            return TEMPERATURE**2 * F.kl_div(of_student, of_teacher, log_target=True, reduction="batchmean")

        return loss_of

    shifts = MODELS[name][1]
    assert alike(found, by_formula(model_of(name), data, divergence(shifts)))
    assert not alike(found, by_formula(model_of(name), data, divergence(not shifts)))


@pytest.mark.parametrize("name", ["MixUp", "MagnitudePruning", "BlurPool"])
def test_a_callback_of_lightnings_says_where_those_for_this_trainer_are(name, tmp_path):
    from accelerando.algorithms import lightning

    arguments = {"MagnitudePruning": [0.2]}.get(name, [])
    with pytest.raises(
        TypeError, match=rf"This {name} is .* Lightning's .* are in accelerando\.algorithms\.transformers"
    ):
        gradient(model_of("Llama"), [getattr(lightning, name)(*arguments)], tmp_path, texts())


def test_teachers_that_were_let_go_are_none_of_another_training(tmp_path):
    data, algorithm = texts(), Distillation(model_of("Llama", seed=1), end="0.5dur")
    options = {"per_device_train_batch_size": 1, "max_steps": 4}
    gradient(model_of("Llama"), [algorithm], tmp_path, data, **options)
    assert algorithm.distiller.over
    with pytest.raises(ValueError, match=r"let go at end=0\.5dur of an earlier training; make a new one for each"):
        gradient(model_of("Llama"), [algorithm], tmp_path, data, **options)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_of_a_model_is_what_its_loss_does(name):
    """A loss that shifts does not look at the last position, where a label stands."""
    model, data = model_of(name), texts()
    batch = {name: torch.stack([each[name] for each in data]) for name in data[0]}
    outputs = model(**batch)
    (seen,) = torch.autograd.grad(outputs.loss, outputs.logits)
    assert shifts_labels(model) is (not seen[:, -1].any()) is MODELS[name][1]


def test_a_loss_function_of_the_users_is_of_the_kind_that_it_replaces():
    def own(*given: Any, **options: Any) -> torch.Tensor:
        return torch.zeros(())

    for make in (llama, gpt2):
        model = make()
        model.loss_function = own
        assert shifts_labels(model)


class Inattentive(Trainer):
    """Takes the labels, leaves them in the batch, and makes a loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, inputs.get("labels"))
        return (loss, outputs) if return_outputs else loss


class Attentive(Trainer):
    """Adds to the model's loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss + 0.01 * outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


def distillation() -> Distillation:
    return Distillation(bert(seed=1))


def run_of(kind: Any, folder: Path, callbacks: Any = (), compute_loss_func: Any = None, **options: Any) -> Any:
    """A training of a small BERT, whose first word tells the class."""
    given = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True}
    fixed = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(folder), **{**given, **fixed, **options})
    data = [{"input_ids": each["input_ids"], "labels": each["input_ids"][0] % 3} for each in texts()]
    return kind(
        bert(), args, train_dataset=data, eval_dataset=data, callbacks=[*callbacks], compute_loss_func=compute_loss_func
    )


def trainer(folder: Path, callbacks: Any = (), **options: Any) -> Any:
    return run_of(Trainer, folder, callbacks, **options)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("make", [lambda: LabelSmoothing(0.2), distillation])
def test_a_compute_loss_that_leaves_the_changed_loss_is_refused_in_the_first_step(make, accumulated, tmp_path):
    technique = make()
    run = run_of(Inattentive, tmp_path, [technique], gradient_accumulation_steps=accumulated)
    before = weights(run.model)
    with pytest.raises(
        ValueError, match=rf"^{technique.name}: compute_loss leaves the 'loss' .* unused; return "
    ) as error:
        run.train()
    assert "\n" not in str(error.value) and torch.equal(weights(run.model), before)


@pytest.mark.parametrize("make", [lambda: LabelSmoothing(0.2), distillation])
def test_a_compute_loss_that_uses_the_models_is_changed(make, tmp_path):
    bare, changed = (run_of(Attentive, tmp_path, callbacks) for callbacks in ([], [make()]))
    for run in (bare, changed):
        run.train()
    assert not torch.equal(weights(bare.model), weights(changed.model))


def test_a_trainer_that_is_refused_can_be_mended(tmp_path):
    smoothing = LabelSmoothing(0.2)
    with pytest.raises(ValueError, match="unused"):
        run_of(Inattentive, tmp_path, [smoothing]).train()
    again, other = (trainer(tmp_path, [each]) for each in (smoothing, LabelSmoothing(0.2)))
    for run in (again, other):
        run.train()
    assert torch.equal(weights(again.model), weights(other.model))


def plain(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels)


@pytest.mark.parametrize("make", [lambda: LabelSmoothing(0.2), distillation])
def test_a_wrapped_loss_without_its_callback_is_refused(make, tmp_path):
    technique = make()
    sentence = f"^{technique.name}: the Trainer was given its loss function, and not itself; give the callback too"
    alone = trainer(tmp_path, compute_loss_func=technique.wrap(plain))
    with pytest.raises(ValueError, match=sentence):
        alone.train()
    trainer(tmp_path, [technique], compute_loss_func=technique.wrap(plain), max_steps=1).train()
    with pytest.raises(ValueError, match=sentence):  # also after a training of its own
        alone.train()
    assert alone.evaluate()["eval_loss"] > 0


def test_a_loss_that_is_wrapped_twice_is_changed_by_both(tmp_path):
    smoothing, taught = LabelSmoothing(0.2), distillation()
    run = trainer(tmp_path, [smoothing, taught], compute_loss_func=taught.wrap(smoothing.wrap(plain)), max_steps=2)
    run.train()
    one = trainer(tmp_path, [LabelSmoothing(0.2), distillation()], max_steps=2)
    one.train()
    assert torch.allclose(weights(run.model), weights(one.model), atol=1e-4)
