"""scikit-learn's 1797 real handwritten digits and the one train/test split that the library uses for them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F

from hsic_lab._checks import is_whole
from hsic_lab.datasets._images import Images

N_CLASSES = 10
TEST_FRACTION = 0.25
SPLITS = ("train", "test")


def digit_index(split: str) -> Tensor:
    """int64 positions in scikit-learn's order of the digits in ``split``, ascending.

    The test split is the last quarter of each class in file order (rounded down), 445 digits; the train split
    is the rest, 1352: a fixed, stratified rule without random numbers. The file is not shuffled and digits
    that lie close together resemble each other, so this split is the harder and the more honest one: SVC() of
    scikit-learn gets 95.1 % of it right, and 99.3 % if every fourth digit of a class is held out instead.

    Raises ValueError for another name than "train" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    labels = load_digits().target
    chosen = []
    for label in range(N_CLASSES):
        members = np.flatnonzero(labels == label)
        n_train = len(members) - int(TEST_FRACTION * len(members))
        chosen.append(members[:n_train] if split == "train" else members[n_train:])
    return torch.from_numpy(np.sort(np.concatenate(chosen)).astype(np.int64))


def digit_images(split: str) -> Images:
    """The digits of ``split`` as uint8 (n, 1, 8, 8) with labels 0..9.

    scikit-learn's values 0..16 become ``round(v * 255 / 16)``; ``round(u * 16 / 255)`` is the exact inverse.
    """
    bunch, index = load_digits(), digit_index(split)
    images = np.rint(bunch.images[index.numpy()] * (255 / 16)).astype(np.uint8)
    return Images(torch.from_numpy(images[:, None]), torch.from_numpy(bunch.target.astype(np.int64))[index])


Factors = dict[str, Tensor]  # column name -> (n,): int64 for "digit", "class", "photograph", else float32

# What two views can share, and the columns that each name stands for. A digit brings its class along.
SHAREABLE = {
    "class": ("class",),
    "digit": ("digit", "class"),
    "position": ("x", "y"),
    "scale": ("scale",),
    "colour": ("red", "green", "blue"),
    "background": ("photograph", "crop_x", "crop_y", "crop_scale"),
}
COLUMNS = ("digit", "class", "x", "y", "scale", "red", "green", "blue") + SHAREABLE["background"]
CENTER = (0.33, 0.67)  # of the digit's 8x8 box, in scene sides
SCALE = (0.45, 0.75)  # side of that box, in scene sides
CROP_SCALE = (0.3, 0.9)  # side of the crop, in photograph heights
OUTLINE = 0.8  # opacity of the outline, black around a light digit, white around a dark one: legible anywhere
UPSAMPLED, MARGIN = 6, 2  # pixels per pixel of an 8x8 digit; empty 8x8 pixels around it, room for the outline
BLOCK = 1024  # scenes rendered at once, which bounds the memory


class DigitScenes:
    """A renderer of digit scenes: draws causes, and turns causes into uint8 images (n, 3, size, size).

    split: "train" or "test". They have disjoint sets of digits (``hsic_lab.datasets.digit_scenes.digit_index``) and share
    the photographs. Whatever is random takes a seed or a ``torch.Generator``; causes are drawn on the
    generator's device and rendered on theirs. On a CPU the same seed gives the same bytes.

    Raises ValueError for another split or a size below 8.
    """

    def __init__(self, split: str = "train", size: int = 32) -> None:
        if not (is_whole(size) and size >= 8):
            raise ValueError(f"size must be a whole number of at least 8 pixels, got {size!r}")
        self.split, self.size = split, size
        labels = torch.from_numpy(load_digits().target.astype(np.int64))
        index = digit_index(split)
        self._members = index[torch.argsort(labels[index], stable=True)]  # the split's digits, class by class
        self._counts = torch.bincount(labels[index], minlength=N_CLASSES)
        self._parts = {torch.device("cpu"): (_upsampled_digits(), _photographs(size))}

    def draw(self, n: int, generator: torch.Generator | int) -> Factors:
        """Causes of n scenes, all independent of each other ("digit" is uniform given its "class").

        | column | range | meaning |
        |---|---|---|
        | digit, class | 0..1796, 0..9 | position in scikit-learn's digits, and what it shows |
        | x, y | 0.33..0.67 | center of the digit's 8x8 box in scene sides, from the top left corner |
        | scale | 0.45..0.75 | side of that box in scene sides |
        | red, green, blue | 0..1 | the digit's color |
        | photograph | 0, 1 | scikit-learn's china.jpg, flower.jpg |
        | crop_x, crop_y | 0..1 | place of the crop, from touching the left (top) edge to the right (bottom) |
        | crop_scale | 0.3..0.9 | side of the square crop in photograph heights |
        """
        return self._draw(n, _as_generator(generator), None)

    def draw_pairs(
        self, n: int, generator: torch.Generator | int, shared: Iterable[str] = ("digit",)
    ) -> tuple[Factors, Factors]:
        """Causes of n pairs of views: equal in what ``shared`` names, drawn independently in all else.

        Sharing "class" without "digit" draws a digit of the same class anew: now and then the same by chance.
        For one seed the first view is the same whatever is shared. Raises ValueError for a name not in
        ``SHAREABLE``, TypeError for a string in place of a collection of names.
        """
        shared = _check_shared(shared)
        generator = _as_generator(generator)
        first = self._draw(n, generator, None)
        second = self._draw(n, generator, first["class"] if "class" in shared else None)
        return first, second | {column: first[column] for name in shared for column in SHAREABLE[name]}

    def pairs(
        self, n: int, generator: torch.Generator | int, shared: Iterable[str] = ("digit",)
    ) -> tuple[Tensor, Tensor]:
        """The images of :meth:`draw_pairs`: two uint8 (n, 3, size, size), row i of both a pair."""
        first, second = self.draw_pairs(n, generator, shared)
        return self.render(first), self.render(second)

    def sample(self, n: int, seed: torch.Generator | int = 0) -> Images:
        """n scenes with their classes as labels and their causes as a frame, one row a scene."""
        factors = self.draw(n, seed)
        frame = pd.DataFrame({column: values.cpu().numpy() for column, values in factors.items()})
        return Images(self.render(factors), factors["class"], frame)

    def render(self, factors: Factors) -> Tensor:
        """uint8 (n, 3, size, size) on the factors' device: a pure function of each row of ``factors``."""
        parts = self._parts_on(factors["x"].device)
        images = []
        for start in range(0, len(factors["x"]), BLOCK):
            block = {column: values[start : start + BLOCK] for column, values in factors.items()}
            images.append(_compose(block, *parts, self.size))
        return torch.cat(images)

    def _draw(self, n: int, generator: torch.Generator, label: Tensor | None) -> Factors:
        if n < 1:
            raise ValueError(f"the number of scenes must be at least 1, got {n}")
        device = generator.device
        u = torch.rand(11, n, generator=generator, device=device)  # as many whatever is shared
        if label is None:
            label = _choice(u[0], torch.tensor(N_CLASSES, device=device))
        counts, members = self._counts.to(device), self._members.to(device)
        digit = members[(counts.cumsum(0) - counts)[label] + _choice(u[1], counts[label])]
        x, y, crop_x, crop_y = _between(u[5], CENTER), _between(u[6], CENTER), u[7], u[8]
        scale, crop_scale = _between(u[9], SCALE), _between(u[10], CROP_SCALE)
        photograph = torch.randint(2, (n,), generator=generator, device=device)
        values = (digit, label, x, y, scale, *u[2:5], photograph, crop_x, crop_y, crop_scale)
        return dict(zip(COLUMNS, values, strict=True))

    def _parts_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._parts:
            self._parts[device] = tuple(part.to(device) for part in self._parts[torch.device("cpu")])
        return self._parts[device]


def _compose(factors: Factors, digits: Tensor, photographs: Tensor, size: int) -> Tensor:
    """Background, outline, ink: three layers, each painted over the one before."""
    n, device = len(factors["x"]), factors["x"].device
    pixel = (torch.arange(size, device=device) + 0.5) / size  # centers, in scene sides

    # Both photographs are one tall image, the second below the first, so that one call serves all scenes.
    height, width = photographs.shape[-2] // 2, photographs.shape[-1]
    side = factors["crop_scale"] * height
    left = factors["crop_x"] * (width - side)
    top = factors["crop_y"] * (height - side) + factors["photograph"] * height
    columns = (left[:, None] + side[:, None] * pixel) * (2 / width) - 1
    rows = (top[:, None] + side[:, None] * pixel) * (2 / (2 * height)) - 1
    scene = _bilinear(photographs.expand(n, -1, -1, -1), rows, columns, "border")

    box = factors["scale"][:, None] * ((8 + 2 * MARGIN) / 8)  # with the margin
    rows = (pixel - factors["y"][:, None]) / box * 2
    columns = (pixel - factors["x"][:, None]) / box * 2
    ink, outline = _bilinear(digits[factors["digit"]], rows, columns, "zeros").split(1, dim=1)

    color = torch.stack([factors["red"], factors["green"], factors["blue"]], dim=1)[:, :, None, None]
    opposite = (color.mean(dim=1, keepdim=True) < 0.5).to(color.dtype)  # white around a dark digit
    scene = torch.lerp(scene, opposite, OUTLINE * outline)
    return torch.lerp(scene, color, ink).mul_(255).round_().to(torch.uint8)


def _bilinear(images: Tensor, rows: Tensor, columns: Tensor, padding: str) -> Tensor:
    """images (n, c, h, w) read at rows (n, s) x columns (n, s), -1..1 from edge to edge -> (n, c, s, s)."""
    n, s = rows.shape
    grid = torch.stack([columns[:, None, :].expand(n, s, s), rows[:, :, None].expand(n, s, s)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _upsampled_digits() -> Tensor:
    """(1797, 2, 72, 72): the ink of every digit with crisp edges, and the same a little wider (outline)."""
    pixels = F.pad(torch.from_numpy(load_digits().images).float()[:, None] / 16, [MARGIN] * 4)
    smooth = F.interpolate(pixels, scale_factor=UPSAMPLED, mode="bicubic", align_corners=False)
    ink = _smoothstep(smooth, 0.3, 0.7)
    wider = F.avg_pool2d(F.max_pool2d(ink, UPSAMPLED + 1, stride=1, padding=UPSAMPLED // 2), 5, 1, 2)
    return torch.cat([ink, wider], dim=1)


def _photographs(size: int) -> Tensor:
    """(1, 3, 2h, w) in 0..1: both photographs, so small that the largest crop is read every second pixel."""
    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    height = round(2 * size / CROP_SCALE[1])
    width = round(height * images.shape[-1] / images.shape[-2])
    shrunk = F.interpolate(images, (height, width), mode="area")
    return torch.cat(list(shrunk), dim=1)[None]


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _choice(u: Tensor, count: Tensor) -> Tensor:
    """Uniform u in [0, 1) -> int64 in 0..count - 1; the minimum is for a u * count that rounds up."""
    return torch.minimum((u * count).long(), count - 1)


def _as_generator(seed: torch.Generator | int) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if not is_whole(seed):
        raise TypeError(f"a seed must be an integer or a torch.Generator, got {seed!r}")
    return torch.Generator().manual_seed(int(seed))


def _check_shared(shared: Iterable[str]) -> tuple[str, ...]:
    if isinstance(shared, str):
        raise TypeError(f"shared must be a collection of names such as ({shared!r},), got {shared!r}")
    shared = tuple(shared)
    if unknown := [name for name in shared if name not in SHAREABLE]:
        raise ValueError(f"unknown factor to share: {unknown}; accepted are {sorted(SHAREABLE)}")
    return shared
