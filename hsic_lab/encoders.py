"""Networks: an encoder whose features are kept, and the projector that only the loss sees."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.out_features = 4 * channels

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on the scale of `views.normalize`."""
        if images.dim() != 4 or images.shape[1] != self[0].in_channels:
            raise ValueError(f"images must have shape (n, {self[0].in_channels}, h, w), got {tuple(images.shape)}")
        return super().forward(images)


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
