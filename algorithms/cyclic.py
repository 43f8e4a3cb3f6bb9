"""The multiplicative cyclic learning rate: one run passes through the ends of runs of many lengths.

Source: "Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates" (arXiv 2206.00832) and its code. At
the end of each cycle the learning rate has come down as at the end of a run of that length: with a warmup and a first
cycle of 8 epochs each, a run of 512 epochs passes through 16, 32, 64, 128 and 256. `TradeoffCurve` evaluates there.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import islice, takewhile
from typing import Any

from composer.core import State, Time, TimeUnit, ensure_time
from composer.optim import ComposerScheduler

from .host import UNITS
from .validation import check

Number = int | float | Fraction


def cyclic_multiplier(t: Number, W: Number, T_0: Number, growth: Number = 2, alpha_f: float = 0.0) -> float:
    """What the peak learning rate is multiplied by at time `t`, which counts in the unit of `W` and `T_0`.

    Linear from 0 to 1 for `t < W`. Then cycles `i` of length `T_i = T_0 * growth**i`, within which it falls as

        alpha_f + (1 - alpha_f) / 2 * (1 + cos(pi * T_cur / T_i)),    T_cur = t - W - sum of T_j for j < i.
    """
    if t < W:
        return float(t / W)
    T_cur, T_i = t - W, T_0
    if growth == 1:
        T_cur %= T_0
    while T_cur >= T_i:
        T_cur, T_i = T_cur - T_i, T_i * growth
    return alpha_f + (1 - alpha_f) / 2 * (1 + math.cos(math.pi * float(T_cur / T_i)))


def cycle_ends(W: Any, T_0: Any, growth: Any = 2) -> Iterator[Any]:
    """The times at which a cycle ends and the next one starts, `W + T_0`, `W + T_0 * (1 + growth)`, ..., endlessly."""
    end, T_i = W, T_0
    while True:
        end, T_i = end + T_i, T_i * growth
        yield end


class MultiplicativeCyclicScheduler(ComposerScheduler):
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
        require = partial(check, "MultiplicativeCyclicScheduler")
        require("t_warmup", 0 <= warmup.value < math.inf, "finite and not below 0", t_warmup)
        require("t_period", 0 < period.value < math.inf, "finite and above 0", t_period)
        in_one_unit = warmup.value == 0 or warmup.unit == period.unit
        require("t_warmup", in_one_unit, f"in the unit of t_period={t_period}", t_warmup)
        require("growth", 1 <= growth < math.inf, "finite and at least 1", growth)
        require("alpha_f", 0 <= alpha_f < 1, "in [0, 1)", alpha_f)
        self.t_warmup, self.t_period, self.growth, self.alpha_f = warmup, period, growth, alpha_f
        self.unit = period.unit
        # Decimals as they are written: ten times 0.1 is 1.
        self._W, self._T_0, self._growth = (Fraction(str(x)) for x in (warmup.value, period.value, growth))
        self._ends: list[Fraction] = []  # the first ones, for there may be thousands to look up at every batch
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
            return 0.0 if self._W else 1.0
        t = self._elapsed(state, int(late)) / self.stretch
        return cyclic_multiplier(t, self._W, self._T_0, self._growth, self.alpha_f)

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
        return cycle_ends(self._W, self._T_0, self._growth)

    def cycles_ended(self, state: State, length: Time | None = None) -> int:
        """How many cycles the updates made so far have completed; `length` is the run's, by default `max_duration`."""
        t = self._elapsed(state, length=length) / (self.stretch or 1)
        while not self._ends or self._ends[-1] <= t:
            self._ends = [*islice(self.cycle_ends(), 2 * len(self._ends) + 8)]
        return bisect_right(self._ends, t)

    def cycles_within(self, max_duration: Time, batches_per_epoch: int | Time | None = None) -> int | None:
        """How many cycles a run of that length has; None where the data decide."""
        if (per_unit := self._in_units_of(max_duration, int(batches_per_epoch or 0))) is None:
            return None
        ends = (end * per_unit * (self.stretch or 1) for end in self.cycle_ends())
        # The update that completes the last cycle may be the one that ends the run.
        updates = int(batches_per_epoch or 1) if max_duration.unit == TimeUnit.EPOCH else 1
        return sum(1 for _ in takewhile(lambda end: math.ceil(end * updates) <= max_duration.value * updates, ends))

    def check_duration(self, max_duration: str | Time, batches_per_epoch: int | Time | None = None) -> None:
        """Raise ValueError unless a run of `max_duration` ends with a cycle; the message says which one would."""
        duration, n = ensure_time(max_duration, TimeUnit.EPOCH), int(batches_per_epoch or 0)
        per_unit = self._in_units_of(duration, n)
        if per_unit is None:
            return
        ends = (end * per_unit * (self.stretch or 1) for end in self.cycle_ends())
        # A cycle ends with the update that completes it, so an end need not fall between two updates.
        updates = (n or 1) if duration.unit == TimeUnit.EPOCH else 1
        below, above = None, next(ends)
        while math.ceil(above * updates) < duration.value * updates:
            below, above = above, next(ends)
        if math.ceil(above * updates) == duration.value * updates:
            return
        given = f"max_duration={duration.to_timestring()}"
        if self.stretch not in (None, 1):
            given += f", stretched by {float(self.stretch):g},"
        if self.unit == TimeUnit.DURATION:
            hint = "choose t_warmup, t_period and growth such that the cycles add up to 1dur"
        else:
            hint = "use " + " or ".join(_duration(end, duration.unit, n) for end in (below, above) if end)
        wrong = f"{given} ends inside a cycle, at a high learning rate" if below else f"{given} is shorter than a cycle"
        raise ValueError(f"MultiplicativeCyclicScheduler: {wrong}; {hint}.")

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

    def _in_units_of(self, duration: Time, batches_per_epoch: int) -> Number | None:
        """How many units of `duration` one unit of the schedule is; None where the data decide."""
        if self.unit == TimeUnit.DURATION:
            return duration.value
        if self.unit == duration.unit:
            return 1
        if batches_per_epoch and (self.unit, duration.unit) == (TimeUnit.EPOCH, TimeUnit.BATCH):
            return batches_per_epoch
        if batches_per_epoch and (self.unit, duration.unit) == (TimeUnit.BATCH, TimeUnit.EPOCH):
            return Fraction(1, batches_per_epoch)
        return None


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
