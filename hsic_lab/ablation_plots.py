"""Tables of ablations as lines with confidence bands, or as a map of two factors."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter

from hsic_lab.canvas import PALETTE, SEQUENTIAL, axes_or_new, require_columns
from hsic_lab.comparisons import summarize

_MARKERS = "osD^vPX*"


def plot_ablation(
    frame: pd.DataFrame, x: str, hue: str | None = None, ax: Axes | None = None, *, value: str = "accuracy",
    evaluation: str = "linear",
) -> Axes:
    """`value` against the factor `x`, a line a level of `hue`: means over seeds, 95 % t intervals as bands.

    Positive numbers stand on a log axis with a tick at each, everything else at equal distances in the table's order.
    A level with one seed has no band. Raises ValueError for a column that the frame lacks.
    """
    require_columns(frame, [x, value, *([hue] if hue else [])])
    table = summarize(frame, [x] if hue is None else [hue, x], value=value, evaluation=evaluation)
    if table[x].isna().any():
        raise ValueError(f"the column {x!r} is empty in some rows: give every row a level to stand at")
    ax = axes_or_new(ax, 5.6, 3.6)
    levels = table[x].drop_duplicates().tolist()
    numeric = pd.api.types.is_numeric_dtype(table[x]) and table[x].min() > 0
    position = {level: level if numeric else i for i, level in enumerate(levels)}
    lines = [("", table)] if hue is None else list(table.groupby(hue, sort=False, dropna=False))
    for i, (name, part) in enumerate(lines):
        at = part[x].map(position).to_numpy(dtype=np.float64)
        order = np.argsort(at)
        at, mean, low, high = (v[order] for v in (at, *(part[c].to_numpy() for c in ("mean", "low", "high"))))
        color = PALETTE[i % len(PALETTE)]
        ax.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        label = "none" if pd.isna(name) else str(name)
        ax.plot(at, mean, color=color, marker=_MARKERS[i % len(_MARKERS)], markersize=5, label=label)
    if numeric:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks([position[level] for level in levels], [f"{v:g}" if numeric else str(v) for v in levels])
    ax.set(xlabel=x.replace("_", " "), ylabel=_label(value, evaluation))
    if value == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        low, high = ax.get_ylim()  # the band of two seeds may leave what an accuracy can be
        ax.set_ylim(max(low, 0), min(high, 1))
    if hue is not None:
        ax.legend(title=hue.replace("_", " "), frameon=False, fontsize="small")
    return ax


def plot_ablation_map(
    frame: pd.DataFrame, row: str, column: str, ax: Axes | None = None, *, value: str = "accuracy",
    evaluation: str = "linear",
) -> Axes:
    """Means over seeds for every combination of two factors, as a heatmap with the mean written in each cell."""
    require_columns(frame, [row, column, value])
    table = summarize(frame, [row, column], value=value, evaluation=evaluation)
    orders = [table[name].drop_duplicates().tolist() for name in (row, column)]
    means = table.pivot(index=row, columns=column, values="mean").reindex(index=orders[0], columns=orders[1])
    ax = axes_or_new(ax, 1.0 * means.shape[1] + 2.6, 0.6 * means.shape[0] + 1.4)
    form = ".1%" if value == "accuracy" else ".3g"
    bar = {"label": _label(value, evaluation), "format": PercentFormatter(1) if value == "accuracy" else None}
    sns.heatmap(means, ax=ax, cmap=SEQUENTIAL, annot=True, fmt=form, cbar_kws=bar, linewidths=0.5)
    ax.set(xlabel=column.replace("_", " "), ylabel=row.replace("_", " "))
    plt.setp(ax.get_yticklabels(), rotation=0)
    return ax


def _label(value: str, evaluation: str) -> str:
    kind = {"linear": "linear probe", "knn": "weighted kNN"}.get(evaluation, evaluation)
    return f"test accuracy ({kind})" if value == "accuracy" else value.replace("_", " ")
