"""The groups of an optimizer stay what they were made, or the run is refused."""

from typing import Any

from composer import Callback, Logger, State
from torch import nn
from torch.optim import Optimizer

from accelerando.algorithms.checkpoints import some


class KeepsGroups(Callback):
    """Raises ValueError where an algorithm trains what is frozen, or a checkpoint brings options of other groups.

    Frozen are those parameters of the model that the optimizer does not hold.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._frozen = {name: p for name, p in model.named_parameters() if id(p) not in held}
        self._optimizer, self._options = optimizer, _what_differs(optimizer)

    def before_load(self, state: State, logger: Logger) -> None:
        if state.fsdp_config is None:  # which has put its own in the place of all
            self.check_frozen(state.model)
        self._frozen = {}  # Composer keeps callbacks, and would keep the model by them

    def check_frozen(self, model: nn.Module) -> None:
        """Raises the error where a frozen parameter is gone: another one is in its place."""
        there = {id(parameter) for parameter in model.parameters()}
        if gone := [name for name, parameter in self._frozen.items() if id(parameter) not in there]:
            hint = "leave out that algorithm, or do not freeze them (optimizer.groups)"
            raise ValueError(f"{some(gone)} would be trained, as an algorithm replaces frozen parameters; {hint}")

    def after_load(self, state: State, logger: Logger) -> None:
        for was, group in zip(self._options, self._optimizer.param_groups, strict=True):
            for name, value in was.items():
                if (now := _option(group, name)) != value:
                    problem = (
                        f"the optimizer's groups are not the checkpoint's: {name} would be {now} in place of {value}"
                    )
                    raise ValueError(f"{problem}; load its weights alone (load_weights_only=true)")


def _what_differs(optimizer: Optimizer) -> list[dict[str, Any]]:
    """By group, the options in which groups differ."""
    first, *others = optimizer.param_groups
    names = {name for group in others for name in group if name != "params" and group[name] != first.get(name)}
    return [{name: _option(group, name) for name in sorted(names - {"initial_lr"})} for group in optimizer.param_groups]


def _option(group: dict[str, Any], name: str) -> Any:
    """A rate before the schedule has multiplied it."""
    return group.get("initial_lr", group.get("lr")) if name == "lr" else group.get(name)
