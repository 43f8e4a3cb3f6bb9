"""An optimizer by groups of parameters: other options for those whose names meet a pattern, or no training at all.

Under an optimizer's name, beside its arguments:

    groups:
      "*bias|*.bn?.weight": {weight_decay: 0}    # options of this group alone; all else is as for the others
      "conv1.*": false                           # frozen: no gradient, and not in the optimizer

A key is one or more patterns (`*` any text, `?` any letter) of parameters' names, as the user's own network has them or
the ComposerModel around it. What meets none of them is the first group. An optimizer's class that has an argument
`groups` of its own gets that one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .arguments import check_arguments, parameters
from .errors import ArgumentError, show
from .lookup import Part

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

WRAPPERS = ("module.", "model.")  # where ComposerClassifier and HuggingFaceModel hold the network


def check_optimizer(target: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the optimizer's class wants them, any `groups` among them; or an ArgumentError."""
    if "groups" not in given or _has_its_own(target):
        return check_arguments(target, given, supplied=1)
    own = check_arguments(target, {name: value for name, value in given.items() if name != "groups"}, supplied=1)
    groups = {} if given["groups"] is None else given["groups"]
    if not isinstance(groups, dict):
        hint = "expected patterns of parameters' names with options, such as {'*bias': {weight_decay: 0}}"
        raise ArgumentError("groups", f"{show(groups)} given; {hint}")
    checked = {str(key): _check_group(target, own, f"groups.{key}", groups[key]) for key in groups}
    return own | ({"groups": checked} if checked else {})


def _has_its_own(target: Any) -> bool:
    return any(parameter.name == "groups" for parameter in parameters(target))


def _check_group(target: Any, own: Mapping[str, Any], place: str, options: Any) -> dict[str, Any] | bool:
    if options is False:
        return False
    if not isinstance(options, dict) or not options:
        hint = "expected options such as {lr: 0.01}, or false to freeze what it meets"
        raise ArgumentError(place, f"{show(options)} given; {hint}")
    for name in options:
        if not str(name).isidentifier():
            hint = "a pattern with dots stands in brackets on the command line, as in groups[conv1.*]=false"
            raise ArgumentError(f"{place}.{name}", f"no option of an optimizer; {hint}")
    try:
        checked = check_arguments(target, {**own, **options}, supplied=1)
    except ArgumentError as error:
        raise ArgumentError(f"{place}.{error.name}", error.message) from error
    return {name: checked[name] for name in options}


@dataclass(frozen=True, kw_only=True)
class OptimizerPart(Part):
    """An optimizer's class with its checked arguments, which builds the optimizer of a model."""

    def build(self, *supplied: Any) -> Any:
        """The optimizer of a model, the only argument; what its groups freeze needs no gradient from here on.

        Raises ConfigError for a pattern that meets no parameter, for a parameter that two groups meet, for an option
        that groups do not have or of a value that the optimizer refuses, and where nothing is left to train.
        """
        (model,) = supplied
        groups = {} if _has_its_own(self.target) else self.arguments.get("groups", {})
        if not groups:
            return _saved_whole(super().build(model.parameters()))
        own = {name: value for name, value in self.arguments.items() if name != "groups"}
        met = self._met(model, groups)
        frozen = {id(parameter) for key in groups if groups[key] is False for parameter in met[key]}
        if not any(p.requires_grad and id(p) not in frozen for p in model.parameters()):
            raise self.source.error(f"{self.key}.groups", "every parameter is frozen; expected some to train")
        others = {id(parameter) for those in met.values() for parameter in those}
        made: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in others]}]
        # In an order that does not depend on the file's: the same run in another order is the same run.
        for key in sorted(groups):
            if groups[key] is not False:
                self._try_alone(f"{self.key}.groups.{key}", met[key], own, groups[key])
                made.append({"params": met[key], **groups[key]})
        optimizer = self._part(self.key, own).build([group for group in made if group["params"]])
        for parameter in model.parameters():
            if id(parameter) in frozen:
                parameter.requires_grad_(False)
        return _saved_whole(optimizer)

    def _part(self, place: str, arguments: Mapping[str, Any]) -> Part:
        return Part(source=self.source, key=place, target=self.target, arguments=dict(arguments))

    def _met(self, model: Module, groups: Mapping[str, Any]) -> dict[str, list[Parameter]]:
        """By key of `groups`, the parameters that it meets, in the model's order."""
        called = _names(model)
        taken: dict[int, str] = {}
        met: dict[str, list[Parameter]] = {}
        for key in groups:
            patterns, place = [pattern.strip() for pattern in key.split("|")], f"{self.key}.groups.{key}"
            for pattern in patterns:
                if not any(_fits(pattern, names) for names in called.values()):
                    hint = _meant(pattern, [names[0] for names in called.values()])
                    raise self.source.error(place, f"no parameter is called {pattern!r}; {hint}")
            met[key] = [p for p in model.parameters() if any(_fits(pattern, called[id(p)]) for pattern in patterns)]
            for parameter in map(id, met[key]):
                if parameter in taken:
                    hint = "narrow one of them, for a parameter is of one group"
                    given = f"meets {called[parameter][0]}, as {taken[parameter]!r} does"
                    raise self.source.error(place, f"{given}; {hint}")
                taken[parameter] = key
        return met

    def _try_alone(
        self, place: str, those: Sequence[Parameter], own: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """A constructor looks at the options of the whole optimizer only: the group's are these for a moment."""
        from torch.nn import Parameter

        # Others than the model's, on which a constructor may leave something, such as hooks.
        copies = [Parameter(parameter.detach(), parameter.requires_grad) for parameter in those]
        defaults = self._part(place, {**own, **options}).build(copies).defaults
        for name in options:
            if name not in defaults:
                known = ", ".join(parameter.name for parameter in parameters(self.target) if parameter.name in defaults)
                raise self.source.error(
                    f"{place}.{name}", f"is of the whole optimizer, not of a group; expected {known}"
                )


def _names(model: Module) -> dict[int, list[str]]:
    """By the parameter's id all names that it has, with and without the wrapper's; several where layers share it."""
    held = dict(model.named_parameters(remove_duplicate=False))
    wrapper = next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in held)), "")
    called: dict[int, list[str]] = {}
    for name, parameter in held.items():
        called.setdefault(id(parameter), []).extend((name.removeprefix(wrapper), name))
    return called


def _fits(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _meant(pattern: str, names: Sequence[str]) -> str:
    from accelerando.algorithms.checkpoints import some

    close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {some(names)}"


def _saved_whole(optimizer: Optimizer) -> Optimizer:
    """Makes its checkpoints hold a state of each of its parameters, be it empty, and of no other: torch fails at those.

    With momentum in one group only, SGD has none of the others; LayerFreezing takes away parameters, not their state.
    """

    def forget(optimizer: Optimizer) -> None:
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in [*optimizer.state]:
            if parameter not in held:
                del optimizer.state[parameter]

    def complete(optimizer: Optimizer, state: dict[str, Any]) -> None:
        for group in state["param_groups"] if state["state"] else ():
            for parameter in group["params"]:
                state["state"].setdefault(parameter, {})

    optimizer.register_state_dict_pre_hook(forget)
    optimizer.register_state_dict_post_hook(complete)
    return optimizer
