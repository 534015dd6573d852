"""Encoders, whose output features are evaluated, and the projector between them and the loss."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from hsic_lab._checks import check_choice

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # residual blocks in each of the four stages


class ConvEncoder(nn.Sequential):
    """Small convolutional encoder: six 3x3 convolutions of widths w, w, 2w, 2w, 4w, 4w.

    Each is followed by batch normalization and ReLU; the second and the fourth halve the image. The 2x2 average pool at
    the end keeps some information about position. On two CPU cores a training on 32-pixel images takes about a minute.

    Parameters
    ----------
    width : int, default 16
        Channels w of the first convolution, at least 1; `out_features` is ``16 * width``.
    channels : int, default 3
        Channels of the images, at least 1.

    Examples
    --------
    >>> import torch
    >>> ConvEncoder(width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, width: int = 16, channels: int = 3) -> None:
        if width < 1 or channels < 1:
            raise ValueError(f"width and channels must be at least 1, got {width} and {channels}")
        layers: list[nn.Module] = []
        first = channels
        for factor, stride in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 1)):
            layers += [
                nn.Conv2d(channels, factor * width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(factor * width),
                nn.ReLU(inplace=True),
            ]
            channels = factor * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.channels, self.out_features = first, 4 * channels

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, out_features) of images (n, channels, h, w) on the scale of `views.normalize`."""
        _check_images(images, self.channels)
        return super().forward(images)


class MLPProjector(nn.Sequential):
    """Projector: linear, batch normalization and ReLU for every hidden width, then a linear layer.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output, at least two: ``[256, 512, 128]`` has one hidden layer, ``[256, 128]`` is linear.
        The last layer has no bias, because losses of standardized projections do not depend on it.

    Examples
    --------
    >>> import torch
    >>> MLPProjector([64, 32, 8])(torch.zeros(4, 64)).shape
    torch.Size([4, 8])
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive widths, got {list(sizes)}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.out_features = sizes[-1]


class ResNetEncoder(nn.Module):
    """ResNet without its classifier.

    Parameters are named and initialized as in torchvision, without ``fc``. The ``resnet50.pth`` of the official Barlow
    Twins release loads into ``ResNetEncoder(50, "imagenet")``; for weights with a classifier see `without_classifier`.

    Parameters
    ----------
    depth : {18, 34, 50}, default 18
        18 and 34 have blocks of two 3x3 convolutions and 512 features; 50 has bottlenecks (with the stride in the 3x3
        convolution) and 2048 features.
    stem : {"cifar", "imagenet"}, default "cifar"
        "imagenet" starts with a 7x7 convolution of stride 2 and a max-pool; "cifar", for images of about 32 pixels,
        with a 3x3 convolution of stride 1.
    channels : int, default 3
        Channels of the images, at least 1.

    References
    ----------
    He et al. (2016), arXiv:1512.03385. Chen et al. (2020), arXiv:2002.05709, appendix B.9, for the "cifar" stem.

    Examples
    --------
    >>> import torch
    >>> ResNetEncoder(18)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 512])
    """

    maxpool: nn.Module

    def __init__(self, depth: int = 18, stem: str = "cifar", channels: int = 3) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth!r}")
        check_choice(stem, ("cifar", "imagenet"), "stem")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels!r}")
        self.channels = channels
        if stem == "cifar":
            self.conv1, self.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
        else:
            self.conv1, self.maxpool = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        block = _Bottleneck if depth == 50 else _BasicBlock
        before = 64
        for stage, (blocks, width) in enumerate(zip(_BLOCKS[depth], (64, 128, 256, 512), strict=True), start=1):
            after = width * block.expansion
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layer = [block(before if i == 0 else after, width, stride) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
            before = after
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, out_features) of images (n, channels, h, w).

        Images have the scale that the weights were trained on, `views.normalize` for weights of this library.
        """
        _check_images(images, self.channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.avgpool(x).flatten(1)


class _BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """A 1x1 convolution if the shape changes, else None."""
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def _check_images(images: Tensor, channels: int) -> None:
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images must have shape (n, {channels}, h, w), got {tuple(images.shape)}")


def without_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without ``fc.weight`` and ``fc.bias``, for a strict `ResNetEncoder.load_state_dict`.

    Parameters
    ----------
    weights : mapping from str to Tensor
        State dict of a ResNet with torchvision's names.

    Examples
    --------
    >>> import torch
    >>> weights = ResNetEncoder(18).state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    >>> ResNetEncoder(18).load_state_dict(without_classifier(weights))
    <All keys matched successfully>
    """
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}
