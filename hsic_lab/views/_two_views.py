"""The published recipes for two views, as settings of `views.TwoViews` by name."""

import math
from typing import Any

import torch
from torch import Tensor

from hsic_lab._checks import check_choice, is_whole
from hsic_lab.views._operations import (
    CROP_DRAWS,
    blur_radius,
    color_maps,
    gaussian_blur,
    gray_weights,
    random_crops,
    resize_rows,
    resize_taps,
    solarize,
)

SMALL = 32  # pixels up to which a paper's CIFAR recipe counts as the one for the size

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    # Tsai et al. 2021, github.com/yaohungt/Barlow-Twins-HSIC, utils.py: 64-pixel crops of Tiny ImageNet and STL-10
    # (`train` makes views as large as the images: 96 pixels of STL-10).
    "tsai2021": {"grayscale": 0.1},
    # Zbontar et al. 2021, appendix A; github.com/facebookresearch/barlowtwins, main.py.
    "barlow_twins": {"scale": (0.08, 1.0), "saturation": 0.2, "blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
    # da Costa et al. 2022, github.com/vturrisi/solo-learn, scripts/pretrain/cifar/augmentations/asymmetric.yaml.
    "solo": {"scale": (0.08, 1.0), "saturation": 0.2, "solarize": (0.0, 0.2)},
    # Chen et al. 2020, appendix A; github.com/google-research/simclr, data_util.py, color strength 1.
    "simclr": {"scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5},
}
SMALL_CHANGES: dict[str, dict[str, Any]] = {
    "tsai2021": {"scale": (0.08, 1.0), "grayscale": 0.2},
    "simclr": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0},  # appendix B.9
}


def augmentation_settings(name: str, size: int) -> dict[str, Any]:
    """The settings of `AUGMENTATIONS[name]` for views of `size` pixels. Raises ValueError for another name.

    Up to 32 pixels "tsai2021" and "simclr" are their papers' CIFAR-10 recipes (`SMALL_CHANGES`); SimCLR's has half the
    color strength and no blur, which recipes for images that small leave out: `augmentation("simclr", 32, blur=0.5)`
    brings it back. "barlow_twins" was published for 224 pixels and is the same at every size, blur included; only
    the blur's kernel goes with the side. "solo" is solo-learn's version of it for CIFAR, without blur. "default" is
    `TwoViews` as it comes.
    """
    changes = SMALL_CHANGES.get(name, {}) if size <= SMALL else {}
    return AUGMENTATIONS[check_choice(name, tuple(AUGMENTATIONS), "augmentation")] | changes


_COLOR_DRAWS = 6
_FINISH_DRAWS = 3  # whether to blur, how much, whether to solarise
_CHUNK_BYTES = 1 << 20  # float32 images worked on at a time on a CPU: about one core's second-level cache
Probability = float | tuple[float, float]


def normalize(images: Tensor) -> Tensor:
    """Put images on the one scale the encoders see: float32 in [-1, 1].

    `x / 127.5 - 1` for uint8, `2 x - 1` for floating point in [0, 1]; `images` is `(n, c, h, w)` and is
    not modified. Raises TypeError for other types and ValueError for other shapes or floating point
    values outside [0, 1].
    """
    half = _half_range(images)
    return images.to(torch.float32).div(half).sub_(1)


class TwoViews:
    """Two independently augmented views of a batch of images, on the scale of `normalize`.

    Random resized crop (`random_crops`) to `size` x `size`, horizontal flip with probability `flip`,
    color jitter with probability `jitter` (factors uniform in `[max(0, 1 - v), 1 + v]`, hue uniform in
    `[-hue, hue]` turns; see `color_maps`), grayscale with probability `grayscale`; then one clamp to the
    range of images; Gaussian blur with probability `blur` (deviation uniform in `sigma` pixels, radius
    `blur_radius(size)`), solarisation with probability `solarize`. Every probability is one number or a pair
    for view a and view b. `augmentation` has the published recipes. One-channel
    images get no saturation and hue; other channel counts than 1 and 3 need the color options off.

    Raises ValueError for a setting outside its range or blur at a size below 20, where its kernel would be one
    pixel; TypeError for a `size` that is not an integer.
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
        if not is_whole(size):
            raise TypeError(f"size must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = int(size)
        self.scale = _interval("scale", scale, 1.0)
        self.ratio = _interval("ratio", ratio, math.inf)
        self.flip = _probabilities("flip", flip)
        self.brightness = _number("brightness", brightness, math.inf)
        self.contrast = _number("contrast", contrast, math.inf)
        self.saturation = _number("saturation", saturation, math.inf)
        self.hue = _number("hue", hue, 0.5)
        self.jitter = _probabilities("jitter", jitter)
        self.grayscale = _probabilities("grayscale", grayscale)
        self.blur = _probabilities("blur", blur)
        self.sigma = _interval("sigma", sigma, math.inf)
        self.solarize = _probabilities("solarize", solarize)
        if max(self.blur) > 0 and blur_radius(size) == 0:
            raise ValueError(f"blur must be 0 for views below 20 pixels, got blur={blur!r} at size={size}")

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return `(view_a, view_b)`, float32 `(n, c, size, size)` in [-1, 1], of images `(n, c, h, w)`.

        `images` is what `normalize` accepts and is not modified. All randomness comes from `generator`,
        which lives on the images' device; None means torch's global generator there. Raises as
        `normalize` does, and ValueError for a generator elsewhere or for color options on images with
        neither 1 nor 3 channels.
        """
        half = _half_range(images)
        n, channels, height, width = images.shape
        color = max(self.grayscale) > 0 or (
            max(self.jitter) > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0
        )
        if color and channels not in (1, 3):
            raise ValueError(
                f"color augmentation needs images with 1 or 3 channels, got {channels}; "
                "jitter=0 and grayscale=0 turn it off"
            )
        if generator is not None and generator.device.type != images.device.type:
            raise ValueError(f"generator is on {generator.device}, images on {images.device}: use one device")
        device = images.device
        uniforms = torch.rand(
            2 * n, CROP_DRAWS + 1 + _COLOR_DRAWS, generator=generator, device=device, dtype=torch.float32
        )
        crop, flip, jitter = uniforms.split([CROP_DRAWS, 1, _COLOR_DRAWS], dim=1)
        top, left, crop_height, crop_width = random_crops(crop, height, width, self.scale, self.ratio)
        flip = flip.squeeze(1) < _by_view(self.flip, flip)
        views = torch.empty(2 * n, channels, self.size, self.size, device=device, dtype=torch.float32)
        across = resize_taps(left, crop_width, width, self.size, flip)
        finish = None
        if max(*self.blur, *self.solarize) > 0:  # drawn last, so that the rest of a view does not depend on it
            finish = torch.rand(2 * n, _FINISH_DRAWS, generator=generator, device=device, dtype=torch.float32)
        down = resize_taps(top, crop_height, height, self.size)
        chunk = n if device.type != "cpu" else max(1, _CHUNK_BYTES // (4 * channels * height * width))
        # Autocast would round pixels to 8 bits of mantissa or fewer.
        with torch.autocast(device.type, enabled=False):
            if color:
                matrix, offset = self._draw_color(jitter, channels)
            for begin in range(0, n, chunk):
                part = images[begin : begin + chunk].transpose(2, 3).to(torch.float32).contiguous()
                for first in (begin, n + begin):
                    rows = slice(first, first + len(part))
                    narrow = resize_rows(part, *(x[rows] for x in across)).transpose(2, 3)
                    view = resize_rows(narrow, *(x[rows] for x in down)).flatten(2)
                    out = views[rows].flatten(2)
                    if color:
                        gray = view.mean(dim=2) @ gray_weights(channels, device)
                        shift = (offset[rows] * gray).div_(half).sub_(1)[:, None, None]
                        torch.baddbmm(shift, matrix[rows] / half, view, out=out)
                    else:
                        torch.div(view, half, out=out).sub_(1)
                    out.clamp_(-1, 1)
                if finish is not None:
                    for view, first in enumerate((begin, n + begin)):
                        rows = slice(first, first + len(part))
                        self._finish(views[rows], finish[rows], view)
        return views[:n], views[n:]

    def _finish(self, views: Tensor, uniforms: Tensor, view: int) -> None:
        """Blur and solarise, in place, the rows `(m, c, s, s)` of one view that `(m, 3)` uniform numbers choose."""
        if self.blur[view] > 0:
            chosen = (uniforms[:, 0] < self.blur[view]).nonzero().squeeze(1)
            sigma = uniforms[chosen, 1] * (self.sigma[1] - self.sigma[0]) + self.sigma[0]
            views.index_copy_(0, chosen, gaussian_blur(views.index_select(0, chosen), sigma, blur_radius(self.size)))
        if self.solarize[view] > 0:
            chosen = (uniforms[:, 2] < self.solarize[view]).nonzero().squeeze(1)
            views.index_copy_(0, chosen, solarize(views.index_select(0, chosen)))

    def _draw_color(self, uniforms: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Color matrices `(m, c, c)` and offsets `(m,)` from `(m, 6)` uniform numbers."""
        strengths = (self.brightness, self.contrast, self.saturation)
        low = uniforms.new_tensor([max(0.0, 1 - v) for v in strengths] + [-self.hue])
        high = uniforms.new_tensor([1 + v for v in strengths] + [self.hue])
        factors = uniforms[:, :4] * (high - low) + low
        neutral = factors.new_tensor([1.0, 1.0, 1.0, 0.0])
        factors = torch.where((uniforms[:, 4] < _by_view(self.jitter, uniforms))[:, None], factors, neutral)
        brightness, contrast, saturation, hue = factors.unbind(1)
        saturation = saturation.masked_fill(uniforms[:, 5] < _by_view(self.grayscale, uniforms), 0.0)
        matrix, offset = color_maps(brightness, contrast, saturation, hue)
        return (matrix if channels == 3 else (brightness * contrast)[:, None, None]), offset


def augmentation(name: str, size: int, **changes: Any) -> TwoViews:
    """The published recipe `name` of `presets.AUGMENTATIONS` at `size` pixels, with `changes` to its settings.

    Crops are bilinear and color is clamped once, also where a recipe was bicubic or clamped between steps.
    """
    return TwoViews(size, **augmentation_settings(name, size) | changes)


def _by_view(pair: tuple[float, float], like: Tensor) -> Tensor:
    """One probability a row of `like`, whose first half is view a and whose second half is view b."""
    return like.new_tensor(pair).repeat_interleave(len(like) // 2)


def _half_range(images: Tensor) -> float:
    """The pixel value that becomes 0, after checking that these are images."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point in [0, 1], got {images.dtype}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be (n, c, h, w) with no empty axis, got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return 127.5
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(f"floating point images must be in [0, 1], got values from {low:g} to {high:g}")
    return 0.5


def _number(name: str, value: float, high: float) -> float:
    if isinstance(value, bool | str) or value is None or not (0 <= value <= high and math.isfinite(value)):
        bound = f"in [0, {high:g}]" if math.isfinite(high) else "finite and at least 0"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return float(value)


def _probabilities(name: str, value: Probability) -> tuple[float, float]:
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one probability or a pair for view a and view b, got {value!r}")
    return _number(name, pair[0], 1.0), _number(name, pair[1], 1.0)


def _interval(name: str, value: tuple[float, float], high: float) -> tuple[float, float]:
    pair = hasattr(value, "__len__") and not isinstance(value, str) and len(value) == 2
    if not pair or not (0 < value[0] <= value[1] <= high and math.isfinite(value[1])):
        bound = f"0 < low <= high <= {high:g}" if math.isfinite(high) else "0 < low <= high, finite"
        raise ValueError(f"{name} must be a pair with {bound}, got {value!r}")
    return float(value[0]), float(value[1])
