"""What each training of a study changes of the base run, in few words."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ..config.errors import show
from ..config.loading import merge
from .core import Train

WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}


def changes_of(nodes: Sequence[Train]) -> tuple[dict[str, str], str]:
    """Those of each, if known, with the keys first whose values fewest share, in lines; and those that all share."""
    changes = {node.name: [*_changes(node)] for node in nodes if node.changes is not None}
    counts = Counter(text for texts in changes.values() for text in texts)
    common = [text for text, count in counts.items() if count == len(changes) > 1]
    shared: dict[str, list[int]] = {}  # by key, how many have each of its values
    for text, count in counts.items():
        shared.setdefault(text.partition("=")[0], []).append(count)
    own = {}
    for name, texts in changes.items():
        rest = [text for text in texts if text not in common]
        rest.sort(key=lambda text: statistics.mean(shared[text.partition("=")[0]]))
        lines = textwrap.wrap(", ".join(rest), 70, max_lines=5, placeholder=" ...", **WHOLE_WORDS)
        own[name] = "\n".join(lines) or "nothing"
    return own, ", ".join(common)


def _changes(node: Train) -> Iterator[str]:
    """What a training changes of the base run, as one would write it on the command line."""
    changes, sets = (OmegaConf.create(dict(part)) for part in (node.changes or {}, node.sets))
    return _leaves("", OmegaConf.to_container(merge(changes, sets), resolve=False))


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and (value or not key):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), inner)
    else:
        yield f"{key}={show(float(f'{value:.6g}') if isinstance(value, float) else value)}"
