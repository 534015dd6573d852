"""Plots of samples: spectra, embeddings and pairs of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from hsic_lab._checks import as_tensor, check_integer, to_array
from hsic_lab.plots._canvas import PALETTE, QUIET, axes_or_new, plain

_MAX_COLORS = 20  # more classes cannot be told apart


def plot_spectrum(values: ArrayLike, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Singular values over the largest one, in descending order on a logarithmic axis.

    A sudden drop is dimensional collapse. Call it again on the same axes to compare spectra.

    Parameters
    ----------
    values, ax : array-like of shape (n, d) or (r,), Axes or None
        Samples, which are centered first, or singular values; where to draw, a new figure by default.
    label : str, optional
        Name of the spectrum in a legend.
    """
    z = to_array(as_tensor(values, "values").double())
    if z.ndim not in (1, 2) or z.size == 0 or not np.isfinite(z).all():
        raise ValueError(f"values must be finite, of shape (n, d) or (r,), got shape {z.shape}")
    singular = np.linalg.svd(z - z.mean(axis=0), compute_uv=False) if z.ndim == 2 else z
    if singular.min() < 0 or singular.max() == 0:
        raise ValueError(f"singular values must be >= 0, one > 0, got {singular.min()} to {singular.max()}")
    ax = axes_or_new(ax, 5.2, 3.4)
    color = PALETTE[len(ax.get_lines()) % len(PALETTE)]
    shares = np.sort(singular)[::-1] / singular.max()
    name = None if label is None else plain(label)
    ax.plot(np.arange(1, len(shares) + 1), shares, label=name, color=color, linewidth=1.8)
    ax.set(yscale="log", xlabel="index", ylabel="singular value / largest")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if label is not None:
        ax.legend(frameon=False)
    return ax


def plot_embedding(z: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Rows of `z` on their first two principal axes, with a color for each label.

    At most 5000 evenly spaced rows are drawn; the axes are those of all rows and name their share of the variance.
    The 20 most common labels have a color, the others are gray.

    Parameters
    ----------
    z : array-like of shape (n, d)
        Finite samples that are not all equal, n and d at least 2.
    labels, ax : array-like of shape (n,) or None, Axes or None
        The label of each row, and where to draw: a new figure by default.

    Examples
    --------
    >>> from hsic_lab.plots import plot_embedding
    >>> ax = plot_embedding([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], labels=["a", "a", "b"])
    """
    z = to_array(as_tensor(z, "z"))
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 2 or not np.isfinite(z).all():
        raise ValueError(f"z must be finite, of shape (n, d) with n and d at least 2, got shape {z.shape}")
    if not (z != z[:1]).any():
        raise ValueError(f"z must have rows that differ, got {len(z)} equal rows")
    classes = None if labels is None else to_array(labels, "labels")
    if classes is not None and classes.shape != (len(z),):
        raise ValueError(f"labels must have shape ({len(z)},), one a row of z, got {classes.shape}")
    points, shares = principal_axes(z)
    shown = np.linspace(0, len(z) - 1, min(len(z), 5000)).astype(int)
    x, y = points[shown].T
    ax = axes_or_new(ax, 5.6, 4.4)
    look: dict[str, Any] = {"s": 9, "linewidths": 0, "alpha": 0.7, "rasterized": True}
    if classes is None:
        ax.scatter(x, y, color="C0", **look)
    else:
        classes, missing = classes[shown], pd.isna(classes[shown])
        names, counts = np.unique(classes[~missing], return_counts=True)
        colored = sorted(names[np.argsort(-counts, kind="stable")[:_MAX_COLORS]])
        for rest, label in ((missing, "no label"), (~missing & ~np.isin(classes, colored), "others")):
            if rest.any():
                label += f" ({len(names) - _MAX_COLORS})" if label == "others" else ""
                ax.scatter(x[rest], y[rest], color=QUIET, label=label, **look)
        palette = sns.color_palette("colorblind" if len(colored) <= 10 else "husl", len(colored))
        for name, color in zip(colored, palette, strict=True):
            ax.scatter(x[classes == name], y[classes == name], color=color, label=plain(name), **look)
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 1 + (len(colored) > 12)}
        ax.legend(frameon=False, fontsize="small", markerscale=2, **place)
    ax.set(xlabel=f"principal axis 1 ({shares[0]:.0%})", ylabel=f"principal axis 2 ({shares[1]:.0%})")
    return ax


def principal_axes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows on two principal axes, (n, 2), and the axes' shares of the variance; 0 if all rows are equal."""
    if not (z != z[:1]).any():
        return np.zeros((len(z), 2)), np.zeros(2)
    unit = np.abs(z).max()  # squares of very large or small values leave float32
    pca = PCA(2, svd_solver="randomized" if min(z.shape) > 64 else "full", random_state=0).fit(z / unit)
    return unit * pca.transform(z / unit), pca.explained_variance_ratio_


def plot_pairs(view_a: ArrayLike, view_b: ArrayLike, n: int = 8, ax: Axes | None = None) -> Axes:
    """The first `n` pairs of images, view A above view B.

    Parameters
    ----------
    view_a, view_b : array-like of shape (m, c, h, w)
        Images with c = 1 or 3 channels, uint8 or floats in [-1, 1].
    n, ax : int, default 8, and Axes or None
        The number of pairs, at most m, and where to draw: a new figure by default.
    """
    a, b = (unit_images(view, name).transpose(0, 2, 3, 1) for name, view in (("view_a", view_a), ("view_b", view_b)))
    if a.shape != b.shape:
        raise ValueError(f"the views must have one shape, got {a.shape} and {b.shape}")
    n = check_integer("n, the number of pairs shown,", n, 1, len(a))
    ax = axes_or_new(ax, 1.1 * n + 0.6, 2.4)
    height, gap = a.shape[1], max(1, a.shape[2] // 16)
    tiles = np.pad(np.stack([a[:n], b[:n]]), ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1)
    mosaic = np.concatenate(np.concatenate(tiles, axis=1), axis=1)[:-gap, :-gap]
    ax.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([height / 2, 1.5 * height + gap], ["view A", "view B"])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def unit_images(images: ArrayLike, name: str = "images") -> np.ndarray:
    """Return images (n, c, h, w) as floats in [0, 1], from uint8 or from floats in [-1, 1]."""
    images = to_array(as_tensor(images, name))
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have shape (n, c, h, w) with c = 1 or 3, got {images.shape}")
    if images.dtype == np.uint8:
        return images / 255
    if images.dtype.kind == "f" and np.abs(images).max(initial=0) <= 1 + 1e-5:  # 1e-5 is for rounding
        return np.clip(images.astype(np.float64) / 2 + 0.5, 0, 1)
    found = f"{images.dtype} in [{images.min()}, {images.max()}]" if images.size else f"{images.dtype}"
    raise ValueError(f"{name} must be uint8 or floats in [-1, 1], got {found}")
