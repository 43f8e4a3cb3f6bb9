"""Where a run starts other than at its own initial weights: at a moment of another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .arguments import check_arguments
from .errors import REFUSALS, Source, show


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights and buffers of another run at a moment, and what else of it goes on.

    Args:
        run: the folder of the other run, or its run_name in `folder`.
        at: a moment of which that run's algorithm Snapshots has kept the weights; by default its end, as its last
            checkpoint has it, from which a run starts as from pretrained weights.
        optimizer: `fresh`; or `keep` its state, for which the snapshot must be full. Then the algorithms' state is
            kept too, and with the same `seed` the random generators go on.
        schedule: whether `max_duration` and the learning rate's schedule are counted from the other run's beginning
            (`continue`, by default from a moment) or from here (`restart`, by default from the end).
        data: whether the other run's next batch comes next (`continue`, by default from a moment, with the same data
            in batches of the same size), or the first one of the first epoch.
    """

    run: str
    at: str | None = None
    optimizer: Literal["fresh", "keep"] = "fresh"
    schedule: Literal["continue", "restart"] | None = None
    data: Literal["continue", "restart"] | None = None

    @property
    def continues_schedule(self) -> bool:
        return self.schedule == "continue" or (self.schedule is None and self.at is not None)


def check_start(source: Source, given: Any, config: Mapping[str, Any]) -> Start | None:
    """The start that a config has under `start`, or an error at its key; the other run may not be there yet."""
    from composer.core import Time, TimeUnit

    from accelerando.algorithms.progress import moment

    if given is None or given is False:
        return None
    if not isinstance(given, dict):
        hint = "expected a mapping, such as {run: runs/NAME, at: 500ba}"
        raise source.error("start", f"{show(given)} given; {hint}")
    with source.blame("start", *REFUSALS):
        start = Start(**check_arguments(Start, given))
    if not start.run:
        raise source.error("start.run", "'' given; expected the folder of a run, or its run_name")
    if config.get("load_path"):
        raise source.error("start", "given beside load_path, from which the run would start too; leave out one of them")
    if (config.get("parallelism_config") or {}).get("fsdp") is not None:
        raise source.error("start", "given beside FSDP, whose weights are split when they would be loaded; use DDP")
    if config.get("spin_dataloaders") is False:
        hint = "without it Composer cannot go to a place in the data; leave it out"
        raise source.error("spin_dataloaders", f"false given beside start; {hint}")
    if start.at is None:
        return start
    if (time := moment(start.at)) is None:
        raise source.error("start.at", f"{show(start.at)} given; expected a moment, such as 500ba or 1ep")
    with source.blame("max_duration", *REFUSALS):
        length = Time.from_input(config["max_duration"], TimeUnit.EPOCH)
    if start.continues_schedule and time.unit == length.unit.value and time.value >= length.value:
        raise source.error("start.at", after_the_end(start.at, config["max_duration"]))
    return start


def after_the_end(at: str, length: Any) -> str:
    """What is wrong with a start at a moment after which nothing is left to train."""
    hint = "expected an earlier moment, a longer max_duration, or schedule: restart"
    return f"{at} given, but the schedule, which goes on from there, ends at max_duration, {length}; {hint}"
