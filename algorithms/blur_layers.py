"""The layers of BlurPool (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"), in plain torch.

Names and arguments are those of `composer.algorithms.blurpool`; so are the numbers where both axes are subsampled. The
paper blurs what is subsampled: along an axis of stride 1 these layers do not blur, where Composer's do. Outputs have
the sizes that they have without blur, with `ceil_mode` too. Along an axis where the convolution's kernel is 1 wide, as
in the shortcuts of a ResNet, the filter runs at the stride and the convolution at stride 1, on a quarter of the pixels;
and on the CPU contiguous maps are pooled in channels_last.
"""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

# torch.fx takes these as they are: what they ask of a tensor, it does not know while it traces.
fx.wrap("blur_2d")
fx.wrap("blurmax_pool2d")

Size = int | tuple[int, int]  # TorchScript takes torch's `_size_2_t` for a list


def blur_filter(stride: Size = 2) -> Tensor:
    """The filter along the axes whose stride is above 1, of four dimensions: of both `[1 2 1; 2 4 2; 1 2 1] / 16`."""
    height, width = [torch.tensor([1.0, 2.0, 1.0]) / 4 if s > 1 else torch.ones(1) for s in _both(stride)]
    return torch.outer(height, width)[None, None]


def blur_2d(input: Tensor, channels: int = -1, stride: Size = 1, filter: Tensor | None = None) -> Tensor:
    """Low-pass filter each channel of `input`, `(N, C, H, W)`, padded with zeros to "same" size, then subsample.

    Args:
        channels: C; by default taken from `input`.
        stride: along H and W.
        filter: `(C, 1, kH, kW)`, or `(1, 1, kH, kW)` or `(kH, kW)` for all channels alike; kH and kW odd. By default
            `[1 2 1; 2 4 2; 1 2 1] / 16`, whatever the stride.
    """
    if filter is None:
        filter = blur_filter().to(input)
    if filter.dim() == 2:
        filter = filter[None, None]
    height, width = filter.size(-2), filter.size(-1)
    if height % 2 == 0 or width % 2 == 0:
        raise IndexError(f"A blur filter must have odd height and width, got {height} x {width}.")
    channels = input.size(-3) if channels < 1 else channels
    filter = filter.expand(channels, 1, height, width)
    return F.conv2d(input, filter, None, _both(stride), (height // 2, width // 2), 1, channels)


def blurmax_pool2d(
    input: Tensor,
    kernel_size: Size | None = None,
    stride: Size = 2,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    filter: Tensor | None = None,
) -> Tensor:
    """Max-pool `input`, `(N, C, H, W)`, at stride 1, then blur and subsample; arguments as of `F.max_pool2d`.

    `filter` is that of `blur_2d`; by default that of `blur_filter(stride)`.
    """
    window = (2, 2) if kernel_size is None else _both(kernel_size)
    strides, paddings, dilations = _both(stride), _both(padding), _both(dilation)
    if filter is None:
        filter = blur_filter(strides).to(input)
    if ceil_mode:
        # Windows that reach beyond the border see what is inside of it, as torch's do.
        rows = _overhang(input.size(-2), window[0], strides[0], paddings[0], dilations[0])
        columns = _overhang(input.size(-1), window[1], strides[1], paddings[1], dilations[1])
        if rows > 0 or columns > 0:
            input = F.pad(input, (0, columns, 0, rows), value=-float("inf"))
    # torch's CPU kernel is several times faster in channels_last, which pays for converting there and back. By strides
    # and permutations, as torch.func.vmap knows no memory formats.
    convert = input.dim() == 4 and input.device.type == "cpu" and input.stride(1) != 1
    if convert:
        input = input.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    maxima = F.max_pool2d(input, window, (1, 1), paddings, dilations)
    blurred = blur_2d(maxima, -1, strides, filter)
    return blurred.contiguous() if convert else blurred


def _both(value: Size) -> tuple[int, int]:
    """The value along each axis; torch's `_pair` is not known to TorchScript for values of either type."""
    return (value, value) if isinstance(value, int) else value


def _overhang(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """By how much an axis of `size` must grow for as many windows as `ceil_mode` has: the last begins inside of it."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    last = min((room + stride - 1) // stride, (size + padding - 1) // stride) * stride
    return max(last - room, 0)


class _Blur(nn.Module):
    """Holds the filter: with the module on every device and in every precision, but in no state_dict."""

    blur_filter: Tensor
    # What Composer's layers of the same names put into a state_dict.
    _composer_entries = ("blur_filter", "filt2d")

    def __init__(self, stride: Size = 2):
        super().__init__()
        self.register_buffer("blur_filter", blur_filter(stride), persistent=False)

    def reset_parameters(self) -> None:
        """For models that are built on the meta device and get their values afterwards."""
        self.blur_filter.copy_(
            blur_filter(_pair(self.blur_filter.shape[-2:]))
        )  # as wide as 1 or 3: as for such a stride

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[override]
        for name in self._composer_entries:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class BlurMaxPool2d(_Blur):
    """`torch.nn.MaxPool2d` with anti-aliasing, see `blurmax_pool2d`; `return_indices` has no meaning here."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ):
        super().__init__(kernel_size if stride is None else stride)
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
        """A blurred pool in the place of `module`, with its hooks, which stay removable by their handles."""
        layer = BlurMaxPool2d(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        layer.__dict__.update({name: value for name, value in vars(module).items() if "buffers" not in name})
        return layer


class BlurConv2d(_Blur):
    """`torch.nn.Conv2d` with anti-aliasing: blur, then convolve at the stride; arguments as of `torch.nn.Conv2d`.

    `blur_first=False` convolves at stride 1, then blurs at the stride, as the paper does: for a stride of 2 four times
    the work in the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        blur_first: bool = True,
    ):
        stride = kernel_size if stride is None else stride
        super().__init__(stride)
        self._wrap(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias), blur_first
        )

    @staticmethod
    def from_conv2d(module: nn.Conv2d, module_index: int = -1, blur_first: bool = True) -> "BlurConv2d":
        """A blurred `module` around its own parameters; `module` itself is taken over, its stride changed."""
        layer = BlurConv2d.__new__(BlurConv2d)
        _Blur.__init__(layer, _pair(module.stride))
        # Not `module.weight`: to compute that one may change what computes it, as in spectral normalization.
        layer.to(
            next((parameter for parameter in module.parameters() if parameter.is_floating_point()), torch.empty(0))
        )
        layer._wrap(module, blur_first)
        return layer.train(module.training)

    blur_stride: tuple[int, int]

    def _wrap(self, conv: nn.Conv2d, blur_first: bool) -> None:
        padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
        # Of a forward that is not torch's nothing is known but that it convolves.
        plain = is_plain(conv, nn.Conv2d)
        pixelwise = [plain and k == 1 and p == 0 for k, p in zip(conv.kernel_size, padding, strict=True)]
        if blur_first:
            # Along an axis where the convolution sees single pixels, those between its strides need no blurring.
            (height, width), (single_row, single_column) = _pair(conv.stride), pixelwise
            self.blur_stride = (height if single_row else 1, width if single_column else 1)
            if plain:
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
            return self.conv(blur_2d(input, -1, self.blur_stride, self.blur_filter))
        return blur_2d(self.conv(input), -1, self.blur_stride, self.blur_filter)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[override]
        # A checkpoint of the network without BlurPool, such as a pretrained one, has the convolution in this place,
        # under whatever names it has, such as those of a weight normalization.
        for name in [name for name in state_dict if name.startswith(prefix)]:
            rest = name.removeprefix(prefix)
            if not rest.startswith("conv.") and rest not in self._composer_entries:
                state_dict.setdefault(f"{prefix}conv.{rest}", state_dict.pop(name))
        super()._load_from_state_dict(state_dict, prefix, *args)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module`, an instance of `kind`, does what `kind` does, and no hook anything beside it."""
    steps = [name for name in ("__call__", "forward", "_conv_forward") if hasattr(kind, name)]
    return (
        all(getattr(type(module), name) is getattr(kind, name) and name not in vars(module) for name in steps)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


class BlurPool2d(_Blur):
    """`blur_2d` as a layer, subsampling by `stride`; `channels` and `padding` are accepted for Composer's sake."""

    def __init__(self, channels: int = 0, stride: Size = 2, padding: Size = 1):
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        return blur_2d(input, self.channels, self.stride, self.blur_filter)
