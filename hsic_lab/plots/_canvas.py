"""What all images share: colors, the theme, axes to draw on, the columns asked of a frame."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

PALETTE = sns.color_palette("colorblind").as_hex()
DIVERGING = "RdBu_r"
SEQUENTIAL = "viridis"
QUIET = "0.4"  # the gray of reference lines and second-rank text


def set_theme() -> None:
    """The look of the project's figures from now on: call it once, at the top of a notebook."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110},
    )


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of that size in inches."""
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def require_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError if the frame lacks one of `columns`."""
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}, it has {list(frame.columns)}")
