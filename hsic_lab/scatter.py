"""A representation as a cloud of points: its two principal axes, coloured by what is known of the rows."""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from hsic_lab.canvas import QUIET, axes_or_new
from hsic_lab.matrix_summary import to_array

COLOURS = 20  # classes that can still be told apart; of more, the largest have a colour
MOST_POINTS = 5000


def plot_embedding(z: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Rows of `z` `(n, d)`, d at least 2, on their first two principal axes, one colour a label.

    In brackets the share of the variance that an axis has. Of more than 5000 rows, 5000 evenly spaced ones are drawn
    (the axes are those of all rows); of more than 20 labels the 20 commonest have a colour and the others are grey.
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
        coloured = sorted(names[np.argsort(-counts, kind="stable")[:COLOURS]])
        rest = ~np.isin(labels[shown], coloured)
        if rest.any():
            ax.scatter(x[rest], y[rest], color=QUIET, label=f"others ({len(names) - COLOURS})", **look)
        palette = sns.color_palette("colorblind" if len(coloured) <= 10 else "husl", len(coloured))
        for name, color in zip(coloured, palette, strict=True):
            chosen = labels[shown] == name
            ax.scatter(x[chosen], y[chosen], color=color, label=str(name), **look)
        ax.legend(
            frameon=False, fontsize="small", markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5),
            ncols=1 if len(coloured) <= 12 else 2,
        )
    shares = pca.explained_variance_ratio_
    ax.set(xlabel=f"principal axis 1 ({shares[0]:.0%})", ylabel=f"principal axis 2 ({shares[1]:.0%})")
    return ax
