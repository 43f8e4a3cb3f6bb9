"""Tasks made of the texts of Python's `help()`: their classes against the texts, what is held out, bad keys."""

import re
from pydoc_data.topics import topics

import pytest

from accelerando.recipes.config.errors import ArgumentError
from accelerando.recipes.data.python_docs import LONG, SHORT, TASKS, PythonDocs, PythonDocsTask


def words_of(text):
    return re.sub(r"[*=~-]{4,}", "", text).lower().split()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_word_before_stood_there(split):
    held = {name for i, name in enumerate(sorted(topics)) if i % 8 == 0}
    texts = [f" {' '.join(words_of(text))} " for name, text in topics.items() if (name in held) == (split == "test")]
    examples = PythonDocsTask("word_before", split).examples()
    assert {label for _, label in examples} == {*range(8)}
    for passage, label in examples[::40]:
        assert any(f" {SHORT[label]} {passage} " in text for text in texts)


def test_a_hidden_word_is_hidden_wherever_it_stands():
    examples = PythonDocsTask("hidden_word", "test").examples()
    whole = " ".join(" ".join(words_of(text)) for text in topics.values())
    assert {label for _, label in examples} == {*range(16)}
    for passage, label in examples:
        there = [re.sub(r"[^a-z]", "", word) for word in passage.split() if word != "[MASK]"]
        assert "[MASK]" in passage and not {LONG[label], f"{LONG[label]}s"} & {*there}
    for passage, label in examples[::20]:
        pattern = re.escape(passage).replace(re.escape("[MASK]"), rf"[^a-z\s]*{LONG[label]}(s|es|d|ed)?[^a-z\s]*")
        assert re.search(pattern, whole)


def test_topics_are_the_longest_and_no_passage_is_half_in_training():
    train, test = (PythonDocsTask("topic", split).examples() for split in ("train", "test"))
    longest = sorted(sorted(topics), key=lambda name: -len(topics[name]))[:12]
    for passage, label in [*train[::200], *test[::50]]:
        assert passage in " ".join(words_of(topics[longest[label]]))
    words = " ".join(words_of(topics[longest[0]]))
    held = [passage for passage, label in test if label == 0]
    first = words.split()[160 * 7 : 160 * 8]
    assert held[0] == " ".join(first[:16])
    assert not any(" ".join(first[place : place + 16]) in {text for text, _ in train} for place in range(0, 144, 4))


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_what_a_bert_reads_and_slices_are_parts_of_the_whole(task):
    source = PythonDocsTask(task, "test", vocab_size=512, seq_len=128)
    source.check()
    spec = source.build(32, False, 0, "cpu")
    batch = next(iter(spec.dataloader))
    assert {*batch} >= {"input_ids", "attention_mask", "labels"} and batch["input_ids"].shape == (32, 128)
    assert spec.facts.classes == len(spec.facts.names) and spec.facts.names[batch["labels"][0]]
    mask = 4  # the vocabulary's fifth word
    assert (batch["input_ids"] == mask).any(1).all() == (task == "hidden_word")
    first, last = (PythonDocsTask(task, f"train[{part}]").examples() for part in (":80%", "80%:"))
    assert [*first, *last] == PythonDocsTask(task).examples()
    one, other = (PythonDocsTask(task, f"train[{part}]") for part in (":80%", "70%:"))
    assert one.overlaps(other) and not one.overlaps(source) and not one.overlaps(PythonDocs())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"task": "topics"}, "task: 'topics' given; expected one of topic, hidden_word, word_before"),
        ({"words": 1}, "words must be at least 2, not 1"),
        ({"words": 200}, "words: 200 given; expected 160 at most, the length of a block"),
        ({"stride": 0}, "stride must be at least 1, not 0"),
        ({"split": "dev"}, "split: 'dev' given; expected train or test"),
        ({"seq_len": 2}, "seq_len must be at least 3, not 2"),
    ],
)
def test_bad_keys_are_refused(keys, message):
    with pytest.raises((ArgumentError, ValueError)) as caught:
        PythonDocsTask(**{"task": "topic", **keys}).check()
    error = caught.value
    text = f"{error.name}: {error.message}" if isinstance(error, ArgumentError) else str(error)
    assert text.startswith(message)


def test_a_split_without_a_passage_is_refused_and_a_subclass_is_its_own():
    with pytest.raises(ArgumentError) as caught:
        PythonDocsTask("word_before", "test[0:1]", words=160).build(4, False, 0, "cpu")
    assert caught.value.message == "test[0:1] has no passage of 160 words for word_before"

    class Few(PythonDocsTask):
        def examples(self):
            return super().examples()[:8]

    few, all_of_them = (kind("topic", "test").build(8, False, 0, "cpu") for kind in (Few, PythonDocsTask))
    assert len(few.dataloader) == 1 < len(all_of_them.dataloader)
