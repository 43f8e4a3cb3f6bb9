"""When something is due in a training: moments as time strings (`8ep`, `500ba`, `0.5dur`), and how far it has come."""

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["ep", "ba", "sp", "tok", "dur"]
COUNTS = ("epoch", "batch", "sample", "token", "batch_in_epoch", "sample_in_epoch", "token_in_epoch")
SURELY = 1 - 1e-9  # 0.3 of ten batches may come out as a little more than three


@dataclass(frozen=True)
class Moment:
    """So many epochs (ep), batches (ba), samples (sp) or tokens (tok), or such a share of the whole training (dur)."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"


WHOLE = Moment(1.0, "dur")  # the end of the whole training


def moment(text: object) -> Moment | None:
    """Returns the moment that a time string, or an object printed as one, stands for; None for what is none."""
    found = re.fullmatch(r"\s*([-+.\de]+?)\s*(ep|ba|sp|tok|dur)\s*", str(text))
    try:
        value, unit = float(found[1]), found[2]  # type: ignore[index]
    except (TypeError, ValueError, OverflowError):
        return None
    fits = 0 <= value <= 1 if unit == "dur" else value >= 0 and value.is_integer()
    return Moment(value if unit == "dur" else int(value), unit) if fits else None  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a training has had so far, and how long it is.

    `epoch`, `batch`, `sample` and `token` count what is over in all, `batch_in_epoch` and so on what is over of this
    epoch.
    `batches_per_epoch` and `length` are None where nobody knows them.
    """

    batch: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    sample: int = 0
    token: int = 0
    sample_in_epoch: int = 0
    token_in_epoch: int = 0
    batches_per_epoch: int | None = None
    length: Moment | None = None

    @classmethod
    def after(cls, step: int, steps: int | None = None, batches_per_epoch: int | None = None) -> "Progress":
        """Returns the progress of a training after `step` updates, of `steps` in all."""
        epoch, batch = divmod(step, batches_per_epoch) if batches_per_epoch else (0, step)
        length = None if steps is None else Moment(steps, "ba")
        counts = {"batch": step, "epoch": epoch, "batch_in_epoch": batch}
        return cls(**counts, batches_per_epoch=batches_per_epoch, length=length)

    @property
    def counts(self) -> dict[str, int]:
        """All that is counted, by name."""
        return {name: getattr(self, name) for name in COUNTS}

    def elapsed(self, unit: Unit) -> float:
        """How much of the training is over; epochs with their parts, where the number of their batches is known.

        Raises ValueError for "dur" where the length is not known.
        """
        if unit == "dur":
            if self.length is None:
                raise ValueError("a share of the training has no meaning where its length is not known")
            return self.elapsed(self.length.unit) / self.length.value
        if unit == "ep":
            return self.epoch + (self.batch_in_epoch / self.batches_per_epoch if self.batches_per_epoch else 0)
        return {"ba": self.batch, "sp": self.sample, "tok": self.token}[unit]

    def reached(self, moment: Moment) -> bool:
        """Whether the moment has come; within an epoch too, where the number of its batches is known."""
        return self.elapsed(moment.unit) >= moment.value * SURELY

    def is_at(self, moment: Moment) -> bool:
        """Whether just so many epochs or batches are over; of other units nobody knows."""
        if moment.unit == "ep":
            return self.epoch == moment.value and self.batch_in_epoch == 0
        return moment.unit == "ba" and self.batch == moment.value

    def passed(self, moment: Moment) -> bool:
        """Whether the moment has come and is over."""
        return self.elapsed(moment.unit) * SURELY > moment.value

    def in_batches(self, moment: Moment) -> float | None:
        """A moment in ep, ba or dur as a number of batches; None where that is not known, or not yet."""
        if moment.unit == "dur":
            whole = self.length and self.in_batches(self.length)
            return None if whole is None else moment.value * whole
        if moment.unit == "ep":
            return moment.value * self.batches_per_epoch if self.batches_per_epoch else None
        return moment.value if moment.unit == "ba" else None

    def share(self, moment: Moment) -> float | None:
        """A moment as a share of the whole training, above 1 if it never comes; None where the units do not tell."""
        if moment.unit == "dur" or self.length is None:
            return moment.value if moment.unit == "dur" else None
        if moment.unit == self.length.unit:
            return moment.value / self.length.value
        batches, whole = self.in_batches(moment), self.in_batches(self.length)
        return None if batches is None or whole is None else batches / whole
