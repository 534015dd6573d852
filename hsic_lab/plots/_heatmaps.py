"""Heatmaps of cross-correlation matrices and CKA tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hsic_lab._checks import check_number, check_type
from hsic_lab.correlation import CorrelationSummary, off_diagonal, spectrum, square_matrix
from hsic_lab.plots._canvas import DIVERGING, PALETTE, QUIET, SEQUENTIAL, axes_or_new, plain
from hsic_lab.plots._samples import plot_spectrum


def plot_cross_correlation(c: ArrayLike, ax: Axes | None = None, limit: float = 1.0, title: str | None = None) -> Axes:
    """Heatmap of a cross-correlation matrix on the color scale ``[-limit, limit]``.

    The text above gives the mean of the diagonal and the root mean square of the other entries, without constant
    features, whose entries are 0. Above d = 512 a pixel is the mean of a square block of entries; on the diagonal it is
    the mean of the diagonal entries of the block.

    Parameters
    ----------
    c, ax : array-like of shape (d, d), Axes or None
        The matrix, d at least 2, and where to draw: a new figure by default.
    limit : float, default 1.0
        End of the color scale; larger entries share its color. Take 0.2 for the off-diagonal of a trained model.
    title : str or None
        Title of the axes.
    """
    norm, matrix = _diverging_norm(limit), square_matrix(c)
    ax = axes_or_new(ax, 4.8, 4.4)
    _color_bar(_draw_matrix(ax, matrix, norm, title), [matrix], limit, ax=ax, shrink=0.75)
    return ax


def compare_cross_correlations(panels: Mapping[str, ArrayLike | Mapping[str, ArrayLike]], limit: float = 1.0) -> Figure:
    """Figure of several cross-correlation matrices as heatmaps with one color scale and one color bar.

    Parameters
    ----------
    panels, limit : mapping of str to array-like of shape (d, d), or to such a mapping; and float, default 1.0
        Matrices by title, in one row, or by row and column, such as loss and "before" or "after", the same in all rows;
        and the end of the color scale.
    """
    kinds = {isinstance(row, Mapping) for row in check_type("panels", panels, Mapping).values()}
    if len(kinds) > 1:
        raise ValueError(f"panels must hold matrices only or rows of matrices only, got both under {list(panels)}")
    rows: Mapping[str, Any] = panels if True in kinds else {"": panels}
    columns = list(next(iter(rows.values())))
    for name, row in rows.items():
        if list(row) != columns:
            raise ValueError(f"every row must have the columns {columns}, row {name!r} has {list(row)}")
    norm = _diverging_norm(limit)
    titles = [f"{name}, {column}" if name else column for name in rows for column in columns]
    matrices = _matrices(dict(zip(titles, (c for row in rows.values() for c in row.values()), strict=True)))
    size = (3.0 * len(columns) + 0.9, 3.6 * len(rows))
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, layout="constrained", figsize=size)
    for ax, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
        image = _draw_matrix(ax, matrix, norm, title)
    _color_bar(image, matrices.values(), limit, ax=axes, shrink=0.9 if len(rows) == 1 else 0.6, aspect=25)
    return figure


def plot_cka(frame: Any, ax: Axes | None = None) -> Axes:
    """Heatmap of the CKA, or another similarity, of every pair of layers on the color scale ``[0, 1]``.

    Up to 144 cells show their value. Negative values, which the unbiased CKA of unrelated layers has, share the color
    of 0; the color bar then has an arrow. Of a permutation test the calibrated score is drawn, with a dash in the cells
    whose similarity chance reaches, too.

    Parameters
    ----------
    frame, ax : DataFrame or LayerTests, Axes or None
        A result of ``compare_models``, a row for each layer of model a, a column for each one of b; and where to draw.
    """
    tested = not isinstance(frame, pd.DataFrame)
    frame = check_type("frame", getattr(frame, "calibrated", frame) if tested else frame, pd.DataFrame)
    if frame.empty:
        raise ValueError(f"frame must hold at least one row and column, got shape {frame.shape}")
    values = frame.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"frame must be finite, {(~np.isfinite(values)).sum()} of its {values.size} values are not")
    cell = 0.46 if (annotated := values.size <= 144) else 0.2
    ax = axes_or_new(ax, *(min(max(cell * count, 1.5), 8) + 2.4 for count in values.shape[::-1]))
    texts = ["–" if tested and not value else f"{value:z.2f}" for value in values.flat] if annotated else []
    image = ax.imshow(values, cmap=SEQUENTIAL, norm=Normalize(0, 1), interpolation="nearest")
    for axis, labels, words in ((ax.xaxis, frame.columns, "model b"), (ax.yaxis, frame.index, "model a")):
        shown = range(0, len(labels), -(-len(labels) // 39))
        axis.set_ticks(list(shown), [plain(labels[i]) for i in shown], fontsize="small" if len(labels) <= 39 else 7)
        axis.set_label_text(words)
    if max(len(str(label)) for label in frame.columns) > 2:
        ax.tick_params(axis="x", rotation=90)
    for ((i, j), value), text in zip(np.ndenumerate(values), texts, strict=False):
        ink = "white" if value < 0.45 else "black"
        ax.text(j, i, text, ha="center", va="center", color=ink, fontsize="x-small")
    ax.grid(False)
    name = frame.attrs.get("measure", "CKA")
    label = f"calibrated {name}" + "\n–: within chance" * ("–" in texts) if tested else name
    ax.figure.colorbar(image, ax=ax, shrink=0.75, label=label, extend="min" if values.min() < -1e-6 else "neither")
    return ax


def matrix_figure(
    panels: Mapping[str, ArrayLike], n: Mapping[str, int], limit: float, order: Mapping[str, np.ndarray]
) -> Figure:
    """Heatmaps of several matrices C (d, d) on one color scale, with their histograms and spectra.

    `n` is the number of pairs behind each matrix, by title, and `order` the permutation of its features. The gray band
    of off-diagonal entries is ``2/sqrt(n-1)`` around 0.
    """
    norm, matrices = _diverging_norm(limit), _matrices(panels)
    summaries = {title: CorrelationSummary.from_matrix(c, n[title]) for title, c in matrices.items()}
    figure = plt.figure(figsize=(4.1 * len(matrices) + 4.1, 5.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    grid = figure.add_gridspec(3, len(matrices) + 1, width_ratios=[1] * len(matrices) + [0.85])
    heatmaps = [figure.add_subplot(grid[:, column]) for column in range(len(matrices))]
    for ax, (title, c) in zip(heatmaps, matrices.items(), strict=True):
        image = _draw_matrix(ax, c[np.ix_(order[title], order[title])], norm, title)
        summary = summaries[title]
        words = f"1ᵀC1 = {summary.total:.1f}".replace("-", "−")
        words += f"\nΣ off-diagonal² = {summary.off_diagonal_squared_norm:.1f}"
        words += f"\n(expected if independent: {summary.expected_squared_norm:.1f})"
        ax.set_xlabel(f"feature of view B\n\n{words}")
    _color_bar(image, matrices.values(), limit, ax=heatmaps, location="left", shrink=0.6, aspect=30)
    diagonal, rest, values = (figure.add_subplot(grid[row, -1]) for row in range(3))
    _histograms(diagonal, rest, matrices, summaries)
    for c in matrices.values():
        plot_spectrum(spectrum(c), values) if c.any() else values.plot([])  # which keeps the colors in step
    values.set_ylim(bottom=max(values.get_ylim()[0], 1e-6))  # smaller values are rounding errors
    values.set(title="spectrum of C", xlabel="index", ylabel="σ / largest")
    for ax in (diagonal, rest, values):
        ax.set_title(ax.get_title(), fontsize="medium")
    return figure


def _matrices(panels: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    if not check_type("panels", panels, Mapping):
        raise ValueError("panels must hold at least one matrix, got none")
    return {title: square_matrix(c) for title, c in panels.items()}


def _draw_matrix(ax: Axes, matrix: np.ndarray, norm: Normalize, title: str | None) -> AxesImage:
    shown, width = _block_means(matrix)
    edge = len(shown) * width - 0.5
    image = ax.imshow(shown, cmap=DIVERGING, norm=norm, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
    summary = CorrelationSummary.from_matrix(matrix, n=2)  # n enters none of these two numbers
    words = f"mean diagonal {summary.mean_diagonal:.2f}\nrms off-diagonal {summary.rms_off_diagonal:.3f}"
    ax.text(0.5, 1.02, words, transform=ax.transAxes, ha="center", va="bottom", color=QUIET, fontsize="small")
    if title is not None:
        ax.set_title(plain(title, 80), pad=32)
    ax.set(xlabel="feature of view B", ylabel="feature of view A")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(False)
    return image


def _block_means(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the means of at most 512 x 512 blocks, for the diagonal of its entries alone, and the width of a block."""
    d = len(matrix)
    width = -(-d // 512)
    starts = np.arange(0, d, width)
    sizes = np.diff(starts, append=d)
    means = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1) / np.outer(sizes, sizes)
    np.fill_diagonal(means, np.add.reduceat(np.diagonal(matrix), starts) / sizes)
    return means, width


def _diverging_norm(limit: float) -> Normalize:
    limit = check_number("limit", limit, 0, above=True)
    return Normalize(-limit, limit)


def _color_bar(image: AxesImage, matrices: Collection[np.ndarray], limit: float, **layout: Any) -> None:
    """Add a color bar with arrows at the ends that entries exceed by more than rounding."""
    limit *= 1 + 1e-6
    below, above = min(matrix.min() for matrix in matrices) < -limit, max(matrix.max() for matrix in matrices) > limit
    extend = ("both" if above else "min") if below else ("max" if above else "neither")
    image.figure.colorbar(image, label="correlation", extend=extend, **layout)


def _histograms(diagonal: Axes, rest: Axes, matrices: dict[str, np.ndarray], summaries: dict[str, Any]) -> None:
    """Draw the shares of entries of features that vary; those of constant features are 0 and tell nothing."""
    live = {title: np.outer(c.any(axis=1), c.any(axis=0)) for title, c in matrices.items()}
    own = {title: np.diagonal(c)[np.diagonal(live[title])] for title, c in matrices.items()}
    others = {title: off_diagonal(c)[off_diagonal(live[title])] for title, c in matrices.items()}
    widest = max((np.quantile(np.abs(values), 0.999) for values in others.values() if len(values)), default=0)
    band = 2 * max(summary.expected_rms for summary in summaries.values())
    half = next((width for width in (0.05, 0.1, 0.2, 0.5) if width >= max(widest, 1.2 * band)), 1.0)
    low = 0.0 if min(values.min(initial=0) for values in own.values()) >= 0 else -1.0
    rest.axvspan(-band, band, color="0.88", zorder=0)
    rest.axvspan(-band, band, fill=False, edgecolor="0.55", zorder=2)  # the histogram may cover the band
    for color, title in zip(cycle(PALETTE), matrices, strict=False):
        for ax, values, span in ((diagonal, own[title], (low, 1)), (rest, others[title], (-half, half))):
            look = {"histtype": "stepfilled", "alpha": 0.45, "color": color, "label": plain(title)}
            shares = np.full(len(values), 1 / max(1, len(values)))
            ax.hist(np.clip(values, *span), 40, range=span, weights=shares, **look)
    for bound in {summary.lower_bound for summary in summaries.values()}:
        rest.axvline(bound, color=QUIET, linestyle="--", linewidth=1)
    constant = sum(summary.n_constant for summary in summaries.values())
    words = f"\nwithout {constant} constant features" if constant else ""
    diagonal.set(title="diagonal", xlabel=f"C of a feature with itself{words}", ylabel="share")
    rest.set(title="off-diagonal", ylabel="share")
    rest.set_xlabel("C of two features\ngray: ±2 rms if independent\ndashed: −1/(d−1)", fontsize="small")
    if len(matrices) > 1:
        diagonal.legend(frameon=False, fontsize="small")
