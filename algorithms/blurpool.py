"""BlurPool: low-pass filters before subsampling (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").

Same names, arguments and defaults as in `composer.algorithms`, and the same numbers but for what is not subsampled: the
paper's method does not blur it, Composer's does (`MaxPool2d(3, 1, 1)`, and the axis of stride 1 where the other is
strided). The layers, in `blur_layers.py`, waste less work; the parameters stay the very objects that they were, the
filter is in no state_dict, and nothing is read from the device, so that models compile whole, script, trace and export.
"""

import copy
import warnings
from typing import Any

import composer.algorithms
import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn
from torch.nn.modules.utils import _pair

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
    strided `nn.MaxPool2d`, in `model`, in place. What is not strided stays. Warns of what cannot be blurred and is left
    alone (UserWarning), and where the model then has no blur (NoEffectWarning).

    `optimizers` is accepted for Composer's sake: parameters stay the same objects, so theirs stay right.
    """
    anchor = next(model.parameters(), None)
    replaced: dict[nn.Module | None, nn.Module] = {}
    left: dict[str, str] = {}
    for place, parent in list(model.named_modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
                continue
            pool = replace_maxpools and isinstance(child, nn.MaxPool2d) and max(_pair(child.stride)) > 1
            if not pool and not (replace_convs and _to_blur(child, min_channels)):
                continue
            if reason := _obstacle(child, blur_first):  # type: ignore[arg-type]
                left[f"{place}.{name}".lstrip(".")] = reason
            elif pool:
                layer = BlurMaxPool2d.from_maxpool2d(child)  # type: ignore[arg-type]
                replaced[child] = layer if anchor is None else layer.to(anchor.device, anchor.dtype)
            else:
                replaced[child] = BlurConv2d.from_conv2d(child, blur_first=blur_first)  # type: ignore[arg-type]
            parent._modules[name] = replaced.get(child, child)  # type: ignore[arg-type]
    if left:
        what = "; ".join(f"{name} ({reason})" for name, reason in left.items())
        warnings.warn(f"BlurPool leaves alone what it cannot blur: {what}.", stacklevel=2)
    if not any(isinstance(module, BlurConv2d | BlurMaxPool2d) for module in model.modules()):
        warnings.warn(
            NoEffectWarning("BlurPool changed nothing: the model has no strided MaxPool2d or Conv2d to replace."),
            stacklevel=2,
        )


def _to_blur(module: nn.Module | None, min_channels: int) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and max(_pair(module.stride)) > 1
        and (module.in_channels >= min_channels or isinstance(module, nn.LazyConv2d))
        and not getattr(module, "_already_blurpooled", False)
    )


def _obstacle(module: nn.MaxPool2d | nn.Conv2d, blur_first: bool) -> str | None:
    """Why this strided module cannot be blurred."""
    if isinstance(module, nn.MaxPool2d):
        if module.return_indices:
            return "return_indices=True: a blurred maximum has no index"
        return None if type(module).forward is nn.MaxPool2d.forward else "a forward of its own"
    if isinstance(module, nn.LazyConv2d):
        return "a lazy module without weights: run a batch through the model first"
    if blur_first or type(module).forward is nn.Conv2d.forward or _subsamples_by_its_stride(module):
        return None
    return "a forward of its own, which does not follow its stride: use blur_first=True"


def _subsamples_by_its_stride(conv: nn.Conv2d) -> bool:
    """Whether a forward that is not torch's, tried on a copy that holds no data, has at stride 1 every pixel."""
    try:
        copied = copy.deepcopy(conv).to("meta")
        # Some pixels more than a kernel, and not a multiple of the stride.
        sizes = [7 * s + d * (k - 1) + 2 for s, d, k in zip(conv.stride, conv.dilation, conv.kernel_size, strict=True)]
        input = torch.empty(2, conv.in_channels, *sizes, device="meta", dtype=next(copied.parameters()).dtype)
        few = copied.forward(input).shape
        copied.stride = (1, 1)
        all_of_them = copied.forward(input).shape
    except Exception:  # whatever somebody's forward may raise
        return False
    return few == (*all_of_them[:2], *(-(-n // s) for n, s in zip(all_of_them[2:], conv.stride, strict=True)))


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
            kinds = {"blurpool": BlurMaxPool2d, "blurconv": BlurConv2d}
            counts = {n: sum(isinstance(module, kind) for module in state.model.modules()) for n, kind in kinds.items()}
            logger.log_hyperparameters({f"blurpool/num_{n}_layers": count for n, count in counts.items()})
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
