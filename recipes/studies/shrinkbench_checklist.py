"""The checklist of Blalock et al. (arXiv:2003.03033) for papers on pruning, as far as a table tells its points."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..run.results import aligned
from .shrinkbench_table import MAGNITUDE, RANDOM, initials_of

POINTS = (2, 4, 8, 16, 32)  # of operation
NEAR = 2**0.5  # by this factor a ratio may differ from a point
TOYS = re.compile(r"mnist|digits|(?<![a-z])lenet|(?<![a-z])toy", re.IGNORECASE)  # no MobileNet, no GoogLeNet
LARGE = 1e9  # multiply-adds for an input; ResNet-18 on ImageNet has 1.8e9
SEEDS = 3
BASELINES = (RANDOM, f"global {MAGNITUDE}", f"layerwise {MAGNITUDE}")

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the checklist; `holds` is None where the table does not tell, and `why` says what it has."""

    point: str
    holds: bool | None
    why: str

    @property
    def told(self) -> str:
        """In words."""
        return {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]


def checklist(lines: Lines) -> list[Point]:
    """Which points the means of a table keep; `lines` as `shrinkbench_table.means` gives them."""
    pairs = {line["pair"]: f"{line['pair']} {line['model']} {line['data']}" for line in lines}
    toys = [pair for pair, names in pairs.items() if TOYS.search(names)]
    sizes = {line["pair"]: line["multiply_adds"] for line in lines}
    largest = max((size for size in sizes.values() if math.isfinite(size)), default=math.nan)
    return [
        Point(point="three pairs of model and data", holds=len(pairs) >= 3, why=f"{len(pairs)}: {', '.join(pairs)}"),
        Point(point="no toys among them", holds=not toys, why=f"by name: {', '.join(toys) or 'none'}"),
        Point(
            point="large ones among them",
            holds=None if math.isnan(largest) else largest >= LARGE,
            why=f"at most {largest:.2g} multiply-adds, {LARGE:.0e} are large; how modern a model is, no table tells",
        ),
        _in_each(lines, f"compression ratios {', '.join(map(str, POINTS))}", _lacking_ratios),
        _in_each(lines, "random, and global and layerwise magnitude", _lacking_baselines),
        _known(lines, "top-1 and top-5", ("top1", "top5")),
        _known(lines, "compression and theoretical speed-up, counted", ("compression", "speedup")),
        _known(lines, "the change beside the accuracy", ("change1",)),
        _seeds(lines),
        _same_initial(lines),
    ]


def told(lines: Lines, of: str) -> str:
    """The checklist as text."""
    rows = [("point", "of this table", "")]
    rows += [(point.point, point.told, point.why) for point in checklist(lines)]
    return f"the paper's checklist, of {of}\n{aligned(rows, left=rows[0])}"


def _in_each(lines: Lines, point: str, lacking: Any) -> Point:
    """A point that must hold of each initial model."""
    for (pair, initial), own in initials_of(lines).items():
        if lack := lacking(own):
            return Point(point=point, holds=False, why=f"{_name(pair, initial)} lacks {lack}")
    return Point(point=point, holds=True, why="for each initial model")


def _lacking_ratios(lines: Lines) -> str:
    for method in dict.fromkeys(line["method"] for line in lines):
        there = [line["asked"] for line in lines if line["method"] == method]
        if lack := [f"{point}" for point in POINTS if not any(point / NEAR < x <= point * NEAR for x in there)]:
            return f"{', '.join(lack)} by {method}"
    return ""


def _lacking_baselines(lines: Lines) -> str:
    there = {line["baseline"] for line in lines}
    return ", ".join(name for name in BASELINES if name not in there)


def _known(lines: Lines, point: str, names: Sequence[str]) -> Point:
    lack = [name for name in names if any(math.isnan(line[name]) for line in lines)]
    return Point(point=point, holds=not lack, why=f"{', '.join(lack)} not of all" if lack else "of all")


def _seeds(lines: Lines) -> Point:
    least = min(line["seeds"] for line in lines)
    why = f"{least} at least, where {SEEDS} are asked for"
    return Point(point="several seeds, means with deviations", holds=least >= SEEDS, why=why)


def _same_initial(lines: Lines) -> Point:
    """Of somebody else's runs the accuracy of what was pruned is all that there is to tell it by."""
    point, groups = "the same initial model for all methods of a pair", initials_of(lines)
    if unknown := [pair for (pair, _), own in groups.items() if math.isnan(own[0]["dense1"])]:
        return Point(point=point, holds=None, why=f"what was pruned in {unknown[0]} is not known")
    for (pair, initial), own in groups.items():
        every = {line["method"] for line in lines if line["pair"] == pair}
        if lack := every - {line["method"] for line in own}:
            return Point(point=point, holds=False, why=f"{_name(pair, initial)} lacks {', '.join(sorted(lack))}")
    return Point(point=point, holds=True, why=f"{len(groups)} initial models of {len({p for p, _ in groups})} pairs")


def _name(pair: str, initial: str) -> str:
    return f"{pair}, {initial}" if initial else pair
