"""Arrays and data frames in, matplotlib axes out.

Every `plot_*` takes `ax=None` (a new figure) and returns the axes it drew on; the functions that need several
panels return the figure. Colors come from the color-blind-safe palette, signed values from one diverging
map centered at 0. Nothing here changes matplotlib's settings except `set_theme`.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from hsic_lab._checks import to_array
from hsic_lab.plots._canvas import PALETTE, QUIET, axes_or_new


def plot_spectrum(values: ArrayLike, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Singular values over the largest one, sorted, on a log axis; a cliff is dimensional collapse.

    `values` are samples (n, d), whose column means are taken off first, or singular values (r,) themselves.
    Call it again on the same axes with another `label` to compare.
    """
    values = to_array(values).astype(np.float64)
    if values.ndim not in (1, 2) or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be finite, of shape (n, d) or (r,), got shape {values.shape}")
    if values.ndim == 2:
        values = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    if values.min() < 0 or values.max() == 0:
        raise ValueError(f"singular values must be >= 0, one > 0, got {values.min()} to {values.max()}")
    ax = axes_or_new(ax, 5.2, 3.4)
    values = np.sort(values)[::-1] / values.max()
    color = PALETTE[len(ax.get_lines()) % len(PALETTE)]
    ax.plot(np.arange(1, len(values) + 1), values, label=label, color=color, linewidth=1.8)
    ax.set(yscale="log", xlabel="index", ylabel="singular value / largest")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if label is not None:
        ax.legend(frameon=False)
    return ax


COLORS = 20  # classes that can still be told apart; of more, the largest have a color
MOST_POINTS = 5000


def plot_embedding(z: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Rows of `z` `(n, d)`, d at least 2, on their first two principal axes, one color a label.

    In brackets the share of the variance that an axis has. Of more than 5000 rows, 5000 evenly spaced ones are drawn
    (the axes are those of all rows); of more than 20 labels the 20 commonest have a color and the others are gray.
    Raises ValueError for other shapes, values that are not finite, equal rows, or labels that do not match.
    """
    z = to_array(z)
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 2 or not np.isfinite(z).all():
        raise ValueError(f"z must be finite, of shape (n, d) with n and d at least 2, got shape {z.shape}")
    if not (z != z[:1]).any():
        raise ValueError(f"z must have rows that differ, got {len(z)} equal rows")
    unit = np.abs(z).max()  # squares of large or small values leave float32
    pca = PCA(2, svd_solver="randomized" if min(z.shape) > 64 else "full", random_state=0).fit(z / unit)
    shown = np.linspace(0, len(z) - 1, min(len(z), MOST_POINTS)).astype(int)
    x, y = unit * pca.transform(z[shown] / unit).T
    ax = axes_or_new(ax, 5.6, 4.4)
    look = {"s": 9, "linewidths": 0, "alpha": 0.7, "rasterized": True}
    if labels is None:
        ax.scatter(x, y, color="C0", **look)
    else:
        labels = to_array(labels)
        if labels.shape != (len(z),):
            raise ValueError(f"labels must have shape ({len(z)},), one a row of z, got {labels.shape}")
        names, counts = np.unique(labels[shown], return_counts=True)
        colored = sorted(names[np.argsort(-counts, kind="stable")[:COLORS]])
        rest = ~np.isin(labels[shown], colored)
        if rest.any():
            ax.scatter(x[rest], y[rest], color=QUIET, label=f"others ({len(names) - COLORS})", **look)
        palette = sns.color_palette("colorblind" if len(colored) <= 10 else "husl", len(colored))
        for name, color in zip(colored, palette, strict=True):
            chosen = labels[shown] == name
            ax.scatter(x[chosen], y[chosen], color=color, label=str(name), **look)
        ax.legend(
            frameon=False,
            fontsize="small",
            markerscale=2,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            ncols=1 if len(colored) <= 12 else 2,
        )
    shares = pca.explained_variance_ratio_
    ax.set(xlabel=f"principal axis 1 ({shares[0]:.0%})", ylabel=f"principal axis 2 ({shares[1]:.0%})")
    return ax


def plot_pairs(view_a: ArrayLike, view_b: ArrayLike, n: int = 8, ax: Axes | None = None) -> Axes:
    """The first `n` image pairs as one image: view A above view B.

    Both views are (m, c, h, w) with c = 1 or 3, uint8 or floats in [-1, 1].
    """
    a, b = _images("view_a", view_a), _images("view_b", view_b)
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

    For example ``plot_views({name: augmentation(name, 32)(images) for name in AUGMENTATIONS})``.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair of views, got none")
    figure, axes = plt.subplots(
        len(pairs), 1, figsize=(1.1 * n + 0.6, 2.6 * len(pairs)), squeeze=False, layout="constrained"
    )
    for ax, (title, (view_a, view_b)) in zip(axes[:, 0], pairs.items(), strict=True):
        plot_pairs(view_a, view_b, n, ax).set_title(title)
    return figure


def _images(name: str, images: ArrayLike) -> np.ndarray:
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
