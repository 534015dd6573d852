"""Networks: an encoder whose features are kept, and the projector that only the loss sees."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from hsic_lab.norm_relu import norm_relu


class _EqualCells(Function):
    """`F.adaptive_avg_pool2d(x, 2)` for even sides, whose gradient is one copy.

    torch's own walks single values on a CPU and took 4 % of an update of `ConvEncoder`; the bits are the same.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        n, c, h, w = ctx.shape
        cells = (gradient / (h * w // 4)).permute(0, 2, 3, 1)[:, :, None, :, None]
        return cells.expand(n, 2, h // 2, 2, w // 2, c).reshape(n, h, w, c).permute(0, 3, 1, 2)


class FourCells(nn.AdaptiveAvgPool2d):
    """The means of the four quarters of a picture: `(n, c, h, w) -> (n, c, 2, 2)`."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        equal = x.shape[2] % 2 == 0 == x.shape[3] % 2
        return _EqualCells.apply(x) if equal else super().forward(x)


class ConvEncoder(nn.Sequential):
    """Six 3x3 convolutions, two of them halving the picture: `(n, channels, h, w) -> (n, 16 width)`.

    Widths `w, w, 2w, 2w, 4w, 4w` with batch normalisation and ReLU, then a 2x2 average pool, whose four cells keep
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
        super().__init__(*layers, FourCells(), nn.Flatten())
        self.out_features = 4 * channels

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on the scale of `views.normalize`."""
        if images.dim() != 4 or images.shape[1] != self[0].in_channels:
            raise ValueError(f"images must have shape (n, {self[0].in_channels}, h, w), got {tuple(images.shape)}")
        x, layers = images, list(self)
        while len(layers) > 2:
            convolution, norm, relu, *layers = layers
            x = norm_relu(convolution(x), norm, relu)
        pool, flatten = layers
        return flatten(pool(x))


class MLPProjector(nn.Sequential):
    """Linear, batch normalisation, ReLU for every hidden width, then a linear layer: `(n, sizes[0]) -> (n, sizes[-1])`.

    `MLPProjector([256, 512, 128])` has one hidden layer of 512; `MLPProjector([256, 128])` is linear. The last layer
    has no bias: every loss of standardised projections is blind to it. Raises ValueError for fewer than two sizes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive widths, got {list(sizes)}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.out_features = sizes[-1]
