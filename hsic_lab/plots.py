"""Arrays and data frames in, matplotlib axes out.

Every `plot_*` takes `ax=None` (a new figure) and returns the axes it drew on; the functions that need several
panels return the figure. Colours come from the colour-blind-safe palette, signed values from one diverging
map centred at 0. Nothing here changes matplotlib's settings except `set_theme`.
"""
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from hsic_lab.ablation_plots import plot_ablation, plot_ablation_map
from hsic_lab.heatmaps import (
    DIVERGING,
    PALETTE,
    QUIET,
    SEQUENTIAL,
    axes_or_new,
    compare_cross_correlations,
    plot_cka,
    plot_cross_correlation,
)
from hsic_lab.matrix_summary import to_array
from hsic_lab.probe_plots import plot_confusion, plot_diagnostics, plot_few_labels
from hsic_lab.scatter import plot_embedding

__all__ = [
    "DIVERGING", "PALETTE", "SEQUENTIAL", "compare_cross_correlations", "history_figure", "plot_ablation",
    "plot_ablation_map", "plot_cka", "plot_confusion", "plot_cross_correlation", "plot_diagnostics",
    "plot_embedding", "plot_few_labels", "plot_history", "plot_pairs", "plot_probe", "plot_spectrum",
    "plot_views", "set_theme",
]

_LINE_STYLES = ("-", "--", ":", "-.")


def set_theme() -> None:
    """The look of the project's figures from now on: call it once, at the top of a notebook."""
    sns.set_theme(
        context="notebook", style="ticks", palette="colorblind",
        rc={"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110},
    )


def plot_history(
    frame: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None,
    columns: Sequence[str] = ("loss",), by: str | None = None,
) -> Axes:
    """Training curves: each of `columns` against the column `step`.

    `frame` is one run, several runs told apart by the column `by`, or a mapping from a run's name to its
    frame. A colour is a run (a column, if there is one run), a line style is a column. Nothing is averaged: a
    step that a run holds twice is an error.
    """
    runs = _runs(frame, columns, by)
    ax = axes_or_new(ax, 5.2, 3.4)
    for i, (name, run) in enumerate(runs.items()):
        for j, column in enumerate(columns):
            words = column.replace("_", "-")
            label = words if not name else name if len(columns) == 1 else f"{name}, {words}"
            color, style = (j, 0) if len(runs) == 1 else (i, j)
            ax.plot(
                run["step"], run[column], label=label, linewidth=1.8,
                color=PALETTE[color % len(PALETTE)], linestyle=_LINE_STYLES[style % len(_LINE_STYLES)],
            )
    ax.set(xlabel="training step", ylabel=", ".join(column.replace("_", "-") for column in columns))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(runs) > 1 or len(columns) > 1:
        ax.legend(frameon=False)
    return ax


def history_figure(runs: Mapping[str, pd.DataFrame], dimension: int) -> Figure:
    """Training seen through C: the loss per feature (left), the mean diagonal and off-diagonal (right).

    `runs` maps a name to a frame with the columns `step, loss, diagonal, off_diagonal`; `dimension` is the
    width d of C. Dashed lines: 0, where Barlow Twins sends the off-diagonal entries, and -1/(d-1), the least
    mean that d standardised features can have. The two right panels have their own scales, since 1/(d-1) is
    small against 1.
    """
    if dimension < 2:
        raise ValueError(f"dimension must be at least 2, got {dimension}")
    runs = _runs(runs, ["loss", "diagonal", "off_diagonal"])
    figure = plt.figure(figsize=(9.5, 4.0), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    loss = figure.add_subplot(grid[:, 0])
    diagonal = figure.add_subplot(grid[0, 1])
    off = figure.add_subplot(grid[1, 1], sharex=diagonal)
    plot_history({name: run.assign(loss=run["loss"] / dimension) for name, run in runs.items()}, loss)
    loss.set(ylabel="loss / d", title="loss per feature")
    for ax, column in ((diagonal, "diagonal"), (off, "off_diagonal")):
        plot_history(runs, ax, [column])
        ax.set(ylabel="", title=f"mean {column.replace('_', '-')} of C")
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    diagonal.axhline(1, color=QUIET, linestyle="--", linewidth=1)
    diagonal.set_xlabel("")
    diagonal.tick_params(labelbottom=False)
    for height, words, side in ((0.0, "0", "bottom"), (-1 / (dimension - 1), "−1/(d−1)", "top")):
        off.axhline(height, color=QUIET, linestyle="--", linewidth=1)
        off.annotate(
            words, (1, height), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va=side, color=QUIET, fontsize="small", annotation_clip=False,
        )
    return figure


def plot_probe(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probe accuracies: a bar is the mean over splits, a dot one split, the dashed line chance.

    `frame` is what `evaluation.probe_table` returns: one row per (representation, split), with the columns
    `representation, accuracy, chance`. The representations stand from top to bottom in the frame's order.
    """
    _require_columns(frame, ["representation", "accuracy", "chance"])
    if not len(frame):
        raise ValueError("frame must hold at least one row, got none")
    groups = list(frame.groupby("representation", sort=False)["accuracy"])
    ax = axes_or_new(ax, 6.4, 0.9 + 0.5 * len(groups))
    for position, (_, values) in enumerate(groups):
        ax.barh(position, values.mean(), height=0.6, color=PALETTE[0], alpha=0.35)
        ax.plot(values, [position] * len(values), "o", color=PALETTE[0], markeredgecolor="white")
        spread = f" ± {values.std():.1%}" if len(values) > 1 else ""
        ax.annotate(
            f"{values.mean():.1%}{spread}".replace("% ±", " ±"), (values.max(), position), xytext=(8, 0),
            textcoords="offset points", va="center", fontsize="small",
        )
    for chance in frame["chance"].unique():
        ax.axvline(chance, color=QUIET, linestyle="--", linewidth=1)
        ax.annotate(
            "chance", (chance, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", color=QUIET, fontsize="small",
        )
    ax.set_yticks(range(len(groups)), [str(name) for name, _ in groups])
    ax.set(xlim=(0, 1.25), ylim=(len(groups) - 0.5, -0.5), xlabel="test accuracy of the linear probe")
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines["bottom"].set_bounds(0, 1)
    return ax


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


def _runs(
    frame: pd.DataFrame | Mapping[str, pd.DataFrame], columns: Sequence[str], by: str | None = None
) -> dict[str, pd.DataFrame]:
    """The runs by name (one nameless run without `by`), each sorted by its steps."""
    if isinstance(frame, Mapping):
        runs = dict(frame)
    elif by is None:
        runs = {"": frame}
    else:
        _require_columns(frame, [by])
        runs = {str(name): run for name, run in frame.groupby(by, sort=False)}
    if not runs or not all(len(run) for run in runs.values()):
        raise ValueError(f"every run must hold rows, got { {name: len(run) for name, run in runs.items()} }")
    for run in runs.values():
        _require_columns(run, ["step", *columns])
        if len(twice := run.loc[run["step"].duplicated(), "step"]):
            raise ValueError(f"step {twice.iloc[0]} occurs twice in one run: tell runs apart with by=")
    return {name: run.sort_values("step") for name, run in runs.items()}


def _require_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"the frame lacks the columns {missing}, it has {list(frame.columns)}")
