"""Residual networks with torchvision's parameter names, for pictures of 32 pixels and of 224."""

from collections.abc import Mapping

from torch import Tensor, nn

from hsic_lab.norm_relu import norm_relu

_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_STEMS = ("cifar", "imagenet")


class ResNetEncoder(nn.Module):
    """ResNet without its classifier: He et al. 2016 (arXiv 1512.03385), `(n, channels, h, w) -> (n, out_features)`.

    depth: 18 or 34 (two 3x3 convolutions a block, 512 features) or 50 (bottlenecks, stride in the 3x3 convolution,
           2048 features)
    stem:  "imagenet", a 7x7 convolution of stride 2 and a max-pool; "cifar", a 3x3 convolution of stride 1 and no pool
           (Chen et al. 2020, arXiv 2002.05709, appendix B.9), for pictures of about 32 pixels

    Parameters are named and initialised as in torchvision, without `fc`. `resnet50.pth` of the official Barlow Twins
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
        x = self.maxpool(norm_relu(self.conv1(images), self.bn1, self.relu))
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
        out = norm_relu(self.conv1(x), self.bn1, self.relu)
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
        out = norm_relu(self.conv1(x), self.bn1, self.relu)
        out = norm_relu(self.conv2(out), self.bn2, self.relu)
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
