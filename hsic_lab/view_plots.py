"""Pictures of views: pairs of augmented images side by side."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hsic_lab.canvas import axes_or_new
from hsic_lab.matrix_summary import to_array


def plot_pairs(view_a: ArrayLike, view_b: ArrayLike, n: int = 8, ax: Axes | None = None) -> Axes:
    """The first `n` image pairs as one picture: view A above view B.

    Both views are (m, c, h, w) with c = 1 or 3, uint8 or floats in [-1, 1].
    """
    a, b = _pictures("view_a", view_a), _pictures("view_b", view_b)
    if a.shape != b.shape:
        raise ValueError(f"the views must have one shape, got {a.shape} and {b.shape}")
    if not 1 <= n <= len(a):
        raise ValueError(f"n must be between 1 and the {len(a)} pairs given, got {n}")
    ax = axes_or_new(ax, 1.1 * n + 0.6, 2.4)
    _, height, width, channels = a.shape
    gap = max(1, width // 16)
    mosaic = np.ones((2 * height + gap, n * (width + gap) - gap, channels))
    for i in range(n):
        left = i * (width + gap)
        mosaic[:height, left : left + width] = a[i]
        mosaic[height + gap :, left : left + width] = b[i]
    mosaic = mosaic if channels == 3 else mosaic[..., 0]
    ax.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([height / 2, 1.5 * height + gap], ["view A", "view B"])
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def plot_views(pairs: Mapping[str, tuple[ArrayLike, ArrayLike]], n: int = 8) -> Figure:
    """Pairs of views of the same images under several augmentations, one `plot_pairs` a title, below each other.

    For example ``plot_views({name: preset(name, 32)(images) for name in PRESETS})``.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair of views, got none")
    figure, axes = plt.subplots(
        len(pairs), 1, figsize=(1.1 * n + 0.6, 2.6 * len(pairs)), squeeze=False, layout="constrained"
    )
    for ax, (title, (view_a, view_b)) in zip(axes[:, 0], pairs.items(), strict=True):
        plot_pairs(view_a, view_b, n, ax).set_title(title)
    return figure


def _pictures(name: str, images: ArrayLike) -> np.ndarray:
    """(m, h, w, c) in [0, 1]."""
    images = to_array(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have shape (m, c, h, w) with c = 1 or 3, got {images.shape}")
    if images.dtype == np.uint8:
        images = images / 255
    elif images.dtype.kind == "f" and np.abs(images).max() <= 1 + 1e-5:
        images = np.clip(images.astype(np.float64) / 2 + 0.5, 0, 1)  # rounding alone
    else:
        found = f"{images.dtype} in [{images.min()}, {images.max()}]"
        raise ValueError(f"{name} must be uint8 or floats in [-1, 1], got {found}")
    return images.transpose(0, 2, 3, 1)
