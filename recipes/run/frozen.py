"""What an optimizer's groups have frozen stays the model's, or the run is refused."""

from composer import Callback, Logger, State
from torch import nn
from torch.optim import Optimizer

from accelerando.algorithms.checkpoints import some


class StaysFrozen(Callback):
    """Raises ValueError where an algorithm has put other parameters in the place of frozen ones: those are trained.

    Frozen are those of the model that the optimizer does not hold.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._frozen = {name: p for name, p in model.named_parameters() if id(p) not in held}

    def before_load(self, state: State, logger: Logger) -> None:
        if state.fsdp_config is None:  # which has put its own in the place of all
            self.check(state.model)
        self._frozen = {}  # Composer keeps callbacks, and would keep the model by them

    def check(self, model: nn.Module) -> None:
        """Raises the error if it must."""
        there = {id(parameter) for parameter in model.parameters()}
        if gone := [name for name, parameter in self._frozen.items() if id(parameter) not in there]:
            hint = "leave out that algorithm, or do not freeze them (optimizer.groups)"
            raise ValueError(f"{some(gone)} would be trained, as an algorithm replaces frozen parameters; {hint}")
