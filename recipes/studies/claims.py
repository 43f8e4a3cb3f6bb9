"""What a paper says, what was measured here, and whether that bears it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .statistics import Difference

Verdict = Literal["holds", "fails", "cannot be told here"]
BY = "by the paired t test's interval of 95 %"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of a paper, and the verdict on it.

    Attributes:
        claim: the sentence.
        source: the paper and the place in it.
        measured: the value here, with its interval and the number of seeds.
        verdict: whether it holds.
        why: by which test; of what cannot be told, what is missing, and which difference so many seeds could show.
    """

    claim: str
    source: str
    measured: str
    verdict: Verdict
    why: str = ""


def judge(
    claim: str, source: str, found: Difference, *, precondition: str = "", at_least: float = 0.0, measured: str = ""
) -> Claim:
    """The verdict on a claim that something is greater by more than `at_least`: by the interval of the difference.

    `precondition` says what is not given here, if so; then nothing can be told. `measured` says more than the
    difference.
    """
    holds, fails = found.low > at_least, found.high <= at_least
    return _judged(claim, source, found, holds, fails, BY, precondition, measured)


def judge_equal(
    claim: str, source: str, found: Difference, *, within: float, precondition: str = "", measured: str = ""
) -> Claim:
    """The verdict on a claim that two things are the same: it holds if the interval lies within `within` of 0.

    That no difference is seen does not show that there is none; what shows it is an interval that is narrow enough.
    """
    holds, fails = -within < found.low and found.high < within, found.low > within or found.high < -within
    by = f"{BY}, which must lie within {within:.4f} of 0"
    return _judged(claim, source, found, holds, fails, by, precondition, measured)


def _judged(
    claim: str, source: str, found: Difference, holds: bool, fails: bool, by: str, precondition: str, measured: str
) -> Claim:
    told: tuple[Verdict, str]
    if precondition:
        told = "cannot be told here", precondition
    elif found.pairs < 2:
        told = "cannot be told here", "one seed has no interval; give two or more"
    elif holds or fails:
        told = "holds" if holds else "fails", f"all {found.pairs} seeds found the same" if found.is_alike else by
    else:
        told = "cannot be told here", f"{found.pairs} seeds could show a difference of {found.detectable:.4f}"
    return Claim(claim=claim, source=source, measured=measured or str(found), verdict=told[0], why=told[1])


def judge_each(
    claim: str,
    source: str,
    found: Mapping[str, Difference],
    *,
    precondition: str = "",
    at_least: float = 0.0,
    within: float | None = None,
) -> Claim:
    """The verdict on a claim of several differences: it holds if each interval says so, and fails if one denies it.

    With `within`, the claim is that none of them is there, as `judge_equal` has it.
    """
    each = {
        name: judge(claim, source, one, at_least=at_least)
        if within is None
        else judge_equal(claim, source, one, within=within)
        for name, one in found.items()
    }
    named: dict[Verdict, list[str]] = {}
    for name, one in each.items():
        named.setdefault(one.verdict, []).append(name)
    first, untold = next(iter(each.values()), None), named.get("cannot be told here", [])
    if precondition or first is None:
        told: tuple[Verdict, str] = "cannot be told here", precondition or "there is nothing to compare"
    elif denied := named.get("fails"):
        told = "fails", f"for {', '.join(denied)}, {each[denied[0]].why}, not corrected for their number"
    elif untold:
        told = "cannot be told here", f"for {'; for '.join(f'{name}, {each[name].why}' for name in untold)}"
    else:
        told = "holds", f"for each, {first.why}"
    measured = "; ".join(f"{name} {one}" for name, one in found.items()) or "nothing"
    return Claim(claim=claim, source=source, measured=measured, verdict=told[0], why=told[1])


def judge_some(claim: str, source: str, found: Mapping[str, Sequence[Difference]], *, precondition: str = "") -> Claim:
    """The verdict on a claim that somewhere all differences are above 0, by t tests at Bonferroni's level.

    It holds for the best of all places, if that tells; and fails if everywhere one of the differences denies it.
    """
    told = {name: own for name, own in found.items() if all(one.pairs > 1 for one in own)}
    of_place = {name: max(one.p_above for one in own) for name, own in told.items()}
    verdict: Verdict = "cannot be told here"
    if precondition or not told:
        hint = "one seed has no interval; give two or more" if found else "there is nothing to compare"
        return Claim(claim=claim, source=source, measured="nothing", verdict=verdict, why=precondition or hint)
    best = min(of_place, key=lambda name: of_place[name])
    p = min(1.0, len(told) * of_place[best])
    why = f"{best}, by t tests, p {p:.2g} for {len(told)} places"
    if p < 0.025:
        verdict = "holds"
    elif all(any(one.high <= 0 for one in own) for own in told.values()):
        verdict, why = "fails", f"at none of {len(told)} places"
    else:
        why = f"best {why}; {min(one.pairs for one in told[best])} seeds do not tell more"
    measured = f"{best} {', '.join(map(str, told[best]))}"
    return Claim(claim=claim, source=source, measured=measured, verdict=verdict, why=why)


def to_markdown(claims: Sequence[Claim]) -> str:
    """A table, a line each."""
    lines = ["| claim | source | measured here | verdict |", "|---|---|---|---|"]
    for claim in claims:
        verdict = f"**{claim.verdict}**" + (f": {claim.why}" if claim.why else "")
        cells = (claim.claim, claim.source, claim.measured, verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
