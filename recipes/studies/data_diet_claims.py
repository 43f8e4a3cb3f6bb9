"""What Paul et al., Lottery Tickets on a Data Diet (arXiv:2206.01278), say; verdicts.

Seeds are the clusters, but for the correlation, whose points are starts and steps. All is told of what makes tickets
better than the initial weights do: where iterative pruning does not fail from step 0, nothing here can be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..run.results import percent
from .claims import Claim, Verdict, judge_each
from .data_diet_cells import (
    CONNECTED,
    INITIAL,
    Ticket,
    by_place,
    correlation_of,
    fewer,
    match,
    needed_of,
    points_of,
    treatments_of,
)
from .paths import TREATMENTS
from .statistics import LEAST, difference, paired, spearman

SOURCE = "arXiv:2206.01278, abstract"
DIVERGED = "not counted: a run diverged"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """By what it is judged: the names of the start of all data, of the `random` subsets, and of the easy ones.

    Of each easy one, `easy` has the random subset of as many examples, or "". `tolerance` is in the metric's units;
    `density` is that of the tickets, and `choice` says on which data it is chosen what matches.
    """

    all_data: str
    random: Sequence[str]
    easy: Mapping[str, str]
    tolerance: float
    density: float
    choice: str


def claims_of(tickets: Sequence[Ticket], judged: Judged) -> Iterator[Claim]:
    """The verdicts, those on connected examples for each treatment of batch norm."""
    lacking = precondition(tickets, judged)
    yield _random_suffices(tickets, judged, lacking)
    yield _easy_needs_fewer(tickets, judged, lacking)
    for how in treatments_of(tickets):
        yield _connected_examples_predict(tickets, judged, how, lacking)


def precondition(tickets: Sequence[Ticket], judged: Judged) -> str:
    """What is not given: that iterative pruning fails from step 0; "" where it does, or why that is not so.

    It fails where its tickets do not match the dense network on average, or are worse, by a paired test, than those
    that begin at the last step on all data.
    """
    places = by_place(tickets)
    first = next((own for (start, _), own in places.items() if start == INITIAL), {})
    latest = max((own for (start, _), own in places.items() if start == judged.all_data), key=_step, default={})
    if not (first and latest):
        return "no ladder from step 0 and on all data is finished"
    if not math.isfinite(judged.tolerance) or not all(map(math.isfinite, _quality(first).values())):
        return "what matches is not known: one seed has no standard deviation, or a run diverged"
    better = paired(_quality(latest), _quality(first))
    if match([*first.values()]) and not better.low > 0:
        at, step = percent(judged.density), next(iter(latest.values())).step
        how = f"tickets with {at} match the dense network ({judged.choice})"
        return f"from step 0 iterative pruning does not fail here: {how}, and those from {step} are better by {better}"
    return ""


def _step(own: Mapping[int, Ticket]) -> int:
    return next(iter(own.values())).k


def _quality(own: Mapping[int, Ticket]) -> dict[int, float]:
    return {seed: ticket.quality for seed, ticket in own.items()}


def _gaps(own: Mapping[int, Ticket]) -> dict[int, float]:
    return {seed: ticket.gap for seed, ticket in own.items()}


def _random_suffices(tickets: Sequence[Ticket], judged: Judged, lacking: str) -> Claim:
    """At steps at which pre-training on all data gives better tickets than none, by more than the tolerance.

    Which these are is chosen by the gaps, on the data by which it is chosen what matches.
    """
    places, counted, left = by_place(tickets), {}, list[str]()
    first = _gaps(next((own for (start, _), own in places.items() if start == INITIAL), {}))
    for start in judged.random:
        for (of, step), own in places.items():
            if of != start or not (whole := _quality(places.get((judged.all_data, step), {}))):
                continue
            name, values = f"{start} at {step}", _quality(own)
            gain = paired(_gaps(places[judged.all_data, step]), first).mean
            if not all(map(math.isfinite, [*values.values(), *whole.values()])):
                left.append(f"{name} ({DIVERGED})")
            elif not gain > next(iter(own.values())).tolerance:
                why = f"all data gain {gain:+.4f} over step 0, {judged.choice}"
                left.append(f"{name} {paired(values, whole)} (not counted: {why})")
            elif values.keys() & whole.keys():
                counted[name] = paired(values, whole)
    hint = "" if judged.random else "there is no random subset among the starts"
    hint = hint or lacking or ("none of them counts" if left and not counted else "")
    claim = "For as many steps, a small random subset of the data does as well as all of them, but for the tolerance."
    found = judge_each(claim, SOURCE, counted, precondition=hint, within=judged.tolerance)
    better = [f"better than all data by {found.measured}"] if counted else []
    return replace(found, measured="; ".join([*better, *left]) or "nothing")


def _easy_needs_fewer(tickets: Sequence[Ticket], judged: Judged, lacking: str) -> Claim:
    """By sign alone: what is beyond the last step is known to be more than what is not, and no more."""
    signs, words, unknown = {}, list[str](), 0
    for easy, random in judged.easy.items():
        own = needed_of(tickets, easy)
        words.append(_words(easy, own))
        for other in filter(None, (judged.all_data, random)):
            theirs = needed_of(tickets, other)
            told = [fewer(own[seed], theirs[seed]) for seed in own if seed in theirs]
            unknown += told.count(None)
            signs[f"{easy} against {other}"] = difference([sign for sign in told if sign is not None])
    others = dict.fromkeys([judged.all_data, *judged.easy.values()]) if judged.easy else {}
    words += [_words(other, needed_of(tickets, other)) for other in filter(None, others)]
    told = {name: found for name, found in signs.items() if found.pairs}
    hint = "" if judged.easy else "there is no easy subset among the starts"
    never = "none of them matches at any step that was tried, or all do from step 0: which needs fewer is not known"
    hint = hint or lacking or ("" if told else never)
    claim = "Easy data need fewer steps until tickets match the dense network, than all data and as many random ones."
    found = judge_each(claim, SOURCE, told, precondition=hint)
    lone = [easy for easy, random in judged.easy.items() if not random]
    if found.verdict == "holds" and lone:
        why = f"there is no random subset of as many examples as {', '.join(lone)}"
        found = replace(found, verdict="cannot be told here", why=why)
    measured = [f"batches until tickets with {percent(judged.density)} match ({judged.choice}): {'; '.join(words)}"]
    measured += [f"1 where they are fewer, -1 where more: {found.measured}"] if told else []
    measured += [f"{unknown} pairs in which neither matches, or both do from step 0, do not count"] if unknown else []
    return replace(found, measured="; ".join(measured) if words else "nothing")


def _words(start: str, needed: Mapping[int, object]) -> str:
    return f"{start} {', '.join(map(str, needed.values())) or 'unknown'}"


def _connected_examples_predict(tickets: Sequence[Ticket], judged: Judged, how: str, lacking: str) -> Claim:
    """Over starts and steps, whose means over seeds are the points."""
    name = f"{CONNECTED}/{how}"
    found, words = correlation_of(tickets, name), list[str]()
    points = points_of(tickets, name)
    for step in dict.fromkeys(ticket.step for ticket, *_ in points if ticket.start != INITIAL):
        own = [(x, y) for ticket, x, y in points if ticket.step == step]
        if at := spearman(*zip(*own, strict=True)):
            words.append(f"at {step} alone {at.value:+.2f} ({at.low:+.2f} to {at.high:+.2f})")
    if left := len(by_place(ticket for ticket in tickets if name in ticket.measured)) - len(points):
        words.append(f"{left} starts and steps {DIVERGED}")
    verdict: Verdict = "cannot be told here"
    why = lacking or f"fewer than {LEAST} starts and steps are measured and differ; give more"
    if found and not lacking:
        why = "95 % by Fisher's transformation, which must lie above 0"
        verdict = "holds" if found.low > 0 else "fails" if found.high <= 0 else verdict
    named = f" ({TREATMENTS[how]})" if len(treatments_of(tickets)) > 1 else ""
    told = (
        f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f}, {found.points} starts and steps)" if found else ""
    )
    measured = f"Spearman's correlation {'; '.join([told, *words])}" if found else "nothing"
    claim = f"The more examples are linearly connected, the better are the tickets.{named}"
    return Claim(claim=claim, source=SOURCE, measured=measured, verdict=verdict, why=why)
