"""Pictures of trainings: curves of what was logged, and the mean entries of C on their way to the target."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hsic_lab.canvas import PALETTE, QUIET, axes_or_new, require_columns

_LINE_STYLES = ("-", "--", ":", "-.")


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
