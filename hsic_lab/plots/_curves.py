"""Plots of training histories, probes, ablations and diagnostics."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from hsic_lab._checks import check_choice, check_integer, check_type, require_columns
from hsic_lab._statistics import summarize

from hsic_lab.plots._canvas import (  # isort: skip
    PALETTE, QUIET, SEQUENTIAL, axes_or_new, dashed_line, level_names, plain, value_label,
)  # fmt: skip


def history_figure(runs: Mapping[str, pd.DataFrame], dimension: int) -> Figure:
    """Figure of the loss per feature, the mean diagonal and the rms of the off-diagonal entries of C, during training.

    Dashed lines mark the target 1 of the diagonal and 0 of the off-diagonal entries. If a history has no rms, as those
    of earlier versions, the mean off-diagonal entry of all is drawn, with its smallest value for d standardized
    features, ``-1/(d-1)``.

    Parameters
    ----------
    runs, dimension : mapping of str to DataFrame, int
        Histories by name, with the columns ``step, loss, diagonal`` and ``rms_off_diagonal`` or ``off_diagonal``; the
        width d of C, at least 2.
    """
    dimension = check_integer("dimension", dimension, 2)
    if not check_type("runs", runs, Mapping):
        raise ValueError("runs must hold at least one history, got none")
    for run in runs.values():
        require_columns(run, ["step", "loss", "diagonal"])
    whole = all("rms_off_diagonal" in run and run["rms_off_diagonal"].notna().all() for run in runs.values())
    off_diagonal = "rms_off_diagonal" if whole else "off_diagonal"
    for run in runs.values():
        require_columns(run, [off_diagonal])
    figure, axes = plt.subplot_mosaic("ld;lo", figsize=(9.5, 4.0), layout="constrained")
    loss, diagonal, off = axes.values()
    for k, (name, run) in enumerate(runs.items()):
        for ax, values in ((loss, run["loss"] / dimension), (diagonal, run["diagonal"]), (off, run[off_diagonal])):
            ax.plot(run["step"], values, label=plain(name), color=PALETTE[k % len(PALETTE)], linewidth=1.8)
    for ax in (loss, off):
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    loss.set(ylabel="loss / d", title="loss per feature")
    diagonal.set(title="mean diagonal of C")
    off.set(title=f"{'rms' if whole else 'mean'} off-diagonal of C")
    if len(runs) > 1:
        loss.legend(frameon=False)
    diagonal.tick_params(labelbottom=False)
    dashed_line(diagonal, 1, "", xytext=(4, 0))
    dashed_line(off, 0, "" if whole else "0", xytext=(4, 0), va="bottom")
    if not whole:
        dashed_line(off, -1 / (dimension - 1), "−1/(d−1)", xytext=(4, 0), va="top")
    return figure


def plot_ablation(
    frame: pd.DataFrame, x: str, hue: str | None = None, ax: Axes | None = None, *, value: str = "accuracy",
    evaluation: str = "linear",
) -> Axes:  # fmt: skip
    """Mean over seeds of `value` against the factor `x`, with 95 % t intervals: bands, or bars if `x` holds names.

    Positive numbers have a logarithmic axis; other levels stand in the order of the table. One seed has no interval.

    Parameters
    ----------
    frame, ax : DataFrame, Axes or None
        A table of ``run_ablation``, and where to draw: a new figure by default.
    x, hue : str
        The columns of the factor on the axis and, optionally, of the factor with a line for each level.
    value, evaluation : str
        The column to draw, and the evaluation whose rows are used. A seed occurs once in a group. For a tuning curve,
        `x` is the tuned setting and `evaluation` ends in " on validation". If `x` is "layer", all layers are drawn.
    """
    require_columns(frame, [x, value, *([hue] if hue else [])])
    if evaluation.endswith(" on validation"):
        require_columns(frame, ["tuned"])
        frame = frame[frame["tuned"] == x]
    if x == "layer":
        check_choice(evaluation, ("linear",), "evaluation of the layers")
        frame = frame[frame["layer"].notna()].assign(evaluation=evaluation)
    table = summarize(frame, [x] if hue is None else [hue, x], value=value, evaluation=evaluation)
    if table[x].isna().any():
        raise ValueError(f"the column {x!r} is empty in some rows: give every row a level")
    numeric = pd.api.types.is_numeric_dtype(table[x]) and table[x].min() > 0
    codes, levels = pd.factorize(table[x])
    table = table.assign(position=table[x] if numeric else codes)
    lines = {"": table} if hue is None else dict(iter(table.groupby(hue, sort=False, dropna=False)))
    labels = level_names(["none" if pd.isna(name) else name for name in lines])
    names = [f"{value:g}" for value in levels] if numeric else level_names(levels)
    crowded, beside = sum(len(max(name.split("\n"), key=len)) for name in names) > 60, any("\n" in n for n in labels)
    deepest, in_legend = 1 + max(name.count("\n") for name in names), "\n".join(labels).count("\n") + 1  # lines of text
    width = max(7.8 if beside else 5.6, crowded * (0.19 * deepest * len(names) + 1))
    ax = axes_or_new(ax, width, max(5.0 if crowded else 3.6, beside * (0.22 * in_legend + 0.8)))
    ordered = x == "layer" or pd.to_numeric(table[x].astype(str), errors="coerce").notna().all()
    for number, (label, rows) in enumerate(zip(labels, lines.values(), strict=True)):
        rows = rows.sort_values("position")
        look = {"color": PALETTE[number % len(PALETTE)], "marker": "osD^vPX*"[number % 8], "markersize": 5}
        if ordered:
            ax.fill_between(rows["position"], rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0)
            ax.plot(rows["position"], rows["mean"], label=label, **look)
        else:  # nothing lies between two names
            beside_it = 0.4 * ((number + 0.5) / len(lines) - 0.5)
            half = rows[["low", "high"]].sub(rows["mean"], axis=0).abs().T.to_numpy()
            ax.errorbar(rows["position"] + beside_it, rows["mean"], half, label=label, ls="", capsize=3, **look)
            ax.set_xlim(-0.5, len(levels) - 0.5)
    if numeric:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(levels if numeric else range(len(levels)), names, rotation=90 if crowded else 0)
    ax.tick_params(axis="x", labelsize="small" if crowded else "medium")
    ax.set(xlabel=plain(x.replace("_", " ")), ylabel=value_label(value, evaluation))
    if value == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(*np.clip(ax.get_ylim(), 0, 1))  # the band of two seeds may leave the range of an accuracy
    if hue is not None:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if beside else {}
        ax.legend(title=plain(hue.replace("_", " ")), frameon=False, fontsize="small", **place)
    return ax


def plot_ablation_map(
    frame: pd.DataFrame, row: str, column: str, ax: Axes | None = None, *, value: str = "accuracy",
    evaluation: str = "linear",
) -> Axes:  # fmt: skip
    """Heatmap of the means over seeds for every combination of two factors, with the mean in each cell.

    Parameters
    ----------
    row, column : str
        The columns of the two factors.
    frame, ax, value, evaluation
        As in `plot_ablation`.
    """
    table = summarize(frame, [row, column], value=value, evaluation=evaluation)
    orders = [table[name].drop_duplicates().tolist() for name in (row, column)]
    means = table.pivot(index=row, columns=column, values="mean").reindex(index=orders[0], columns=orders[1])
    means = means.set_axis(level_names(means.index)).set_axis(level_names(means.columns), axis=1)
    ax = axes_or_new(ax, 1.0 * means.shape[1] + 2.6, max(0.6 * means.shape[0] + 1.4, 3.2))  # room for the bar's label
    form, ticks = (".1%", PercentFormatter(1)) if value == "accuracy" else (".3g", None)
    bar = {"label": value_label(value, evaluation), "format": ticks}
    sns.heatmap(means, ax=ax, cmap=SEQUENTIAL, annot=True, fmt=form, cbar_kws=bar, linewidths=0.5)
    ax.set(xlabel=plain(column.replace("_", " ")), ylabel=plain(row.replace("_", " ")))
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_differences(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Paired differences: a dot is a mean over seeds, a bar its 95 % interval, and the dashed line is no difference.

    For accuracies a gray band marks one percentage point around 0. A filled dot is a difference whose p-value is below
    0.05, corrected by Holm's method if the frame has the column ``p_holm``.

    Parameters
    ----------
    frame, ax : DataFrame, Axes or None
        A table of ``paired_differences``, or a row for each ``paired_difference``, all of one column of a table; and
        where to draw. Columns before ``first`` name the rows.
    """
    require_columns(frame, ["first", "second", "mean", "low", "high", "value", "p"])
    if len(values := frame["value"].unique()) > 1:
        raise ValueError(f"all differences must be of one column, got {list(values)}")
    points = values[0] == "accuracy"
    ax, scale = axes_or_new(ax, 6.4, 1.1 + 0.36 * len(frame)), 100 if points else 1
    if points:
        ax.axvspan(-1, 1, color=QUIET, alpha=0.15, linewidth=0)
    dashed_line(ax, 0, "no difference", vertical=True, xytext=(0, 2), ha="center", va="bottom")
    by = frame.columns[: frame.columns.get_loc("first")]
    for line, row in enumerate(frame.itertuples()):
        shown = getattr(row, "p_holm", row.p) < 0.05
        ax.plot([scale * row.low, scale * row.high], [line, line], color=PALETTE[0], linewidth=2)
        ax.plot(scale * row.mean, line, "o", color=PALETTE[0], markerfacecolor=PALETTE[0] if shown else "white")
    where = [", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in by) for _, row in frame.iterrows()]
    sides = zip(frame["second"], frame["first"], where, strict=True)
    names = [f"{plain(b)} minus {plain(a)}" + (f", {plain(w)}" if w else "") for b, a, w in sides]
    ax.set_yticks(range(len(frame)), names)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xlabel(f"difference of {plain(values[0].replace('_', ' '))}{' in points (gray: ±1)' if points else ''}")
    return ax


def plot_probe(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probe accuracies: a bar is the mean over splits, a dot one split, the dashed line is chance.

    Parameters
    ----------
    frame, ax : DataFrame, Axes or None
        A table of ``probe_table``, with the columns ``representation, accuracy, chance``, and where to draw.
    """
    require_columns(frame, ["representation", "accuracy", "chance"])
    groups = list(frame.groupby("representation", sort=False)["accuracy"])
    ax = axes_or_new(ax, 6.4, 0.9 + 0.5 * len(groups))
    for position, (_, values) in enumerate(groups):
        ax.barh(position, values.mean(), height=0.6, color=PALETTE[0], alpha=0.35)
        ax.plot(values, [position] * len(values), "o", color=PALETTE[0], markeredgecolor="white")
        words = f"{100 * values.mean():.1f} ± {values.std():.1%}" if len(values) > 1 else f"{values.mean():.1%}"
        ax.annotate(words, (values.max(), position), (8, 0), textcoords="offset points", va="center", fontsize="small")
    for chance in frame["chance"].unique():
        dashed_line(ax, chance, "chance", vertical=True, xytext=(0, 2), ha="center", va="bottom")
    ax.set_yticks(range(len(groups)), [plain(name) for name, _ in groups])
    ax.set(xlim=(0, 1.25), ylim=(len(groups) - 0.5, -0.5), xlabel="test accuracy of the linear probe")
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines["bottom"].set_bounds(0, 1)
    return ax


def plot_few_labels(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Test accuracy against labels per class, with 95 % intervals over seeds as bands; the dashed line is chance.

    Parameters
    ----------
    frame, ax : DataFrame, Axes or None
        A table of ``few_label_curve``, and where to draw: a new figure by default.
    """
    require_columns(frame, ["representation", "per_class", "seed", "accuracy", "chance"])
    runs = frame.assign(evaluation="linear", seed=range(len(frame)))  # every row enters the mean
    runs = runs.sort_values("per_class", kind="stable")
    ax = plot_ablation(runs, "per_class", "representation", axes_or_new(ax, 6.0, 4.0))
    for chance in frame["chance"].unique():
        dashed_line(ax, chance, "chance", xytext=(0, -2), ha="right", va="top")
    ax.set(ylim=(0, 1), xlabel="labeled images per class", ylabel="test accuracy of the linear probe")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def plot_diagnostics(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A line of text for each diagnostic: its value, its verdict and the rule that gave the verdict.

    A filled circle is healthy, a cross a fault, an empty circle redundant or not judged. The title is the
    overall verdict, ``frame.attrs["verdict"]``.

    Parameters
    ----------
    frame, ax : DataFrame, Axes or None
        A table of ``diagnose`` with the columns ``diagnostic, value, verdict, threshold``, and where to draw.
    """
    require_columns(frame, ["diagnostic", "value", "verdict", "threshold"])
    ax = axes_or_new(ax, 9.4, 0.6 + 0.26 * len(frame))
    for line, row in enumerate(frame.itertuples(index=False)):
        fault, healthy = row.verdict not in ("healthy", "redundant", "not judged"), row.verdict == "healthy"
        ink = PALETTE[3] if fault else PALETTE[2] if healthy else QUIET
        ax.plot(0, line, "X" if fault else "o", color=ink, markerfacecolor=ink if fault or healthy else "none")
        value = f"{int(row.value)}" if float(row.value).is_integer() else f"{row.value:.3g}"
        ax.text(0.48, line, value, ha="right", va="center", fontsize="small")
        ax.text(0.55, line, row.verdict, va="center", color=ink, fontsize="small")
        if row.verdict != "not judged":
            ax.text(1.22, line, row.threshold, va="center", color=QUIET, fontsize="small")
    ax.set_yticks(range(len(frame)), [plain(name.replace("_", " ")) for name in frame["diagnostic"]], fontsize="small")
    ax.set(xlim=(-0.05, 2.6), ylim=(len(frame) - 0.5, -0.5), xticks=[])
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    if "verdict" in frame.attrs:
        ax.set_title(f"verdict: {frame.attrs['verdict']}", loc="left", fontsize="medium")
    return ax
