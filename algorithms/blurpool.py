"""BlurPool: low-pass filters before subsampling (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").

Same names, arguments and defaults as in `composer.algorithms`, and the same numbers but for what is not subsampled: the
paper's method does not blur it, Composer's does (`MaxPool2d(3, 1, 1)`, and the axis of stride 1 where the other is
strided). The layers, in `blur_layers.py`, waste less work; the parameters stay the very objects that they were, the
filter is in no state_dict, and nothing is read from the device, so that models compile whole, script, trace and export.
"""

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from .blur_layers import BlurConv2d, BlurMaxPool2d
from .validation import NoEffectWarning

NOTHING_CHANGED = "BlurPool changed nothing: the model has no strided MaxPool2d or Conv2d to replace."


def apply_blurpool(
    model: nn.Module,
    replace_convs: bool = True,
    replace_maxpools: bool = True,
    blur_first: bool = True,
    min_channels: int = 16,
    optimizers: Any = None,
) -> None:
    """Put `BlurConv2d` for strided `nn.Conv2d`, and `BlurMaxPool2d` for strided `nn.MaxPool2d`, in `model`, in place.

    What is not strided stays. Warns of what cannot be blurred and is left alone (UserWarning), and where the model then
    has no blur (NoEffectWarning).

    Args:
        model: the network.
        replace_convs: blur strided convolutions.
        replace_maxpools: blur strided max-pools.
        blur_first: blur before a convolution, or else after it.
        min_channels: input channels from which on a convolution is blurred.
        optimizers: accepted for Composer's sake: parameters stay the same objects, so theirs stay right.
    """
    if not put_blur(model, replace_convs, replace_maxpools, blur_first, min_channels):
        warnings.warn(NoEffectWarning(NOTHING_CHANGED), stacklevel=2)


def put_blur(
    model: nn.Module, replace_convs: bool, replace_maxpools: bool, blur_first: bool, min_channels: int
) -> bool:
    """Does so, but for the last warning, and returns whether the model then has a blur."""
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
        warnings.warn(f"BlurPool leaves alone what it cannot blur: {what}.", stacklevel=3)
    return any(isinstance(module, BlurConv2d | BlurMaxPool2d) for module in model.modules())


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
