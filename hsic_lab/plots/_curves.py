"""Images of trainings: curves of what was logged, and the mean entries of C on their way to the target."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from hsic_lab._statistics import few_label_summary, summarize
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.plots._canvas import PALETTE, QUIET, SEQUENTIAL, axes_or_new, require_columns

_LINE_STYLES = ("-", "--", ":", "-.")


def plot_history(
    frame: pd.DataFrame | Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    columns: Sequence[str] = ("loss",),
    by: str | None = None,
) -> Axes:
    """Training curves: each of `columns` against the column `step`.

    `frame` is one run, several runs told apart by the column `by`, or a mapping from a run's name to its
    frame. A color is a run (a column, if there is one run), a line style is a column. Nothing is averaged: a
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
                run["step"],
                run[column],
                label=label,
                linewidth=1.8,
                color=PALETTE[color % len(PALETTE)],
                linestyle=_LINE_STYLES[style % len(_LINE_STYLES)],
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
    mean that d standardized features can have. The two right panels have their own scales, since 1/(d-1) is
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
            words,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va=side,
            color=QUIET,
            fontsize="small",
            annotation_clip=False,
        )
    return figure


def _runs(
    frame: pd.DataFrame | Mapping[str, pd.DataFrame], columns: Sequence[str], by: str | None = None
) -> dict[str, pd.DataFrame]:
    """The runs by name (one nameless run without `by`), each sorted by its steps."""
    if isinstance(frame, Mapping):
        runs = dict(frame)
    elif by is None:
        runs = {"": frame}
    else:
        require_columns(frame, [by])
        runs = {str(name): run for name, run in frame.groupby(by, sort=False)}
    if not runs or not all(len(run) for run in runs.values()):
        raise ValueError(f"every run must hold rows, got { {name: len(run) for name, run in runs.items()} }")
    for run in runs.values():
        require_columns(run, ["step", *columns])
        if len(twice := run.loc[run["step"].duplicated(), "step"]):
            raise ValueError(f"step {twice.iloc[0]} occurs twice in one run: tell runs apart with by=")
    return {name: run.sort_values("step") for name, run in runs.items()}


_MARKERS = "osD^vPX*"


def plot_ablation(
    frame: pd.DataFrame,
    x: str,
    hue: str | None = None,
    ax: Axes | None = None,
    *,
    value: str = "accuracy",
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
    frame: pd.DataFrame,
    row: str,
    column: str,
    ax: Axes | None = None,
    *,
    value: str = "accuracy",
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


_PROBE_MARKERS = "osD^vP"


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
            f"{values.mean():.1%}{spread}".replace("% ±", " ±"),
            (values.max(), position),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    for chance in frame["chance"].unique():
        ax.axvline(chance, color=QUIET, linestyle="--", linewidth=1)
        ax.annotate(
            "chance",
            (chance, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=QUIET,
            fontsize="small",
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
        ax.plot(
            rows["per_class"],
            rows["mean"],
            marker=_PROBE_MARKERS[i % len(_PROBE_MARKERS)],
            color=color,
            label=str(name),
        )
        ax.fill_between(rows["per_class"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    for chance in frame["chance"].unique():
        ax.axhline(chance, color=QUIET, linestyle="--", linewidth=1)
        ax.annotate(
            "chance",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            color=QUIET,
            fontsize="small",
        )
    sizes = sorted(frame["per_class"].unique())
    ax.set(xscale="log", ylim=(0, 1), xlabel="labelled images per class", ylabel="test accuracy of the linear probe")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def plot_confusion(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heatmap of a confusion matrix, as `probes.confusion` returns it: a row's colors are shares of its true class.

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
