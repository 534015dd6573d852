"""Pictures of what probes and diagnostics found: accuracies, few-label curves, the confusion matrix, the verdicts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import NullLocator, PercentFormatter

from hsic_lab.canvas import PALETTE, QUIET, SEQUENTIAL, axes_or_new, require_columns
from hsic_lab.diagnostics import FAULTS
from hsic_lab.probes import few_label_summary

_MARKERS = "osD^vP"


def plot_probe(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probe accuracies: a bar is the mean over splits, a dot one split, the dashed line chance.

    `frame` is what `evaluation.probe_table` returns: one row per (representation, split), with the columns
    `representation, accuracy, chance`. The representations stand from top to bottom in the frame's order.
    """
    require_columns(frame, ["representation", "accuracy", "chance"])
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


def plot_few_labels(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Test accuracy against the labels per class, one line a representation, with its 95 % interval over seeds.

    `frame` is what `probes.few_label_curve` returns. The axis of labels is logarithmic, the dashed line is chance;
    with one seed there is no band.
    """
    require_columns(frame, ["representation", "per_class", "seed", "accuracy", "chance"])
    if not len(frame):
        raise ValueError("frame must hold at least one row, got none")
    ax = axes_or_new(ax, 6.0, 4.0)
    summary = few_label_summary(frame).sort_values("per_class")
    for i, name in enumerate(frame["representation"].unique()):
        rows = summary[summary["representation"] == name]
        color = PALETTE[i % len(PALETTE)]
        ax.plot(rows["per_class"], rows["mean"], marker=_MARKERS[i % len(_MARKERS)], color=color, label=str(name))
        ax.fill_between(rows["per_class"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    for chance in frame["chance"].unique():
        ax.axhline(chance, color=QUIET, linestyle="--", linewidth=1)
        ax.annotate(
            "chance", (1, chance), xycoords=("axes fraction", "data"), xytext=(0, -2), textcoords="offset points",
            ha="right", va="top", color=QUIET, fontsize="small",
        )
    sizes = sorted(frame["per_class"].unique())
    ax.set(xscale="log", ylim=(0, 1), xlabel="labelled pictures per class", ylabel="test accuracy of the linear probe")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def plot_confusion(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heatmap of a confusion matrix, as `probes.confusion` returns it: a row's colours are shares of its true class.

    Up to 20 classes every cell carries its count (nothing for 0). A class without test rows has an empty row.
    """
    counts = frame.to_numpy()
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"frame must be square with at least one class, got shape {counts.shape}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("frame must hold counts, got entries that are negative or not finite")
    k = len(counts)
    size = min(max(0.42 * k, 2.0), 7)
    ax = axes_or_new(ax, size + 2.2, size + 0.9)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(shares, cmap=SEQUENTIAL, norm=Normalize(0, 1), interpolation="nearest")
    if k <= 20:
        for (i, j), count in np.ndenumerate(counts):
            ink = "white" if shares[i, j] < 0.45 else "black"
            ax.text(j, i, f"{count}" if count else "", ha="center", va="center", color=ink, fontsize="x-small")
    step = -(-k // 40)
    for axis, labels in ((ax.yaxis, frame.index), (ax.xaxis, frame.columns)):
        axis.set_ticks(list(range(0, k, step)), [str(label) for label in labels[::step]])
    if max(len(str(label)) for label in frame.columns) > 2:
        ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.grid(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.75, label="share of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return ax


def plot_diagnostics(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The frame of `diagnostics.diagnose` as a board: a line a diagnostic, its value, its verdict and the rule for it.

    A filled circle is healthy, a cross a fault (`diagnostics.FAULTS`), an empty circle neither.
    """
    wanted = ["diagnostic", "value", "verdict", "threshold"]
    require_columns(frame, wanted)
    ax = axes_or_new(ax, 8.4, 0.6 + 0.26 * len(frame))
    for line, row in enumerate(frame[wanted].itertuples(index=False)):
        fault, healthy = row.verdict in FAULTS, row.verdict == "healthy"
        ink = PALETTE[3] if fault else PALETTE[2] if healthy else QUIET
        ax.plot(0, line, "X" if fault else "o", color=ink, markerfacecolor=ink if fault or healthy else "none")
        value = f"{int(row.value)}" if float(row.value).is_integer() else f"{row.value:.3g}"
        ax.text(0.48, line, value, ha="right", va="center", fontsize="small")
        ax.text(0.55, line, row.verdict, va="center", color=ink, fontsize="small")
        if row.verdict != "not judged":
            ax.text(1.35, line, row.threshold, va="center", color=QUIET, fontsize="small")
    ax.set_yticks(range(len(frame)), frame["diagnostic"].str.replace("_", " "), fontsize="small")
    ax.set(xlim=(-0.05, 2.6), ylim=(len(frame) - 0.5, -0.5), xticks=[])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if "verdict" in frame.attrs:
        ax.set_title(f"verdict: {frame.attrs['verdict']}", loc="left", fontsize="medium")
    return ax
