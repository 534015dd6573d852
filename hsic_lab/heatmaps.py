"""Matrices as heatmaps: cross-correlations on a diverging colour scale centred at 0, CKA on one from 0 to 1."""
from collections.abc import Mapping, Sequence

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

from hsic_lab.canvas import DIVERGING, QUIET, SEQUENTIAL, axes_or_new
from hsic_lab.matrix_summary import off_diagonal, square_matrix


def plot_cross_correlation(
    c: ArrayLike, ax: Axes | None = None, limit: float = 1.0, title: str | None = None, colorbar: bool = True
) -> Axes:
    """Heatmap of a cross-correlation matrix `c` (d, d), d at least 2, on the colour scale [-limit, limit].

    The line above the picture gives the mean of the diagonal and the root mean square of the rest. With
    `limit=1` the diagonal can be judged; to see a trained model's off-diagonal entries (about 0.05) take a
    limit of 0.2: larger entries then share the end colour, which the colour bar's arrow says. Above d = 512 a
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
    """Several cross-correlation matrices on one colour scale, with one colour bar.

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
        len(rows), len(columns), squeeze=False, layout="constrained",
        figsize=(3.0 * len(columns) + 0.9, 3.6 * len(rows)),
    )
    for row_axes, (name, row) in zip(axes, matrices.items(), strict=True):
        for ax, column, matrix in zip(row_axes, columns, row, strict=True):
            _draw_matrix(ax, matrix, norm, f"{name}, {column}" if name else column)
    drawn = [matrix for row in matrices.values() for matrix in row]
    figure.colorbar(
        ScalarMappable(norm, DIVERGING), ax=axes, label="correlation", extend=_extend(drawn, limit),
        shrink=0.9 if len(rows) == 1 else 0.6, aspect=25,
    )
    return figure


def plot_cka(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heatmap of a layer-by-layer CKA table, as `compare_models` returns it, on the colour scale [0, 1].

    Rows and columns stand in the order of the table, named by its labels. Up to 144 cells carry their value; from
    40 layers on an axis names every second one, or fewer. Values a little below 0, which unbiased CKA takes for
    unrelated layers, share the colour of 0, which the colour bar's arrow says.
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
    image = ax.imshow(
        shown, cmap=DIVERGING, norm=norm, interpolation="nearest", extent=(-0.5, edge, edge, -0.5)
    )
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
    """Which ends of the colour bar get an arrow: those that entries pass (by more than rounding)."""
    below = min(matrix.min() for matrix in matrices) < -limit * (1 + 1e-6)
    above = max(matrix.max() for matrix in matrices) > limit * (1 + 1e-6)
    return ("both" if above else "min") if below else ("max" if above else "neither")
