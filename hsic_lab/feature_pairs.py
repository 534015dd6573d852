"""One cell of C taken apart: the samples behind it, and the images at their extremes."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from hsic_lab.correlation import standardize
from hsic_lab.matrix_summary import to_array

MOST_POINTS = 2000  # a scatter of more is a blot; the first of them stand for all


@dataclass(frozen=True)
class FeaturePair:
    """Feature i of view A against feature j of view B over the same n images.

    x, y:        (n,) the standardised features, whose mean product is `correlation`, C_ij
    extremes_a:  indices of the images with the lowest, then the highest x
    extremes_b:  the same of y
    """

    x: np.ndarray
    y: np.ndarray
    correlation: float
    extremes_a: np.ndarray
    extremes_b: np.ndarray


def feature_pair(z_a: Tensor, z_b: Tensor, i: int, j: int, extremes: int = 4) -> FeaturePair:
    """The samples behind C_ij of two `(n, d)`, and where the `extremes` lowest and highest of each lie."""
    d = z_a.shape[1]
    if not (0 <= i < d and 0 <= j < d):
        raise ValueError(f"features are numbered 0 to {d - 1}, got ({i}, {j})")
    if extremes < 1:
        raise ValueError(f"extremes must be at least 1, got {extremes}")
    x, y = (to_array(standardize(z[:, [column]])[:, 0]).astype(np.float64) for z, column in ((z_a, i), (z_b, j)))
    ends = []
    for values in (x, y):
        order = np.argsort(values, kind="stable")
        count = min(extremes, len(values) // 2)
        ends.append(np.concatenate([order[:count], order[-count:]]))
    return FeaturePair(x, y, float(np.mean(x * y)), *ends)


def picture_uris(images: ArrayLike, rows: np.ndarray) -> list[str]:
    """The images of those rows as PNG data addresses; `images` is what `as_pictures` accepts."""
    uris = []
    for picture in as_pictures(images)[rows]:
        buffer = io.BytesIO()
        Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)).save(buffer, format="png")
        uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris


def as_pictures(images: ArrayLike) -> np.ndarray:
    """uint8 (n, c, h, w), c = 1 or 3, from uint8 or from floats in [-1, 1]. Raises ValueError for anything else."""
    images = to_array(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n, c, h, w) with c = 1 or 3, got {images.shape}")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f" and np.abs(images).max(initial=0) <= 1 + 1e-5:
        return np.clip((images.astype(np.float32) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    raise ValueError(f"images must be uint8 or floats in [-1, 1], got {images.dtype}")
