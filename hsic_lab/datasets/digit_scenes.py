"""Rendered scenes of handwritten digits with known factors of variation, and scikit-learn's digits themselves."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F

from hsic_lab._checks import check_choice, is_whole
from hsic_lab.datasets._images import Images

N_CLASSES = 10
TEST_FRACTION = 0.25
SPLITS = ("train", "test")


def digit_index(split: str) -> Tensor:
    """Return the positions of one split in scikit-learn's data set of 1797 handwritten digits.

    The test split is the last quarter of each class in file order, rounded down: 445 digits. The train split is the
    other 1352. Digits that are close in the file are similar, so this split is harder than a random one: scikit-learn's
    ``SVC()`` reaches 95.1 % test accuracy on it, and 99.3 % if every fourth digit of a class is held out.

    Parameters
    ----------
    split : {"train", "test"}
        Name of the split. ValueError is raised for another name.

    Returns
    -------
    Tensor of shape (n,)
        Positions as int64, ascending.

    Examples
    --------
    >>> from hsic_lab.datasets.digit_scenes import digit_index
    >>> len(digit_index("train")), len(digit_index("test"))
    (1352, 445)
    """
    check_choice(split, SPLITS, "split")
    labels = load_digits().target
    chosen = []
    for label in range(N_CLASSES):
        members = np.flatnonzero(labels == label)
        n_train = len(members) - int(TEST_FRACTION * len(members))
        chosen.append(members[:n_train] if split == "train" else members[n_train:])
    return torch.from_numpy(np.sort(np.concatenate(chosen)).astype(np.int64))


def digit_images(split: str) -> Images:
    """Return the digits of one split, see :func:`digit_index`, as uint8 images (n, 1, 8, 8) with labels 0 to 9.

    scikit-learn's value v in 0..16 becomes ``round(v * 255 / 16)``; ``round(u * 16 / 255)`` is the exact inverse.
    """
    bunch, index = load_digits(), digit_index(split)
    images = np.rint(bunch.images[index.numpy()] * (255 / 16)).astype(np.uint8)
    return Images(torch.from_numpy(images[:, None]), torch.from_numpy(bunch.target.astype(np.int64))[index])


Factors = dict[str, Tensor]  # column name -> (n,): int64 for "digit", "class" and "photograph", else float32

# The factors that two views can share, with their columns. A shared digit also shares its class.
SHAREABLE = {
    "class": ("class",),
    "digit": ("digit", "class"),
    "position": ("x", "y"),
    "scale": ("scale",),
    "colour": ("red", "green", "blue"),
    "background": ("photograph", "crop_x", "crop_y", "crop_scale"),
}
COLUMNS = ("digit", "class", "x", "y", "scale", "red", "green", "blue") + SHAREABLE["background"]
CENTER = (0.33, 0.67)  # range of the center of the digit's 8x8 box, in scene sides
SCALE = (0.45, 0.75)  # range of the side of that box, in scene sides
CROP_SCALE = (0.3, 0.9)  # range of the side of the crop, in photograph heights
OUTLINE = 0.8  # opacity of the outline, which keeps the digit legible on any background
UPSAMPLED, MARGIN = 6, 2  # pixels for each pixel of an 8x8 digit; empty pixels around it, for the outline
BLOCK = 1024  # scenes rendered at once, which bounds the memory


class DigitScenes:
    """Renderer of digit scenes: a colored handwritten digit on a part of a photograph.

    It draws factors of variation and renders them as uint8 images. Factors are drawn on the device of the generator and
    rendered on their own device. On a CPU the same seed gives the same bytes.

    Parameters
    ----------
    split : {"train", "test"}, default "train"
        Digits to draw from, see :func:`digit_index`. Both splits use the same two photographs.
    size : int, default 32
        Height and width of the images in pixels, at least 8; ValueError is raised for a smaller one.

    Examples
    --------
    >>> from hsic_lab.datasets import DigitScenes
    >>> view_a, view_b = DigitScenes("train").pairs(4, 0, shared=("digit", "background"))
    >>> view_a.shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(self, split: str = "train", size: int = 32) -> None:
        if not (is_whole(size) and size >= 8):
            raise ValueError(f"size must be a whole number of at least 8 pixels, got {size!r}")
        self.split, self.size = split, size
        labels = torch.from_numpy(load_digits().target.astype(np.int64))
        index = digit_index(split)
        self._members = index[torch.argsort(labels[index], stable=True)]  # the split's digits, sorted by class
        self._counts = torch.bincount(labels[index], minlength=N_CLASSES)
        self._parts: dict[torch.device, tuple[Tensor, ...]] = {
            torch.device("cpu"): (_upsampled_digits(), _photographs(size))
        }

    def draw(self, n: int, generator: torch.Generator | int) -> Factors:
        """Draw the factors of n scenes, independent of each other; "digit" is uniform given "class".

        Parameters
        ----------
        n : int
            Number of scenes, at least 1.
        generator : torch.Generator or int
            Source of random numbers, or its seed.

        Returns
        -------
        dict of str to Tensor of shape (n,)
            "digit" (0..1796), "class" (0..9) and "photograph" (0: china.jpg, 1: flower.jpg) as int64; as float32 "x"
            and "y" (0.33..0.67), the center of the digit's box in scene sides from the top left corner; "scale"
            (0.45..0.75), the side of that box in scene sides; "red", "green" and "blue" (0..1), the digit's color;
            "crop_x" and "crop_y" (0..1), the place of the square crop, from the left (top) edge of the photograph to
            the right (bottom) edge; "crop_scale" (0.3..0.9), the side of the crop in photograph heights.
        """
        return self._draw(n, _as_generator(generator), None)

    def draw_pairs(
        self, n: int, generator: torch.Generator | int, shared: Iterable[str] = ("digit",)
    ) -> tuple[Factors, Factors]:
        """Draw the factors of n pairs of views, see :meth:`draw`.

        Parameters
        ----------
        n, generator : int, torch.Generator or int
            As in :meth:`draw`. For one seed, the first view is the same for any ``shared``.
        shared : collection of str, default ("digit",)
            Keys of ``SHAREABLE``: the factors that are equal in both views. All others are independent. With "class"
            and without "digit", the second view has a random digit of the same class.

        Returns
        -------
        tuple of two dicts
            The factors of both views.

        Raises
        ------
        TypeError, ValueError
            If ``shared`` is a string, or holds an unknown name.
        """
        if isinstance(shared, str):
            raise TypeError(f"shared must be a collection of names such as ({shared!r},), got {shared!r}")
        shared, generator = tuple(shared), _as_generator(generator)
        if unknown := [name for name in shared if name not in SHAREABLE]:
            raise ValueError(f"unknown factor to share: {unknown}; accepted are {sorted(SHAREABLE)}")
        first = self._draw(n, generator, None)
        second = self._draw(n, generator, first["class"] if "class" in shared else None)
        return first, second | {column: first[column] for name in shared for column in SHAREABLE[name]}

    def pairs(
        self, n: int, generator: torch.Generator | int, shared: Iterable[str] = ("digit",)
    ) -> tuple[Tensor, Tensor]:
        """Render the factors of :meth:`draw_pairs`: two uint8 tensors (n, 3, size, size), row i of both is a pair."""
        first, second = self.draw_pairs(n, generator, shared)
        return self.render(first), self.render(second)

    def sample(self, n: int, seed: torch.Generator | int = 0) -> Images:
        """Render the factors of :meth:`draw`: n images with their classes as labels and their factors."""
        factors = self.draw(n, seed)
        frame = pd.DataFrame({column: values.cpu().numpy() for column, values in factors.items()})
        return Images(self.render(factors), factors["class"], frame)

    def render(self, factors: Factors) -> Tensor:
        """Render factors as uint8 images (n, 3, size, size) on their device; each image depends on its row alone."""
        device = factors["x"].device
        if device not in self._parts:
            self._parts[device] = tuple(part.to(device) for part in self._parts[torch.device("cpu")])
        digits, photographs = self._parts[device]
        blocks = zip(*(values.split(BLOCK) for values in factors.values()), strict=True)
        return torch.cat(
            [_compose(dict(zip(factors, block, strict=True)), digits, photographs, self.size) for block in blocks]
        )

    def _draw(self, n: int, generator: torch.Generator, label: Tensor | None) -> Factors:
        if n < 1:
            raise ValueError(f"the number of scenes must be at least 1, got {n}")
        device = generator.device
        u = torch.rand(11, n, generator=generator, device=device)  # the same count for any `shared`
        if label is None:
            label = _choice(u[0], torch.tensor(N_CLASSES, device=device))
        counts, members = self._counts.to(device), self._members.to(device)
        digit = members[(counts.cumsum(0) - counts)[label] + _choice(u[1], counts[label])]
        x, y, crop_x, crop_y = _between(u[5], CENTER), _between(u[6], CENTER), u[7], u[8]
        scale, crop_scale = _between(u[9], SCALE), _between(u[10], CROP_SCALE)
        photograph = torch.randint(2, (n,), generator=generator, device=device)
        values = (digit, label, x, y, scale, *u[2:5], photograph, crop_x, crop_y, crop_scale)
        return dict(zip(COLUMNS, values, strict=True))


def _compose(factors: Factors, digits: Tensor, photographs: Tensor, size: int) -> Tensor:
    """Paint the outline over the background, and the ink over both."""
    n, device = len(factors["x"]), factors["x"].device
    pixel = (torch.arange(size, device=device) + 0.5) / size  # centers, in scene sides

    # Both photographs are one tall image, the second below the first, so one call serves all scenes.
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
    """Read images (n, c, h, w) at rows (n, s) and columns (n, s), in -1..1 from edge to edge: (n, c, s, s)."""
    n, s = rows.shape
    grid = torch.stack([columns[:, None, :].expand(n, s, s), rows[:, :, None].expand(n, s, s)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _upsampled_digits() -> Tensor:
    """Return the ink of every digit with sharp edges, and its wider outline: (1797, 2, 72, 72)."""
    pixels = F.pad(torch.from_numpy(load_digits().images).float()[:, None] / 16, [MARGIN] * 4)
    smooth = F.interpolate(pixels, scale_factor=UPSAMPLED, mode="bicubic", align_corners=False)
    steep = ((smooth - 0.3) / (0.7 - 0.3)).clamp(0, 1)
    ink = steep * steep * (3 - 2 * steep)
    wider = F.avg_pool2d(F.max_pool2d(ink, UPSAMPLED + 1, stride=1, padding=UPSAMPLED // 2), 5, 1, 2)
    return torch.cat([ink, wider], dim=1)


def _photographs(size: int) -> Tensor:
    """Return both photographs, (1, 3, 2h, w) in 0..1; the largest crop has two pixels for each scene pixel."""
    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    height = round(2 * size / CROP_SCALE[1])
    width = round(height * images.shape[-1] / images.shape[-2])
    shrunk = F.interpolate(images, (height, width), mode="area")
    return torch.cat(list(shrunk), dim=1)[None]


def _between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _choice(u: Tensor, count: Tensor) -> Tensor:
    """Turn uniform u in [0, 1) into int64 in 0..count - 1; u * count may round up to count, hence the minimum."""
    return torch.minimum((u * count).long(), count - 1)


def _as_generator(seed: torch.Generator | int) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if not is_whole(seed):
        raise TypeError(f"a seed must be an integer or a torch.Generator, got {seed!r}")
    return torch.Generator().manual_seed(int(seed))
