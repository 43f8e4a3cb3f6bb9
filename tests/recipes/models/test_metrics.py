"""Metrics beside torchmetrics' and Composer's of the same names: the same values, without a look at the device."""

import composer.metrics
import pytest
import torch
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy as Torchmetrics

from accelerando.algorithms import LabelledPositions, LabelSmoothing, MixUp
from accelerando.recipes.data.facts import Facts
from accelerando.recipes.models.classifier import ImageClassifier
from accelerando.recipes.models.metrics import CrossEntropy, MaskedAccuracy, MulticlassAccuracy, MulticlassTop5Accuracy
from tiny import CLASSES, loader, masked_lm, network, token_loader, trainer


def test_accuracy_is_that_of_torchmetrics():
    ours, theirs = MulticlassAccuracy(5), Torchmetrics(5, average="micro", validate_args=False)
    for rows in (1, 7, 64):
        logits, labels = torch.randn(rows, 5).round(), torch.randint(5, (rows,))  # ties are frequent
        labels[1:3] = -100
        for metric in (ours, theirs):
            metric.update(logits, labels)
        assert torch.equal(ours.compute(), theirs.compute())
    ours.reset()
    ours.update(torch.eye(5)[:2], torch.tensor([0, 3]))
    assert ours.compute() == 0.5


@pytest.mark.parametrize("classes", [5, 6, 10])
def test_top5_is_that_of_torchmetrics(classes):
    ours, theirs = MulticlassTop5Accuracy(classes), Torchmetrics(classes, top_k=5, average="micro", validate_args=False)
    for rows in (1, 64):
        logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
        for metric in (ours, theirs):
            metric.update(logits, labels)
    assert torch.equal(ours.compute(), theirs.compute())


@pytest.mark.parametrize(("classes", "told"), [(5, False), (6, True)])
def test_top5_is_told_of_more_than_five_classes(classes, told):
    metrics = ImageClassifier(network(), classes, F.cross_entropy, Facts()).get_metrics(is_train=False)
    assert ("MulticlassTop5Accuracy" in metrics) == told and [*metrics][:2] == ["CrossEntropy", "MulticlassAccuracy"]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_accuracy_of_nothing_is_that_of_torchmetrics():
    assert MulticlassAccuracy(5).compute() == Torchmetrics(5, average="micro").compute() == 0


def test_accuracy_tells_whose_number_of_classes_is_wrong():
    with pytest.raises(ValueError, match="num_classes: 5 given, but the network returns 4 numbers for each example"):
        MulticlassAccuracy(5).update(torch.zeros(3, 4), torch.zeros(3))


@pytest.mark.parametrize("shapes", [((3, 4), (2,)), ((3, 5), (3, 5)), ((3, 5), (2,)), ((3, 5, 2), (3, 2))])
def test_accuracy_refuses_other_shapes(shapes):
    logits, labels = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"MulticlassAccuracy got outputs .* expected logits \(N, 5\) and classes"):
        MulticlassAccuracy(5).update(logits, labels)


def test_accuracy_moves_with_its_device():
    metric = MulticlassAccuracy(5).to("meta")
    assert metric.counts.device.type == metric.device.type == "meta"
    metric.reset()
    assert metric.counts.device.type == "meta"


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("kind", ["classes", "some ignored", "rows", "positions"])
def test_cross_entropy_is_the_mean_over_examples_of_batches_of_any_size(size, kind):
    """23 examples: the last batch has three, or two."""
    logits = torch.randn(23, 5, 3) if kind == "positions" else torch.randn(23, 5)
    labels = torch.randint(5, (23, 3) if kind == "positions" else (23,))
    if kind == "some ignored":
        labels[[0, 1, 2, 3, 4, 5, 6, 21]] = -100  # a whole batch too
    if kind == "rows":
        labels = torch.rand(23, 5).softmax(1)
        losses = -(labels * logits.log_softmax(1)).sum(1)
    else:
        chosen = logits.log_softmax(1).gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
        losses = -chosen[labels >= 0]
    metric, of_rank = CrossEntropy(), [CrossEntropy(), CrossEntropy()]
    for number, batch in enumerate(zip(logits.split(size), labels.split(size), strict=True)):
        for each in (metric, of_rank[number % 2]):
            each.update(*batch)
    torch.testing.assert_close(metric.compute(), losses.mean())
    summed = CrossEntropy()  # as torchmetrics adds the states of ranks
    for name in ("sum_loss", "total"):
        setattr(summed, name, sum(getattr(each, name) for each in of_rank))
    summed._update_count = 1
    torch.testing.assert_close(summed.compute(), losses.mean())


def test_one_batch_has_the_cross_entropy_of_composer():
    for labels in (torch.tensor([1, -100, 4]), torch.eye(5)[:3]):
        ours, theirs, logits = CrossEntropy(), composer.metrics.CrossEntropy(), torch.randn(3, 5)
        for metric in (ours, theirs):
            metric.update(logits, labels)
        torch.testing.assert_close(ours.compute(), theirs.compute())


def test_an_old_checkpoints_cross_entropy_does_not_end_a_resume():
    """Composer loads what `save_metrics` kept non-strictly, and an evaluation begins with nothing."""
    old = composer.metrics.CrossEntropy()
    old.persistent(mode=True)
    ours = CrossEntropy()
    ours.load_state_dict(old.state_dict(), strict=False)
    ours.reset()
    ours.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    torch.testing.assert_close(ours.compute(), torch.tensor(4.0).log())


def test_masked_accuracy_is_that_of_composer():
    ours, theirs = MaskedAccuracy(), composer.metrics.MaskedAccuracy()
    for labelled in (0.0, 0.3, 1.0):
        logits, labels = torch.randn(4, 6, 9).round(), torch.randint(9, (4, 6))
        labels[torch.rand(4, 6) >= labelled] = -100
        for metric in (ours, theirs):
            metric.update(logits, labels)
    assert torch.equal(ours.compute(), theirs.compute()) and ours.total > 24


@pytest.mark.parametrize(
    "metric",
    [CrossEntropy(), MulticlassAccuracy(5), MulticlassTop5Accuracy(5), MaskedAccuracy()],
    ids=lambda metric: type(metric).__name__,
)
def test_an_update_asks_nothing_of_the_device(metric):
    """Fake tensors hold nothing that could be looked at."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        metric.update(torch.randn(8, 5), torch.randint(5, (8,)))


def logged(model, algorithms, **options):
    """The training metrics of every batch, and of every end of an epoch."""
    log = InMemoryLogger()
    trainer(algorithms, model=model, loggers=log, device_train_microbatch_size=3, **options).fit()
    names = [name for name in log.data if name.startswith("metrics/train/")]
    return {name: [float(value) for _, value in log.data[name]] for name in names}


BESIDE = [lambda: [], lambda: [MixUp(0.4)], lambda: [LabelSmoothing(0.2)], lambda: [MixUp(0.4), LabelSmoothing(0.2)]]


@pytest.mark.parametrize("algorithms", BESIDE, ids=["alone", "MixUp", "LabelSmoothing", "both"])
def test_a_classifier_logs_what_composers_logs(algorithms):
    ours = ImageClassifier(network(), CLASSES, F.cross_entropy, Facts())
    theirs = ComposerClassifier(network(), num_classes=CLASSES, loss_fn=F.cross_entropy)
    options = {"train_dataloader": loader(), "eval_dataloader": loader()}
    found, expected = (logged(model, algorithms(), **options) for model in (ours, theirs))
    assert found == expected and len(found["metrics/train/MulticlassAccuracy"]) == 2 * 4 + 2


@pytest.mark.parametrize("algorithms", [lambda: [], lambda: [LabelledPositions()]], ids=["alone", "LabelledPositions"])
def test_a_masked_lm_logs_what_composers_logs(algorithms):
    def run(metric):
        model = masked_lm()
        model.train_metrics = {"MaskedAccuracy": metric}
        return logged(model, algorithms(), train_dataloader=token_loader())

    found, expected = run(MaskedAccuracy()), run(composer.metrics.MaskedAccuracy())
    assert found == expected and len(found["metrics/train/MaskedAccuracy"]) == 2 * 4 + 2
