"""Arrays and data frames in, matplotlib axes out.

Every `plot_*` takes `ax=None` (a new figure) and returns the axes it drew on; the functions that need several
panels return the figure. Colours come from the colour-blind-safe palette, signed values from one diverging
map centred at 0. Nothing here changes matplotlib's settings except `set_theme`.
"""
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hsic_lab.ablation_plots import plot_ablation, plot_ablation_map
from hsic_lab.canvas import DIVERGING, PALETTE, SEQUENTIAL, axes_or_new, set_theme
from hsic_lab.heatmaps import compare_cross_correlations, plot_cka, plot_cross_correlation
from hsic_lab.history_plots import history_figure, plot_history
from hsic_lab.matrix_summary import to_array
from hsic_lab.probe_plots import plot_confusion, plot_diagnostics, plot_few_labels, plot_probe
from hsic_lab.scatter import plot_embedding
from hsic_lab.view_plots import plot_pairs, plot_views

__all__ = [
    "DIVERGING", "PALETTE", "SEQUENTIAL", "compare_cross_correlations", "history_figure", "plot_ablation",
    "plot_ablation_map", "plot_cka", "plot_confusion", "plot_cross_correlation", "plot_diagnostics",
    "plot_embedding", "plot_few_labels", "plot_history", "plot_pairs", "plot_probe", "plot_spectrum",
    "plot_views", "set_theme",
]


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
