"""Networks: an encoder whose features are kept, and the projector that only the loss sees."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn


class ConvEncoder(nn.Sequential):
    """Six 3x3 convolutions, two of them halving the image: `(n, channels, h, w) -> (n, 16 width)`.

    Widths `w, w, 2w, 2w, 4w, 4w` with batch normalization and ReLU, then a 2x2 average pool, whose four cells keep
    a little of where things are. Small enough to train in about a minute on two CPU cores at 32 pixels.
    `out_features` is the number of features. Raises ValueError unless `width` and `channels` are at least 1.
    """

    def __init__(self, width: int = 16, channels: int = 3) -> None:
        if width < 1 or channels < 1:
            raise ValueError(f"width and channels must be at least 1, got {width} and {channels}")
        layers: list[nn.Module] = []
        for factor, stride in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 1)):
            layers += [
                nn.Conv2d(channels, factor * width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(factor * width),
                nn.ReLU(inplace=True),
            ]
            channels = factor * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.out_features = 4 * channels

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on the scale of `views.normalize`."""
        if images.dim() != 4 or images.shape[1] != self[0].in_channels:
            raise ValueError(f"images must have shape (n, {self[0].in_channels}, h, w), got {tuple(images.shape)}")
        return super().forward(images)


class MLPProjector(nn.Sequential):
    """Linear, batch normalization, ReLU for every hidden width, then a linear layer: `(n, sizes[0]) -> (n, sizes[-1])`.

    `MLPProjector([256, 512, 128])` has one hidden layer of 512; `MLPProjector([256, 128])` is linear. The last layer
    has no bias: every loss of standardized projections is blind to it. Raises ValueError for fewer than two sizes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive widths, got {list(sizes)}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.out_features = sizes[-1]


_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_STEMS = ("cifar", "imagenet")


class ResNetEncoder(nn.Module):
    """ResNet without its classifier: He et al. 2016 (arXiv 1512.03385), `(n, channels, h, w) -> (n, out_features)`.

    depth: 18 or 34 (two 3x3 convolutions a block, 512 features) or 50 (bottlenecks, stride in the 3x3 convolution,
           2048 features)
    stem:  "imagenet", a 7x7 convolution of stride 2 and a max-pool; "cifar", a 3x3 convolution of stride 1 and no pool
           (Chen et al. 2020, arXiv 2002.05709, appendix B.9), for images of about 32 pixels

    Parameters are named and initialized as in torchvision, without `fc`. `resnet50.pth` of the official Barlow Twins
    release has no `fc` either and loads as it is into `ResNetEncoder(50, "imagenet")`; for weights with a classifier
    see `without_classifier`. Raises ValueError for another depth or stem.
    """

    def __init__(self, depth: int = 18, stem: str = "cifar", channels: int = 3) -> None:
        super().__init__()
        if depth not in _LAYERS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _LAYERS))}, got {depth!r}")
        if stem not in _STEMS or channels < 1:
            raise ValueError(f"stem must be 'cifar' or 'imagenet', channels at least 1, got {stem!r} and {channels!r}")
        self.channels = channels
        if stem == "cifar":
            self.conv1, self.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
        else:
            self.conv1, self.maxpool = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        block = Bottleneck if depth == 50 else BasicBlock
        before = 64
        for number, (blocks, width) in enumerate(zip(_LAYERS[depth], (64, 128, 256, 512), strict=True), start=1):
            after = width * block.expansion
            strides = [1 if number == 1 else 2] + [1] * (blocks - 1)
            layer = [block(before if i == 0 else after, width, stride) for i, stride in enumerate(strides)]
            setattr(self, f"layer{number}", nn.Sequential(*layer))
            before = after
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on the scale that the weights were trained on: `views.normalize` for weights made here."""
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images must have shape (n, {self.channels}, h, w), got {tuple(images.shape)}")
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

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


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, four times as wide outside as inside."""

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
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def without_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without `fc.weight` and `fc.bias`, and nothing else changed, so that a strict load stays strict.

    `encoder.load_state_dict(without_classifier(torch.load(path, weights_only=True)))`
    """
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}
