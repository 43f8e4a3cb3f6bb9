"""Texts as rows of a tensor, so that they go with their batch to any rank and device."""

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BETWEEN = -1  # no character's


def as_codes(rows: Iterable[Sequence[str]]) -> Tensor:
    """The code points of each row's texts, (N, longest), int32, with -1 between them and behind the last."""
    codes = [[code for text in texts for code in (*map(ord, text), BETWEEN)] for texts in rows]
    return pad_sequence([torch.tensor(row, dtype=torch.int32) for row in codes], True, BETWEEN)


def texts_in(row: Tensor) -> list[str]:
    """The texts of such a row, less those that are empty."""
    found = groupby(row.tolist(), lambda code: code == BETWEEN)
    return ["".join(map(chr, codes)) for between, codes in found if not between]
