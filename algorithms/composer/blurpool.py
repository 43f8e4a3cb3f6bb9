"""BlurPool in a run of Composer's Trainer."""

import warnings
from typing import Any

import composer.algorithms
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from ..blur_layers import BlurConv2d, BlurMaxPool2d
from ..blurpool import NOTHING_CHANGED, put_blur
from .bases import Guest
from .host import NoEffectWarning, refuse_twins


class BlurPool(Guest):
    """Anti-alias the model's strided convolutions and max-pools, see `apply_blurpool` for the arguments.

    A checkpoint remembers that it was trained so. It resumes with this class or Composer's, given the same arguments;
    so does a checkpoint of Composer's; without either, loading it is an error.
    """

    def __init__(
        self,
        replace_convs: bool = True,
        replace_maxpools: bool = True,
        blur_first: bool = True,
        min_channels: int = 16,
    ):
        if not (replace_convs or replace_maxpools):
            raise ValueError(
                "BlurPool: set replace_convs or replace_maxpools to True; with both False it does nothing."
            )
        self.replace_convs = replace_convs
        self.replace_maxpools = replace_maxpools
        self.blur_first = blur_first
        self.min_channels = min_channels
        self._stand_ins: list[Algorithm] = []

    def __repr__(self) -> str:
        return (
            f"BlurPool(replace_convs={self.replace_convs},replace_maxpools={self.replace_maxpools},"
            f"blur_first={self.blur_first},min_channels={self.min_channels})"
        )

    @staticmethod
    def required_on_load() -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        # Loading into a run without this algorithm, Composer finds its own class of this name and evaluates this text.
        # It gets an object that cannot be applied, so it refuses and quotes the text, where it would stack its layers.
        refusal = "BlurPool.__new__(algorithms.BlurPool)  # add to the Trainer's algorithms: accelerando.algorithms."
        return {"repr": f"{refusal}{self!r}"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state["repr"].endswith(repr(self)):
            raise ValueError(
                f"The checkpoint was trained with {state['repr'].rpartition('.')[2]}, but this run has {self!r}. Give "
                "BlurPool the arguments of the checkpoint."
            )

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.AFTER_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event is Event.INIT:
            refuse_twins(self, state)
            options = self.replace_convs, self.replace_maxpools, self.blur_first, self.min_channels
            if not put_blur(state.model, *options):
                warnings.warn(NoEffectWarning(NOTHING_CHANGED), stacklevel=2)
            kinds = {"blurpool": BlurMaxPool2d, "blurconv": BlurConv2d}
            counts = {n: sum(isinstance(module, kind) for module in state.model.modules()) for n, kind in kinds.items()}
            logger.log_hyperparameters({f"blurpool/num_{n}_layers": count for n, count in counts.items()})
        elif event is Event.BEFORE_LOAD:
            # While a checkpoint loads, objects of Composer's class tell Composer that the layers are there already,
            # whichever of the two classes has saved it. They act on no event.
            self._stand_ins = [_stand_in(repr(self)), _stand_in(self.state_dict()["repr"])]
            state.algorithms.extend(self._stand_ins)
        else:
            state.algorithms = [algorithm for algorithm in state.algorithms if algorithm not in self._stand_ins]
            self._stand_ins = []


def _stand_in(text: str) -> Algorithm:
    algorithm = composer.algorithms.BlurPool()
    algorithm.__repr__ = lambda: text  # Composer calls it as an attribute of the object
    return algorithm
