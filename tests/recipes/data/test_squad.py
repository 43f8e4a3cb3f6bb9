"""SQuAD from its own format: windows and labels against plain versions, a run that learns, and files with faults."""

import copy
import json
import unicodedata

import pytest
import torch
from transformers import BertTokenizerFast

from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.recipe import check
from accelerando.recipes.data.codes import texts_in
from accelerando.recipes.data.squad import Squad
from accelerando.recipes.train import train

FIRST = "In Zürich, the café Odeon opened in 1911. " + "It rained a lot that day. " * 3
FIRST += "At last the painter Ørsted bought a “blue guitar” for 20 francs."
SECOND = "The emoji 😀 means joy, and 😢 grief."
ASKED = [
    (FIRST, "When did the café open?", ["1911", "in 1911", "1911."]),
    (FIRST, "What did the painter buy?", ["a “blue guitar”", "guitar"]),
    (FIRST, " Who bought it?", ["Ørsted"]),
    (SECOND, "What means joy?", ["😀"]),
]
WORDS = "the in it rained lot that day painter bought guitar when did what who means"
SEQ_LEN, STRIDE = 40, 6


def written(path, change=lambda data: None):
    """The official JSON, after a change of its content."""
    paragraphs = []
    for context in (FIRST, SECOND):
        questions = [
            {
                "id": f"q{number}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)} for text in answers],
            }
            for number, (own, question, answers) in enumerate(ASKED)
            if own == context
        ]
        paragraphs.append({"context": context, "qas": questions})
    data = {"version": "1.1", "data": [{"title": "T", "paragraphs": [each]} for each in paragraphs]}
    change(data)
    path.write_text(json.dumps(data))
    return str(path)


def in_lower_case(text):
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The file of questions, and the folder of a tokenizer that knows a few words and all letters."""
    root = tmp_path_factory.mktemp("squad")
    letters = sorted({*in_lower_case(FIRST + SECOND + "?")} - {" "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary += WORDS.split()
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "tokenizer")
    return written(root / "train-v1.1.json"), str(root / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(files):
    return BertTokenizerFast.from_pretrained(files[1])


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Each sample as it must be: the question's number, the tokens, and from and to where in the context they are."""
    found = []
    for number, (context, question, _) in enumerate(ASKED):
        asked = tokenizer(question.strip(), add_special_tokens=False).input_ids
        whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
        room, start = SEQ_LEN - len(asked) - 3, 0
        while True:
            ids, offsets = whole.input_ids[start : start + room], whole.offset_mapping[start : start + room]
            found.append((number, [2, *asked, 3, *ids, 3], len(asked) + 2, offsets))
            if start + room >= len(whole.input_ids):
                break
            start += room - STRIDE
    return found


def batches(files, train, **options):
    source = Squad(*files, seq_len=SEQ_LEN, stride=STRIDE, **options)
    source.check()
    return source.build(3, train, 0, "cpu")


def test_windows_hold_what_is_scored(files, windows, tokenizer):
    spec = batches(files, train=False)
    rows = [
        {key: value[row] for key, value in batch.items()}
        for batch in spec.dataloader
        for row in range(len(batch["question"]))
    ]
    assert len(rows) == len(windows) > 7 and spec.facts.labels == "spans" and spec.facts.positions == SEQ_LEN
    for row, (number, ids, front, offsets) in zip(rows, windows, strict=True):
        assert row["question"] == number and texts_in(row["answers"]) == ASKED[number][2]
        assert row["input_ids"].tolist() == ids + [0] * (SEQ_LEN - len(ids))
        assert row["attention_mask"].sum() == len(ids) and row["token_type_ids"].sum() == len(offsets) + 1
        ((begin, _), *_), (*_, (_, end)) = offsets, offsets
        (text,) = texts_in(row["context"])
        assert text == ASKED[number][0][begin:end]
        places = row["offsets"].tolist()
        assert places[front : front + len(offsets)] == [[a - begin, b - begin] for a, b in offsets]
        assert {*map(tuple, places[:front] + places[front + len(offsets) :])} == {(-1, -1)}
        for token, (a, b) in zip(ids[front:], places[front : front + len(offsets)], strict=False):
            assert in_lower_case(text[a:b]) == tokenizer.convert_ids_to_tokens(token).removeprefix("##")


def test_labels_are_the_answers_tokens_or_cls(files, windows):
    held = {}
    rows = [
        row for batch in batches(files, True, drop_last=False).dataloader for row in zip(*batch.values(), strict=True)
    ]
    found = {tuple(ids[mask.bool()].tolist()): (int(a), int(b)) for ids, _, mask, a, b in rows}
    assert len(rows) == len(windows)
    for number, ids, front, offsets in windows:
        context, _, (answer, *_) = ASKED[number]
        begin, end = context.index(answer), context.index(answer) + len(answer)
        starts, ends = [a for a, _ in offsets], [b for _, b in offsets]
        whole = begin in starts and end in ends
        expected = (front + starts.index(begin), front + ends.index(end)) if whole else (0, 0)
        assert found[tuple(ids)] == expected
        held.setdefault(number, []).append(whole)
    assert not held[1][0] and any(held[1]) and all(any(each) for each in held.values())


def test_places_that_are_a_little_off(files, tmp_path):
    def shift(data):
        data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 2

    moved = written(tmp_path / "moved.json", shift), files[1]
    for ours, theirs in zip(batches(moved, True).dataloader, batches(files, True).dataloader, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def recipe(folder, files, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    fields = {"vocab_size": 256, "max_position_embeddings": 48, **sizes}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    squad = {"squad": {"file": files[0], "tokenizer": files[1], "seq_len": SEQ_LEN, "stride": STRIDE}}
    config = {
        "run_name": "run",
        "folder": str(folder),
        "max_duration": "60ep",
        "eval_interval": "1ep",
        "global_batch_size": 4,
        "model": {"bert": {"objective": "question_answering", "config": fields | dropout}},
        "train_data": squad,
        "eval_data": copy.deepcopy(squad),
        "optimizer": {"adam_w": {"lr": 2e-3}},
        "device": "cpu",
    }
    return {**config, **more}


def test_a_tiny_bert_learns_to_answer(files, tmp_path):
    result = train(check(recipe(tmp_path, files)))
    for name in ("ExactMatch", "SquadF1"):
        values = [record[f"metrics/eval/{name}"] for record in result.records if f"metrics/eval/{name}" in record]
        assert values[0] < 0.5 and values[-1] == 1.0, values


def of(data):
    return data["data"][0]["paragraphs"][0]


def set_to(key, value):
    return lambda data: of(data)["qas"][0].update({key: value})


FAULTS = {
    "not JSON": (lambda data: data.clear(), r"train_data.squad.file: .*bad.json: data: Field required; expected the o"),
    "no context": (lambda data: of(data).pop("context"), r"file: .*: data.0.paragraphs.0.context: Field required"),
    "a number": (set_to("question", 7), r"file: .*paragraphs.0.qas.0.question: Input should be a valid string"),
    "empty": (lambda data: data.update(data=[]), r"train_data.squad.file: .*bad.json holds no questions"),
    "2.0": (set_to("is_impossible", True), r"file: .* question q0 has no answer; expected a file of SQuAD 1.1"),
    "none": (set_to("answers", []), r"train_data.squad.file: .* question q0 has no answer"),
    "empty answer": (set_to("answers", [{"text": "", "answer_start": 0}]), r"file: .*answers.0.text: String should"),
    "elsewhere": (
        set_to("answers", [{"text": "1911", "answer_start": 0}]),
        r"file: .* question q0 has the answer '1911', which does not stand at 0, its answer_start",
    ),
    "long": (set_to("question", "when " * 40), r"train_data.squad.seq_len: 40 leaves 0 tokens beside the question q0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_is_refused_in_one_line(fault, files, tmp_path):
    change, message = FAULTS[fault]
    bad = written(tmp_path / "bad.json", change), files[1]
    part = check(recipe(tmp_path, bad)).train_data
    with pytest.raises(ConfigError, match=message) as raised:
        part.build(2, True, 0, "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"file": "no.json"}, "train_data.squad.file: no.json is no file: expected one of SQuAD 1.1"),
        ({"stride": 37}, "train_data.squad.stride: 37 given; expected 0 or more, and less than seq_len"),
        ({"seq_len": 4}, "train_data.squad: seq_len must be at least 8, not 4"),
        ({"tokenizer": "/no"}, "train_data.squad: /no is not a folder"),
    ],
)
def test_arguments_are_refused_before_anything_is_read(arguments, message, files, tmp_path):
    config = recipe(tmp_path, files)
    config["train_data"]["squad"].update(arguments)
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_spans_do_not_fit_another_objective(files, tmp_path):
    config = recipe(tmp_path, files)
    config["model"]["bert"]["objective"] = "classification"
    with pytest.raises(ConfigError, match=r"train_data.squad: has labels that are spans, but model.bert takes classes"):
        train(check(config))
