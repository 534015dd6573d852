"""Operations on batches of images: random resized crops, color maps, Gaussian blur and solarization."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TRIES = 10  # for a crop, before the central crop is taken, as in torchvision
CROP_DRAWS = 2 * _TRIES + 2


def random_crops(
    uniforms: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn `(m, 22)` uniform numbers into m crops `(top, left, crop_height, crop_width)` of whole pixels.

    The distribution is that of torchvision's `RandomResizedCrop`: of ten areas `a ~ U(scale) height width` and ratios
    `log r ~ U(log ratio)`, the first whose rounded width `sqrt(a r)` and height `sqrt(a / r)` fit is placed uniformly;
    if none fits, the largest central crop with an allowed ratio is taken. Returns float32 vectors `(m,)` of integers.
    """
    area = uniforms[:, :_TRIES].mul(scale[1] - scale[0]).add_(scale[0]).mul_(height * width).sqrt_()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = uniforms[:, _TRIES : 2 * _TRIES].mul(high - low).add_(low).mul_(0.5).exp_()
    widths, heights = (area * root).round_(), (area / root).round_()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    # At least one pixel, also for an extreme ratio and a tiny image, where torchvision fails.
    fallback_height = float(min(height, max(1, round(width / ratio[0]))))
    fallback_width = float(min(width, max(1, round(height * ratio[1]))))
    crop_height = torch.where(found, heights.gather(1, first).squeeze(1), fallback_height)
    crop_width = torch.where(found, widths.gather(1, first).squeeze(1), fallback_width)
    # The minimum, because float32 may round u (room + 1) up to room + 1.
    top, left = (
        torch.where(found, torch.minimum((u * (room + 1)).floor_(), room), (room / 2).floor_())
        for u, room in ((uniforms[:, -2], height - crop_height), (uniforms[:, -1], width - crop_width))
    )
    return top, left, crop_height, crop_width


def resize_taps(
    start: Tensor, length: Tensor, source: int, size: int, mirror: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices and weights `(m, size, k)` of the pixels that resize crops of one axis, of `source` pixels, to `size`.

    A crop is the pixels `start ... start + length - 1`; `start` and `length` are `(m,)` integers in float32. Resizing
    is bilinear with half-pixel centers, and the edge of the crop is repeated. A crop longer than `size` is smoothed by
    a triangle as wide as the step, as in Pillow's `BILINEAR`. Indices are inside the crop, weights sum to 1, and k is 2
    unless `source` exceeds `size`. Rows with `mirror` `(m,)` are reversed.
    """
    row = torch.arange(size, dtype=torch.float32, device=start.device).add_(0.5)
    if mirror is not None:
        row = torch.where(mirror[:, None], row.flip(0), row)
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    center = row[..., None] * step + (start - 0.5)
    width = step.clamp(min=1)
    most = math.ceil(2 * max(1.0, source / size))
    taps = torch.arange(1, 1 + most, dtype=torch.float32, device=start.device)
    pixel = (center - width).floor_() + taps  # all pixels closer to the center than the width
    weight = (pixel - center).abs_().div_(width).neg_().add_(1).clamp_(min=0)
    inside = torch.minimum(torch.maximum(pixel, start), start + length - 1)
    weight.mul_(inside == pixel)
    return inside.to(torch.int64), weight.div_(weight.sum(dim=2, keepdim=True))


def resize_rows(images: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Resample the rows of images `(m, c, h, w)` with the result of `resize_taps`: `(m, c, size, w)`.

    Each new row is a weighted sum of a few whole rows, which an embedding bag computes. Unlike `grid_sample` this
    antialiases and keeps an identity crop exact; it is faster on a CPU than dense interpolation matrices.
    """
    m, channels, height, width = images.shape
    first = torch.arange(0, m * channels * height, height, device=images.device).view(m, channels, 1, 1)
    index = (first + index[:, None]).flatten(0, 2)
    weight = weight[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    rows = F.embedding_bag(index, images.reshape(-1, width), mode="sum", per_sample_weights=weight)
    return rows.view(m, channels, -1, width)


# Weights of the gray level (ITU-R BT.601), as in Pillow and torchvision, and of the two YIQ chroma axes.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64)
_QUARTER_TURN = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # red towards yellow
_GRAY = _YIQ[:1].expand(3, 3)
# U, I - U and K of `color_maps`
_COLOR_BASIS = torch.stack([_GRAY, torch.eye(3) - _GRAY, torch.linalg.solve(_YIQ, _QUARTER_TURN @ _YIQ)]).view(3, 9)


def color_maps(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices `(m, 3, 3)` and offsets `(m,)` of the color maps `x -> matrix x + offset * (mean gray of the image)`.

    Arguments are `(m,)`: factors b, k, s of brightness, contrast and saturation, 1 for no change, and `hue` in turns.
    With the gray level g'x, U = 1 g' and K the quarter turn of the YIQ chroma plane (a linear version of torchvision's
    hue shift), `matrix = b k (U + s (cos t (I - U) + sin t K))` and `offset = b (1 - k)`, t = 2 pi hue. These maps
    commute, so torchvision's random order would change nothing except its clamping between steps.
    """
    angle = hue * (2 * math.pi)
    parts = torch.stack([torch.ones_like(hue), saturation * angle.cos(), saturation * angle.sin()], dim=1)
    matrix = ((brightness * contrast)[:, None] * parts) @ _COLOR_BASIS.to(parts)
    return matrix.view(-1, 3, 3), brightness * (1 - contrast)


def gray_weights(channels: int, device: torch.device) -> Tensor:
    """Weights `(c,)` of the gray level: luma for 3 channels, 1 for one channel."""
    return (_YIQ[0] if channels == 3 else torch.ones(1)).to(device, torch.float32)


def blur_radius(size: int) -> int:
    """Radius r of SimCLR's blur kernel in pixels; `2 r + 1` is about 10 % of the side, and r is 0 below 20 pixels."""
    return size // 10 // 2


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur every image `(m, c, h, w)` with its own `sigma` `(m,)` (pixels, positive).

    As torchvision's `gaussian_blur`: weights are proportional to `exp(-j^2 / (2 sigma^2))` for |j| <= radius and sum
    to 1; borders are reflected without repeating the edge.
    """
    offsets = torch.arange(radius + 1, dtype=images.dtype, device=images.device)
    weight = (-0.5 * (offsets / sigma[:, None]) ** 2).exp()
    weight = weight / (2 * weight.sum(dim=1, keepdim=True) - weight[:, :1])
    for axis in (2, 3):
        side = images.shape[axis]
        padded = F.pad(images, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
        images = padded.narrow(axis, radius, side) * weight[:, 0, None, None, None]
        for j in range(1, radius + 1):
            both = padded.narrow(axis, radius - j, side) + padded.narrow(axis, radius + j, side)
            images.addcmul_(both, weight[:, j, None, None, None])
    return images


def solarize(views: Tensor) -> Tensor:
    """Invert the pixels brighter than the middle: `-|x|` on the scale [-1, 1], as Pillow's `ImageOps.solarize`."""
    return views.abs().neg_()
