"""What the study `bert_tickets` checks before anything trains: its tasks, and that all begin with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..config.recipe import Recipe
from .bert_tickets_cells import Task
from .core import FIXED, Base, Changes, named, refuse_twice
from .metrics import evaluated, on_validation_data
from .pruning import check_dense
from .pruning_checks import selection

OF_TASK = ("model", "train_data", "eval_data", "validation_data")


def task_of(base: Base, name: str, recipe: Recipe, wanted: str | None) -> Task:
    """The task of that name, judged by the metric that is wanted, or by its first accuracy."""
    base.needs_evaluation(recipe, "what a subnetwork is worth is evaluated there")
    check_dense(base, recipe)
    metrics = tuple(evaluated(recipe))
    short = {metric.rpartition("/")[2]: metric for metric in metrics}
    if wanted is not None and wanted not in short:
        raise base.source.error(f"metrics.{name}", f"{wanted} given; expected one of {', '.join(short)}")
    accuracies = [metric for metric in short if "Accuracy" in metric]
    if wanted is None and not accuracies:
        raise base.source.error(f"metrics.{name}", f"missing; the task has no accuracy, but {', '.join(short)}")
    metric = short[wanted or accuracies[0]]
    return Task(name=name, metric=metric, metrics=metrics, validated=bool(on_validation_data(recipe, metric)))


def check_together(
    base: Base, together: Changes, tasks: Mapping[str, Any]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """By the name of each ladder of several tasks these, and what it changes of the base run."""
    found = {}
    for name, given in (named(base.source, "together", together, (*FIXED, *OF_TASK)) if together else {}).items():
        key = f"together.{name}"
        several = given.pop("tasks", None)
        fits = isinstance(several, list) and len(several) > 1 and {*several} <= {*tasks}
        expected = f"two or more of the tasks {', '.join(tasks)}"
        refuse_twice(several if isinstance(several, list) else [several], base.source, f"{key}.tasks", fits, expected)
        if name in tasks:
            raise base.source.error(key, "is what a task is called; choose another name")
        found[name] = several, given
    return found


def which_of(base: Base, recipes: Mapping[str, Recipe], ladder: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each task those arguments of the ladder that say which weights are pruned.

    Of several patterns each must fit in one task at least: masked language modelling has no pooler.
    """
    given = selection(ladder)
    names = {task: _weights(base, _built(recipe, 0), {}).keys() for task, recipe in recipes.items()}
    found = {task: dict(given) for task in recipes}
    for key in ("include", "exclude"):
        fitting = {
            pattern: [task for task, own in names.items() if any(fnmatchcase(name, pattern) for name in own)]
            for pattern in given.get(key, ())
        }
        for task in recipes if any(fitting.values()) else ():
            found[task][key] = [pattern for pattern, tasks in fitting.items() if task in tasks or not tasks]
    return found


def check_weights_of(
    base: Base, recipes: Mapping[str, Recipe], which: Mapping[str, Mapping[str, Any]], pretraining: Recipe | None
) -> None:
    """Raises an error unless all begin with the same pretrained weights, as far as they have the same to prune.

    Those of the study's own pretraining are not there yet: of these the names and shapes are compared.
    """
    first, weights = "pretraining", _weights(base, _built(pretraining, 0), {}) if pretraining else {}
    for name, recipe in recipes.items():
        own, key, model = _weights(base, _built(recipe, 0), which[name]), f"tasks.{name}", recipe.model.key
        other = _differ(own, weights) if weights and not pretraining else []
        # Those that are the first's are no random ones: another draw is made for the first alone, and for others.
        drawn = pretraining is None and (other or own.keys() - weights.keys())
        if random := _differ(own, _weights(base, _built(recipe, 1), which[name])) if drawn else []:
            hint = f"{random[0]} is random; expected `pretrained` weights in the model, or the key `pretraining`"
            raise base.source.error(key, f"{model}: {hint}")
        if pretraining and (recipe.config["model"][model.partition(".")[2]] or {}).get("pretrained"):
            raise base.source.error("pretraining", f"given beside {model}.pretrained of {name}; expected one of them")
        if lacking := [each for each in own if pretraining and each not in weights]:
            hint = "which the network of the pretraining lacks, so that it is random; leave it out by `include`"
            raise base.source.error("ladder.include", f"prunes {lacking[0]} of {name}, {hint}")
        if not weights:
            first, weights = name, own
        common = own.keys() & weights.keys()
        other = [each for each in common if own[each].shape != weights[each].shape] or other
        if not common or other:
            hint = f"begins with other weights in {other[0]}" if other else "has none of the weights that are pruned"
            raise base.source.error(key, f"{model} {hint} than {first} does; expected the same encoder in all tasks")


def check_scratch(base: Base, task: str, recipe: Recipe, scratch: Recipe, which: Mapping[str, Any]) -> None:
    """Raises an error unless the scratch network is the task's own, with random weights."""
    own, drawn, again = _built(recipe, 0), _built(scratch, 0), _built(scratch, 1)
    shapes = [{name: tuple(weight.shape) for name, weight in model.named_parameters()} for model in (own, drawn)]
    weights = [_weights(base, model, which) for model in (drawn, again)]
    fixed = {*weights[0]} - {*_differ(*weights)}
    if wrong := [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]:
        sizes = " where theta_0 has ".join(str(each.get(wrong[0], "nothing")) for each in reversed(shapes))
        hint = f"has {sizes} in {wrong[0]}; expected the network of {task} itself"
    elif same := [name for name, weight in weights[0].items() if name in fixed and weight.min() < weight.max()]:
        hint = f"has the same {same[0]} whatever the seed; expected random weights"
    else:
        return
    raise base.source.error("scratch", f"{scratch.model.key} {hint}")


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> Sequence[str]:
    import torch

    return [name for name in one if name in other and not torch.equal(one[name], other[name])]


def _built(recipe: Recipe, seed: int) -> Any:
    """The model as it is with that seed."""
    import torch

    from accelerando.algorithms.generators import untouched_generators

    with untouched_generators():
        torch.manual_seed(seed)
        return recipe.model.build()


def _weights(base: Base, model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the model that are pruned."""
    from accelerando.algorithms.pruning import prunable_weights

    with base.source.blame("ladder.include" if "include" in arguments else "ladder", ValueError):
        return {name: weight.detach() for name, weight in prunable_weights(model, **selection(arguments)).items()}
