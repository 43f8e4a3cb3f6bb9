"""What a run of a study has followed, as its folder tells: of others, that have changed since, it is no result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from ..config.recipe import Recipe
from ..run.files import write
from ..run.folder import as_rank_zero_finds, identity, is_begun, may_grow

FILE = "follows.json"


def note(recipe: Recipe, followed: Mapping[str, Recipe]) -> None:
    """Writes into the folder of a run that is to begin which runs it follows, by digests of their recipes by name.

    Raises an error where it has begun already, and has followed others.
    """
    refuse_if_changed(recipe, followed)
    text = json.dumps({name: _digest(other) for name, other in sorted(followed.items())}, indent=1)

    def tell() -> None:
        with recipe.source.blame("folder", OSError):
            write(recipe.folder / FILE, f"{text}\n".encode())

    as_rank_zero_finds(tell)


def refuse_if_changed(recipe: Recipe, followed: Mapping[str, Recipe]) -> None:
    """Raises an error where one of those that the run has followed is another run now; what is not told passes."""

    def look() -> str | None:
        file = recipe.folder / FILE
        if not (is_begun(recipe.folder) and file.is_file()):
            return None
        try:
            was = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError):
            return f"{file} is not as it was written"
        changed = [name for name, other in followed.items() if name in was and was[name] != _digest(other)]
        words = f"the run in {recipe.folder} has followed another {', '.join(changed)} than that of now"
        return words if changed else None

    if problem := as_rank_zero_finds(look):
        raise recipe.source.error("", f"{problem}; delete {recipe.folder} to train it again")


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(identity(recipe, may_grow(recipe)).encode()).hexdigest()
