"""One picture of what a cross-correlation matrix holds: heatmap, both histograms, spectrum, and the sums in words."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hsic_lab.canvas import DIVERGING, QUIET
from hsic_lab.heatmaps import plot_cross_correlation
from hsic_lab.matrix_summary import MatrixSummary, feature_order, off_diagonal, spectrum, square_matrix, summarize
from hsic_lab.plots import PALETTE, plot_spectrum

WIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0)  # half the off-diagonal histogram's axis


def matrix_figure(
    panels: Mapping[str, ArrayLike], n: int | Mapping[str, int], limit: float = 1.0,
    order: str | Mapping[str, np.ndarray] = "index",
) -> Figure:
    """Heatmaps of several matrices C on one colour scale, and beside them their histograms and spectra in one frame.

    `panels` maps a title to C (d, d); `n` is the number of pairs behind each, one for all or by title. The grey band in
    the histogram of the off-diagonal entries is chance, within two standard deviations 1/sqrt(n-1) of 0 (the widest,
    where the n differ); the dashed line is -1/(d-1). `order` arranges each matrix's features, see `feature_order`, or
    gives their positions by title.
    """
    if not panels:
        raise ValueError("panels must hold at least one matrix, got none")
    matrices = {title: square_matrix(c) for title, c in panels.items()}
    pairs = n if isinstance(n, Mapping) else dict.fromkeys(matrices, n)
    summaries = {title: summarize(c, pairs[title]) for title, c in matrices.items()}
    figure = plt.figure(figsize=(4.1 * len(matrices) + 4.1, 5.8), layout="constrained")
    grid = figure.add_gridspec(3, len(matrices) + 1, width_ratios=[1] * len(matrices) + [0.85])
    heatmaps = []
    for column, (title, c) in enumerate(matrices.items()):
        ax = figure.add_subplot(grid[:, column])
        positions = feature_order(c, order) if isinstance(order, str) else order[title]
        plot_cross_correlation(c[np.ix_(positions, positions)], ax, limit, title, colorbar=False)
        ax.set_xlabel(f"feature of view B\n\n{in_words(summaries[title])}")
        heatmaps.append(ax)
    beyond = any(np.abs(c).max() > limit * (1 + 1e-6) for c in matrices.values())
    figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), DIVERGING), ax=heatmaps, location="left", shrink=0.6, aspect=30,
        label="correlation", extend="both" if beyond else "neither",
    )
    diagonal, rest, values = (figure.add_subplot(grid[row, -1]) for row in range(3))
    _histograms(diagonal, rest, matrices, summaries)
    for title, c in matrices.items():
        plot_spectrum(spectrum(c), values, title if len(matrices) > 1 else None)
    values.set_ylim(bottom=max(values.get_ylim()[0], 1e-6))  # rounding, not structure
    values.set(title="spectrum of C", xlabel="index", ylabel="σ / largest")
    if (legend := values.get_legend()) is not None:
        legend.remove()
    for ax in (diagonal, rest, values):
        ax.set_title(ax.get_title(), fontsize="medium")
    return figure


def in_words(summary: MatrixSummary) -> str:
    """Two lines: 1'C1, and the redundancy beside what chance makes."""
    return (
        f"1ᵀC1 = {summary.total:.1f}\n"
        f"Σ off-diagonal² = {summary.redundancy:.1f}, chance {summary.noise_floor:.1f}"
    ).replace("-", "−").replace("off−", "off-")


def _histograms(
    diagonal: Axes, rest: Axes, matrices: Mapping[str, np.ndarray], summaries: Mapping[str, MatrixSummary]
) -> None:
    others = {title: off_diagonal(c) for title, c in matrices.items()}
    widest = max(np.quantile(np.abs(values), 0.999) for values in others.values())
    band = 2 * max(summary.chance_rms for summary in summaries.values())
    half = next((width for width in WIDTHS if width >= max(widest, 1.2 * band)), 1.0)
    lowest = min(np.diagonal(c).min() for c in matrices.values())
    low = 0.0 if lowest >= 0 else -1.0
    rest.axvspan(-band, band, color="0.88", zorder=0)
    for color, (title, c) in zip(cycle(PALETTE), matrices.items(), strict=False):
        style = {"histtype": "stepfilled", "alpha": 0.45, "color": color, "label": title}
        for ax, values, span in ((diagonal, np.diagonal(c), (low, 1)), (rest, others[title], (-half, half))):
            weights = np.full(len(values), 1 / len(values))
            ax.hist(np.clip(values, *span), bins=40, range=span, weights=weights, **style)
    for least in {summary.least for summary in summaries.values()}:
        rest.axvline(least, color=QUIET, linestyle="--", linewidth=1)
    diagonal.set(title="diagonal", xlabel="C of a feature with itself", ylabel="share")
    rest.set(title="off-diagonal", xlabel="C of two features\n(grey: chance, dashed: −1/(d−1))", ylabel="share")
    if len(matrices) > 1:
        diagonal.legend(frameon=False, fontsize="small")
