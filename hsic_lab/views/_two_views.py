"""Two random views of each image of a batch, and published augmentations by name."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hsic_lab.views._operations as ops
from hsic_lab._checks import as_tensor, check_choice, check_integer, check_number, check_type

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
Probability = float | tuple[float, float]


def augmentation(name: str, size: int, **changes: Any) -> "TwoViews":
    """Return the published augmentation `name` for views of `size` pixels.

    Up to 32 pixels, "tsai2021" and "simclr" have the settings of their papers for CIFAR-10. "barlow_twins" has those
    for 224 pixels at every size; "solo" is solo-learn's version of it for CIFAR, without blur. Crops are always
    bilinear and colors are clamped once, also where the original is bicubic or clamps between steps.

    Parameters
    ----------
    name : {"default", "tsai2021", "barlow_twins", "solo", "simclr"}
        Key of `AUGMENTATIONS`; "default" has the defaults of `TwoViews`.
    size, **changes
        Side of the views in pixels, and settings of `TwoViews` that replace those of the augmentation.
    """
    settings = AUGMENTATIONS[check_choice(name, tuple(AUGMENTATIONS), "augmentation")]
    small = _SMALL_CHANGES.get(name, {}) if size <= 32 else {}
    return TwoViews(size, **settings | small | changes)


def normalize(images: Tensor) -> Tensor:
    """Scale images (n, c, h, w), uint8 or floating point in [0, 1], to float32 in [-1, 1], as the encoders need."""
    half = _half_range(images)
    return images.to(torch.float32).div(half).sub_(1)


class TwoViews:
    """Two independently augmented views of each image of a batch, on the scale of `normalize`.

    The steps are, in this order: a random resized crop, a horizontal flip, color jitter, grayscale, one clamp to the
    range of images, Gaussian blur, and solarization. Images with 1 channel get no saturation and hue; with 2, 4 or more
    channels, `jitter` and `grayscale` must be 0.

    Parameters
    ----------
    size : int
        Side of the square views, in pixels.
    scale, ratio, sigma : (float, float), default (0.2, 1.0), (3/4, 4/3) and (0.1, 2.0)
        Ranges: area of the crop as a share of the image, its width over its height, deviation of the blur in pixels.
    flip, jitter, grayscale : float or (float, float), default 0.5, 0.8 and 0.2
        Probabilities of a horizontal flip, of the four color changes, and of removing the color: one number, or a pair
        for view a and view b.
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
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        jitter: Probability = 0.8,
        grayscale: Probability = 0.2,
        blur: Probability = 0.0,
        sigma: tuple[float, float] = (0.1, 2.0),
        solarize: Probability = 0.0,
    ):
        self.size = size = check_integer("size", size, 1)
        self.scale = _interval("scale", scale, 1.0)
        self.ratio = _interval("ratio", ratio, math.inf)
        self.flip = _probabilities("flip", flip)
        self.brightness = check_number("brightness", brightness, 0)
        self.contrast = check_number("contrast", contrast, 0)
        self.saturation = check_number("saturation", saturation, 0)
        self.hue = check_number("hue", hue, 0, 0.5)
        self.jitter = _probabilities("jitter", jitter)
        self.grayscale = _probabilities("grayscale", grayscale)
        self.blur = _probabilities("blur", blur)
        self.sigma = _interval("sigma", sigma, math.inf)
        self.solarize = _probabilities("solarize", solarize)
        if max(self.blur) > 0 and ops.blur_radius(size) == 0:
            raise ValueError(f"blur must be 0 for views below 20 pixels, got blur={blur!r} at size={size}")

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return view a and view b, float32 (n, c, size, size) in [-1, 1], of images as for `normalize`.

        All randomness is drawn from `generator`, on the device of the images; None is torch's global generator.
        """
        half = _half_range(images)
        n, channels, height, width = images.shape
        device = images.device
        strengths = self.brightness, self.contrast, self.saturation, self.hue
        color = max(self.grayscale) > 0 or (max(self.jitter) > 0 and max(strengths) > 0)
        if color and channels not in (1, 3):
            raise ValueError(f"color changes need 1 or 3 channels, got {channels}: set jitter=0 and grayscale=0")
        if generator is not None and check_type("generator", generator, torch.Generator).device.type != device.type:
            raise ValueError(f"generator is on {generator.device}, images on {device}: use one device")
        draw = partial(torch.rand, generator=generator, device=device, dtype=torch.float32)
        crop, flip, jitter = draw(2 * n, ops.CROP_DRAWS + 7).split([ops.CROP_DRAWS, 1, 6], dim=1)
        # Drawn last, so that the rest of a view does not depend on it.
        finish = draw(2 * n, 3) if max(*self.blur, *self.solarize) > 0 else None
        top, left, crop_height, crop_width = ops.random_crops(crop, height, width, self.scale, self.ratio)
        across = ops.resize_taps(left, crop_width, width, self.size, flip.squeeze(1) < _by_view(self.flip, flip))
        down = ops.resize_taps(top, crop_height, height, self.size)
        views = torch.empty(2 * n, channels, self.size, self.size, device=device, dtype=torch.float32)
        chunk = n if device.type != "cpu" else max(1, 2**18 // (channels * height * width))  # 1 MiB, for the L2 cache
        with torch.autocast(device.type, enabled=False):  # autocast would round the pixels
            if color:
                matrix, offset = self._draw_color(jitter, channels)
            for begin in range(0, n, chunk):
                part = images[begin : begin + chunk].transpose(2, 3).to(torch.float32).contiguous()
                for view, first in enumerate((begin, n + begin)):
                    rows = slice(first, first + len(part))
                    narrow = ops.resize_rows(part, *(x[rows] for x in across)).transpose(2, 3)
                    pixels = ops.resize_rows(narrow, *(x[rows] for x in down)).flatten(2)
                    out = views[rows].flatten(2)
                    if color:
                        gray = pixels.mean(dim=2) @ ops.gray_weights(channels, device)
                        shift = (offset[rows] * gray).div_(half).sub_(1)[:, None, None]
                        torch.baddbmm(shift, matrix[rows] / half, pixels, out=out)
                    else:
                        torch.div(pixels, half, out=out).sub_(1)
                    out.clamp_(-1, 1)
                    if finish is not None:
                        self._finish(views[rows], finish[rows], view)
        return views[:n], views[n:]

    def _finish(self, views: Tensor, uniforms: Tensor, view: int) -> None:
        """Blur and solarize in place: uniform numbers `(m, 3)` choose among the images `(m, c, s, s)` of one view."""
        if self.blur[view] > 0:
            chosen = (uniforms[:, 0] < self.blur[view]).nonzero().squeeze(1)
            sigma = uniforms[chosen, 1] * (self.sigma[1] - self.sigma[0]) + self.sigma[0]
            views[chosen] = ops.gaussian_blur(views[chosen], sigma, ops.blur_radius(self.size))
        if self.solarize[view] > 0:
            chosen = (uniforms[:, 2] < self.solarize[view]).nonzero().squeeze(1)
            views[chosen] = ops.solarize(views[chosen])

    def _draw_color(self, uniforms: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Color matrices `(m, c, c)` and offsets `(m,)` from `(m, 6)` uniform numbers."""
        strengths = (self.brightness, self.contrast, self.saturation)
        low = uniforms.new_tensor([max(0.0, 1 - v) for v in strengths] + [-self.hue])
        high = uniforms.new_tensor([1 + v for v in strengths] + [self.hue])
        factors = uniforms[:, :4] * (high - low) + low
        jittered = (uniforms[:, 4] < _by_view(self.jitter, uniforms))[:, None]
        factors = torch.where(jittered, factors, factors.new_tensor([1.0, 1.0, 1.0, 0.0]))
        brightness, contrast, saturation, hue = factors.unbind(1)
        saturation = saturation.masked_fill(uniforms[:, 5] < _by_view(self.grayscale, uniforms), 0.0)
        matrix, offset = ops.color_maps(brightness, contrast, saturation, hue)
        return (matrix if channels == 3 else (brightness * contrast)[:, None, None]), offset


def _by_view(pair: tuple[float, float], like: Tensor) -> Tensor:
    """One probability for each row of `like`; its first half belongs to view a, its second half to view b."""
    return like.new_tensor(pair).repeat_interleave(len(like) // 2)


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


def _probabilities(name: str, value: Probability) -> tuple[float, float]:
    """The probabilities of view a and view b."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one probability or a pair for view a and view b, got {value!r}")
    return check_number(name, pair[0], 0, 1), check_number(name, pair[1], 0, 1)


def _interval(name: str, value: tuple[float, float], high: float) -> tuple[float, float]:
    """The two numbers, checked to be 0 < low <= high."""
    pair = hasattr(value, "__len__") and not isinstance(value, str) and len(value) == 2
    if not pair or not (0 < value[0] <= value[1] <= high and math.isfinite(value[1])):
        bound = f"0 < low <= high <= {high:g}" if math.isfinite(high) else "0 < low <= high, finite"
        raise ValueError(f"{name} must be a pair with {bound}, got {value!r}")
    return float(value[0]), float(value[1])
