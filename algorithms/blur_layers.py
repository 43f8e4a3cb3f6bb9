"""The layers of BlurPool (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"), in plain torch.

Names, arguments and numbers are those of `composer.algorithms.blurpool`. Along an axis where the convolution's kernel
is 1 wide, as in the shortcuts of a ResNet, the filter runs at the stride and the convolution at stride 1, on a quarter
of the pixels; and on the CPU contiguous maps are pooled in channels_last.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.common_types import _size_2_t
from torch.nn.modules.utils import _pair


def blur_filter() -> Tensor:
    """The default filter, `[1 2 1; 2 4 2; 1 2 1] / 16`, of shape `(1, 1, 3, 3)`."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    return torch.outer(taps, taps)[None, None]


def blur_2d(input: Tensor, channels: int = -1, stride: _size_2_t = 1, filter: Tensor | None = None) -> Tensor:
    """Low-pass filter each channel of `input`, `(N, C, H, W)`, padded with zeros to "same" size, then subsample.

    Args:
        channels: C; by default taken from `input`.
        stride: along H and W.
        filter: `(C, 1, kH, kW)`, or `(1, 1, kH, kW)` or `(kH, kW)` for all channels alike; kH and kW odd. By default
            that of `blur_filter`.
    """
    if filter is None:
        filter = blur_filter().to(input)
    if filter.ndim == 2:
        filter = filter[None, None]
    height, width = filter.shape[-2:]
    if height % 2 == 0 or width % 2 == 0:
        raise IndexError(f"A blur filter must have odd height and width, got {height} x {width}.")
    channels = input.shape[1] if channels < 1 else channels
    filter = filter.expand(channels, 1, height, width)
    return F.conv2d(input, filter, None, _pair(stride), (height // 2, width // 2), 1, channels)


def blurmax_pool2d(
    input: Tensor,
    kernel_size: _size_2_t | None = None,
    stride: _size_2_t = 2,
    padding: _size_2_t = 0,
    dilation: _size_2_t = 1,
    ceil_mode: bool = False,
    filter: Tensor | None = None,
) -> Tensor:
    """Max-pool `input`, `(N, C, H, W)`, at stride 1, then blur and subsample; arguments as of `F.max_pool2d`."""
    kernel_size = (2, 2) if kernel_size is None else kernel_size
    # torch's CPU kernel is several times faster in channels_last, which pays for converting there and back.
    convert = input.device.type == "cpu" and not input.is_contiguous(memory_format=torch.channels_last)
    if convert:
        input = input.contiguous(memory_format=torch.channels_last)
    maxima = F.max_pool2d(input, kernel_size, 1, padding, dilation, ceil_mode)
    blurred = blur_2d(maxima, stride=stride, filter=filter)
    return blurred.contiguous() if convert else blurred


class _Blur(nn.Module):
    """Holds the filter: with the module on every device and in every precision, but in no state_dict."""

    blur_filter: Tensor
    # What Composer's layers of the same names put into a state_dict.
    _composer_entries = ("blur_filter", "filt2d")

    def __init__(self):
        super().__init__()
        self.register_buffer("blur_filter", blur_filter(), persistent=False)

    def reset_parameters(self) -> None:
        """For models that are built on the meta device and get their values afterwards."""
        self.blur_filter.copy_(blur_filter())

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[override]
        for name in self._composer_entries:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class BlurMaxPool2d(_Blur):
    """`torch.nn.MaxPool2d` with anti-aliasing, see `blurmax_pool2d`; `return_indices` has no meaning here."""

    def __init__(
        self,
        kernel_size: _size_2_t,
        stride: _size_2_t | None = None,
        padding: _size_2_t = 0,
        dilation: _size_2_t = 1,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )

    def forward(self, input: Tensor) -> Tensor:
        return blurmax_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.blur_filter
        )

    @staticmethod
    def from_maxpool2d(module: nn.MaxPool2d, module_index: int = -1) -> "BlurMaxPool2d":
        return BlurMaxPool2d(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


class BlurConv2d(_Blur):
    """`torch.nn.Conv2d` with anti-aliasing: blur, then convolve at the stride; arguments as of `torch.nn.Conv2d`.

    `blur_first=False` convolves at stride 1, then blurs at the stride, as the paper does: for a stride of 2 four times
    the work in the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t | None = None,
        padding: _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        blur_first: bool = True,
    ):
        super().__init__()
        stride = kernel_size if stride is None else stride
        self._wrap(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias), blur_first
        )

    @staticmethod
    def from_conv2d(module: nn.Conv2d, module_index: int = -1, blur_first: bool = True) -> "BlurConv2d":
        """A blurred `module` around its own parameters; `module` itself is taken over, its stride changed."""
        layer = BlurConv2d.__new__(BlurConv2d)
        _Blur.__init__(layer)
        layer._wrap(module, blur_first)
        return layer.to(module.weight)

    blur_stride: tuple[int, int]

    def _wrap(self, conv: nn.Conv2d, blur_first: bool) -> None:
        padding = (0, 0) if conv.padding == "valid" else conv.padding
        pixelwise = [k == 1 and p == 0 for k, p in zip(conv.kernel_size, padding, strict=True)]
        if blur_first:
            # Along an axis where the convolution sees single pixels, those between its strides need no blurring.
            (height, width), (single_row, single_column) = conv.stride, pixelwise
            self.blur_stride = (height if single_row else 1, width if single_column else 1)
            conv.stride = (1 if single_row else height, 1 if single_column else width)
        else:
            self.blur_stride, conv.stride = _pair(conv.stride), (1, 1)
        self.blur_first = blur_first
        # A 1x1 convolution without bias and the filter commute, and after subsampling there is less to convolve.
        self._blurs_input = blur_first or (all(pixelwise) and conv.bias is None)
        conv._already_blurpooled = True  # type: ignore[assignment]  # Composer's mark: neither of us wraps it again
        self.conv = conv

    def forward(self, input: Tensor) -> Tensor:
        if self._blurs_input:
            return self.conv(blur_2d(input, self.conv.in_channels, self.blur_stride, self.blur_filter))
        return blur_2d(self.conv(input), self.conv.out_channels, self.blur_stride, self.blur_filter)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[override]
        # A checkpoint of the network without BlurPool, such as a pretrained one, has the convolution in this place.
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                state_dict.setdefault(f"{prefix}conv.{name}", state_dict.pop(prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args)


class BlurPool2d(_Blur):
    """`blur_2d` as a layer, subsampling by `stride`; `channels` and `padding` are accepted for Composer's sake."""

    def __init__(self, channels: int = 0, stride: _size_2_t = 2, padding: _size_2_t = 1):
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        return blur_2d(input, self.channels, self.stride, self.blur_filter)
