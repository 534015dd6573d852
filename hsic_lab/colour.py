"""Colour jitter as affine maps of a pixel, and the two operations on finished views: blur and solarisation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Grey level of a pixel (ITU-R BT.601), as in Pillow and torchvision; below it the two YIQ chroma axes.
_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64
)
_QUARTER_TURN = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # red towards yellow
_GREY = _YIQ[:1].expand(3, 3)
_COLOUR_BASIS = torch.stack(  # U, I - U and K of `colour_maps`
    [_GREY, torch.eye(3, dtype=torch.float64) - _GREY, torch.linalg.solve(_YIQ, _QUARTER_TURN @ _YIQ)]
).view(3, 9)


def colour_maps(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> tuple[Tensor, Tensor]:
    """One affine colour map per image, `x -> matrix x + offset * (mean grey level of the image)`.

    Arguments are `(m,)`: three factors (1 changes nothing; saturation 0 is greyscale) and `hue` in turns.
    Returns the matrices `(m, 3, 3)` and the offsets `(m,)`. With the grey level g'x, U = 1 g' and K the
    quarter turn of the YIQ chroma plane (luma unchanged; the linear version of torchvision's shift of the
    HSV hue),

        matrix = b k (U + s (cos t (I - U) + sin t K)),   offset = b (1 - k),   t = 2 pi hue.

    Brightness b scales, contrast k blends with the image's mean grey level, saturation s with the pixel's
    own. These maps commute (saturation and hue leave every grey level alone, contrast leaves the mean
    alone, brightness scales all), so torchvision's random order would change nothing but its clamping
    between steps; here nothing is clamped between steps.
    """
    angle = hue * (2 * math.pi)
    parts = torch.stack([torch.ones_like(hue), saturation * angle.cos(), saturation * angle.sin()], dim=1)
    matrix = ((brightness * contrast)[:, None] * parts) @ _COLOUR_BASIS.to(parts)
    return matrix.view(-1, 3, 3), brightness * (1 - contrast)


def grey_weights(channels: int, device: torch.device) -> Tensor:
    """Weights (c,) of the grey level: luma for 3 channels, 1 for one channel."""
    weights = _YIQ[0] if channels == 3 else torch.ones(1)
    return weights.to(device, torch.float32)


def blur_radius(size: int) -> int:
    """Radius of SimCLR's blur kernel: `floor(floor(size / 10) / 2)` pixels, so that 2 r + 1 is about 10 % of the side.

    1 at 32 pixels, 3 at 64, 4 at 96, 11 at 224; 0, no blur, below 20 (google-research/simclr, data_util.py).
    """
    return size // 10 // 2


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur every image `(m, c, h, w)` with its own `sigma` `(m,)` (pixels, positive).

    Separable, weights proportional to `exp(-j^2 / (2 sigma^2))` for |j| <= radius and summing to 1, borders
    reflected without repeating the edge: torchvision's `gaussian_blur`. The radius must be smaller than both sides.
    """
    offsets = torch.arange(radius + 1, dtype=images.dtype, device=images.device)
    weight = (-0.5 * (offsets / sigma[:, None]) ** 2).exp()
    weight = weight / (2 * weight.sum(dim=1, keepdim=True) - weight[:, :1])
    for axis in (2, 3):
        side = images.shape[axis]
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, pad, mode="reflect")
        images = padded.narrow(axis, radius, side) * weight[:, 0, None, None, None]
        for j in range(1, radius + 1):
            both = padded.narrow(axis, radius - j, side) + padded.narrow(axis, radius + j, side)
            images.addcmul_(both, weight[:, j, None, None, None])
    return images


def solarize(views: Tensor) -> Tensor:
    """Invert what is brighter than the middle: `-|x|` on the scale [-1, 1].

    On bytes that is 255 - v from 128 on, Pillow's `ImageOps.solarize`.
    """
    return views.abs().neg_()
