"""Teachers as a YAML names them: types and names are checked, and nothing is built.

Each is text or a mapping, several are a list of these:

    runs/teacher                       the folder of a finished run of recipes/train.py, or its run_name in `folder`
    bert-large-uncased                 a Hugging Face folder (with config.json), or a name on the hub
    {checkpoint: FILE, model: {...}}   a checkpoint or .safetensors; without a model, for that of the run itself. What
                                       changed the model stands in `algorithms: {...}`, such as blur_pool
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import Source, show
from .lookup import Part, nearest

CheckSection = Callable[[Source, str, Any], list[Part]]

EXPECTED = "expected a run's folder, a Hugging Face folder, or {checkpoint: FILE, model: {NAME: {...}}}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One teacher as a YAML names it; `name` is the text, or the checkpoint's file."""

    key: str
    name: str
    is_file: bool = False
    model: Part | None = None
    algorithms: tuple[Part, ...] = ()


def check_references(source: Source, key: str, given: Any, check_section: CheckSection) -> list[Reference]:
    """Checks types and names only: the files may be written before they are needed.

    `check_section` checks a section inside a reference, in which there may be references again.
    """
    if given is None or given == []:
        raise source.error(key, f"missing; {EXPECTED}, or a list of them")
    if not isinstance(given, list):
        return [_check(source, key, given, check_section)]
    return [_check(source, f"{key}.{i}", one, check_section) for i, one in enumerate(given)]


def _check(source: Source, key: str, given: Any, check_section: CheckSection) -> Reference:
    if isinstance(given, str) and given:
        return Reference(key=key, name=given)
    if not isinstance(given, dict):
        raise source.error(key, f"{show(given)} given; {EXPECTED}")
    for name in given:
        if name not in (known := ("checkpoint", "model", "algorithms")):
            raise source.error(f"{key}.{name}", f"unknown key{nearest(str(name), known)}")
    if not (isinstance(file := given.get("checkpoint"), str) and file):
        raise source.error(key, f"{show(given)} given; {EXPECTED}")
    inside = source.inside(key, given)
    model = check_section(inside, "model", given["model"])[0] if given.get("model") is not None else None
    algorithms = tuple(check_section(inside, "algorithms", given.get("algorithms")))
    return Reference(key=key, name=file, is_file=True, model=model, algorithms=algorithms)
