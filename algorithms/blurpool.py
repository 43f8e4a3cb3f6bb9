"""BlurPool: low-pass filters before subsampling (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").

Same names, arguments, defaults and numbers as in `composer.algorithms`. The layers, in `blur_layers.py`, waste
less work; the parameters stay the very objects that they were, the filter is in no state_dict, and nothing is read from
the device, so the graph compiles whole.
"""

import warnings
from typing import Any

import composer.algorithms
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from .blur_layers import BlurConv2d, BlurMaxPool2d
from .host import refuse_twins


def apply_blurpool(
    model: nn.Module,
    replace_convs: bool = True,
    replace_maxpools: bool = True,
    blur_first: bool = True,
    min_channels: int = 16,
    optimizers: Any = None,
) -> None:
    """Put `BlurConv2d` for strided `nn.Conv2d` with at least `min_channels` input channels, and `BlurMaxPool2d` for
    `nn.MaxPool2d`, in `model`, in place. Warns (NoEffectWarning) where the model then has neither.

    `optimizers` is accepted for Composer's sake: parameters stay the same objects, so theirs stay right.
    """
    anchor = next(model.parameters(), None)
    replaced: dict[nn.Module | None, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child not in replaced:
                if replace_maxpools and isinstance(child, nn.MaxPool2d):
                    layer = BlurMaxPool2d.from_maxpool2d(child)
                    replaced[child] = layer if anchor is None else layer.to(anchor.device, anchor.dtype)
                elif replace_convs and _to_blur(child, min_channels):
                    replaced[child] = BlurConv2d.from_conv2d(child, blur_first=blur_first)  # type: ignore[arg-type]
            if child in replaced:
                parent._modules[name] = replaced[child]
    if not any(isinstance(module, BlurConv2d | BlurMaxPool2d) for module in model.modules()):
        warnings.warn(
            NoEffectWarning("BlurPool changed nothing: the model has no MaxPool2d and no strided Conv2d to replace."),
            stacklevel=2,
        )


def _to_blur(module: nn.Module | None, min_channels: int) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and max(module.stride) > 1
        and module.in_channels >= min_channels
        and not getattr(module, "_already_blurpooled", False)
    )


class BlurPool(Algorithm):
    """Anti-alias the model's strided convolutions and max-pools, see `apply_blurpool` for the arguments.

    A checkpoint remembers that it was trained so. It resumes with this class or Composer's, given the same arguments;
    so does a checkpoint of Composer's; without either, loading it is an error.
    """

    def __init__(
        self,
        replace_convs: bool = True,
        replace_maxpools: bool = True,
        blur_first: bool = True,
        min_channels: int = 16,
    ):
        if not (replace_convs or replace_maxpools):
            raise ValueError(
                "BlurPool: set replace_convs or replace_maxpools to True; with both False it does nothing."
            )
        self.replace_convs = replace_convs
        self.replace_maxpools = replace_maxpools
        self.blur_first = blur_first
        self.min_channels = min_channels
        self._stand_ins: list[Algorithm] = []

    def __repr__(self) -> str:
        return (
            f"BlurPool(replace_convs={self.replace_convs},replace_maxpools={self.replace_maxpools},"
            f"blur_first={self.blur_first},min_channels={self.min_channels})"
        )

    @staticmethod
    def required_on_load() -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        # Loading into a run without this algorithm, Composer finds its own class of this name and evaluates this text.
        # It gets an object that cannot be applied, so it refuses and quotes the text, where it would stack its layers.
        refusal = "BlurPool.__new__(algorithms.BlurPool)  # add to the Trainer's algorithms: accelerando.algorithms."
        return {"repr": f"{refusal}{self!r}"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state["repr"].endswith(repr(self)):
            raise ValueError(
                f"The checkpoint was trained with {state['repr'].rpartition('.')[2]}, but this run has {self!r}. Give "
                "BlurPool the arguments of the checkpoint."
            )

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.AFTER_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            refuse_twins(self, state)
            apply_blurpool(state.model, self.replace_convs, self.replace_maxpools, self.blur_first, self.min_channels)
            for name, layer in (("blurpool", BlurMaxPool2d), ("blurconv", BlurConv2d)):
                count = len({module for module in state.model.modules() if isinstance(module, layer)})
                logger.log_hyperparameters({f"blurpool/num_{name}_layers": count})
        elif event == Event.BEFORE_LOAD:
            # While a checkpoint loads, objects of Composer's class tell Composer that the layers are there already,
            # whichever of the two classes has saved it. They act on no event.
            self._stand_ins = [_stand_in(repr(self)), _stand_in(self.state_dict()["repr"])]
            state.algorithms.extend(self._stand_ins)
        else:
            state.algorithms = [algorithm for algorithm in state.algorithms if algorithm not in self._stand_ins]
            self._stand_ins = []


def _stand_in(text: str) -> Algorithm:
    algorithm = composer.algorithms.BlurPool()
    algorithm.__repr__ = lambda: text  # Composer calls it as an attribute of the object
    return algorithm
