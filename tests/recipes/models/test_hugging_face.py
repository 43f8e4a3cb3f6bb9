"""Hugging Face's encoders: their objectives, what weights they start from, and what they refuse."""

import datasets
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F
from transformers import (
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.models.hugging_face import bert, hugging_face
from accelerando.recipes.run.agreement import takes
from accelerando.recipes.train import train

TINY_BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def text_batch(labels):
    ids = torch.randint(5, 64, (4, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels(ids)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_for_masked_lm(attention):
    model = bert(config=TINY_BERT, attention=attention)
    assert model.config.hidden_size == 16 and model.config._attn_implementation == attention
    batch = text_batch(lambda ids: ids.masked_fill(torch.rand(ids.shape) < 0.5, -100))
    outputs = model(batch)
    assert outputs["logits"].shape == (4, 8, 64) and outputs["loss"].requires_grad
    assert set(model.get_metrics(is_train=False)) == {"LanguageCrossEntropy", "MaskedAccuracy"}
    logits = model.eval().eval_forward(dict(batch))
    for metric in model.get_metrics(is_train=False).values():
        model.update_metric(batch, logits, metric)
    metric = model.get_metrics(is_train=False)["LanguageCrossEntropy"]
    torch.testing.assert_close(metric.compute(), model(batch)["loss"])


@pytest.mark.parametrize(("num_labels", "metric"), [(3, "MulticlassAccuracy"), (1, "MeanSquaredError")])
def test_bert_for_classification_and_regression(num_labels, metric):
    model = bert("classification", TINY_BERT, num_labels=num_labels).eval()
    batch = text_batch(lambda ids: torch.tensor([0, 1, 2, 1]) if num_labels > 1 else torch.randn(4))
    assert model(batch)["logits"].shape == (4, num_labels)
    metrics = model.get_metrics(is_train=False)
    for each in metrics.values():
        model.update_metric(batch, model.eval_forward(dict(batch)), each)
    loss = metrics["CrossEntropy" if num_labels > 1 else "MeanSquaredError"]
    torch.testing.assert_close(loss.compute(), model(batch)["loss"])
    assert metric in metrics and "CrossEntropy" not in model.get_metrics(is_train=True)


def test_bert_starts_from_pretrained_weights(tmp_path):
    source = bert(config=TINY_BERT)
    source.model.save_pretrained(tmp_path)
    again = bert(pretrained=str(tmp_path), config={"hidden_dropout_prob": 0.3})
    assert again.config.hidden_dropout_prob == 0.3 and again.config.hidden_size == 16
    expected = source.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    body = bert("classification", pretrained=str(tmp_path), num_labels=4).model
    assert torch.equal(body.bert.embeddings.word_embeddings.weight, source.model.bert.embeddings.word_embeddings.weight)


def test_bert_starts_from_a_checkpoint_file(tmp_path):
    source = bert(config=TINY_BERT)
    content = {"state": {"model": source.state_dict(), "integrations": {"huggingface": source.get_metadata()}}}
    torch.save(content, tmp_path / "ep1.pt")
    again = bert(pretrained=str(tmp_path / "ep1.pt"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"it has another shape of bert.embeddings.word_embeddings.weight"):
        bert(pretrained=str(tmp_path / "ep1.pt"), config={"vocab_size": 65})
    with pytest.raises(ValueError, match=r"it has, unknown to the model, bert.encoder.layer.0"):
        bert(pretrained=str(tmp_path / "ep1.pt"), config={"num_hidden_layers": 0})


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_architecture_without_its_weights(kind, tmp_path):
    source = bert(config=TINY_BERT)
    source.model.half()  # in whose precision nothing is to be trained
    content = {"state": {"model": source.state_dict(), "integrations": {"huggingface": source.get_metadata()}}}
    torch.save(content, tmp_path / "ep1.pt")
    source.model.save_pretrained(tmp_path / "folder")
    place = str(tmp_path / {"folder": "folder", "file": "ep1.pt"}[kind])
    torch.manual_seed(3)
    found = bert(pretrained=place, random_weights=True)
    torch.manual_seed(3)
    expected = bert(config=TINY_BERT).state_dict()
    assert found.config.hidden_size == 16
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    name = "model.bert.encoder.layer.0.output.dense.weight"
    again = bert(pretrained=place).state_dict()
    assert torch.equal(again[name], source.state_dict()[name].float()) and not torch.equal(again[name], expected[name])
    assert {value.dtype for value in again.values()} == {value.dtype for value in expected.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_bert_forgets_what_the_weights_were_for(kind, tmp_path):
    source = bert("classification", TINY_BERT, num_labels=3)
    source(text_batch(lambda ids: torch.tensor([0, 1, 2, 1])))
    assert source.config.problem_type == "single_label_classification"
    if kind == "folder":
        source.model.save_pretrained(tmp_path / "bert")
    else:
        content = {"state": {"model": source.state_dict(), "integrations": {"huggingface": source.get_metadata()}}}
        torch.save(content, tmp_path / "bert")
    model = bert("classification", pretrained=str(tmp_path / "bert"), num_labels=1).eval()
    batch = text_batch(lambda ids: torch.randn(4))
    outputs = model(batch)
    assert outputs["logits"].shape == (4, 1)
    torch.testing.assert_close(outputs["loss"], F.mse_loss(outputs["logits"][:, 0], batch["labels"]))


def test_bert_refuses_an_encoder_with_holes(tmp_path):
    source = bert(config=TINY_BERT).model
    weights = source.state_dict()
    del weights["bert.encoder.layer.0.output.dense.bias"]
    source.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"does not fit the model: it lacks bert.encoder.layer.0.output.dense.bias"):
        bert("classification", pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"another shape of bert.embeddings.word_embeddings.weight"):
        bert("classification", pretrained=str(tmp_path), config={"vocab_size": 65})


def test_bert_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no is not a folder: expected what save_to_disk or save_pretrained"):
        bert(pretrained=str(tmp_path / "no"))


def test_bert_refuses_a_field_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"hiden_size.*hidden_size"):
        bert(config={"hiden_size": 16})


GOOD, BAD = "a good list of names", "a bad list of names"


def written(model, path):
    """As Composer writes a checkpoint."""
    content = {"state": {"model": model.state_dict(), "integrations": {"huggingface": model.get_metadata()}}}
    torch.save(content, path)
    return str(path)


def same(ours, theirs):
    """The names of equal weights."""
    return {name for name, value in ours.items() if name in theirs and torch.equal(value, theirs[name])}


def saved_in_the_hubs_format(kind, folder):
    """A tiny masked language model with its tokenizer."""
    torch.manual_seed(0)
    if kind == "roberta":
        words = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        words.train_from_iterator([GOOD, BAD] * 9, vocab_size=280, special_tokens=special, show_progress=False)
        words.save_model(str(folder))
        tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        fields = {"vocab_size": len(tokenizer), "max_position_embeddings": 18, "type_vocab_size": 1}
        model = RobertaForMaskedLM(RobertaConfig(**{**TINY_BERT, **fields}))
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD.split(), "bad"]
        (folder / "vocab.txt").write_text("\n".join(words))
        tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_input_names=["input_ids", "attention_mask"])
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
        model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=len(tokenizer), **sizes))
    for each in (tokenizer, model):
        each.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=["roberta", "distilbert"])
def finetuned(request, tmp_path_factory):
    """A run of a recipe, which has learnt to tell texts apart: the kind, the start's weights, result and folder."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "hub").mkdir()
    start = saved_in_the_hubs_format(request.param, root / "hub").state_dict()
    rows = {"text": [GOOD, BAD] * 16, "label": [1, 0] * 16}
    datasets.Dataset.from_dict(rows).save_to_disk(str(root / "data"))
    text = {"name": str(root / "data"), "tokenizer": str(root / "hub"), "label_column": "label", "seq_len": 16}
    config = {
        "run_name": "run",
        "folder": str(root),
        "max_duration": "10ep",
        "global_batch_size": 16,
        "model": {"hugging_face": {"objective": "classification", "pretrained": str(root / "hub")}},
        "train_data": {"hugging_face_text": text},
        "eval_data": {"hugging_face_text": text},
        "optimizer": {"adam_w": {"lr": 0.02}},
        "device": "cpu",
    }
    return request.param, start, train(check(config)), root


def test_an_encoder_of_the_hubs_format_learns_to_classify(finetuned):
    *_, result, _ = finetuned
    assert result.metrics["metrics/eval/MulticlassAccuracy"] == 1.0


def test_an_encoder_begins_with_the_weights_of_its_folder(finetuned):
    kind, start, _, root = finetuned
    model = hugging_face("classification", str(root / "hub"), num_labels=3)
    equal = same(model.model.state_dict(), start)
    assert {name for name in model.model.state_dict() if name.startswith(f"{kind}.")} == equal
    assert model.model.config.num_labels == 3 and takes(model).positions == 16 and takes(model).classes == 3


def test_an_encoder_begins_with_the_weights_of_a_run(finetuned):
    """For another task the head is new, and so it is for the same one."""
    kind, start, _, root = finetuned
    saved = torch.load(root / "run" / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]["model"]
    for objective in ("question_answering", "classification"):
        model = hugging_face(objective, str(root / "run"))
        own = {name for name in model.state_dict() if name.startswith(f"model.{kind}.")}
        assert same(model.state_dict(), saved) == own and not own <= same(model.state_dict(), start)
    with pytest.raises(ValueError, match=f"holds a model of the type {kind}: expected bert"):
        bert(pretrained=str(root / "run"))


def test_a_head_that_masked_lm_has_too_is_kept_and_every_other_is_new(tmp_path):
    """ModernBERT's last layer is called the same for two tasks, with two outputs in each."""
    special = dict(zip(("pad", "bos", "eos", "cls", "sep"), (0, 1, 2, 1, 2), strict=True))
    fields = {**TINY_BERT, **{f"{name}_token_id": number for name, number in special.items()}}
    source = hugging_face("masked_lm", config={"model_type": "modernbert", **fields})
    assert isinstance(source.config, ModernBertConfig) and takes(source).words == 64
    classifier = hugging_face("classification", written(source, tmp_path / "masked.pt"))
    new = classifier.state_dict().keys() - same(classifier.state_dict(), source.state_dict())
    assert new == {"model.classifier.weight", "model.classifier.bias"}
    answering = hugging_face("question_answering", written(classifier, tmp_path / "classifier.pt"))
    assert "model.classifier.weight" not in same(answering.state_dict(), classifier.state_dict())
    assert "model.head.dense.weight" in same(answering.state_dict(), classifier.state_dict())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_encoder_with_holes_is_refused(kind, tmp_path):
    source = hugging_face("masked_lm", config={"model_type": "roberta", **TINY_BERT})
    hole = "roberta.encoder.layer.0.output.dense.bias"
    if kind == "folder":
        weights = source.model.state_dict()
        del weights[hole]
        source.model.save_pretrained(tmp_path / "holes", state_dict=weights)
    else:
        weights = source.state_dict()
        del weights[f"model.{hole}"]
        torch.save(
            {"state": {"model": weights, "integrations": {"huggingface": source.get_metadata()}}}, tmp_path / "holes"
        )
    with pytest.raises(ValueError, match=f"holes does not fit the model: it lacks {hole}"):
        hugging_face("question_answering", str(tmp_path / "holes"))


def test_bert_answers_questions_by_the_mean_of_two_cross_entropies():
    model = bert("question_answering", TINY_BERT).eval()
    batch = text_batch(lambda ids: None)
    places = {"start_positions": torch.tensor([1, 0, 2, 7]), "end_positions": torch.tensor([3, 0, 2, 7])}
    del batch["labels"]
    outputs = model({**batch, **places})
    logits = outputs["start_logits"], outputs["end_logits"]
    expected = sum(F.cross_entropy(each, place) for each, place in zip(logits, places.values(), strict=True)) / 2
    torch.testing.assert_close(outputs["loss"], expected)
    assert set(model.get_metrics(is_train=False)) == {"ExactMatch", "SquadF1"} and takes(model).labels == "spans"
    assert not model.get_metrics(is_train=True)


REFUSED = {
    "of no type": ({}, "config.model_type: missing, without pretrained weights; expected one such as albert"),
    "unknown": ({"config": {"model_type": "robertta"}}, "config.model_type: robertta, which .*did you mean roberta"),
    "field": ({"config": {"model_type": "roberta", "hiden_size": 1}}, "RobertaConfig has no field hiden_size; did you"),
    "objective": ({"config": {"model_type": "gpt2"}, "objective": "masked_lm"}, "objective: transformers has no gpt2"),
    "attention": ({"config": {"model_type": "deberta"}, "attention": "sdpa"}, "attention: sdpa .*deberta.* eager"),
    "accuracy": (
        {"config": {"model_type": "roberta"}, "objective": "question_answering", "metrics": ["accuracy"]},
        "metrics: accuracy is none of question_answering; expected one of exact_match, squad_f1",
    ),
    "answers": ({"config": {"model_type": "roberta"}, "metrics": ["squad_f1"]}, "metrics: squad_f1 is none of class"),
    "its own": ({"config": {"model_type": "roberta"}, "objective": "masked_lm", "metrics": ["f1"]}, "has its own"),
    "random": (
        {"config": {"model_type": "roberta"}, "random_weights": True},
        "random_weights: true given without `pre",
    ),
    "labels": (
        {"config": {"model_type": "roberta"}, "objective": "question_answering", "num_labels": 3},
        "num_labels: 3 given; question_answering has 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_in_one_line(case):
    arguments, message = REFUSED[case]
    config = {
        "run_name": "run",
        "max_duration": "1ep",
        "global_batch_size": 2,
        "model": {"hugging_face": arguments},
        "train_data": {"digits": {}},
        "optimizer": {"sgd": {"lr": 0.1}},
    }
    with pytest.raises(ConfigError, match=f"model.hugging_face.*{message}") as raised:
        check(config).model.build()
    assert "\n" not in str(raised.value)
