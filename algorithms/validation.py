"""What is said of an argument that cannot work, or has no effect."""

from typing import Any


class NoEffectWarning(UserWarning):
    """A technique has changed nothing: the model has nothing for it, or its arguments ask for nothing."""


def check(owner: str, argument: str, fits: Any, expected: str, given: Any) -> None:
    """Raise ValueError, naming the argument of `owner` and what was expected of it, unless it `fits`."""
    if not fits:
        raise ValueError(f"{owner}: {argument} must be {expected}, got {given!r}.")
