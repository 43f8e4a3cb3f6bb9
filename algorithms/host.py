"""What the algorithms have in common as guests of the Composer Trainer."""

from composer.core import Algorithm, State
from composer.models import ComposerModel


def refuse_twins(algorithm: Algorithm, state: State) -> None:
    """Raise ValueError where the run holds a second algorithm of this name, of this class or of Composer's.

    Both would act, and on resume both would receive the state of the last one.
    """
    name = type(algorithm).__name__
    if sum(type(other).__name__ == name for other in state.algorithms) > 1:
        raise ValueError(f"The Trainer was given more than one {name}; keep one, of accelerando or of Composer.")


def composer_model(state: State) -> ComposerModel:
    """The model that the user gave to the Trainer, out of what DDP wraps around it."""
    return state.model if hasattr(state.model, "loss") else state.model.module  # type: ignore[return-value]
