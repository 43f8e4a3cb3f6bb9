"""LabelSmoothing against the formula, Composer's, and torch's own smoothing in Hugging Face models."""

from functools import partial

import composer.algorithms
import composer.functional
import pytest
import torch
import transformers
from composer.models import ComposerClassifier, HuggingFaceModel
from torch.nn import functional as F
from torch.utils.data import DataLoader

from accelerando.algorithms import LabelSmoothing, MixUp, Smoother, dense_targets, smooth_labels
from accelerando.algorithms.validation import NoEffectWarning
from tiny import CLASSES, assert_same, classifier, differ, examples, fit, loop, network, trainer, weights


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 2, 3), (1, 2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_smooth_labels_like_composers(shape, smoothing, dtype):
    logits = torch.randn(shape, requires_grad=True)
    index = torch.randint(shape[1], (shape[0], *shape[2:])).to(dtype)
    dense = torch.rand(shape)
    for target in (index, dense):
        before = target.clone()
        mine = smooth_labels(logits, target, smoothing)
        # Composer's fails on index types other than int64.
        other = composer.functional.smooth_labels(logits, target.long() if target is index else target, smoothing)
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
        assert torch.equal(target, before)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, mine), logits)
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, other), logits)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_formula_and_ignored_targets():
    target = torch.tensor([2, -100, 0])
    expected = torch.tensor([[0.05, 0.05, 0.85, 0.05], [0, 0, 0, 0], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(smooth_labels(torch.zeros(3, 4), target, 0.2), expected)
    assert torch.equal(dense_targets(torch.zeros(3, 4), target).sum(1), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(3, 5), torch.zeros(4, dtype=torch.long)])
def test_targets_that_do_not_fit(target):
    with pytest.raises(ValueError, match=r"integer classes of shape \(3,\) or probabilities of shape \(3, 4\)"):
        dense_targets(torch.zeros(3, 4), target)


def test_trains_like_torch_and_like_composer():
    smoothed = classifier()
    smoothed._loss_fn = lambda outputs, target: F.cross_entropy(outputs, target, label_smoothing=0.3)
    mine = weights(fit([LabelSmoothing(0.3)]))
    assert_same(mine, weights(fit(model=smoothed)), atol=1e-5)
    assert_same(mine, weights(fit([composer.algorithms.LabelSmoothing(0.3)])), atol=1e-5)
    assert differ(mine, weights(fit()))


@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")  # rounding, as with Composer's
def test_with_composers_own_loss_and_metrics_on_the_original_labels():
    run = fit([LabelSmoothing(0.3)], model=ComposerClassifier(network(), num_classes=CLASSES))
    assert_same(weights(run), weights(fit([LabelSmoothing(0.3)])), atol=1e-5)
    assert 0 <= run.state.train_metrics["MulticlassAccuracy"].compute() <= 1


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def words(labels):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (12, 8), generator=generator)
    return DataLoader([{"input_ids": x, "labels": y} for x, y in zip(ids, labels(ids, generator), strict=True)], 4)


def masked(ids, generator):
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, -100)


HUGGING_FACE = {
    "masked_lm": (transformers.BertForMaskedLM, transformers.BertConfig, masked),
    "classification": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig,
        lambda ids, generator: torch.randint(3, (len(ids),), generator=generator),
    ),
    "causal_lm": (transformers.GPT2LMHeadModel, transformers.GPT2Config, lambda ids, generator: ids),
}


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face_models_that_compute_their_loss(kind):
    """Composer's leaves these losses as they are; ours must train as the smoothed formula does."""
    architecture, config, labels = HUGGING_FACE[kind]
    options = TINY | {"num_labels": 3}
    if kind == "causal_lm":
        options = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        options |= {"attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}

    def model(smoothing):
        torch.manual_seed(0)
        result = HuggingFaceModel(architecture(config(**options)), metrics=[])
        if smoothing:
            result.loss = lambda outputs, batch: reference(outputs["logits"], batch["labels"], smoothing)
        return result

    def reference(logits, target, smoothing):
        if kind == "causal_lm":
            logits, target = logits[:, :-1], target[:, 1:]
        log_probabilities = F.log_softmax(logits, dim=-1)[target >= 0]
        chosen = log_probabilities.gather(-1, target[target >= 0][:, None]).squeeze(-1)
        return -((1 - smoothing) * chosen + smoothing * log_probabilities.mean(-1)).mean()

    def run(algorithms, smoothing=0.0):
        return weights(fit(algorithms, model=model(smoothing), train_dataloader=words(labels)))

    mine = run([LabelSmoothing(0.3)])
    assert_same(mine, run([], smoothing=0.3), atol=1e-5)
    assert differ(mine, run([]))


def test_hugging_face_multi_label_and_regression():
    def run(labels, algorithms, **options):
        torch.manual_seed(0)
        config = transformers.BertConfig(**TINY, **options)
        model = HuggingFaceModel(transformers.BertForSequenceClassification(config), metrics=[])
        return fit(algorithms, model=model, train_dataloader=words(labels))

    def multi(ids, generator):
        return torch.randint(2, (len(ids), 3), generator=generator).float()

    plain, smoothed = (run(multi, a, num_labels=3) for a in ([], [LabelSmoothing(0.5)]))
    assert differ(weights(plain), weights(smoothed))
    with pytest.raises(ValueError, match="the model does regression"):
        run(lambda ids, generator: ids[:, 0].float(), [LabelSmoothing()], num_labels=1)


def test_outputs_without_logits_are_refused():
    class Pair(ComposerClassifier):
        def forward(self, batch):
            return super().forward(batch), 0

    run = trainer([LabelSmoothing()], model=Pair(network(), num_classes=CLASSES))
    with pytest.raises(TypeError, match=r"one tensor of logits.*got tuple"):
        run.fit()


def test_order_beside_mixup_does_not_matter():
    one, other = (fit(order) for order in ([LabelSmoothing(), MixUp()], [MixUp(), LabelSmoothing()]))
    assert_same(weights(one), weights(other))


@pytest.mark.parametrize("microbatch", [8, 3])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 1.0, 2.0])])
def test_a_loop_of_ones_own_ends_in_the_same_weights(weight, microbatch):
    """Ignored labels and weights of classes included."""
    loss, (inputs, targets) = partial(F.cross_entropy, weight=weight), examples()
    targets[::7] = -100
    model = classifier()
    model._loss_fn, model.get_metrics = loss, lambda is_train: {}
    data = DataLoader([*zip(inputs, targets, strict=True)], 8)
    options = {"model": model, "train_dataloader": data, "device_train_microbatch_size": microbatch}
    mine = loop(partial(Smoother(0.3).loss, loss), microbatch=microbatch, targets=targets)
    assert_same(mine, weights(fit([LabelSmoothing(0.3)], **options)))
    formula = loop(partial(loss, label_smoothing=0.3), microbatch=microbatch, targets=targets)
    assert_same(mine, formula, atol=1e-5)
    assert differ(mine, loop(loss, microbatch=microbatch, targets=targets))


def test_a_smoother_without_effect_or_use():
    with pytest.warns(NoEffectWarning, match="LabelSmoothing: smoothing=0 leaves the labels as they are"):
        smoother = Smoother(0.0)
    outputs, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -100, 1])
    assert torch.equal(smoother.loss(F.cross_entropy, outputs, target), F.cross_entropy(outputs, target))
    own = {"loss": torch.tensor(3.0), "logits": outputs}
    assert smoother.own_loss(network(), own, target) == 3
    with pytest.raises(ValueError, match=r"LabelSmoothing: smoothing must be in \[0, 1\], got 1.5"):
        Smoother(1.5)
