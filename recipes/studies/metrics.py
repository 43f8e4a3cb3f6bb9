"""Which metrics a run's evaluations give, by what names, and which of them a study compares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from accelerando.algorithms.connectivity.curves import lower_is_better

if TYPE_CHECKING:
    from ..config.recipe import Recipe


def evaluated(recipe: Recipe) -> list[str]:
    """The full names of the metrics that a run's evaluation gives."""
    from ..run.history import EVAL_PREFIX

    return [f"{EVAL_PREFIX}{name}" for name in recipe.model.build().get_metrics(is_train=False)]


def on_validation_data(recipe: Recipe, metric: str) -> str | None:
    """The full name of the metric there; None where the run has none."""
    return of_validation(metric) if recipe.validation_data else None


def of_validation(metric: str) -> str:
    """The full name, on validation data, of a metric of the evaluation."""
    from ..run.history import EVAL_PREFIX, VALIDATION

    return metric.replace(EVAL_PREFIX, f"metrics/{VALIDATION}/", 1)


def choose_metric(names: Iterable[str], wanted: str | None = None, errors: bool = False) -> str:
    """The metric `wanted` by its name or its last part, by default the first accuracy.

    ValueError if there is none, and, unless `errors` are allowed, if less is better.
    """
    for name in (names := list(names)):
        short = name.rpartition("/")[2]
        if "Accuracy" in short if wanted is None else wanted.lower() in (name.lower(), short.lower()):
            if lower_is_better(name) and not errors:
                raise ValueError(f"lower is better for {name}; choose a metric of which more is better")
            return name
    raise ValueError(f"no metric is {wanted or 'an accuracy'!r}: choose one of {names}")
