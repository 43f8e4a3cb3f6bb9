"""What an algorithm may say to the recipes: what they make for it, and what it leaves in a run's results.

An algorithm says it by deriving from `ForRecipes`, and says no more than it wants:

    class CutOut(ForRecipes, Algorithm):
        supplied = {"save_folder": Folder(name="holes")}

Whoever does not derive from it gets the arguments that the YAML gives, whatever they are called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from composer.core import State


class Supply(Enum):
    """What a recipe makes for a parameter."""

    SCHEDULER = "the run's scheduler, before anybody wraps it; None where there is none"
    NETWORKS = "a list of trained modules, by the references that the YAML gives there"
    TRANSFORM = "a function from batches on the device to what the model sees, to be called once training begins"
    FILE = "the path that the YAML gives, which may lie in the folder of all runs"
    FOLDERS = "a list of paths that the YAML gives, each of which may lie in the folder of all runs"
    EXAMPLES = "a function from a device to a DataSpec of the training data in evaluation: in order, not augmented"
    TRAINING_DATA = "a function from a device to the batches of EXAMPLES, on the device and as the model sees them"


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of that name inside the run's, unless the YAML says where."""

    name: str


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run as training has left it.

    `records` hold what was logged, one for each batch that is kept, with `batch`, `samples` and `seconds` of training;
    `begun` holds these counts as they were when the run began, above 0 where it started from another run's moment.
    `batch` gives one batch of the training data, on the device and as the model sees it.
    """

    state: State
    records: Sequence[Mapping[str, float]]
    begun: Mapping[str, float]
    batch: Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """What a run has reached: the `place` in words, such as "level 2 of 5", and metrics as ``label/metric``."""

    place: str
    values: Mapping[str, float]
    seconds: float | None = None  # of training so far


class ForRecipes:
    """The base of an algorithm that has something to say to the recipes; every member may be left out."""

    supplied: ClassVar[Mapping[str, Supply | Folder]] = {}
    """What the recipe makes, by the names of the constructor's parameters."""

    may_grow: ClassVar[tuple[str, ...]] = ()
    """Whole numbers among the arguments that a run which goes on may have raised."""

    kept_records: ClassVar[tuple[str, ...]] = ()
    """How the names of logged numbers begin that stay in the history of a long run, at whatever batch they stand."""

    def wrap(self, scheduler: Any) -> Any:
        """The scheduler that the Trainer gets in place of the run's, which is None where it has none."""
        return scheduler

    def found(self, run: FinishedRun) -> dict[str, Any]:
        """What the run's `results.json` holds of it, by names of its own: builtins, in which NaN becomes null."""
        return {}

    @classmethod
    def check_found(cls, found: Mapping[str, Any]) -> None:
        """Raise ValueError where this, read back, is not what `found` gives."""

    @classmethod
    def tables(cls, found: Mapping[str, Any]) -> list[str]:
        """What is printed of it when the run has ended; `found` is checked."""
        return []

    def milestone(self, logged: Mapping[str, Any]) -> Milestone | None:
        """What to tell people, in the middle of a study, of numbers that were just logged, if anything.

        If a milestone is told at the end of a run, nothing else is told of that end.
        """
        return None


def declared_by(kind: Any) -> type[ForRecipes]:
    """What a class says to the recipes: nothing, if it does not derive from `ForRecipes`."""
    return kind if isinstance(kind, type) and issubclass(kind, ForRecipes) else ForRecipes


def label(name: str) -> str:
    """A metric's name for people: ``metrics/eval/MulticlassAccuracy`` is ``accuracy``; and the data set, of several."""
    place, _, short = name.rpartition("/")
    short = short.removeprefix("Multiclass").removeprefix("Binary")
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in short)
    return f"{words} {place.partition('metrics/eval/')[2]}".strip()
