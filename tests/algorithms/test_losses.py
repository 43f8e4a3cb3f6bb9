"""What LabelSmoothing and MixUp leave of a model's loss: each loss against the formula written out, or an error."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from composer import Callback
from composer.loss import binary_cross_entropy_with_logits as summed_bce
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel, HuggingFaceModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput

from accelerando.algorithms import Distillation, LabelSmoothing, Mixer, MixUp, Smoother, mix_targets, smooth_labels
from accelerando.algorithms.asked_loss import KeyedLoss
from accelerando.algorithms.own_loss import PlainLoss
from small import mixup_draws
from tiny import fit

N, SMOOTHING = 12, 0.1
MIXING, PAIRS = mixup_draws(0.5, N, seed=7, step=0)
BCE = F.binary_cross_entropy_with_logits
WEIGHT = torch.tensor([1.0, 10.0, 1.0])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


class Net(ComposerModel):
    """One linear layer whose outputs have the `shape`, and a loss of them and of the targets."""

    def __init__(self, loss, *shape, scale=3.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.loss_fn, self.shape, self.scale = nn.Linear(5, int(np.prod(shape))), loss, shape, scale

    def forward(self, batch):
        x = batch[0] if isinstance(batch, list | tuple) else batch["x"]
        return self.linear(x).mul(self.scale).view(len(x), *self.shape)

    def loss(self, outputs, batch):
        return self.loss_fn(outputs, batch[1] if isinstance(batch, list | tuple) else batch["labels"])

    def eval_forward(self, batch, outputs=None):
        return outputs

    def get_metrics(self, is_train):
        return {}


class Record(Callback):
    def __init__(self):
        self.seen = []

    def before_backward(self, state, logger):
        self.seen.append((state.loss.detach().clone(), state.outputs))


def losses(algorithms, model, data, size=N, steps="1ba", **options):
    """The loss and the outputs of every microbatch; `data` are tensors, or a mapping of them."""
    record = Record()
    names = [*data] if isinstance(data, dict) else None
    rows = [*zip(*(data.values() if names else data), strict=True)]
    batches = DataLoader([dict(zip(names, row, strict=True)) for row in rows] if names else rows, size)
    options = {"callbacks": record, "max_duration": steps} | options
    fit(algorithms, model=model, train_dataloader=batches, **options)
    return record.seen


def mixed(values, other=None):
    return (1 - MIXING) * values + MIXING * (values[PAIRS] if other is None else other)


def close(value, expected):
    torch.testing.assert_close(value.float(), expected.detach().float(), atol=1e-5, rtol=1e-5)


VOID = whole(3, N, 2, 2).masked_fill(numbers(N, 2, 2) > 0.5, 255)
CLASS_LOSSES = {
    "weights": (partial(F.cross_entropy, weight=WEIGHT), (3,), whole(3, N), {"weight": WEIGHT}),
    "ignored": (F.cross_entropy, (3,), whole(3, N).index_fill(0, torch.tensor([2, 5]), -100), {}),
    "ignored, by Composer's": (
        partial(soft_cross_entropy, ignore_index=255),
        (3, 2, 2),
        VOID,
        {"ignore_index": 255},
    ),
    "ignored, by torch's": (partial(F.cross_entropy, ignore_index=255), (3, 2, 2), VOID, {"ignore_index": 255}),
    "indices alone": (lambda o, y: F.nll_loss(o.log_softmax(1), y), (3,), whole(3, N), {}),
    "indices of rows": (lambda o, y: F.cross_entropy(o, y.argmax(1) if y.ndim > 1 else y), (3,), whole(3, N), {}),
    "whole numbers of rows": (lambda o, y: F.cross_entropy(o, y.trunc()), (3,), whole(3, N), {}),
    "bytes": (lambda o, y: F.cross_entropy(o, y if y.ndim > 1 else y.long()), (3,), whole(3, N).byte(), {}),
}


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.filterwarnings("ignore:Some targets have less", "ignore:ignore_index not supported when using dense")
def test_losses_of_classes_stay_what_they_are(name):
    loss, shape, target, options = CLASS_LOSSES[name]
    ignore, labels = {"ignore_index": options.get("ignore_index", -100)}, target.long()
    for size in (N, 5):
        smoothed = losses([LabelSmoothing(SMOOTHING, **ignore)], Net(loss, *shape), (numbers(N, 5), target), size)
        plain = F.cross_entropy(smoothed[0][1], labels[:size], label_smoothing=SMOOTHING, **options)
        close(smoothed[0][0], plain)
    for interpolate in (False, True):
        mixup = MixUp(0.5, interpolate, **ignore)
        [(value, outputs)] = losses([mixup], Net(loss, *shape), (numbers(N, 5), target))
        close(value, mixed(*(F.cross_entropy(outputs, y, **options) for y in (labels, labels[PAIRS]))))
    both = [LabelSmoothing(SMOOTHING, **ignore), MixUp(0.5, **ignore)]
    for order in (both, both[::-1]):
        if name == "ignored, by torch's" or name.startswith(("indices", "whole")):
            with pytest.raises(ValueError, match="MixUp beside LabelSmoothing: the loss does not take rows"):
                losses(order, Net(loss, *shape), (numbers(N, 5), target))
        else:
            [(value, outputs)] = losses(order, Net(loss, *shape), (numbers(N, 5), target))
            smooth = partial(F.cross_entropy, outputs, label_smoothing=SMOOTHING, **options)
            close(value, mixed(*map(smooth, (labels, labels[PAIRS]))))


def in_a_loop(net, data, mixer=None, smoother=None):
    """The loss and the outputs of a training loop's first step, with the objects that are given."""
    x, y = data
    outputs = net((mixer(x, y, 0) if mixer else x, y))
    loss = partial(smoother.loss, net.loss_fn) if smoother else net.loss_fn
    return (mixer.loss(loss, outputs, y) if mixer else loss(outputs, y)), outputs


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.filterwarnings("ignore:Some targets have less", "ignore:ignore_index not supported when using dense")
def test_losses_of_classes_in_a_loop_of_ones_own(name):
    loss, shape, target, options = CLASS_LOSSES[name]
    ignore, labels = {"ignore_index": options.get("ignore_index", -100)}, target.long()
    data = (numbers(N, 5), target)
    smooth = partial(F.cross_entropy, label_smoothing=SMOOTHING, **options)
    value, outputs = in_a_loop(Net(loss, *shape), data, smoother=Smoother(SMOOTHING, **ignore))
    close(value, smooth(outputs, labels))
    [(composers, _)] = losses([LabelSmoothing(SMOOTHING, **ignore)], Net(loss, *shape), data)
    close(value, composers)
    for interpolate in (False, True):
        mixer = Mixer(0.5, 7, interpolate, **ignore)
        value, outputs = in_a_loop(Net(loss, *shape), data, mixer)
        close(value, mixed(*(F.cross_entropy(outputs, y, **options) for y in (labels, labels[PAIRS]))))
        [(composers, _)] = losses([MixUp(0.5, interpolate, **ignore)], Net(loss, *shape), data)
        close(value, composers)
        value, outputs = in_a_loop(Net(loss, *shape), data, mixer, Smoother(SMOOTHING, **ignore))
        close(value, mixed(smooth(outputs, labels), smooth(outputs, labels[PAIRS])))


def test_a_function_made_in_the_loop_is_asked_once_and_anew_when_it_is_another_one():
    net, x, y, calls = Net(None, 3), numbers(N, 5), whole(3, N), []
    for make in (Smoother(SMOOTHING), Mixer(0.5, 7)):
        for weight in (None, None, WEIGHT, WEIGHT):
            calls.append(0)

            def loss(outputs, target, weight=weight):
                calls[-1] += 1
                return F.cross_entropy(outputs, target, weight)

            if isinstance(make, Mixer):
                outputs = net((make(x, y, 0), y))
                plain = mixed(*(F.cross_entropy(outputs, each, weight) for each in (y, y[PAIRS])))
            else:
                outputs = net((x, y))
                plain = F.cross_entropy(outputs, y, weight, label_smoothing=SMOOTHING)
            close(make.loss(lambda o, t, loss=loss, weight=weight: loss(o, t), outputs, y), plain)
    assert [count > 5 for count in calls] == [True, False] * 4

    smoother, outputs = Smoother(SMOOTHING), net((x, y))
    for key, same in enumerate((F.cross_entropy, CLASS_LOSSES["indices alone"][0])):
        expected = F.cross_entropy(outputs, y, label_smoothing=SMOOTHING)
        close(smoother.loss(KeyedLoss(same, key), outputs, y), expected)


def test_labels_that_come_to_be_ignored_later():
    target = torch.tensor([0, 1, 2, 0, 1, -100, 2, -100, 0, -100, -100, 1])
    seen = losses([LabelSmoothing(SMOOTHING)], Net(F.cross_entropy, 3), (numbers(N, 5), target), 4, "1ep")
    for (value, outputs), labels in zip(seen, target.split(4), strict=True):
        close(value, F.cross_entropy(outputs, labels, label_smoothing=SMOOTHING))


OTHERS = {
    "weights in a mean of one's own": lambda o, y: (
        WEIGHT[y] * F.nll_loss(o.log_softmax(1), y, reduction="none")
    ).mean(),
    "focal": lambda o, y: (
        (1 - o.softmax(1).gather(1, y[:, None])) ** 2 * -o.log_softmax(1).gather(1, y[:, None])
    ).mean(),
    "a weighted mean of indices alone": lambda o, y: F.nll_loss(o.log_softmax(1), y, WEIGHT),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("scale", [3.0, 0.0])
def test_other_losses_of_classes_are_not_smoothed(name, scale):
    """A head that starts at zero has the same value for many of them."""
    data, refused = (numbers(N, 5), whole(3, N)), r"own loss, .* is none that LabelSmoothing knows.*entropy .*torch's"
    with pytest.raises(ValueError, match=refused):
        losses([LabelSmoothing()], Net(OTHERS[name], 3, scale=scale), data)
    for mixer in (None, Mixer(0.5, 7)):
        with pytest.raises(ValueError, match=refused):
            in_a_loop(Net(OTHERS[name], 3, scale=scale), data, mixer, Smoother())


@pytest.mark.parametrize("algorithm", [LabelSmoothing, MixUp])
def test_labels_that_are_no_classes(algorithm):
    for label in (-7, 3, 255):
        target = whole(3, N).index_fill(0, torch.tensor([5]), label)
        for loss in (soft_cross_entropy, partial(F.cross_entropy, ignore_index=label)):
            with pytest.raises(ValueError, match=rf"Labels must lie in \[0, 3\) or be ignore_index=-100, got {label}"):
                losses([algorithm()], Net(loss, 3), (numbers(N, 5), target))
    with pytest.raises(ValueError, match=r"\[0, 3\) or be ignore_index=255, got -100"):
        smooth_labels(torch.zeros(2, 3), torch.tensor([1, -100]), ignore_index=255)


ZEROS_AND_ONES = whole(2, N, 3)
NUMBERS = {
    "one logit": (BCE, (1,), ZEROS_AND_ONES[:, :1].float()),
    "one logit, of integers": (lambda o, y: BCE(o.squeeze(1), y.float()), (1,), ZEROS_AND_ONES[:, 0]),
    "no class dimension": (BCE, (), ZEROS_AND_ONES[:, 0].float()),
    "weight of positives": (partial(BCE, pos_weight=torch.tensor(3.0)), (1,), ZEROS_AND_ONES[:, :1].float()),
    "probabilities": (lambda o, y: F.binary_cross_entropy(o.sigmoid(), y), (1,), ZEROS_AND_ONES[:, :1].float()),
    "several labels": (BCE, (3,), ZEROS_AND_ONES.float()),
    "several labels, summed": (summed_bce, (3,), ZEROS_AND_ONES),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_binary_targets_go_towards_one_half(name):
    loss, shape, target = NUMBERS[name]
    data = (numbers(N, 5), target)
    [(value, outputs)] = losses([LabelSmoothing(SMOOTHING)], Net(loss, *shape), data)
    close(value, loss(outputs, target * 0.9 + 0.05))
    for interpolate in (False, True):
        [(value, outputs)] = losses([MixUp(0.5, interpolate)], Net(loss, *shape), data)
        close(value, loss(outputs, mixed(target.float())))
    for order in ([LabelSmoothing(SMOOTHING), MixUp(0.5)], [MixUp(0.5), LabelSmoothing(SMOOTHING)]):
        [(value, outputs)] = losses(order, Net(loss, *shape), data)
        close(value, loss(outputs, mixed(target.float()) * 0.9 + 0.05))
    value, outputs = in_a_loop(Net(loss, *shape), data, smoother=Smoother(SMOOTHING))
    close(value, loss(outputs, target * 0.9 + 0.05))
    for interpolate in (False, True):
        value, outputs = in_a_loop(Net(loss, *shape), data, Mixer(0.5, 7, interpolate))
        close(value, loss(outputs, mixed(target.float())))
        value, outputs = in_a_loop(Net(loss, *shape), data, Mixer(0.5, 7, interpolate), Smoother(SMOOTHING))
        close(value, loss(outputs, mixed(target.float()) * 0.9 + 0.05))


def test_smooth_labels_of_one_output():
    for shape in ((2, 1), (2,), (2, 1, 1)):
        smoothed = smooth_labels(torch.zeros(shape), torch.tensor([1.0, 0.0]).view(shape))
        torch.testing.assert_close(smoothed, torch.tensor([0.95, 0.05]).view(shape))
    with pytest.raises(ValueError, match=r"Binary targets must lie in \[0, 1\], got 0.0 to 3.0"):
        smooth_labels(torch.zeros(2, 1), torch.tensor([[3.0], [0.0]]))


def test_probabilities_of_classes_go_towards_one_over_their_number():
    target = numbers(N, 3).softmax(1)
    for loss in (F.cross_entropy, soft_cross_entropy):
        [(value, outputs)] = losses([LabelSmoothing(SMOOTHING)], Net(loss, 3), (numbers(N, 5), target))
        close(value, F.cross_entropy(outputs, target * 0.9 + SMOOTHING / 3))


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, lambda o, y: (y * o).sum()])
@pytest.mark.parametrize("shape", [(1,), (3,), ()])
def test_regression_is_not_smoothed(loss, shape):
    with pytest.raises(ValueError, match=r"needs classes or probabilities, .* neither, as in regression"):
        losses([LabelSmoothing()], Net(loss, *shape), (numbers(N, 5), numbers(N, *shape)))
    with pytest.raises(ValueError, match=r"needs classes or probabilities, .* neither, as in regression"):
        in_a_loop(Net(loss, *shape), (numbers(N, 5), numbers(N, *shape)), smoother=Smoother())


# Models that compute their own loss.

IDS = whole(50, N, 8)
LABELS = IDS.masked_fill(numbers(N, 8) > 1, -100)
PIXELS = numbers(N, 3, 8, 8)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True, scope="module")
def _silent_config():
    transformers.logging.set_verbosity_error()


def images(**options):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, **options)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = transformers.ViTForImageClassification(config)
    nn.init.normal_(model.classifier.weight)
    return HuggingFaceModel(model, metrics=[])


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", "single_label_classification"])
@pytest.mark.parametrize("outputs", [3, 1])
def test_mixup_of_what_hugging_faces_classifiers_compute(kind, outputs, interpolate):
    if kind == "single_label_classification" and outputs == 1:
        pytest.skip("one class is no choice")
    loss, target = {
        "multi_label_classification": (BCE, ZEROS_AND_ONES[:, :outputs].float()),
        "regression": (F.mse_loss, numbers(N, outputs).squeeze(1)),
        "single_label_classification": (F.cross_entropy, whole(3, N)),
    }[kind]
    data = {"pixel_values": PIXELS, "labels": target}
    mixup = MixUp(0.5, interpolate, input_key="pixel_values")
    model = images(num_labels=outputs, problem_type=kind)
    [(value, found)] = losses([mixup], model, data)
    logits = found["logits"].squeeze(1) if kind == "regression" else found["logits"]
    if interpolate or kind == "single_label_classification":
        close(value, mixed(*(loss(logits, y) for y in (target, target[PAIRS]))))
    else:
        close(value, loss(logits, mixed(target)))
    if kind == "multi_label_classification":
        [(value, found)] = losses([LabelSmoothing(SMOOTHING)], images(num_labels=outputs, problem_type=kind), data)
        close(value, BCE(found["logits"], target * 0.9 + 0.05))
    if kind == "regression":
        with pytest.raises(ValueError, match="the model does regression"):
            losses([LabelSmoothing()], images(num_labels=outputs, problem_type=kind), data)


@pytest.mark.parametrize("target", [whole(3, N), whole(3, N).index_fill(0, torch.tensor([1]), -100)])
def test_both_and_distillation_on_a_model_with_its_own_loss(target):
    data, seen = {"pixel_values": PIXELS, "labels": target}, []
    for algorithms in ([LabelSmoothing(SMOOTHING), MixUp(0.5, input_key="pixel_values")], []):
        teacher = Distillation(images(num_labels=3), base_weight=1.0, distillation_weight=0.5)
        for order in ([*algorithms, teacher], [teacher, *algorithms[::-1]]) if algorithms else ([],):
            seen += losses(order, images(num_labels=3), data, device_train_microbatch_size=N)
    close(seen[0][0], seen[1][0])
    logits = seen[0][1]["logits"]
    smooth = mixed(*(F.cross_entropy(logits, y, label_smoothing=SMOOTHING) for y in (target, target[PAIRS])))
    # The teacher is the student before its first step.
    close(seen[0][0], smooth)


@pytest.mark.parametrize("target", [whole(3, N), whole(3, N).index_fill(0, torch.tensor([1]), -100)])
def test_own_losses_in_a_loop_of_ones_own(target):
    def step(mixer=None):
        model = images(num_labels=3).model
        return model, model(pixel_values=mixer(PIXELS, target, 0) if mixer else PIXELS, labels=target)

    def smooth(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)

    model, outputs = step()
    close(Smoother(SMOOTHING).own_loss(model, outputs, target), smooth(outputs.logits, target))
    for interpolate in (False, True):
        mixer = Mixer(0.5, 7, interpolate)
        model, outputs = step(mixer)
        value = mixer.own_loss(model, outputs, target)
        close(value, mixed(*(F.cross_entropy(outputs.logits, y) for y in (target, target[PAIRS]))))
    mixer = Mixer(0.5, 7)
    model, outputs = step(mixer)
    with pytest.raises(ValueError, match="use the mixer's `own_loss`"):
        mixer.loss(lambda outputs, target: outputs.loss, outputs, target)
    outputs["loss"], rows = mixer.own_loss_and_targets(model, outputs, target)
    value = Smoother(SMOOTHING).own_loss(model, outputs, rows)
    close(value, mixed(*(smooth(outputs.logits, y) for y in (target, target[PAIRS]))))
    with pytest.raises(ValueError, match=r"LabelSmoothing: the model's own loss, .* is none"):
        Smoother(SMOOTHING).own_loss(model, outputs, target)


def causal(kind, shift=None, **options):
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes = SIZES | {"num_key_value_heads": 2, "output_router_logits": True, "router_aux_loss_coef": 5.0}
    sizes |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16} if kind == "qwen2_moe" else {}
    config = transformers.AutoConfig.for_model(kind, vocab_size=50, bos_token_id=1, eos_token_id=1, **sizes, **options)
    # A class of one's own is not registered as a causal model, so Composer does not shift its labels.
    architecture = type(transformers.AutoModelForCausalLM.from_config(config))
    torch.manual_seed(0)
    return HuggingFaceModel(type("Mine", (architecture,), {})(config), metrics=[], shift_labels=shift)


@pytest.mark.parametrize("kind, shift", [("gpt2", None), ("gpt2", True), ("mixtral", None), ("qwen2_moe", True)])
@pytest.mark.parametrize("smoothing", [1e-6, 0.3])
def test_causal_models_and_mixtures_of_experts_keep_the_rest(kind, shift, smoothing):
    def own(logits, labels, **options):
        return F.cross_entropy(logits[:, :-1].reshape(-1, 50), labels[:, 1:].flatten(), **options)

    data = {"input_ids": IDS, "labels": LABELS}
    plain = losses([], causal(kind, shift), data, 6)[0]
    seen = losses([LabelSmoothing(smoothing)], causal(kind, shift), data, 6, "1ep")
    logits = plain[1]["logits"]
    close(seen[0][0], plain[0] - own(logits, LABELS[:6]) + own(logits, LABELS[:6], label_smoothing=smoothing))
    assert len(seen) == 2 and (kind == "gpt2" or plain[0] > 10)
    with torch.autocast("cpu", torch.bfloat16):
        halves = losses(
            [LabelSmoothing(smoothing)], causal(kind, shift), data, 6, "2ep", device_train_microbatch_size=2
        )
    assert len(halves) == 12


class Weighted(transformers.BertForSequenceClassification):
    def forward(self, input_ids=None, labels=None):
        logits = super().forward(input_ids=input_ids).logits
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels, self.weight), logits=logits)


def weighted(weight, zero):
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, **SIZES, num_labels=2)
    model = Weighted(config)
    model.weight = weight
    if zero:
        nn.init.zeros_(model.classifier.weight)
    return HuggingFaceModel(model, metrics=[])


@pytest.mark.parametrize("labels", [whole(2, N), torch.arange(N) % 2])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_in_a_models_own_loss_are_not_lost(labels, zero):
    data = {"input_ids": IDS, "labels": labels}
    with pytest.raises(
        ValueError, match=r"LabelSmoothing: the model's own loss, 0\.\d+, is none .*cross entropy 0\.\d+"
    ):
        losses([LabelSmoothing()], weighted(torch.tensor([1.0, 3.0]), zero), data)
    losses([LabelSmoothing()], weighted(None, zero), data)


def test_a_loss_that_becomes_another_one_is_noticed():
    model = weighted(None, False)

    class Change(Callback):
        def batch_end(self, state, logger):
            model.model.weight = torch.tensor([1.0, 30.0])

    data = {"input_ids": IDS, "labels": whole(2, N)}
    with pytest.raises(
        ValueError, match=r"no longer the plain cross entropy of its logits and labels: 0\.\d+ and 0\.\d+"
    ):
        losses([LabelSmoothing()], model, data, 4, "1ep", callbacks=Change())


class Rolls(Net):
    """As llm-foundry's MPT: logits among the outputs, no loss there, and labels that the loss shifts."""

    def forward(self, batch):
        return CausalLMOutputWithPast(logits=super().forward(batch))

    def loss(self, outputs, batch):
        labels = torch.roll(batch["labels"], -1, 1)
        labels[:, -1] = -100
        summed = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return summed / (labels != -100).sum()


class Unused(Rolls):
    """Brings a loss that it does not use."""

    def forward(self, batch):
        outputs = super().forward(batch)
        outputs["loss"] = outputs.logits.mean() + 5
        return outputs


@pytest.mark.parametrize("kind", [Rolls, Unused])
def test_logits_without_a_loss(kind):
    labels = whole(7, N, 4)
    model = kind(None, 4, 7)
    [(value, outputs)] = losses([LabelSmoothing(SMOOTHING)], model, {"x": numbers(N, 5), "labels": labels})
    flat = outputs["logits"][:, :-1].reshape(-1, 7), labels[:, 1:].flatten()
    close(value, F.cross_entropy(*flat, label_smoothing=SMOOTHING))
    with pytest.raises(ValueError, match=r"finds nothing at 'labels' in a batch of x, y .*: give target_key"):
        losses([LabelSmoothing()], kind(None, 4, 7), {"x": numbers(N, 5), "y": labels})


@pytest.mark.parametrize(
    "kind, steps", [(LabelSmoothing, ["_smooth", "_finish"]), (MixUp, ["_restart", "_restore_target"])]
)
def test_a_subclass_that_overrides_a_step_is_obeyed(kind, steps):
    called = []
    for step in steps:
        other = type("Mine", (kind,), {step: lambda self, state, logger, step=step: called.append(step)})
        losses([other()], Net(F.cross_entropy, 3), (numbers(N, 5), whole(3, N)))
    assert called == steps


def test_labels_that_are_bytes_are_never_the_ignored_one():
    """Torch takes 156, as a byte, for -100."""
    logits, label = numbers(4, 200), torch.tensor([156, 3, 156, 199])
    assert torch.equal(
        mix_targets(logits, label.byte(), label.flip(0).byte(), 0.3), mix_targets(logits, label, label.flip(0), 0.3)
    )
    plain = PlainLoss("cross entropy")
    torch.testing.assert_close(plain(logits, label.byte()), F.cross_entropy(logits, label))
    assert torch.equal(plain.soft(logits, label.byte()), F.one_hot(label, 200).float())
    torch.testing.assert_close(plain.smoothing(logits, label.byte(), 0.1), plain.smoothing(logits, label, 0.1))
    (seen,) = losses([LabelSmoothing(0.1)], Net(F.cross_entropy, 200), (numbers(4, 5), label.byte()), size=4)
    assert seen[0].isfinite()
