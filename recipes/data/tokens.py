"""Tokens of texts: what the sources of texts share.

Tokenizers are those of Hugging Face; a batch is what its models take: `input_ids`, `attention_mask`, `labels`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.errors import ArgumentError
from .checks import check_hub_name, hub_or_cache
from .facts import IGNORED, Facts
from .loaders import AnyDevice, to_device

Batch = dict[str, Tensor]
Tokenizer = Any  # of transformers, whose annotations do not fit its own use


def tokenizer_of(name: str, masks: bool = True) -> Tokenizer:
    """Returns that of a folder or of the hub; ArgumentError at `tokenizer` where it lacks what is asked of it."""
    from transformers import AutoTokenizer

    with blaming("tokenizer"), hub_or_cache(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    for token in ("cls", "sep", "mask", "pad") if masks else ("pad",):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ArgumentError("tokenizer", f"{name} has no {token} token; expected one of BERT's kind")
    return tokenizer


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Turns what is wrong with a folder, or a name on the hub, into an error of that argument."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ArgumentError:
        raise
    except (DatasetsError, StopIteration) as error:  # a broken file, an empty one
        raise ArgumentError(key, f"cannot be read: {error.__cause__ or repr(error)}") from error
    except ValueError as error:
        of_split = str(error).startswith("Unknown split")
        raise ArgumentError("split" if of_split else key, str(error)) from error
    except OSError as error:
        raise ArgumentError(key, str(error)) from error


class MaskTokens:
    """BERT's masking (Devlin et al. 2018): of the chosen tokens 80 % are masked, 10 % replaced, 10 % left alone."""

    def __init__(self, tokenizer: Tokenizer, probability: float, device: AnyDevice = "cpu"):
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.vocab_size, self.probability = len(tokenizer), probability
        self.special_ids = to_device(torch.tensor(tokenizer.all_special_ids), device)

    def __call__(self, samples: Sequence[Tensor], noise: Tensor) -> Batch:
        """One number of the noise chooses the token and its fate, the other what replaces it.

        Args:
            samples: token ids (N, T), alone.
            noise: (N, T, 2), uniform in [0, 1).
        """
        (input_ids,) = samples
        fate, replacement = noise.unbind(-1)
        chosen = (fate < self.probability) & ~torch.isin(input_ids, self.special_ids)
        masked = chosen & (fate < 0.8 * self.probability)
        replaced = chosen & ~masked & (fate < 0.9 * self.probability)
        # The product may round up to the vocabulary's size.
        random_ids = (replacement * self.vocab_size).long().clamp(max=self.vocab_size - 1)
        return {
            "input_ids": random_ids.where(replaced, input_ids.masked_fill(masked, self.mask_id)),
            "attention_mask": (input_ids != self.pad_id).long(),
            "labels": input_ids.masked_fill(~chosen, IGNORED),
        }


def packed(texts: Sequence[str], tokenizer: Tokenizer, seq_len: int) -> Tensor:
    """The texts one after the other, cut into samples of [CLS], `seq_len - 2` tokens and [SEP]."""
    documents = tokenizer([text + tokenizer.sep_token for text in texts], add_special_tokens=False).input_ids
    stream, size = torch.tensor(list(chain.from_iterable(documents)), dtype=torch.long), seq_len - 2
    pieces = stream[: len(stream) // size * size].view(-1, size)
    return F.pad(F.pad(pieces, (1, 0), value=tokenizer.cls_token_id), (0, 1), value=tokenizer.sep_token_id)


def truncated(texts: Sequence[Sequence[str]], tokenizer: Tokenizer, seq_len: int) -> Batch:
    """Each text, or pair of texts, cut or padded to `seq_len` tokens."""
    return dict(tokenizer(*texts, truncation=True, padding="max_length", max_length=seq_len, return_tensors="pt"))


def facts_of(
    tokenizer: Tokenizer, seq_len: int, labels: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> Facts:
    """Of texts with labels of their own, or else with one at each masked token."""
    text = Facts(inputs="texts", labels="tokens", words=len(tokenizer), positions=seq_len)
    if labels is None:
        return text
    if isinstance(labels[0], float):
        return replace(text, labels="numbers")
    classes = len(names) if names else int(max(labels)) + 1
    return replace(text, labels="classes", classes=classes, names=tuple(names) if names else None)


def check_text(seq_len: int, mask_probability: float = 0.15, *names: str) -> None:
    """Raise for values out of range, missing libraries, and names that can only be local folders but are none."""
    if seq_len < 3:
        raise ValueError(f"seq_len must be at least 3, not {seq_len}")
    if not 0 < mask_probability < 1:
        raise ValueError(f"mask_probability must be between 0 and 1, not {mask_probability}")
    if not all(find_spec(package) for package in ("datasets", "tokenizers", "transformers")):
        raise ImportError("text needs datasets, tokenizers and transformers: pip install 'accelerando[nlp]'")
    for name in names:
        check_hub_name(name)
