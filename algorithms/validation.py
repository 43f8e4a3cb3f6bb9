"""What is said of an argument that cannot work, or has no effect."""

from typing import Any

_ELSEWHERE = {
    "Composer": "for Composer's, from accelerando.algorithms import {name}",
    "Lightning": "for Lightning's, from accelerando.algorithms.lightning import {name}",
    "Hugging Face": "those for Hugging Face's are in accelerando.algorithms.transformers",
}


class NoEffectWarning(UserWarning):
    """A technique has changed nothing: the model has nothing for it, or its arguments ask for nothing."""


def check(owner: str, argument: str, fits: Any, expected: str, given: Any) -> None:
    """Raise ValueError, naming the argument of `owner` and what was expected of it, unless it `fits`."""
    if not fits:
        raise ValueError(f"{owner}: {argument} must be {expected}, got {given!r}.")


def misplaced(guest: object, own: str, other: str) -> TypeError:
    """The error of a class for the Trainer of its `own` host that is given to that of the `other` one."""
    name = type(guest).__name__
    return TypeError(f"This {name} is the class for {own}'s Trainer: {_ELSEWHERE[other].format(name=name)}.")
