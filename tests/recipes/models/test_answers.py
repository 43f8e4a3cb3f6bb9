"""SQuAD's metrics against a plain version on strings, written from the formulas."""

import copy
import re
import string
from collections import Counter

import pytest
import torch

from accelerando.recipes.data.codes import as_codes, texts_in
from accelerando.recipes.models.answers import LONGEST, ExactMatch, SquadF1, normalized

# Words, of each its window: two windows of the first question, and one of each of the others.
WINDOWS = [
    "The café Odeon in Zürich , opened 1911 .",
    "opened 1911 . A painter 😀 bought the “ blue guitar ” !",
    " ".join(f"w{i}" for i in range(40)),
    "an answer",
]
QUESTIONS = [0, 0, 1, 2]
ANSWERS = [["café Odeon", "The Cafe Odeon", "A painter 😀"], ["w3 w4 w5", "w9"], ["Answer!", "the"]]
IN_FRONT, LENGTH = 3, 45  # tokens of the question, and of all


def place(word, text, start):
    begin = text.index(word, start)
    return [begin, begin + len(word)]


def batch_of(rows):
    offsets = torch.full((len(rows), LENGTH, 2), -1, dtype=torch.int32)
    for row, window in enumerate(rows):
        end = 0
        for column, word in enumerate(WINDOWS[window].split()):
            offsets[row, IN_FRONT + column] = torch.tensor(place(word, WINDOWS[window], end))
            end = int(offsets[row, IN_FRONT + column, 1])
    numbers = [QUESTIONS[window] for window in rows]
    return {
        "question": torch.tensor(numbers),
        "context": as_codes([WINDOWS[window]] for window in rows),
        "answers": as_codes(ANSWERS[number] for number in numbers),
        "offsets": offsets,
    }


def plain_normalized(text):
    words = "".join(" " if c.isspace() else c for c in text.lower() if c not in string.punctuation)
    return [word for word in re.split(" +", words) if word and word not in ("a", "an", "the")]


def plain_f1(answer, right):
    answer, right = plain_normalized(answer), plain_normalized(right)
    same = sum((Counter(answer) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(answer), same / len(right)
    return 2 * precision * recall / (precision + recall)


def plain(start, end, value):
    """The best span of each window, word by word; of each question's windows the best; the mean of its values."""
    best = {}
    for window, (starts, ends) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        words = len(WINDOWS[window].split())
        spans = [(i, j) for i in range(words) for j in range(i, min(words, i + 30))]
        score, (i, j) = max((starts[IN_FRONT + i] + ends[IN_FRONT + j], (i, j)) for i, j in spans)
        answer = " ".join(WINDOWS[window].split()[i : j + 1])
        number = QUESTIONS[window]
        if number not in best or score > best[number][0]:
            best[number] = score, max(value(answer, right) for right in ANSWERS[number])
    return sum(found for _, found in best.values()) / len(best)


def outputs(seed, rows=slice(None)):
    start, end = torch.randn(2, len(WINDOWS), LENGTH, generator=torch.Generator().manual_seed(seed))
    # The spans in question score high, and so do those that may not be: too long, backwards, or outside.
    for window, first, last in ((0, 1, 2), (1, 3, 5), (2, 3, 5), (3, 0, 1)):
        start[window, IN_FRONT + first] += 2 + seed % 3
        end[window, IN_FRONT + last] += 2 + seed % 3
    start[:, 0], end[:, -1], end[:, 0] = 9, 9, 9
    return {"start_logits": start[rows], "end_logits": end[rows]}


@pytest.mark.parametrize("kind", [ExactMatch, SquadF1])
def test_metrics_are_those_of_the_formula_on_strings(kind):
    def value(answer, right):
        return plain_f1(answer, right) if kind is SquadF1 else plain_normalized(answer) == plain_normalized(right)

    found = set()
    for seed in range(12):
        metric, logits = kind(), outputs(seed)
        metric.update(batch=batch_of([0, 1, 2, 3]), outputs=logits, labels=None)
        expected = plain(logits["start_logits"], logits["end_logits"], value)
        assert metric.compute().item() == pytest.approx(expected)
        found.add(round(expected, 4))
    assert len(found) > 2


@pytest.mark.parametrize("ranks", [([0, 2], [1, 3, 0]), ([3, 2, 1, 0], []), ([0, 1], [3, 2, 3])])
def test_ranks_together_count_each_question_once(ranks, monkeypatch):
    """What each has seen, some of it twice, and one of them nothing, joined as torchmetrics joins it."""
    whole = SquadF1()
    whole.update(batch=batch_of([0, 1, 2, 3]), outputs=outputs(2))
    metrics = [SquadF1() for _ in ranks]
    for metric, rows in zip(metrics, ranks, strict=True):
        for row in rows:
            metric.update(batch=batch_of([row]), outputs=outputs(2, [row]))
    states = [torch.cat(metric.rows) if metric.rows else torch.empty(0) for metric in metrics]
    for metric, own in zip(metrics, copy.deepcopy(states), strict=True):
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = lambda state, group, own=own: (torch.testing.assert_close(state, own), states)[1]
        metric._update_count = 1
        assert metric.compute() == whole.compute() > 0


def test_a_span_is_not_longer_than_the_script_allows():
    logits = {name: torch.zeros(1, LENGTH) for name in ("start_logits", "end_logits")}
    logits["start_logits"][0, IN_FRONT], logits["end_logits"][0, IN_FRONT + LONGEST] = 5, 5
    metric, batch = ExactMatch(), batch_of([2])
    for last, expected in ((LONGEST, 0), (LONGEST - 1, 1)):
        batch["answers"] = as_codes([[" ".join(f"w{i}" for i in range(last + 1))]])
        logits["end_logits"][0, IN_FRONT + last] = 6
        metric.reset()
        metric.update(batch=batch, outputs=logits)
        assert metric.compute() == expected


def test_what_normalization_leaves():
    assert normalized("  The U.S.A.,\n a\tban AN Ähre's “x” ") == "usa ban ähres “x”"


def test_a_batch_without_texts_is_refused():
    with pytest.raises(ValueError, match=r"ExactMatch needs answers, context, offsets, question: expected squad as ev"):
        ExactMatch().update(batch={"input_ids": torch.zeros(1, 3)}, outputs={})


def test_texts_in_tensors():
    rows = [["", "ß 😀", "a\nb"], ["x" * 9], []]
    assert [texts_in(row) for row in as_codes(rows)] == [["ß 😀", "a\nb"], ["x" * 9], []]
