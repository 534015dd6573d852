"""Encoders, whose output features are evaluated, and the projector between them and the loss."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsic_lab._checks import check_choice, check_integer, is_whole

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # residual blocks in each of the four stages


class ConvEncoder(nn.Sequential):
    """Small convolutional encoder: six 3x3 convolutions of widths w, w, 2w, 2w, 4w, 4w.

    Each is followed by batch normalization and ReLU; the second and the fourth halve the image. The 2x2 average pool at
    the end keeps some information about position. On two CPU cores a training on 32-pixel images takes about a minute.

    Parameters
    ----------
    width, channels : int, default 16 and 3
        Channels w of the first convolution and channels of the images; `out_features` is ``16 * width``.

    Examples
    --------
    >>> import torch
    >>> ConvEncoder(width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, width: int = 16, channels: int = 3) -> None:
        width, channels = check_integer("width", width, 1), check_integer("channels", channels, 1)
        layers: list[nn.Module] = []
        sizes = pairwise([channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width])
        for (before, after), stride in zip(sizes, (1, 2, 1, 2, 1, 1), strict=True):
            layers += [_convolution(before, after, 3, stride), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.channels, self.out_features = channels, 16 * width

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, out_features) of images (n, channels, h, w) on the scale of `views.normalize`."""
        _check_images(images, self.channels)
        return super().forward(images)


class PooledEncoder(nn.Module):
    """Wide, shallow encoder for short trainings on a CPU: its features are pooled from all three convolutions.

    A 4x4 convolution of stride 2 and two 3x3 convolutions, the first of stride 2, have w, 2w and 4w channels, each with
    batch normalization and ReLU. The features are the 2x2 average pools of the three maps: the first maps give colors
    and edges in the four quarters of the image, as in Coates et al. (2011, AISTATS), and the last one larger patterns.
    No convolution runs at full resolution, where memory and not arithmetic limits a CPU.

    Parameters
    ----------
    width, channels : int, default 64 and 3
        Channels w of the first convolution and channels of the images; `out_features` is ``28 * width``.

    Examples
    --------
    >>> import torch
    >>> PooledEncoder(width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 112])
    """

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        width, channels = check_integer("width", width, 1), check_integer("channels", channels, 1)
        sizes = (channels, width, 4, 2), (width, 2 * width, 3, 2), (2 * width, 4 * width, 3, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*size, padding=1, bias=False), nn.BatchNorm2d(size[1]), nn.ReLU(inplace=True))
            for size in sizes
        )
        self.channels, self.out_features = channels, 28 * width

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, out_features) of images (n, channels, h, w) on the scale of `views.normalize`."""
        _check_images(images, self.channels)
        pools = []
        for stage in self.stages:
            images = stage(images)
            pools.append(F.adaptive_avg_pool2d(images, 2).flatten(1))
        return torch.cat(pools, dim=1)


class MLPProjector(nn.Sequential):
    """Projector: linear, batch normalization and ReLU for every hidden width, then a linear layer.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output, at least two: ``[256, 512, 128]`` has one hidden layer, ``[256, 128]`` is linear.
        The last layer has no bias, because losses of standardized projections do not depend on it.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
            raise ValueError(f"sizes must be a list of at least two widths, got {sizes!r}")
        sizes = [check_integer("each of sizes", size, 1) for size in sizes]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.out_features = sizes[-1]


class ResNetEncoder(nn.Module):
    """ResNet (He et al. 2016, arXiv:1512.03385) without its classifier.

    Parameters are named and initialized as in torchvision, without ``fc``. The ``resnet50.pth`` of the official Barlow
    Twins release loads into ``ResNetEncoder(50, "imagenet")``; drop a classifier's ``fc.weight`` and ``fc.bias`` first.

    Parameters
    ----------
    depth : {18, 34, 50}, default 18
        18 and 34 have blocks of two 3x3 convolutions and 512 features; 50 has bottlenecks (with the stride in the 3x3
        convolution) and 2048 features.
    stem : {"cifar", "imagenet"}, default "cifar"
        "imagenet" starts with a 7x7 convolution of stride 2 and a max-pool; "cifar", for images of about 32 pixels,
        with a 3x3 convolution of stride 1 (Chen et al. 2020, arXiv:2002.05709, appendix B.9).
    channels : int, default 3
        Channels of the images.
    """

    def __init__(self, depth: int = 18, stem: str = "cifar", channels: int = 3) -> None:
        super().__init__()
        if not is_whole(depth) or depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth!r}")
        check_choice(stem, ("cifar", "imagenet"), "stem")
        self.channels = check_integer("channels", channels, 1)
        self.conv1 = _convolution(self.channels, 64, *((3, 1) if stem == "cifar" else (7, 2)))
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        factor = 4 if depth == 50 else 1  # output channels of a block, over its width
        before = 64
        for stage, (blocks, width) in enumerate(zip(_BLOCKS[depth], (64, 128, 256, 512), strict=True), start=1):
            first = _Block(before, width, factor, 1 if stage == 1 else 2)
            before = width * factor
            others = (_Block(before, width, factor, 1) for _ in range(1, blocks))
            setattr(self, f"layer{stage}", nn.Sequential(first, *others))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, out_features) of images (n, channels, h, w) on the scale of the training's images."""
        _check_images(images, self.channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.avgpool(x).flatten(1)


class _Block(nn.Module):
    """Residual block: two 3x3 convolutions (factor 1), or 1x1, 3x3 and 1x1 convolutions (factor 4, "bottleneck")."""

    def __init__(self, before: int, width: int, factor: int, stride: int) -> None:
        super().__init__()
        after = factor * width
        self.conv1 = _convolution(before, width, 3, stride) if factor == 1 else _convolution(before, width, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, 1 if factor == 1 else stride)
        self.bn2 = nn.BatchNorm2d(width)
        if factor > 1:
            self.conv3, self.bn3 = _convolution(width, after, 1, 1), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if before != after or stride != 1:
            self.downsample = nn.Sequential(_convolution(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(self.relu(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _convolution(before: int, after: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


def _check_images(images: Tensor, channels: int) -> None:
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images must have shape (n, {channels}, h, w), got {tuple(images.shape)}")
