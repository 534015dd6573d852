"""Augmentations: two or more random views of each image of a batch, and published settings by name."""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import as_tensor, check_choice, check_integer, check_number, check_type

__all__ = ["AUGMENTATIONS", "TwoViews", "augmentation", "normalize"]

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    # Tsai et al. (2021), github.com/yaohungt/Barlow-Twins-HSIC, utils.py; for 64-pixel crops.
    "tsai2021": {"grayscale": 0.1},
    # Zbontar et al. (2021), appendix A; github.com/facebookresearch/barlowtwins, main.py; for 224 pixels.
    "barlow_twins": {"scale": (0.08, 1.0), "saturation": 0.2, "blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
    # da Costa et al. (2022), github.com/vturrisi/solo-learn, scripts/pretrain/cifar/augmentations/asymmetric.yaml.
    "solo": {"scale": (0.08, 1.0), "saturation": 0.2, "solarize": (0.0, 0.2)},
    # Chen et al. (2020), appendix A; github.com/google-research/simclr, data_util.py, color strength 1.
    "simclr": {"scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5},
}
_SMALL_CHANGES: dict[str, dict[str, Any]] = {
    "tsai2021": {"scale": (0.08, 1.0), "grayscale": 0.2},
    "simclr": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0},  # appendix B.9
}
Range = tuple[float, float]
Probability = float | Range
_TRIES = 10  # for a crop, before the central crop is taken, as in torchvision
_CROP_DRAWS = 2 * _TRIES + 2


def augmentation(name: str, size: int | Sequence[int], **changes: Any) -> "TwoViews":
    """Return the published augmentation `name` for views of `size` pixels.

    Up to 32 pixels, "tsai2021" and "simclr" have the settings of their papers for CIFAR-10. "barlow_twins" has those
    for 224 pixels at every size; "solo" is solo-learn's version of it for CIFAR, without blur. Crops are always
    bilinear and colors are clamped once, also where the original is bicubic or clamps between steps.

    Parameters
    ----------
    name : {"default", "tsai2021", "barlow_twins", "solo", "simclr"}
        Key of `AUGMENTATIONS`.
    size, **changes : int or sequence of int
        Side of the views in pixels, as in `TwoViews`; settings of `TwoViews` in place of those of the name.
    """
    settings = AUGMENTATIONS[check_choice(name, tuple(AUGMENTATIONS), "augmentation")]
    small = _SMALL_CHANGES.get(name, {}) if max(_sides(size)) <= 32 else {}
    return TwoViews(size, **settings | small | changes)


def normalize(images: Tensor) -> Tensor:
    """Scale images (n, c, h, w), uint8 or floating point in [0, 1], to float32 in [-1, 1], as the encoders need."""
    half = _half_range(images)
    return images.to(torch.float32).div(half).sub_(1)


class TwoViews:
    """Two or more independently augmented views of each image of a batch, on the scale of `normalize`.

    The steps are, in this order: a random resized crop, a horizontal flip, color jitter, grayscale, one clamp to the
    range of images, Gaussian blur, and solarization. Images with 1 channel get no saturation and hue; with 2, 4 or more
    channels, `jitter` and `grayscale` must be 0.

    Parameters
    ----------
    size : int or sequence of int
        Side of two square views, in pixels, or the side of each view: ``[32, 32, 16, 16]`` makes four views, as in
        multi-crop (Caron et al. 2020, arXiv:2006.09882).
    scale, ratio, sigma : (float, float), default (0.2, 1.0), (3/4, 4/3) and (0.1, 2.0)
        Ranges: area of the crop as a share of the image, its width over its height, deviation of the blur in pixels.
    flip, jitter, grayscale : float or (float, float), default 0.5, 0.8 and 0.2
        Probabilities of a horizontal flip, of the four color changes, and of removing the color: one number, or a pair
        for view a and view b. Of more views the first, third, ... have the probabilities of view a.
    brightness, contrast, saturation, hue : float, default 0.4, and 0.1 for hue
        Strengths v of the color changes: factors are uniform in ``[max(0, 1 - v), 1 + v]``, where 1 changes nothing,
        and the turn of the hue is uniform in [-hue, hue] full turns of the color wheel, hue at most 0.5.
    blur, solarize : float or (float, float), default 0.0
        Probabilities of a Gaussian blur, for views of 20 pixels or more, with a kernel of about a tenth of the side,
        and of inverting the pixels that are brighter than the middle.

    Examples
    --------
    >>> import torch
    >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    >>> view_a, view_b = TwoViews(24)(images, torch.Generator().manual_seed(0))
    >>> view_a.shape, view_a.dtype
    (torch.Size([8, 3, 24, 24]), torch.float32)
    """

    def __init__(
        self, size: int | Sequence[int], *, scale: Range = (0.2, 1.0), ratio: Range = (3 / 4, 4 / 3),
        flip: Probability = 0.5, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4,
        hue: float = 0.1, jitter: Probability = 0.8, grayscale: Probability = 0.2, blur: Probability = 0.0,
        sigma: Range = (0.1, 2.0), solarize: Probability = 0.0,
    ) -> None:  # fmt: skip
        self.size, self._sides = size, _sides(size)
        self.scale, self.ratio = _interval("scale", scale, 1.0), _interval("ratio", ratio, math.inf)
        self.brightness = check_number("brightness", brightness, 0)
        self.contrast = check_number("contrast", contrast, 0)
        self.saturation, self.hue = check_number("saturation", saturation, 0), check_number("hue", hue, 0, 0.5)
        self.flip, self.jitter = _probabilities("flip", flip), _probabilities("jitter", jitter)
        self.grayscale, self.solarize = _probabilities("grayscale", grayscale), _probabilities("solarize", solarize)
        self.blur, self.sigma = _probabilities("blur", blur), _interval("sigma", sigma, math.inf)
        if max(self.blur) > 0 and blur_radius(min(self._sides)) == 0:
            raise ValueError(f"blur must be 0 for views below 20 pixels, got blur={blur!r} at size={size}")

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Return the views, float32 (n, c, size, size) in [-1, 1], of images as for `normalize`.

        All randomness is drawn from `generator`, on the device of the images; None is torch's global generator.
        """
        half, device = _half_range(images), images.device
        n, channels, height, width = images.shape
        strengths = self.brightness, self.contrast, self.saturation, self.hue
        color = max(self.grayscale) > 0 or (max(self.jitter) > 0 and max(strengths) > 0)
        if color and channels not in (1, 3):
            raise ValueError(f"color changes need 1 or 3 channels, got {channels}: set jitter=0 and grayscale=0")
        if generator is not None and check_type("generator", generator, torch.Generator).device.type != device.type:
            raise ValueError(f"generator is on {generator.device}, images on {device}: use one device")
        draw = partial(torch.rand, generator=generator, device=device, dtype=torch.float32)
        count = len(self._sides)
        crop, flip, jitter = draw(count * n, _CROP_DRAWS + 7).split([_CROP_DRAWS, 1, 6], dim=1)
        # Drawn last, so that the rest of a view does not depend on it.
        finish = draw(count * n, 3).split(n) if max(*self.blur, *self.solarize) > 0 else None
        crops = [part.split(n) for part in random_crops(crop, height, width, self.scale, self.ratio)]
        taps, views = [], []
        places = zip(self._sides, flip[:, 0].split(n), *crops, strict=True)
        for view, (side, turn, top, left, crop_height, crop_width) in enumerate(places):
            flipped = turn < self.flip[view % 2]
            across = resize_taps(left, crop_width, width, side, flipped)
            taps.append((across, resize_taps(top, crop_height, height, side)))
            views.append(torch.empty(n, channels, side, side, device=device, dtype=torch.float32))
        chunk = n if device.type != "cpu" else max(1, 2**18 // (channels * height * width))  # 1 MiB, for the L2 cache
        with torch.autocast(device.type, enabled=False):  # autocast would round the pixels
            if color:
                colors = [self._draw_color(part, channels, view % 2) for view, part in enumerate(jitter.split(n))]
                luma = (_YIQ[0] if channels == 3 else torch.ones(1)).to(device, torch.float32)
            for begin in range(0, n, chunk):
                rows = slice(begin, begin + chunk)
                part = images[rows].transpose(2, 3).to(torch.float32).contiguous()
                for view, (across, down) in enumerate(taps):
                    narrow = resize_rows(part, *(x[rows] for x in across)).transpose(2, 3)
                    pixels = resize_rows(narrow, *(x[rows] for x in down)).flatten(2)
                    out = views[view][rows].flatten(2)
                    if color:
                        matrix, offset = (part[rows] for part in colors[view])
                        shift = (offset * (pixels.mean(dim=2) @ luma)).div_(half).sub_(1)[:, None, None]
                        torch.baddbmm(shift, matrix / half, pixels, out=out)
                    else:
                        torch.div(pixels, half, out=out).sub_(1)
                    out.clamp_(-1, 1)
                    if finish is not None:
                        self._finish(views[view][rows], finish[view][rows], view % 2)
        return tuple(views)

    def _finish(self, views: Tensor, uniforms: Tensor, view: int) -> None:
        """Blur and solarize in place: uniform numbers `(m, 3)` choose among images `(m, c, s, s)` of view a or b."""
        if self.blur[view] > 0:
            chosen = (uniforms[:, 0] < self.blur[view]).nonzero().squeeze(1)
            sigma = uniforms[chosen, 1] * (self.sigma[1] - self.sigma[0]) + self.sigma[0]
            views[chosen] = gaussian_blur(views[chosen], sigma, blur_radius(views.shape[-1]))
        if self.solarize[view] > 0:
            chosen = (uniforms[:, 2] < self.solarize[view]).nonzero().squeeze(1)
            views[chosen] = views[chosen].abs().neg_()  # inverts above the middle 0, as Pillow's `solarize`

    def _draw_color(self, uniforms: Tensor, channels: int, view: int) -> tuple[Tensor, Tensor]:
        """Color matrices `(m, c, c)` and offsets `(m,)` of view a or b, from `(m, 6)` uniform numbers."""
        strengths = (self.brightness, self.contrast, self.saturation)
        low = uniforms.new_tensor([max(0.0, 1 - v) for v in strengths] + [-self.hue])
        high = uniforms.new_tensor([1 + v for v in strengths] + [self.hue])
        factors = uniforms[:, :4] * (high - low) + low
        jittered = (uniforms[:, 4] < self.jitter[view])[:, None]
        factors = torch.where(jittered, factors, factors.new_tensor([1.0, 1.0, 1.0, 0.0]))
        brightness, contrast, saturation, hue = factors.unbind(1)
        saturation = saturation.masked_fill(uniforms[:, 5] < self.grayscale[view], 0.0)
        matrix, offset = color_maps(brightness, contrast, saturation, hue)
        return (matrix if channels == 3 else (brightness * contrast)[:, None, None]), offset


def _sides(size: int | Sequence[int]) -> tuple[int, ...]:
    """The sides of the views, of two views for one number."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) < 2:
        raise ValueError(f"size must be one side or those of at least two views, got {size!r}")
    return tuple(check_integer("size", side, 1) for side in sides)


def _half_range(images: Tensor) -> float:
    """Check the images and return the pixel value that `normalize` maps to 0."""
    as_tensor(check_type("images", images, Tensor), "images")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point in [0, 1], got {images.dtype}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be (n, c, h, w) with no empty axis, got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return 127.5
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"floating point images must be in [0, 1], got values from {low:g} to {high:g}")
    return 0.5


def _probabilities(name: str, value: Probability) -> Range:
    """The probabilities of view a and view b."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one probability or a pair for view a and view b, got {value!r}")
    return check_number(name, pair[0], 0, 1), check_number(name, pair[1], 0, 1)


def _interval(name: str, value: Range, high: float) -> Range:
    """The two numbers, checked to be 0 < low <= high."""
    pair = hasattr(value, "__len__") and len(value) == 2 and all(isinstance(number, Real) for number in value)
    if not pair or not (0 < value[0] <= value[1] <= high and math.isfinite(value[1])):
        bound = f"0 < low <= high <= {high:g}" if math.isfinite(high) else "0 < low <= high, finite"
        raise ValueError(f"{name} must be a pair with {bound}, got {value!r}")
    return float(value[0]), float(value[1])


def random_crops(uniforms: Tensor, height: int, width: int, scale: Range, ratio: Range) -> tuple[Tensor, ...]:
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
    room = torch.stack([height - crop_height, width - crop_width])
    place = torch.minimum((uniforms[:, -2:].T * (room + 1)).floor_(), room)
    return *torch.where(found, place, (room / 2).floor_()), crop_height, crop_width


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
