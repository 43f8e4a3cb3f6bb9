"""SQuAD 1.1's metrics: of the answers' text, as its official script computes them (evaluate-v1.1.py).

They take batches of evaluation of the data source `squad`, and outputs with `start_logits` and `end_logits`. A window's
answer is its best span; of several windows of a question the one whose span scores best answers it.
"""

import re
import string
from collections import Counter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from ..data.codes import texts_in

LONGEST = 30  # tokens of an answer

AnswerMetricName = Literal["exact_match", "squad_f1"]


def best_spans(start_logits: Tensor, end_logits: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and last token, (N,), of the span with the highest sum of its two logits, and this sum.

    Args:
        start_logits: (N, T).
        end_logits: (N, T).
        inside: which tokens are of the context, (N, T); both must be.
    """
    start, end = (logits.float().masked_fill(~inside, -torch.inf) for logits in (start_logits, end_logits))
    ends = F.pad(end, (0, LONGEST - 1), value=-torch.inf).unfold(1, LONGEST, 1)
    score, place = (start[..., None] + ends).flatten(1).max(1)
    first = place // LONGEST
    return first, first + place % LONGEST, score


def normalized(text: str) -> str:
    """In lower case, without punctuation, articles and superfluous white space."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


class _OfAnswers(Metric):
    """The mean over all questions of the best value that the answer has by any of the right ones."""

    needs_batch = True  # for Composer's HuggingFaceModel
    full_state_update = False
    rows: list[Tensor]

    def __init__(self):
        super().__init__()
        # Flat, so that those of a rank without any can be joined with those of the others.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def value(self, answer: str, right: str) -> float:
        raise NotImplementedError

    def update(self, batch: Any, outputs: Any, labels: Any = None) -> None:
        """Notes question, score and value of each window; ValueError for a batch without the texts."""
        if missing := {"question", "context", "offsets", "answers"} - batch.keys():
            raise ValueError(f"{type(self).__name__} needs {', '.join(sorted(missing))}: expected squad as eval_data")
        offsets = batch["offsets"]
        first, last, scores = best_spans(outputs["start_logits"], outputs["end_logits"], offsets[..., 0] >= 0)
        each = torch.arange(len(first), device=offsets.device)
        places = torch.stack([offsets[each, first, 0], offsets[each, last, 1]], 1).tolist()
        values = []
        for (begin, end), context, answers in zip(places, batch["context"], batch["answers"], strict=True):
            answer = "".join(texts_in(context))[begin:end]
            values.append(max(self.value(answer, right) for right in texts_in(answers)))
        # As 32-bit floats, which hold whole numbers up to 16 million.
        self.rows.append(torch.stack([batch["question"].to(scores), scores, scores.new_tensor(values)], 1).flatten())

    def compute(self) -> Tensor:
        rows = (torch.cat(self.rows) if isinstance(self.rows, list) else self.rows).view(-1, 3)
        # Of equal scores the worse answer counts, so that the order does not matter: ranks have their own.
        for column, descending in ((2, False), (1, True), (0, False)):
            rows = rows[rows[:, column].argsort(descending=descending, stable=True)]
        new = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        new[1:] = rows[1:, 0] != rows[:-1, 0]
        return rows[new, 2].mean()


class ExactMatch(_OfAnswers):
    """The share of questions whose answer is a right one, both normalized."""

    def value(self, answer: str, right: str) -> float:
        return float(normalized(answer) == normalized(right))


class SquadF1(_OfAnswers):
    """The mean of the F1 scores of the answers' words, as bags, after normalization."""

    def value(self, answer: str, right: str) -> float:
        found, wanted = normalized(answer).split(), normalized(right).split()
        same = (Counter(found) & Counter(wanted)).total()
        return 2 * same / (len(found) + len(wanted)) if same else 0.0


ANSWERS: dict[AnswerMetricName, type[Metric]] = {"exact_match": ExactMatch, "squad_f1": SquadF1}
