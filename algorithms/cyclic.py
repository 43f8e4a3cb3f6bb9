"""The multiplicative cyclic learning rate: one run passes through the ends of runs of many lengths.

Source: "Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates" (arXiv 2206.00832) and its code. At
the end of each cycle the learning rate has come down as at the end of a run of that length: with a warmup and a first
cycle of 8 epochs each, a run of 512 epochs passes through 16, 32, 64, 128 and 256. `Curve` keeps what is reached there.

    scheduler = MultiplicativeCyclicLR(optimizer, warmup=800, period=800)
    scheduler.check_steps(6400)
    for step in range(6400):
        ...
        optimizer.step()
        scheduler.step()
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .shown import Shown
from .validation import check

Number = int | float | Fraction


def cyclic_multiplier(t: Number, W: Number, T_0: Number, growth: Number = 2, alpha_f: float = 0.0) -> float:
    """What the peak learning rate is multiplied by at time `t`, which counts in the unit of `W` and `T_0`.

    Linear from 0 to 1 for `t < W`. Then cycles `i` of length `T_i = T_0 * growth**i`, within which it falls as

        alpha_f + (1 - alpha_f) / 2 * (1 + cos(pi * T_cur / T_i)),    T_cur = t - W - sum of T_j for j < i.
    """
    if t < W:
        return float(t / W)
    _, T_cur, T_i = _in_cycle(t, W, T_0, growth)
    return alpha_f + (1 - alpha_f) / 2 * (1 + math.cos(math.pi * float(T_cur / T_i)))


def _in_cycle(t: Any, W: Any, T_0: Any, growth: Any) -> tuple[int, Any, Any]:
    """Which cycle it is at `t`, not before `W`; how much of it is over; and its length."""
    i, T_cur, T_i = 0, t - W, T_0
    if growth == 1:  # there may be thousands
        i, T_cur = int(T_cur // T_0), T_cur % T_0
    while T_cur >= T_i:
        i, T_cur, T_i = i + 1, T_cur - T_i, T_i * growth
    return i, T_cur, T_i


def cycle_ends(W: Any, T_0: Any, growth: Any = 2) -> Iterator[Any]:
    """The times at which a cycle ends and the next one starts, `W + T_0`, `W + T_0 * (1 + growth)`, ..., endlessly."""
    end, T_i = W, T_0
    while True:
        end, T_i = end + T_i, T_i * growth
        yield end


@dataclass(frozen=True)
class Cycles:
    """A warmup of `W`, then cycles of `T_0`, `T_0 * growth`, ..., all in one unit; exact."""

    W: Fraction
    T_0: Fraction
    growth: Fraction

    @classmethod
    @functools.cache  # a scheduler asks after every update
    def of(cls, W: Number, T_0: Number, growth: Number) -> "Cycles":
        """Returns the cycles of these decimals as they are written: ten times 0.1 is 1."""
        return cls(*(Fraction(str(x)) for x in (W, T_0, growth)))

    def scaled(self, factor: Number) -> "Cycles":
        """Returns the same in another unit, of which the old one has so many."""
        return Cycles(self.W * Fraction(factor), self.T_0 * Fraction(factor), self.growth)

    def multiplier(self, t: Number, alpha_f: float = 0.0) -> float:
        """Returns what the peak learning rate is multiplied by at `t`, see `cyclic_multiplier`."""
        return cyclic_multiplier(t, self.W, self.T_0, self.growth, alpha_f)

    def ends(self) -> Iterator[Fraction]:
        """When each cycle ends and the next one starts, endlessly."""
        return cycle_ends(self.W, self.T_0, self.growth)

    def ended(self, t: Number) -> int:
        """Returns how many cycles are over at `t`."""
        return _in_cycle(t, self.W, self.T_0, self.growth)[0] if t >= self.W else 0

    def within(self, length: Number, updates: int = 1) -> int:
        """Returns how many cycles a run of this length has, each over with the update that completes it.

        A unit has so many `updates`; an end need not fall between two of them.
        """
        return sum(1 for _ in takewhile(lambda end: math.ceil(end * updates) <= length * updates, self.ends()))

    def misfit(self, length: Number, updates: int = 1) -> tuple[str, list[Fraction]] | None:
        """Returns what is wrong with a run of this length, and the nearest that end with a cycle; None if it does.

        A run that stops at a high learning rate has no meaning as a point on the curve.
        """
        below, ends = None, self.ends()
        above = next(ends)
        while math.ceil(above * updates) < length * updates:
            below, above = above, next(ends)
        if math.ceil(above * updates) == length * updates:
            return None
        if below is None:
            return "is shorter than a cycle", [above]
        return "ends inside a cycle, at a high learning rate", [below, above]


def check_shape(owner: str, growth: float, alpha_f: float) -> None:
    """Raise ValueError for a growth or an end of cycles that `owner` cannot have."""
    check(owner, "growth", 1 <= growth < math.inf, "finite and at least 1", growth)
    check(owner, "alpha_f", 0 <= alpha_f < 1, "in [0, 1)", alpha_f)


class MultiplicativeCyclicLR(Shown, LRScheduler):
    """One linear warmup, then cosine cycles of growing length; to be stepped after every update.

    Args:
        optimizer: whose learning rates these are; those that it has are the peaks.
        warmup: for how many updates the learning rate rises; may be zero.
        period: length of the first cycle in updates, above zero; neither needs to be whole.
        growth: factor from one cycle's length to the next one's, finite and at least 1; need not be whole.
        alpha_f: multiplier at the end of each cycle, in [0, 1).
        last_epoch: how many updates were made before, less one where there were any, as torch's schedulers count them.

    Raises ValueError for other arguments.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float,
        period: float,
        growth: float = 2.0,
        alpha_f: float = 0.0,
        last_epoch: int = -1,
    ):
        name = type(self).__name__
        check(name, "warmup", 0 <= warmup < math.inf, "finite and not below 0", warmup)
        check(name, "period", 0 < period < math.inf, "finite and above 0", period)
        check_shape(name, growth, alpha_f)
        self.warmup, self.period, self.growth, self.alpha_f = warmup, period, growth, alpha_f
        super().__init__(optimizer, last_epoch)

    @property
    def cycles(self) -> Cycles:
        """The cycles in updates; a checkpoint brings its own."""
        return Cycles.of(self.warmup, self.period, self.growth)

    def get_lr(self) -> list[Any]:
        multiplier = self.cycles.multiplier(self.last_epoch, self.alpha_f)
        return [base * multiplier for base in self.base_lrs]

    def cycle_ends(self) -> Iterator[Fraction]:
        """After how many updates each cycle ends and the next one starts, endlessly and exactly."""
        return self.cycles.ends()

    def cycles_ended(self, updates: int) -> int:
        """Returns how many cycles so many updates complete."""
        return self.cycles.ended(updates)

    def check_steps(self, steps: int) -> None:
        """Raise ValueError unless a training of so many updates ends with a cycle; the message says which ones do."""
        if misfit := self.cycles.misfit(steps):
            wrong, ends = misfit
            hint = " or ".join(str(math.ceil(end)) for end in ends)
            raise ValueError(f"{type(self).__name__}: a training of {steps} updates {wrong}; use {hint}.")
