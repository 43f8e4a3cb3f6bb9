"""The texts of Python's own `help()`: for masked language modelling, and tasks of classification made from them.

What the tasks ask is known from the texts themselves, so that nobody has to label them.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache, lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, ClassVar, Literal, get_args

import torch
from composer.core import DataSpec

from accelerando.algorithms.generators import numpy_generator
from accelerando.algorithms.whole_files import written_whole

from ..config.errors import ArgumentError, show
from .checks import check_least
from .facts import Described
from .loaders import AnyDevice, TensorLoader, mapping_loader, to_device
from .splits import overlap, part_of
from .tokens import Batch, MaskTokens, Tokenizer, check_text, facts_of, packed, truncated

Task = Literal["topic", "hidden_word", "word_before"]

HELD_OUT = 8  # one in so many
TOPICS = 12  # the longest
BLOCK = 160  # words; passages of a topic are held out in whole blocks, so that none of them is half known
SHORT = ("the", "is", "of", "in", "to", "and", "for", "if")
LONG = (
    "object", "class", "value", "function", "method", "list", "type", "name",
    "statement", "expression", "exception", "instance", "string", "module", "attribute", "import",
)  # fmt: skip
ENDINGS = ("", "s", "es", "d", "ed")


@dataclass
class PythonDocs:
    """The reference texts of Python's own `help()`: half a million characters, for masked language modelling.

    They belong to the running Python, so figures differ a little from one version to the next. Every eighth topic is
    held out. The WordPiece vocabulary is trained on the others, once, and kept in ~/.cache/accelerando.
    """

    counts_tokens: ClassVar[bool] = True

    split: str = "train"  # or test, or a slice of the topics of either, such as train[:90%]
    seq_len: int = 128  # tokens per sample, [CLS] and [SEP] included
    mask_probability: float = 0.15  # share of the tokens that are to be predicted
    vocab_size: int = 4096  # tokens of the vocabulary

    def check(self) -> None:
        check_text(self.seq_len, self.mask_probability)
        _check_vocabulary(self.vocab_size)
        self.part()

    def part(self) -> tuple[str, range]:
        """The split and which of its topics."""
        return part_of(self.split, {split: len(_texts(split)) for split in ("train", "test")})

    def overlaps(self, other: Any) -> bool:
        return isinstance(other, PythonDocs) and overlap(self.part(), other.part())

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        tokenizer = python_docs_tokenizer(self.vocab_size)
        split, topics = self.part()
        texts = _texts(split)[topics.start : topics.stop]
        samples = to_device(packed(texts, tokenizer, self.seq_len), device)
        mask = MaskTokens(tokenizer, self.mask_probability, device)
        loader = TensorLoader([samples], batch_size, train, seed, mask, noise_shape=(self.seq_len, 2))
        return Described(loader, facts_of(tokenizer, self.seq_len))


@dataclass
class PythonDocsTask:
    """Passages of the texts of Python's own `help()`, each with a class.

    `topic`: which of the twelve longest topics a passage is of; every eighth block of 160 words is held out.
    `hidden_word`: a word of the passage is hidden wherever it stands there: which of sixteen, such as "class".
    `word_before`: which of eight short words, such as "the", came before the passage. Of these two every eighth topic
    is held out, as in `python_docs`, whose vocabulary they share.
    """

    counts_tokens: ClassVar[bool] = True

    task: Task  # what is asked
    split: str = "train"  # or test, or a slice of what either consists of, such as train[:90%]
    words: int = 16  # in a passage
    stride: int = 4  # words from the beginning of a passage to that of the next
    seq_len: int = 32  # tokens, to which passages are cut or padded
    vocab_size: int = 4096  # tokens of the vocabulary

    def check(self) -> None:
        check_text(self.seq_len)
        _check_vocabulary(self.vocab_size)
        check_least(2, words=self.words)
        check_least(1, stride=self.stride)
        if self.task not in TASKS:
            raise ArgumentError("task", f"{show(self.task)} given; expected one of {', '.join(TASKS)}")
        if self.words > BLOCK:
            raise ArgumentError("words", f"{self.words} given; expected {BLOCK} at most, the length of a block")
        self.part()

    def part(self) -> tuple[str, range]:
        """The split and which of the pieces of text of which it consists, topics or blocks."""
        return part_of(self.split, {split: len(_pieces(self.task, split)) for split in ("train", "test")})

    def overlaps(self, other: Any) -> bool:
        alike = isinstance(other, PythonDocsTask) and (self.task == "topic") == (other.task == "topic")
        return alike and overlap(self.part(), other.part())

    def examples(self) -> list[tuple[str, int]]:
        """The passages and their classes."""
        split, pieces = self.part()
        found = []
        for place, (text, label) in enumerate(_pieces(self.task, split)):
            if place in pieces:
                found += self._of_piece(text, label, place)
        return found

    def _of_piece(self, text: Sequence[str], label: int, place: int) -> Iterator[tuple[str, int]]:
        draw = numpy_generator(0, self.task, place)
        before = 1 if self.task == "word_before" else 0
        for start in range(before, len(text) - self.words + 1, self.stride):
            passage = text[start : start + self.words]
            if self.task == "topic":
                yield " ".join(passage), label
            elif self.task == "word_before":
                if (word := text[start - 1]) in SHORT:
                    yield " ".join(passage), SHORT.index(word)
            elif there := sorted({stem for word in passage if (stem := _stem(word))}):
                hidden = there[int(draw.integers(len(there)))]
                yield " ".join("[MASK]" if _stem(word) == hidden else word for word in passage), LONG.index(hidden)

    def build(self, batch_size: int, train: bool, seed: int, device: AnyDevice) -> DataSpec:
        batch, tokenizer = _encoded(type(self), *astuple(self))
        loader = mapping_loader(batch, batch_size, train, seed, device)
        return Described(loader, facts_of(tokenizer, self.seq_len, batch["labels"].tolist(), _names(self.task)))


TASKS = get_args(Task)


@lru_cache(maxsize=8)  # the runs of a study ask for the same passages
def _encoded(kind: type[PythonDocsTask], *fields: Any) -> tuple[Batch, Tokenizer]:
    """The passages of a source of that kind and these fields as tokens, with their labels."""
    source = kind(*fields)
    if not (examples := source.examples()):
        raise ArgumentError("split", f"{source.split} has no passage of {source.words} words for {source.task}")
    tokenizer, (texts, labels) = python_docs_tokenizer(source.vocab_size), zip(*examples, strict=True)
    return truncated([texts], tokenizer, source.seq_len) | {"labels": torch.tensor(labels)}, tokenizer


def _names(task: Task) -> list[str]:
    """Those of the classes."""
    return _longest() if task == "topic" else [*(SHORT if task == "word_before" else LONG)]


def _longest() -> list[str]:
    return sorted(sorted(topics), key=lambda name: -len(topics[name]))[:TOPICS]


def _texts(split: str) -> list[str]:
    return [topics[name] for i, name in enumerate(sorted(topics)) if (i % HELD_OUT == 0) == (split == "test")]


def _pieces(task: Task, split: str) -> list[tuple[list[str], int]]:
    """The words of each piece of text, and its topic's class where that is asked."""
    if task != "topic":
        return [(_words(text), 0) for text in _texts(split)]
    pieces = []
    for label, name in enumerate(_longest()):
        words = _words(topics[name])
        blocks = [words[start : start + BLOCK] for start in range(0, len(words), BLOCK)]
        held = [block % HELD_OUT == HELD_OUT - 1 for block in range(len(blocks))]
        pieces += [(block, label) for block, out in zip(blocks, held, strict=True) if out == (split == "test")]
    return pieces


def _words(text: str) -> list[str]:
    """In lower case, without the lines that underline headings."""
    return re.sub(r"[*=~-]{4,}", "", text).lower().split()


@cache
def _stem(word: str) -> str | None:
    """Which of the `LONG` words it is, if one, in plural and past too."""
    letters = re.sub(r"[^a-z]", "", word)
    return next((stem for stem in LONG if letters.removeprefix(stem) in ENDINGS and letters.startswith(stem)), None)


def _check_vocabulary(size: int) -> None:
    if size < 256:
        raise ValueError(f"vocab_size must be at least 256, not {size}")


def python_docs_tokenizer(vocab_size: int) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    texts = _texts("train")
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "accelerando"
    file = cache / f"python_docs-{digest}-{vocab_size}.txt"
    if not file.is_file():
        tokenizer = BertWordPieceTokenizer()
        # The trainer numbers characters in the order of a hash table, and breaks ties by number: unless they are given
        # numbers beforehand, the vocabulary differs from process to process.
        letters = sorted(set("".join(texts).lower()) - set(string.whitespace))
        reserved = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        tokenizer.train_from_iterator(texts, vocab_size, special_tokens=reserved, show_progress=False)
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
        with written_whole(file) as part:
            part.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(file))
