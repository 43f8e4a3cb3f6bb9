"""What an arm of `interpolation` takes from others: the weights with which it begins, its options by part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from ..config.arguments import check_arguments
from ..config.errors import REFUSALS, Source, show
from ..config.lookup import nearest
from .pruning import number

if TYPE_CHECKING:
    from torch.nn import Module

FROM, BY = "from", "by_sensitivity"
FINEST = ("layer", "block", "named")  # kinds of parts
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where an arm's training begins, other than at initial weights.

    Args:
        end_of: the name of an origin, or of an arm before this one, at whose end's weights and buffers.
        top_of: the name of an arm before this one: where its training loss is highest on the line from its beginning
            to its end.
        reset: patterns of the names of what is put back to other initial weights, such as [layer1.*].
    """

    end_of: str | None = None
    top_of: str | None = None
    reset: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BySensitivity:
    """An arm that is trained as another one, but for other options of its optimizer for half of the layers, or both.

    A layer is the more sensitive, the farther the training loss rises when it alone is put back, at the end of the
    other arm's run of the same seed, to its beginning. Without `layers`, parts are the blocks, or those that are named.

    Args:
        of: the name of a detailed arm before this one.
        sensitive: options of the more sensitive half, such as {lr: 0.01}; of an odd number the middle one is in it.
        insensitive: options of the other half.
    """

    of: str
    sensitive: dict[str, Any] = field(default_factory=dict)
    insensitive: dict[str, Any] = field(default_factory=dict)

    def groups(
        self, rises: Mapping[str, float], parameters: Mapping[str, Sequence[str]]
    ) -> dict[str, tuple[str, dict[str, Any]]]:
        """By `sensitive` and `insensitive` the pattern of the names of its parameters, and their options.

        `rises` says by part how far the loss rises, `parameters` how those that are trained are called.
        """
        more, less = halves({part: rises[part] for part in parameters})
        told = {"sensitive": (more, self.sensitive), "insensitive": (less, self.insensitive)}
        return {
            half: ("|".join(name for part in parts for name in parameters[part]), options)
            for half, (parts, options) in told.items()
            if options and parts
        }


def halves(rises: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The more sensitive half of the parts, and the others; a rise that is not finite is the highest."""
    order = sorted(rises, key=lambda part: -rises[part] if math.isfinite(rises[part]) else -math.inf)
    middle = -(-len(order) // 2)
    return order[:middle], order[middle:]


def finest(kinds: Collection[str]) -> str:
    """Of the kinds of parts, such as "layer, block", that of the smallest ones; "" where there are none."""
    return next((kind for kind in FINEST if any(kind in told.split(", ") for told in kinds)), "")


def parameters_of(model: Module, parts: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """By part, of those of the finest kind, the names of its parameters; `parts` are kinds and names of tensors.

    Raises ValueError where these cannot be halved: for a single part, and for those that share a parameter.
    """
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kind = finest([kinds for kinds, _ in parts.values()])
    own = {part: tensors for part, (kinds, tensors) in parts.items() if kind in kinds.split(", ")}
    told = {part: [name for name in tensors if name in trained] for part, tensors in own.items()}
    found = {part: names for part, names in told.items() if names}
    if len(found) < 2:
        raise ValueError(f"its parts with weights are {', '.join(found) or 'none'}; expected two or more, to halve")
    if shared := [name for name, n in Counter(chain.from_iterable(found.values())).items() if n > 1]:
        raise ValueError(f"several of its parts have {shared[0]}; expected parts that share none, to halve")
    return found


def rises_of(paths: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By part, of those of the finest kind, how far the training loss rises where it is put back to its beginning."""
    kind = finest([path["kind"] for path in paths])
    curves = {
        path["part"]: path["curves"]["train"]["interpolate"]["loss"]
        for path in paths
        if kind in path["kind"].split(", ")
    }
    return {part: number(curve[0]) - number(curve[-1]) for part, curve in curves.items()}


def beginning(
    source: Source, arms: Mapping[str, dict[str, Any]], origins: Collection[str], arm: str
) -> Beginning | None:
    """Takes the arm's `from` out of its changes."""
    given, key, error = arms[arm].pop(FROM, None), f"arms.{arm}.{FROM}", source.error
    if arm in origins:
        raise error(f"arms.{arm}", "an origin has that name too; choose another one")
    if given is None:
        return None
    begin = _made(source, key, Beginning, given, "{end_of: NAME}")
    if (begin.end_of is None) == (begin.top_of is None):
        raise error(key, f"{show(given)} given; expected end_of or top_of, one of them")
    if begin.top_of is not None and begin.reset:
        raise error(f"{key}.reset", "given beside top_of; expected end_of, of whose weights the rest is kept")
    earlier = _before(arms, arm)
    known = earlier if begin.end_of is None else [*origins, *earlier]
    if (name := begin.end_of or begin.top_of or "") not in known:
        what = "an arm before it" if begin.end_of is None else "an origin, or an arm before it"
        which = "end_of" if begin.top_of is None else "top_of"
        raise error(f"{key}.{which}", f"{show(name)} given, but it is not {what}{nearest(name, known)}")
    if "start" in arms[arm]:
        raise error(f"arms.{arm}.start", f"given beside {FROM}, where it begins too; leave out one of them")
    return begin


def by_sensitivity(
    source: Source, arms: Mapping[str, dict[str, Any]], measured: Collection[str], arm: str
) -> BySensitivity | None:
    """Takes the arm's `by_sensitivity` out of its changes; `measured` are the arms whose parts are."""
    given, key = arms[arm].pop(BY, None), f"arms.{arm}.{BY}"
    if given is None:
        return None
    by = _made(source, key, BySensitivity, given, "{of: NAME, insensitive: {lr: 0.01}}")
    known = [name for name in _before(arms, arm) if name in measured]
    if by.of not in known:
        what = "an arm before it that is detailed, of parts, and has options of its own"
        raise source.error(f"{key}.of", f"{show(by.of)} given, but it is not {what}{nearest(by.of, known)}")
    if not by.sensitive and not by.insensitive:
        raise source.error(key, "no options given; expected sensitive or insensitive, such as {lr: 0.01}, or both")
    for name in arms[arm]:
        raise source.error(f"arms.{arm}.{name}", f"given beside {BY}, by which all else is as in {by.of}; leave it out")
    return by


def _made(source: Source, key: str, kind: type[T], given: Any, example: str) -> T:
    if not isinstance(given, dict):
        raise source.error(key, f"{show(given)} given; expected a mapping, such as {example}")
    with source.blame(key, *REFUSALS):
        return kind(**check_arguments(kind, given))


def _before(arms: Mapping[str, Any], arm: str) -> list[str]:
    return [*arms][: [*arms].index(arm)]
