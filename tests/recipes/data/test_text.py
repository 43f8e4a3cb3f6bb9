"""Text data: every source read from files of its own format, and its masks against a plain reference."""

import datasets
import pytest
import torch
from composer import Trainer
from streaming import MDSWriter

from accelerando.recipes.config.errors import REFUSALS, ArgumentError
from accelerando.recipes.data import checks
from accelerando.recipes.data.python_docs import PythonDocs, python_docs_tokenizer
from accelerando.recipes.data.text import HuggingFaceText, StreamingText
from accelerando.recipes.data.tokens import MaskTokens
from accelerando.recipes.models.hugging_face import bert

KEYS = {"input_ids", "attention_mask", "labels"}


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def tokenizer(cache):
    return python_docs_tokenizer(512)


@pytest.fixture(scope="session")
def vocabulary(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """70 documents in MDS shards, with the column of MosaicML's converter of C4."""
    root = tmp_path_factory.mktemp("shards")
    with MDSWriter(out=str(root / "train"), columns={"text": "str"}) as writer:
        for i in range(70):
            writer.write({"text": f"document {i} " + "returns the object " * i})
    return str(root)


def original(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a
    )


def test_masks_against_a_plain_reference(tokenizer):
    ids = torch.randint(len(tokenizer), (16, 32))
    noise = torch.rand(16, 32, 2)
    result = MaskTokens(tokenizer, 0.4)([ids], noise)
    for row in range(16):
        for column in range(32):
            token, (fate, replacement) = ids[row, column].item(), noise[row, column].tolist()
            expected, label = token, -100
            if token not in tokenizer.all_special_ids and fate < 0.4:
                label = token
                if fate < 0.32:
                    expected = tokenizer.mask_token_id
                elif fate < 0.36:
                    expected = int(replacement * len(tokenizer))
            assert (result["input_ids"][row, column], result["labels"][row, column]) == (expected, label)
    assert torch.equal(result["attention_mask"], (ids != tokenizer.pad_token_id).long())


def test_python_docs():
    source = PythonDocs(seq_len=64, vocab_size=512)
    source.check()
    spec = source.build(8, True, 0, "cpu")
    batches = list(spec.dataloader)
    batch = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    assert set(batch) == KEYS and batch["input_ids"].shape == (len(batches) * 8, 64)
    chosen = batch["labels"] != -100
    assert chosen[:, 1:-1].float().mean().item() == pytest.approx(0.15, abs=0.005)
    mask_id = spec.dataloader.transform.mask_id
    assert (batch["input_ids"][chosen] == mask_id).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (batch["input_ids"] == batch["labels"])[chosen].float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert spec.get_num_samples_in_batch(batches[0]) == 8 and spec.get_num_tokens_in_batch(batches[0]) == 8 * 64


def test_python_docs_are_packed_in_order_and_read_as_python(tokenizer):
    spec = PythonDocs("test", seq_len=128, vocab_size=512).build(16, False, 0, "cpu")
    ids = torch.cat([original(batch) for batch in spec.dataloader])
    assert (ids[:, 0] == tokenizer.cls_token_id).all() and (ids[:, -1] == tokenizer.sep_token_id).all()
    text = tokenizer.decode(ids[:, 1:-1].flatten(), skip_special_tokens=True)
    assert text.startswith('the " assert " statement') and "[UNK]" not in text
    assert spec.num_samples == len(ids) > 100


def test_python_docs_mask_anew_each_epoch_in_training_only():
    training = PythonDocs(seq_len=64, vocab_size=512).build(8, True, 0, "cpu").dataloader
    first = list(training)
    training.sampler.set_epoch(1)
    second = list(training)
    training.sampler.set_epoch(0)
    assert equal(first, list(training))
    by_text = [
        {tuple(row.tolist()): m for b in epoch for row, m in zip(original(b), b["labels"], strict=True)}
        for epoch in (first, second)
    ]
    common = by_text[0].keys() & by_text[1].keys()
    assert sum(torch.equal(by_text[0][text], by_text[1][text]) for text in common) < 0.01 * len(common)
    tests = [
        PythonDocs("test", seq_len=64, vocab_size=512).build(n, False, seed, "cpu").dataloader
        for n, seed in [(8, 0), (4, 1)]
    ]
    a, b = (torch.cat([batch["labels"] for batch in test]) for test in tests)
    assert torch.equal(a, b)


def test_the_vocabulary_is_the_same_wherever_it_is_trained(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = python_docs_tokenizer(512)
    assert len(again) == 512 and again.get_vocab() == tokenizer.get_vocab()
    (file,) = (tmp_path / "accelerando").iterdir()
    written = file.stat().st_mtime_ns
    python_docs_tokenizer(512)
    assert file.stat().st_mtime_ns == written and len(list(file.parent.iterdir())) == 1


def test_bert_learns_the_python_docs():
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = bert(config={"vocab_size": 512, "max_position_embeddings": 64, **size})
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-2),
        train_dataloader=PythonDocs(seq_len=64, vocab_size=512).build(32, True, 0, "cpu"),
        eval_dataloader=PythonDocs("test", seq_len=64, vocab_size=512).build(32, False, 0, "cpu"),
        max_duration="30ba",
        device_train_microbatch_size=16,
        progress_bar=False,
        device="cpu",
        seed=1,
    )
    trainer.fit()
    trainer.eval()
    trainer.close()
    metrics = trainer.state.eval_metrics["eval"]
    assert metrics["LanguageCrossEntropy"].compute() < 5.5  # chance is log(512) = 6.2
    assert metrics["MaskedAccuracy"].compute() > 0.05


@pytest.mark.parametrize("kind", ["python_docs", "hugging_face_text", "streaming_text"])
def test_microbatches_weigh_by_their_labelled_tokens(kind, tmp_path, vocabulary, shards):
    """Against the mean over all labelled tokens of the batch, by hand."""
    texts = {"text": [f"document {i} returns the object " * 9 for i in range(8)]}
    datasets.Dataset.from_dict(texts).save_to_disk(str(tmp_path))
    source = {
        "python_docs": PythonDocs(seq_len=32, vocab_size=512),
        "hugging_face_text": HuggingFaceText(str(tmp_path), vocabulary, seq_len=32),
        "streaming_text": StreamingText(shards, vocabulary, split="train", seq_len=32, num_workers=0),
    }[kind]
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    results = []
    for microbatch in (None, 8, 1):
        torch.manual_seed(0)
        model = bert(config={"vocab_size": 512, "max_position_embeddings": 32, **size, **dropout})
        optimizer, spec = torch.optim.SGD(model.parameters(), lr=1.0), source.build(8, True, 0, "cpu")
        if microbatch is None:
            batch = next(iter(spec.dataloader))
            count = int((batch["labels"] != -100).sum())
            assert spec.get_num_tokens_in_batch(batch, "loss_generating") == count
            assert spec.get_num_tokens_in_batch(batch) == 8 * 32
            logits = model.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
            (total / count).backward()
            optimizer.step()
        else:
            trainer = Trainer(
                model=model,
                optimizers=optimizer,
                train_dataloader=spec,
                max_duration="1ba",
                device_train_microbatch_size=microbatch,
                accumulate_train_batch_on_tokens=True,
                progress_bar=False,
                device="cpu",
                seed=1,
            )
            trainer.fit()
            trainer.close()
            assert trainer.state.timestamp.token == 8 * 32
        results.append({name: value.detach() for name, value in model.named_parameters()})
    for ours in results[1:]:
        for name, value in ours.items():
            torch.testing.assert_close(value, results[0][name], atol=1e-5, rtol=1e-4)


# `datasets` leaves the csv file open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", ["csv", "parquet", "save_to_disk", "dict"])
def test_hugging_face_classification(kind, tmp_path, vocabulary, tokenizer):
    rows = {"first": ["a list", "the tuple"], "second": ["one", "two"], "label": [1, 0], "other": [0, 0]}
    data = datasets.Dataset.from_dict(rows)
    if kind == "csv":
        data.to_csv(str(tmp_path / "train.csv"))
    elif kind == "parquet":
        data.to_parquet(str(tmp_path / "train.parquet"))
    elif kind == "save_to_disk":
        data.save_to_disk(str(tmp_path))
    else:
        datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path))
    columns = {"text_columns": ("first", "second"), "label_column": "label"}
    source = HuggingFaceText(str(tmp_path), vocabulary, seq_len=16, **columns)
    source.check()
    (batch,) = source.build(2, False, 0, "cpu").dataloader
    assert batch["labels"].tolist() == [1, 0] and batch["input_ids"].shape == (2, 16)
    length = batch["attention_mask"][1].sum()
    assert tokenizer.decode(batch["input_ids"][1][:length]) == "[CLS] the tuple [SEP] two [SEP]"
    assert batch["token_type_ids"][1][:length].tolist()[-2:] == [1, 1]
    model = bert(
        "classification", {"vocab_size": 512, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    )
    assert model(batch)["loss"].isfinite()


def test_hugging_face_masked_lm(tmp_path, vocabulary, tokenizer):
    datasets.Dataset.from_dict({"text": ["the object", "the list of names", ""] * 20}).to_json(
        str(tmp_path / "a.jsonl")
    )
    source = HuggingFaceText(str(tmp_path), vocabulary, seq_len=10)
    source.check()
    batches = list(source.build(4, False, 0, "cpu").dataloader)
    assert set(batches[0]) == KEYS
    text = tokenizer.decode(torch.cat([original(b)[:, 1:-1] for b in batches]).flatten())
    assert text.startswith("the object [SEP] the list of names [SEP] [SEP] the object")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_text_goes_on_in_the_middle_of_an_epoch(num_workers, shards, vocabulary):
    def build():
        source = StreamingText(shards, vocabulary, split="train", seq_len=16, num_workers=num_workers)
        source.check()
        return source.build(5, True, 3, "cpu").dataloader

    whole, part, resumed = build(), build(), build()
    first, second = list(whole), list(whole)
    assert len(first) == 14 and set(first[0]) == KEYS and first[0]["input_ids"].shape == (5, 16)
    assert not equal(first, second)
    list(part)
    iterator = iter(part)
    for _ in range(4):
        next(iterator)
    resumed.dataset.load_state_dict(part.dataset.state_dict(4 * 5, True))
    assert equal(list(resumed), second[4:])


def test_streaming_text_pads_and_masks_what_is_not_padding(shards, vocabulary, tokenizer):
    source = StreamingText(shards, vocabulary, split="train", seq_len=24, num_workers=0, mask_probability=0.5)
    batches, again = (list(source.build(7, False, seed, "cpu").dataloader) for seed in (0, 1))
    assert equal(batches, again)
    text = original(batches[0])
    assert tokenizer.decode(text[2], skip_special_tokens=True) == "document 2 returns the object returns the object"
    assert torch.equal(batches[0]["attention_mask"], (text != tokenizer.pad_token_id).long())
    assert (batches[0]["labels"][text == tokenizer.pad_token_id] == -100).all()
    assert sum(len(batch["labels"]) for batch in batches) == 70


def test_what_is_missing_is_named(tmp_path, vocabulary, shards):
    no = str(tmp_path / "no")
    expectations = [
        (PythonDocs(seq_len=2), ValueError, "seq_len must be at least 3, not 2"),
        (PythonDocs(mask_probability=15), ValueError, "mask_probability must be between 0 and 1, not 15"),
        (PythonDocs(vocab_size=9), ValueError, "vocab_size must be at least 256, not 9"),
        (HuggingFaceText(no, vocabulary), ArgumentError, "name: .*no is not a folder: expected what save_to_disk"),
        (HuggingFaceText(__file__, vocabulary), ArgumentError, "name: .* is a file: expected the folder that it is in"),
        (HuggingFaceText("a.csv", vocabulary), ArgumentError, "name: a.csv is the name of a file, and there is none"),
        (HuggingFaceText("glue", no), ArgumentError, "tokenizer: .*no is not a folder"),
        (HuggingFaceText("glue", vocabulary, text_columns=("a", "b")), ArgumentError, "text_columns: .* expected one"),
        (StreamingText(no, vocabulary), FileNotFoundError, "no/index.json is missing: expected a folder of MDS shards"),
    ]
    for source, error, message in expectations:
        with pytest.raises(error, match=message):
            source.check()


def test_empty_and_broken_files_are_refused(tmp_path, vocabulary):
    (tmp_path / "empty").mkdir()
    with pytest.raises(REFUSALS, match="empty"):
        HuggingFaceText(str(tmp_path / "empty"), vocabulary).build(1, False, 0, "cpu")
    for file, content in (("a.jsonl", b""), ("b.parquet", b"broken")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(REFUSALS, match=r"cannot be read|Parquet file size"):
            HuggingFaceText(str(tmp_path), vocabulary).build(1, False, 0, "cpu")
        (tmp_path / file).unlink()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"text_columns: .* has no column text: expected one of \['label', 'sentence', 'word'\]"),
        (
            {"text_columns": ("sentence",), "label_column": "lable"},
            "label_column: .* has no column lable: expected one",
        ),
        ({"split": "test"}, r"split: .* has no split test: expected one of \['train'\]"),
        ({"text_columns": ("label",)}, "text_columns: row 0 of train has 0 as label; expected columns of text"),
        (
            {"text_columns": ("sentence",), "label_column": "word"},
            "label_column: row 0 of train has 'no' as word; expected whole numbers .*class_names: \\[no\\]",
        ),
        ({"split": ("train", "train")}, "split: .* expected a single one for training"),
    ],
)
def test_wrong_columns_and_splits_are_named(given, message, tmp_path, vocabulary):
    data = datasets.Dataset.from_dict({"sentence": ["a"], "label": [0], "word": ["no"]})
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path))
    with pytest.raises(ArgumentError, match=message):
        HuggingFaceText(str(tmp_path), vocabulary, **given).build(1, True, 0, "cpu")


@pytest.fixture
def mails(tmp_path):
    """Two CSV files with labels of text, of which that of evaluation lacks one."""
    for split, labels in {"train": ["http", "email", "a, b", "email"], "test": ["email", "http"]}.items():
        rows = [f'text {n},"{label}",{n}' for n, label in enumerate(labels)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,kind,number", *rows]))
    return str(tmp_path)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_labels_of_text_are_numbered_in_the_order_of_their_names(mails, vocabulary):
    names = ("email", "http", "a, b")
    for split, numbers in {"train": [1, 0, 2, 0], "test": [0, 1]}.items():
        source = HuggingFaceText(mails, vocabulary, split=split, label_column="kind", class_names=names, seq_len=8)
        source.check()
        spec = source.build(4, False, 0, "cpu")
        assert next(iter(spec.dataloader))["labels"].tolist() == numbers
        assert (spec.facts.classes, spec.facts.names, spec.facts.labels) == (3, names, "classes")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"label_column": "kind"},
            r"label_column: row 0 of train has 'http' .* as in class_names: \[a, b, email, http\]",
        ),
        (
            {"label_column": "kind", "class_names": ("http", "mail")},
            "class_names: lacks 'email', which row 1 of train has",
        ),
        (
            {"label_column": "number", "class_names": ("0", "1")},
            "class_names: given, but row 0 of train has 0 as number",
        ),
        ({"class_names": ("a", "b")}, "class_names: given, but no label_column"),
        ({"label_column": "kind", "class_names": ("a", "a")}, "class_names: .*; expected two or more, each once"),
        ({"label_column": "kind", "class_names": ("a",)}, "class_names: .*; expected two or more, each once"),
    ],
)
def test_labels_and_names_that_do_not_fit_are_told(given, message, mails, vocabulary):
    source = HuggingFaceText(mails, vocabulary, **given)
    with pytest.raises(ArgumentError, match=message):
        source.check()
        source.build(1, True, 0, "cpu")


@pytest.mark.parametrize("key", ["name", "tokenizer"])
def test_what_is_on_the_hub_is_not_asked_for_again_and_again_without_a_network(key, tmp_path, vocabulary, monkeypatch):
    def none(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: type("Session", (), {"head": none}))
    monkeypatch.setattr("requests.Session.request", none)  # whoever asks all the same waits, and fails
    checks._hub_answers.cache_clear()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "here"))
    given = {"name": str(tmp_path / "here"), "tokenizer": vocabulary, key: "nobody/has-this"}
    with pytest.raises(
        ArgumentError, match=f"{key}: nobody/has-this is no folder here, is not cached, and the hub, ht"
    ):
        HuggingFaceText(**given).build(1, True, 0, "cpu")
    checks._hub_answers.cache_clear()
