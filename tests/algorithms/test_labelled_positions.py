import copy

import pytest
import torch
from composer.algorithms import SWA, GradientClipping
from composer.models import HuggingFaceModel
from torch import nn
from transformers import BatchEncoding, BertForMaskedLM, ModernBertForMaskedLM
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from accelerando.algorithms import Distillation, LabelledPositions, LabelSmoothing
from accelerando.algorithms.labelled_positions import HEADS, HeadPositions, Labelled
from tiny import WORDS, assert_same, classifier, masked_lm, sentences, token_loader, trainer, weights

KINDS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")


def fit(algorithms=(), kind="bert", **options):
    run = trainer(algorithms, model=masked_lm(kind), **{"train_dataloader": token_loader()} | options)
    run.fit()
    return run


def test_every_head_is_tried():
    assert len(HEADS) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_are_those_of_all_positions(kind):
    plain, sparse = masked_lm(kind).model.eval(), masked_lm(kind).model.eval()
    batch, head = sentences(), HeadPositions(sparse)
    where = (batch["labels"] != -100).flatten()
    expected = plain(**batch)
    head.index = where.nonzero().flatten()
    found = sparse(**batch | {"labels": batch["labels"].flatten()[head.index]})
    assert found.logits.shape == (int(where.sum()), WORDS)
    torch.testing.assert_close(found.logits, expected.logits.flatten(0, 1)[where])
    torch.testing.assert_close(found.loss, expected.loss)
    for outputs in (expected, found):
        outputs.loss.backward()
    assert_same(gradients(sparse), gradients(plain), atol=1e-6)
    head.index = None
    torch.testing.assert_close(sparse(**batch).logits, expected.logits)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_plain_run(kind):
    options = {"device_train_microbatch_size": 3, "eval_dataloader": token_loader(5)}
    plain, sparse = fit((), kind, **options), fit(LabelledPositions(), kind, **options)
    assert_same(weights(sparse), weights(plain), atol=1e-5)
    for metrics in ("train_metrics", "eval_metrics"):
        found, expected = (values(getattr(run.state, metrics)) for run in (sparse, plain))
        assert found == pytest.approx(expected, abs=1e-5) and expected


def values(metrics):
    (metrics,) = metrics.values() if "eval" in metrics else (metrics,)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_only_labelled_positions_reach_the_vocabulary():
    model, rows = masked_lm(), []
    decoder = model.model.cls.predictions.decoder
    decoder.register_forward_hook(lambda module, inputs, output: rows.append(tuple(output.shape[:-1])))
    options = {"train_dataloader": token_loader(), "eval_dataloader": token_loader(30), "max_duration": "1ep"}
    trainer(LabelledPositions(), model=model, **options).fit()
    assert rows == [(24,), (24,), (24,), (18,), (30, 12)]


BESIDE = [lambda: LabelSmoothing(0.3), lambda: GradientClipping("norm", 0.1), lambda: SWA("0.25dur", "0.75dur")]


@pytest.mark.parametrize("build", BESIDE, ids=["LabelSmoothing", "GradientClipping", "SWA"])
@pytest.mark.filterwarnings("ignore:SWA has known issues")
def test_beside_others(build):
    options = {"eval_dataloader": token_loader(5), "train_dataloader": token_loader()}
    plain, sparse = (fit([build(), *ours], **options) for ours in ([], [LabelledPositions()]))
    assert_same(weights(sparse), weights(plain), atol=1e-5)
    for run in (plain, sparse):
        run.eval()
    assert values(sparse.state.eval_metrics) == pytest.approx(values(plain.state.eval_metrics), abs=1e-5)
    assert sparse.state.model.eval_forward.model is sparse.state.model  # of a copy, not of what was copied


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_model_is_saved_and_copied_with_what_it_got(kind, tmp_path):
    run = fit(LabelledPositions(), kind)
    torch.save(run.state.model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    batch = sentences()
    expected = run.state.model.eval().eval_forward(dict(batch))
    for model in (loaded, copy.deepcopy(run.state.model)):
        assert model.eval_forward.model is model
        torch.testing.assert_close(model.eval().eval_forward(dict(batch)), expected)


@pytest.mark.parametrize("microbatch", [8, 4, 1])
def test_microbatches_without_a_label(microbatch):
    batch = sentences(8)
    batch["labels"][4:7] = -100
    options = {"train_dataloader": [batch], "device_train_microbatch_size": microbatch, "max_duration": "2ba"}
    if microbatch == 1:  # whose loss is a mean over nothing
        batch["labels"][4:7, 0] = batch["input_ids"][4:7, 0]
    plain, sparse = fit((), **options), fit(LabelledPositions(), **options)
    assert_same(weights(sparse), weights(plain), atol=1e-5)
    assert values(sparse.state.train_metrics) == pytest.approx(values(plain.state.train_metrics), abs=1e-5)


def test_a_microbatch_without_any_label_is_the_plain_one():
    batch = sentences(8)
    batch["labels"][4:] = -100
    options = {"train_dataloader": [batch], "device_train_microbatch_size": 4, "max_duration": "1ba"}
    plain, sparse = fit((), **options), fit(LabelledPositions(), **options)
    assert values(sparse.state.train_metrics) == pytest.approx(values(plain.state.train_metrics), abs=1e-5)
    for name, value in weights(plain).items():  # NaN, as Hugging Face's mean over nothing is
        torch.testing.assert_close(weights(sparse)[name], value, equal_nan=True, atol=1e-5, rtol=0)


def test_batches_are_not_changed():
    class Keeps(torch.utils.data.DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                before = copy.deepcopy(batch)
                yield batch
                assert_same(batch, before)

    data = [dict(zip(sentences(), row, strict=True)) for row in zip(*sentences().values(), strict=True)]
    fit(LabelledPositions(), train_dataloader=Keeps(data, 8), max_duration="1ep")


def test_modernbert_leaves_positions_out_no_more_by_itself():
    plain, sparse = masked_lm("modernbert"), masked_lm("modernbert", sparse_prediction=True)
    assert sparse.model.sparse_prediction
    for model, ours in ((plain, []), (sparse, [LabelledPositions()])):
        trainer(ours, model=model, train_dataloader=token_loader()).fit()
    assert_same(sparse.state_dict(), plain.state_dict(), atol=1e-5)


def test_labels_must_come_as_they_came():
    labelled, labels = Labelled(), sentences()["labels"]
    labelled.start(labels)
    labelled.next(labels[:20])
    assert labelled.next(labels[20:]).tolist() == (labels[20:] != -100).flatten().nonzero().flatten().tolist()
    labelled.restart()
    with pytest.raises(ValueError, match=r"labels of \(30, 11\) are not the next \(30, 12\) of the batch"):
        labelled.next(labels[:, 1:])
    labelled.start(labels, shifted=True)
    expected = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) != -100
    assert labelled.next(labels).tolist() == expected.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "dtype, ignored, expected",
    [
        (torch.uint8, -100, [0, 1, 2]),
        (torch.uint8, 255, [0, 2]),
        (torch.int8, 255, [0, 1, 2]),
        (torch.long, 255, [0, 2]),
    ],
)
def test_labels_of_few_bits_are_compared_as_numbers(dtype, ignored, expected):
    labelled, labels = Labelled(ignored), torch.tensor([[156, 255, 3]]).to(dtype)
    labelled.start(labels)
    assert labelled.next(labels).tolist() == expected


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="HuggingFaceModel, got ComposerClassifier"):
        trainer(LabelledPositions(), model=classifier())
    other = masked_lm()
    other.model = other.model.bert
    with pytest.raises(TypeError, match="BertModel is not one of the masked language models BertForMaskedLM, Rob"):
        trainer(LabelledPositions(), model=other, train_dataloader=token_loader())
    flash = masked_lm("modernbert")
    flash.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        trainer(LabelledPositions(), model=flash, train_dataloader=token_loader())
    tuples = masked_lm()
    tuples.model.config.return_dict = False
    with pytest.raises(TypeError, match="return_dict=True"):
        trainer(LabelledPositions(), model=tuples, train_dataloader=token_loader()).fit()


def test_a_subclass_overrides_a_step():
    class Own(LabelledPositions):
        def _restart(self, state, logger):
            asked_for.append(state.timestamp.batch.value)
            super()._restart(state, logger)

    asked_for = []
    fit(Own(), max_duration="2ba")
    assert asked_for == [0, 1]


def of(kind: type, module: nn.Module) -> nn.Module:
    module.__class__ = kind
    return module


class PerSentence(BertForMaskedLM):
    """Its loss wants to know how many labels each sentence has."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        losses = nn.functional.cross_entropy(outputs.logits.movedim(-1, 1), labels, reduction="none")
        outputs.loss = (losses.sum(-1) / (labels != -100).sum(-1)).mean()
        return outputs


class Mixing(BertOnlyMLMHead):
    def forward(self, hidden):
        return super().forward(hidden - hidden.mean(0))


class Weighted(ModernBertForMaskedLM):
    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        weight = torch.linspace(0.5, 2, WORDS)
        outputs.loss = nn.functional.cross_entropy(outputs.logits.flatten(0, -2), labels.flatten(), weight)
        return outputs


class OwnCompiledHead(ModernBertForMaskedLM):
    def compiled_head(self, output):
        return 2 * super().compiled_head(output)


class OwnLoss(HuggingFaceModel):
    def loss(self, outputs, batch):
        return outputs["loss"] + 1e-3 * outputs["logits"].logsumexp(-1).square().mean()


def own_head(model):
    of(Mixing, model.model.cls)


def own_activation(model):
    class Odd(nn.Module):
        def forward(self, x):
            return x * x.mean(0)

    model.model.cls.predictions.transform.transform_act_fn = Odd()


def own_loss_function(model):
    model.model.loss_function = lambda logits, labels, **options: logits.mean()


def patched(model):
    model.model.forward = model.model.forward


STRANGE = {
    "forward": ("bert", lambda model: of(PerSentence, model.model), "PerSentence has forward of its own"),
    "class weights": ("modernbert", lambda model: of(Weighted, model.model), "Weighted has forward of its own"),
    "compiled head": ("modernbert", lambda model: of(OwnCompiledHead, model.model), "has compiled_head of its own"),
    "head": ("bert", own_head, r"a head of its own \(cls\)"),
    "within the head": ("bert", own_activation, r"its own \(cls.predictions.transform.transform_act_fn\)"),
    "loss function": ("modernbert", own_loss_function, "has a loss_function of its own"),
    "patched": ("bert", patched, "BertForMaskedLM has forward of its own"),
    "loss": ("bert", lambda model: of(OwnLoss, model), "the loss of composer.models.HuggingFaceModel, and OwnLoss"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_computes_in_its_own_way_is_refused(name):
    kind, change, message = STRANGE[name]
    model = masked_lm(kind)
    change(model)
    with pytest.raises(TypeError, match=message):
        trainer(LabelledPositions(), model=model, train_dataloader=token_loader())


def test_a_namesake_is_not_taken_for_the_model():
    other = masked_lm()
    other.model.__class__ = type("BertForMaskedLM", (type(other.model.bert),), {"forward": PerSentence.forward})
    with pytest.raises(TypeError, match="BertForMaskedLM is not one of the masked language models"):
        trainer(LabelledPositions(), model=other, train_dataloader=token_loader())


def test_a_subclass_that_computes_the_same_is_known():
    class Named(BertForMaskedLM):
        def count(self):
            return sum(parameter.numel() for parameter in self.parameters())

    model = masked_lm()
    of(Named, model.model)
    run = trainer(LabelledPositions(), model=model, train_dataloader=token_loader())
    run.fit()
    assert_same(weights(run), weights(fit()), atol=1e-5)


@pytest.mark.parametrize("change", [own_head, own_activation])
def test_a_teacher_with_a_head_of_its_own_is_asked_for_all_positions(change):
    one, asked_for = masked_lm(seed=5), []
    change(one)
    given = copy.deepcopy(one)
    given.model.cls.register_forward_hook(lambda module, inputs, output: asked_for.append(output))
    batch = sentences(8)
    run = trainer(
        Distillation(given, base_weight=0.0, distillation_weight=1.0, loss=lambda s, t: taught.append(t) or s.mean()),
        model=masked_lm(),
        train_dataloader=[batch],
        device_train_microbatch_size=8,
        max_duration="1ba",
    )
    taught = []
    run.fit()
    expected = one.eval().model(batch["input_ids"], batch["attention_mask"]).logits[batch["labels"] != -100]
    torch.testing.assert_close(taught[0], expected)
    assert asked_for[0].shape == (8, 12, WORDS)


def plain_loop(model, positions=None, steps=8):
    """The tiny run as somebody would write it, with an evaluation at its end."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = [{name: value[i : i + 8] for name, value in sentences().items()} for i in range(0, 30, 8)] * 2
    for batch in batches[:steps]:
        batch = positions.select(batch) if positions else batch
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model(**sentences())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_ones_own_ends_in_the_trainers_weights(kind):
    run, model, plain = fit(LabelledPositions(), kind), masked_lm(kind), masked_lm(kind)
    evaluated = plain_loop(model.model, HeadPositions(model.model))
    assert_same(model.state_dict(), weights(run))
    expected = plain_loop(plain.model)
    assert evaluated.logits.shape == (30, 12, WORDS)
    torch.testing.assert_close(evaluated.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(evaluated.loss, expected.loss, atol=1e-5, rtol=0)


def test_a_selected_batch_is_a_copy_and_holds_for_one_forward_pass():
    model, batch = masked_lm().model.eval(), BatchEncoding(sentences(8))
    positions, before = HeadPositions(model), copy.deepcopy(dict(batch))
    selected = positions.select(batch)
    assert_same(dict(batch), before)
    assert type(selected) is BatchEncoding and selected["labels"].tolist() == [
        x for x in before["labels"].flatten() if x != -100
    ]
    assert model(**selected).logits.shape == (24, WORDS)
    assert model(**batch).logits.shape == (8, 12, WORDS)
    positions.select(batch)
    positions.select(without := batch | {"labels": torch.full((8, 12), -100)})  # the forward pass before never came
    assert positions.select(without) is without
    assert model(**without).logits.shape == (8, 12, WORDS)


def test_other_labels_may_be_ignored():
    model, batch = masked_lm().model, sentences(8)
    positions = HeadPositions(model, ignore_index=-1)
    labels = batch["labels"].masked_fill(batch["labels"] == -100, -1)
    assert positions.select(batch | {"labels": labels})["labels"].tolist() == labels[labels != -1].tolist()


def test_where_labels_stand_may_be_known():
    model, batch = masked_lm().model, sentences(8)
    selected = HeadPositions(model).select(batch, torch.tensor([3, 5]))
    assert selected["labels"].tolist() == batch["labels"].flatten()[[3, 5]].tolist()
    assert model(**selected).logits.shape == (2, WORDS)


def test_a_compiled_loop_has_no_graph_break():
    torch._dynamo.reset()
    model, plain = masked_lm().model, masked_lm().model
    positions = HeadPositions(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (8, 7, 6):
        batch = sentences(count)
        found, expected = compiled(**positions.select(batch)), plain(**batch)
        torch.testing.assert_close(found.loss, expected.loss)
        assert found.logits.shape == (3 * count, WORDS) and positions.index is None
    assert compiled(**batch).logits.shape == (6, 12, WORDS)
