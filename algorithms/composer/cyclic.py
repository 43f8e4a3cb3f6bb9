"""The multiplicative cyclic learning rate as a scheduler of Composer's."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from composer.core import State, Time, TimeUnit, ensure_time
from composer.optim import ComposerScheduler

from ..cyclic import Cycles, Number, check_shape
from ..shown import Shown
from ..validation import check
from .host import UNITS


class MultiplicativeCyclicScheduler(Shown, ComposerScheduler):
    """One linear warmup, then cosine cycles of growing length; for `Trainer(schedulers=...)`.

    Args:
        t_warmup: how long the learning rate rises; may be zero.
        t_period: length of the first cycle, above zero and in the unit of `t_warmup`: ep, ba, sp, tok or dur.
        growth: factor from one cycle's length to the next one's, finite and at least 1; need not be whole.
        alpha_f: multiplier at the end of each cycle, in [0, 1).

    The multiplier follows every update, whatever the unit: update `k`, counted from 0, gets that of `k` updates. In
    samples and tokens, which Composer counts after it asks for the next learning rate, it gets that of `k - 1`. Hence
    `step_schedulers_every_batch=False`, by which a whole epoch would be trained at rate 0, is a ValueError.

    Raises ValueError when training starts if `max_duration` is not the end of a cycle; a run that stops at a high
    learning rate has no meaning as a point on the curve. It is not known beforehand, and not checked, where one of both
    counts in samples or tokens and the other does not.
    """

    def __init__(self, t_warmup: str | Time, t_period: str | Time, growth: float = 2.0, alpha_f: float = 0.0):
        warmup, period = _time("t_warmup", t_warmup), _time("t_period", t_period)
        name = "MultiplicativeCyclicScheduler"
        check(name, "t_warmup", 0 <= warmup.value < math.inf, "finite and not below 0", t_warmup)
        check(name, "t_period", 0 < period.value < math.inf, "finite and above 0", t_period)
        in_one_unit = warmup.value == 0 or warmup.unit == period.unit
        check(name, "t_warmup", in_one_unit, f"in the unit of t_period={t_period}", t_warmup)
        check_shape(name, growth, alpha_f)
        self.t_warmup, self.t_period, self.growth, self.alpha_f = warmup, period, growth, alpha_f
        self.unit = period.unit
        self.cycles = Cycles.of(warmup.value, period.value, growth)
        self.stretch: Fraction | None = None  # the Trainer's scale_schedule_ratio, once it has asked

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        # A time relative to max_duration is stretched with it.
        self.stretch = Fraction(1) if self.unit == TimeUnit.DURATION else Fraction(str(ssr))
        # Composer asks for the next update's rate before it counts the last one; torch's scheduler has counted it.
        updates = state.timestamp.batch.value
        late = any(getattr(scheduler, "last_epoch", 0) == updates + 1 for scheduler in state.schedulers)
        # When first asked, the Trainer has not stretched max_duration yet, and fit() may yet set it, and the data.
        if updates == 0 and state.max_duration is not None and (late or ssr == 1):
            self.check_duration(state.max_duration, state.dataloader_len)
        if not late:
            self._refuse_steps_by_epoch(state)
        if updates == 0 and not late:
            return self.cycles.multiplier(0, self.alpha_f)
        t = self._elapsed(state, int(late)) / self.stretch
        return self.cycles.multiplier(t, self.alpha_f)

    def _refuse_steps_by_epoch(self, state: State) -> None:
        """The Trainer tells nobody how often it steps its schedulers; the second update shows it."""
        seen: list[tuple[int, list[int]]] = []  # how many updates there were, and how many steps of each scheduler

        def look(*arguments: Any) -> None:
            if len(seen) > 1:
                return
            now = state.timestamp.batch.value, [getattr(scheduler, "last_epoch", 0) for scheduler in state.schedulers]
            if not seen or now[0] > seen[0][0]:
                seen.append(now)
            if len(seen) > 1 and seen[0][1] == seen[1][1]:
                hint = "the Trainer's step_schedulers_every_batch must not be False"
                raise ValueError(f"MultiplicativeCyclicScheduler follows every update, not every epoch: {hint}.")

        state.optimizers[0].register_step_pre_hook(look)

    def cycle_ends(self) -> Iterator[Fraction]:
        """When each cycle ends and the next one starts, endlessly and exactly, in the unit of `t_period`."""
        return self.cycles.ends()

    def cycles_ended(self, state: State, length: Time | None = None) -> int:
        """How many cycles the updates made so far have completed; `length` is the run's, by default `max_duration`."""
        return self.cycles.ended(self._elapsed(state, length=length) / (self.stretch or 1))

    def cycles_within(self, max_duration: Time, batches_per_epoch: int | Time | None = None) -> int | None:
        """How many cycles a run of that length has; None where the data decide."""
        cycles = self._in_units_of(max_duration, int(batches_per_epoch or 0))
        updates = int(batches_per_epoch or 1) if max_duration.unit == TimeUnit.EPOCH else 1
        return cycles and cycles.within(max_duration.value, updates)

    def check_duration(self, max_duration: str | Time, batches_per_epoch: int | Time | None = None) -> None:
        """Raise ValueError unless a run of `max_duration` ends with a cycle; the message says which one would."""
        duration, n = ensure_time(max_duration, TimeUnit.EPOCH), int(batches_per_epoch or 0)
        updates = (n or 1) if duration.unit == TimeUnit.EPOCH else 1
        cycles = self._in_units_of(duration, n)
        if cycles is None or (misfit := cycles.misfit(duration.value, updates)) is None:
            return
        wrong, ends = misfit
        given = f"max_duration={duration.to_timestring()}"
        if self.stretch not in (None, 1):
            given += f", stretched by {float(self.stretch):g},"
        if self.unit == TimeUnit.DURATION:
            hint = "choose t_warmup, t_period and growth such that the cycles add up to 1dur"
        else:
            hint = "use " + " or ".join(_duration(end, duration.unit, n) for end in ends)
        raise ValueError(f"MultiplicativeCyclicScheduler: {given} {wrong}; {hint}.")

    def _elapsed(self, state: State, more: int = 0, length: Time | None = None) -> Fraction:
        """The time trained plus `more` updates, in the scheduler's unit, parts of epochs included; exact."""
        now, whole = state.timestamp, (length or state.max_duration) if self.unit == TimeUnit.DURATION else None
        unit = self.unit if whole is None else whole.unit
        if unit == TimeUnit.EPOCH:
            if state.dataloader_len is None:
                raise ValueError(
                    "MultiplicativeCyclicScheduler cannot count parts of epochs, because the dataloader has no length; "
                    "give max_duration, t_warmup and t_period in ba, sp or tok."
                )
            t = now.epoch.value + Fraction(now.batch_in_epoch.value + more, int(state.dataloader_len))
        else:
            t = Fraction(now.get(unit).value + (more if unit == TimeUnit.BATCH else 0))
        return t if whole is None else t / whole.value

    def _in_units_of(self, duration: Time, batches_per_epoch: int) -> Cycles | None:
        """The cycles, stretched, in the unit of `duration`; None where the data decide."""
        per_unit: Number
        if self.unit == TimeUnit.DURATION:
            per_unit = duration.value
        elif self.unit == duration.unit:
            per_unit = 1
        elif batches_per_epoch and (self.unit, duration.unit) == (TimeUnit.EPOCH, TimeUnit.BATCH):
            per_unit = batches_per_epoch
        elif batches_per_epoch and (self.unit, duration.unit) == (TimeUnit.BATCH, TimeUnit.EPOCH):
            per_unit = Fraction(1, batches_per_epoch)
        else:
            return None
        return self.cycles.scaled(per_unit * (self.stretch or 1))


def _time(name: str, value: str | Time) -> Time:
    time = ensure_time(value, TimeUnit.EPOCH)
    known = ", ".join(unit.value for unit in UNITS)
    check("MultiplicativeCyclicScheduler", name, time.unit in UNITS, f"in one of {known}", str(value))
    return time


def _duration(end: Number, unit: TimeUnit, batches_per_epoch: int) -> str:
    """The least duration that Composer can express and that reaches `end`."""
    if unit == TimeUnit.EPOCH and end != math.ceil(end):
        # Composer's epochs are whole.
        return f"{math.ceil(end * batches_per_epoch)}ba" if batches_per_epoch else f"{float(end):g}ep, given in ba"
    return f"{math.ceil(end)}{unit.value}"
