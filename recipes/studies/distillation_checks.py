"""What is refused of the keys of a study of distillation before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.arguments import TIME_HINT, check_arguments
from ..config.errors import REFUSALS, Source, show
from ..config.recipe import Recipe
from .lengths import as_time


def build_once(source: Source, student: Recipe, teachers: Sequence[Recipe], arguments: Mapping[str, Any]) -> None:
    """What Distillation refuses of its arguments and teachers; their weights, which it has later, do not matter."""
    from accelerando.algorithms import Distillation as Algorithm

    wanted, models = _classes(student.model.build()), [recipe.model.build() for recipe in teachers]
    for recipe, model in zip(teachers, models, strict=True):
        if (found := _classes(model)) != wanted and None not in (found, wanted):
            raise recipe.source.error("model", f"makes logits of {found} classes, where the student's have {wanted}")
    with source.blame("distillation", *REFUSALS):
        Algorithm(models, **check_arguments(Algorithm, arguments, supplied=1))


def _classes(model: Any) -> int | None:
    """Of its logits, as far as it tells."""
    config = getattr(model, "config", None)
    if config is None:
        return getattr(model, "num_classes", None)
    return config.vocab_size if type(model.model).__name__.endswith("LM") else config.num_labels


def check_schedule(recipe: Recipe) -> Recipe:
    """The recipe, or an error where a run of its length would end in the middle of a cycle."""
    from accelerando.algorithms import MultiplicativeCyclicScheduler

    scheduler = recipe.scheduler.build() if recipe.scheduler else None
    if isinstance(scheduler, MultiplicativeCyclicScheduler):
        with recipe.source.blame("scheduler", ValueError):
            scheduler.check_duration(recipe.config["max_duration"])
    return recipe


def rising(given: Sequence[str], source: Source, key: str) -> list[str]:
    """The lengths from the shortest to the longest."""
    try:
        times = [as_time(length) for length in given]
    except (ValueError, TypeError):
        times = []
    known = [time for time in times if time.value > 0]
    texts = {time.to_timestring() for time in known}
    if not known or len(texts) < len(given) or len({time.unit for time in known}) > 1:
        hint = f"expected different ones, each {TIME_HINT.replace(' or 0.5dur', '')}, all in one unit"
        raise source.error(key, f"{show(list(given))} given; {hint}")
    return [time.to_timestring() for time in sorted(known)]


def check_windows(given: Sequence[float], source: Source) -> None:
    """Raises an error unless they are different shares of a training."""
    named_so = {f"{share:g}" for share in given if 0 < share <= 1}  # in the names of folders
    if not given or len(named_so) < len(given):
        hint = "expected different shares of the training, above 0 and at most 1"
        raise source.error("windows", f"{show(list(given))} given; {hint}")
