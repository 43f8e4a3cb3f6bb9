"""What a constructor says of an argument that cannot work."""

from typing import Any


def check(owner: str, argument: str, fits: Any, expected: str, given: Any) -> None:
    """Raise ValueError, naming the argument of `owner` and what was expected of it, unless it `fits`."""
    if not fits:
        raise ValueError(f"{owner}: {argument} must be {expected}, got {given!r}.")
