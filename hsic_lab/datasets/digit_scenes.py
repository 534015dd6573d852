"""Rendered scenes of handwritten digits with known factors of variation."""

import operator
from collections.abc import Iterable
from functools import cache

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F

from hsic_lab._checks import check_choice, check_integer
from hsic_lab.datasets._images import Images


def digit_index(split: str) -> Tensor:
    """Return the positions (int64, ascending) of a split of scikit-learn's 1797 handwritten digits.

    The test split is the last quarter of each class in file order, rounded down: 445 digits. Digits that are close in
    the file are similar, so this is harder than a random split: ``SVC()`` reaches 95.1 % instead of 99.3 % accuracy.
    The train split is divided again in the same way: "validation" is the last quarter of each class, "fit" the rest.
    """
    check_choice(split, ("train", "test", "fit", "validation"), "split")
    labels = load_digits().target
    chosen = [np.flatnonzero(labels == label) for label in range(10)]
    if split in ("fit", "validation"):
        chosen = [m[: -(len(m) // 4)] for m in chosen]
    chosen = [m[: -(len(m) // 4)] if split in ("train", "fit") else m[-(len(m) // 4) :] for m in chosen]
    return torch.from_numpy(np.sort(np.concatenate(chosen)).astype(np.int64))


Seed = torch.Generator | int
Factors = dict[str, Tensor]  # column name -> (n,): int64 for "digit", "class" and "photograph", else float32

# The factors that two views can share, with their columns. A shared digit also shares its class.
SHAREABLE = {
    "class": ("class",), "digit": ("digit", "class"), "position": ("x", "y"), "scale": ("scale",),
    "colour": ("red", "green", "blue"), "background": ("photograph", "crop_x", "crop_y", "crop_scale"),
}  # fmt: skip
COLUMNS = ("digit", "class", "x", "y", "scale", "red", "green", "blue") + SHAREABLE["background"]
CENTER, SCALE = (0.33, 0.67), (0.45, 0.75)  # ranges of center and side of the digit's 8x8 box, in scene sides
CROP_SCALE = (0.3, 0.9)  # range of the side of the crop, in photograph heights
UPSAMPLED, MARGIN = 6, 2  # pixels for each pixel of an 8x8 digit; empty pixels around it, for the outline
BLOCK = 1024  # scenes rendered at once, which bounds the memory


class DigitScenes:
    """Renderer of digit scenes: a colored handwritten digit on a part of a photograph.

    Factors are drawn and rendered on the device of the generator. On a CPU the same seed gives the same bytes.

    Parameters
    ----------
    split, size : {"train", "test", "fit", "validation"}, default "train", int, default 32
        Digits to draw from, see :func:`digit_index` (all splits use the same two photographs); height and width of the
        images in pixels, at least 8.

    Examples
    --------
    >>> from hsic_lab.datasets import DigitScenes
    >>> DigitScenes("train").pairs(4, 0, shared=("digit", "background"))[0].shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(self, split: str = "train", size: int = 32) -> None:
        self.split, self.size = split, check_integer("size", size, 8)
        labels = torch.from_numpy(load_digits().target.astype(np.int64))
        index = digit_index(split)
        self._members = index[torch.argsort(labels[index], stable=True)]  # the split's digits, sorted by class
        self._counts = torch.bincount(labels[index], minlength=10)
        self._parts: dict[str, tuple[Tensor, ...]] = {"cpu": (_upsampled_digits(), _photographs(size))}

    def draw(self, n: int, generator: Seed, label: Tensor | None = None) -> Factors:
        """Draw the factors of n independent scenes; "digit" is uniform given "class", which is ``label`` if given.

        Returns a dict of tensors (n,). int64: "digit" (0..1796), "class" (0..9), "photograph" (0: china.jpg, 1:
        flower.jpg). float32: the center "x", "y" (0.33..0.67) and side "scale" (0.45..0.75) of the digit's box, in
        scene sides from the top left; its color "red", "green", "blue" (0..1); the place "crop_x", "crop_y" (0..1) of
        the square crop from the left (top) edge to the other; its side "crop_scale" (0.3..0.9), in photograph heights.
        """
        n, generator = check_integer("n", n, 1), _as_generator(generator)
        device = generator.device
        u = torch.rand(11, n, generator=generator, device=device)  # the same count for any `shared`
        if label is None:
            label = _choice(u[0], torch.tensor(10, device=device))
        counts, members = self._counts.to(device), self._members.to(device)
        digit = members[(counts.cumsum(0) - counts)[label] + _choice(u[1], counts[label])]
        ranges = ((u[5:7], CENTER), (u[9], SCALE), (u[10], CROP_SCALE))
        place, scale, crop_scale = (low + (high - low) * part for part, (low, high) in ranges)
        photograph = torch.randint(2, (n,), generator=generator, device=device)
        values = (digit, label, *place, scale, *u[2:5], photograph, *u[7:9], crop_scale)
        return dict(zip(COLUMNS, values, strict=True))

    def draw_pairs(self, n: int, generator: Seed, shared: Iterable[str] = ("digit",)) -> tuple[Factors, Factors]:
        """Draw the factors of n pairs of views; those in ``shared``, keys of ``SHAREABLE``, are equal in both.

        All others are independent, see :meth:`draw`. For one seed, the first view is the same for any ``shared``. With
        "class" and without "digit", the second view has a random digit of the same class.
        """
        if isinstance(shared, str):
            raise TypeError(f"shared must be a collection of names, such as ({shared!r},), not a string")
        shared, generator = tuple(shared), _as_generator(generator)
        if unknown := [name for name in shared if name not in SHAREABLE]:
            raise ValueError(f"unknown factor to share: {unknown}; accepted are {sorted(SHAREABLE)}")
        first = self.draw(n, generator)
        second = self.draw(n, generator, first["class"] if "class" in shared else None)
        return first, second | {column: first[column] for name in shared for column in SHAREABLE[name]}

    def pairs(self, n: int, generator: Seed, shared: Iterable[str] = ("digit",)) -> tuple[Tensor, Tensor]:
        """Render the factors of :meth:`draw_pairs`: two uint8 tensors (n, 3, size, size), row i of both is a pair."""
        first, second = self.draw_pairs(n, generator, shared)
        return self.render(first), self.render(second)

    def sample(self, n: int, seed: Seed = 0) -> Images:
        """Render the factors of :meth:`draw`: n images with their classes as labels and their factors."""
        factors = self.draw(n, seed)
        frame = pd.DataFrame({column: values.cpu().numpy() for column, values in factors.items()})
        return Images(self.render(factors), factors["class"], frame)

    def render(self, factors: Factors) -> Tensor:
        """Render factors as uint8 images (n, 3, size, size) on their device; each image depends on its row alone."""
        device = str(factors["x"].device)
        if device not in self._parts:
            self._parts[device] = tuple(part.to(device) for part in self._parts["cpu"])
        blocks = ({k: v[i : i + BLOCK] for k, v in factors.items()} for i in range(0, len(factors["x"]), BLOCK))
        return torch.cat([_compose(block, self.size, *self._parts[device]) for block in blocks])


def _compose(factors: Factors, size: int, digits: Tensor, photographs: Tensor) -> Tensor:
    """Paint the outline over the background, and the ink over both."""
    pixel = (torch.arange(size, device=factors["x"].device) + 0.5) / size  # centers, in scene sides
    height, width = photographs.shape[-2] // 2, photographs.shape[-1]
    side = factors["crop_scale"] * height
    left = factors["crop_x"] * (width - side)
    top = factors["crop_y"] * (height - side) + factors["photograph"] * height
    columns = (left[:, None] + side[:, None] * pixel) * (2 / width) - 1
    rows = (top[:, None] + side[:, None] * pixel) * (1 / height) - 1
    scene = _bilinear(photographs.expand(len(side), -1, -1, -1), rows, columns, "border")
    box = factors["scale"][:, None] * ((8 + 2 * MARGIN) / 8)  # with the margin
    rows, columns = ((pixel - factors[axis][:, None]) / box * 2 for axis in "yx")
    ink, outline = _bilinear(digits[factors["digit"]], rows, columns, "zeros").split(1, dim=1)
    color = torch.stack([factors["red"], factors["green"], factors["blue"]], dim=1)[:, :, None, None]
    opposite = (color.mean(dim=1, keepdim=True) < 0.5).to(color.dtype)  # white around a dark digit
    scene = torch.lerp(scene, opposite, 0.8 * outline)  # keeps the digit legible on any background
    return torch.lerp(scene, color, ink).mul_(255).round_().to(torch.uint8)


def _bilinear(images: Tensor, rows: Tensor, columns: Tensor, padding: str) -> Tensor:
    """Read images (n, c, h, w) at rows (n, s) and columns (n, s), in -1..1 from edge to edge: (n, c, s, s)."""
    n, s = rows.shape
    grid = torch.stack([columns[:, None, :].expand(n, s, s), rows[:, :, None].expand(n, s, s)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


@cache  # one second and 75 MB, shared by all scenes
def _upsampled_digits() -> Tensor:
    """Return the ink of every digit with sharp edges, and its wider outline: (1797, 2, 72, 72)."""
    pixels = F.pad(torch.from_numpy(load_digits().images).float()[:, None] / 16, [MARGIN] * 4)
    smooth = F.interpolate(pixels, scale_factor=UPSAMPLED, mode="bicubic", align_corners=False)
    steep = ((smooth - 0.3) / (0.7 - 0.3)).clamp(0, 1)
    ink = steep * steep * (3 - 2 * steep)
    wider = F.avg_pool2d(F.max_pool2d(ink, UPSAMPLED + 1, stride=1, padding=UPSAMPLED // 2), 5, 1, 2)
    return torch.cat([ink, wider], dim=1)


def _photographs(size: int) -> Tensor:
    """Return both photographs, one below the other: (1, 3, 2h, w) in 0..1, at least 2 pixels for each scene pixel."""
    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    height = round(2 * size / CROP_SCALE[1])
    width = round(height * images.shape[-1] / images.shape[-2])
    return torch.cat(list(F.interpolate(images, (height, width), mode="area")), dim=1)[None]


def _choice(u: Tensor, count: Tensor) -> Tensor:
    """Turn uniform u in [0, 1) into int64 in 0..count - 1; u * count may round up to count, hence the minimum."""
    return torch.minimum((u * count).long(), count - 1)


def _as_generator(seed: Seed) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(operator.index(seed))
