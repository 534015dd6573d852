"""Matrices as heatmaps: cross-correlations on a diverging color scale centered at 0, CKA on one from 0 to 1."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hsic_lab.correlation import CorrelationSummary, feature_order, off_diagonal, spectrum, square_matrix
from hsic_lab.plots._canvas import DIVERGING, PALETTE, QUIET, SEQUENTIAL, axes_or_new
from hsic_lab.plots._samples import plot_spectrum


def plot_cross_correlation(
    c: ArrayLike, ax: Axes | None = None, limit: float = 1.0, title: str | None = None, colorbar: bool = True
) -> Axes:
    """Heatmap of a cross-correlation matrix `c` (d, d), d at least 2, on the color scale [-limit, limit].

    The line above the image gives the mean of the diagonal and the root mean square of the rest. With
    `limit=1` the diagonal can be judged; to see a trained model's off-diagonal entries (about 0.05) take a
    limit of 0.2: larger entries then share the end color, which the color bar's arrow says. Above d = 512 a
    pixel is the mean of a square block of entries, on the diagonal the mean of the block's diagonal entries
    alone.
    """
    norm = _diverging_norm(limit)
    matrix = square_matrix(c)
    ax = axes_or_new(ax, 4.8, 4.4)
    image = _draw_matrix(ax, matrix, norm, title)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, shrink=0.75, label="correlation", extend=_extend([matrix], limit))
    return ax


def compare_cross_correlations(
    panels: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]], limit: float = 1.0
) -> Figure:
    """Several cross-correlation matrices on one color scale, with one color bar.

    `panels` maps a title to a matrix (one row of panels), or a row's name to such a mapping (a grid, for
    example one row a loss and the columns before and after training; all rows have the same columns).
    """
    if not panels:
        raise ValueError("panels must hold at least one matrix, got none")
    rows = panels if isinstance(next(iter(panels.values())), Mapping) else {"": panels}
    columns = list(next(iter(rows.values())))
    for name, row in rows.items():
        if list(row) != columns:
            raise ValueError(f"every row must have the columns {columns}, row {name!r} has {list(row)}")
    norm = _diverging_norm(limit)
    matrices = {name: [square_matrix(c) for c in row.values()] for name, row in rows.items()}
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        layout="constrained",
        figsize=(3.0 * len(columns) + 0.9, 3.6 * len(rows)),
    )
    for row_axes, (name, row) in zip(axes, matrices.items(), strict=True):
        for ax, column, matrix in zip(row_axes, columns, row, strict=True):
            _draw_matrix(ax, matrix, norm, f"{name}, {column}" if name else column)
    drawn = [matrix for row in matrices.values() for matrix in row]
    figure.colorbar(
        ScalarMappable(norm, DIVERGING),
        ax=axes,
        label="correlation",
        extend=_extend(drawn, limit),
        shrink=0.9 if len(rows) == 1 else 0.6,
        aspect=25,
    )
    return figure


def plot_cka(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heatmap of a layer-by-layer CKA table, as `compare_models` returns it, on the color scale [0, 1].

    Rows and columns stand in the order of the table, named by its labels. Up to 144 cells carry their value; from
    40 layers on an axis names every second one, or fewer. Values a little below 0, which unbiased CKA takes for
    unrelated layers, share the color of 0, which the color bar's arrow says.
    """
    if frame.empty:
        raise ValueError(f"frame must hold at least one row and column, got shape {frame.shape}")
    values = frame.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"frame must be finite, {(~np.isfinite(values)).sum()} of its {values.size} values are not")
    rows, columns = values.shape
    annotated = values.size <= 144
    cell = 0.46 if annotated else 0.2
    ax = axes_or_new(ax, *(min(max(cell * count, 1.5), 8) + 2.4 for count in (columns, rows)))
    norm = Normalize(0, 1)
    image = ax.imshow(values, cmap=SEQUENTIAL, norm=norm, interpolation="nearest", aspect="equal")
    for axis, labels, name in ((ax.yaxis, frame.index, "model a"), (ax.xaxis, frame.columns, "model b")):
        shown = range(0, len(labels), -(-len(labels) // 39))
        axis.set_ticks(list(shown), [str(labels[i]) for i in shown], fontsize="small" if annotated else 7)
        axis.set_label_text(str(labels.name or name).replace("_", " "))
    ax.tick_params(axis="x", rotation=90)
    if annotated:
        for (i, j), value in np.ndenumerate(values):
            # Minus zero is rounding for the reader; dark cells carry white figures.
            ink = "white" if value < 0.45 else "black"
            ax.text(j, i, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", color=ink, fontsize="x-small")
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, shrink=0.75, label="CKA", extend="min" if values.min() < -1e-6 else "neither")
    return ax


def _draw_matrix(ax: Axes, matrix: np.ndarray, norm: Normalize, title: str | None) -> AxesImage:
    shown, width = _block_means(matrix)
    edge = len(shown) * width - 0.5
    image = ax.imshow(shown, cmap=DIVERGING, norm=norm, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
    diagonal = np.diagonal(matrix)
    rms = np.sqrt(np.square(off_diagonal(matrix)).mean(dtype=np.float64))
    summary = f"mean diagonal {diagonal.mean():.2f}\nrms off-diagonal {rms:.3f}"
    quiet = {"ha": "center", "va": "bottom", "color": QUIET, "fontsize": "small"}
    ax.text(0.5, 1.02, summary, transform=ax.transAxes, **quiet)
    if title is not None:
        ax.set_title(title, pad=32)
    ax.set(xlabel="feature of view B", ylabel="feature of view A")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(False)
    return image


def _block_means(matrix: np.ndarray, most: int = 512) -> tuple[np.ndarray, int]:
    """At most `most` x `most` block means, and the blocks' width.

    A plain mean would dilute the diagonal until nobody sees it; picking entries would show chance as pattern.
    """
    d = len(matrix)
    width = -(-d // most)
    starts = np.arange(0, d, width)
    sizes = np.diff(starts, append=d)
    means = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1) / np.outer(sizes, sizes)
    np.fill_diagonal(means, np.add.reduceat(np.diagonal(matrix), starts) / sizes)
    return means, width


def _diverging_norm(limit: float) -> Normalize:
    if not (np.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be positive and finite, got {limit}")
    return Normalize(-limit, limit)


def _extend(matrices: Sequence[np.ndarray], limit: float) -> str:
    """Which ends of the color bar get an arrow: those that entries pass (by more than rounding)."""
    below = min(matrix.min() for matrix in matrices) < -limit * (1 + 1e-6)
    above = max(matrix.max() for matrix in matrices) > limit * (1 + 1e-6)
    return ("both" if above else "min") if below else ("max" if above else "neither")


WIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0)  # half the off-diagonal histogram's axis


def matrix_figure(
    panels: Mapping[str, ArrayLike],
    n: int | Mapping[str, int],
    limit: float = 1.0,
    order: str | Mapping[str, np.ndarray] = "index",
) -> Figure:
    """Heatmaps of several matrices C on one color scale, and beside them their histograms and spectra in one frame.

    `panels` maps a title to C (d, d); `n` is the number of pairs behind each, one for all or by title. The gray band in
    the histogram of the off-diagonal entries is chance, within two standard deviations 1/sqrt(n-1) of 0 (the widest,
    where the n differ); the dashed line is -1/(d-1). `order` arranges each matrix's features, see `feature_order`, or
    gives their positions by title.
    """
    if not panels:
        raise ValueError("panels must hold at least one matrix, got none")
    matrices = {title: square_matrix(c) for title, c in panels.items()}
    pairs = n if isinstance(n, Mapping) else dict.fromkeys(matrices, n)
    summaries = {title: CorrelationSummary.from_matrix(c, pairs[title]) for title, c in matrices.items()}
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
        ScalarMappable(Normalize(-limit, limit), DIVERGING),
        ax=heatmaps,
        location="left",
        shrink=0.6,
        aspect=30,
        label="correlation",
        extend="both" if beyond else "neither",
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


def in_words(summary: CorrelationSummary) -> str:
    """Two lines: 1'C1, and the redundancy beside what chance makes."""
    return (
        (
            f"1ᵀC1 = {summary.total:.1f}\nΣ off-diagonal² = {summary.off_diagonal_squared_norm:.1f}, chance {summary.expected_squared_norm:.1f}"
        )
        .replace("-", "−")
        .replace("off−", "off-")
    )


def _histograms(
    diagonal: Axes, rest: Axes, matrices: Mapping[str, np.ndarray], summaries: Mapping[str, CorrelationSummary]
) -> None:
    others = {title: off_diagonal(c) for title, c in matrices.items()}
    widest = max(np.quantile(np.abs(values), 0.999) for values in others.values())
    band = 2 * max(summary.expected_rms for summary in summaries.values())
    half = next((width for width in WIDTHS if width >= max(widest, 1.2 * band)), 1.0)
    lowest = min(np.diagonal(c).min() for c in matrices.values())
    low = 0.0 if lowest >= 0 else -1.0
    rest.axvspan(-band, band, color="0.88", zorder=0)
    for color, (title, c) in zip(cycle(PALETTE), matrices.items(), strict=False):
        style = {"histtype": "stepfilled", "alpha": 0.45, "color": color, "label": title}
        for ax, values, span in ((diagonal, np.diagonal(c), (low, 1)), (rest, others[title], (-half, half))):
            weights = np.full(len(values), 1 / len(values))
            ax.hist(np.clip(values, *span), bins=40, range=span, weights=weights, **style)
    for least in {summary.lower_bound for summary in summaries.values()}:
        rest.axvline(least, color=QUIET, linestyle="--", linewidth=1)
    diagonal.set(title="diagonal", xlabel="C of a feature with itself", ylabel="share")
    rest.set(title="off-diagonal", xlabel="C of two features\n(gray: chance, dashed: −1/(d−1))", ylabel="share")
    if len(matrices) > 1:
        diagonal.legend(frameon=False, fontsize="small")
