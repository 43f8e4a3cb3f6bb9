"""Questions about paragraphs, whose answers are spans of them, in the files of SQuAD 1.1 (Rajpurkar et al. 2016)."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from composer.core import DataSpec
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ..config.errors import ArgumentError, show
from .checks import check_hub_name, check_least
from .codes import as_codes
from .facts import Described, Facts
from .loaders import AnyDevice, mapping_loader
from .tokens import Batch, Tokenizer, tokenizer_of

AT_ONCE = 512  # questions that are tokenised together: the places of all their tokens are Python's numbers at first


@dataclass
class Squad:
    """A file of SQuAD 1.1: https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json, or dev-v1.1.json.

    A sample is a question with its paragraph, or with a window of one that is longer. For training it has the places
    of the answer's first and last token as `start_positions` and `end_positions`, which are those of [CLS] where the
    window does not hold all of the answer; of several answers the first counts. For evaluation it has instead what the
    metrics exact_match and squad_f1 compare: `question`, the number of the question; `context`, the window's text, and
    `answers`, all right answers, as code points; and `offsets`, where in the window's text each token begins and ends,
    -1 for those that are not of it.
    """

    counts_tokens: ClassVar[bool] = True

    file: str  # one of SQuAD's own
    tokenizer: str  # on the hub, or a local folder
    seq_len: int = 384  # tokens per sample, those of the question included
    stride: int = 128  # tokens that a window shares with the next one
    drop_last: bool = True  # in training: leave out what does not fill the last batch

    def check(self) -> None:
        check_least(8, seq_len=self.seq_len)
        if not 0 <= self.stride < self.seq_len - 3:
            raise ArgumentError("stride", f"{self.stride} given; expected 0 or more, and less than seq_len")
        if not all(find_spec(package) for package in ("tokenizers", "transformers")):
            raise ImportError("text needs tokenizers and transformers: pip install 'accelerando[nlp]'")
        check_hub_name(self.tokenizer)
        if not Path(self.file).is_file():
            raise ArgumentError("file", f"{self.file} is no file: expected one of SQuAD 1.1, such as train-v1.1.json")

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, Squad) and Path(self.file).resolve() == Path(other.file).resolve()

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        tokenizer = tokenizer_of(self.tokenizer)
        if not tokenizer.is_fast:
            hint = "does not tell where in a text its tokens stand; expected a fast one"
            raise ArgumentError("tokenizer", f"{self.tokenizer} {hint}")
        questions = self._questions()
        chunks = [questions[start : start + AT_ONCE] for start in range(0, len(questions), AT_ONCE)]
        parts = [self._windows(chunk, tokenizer, train) for chunk in chunks]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if not train:
            batch |= _texts(questions, batch.pop("question"), batch.pop("offsets"))
        loader = mapping_loader(batch, batch_size, train, seed, device, self.drop_last)
        facts = Facts(inputs="texts", labels="spans", words=len(tokenizer), positions=self.seq_len)
        return Described(loader, facts)

    def _questions(self) -> "list[_Asked]":
        try:
            articles = _File.model_validate_json(Path(self.file).read_bytes()).data
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            hint = "expected the official JSON of SQuAD 1.1"
            raise ArgumentError("file", f"{self.file}: {place or 'all of it'}: {first['msg']}; {hint}") from error
        paragraphs = [paragraph for article in articles for paragraph in article.paragraphs]
        asked = [(paragraph.context, question) for paragraph in paragraphs for question in paragraph.qas]
        questions = [_Asked(number, question, context) for number, (context, question) in enumerate(asked)]
        if not questions:
            raise ArgumentError("file", f"{self.file} holds no questions")
        for _, question, _ in questions:
            if question.is_impossible or not question.answers:
                hint = "expected a file of SQuAD 1.1, where all have one, and not of 2.0"
                raise ArgumentError("file", f"{self.file}: the question {question.id} has no answer; {hint}")
        return questions

    def _windows(self, questions: "list[_Asked]", tokenizer: Tokenizer, train: bool) -> Batch:
        # Some begin with so many spaces that, beside them, their paragraph has no room (of RoBERTa's tokens).
        texts = [each.question.question.strip() for each in questions]
        special = tokenizer.num_special_tokens_to_add(pair=True)
        for each, ids in zip(questions, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            if (room := self.seq_len - special - len(ids)) <= self.stride:
                what = f"leaves {max(room, 0)} tokens beside the question {each.question.id} of {self.file}"
                raise ArgumentError(
                    "seq_len", f"{self.seq_len} {what}; expected more of them than stride, {self.stride}"
                )
        found = tokenizer(
            texts,
            [each.context for each in questions],
            truncation="only_second",
            max_length=self.seq_len,
            stride=self.stride,
            padding="max_length",
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        owner, offsets = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping").int()
        context = torch.tensor([[part == 1 for part in found.sequence_ids(row)] for row in range(len(owner))])
        offsets = offsets.masked_fill(~context[..., None], -1)
        if not train:
            numbers = torch.tensor([each.number for each in questions])
            return {**found, "question": numbers[owner], "offsets": offsets}
        begin, end = torch.tensor([_place(each, self.file) for each in questions])[owner].unbind(1)
        nothing = (found["input_ids"] == tokenizer.cls_token_id).int().argmax(1)
        first, last = _span(offsets, begin, end, nothing)
        return {**found, "start_positions": first, "end_positions": last}


class _Answer(BaseModel):
    text: str = Field(min_length=1)
    answer_start: int


class _Question(BaseModel):
    id: str
    question: str
    answers: list[_Answer]
    is_impossible: bool = False


class _Paragraph(BaseModel):
    context: str
    qas: list[_Question]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _File(BaseModel):
    data: list[_Article]


class _Asked(NamedTuple):
    number: int
    question: _Question
    context: str


def _place(asked: _Asked, file: str) -> tuple[int, int]:
    """Where in the paragraph the first of the answers begins and ends; some are said to stand a little beside it."""
    answer = asked.question.answers[0]
    for start in (answer.answer_start + shift for shift in (0, -1, 1, -2, 2)):
        end = start + len(answer.text)
        if start >= 0 and asked.context[start:end] == answer.text:
            return start, end
    what = f"the question {asked.question.id} has the answer {show(answer.text)}"
    raise ArgumentError("file", f"{file}: {what}, which does not stand at {answer.answer_start}, its answer_start")


def _span(offsets: Tensor, begin: Tensor, end: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last token of what goes from `begin` to `end` in the text, (N,), or `nothing` outside of it.

    Args:
        offsets: where each token begins and ends, (N, T, 2), -1 for those that are of no context.
    """
    inside = offsets[..., 0] >= 0
    before = inside & (offsets[..., 0] <= begin[:, None])
    behind = inside & (offsets[..., 1] >= end[:, None])
    held = before.any(1) & behind.any(1)
    first = offsets.shape[1] - 1 - before.flip(1).int().argmax(1)
    return first.where(held, nothing), behind.int().argmax(1).where(held, nothing)


def _texts(questions: list[_Asked], number: Tensor, offsets: Tensor) -> Batch:
    """What metrics need of each window, and where its tokens stand in its own text."""
    inside = offsets[..., 0] >= 0
    begin = offsets[..., 0].where(inside, torch.iinfo(torch.int32).max).amin(1)
    windows = zip(number.tolist(), begin.tolist(), offsets[..., 1].amax(1).tolist(), strict=True)
    return {
        "question": number,
        "context": as_codes([questions[row].context[start:end]] for row, start, end in windows),
        "offsets": (offsets - begin[:, None, None]).masked_fill(~inside[..., None], -1),
        "answers": as_codes([answer.text for answer in questions[row].question.answers] for row in number.tolist()),
    }
