"""What algorithms are made of that act at the events of a Composer Trainer, and of those whose choices are random."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from ..generators import numpy_generator
from ..shown import Shown
from ..validation import misplaced
from .host import refuse_twins


class Guest(Shown, Algorithm):
    """The base of every algorithm: whoever gives it to another host's Trainer is told so."""

    @property
    def state_key(self) -> str:
        """What Lightning asks of a callback at first. Raises TypeError."""
        raise misplaced(self, "Composer", "Lightning")

    @property
    def on_init_end(self) -> Any:
        """What Hugging Face's Trainer asks of a callback at first. Raises TypeError."""
        raise misplaced(self, "Composer", "Hugging Face")


class EventAlgorithm(Guest):
    """The base of an algorithm whose methods act at events, and of which a run holds one.

    Methods are called by their names, with the state and the logger, so that a subclass's take the place of its base's.
    """

    steps: ClassVar[Mapping[Event, str]]
    """Which method acts at an event."""

    def match(self, event: Event, state: State) -> bool:
        return event is Event.INIT or event in self.steps

    def step_at(self, event: Event) -> Any:
        """The function that acts at an event, which may be a subclass's own; None where there is none."""
        return getattr(type(self), self.steps.get(event, ""), None)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event is Event.INIT:
            refuse_twins(self, state)
        if event in self.steps:
            getattr(self, self.steps[event])(state, logger)


class RandomAlgorithm(EventAlgorithm):
    """The base of an algorithm whose choices are functions of the run's seed and the batch's number.

    A run that is resumed, also with another seed, chooses as the uninterrupted one does; nobody else's random numbers
    move.
    """

    _seed = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed = state.get("seed", self._seed)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event is Event.INIT:
            self._seed = state.rank_zero_seed
        super().apply(event, state, logger)

    def generator(self, state: State, *place: int | str) -> np.random.Generator:
        """For this batch, the same on all ranks; what the place adds, such as a purpose or a rank, sets it apart."""
        return numpy_generator(self._seed, state.timestamp.batch.value, *place)
