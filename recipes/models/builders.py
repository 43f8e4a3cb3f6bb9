"""Models by name, each a function that returns a `ComposerModel`; a YAML gives the arguments."""

from itertools import chain, pairwise
from typing import Literal

import torch.nn.functional as F
import torchvision
from composer.models import ComposerClassifier
from torch import Tensor, nn

from ..data.checks import check_least
from .classifier import Loss, classifier


def resnet(
    depth: Literal[18, 34, 50, 101, 152] = 50, num_classes: int = 1000, width: int = 64, loss: Loss = "cross_entropy"
) -> ComposerClassifier:
    """torchvision's ResNet for ImageNet. Images: (N, 3, H, W).

    Args:
        depth: layers with weights.
        num_classes: how many there are.
        width: of the 3x3 convolutions in the first stage; 128 is Wide ResNet (Zagoruyko & Komodakis 2016). ValueError
            for another than 64 at depth 18 and 34, whose blocks torchvision makes in that width alone.
        loss: of softmax; or `bce`, the binary cross entropy of each class, summed over classes.
    """
    check_least(1, num_classes=num_classes, width=width)
    if depth < 50 and width != 64:
        raise ValueError(f"width must be 64 at depth {depth}, not {width}; other widths are for depth 50, 101 and 152")
    module = getattr(torchvision.models, f"resnet{depth}")(num_classes=num_classes, width_per_group=width)
    return classifier(module, module.fc, loss)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet_cifar(
    depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16, loss: Loss = "cross_entropy"
) -> ComposerClassifier:
    """The CIFAR ResNet of He et al. 2015 (section 4.2): a 3x3 stem, then three stages of `width`, 2 and 4 `width`.

    Shortcuts between stages are 1x1 projections (option B). Images: (N, in_channels, H, W).

    Args:
        depth: 6n + 2 layers: 20 and 56 for CIFAR, 8 for digits.
        num_classes: how many there are.
        in_channels: of the images.
        width: channels of the first stage.
        loss: of softmax; or `bce`, the binary cross entropy of each class, summed over classes.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ... 56), not {depth}")
    check_least(1, num_classes=num_classes, in_channels=in_channels, width=width)
    stem = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [_Block(width, width, stride=1) for _ in range(depth // 6)]
    for channels in (2 * width, 4 * width):
        blocks += [_Block(channels // 2, channels, stride=2)]
        blocks += [_Block(channels, channels, stride=1) for _ in range(depth // 6 - 1)]
    head = nn.Linear(4 * width, num_classes)
    return classifier(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), head, loss)


def vgg_cifar(
    depth: Literal[11, 13, 16, 19] = 16,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    loss: Loss = "cross_entropy",
) -> ComposerClassifier:
    """The VGG for CIFAR of Frankle et al. 2020 (models/cifar_vgg.py of facebookresearch/open_lth).

    Simonyan & Zisserman 2015's convolutions (table 1: A, B, D, E), `width` in the first stage and up to 8 `width`, each
    with BatchNorm; four max poolings, the mean of what is left, and one linear layer in place of three. Images:
    (N, in_channels, H, W) of 16 pixels per side or more; below 32 the last stage sees one pixel, so that eight ninths
    of its weights have no effect.

    Args:
        depth: layers with weights of the original, which has three linear ones.
        num_classes: how many there are.
        in_channels: of the images.
        width: channels of the first stage.
        loss: of softmax; or `bce`, the binary cross entropy of each class, summed over classes.
    """
    check_least(1, num_classes=num_classes, in_channels=in_channels, width=width)
    stages = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, (convolutions, scale) in enumerate(zip(stages, (1, 2, 4, 8, 8), strict=True)):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, scale * width, 3, padding=1), nn.BatchNorm2d(scale * width), nn.ReLU()]
            channels = scale * width
    head = nn.Linear(channels, num_classes)
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return classifier(module, head, loss, least_side=16)


def lenet_300_100(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    width: int = 300,
    depth: int = 3,
    loss: Loss = "cross_entropy",
) -> ComposerClassifier:
    """The network of linear layers of LeCun et al. 1998 that Frankle & Carbin 2019 prune on MNIST.

    As in models/mnist_lenet.py of facebookresearch/open_lth. Images: (N, in_channels, H, W) of `image_size`.

    Args:
        num_classes: how many there are, the outputs of the last layer.
        in_channels: of the images.
        image_size: pixels per side.
        width: outputs of the first layer; those after it have a third of that.
        depth: how many linear layers there are.
        loss: of softmax; or `bce`, the binary cross entropy of each class, summed over classes.
    """
    check_least(1, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    check_least(2, depth=depth)
    check_least(3 if depth > 2 else 1, width=width)
    sizes = [in_channels * image_size**2, width, *[width // 3] * (depth - 2)]
    hidden = [(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(sizes)]
    head = nn.Linear(sizes[-1], num_classes)
    module = nn.Sequential(nn.Flatten(), *chain(*hidden), head)
    return classifier(module, head, loss, channels=in_channels, side=image_size)


def convnet(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: int = 128,
    depth: int = 3,
    normalization: Literal["instance", "batch"] = "instance",
    loss: Loss = "cross_entropy",
) -> ComposerClassifier:
    """The ConvNet of Gidaris & Komodakis 2018 with which images are condensed (Zhao et al. 2021), ConvNet-3 by default.

    `depth` times a 3x3 convolution, normalization, ReLU and the mean of 2x2 pixels; then one linear layer of all that
    is left. As in models/convnet.py of snu-mllab/Efficient-Dataset-Condensation, images of 28 pixels are padded to 32,
    and instance normalization has a scale and a shift for each channel. Images: (N, in_channels, H, W) of `image_size`.

    Args:
        num_classes: how many there are.
        in_channels: of the images.
        image_size: pixels per side.
        width: channels of each convolution.
        depth: how many blocks there are, each of which halves the sides.
        normalization: `instance` norm, of each image by itself, or `batch` norm.
        loss: of softmax; or `bce`, the binary cross entropy of each class, summed over classes.
    """
    check_least(1, num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
    padded = 32 if image_size == 28 else image_size
    if padded < 2**depth:
        raise ValueError(f"image_size must be at least {2**depth}, which {depth} poolings halve to 1, not {image_size}")
    layers: list[nn.Module] = []
    for block in range(depth):
        padding = 1 if block else 1 + (padded - image_size) // 2
        layers += [nn.Conv2d(width if block else in_channels, width, 3, padding=padding)]
        layers += [nn.GroupNorm(width, width) if normalization == "instance" else nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
    head = nn.Linear(width * (padded // 2**depth) ** 2, num_classes)
    return classifier(nn.Sequential(*layers, nn.Flatten(), head), head, loss, side=image_size)
