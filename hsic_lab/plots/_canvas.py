"""Colors, theme and small drawing helpers that all plots share."""

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = sns.color_palette("colorblind").as_hex()
DIVERGING = "RdBu_r"
SEQUENTIAL = "viridis"
QUIET = "0.4"  # the gray of reference lines and of secondary text


def set_theme() -> None:
    """Set the theme of the project's figures. Call it once, at the top of a notebook."""
    rc = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110}
    sns.set_theme(style="ticks", palette="colorblind", rc=rc)


def plain(text: object, most: int = 32) -> str:
    """The user's text for a figure, shown as it is: no formula between dollar signs, no name that a legend hides.

    Of more than `most` characters the middle is left out. Characters that cannot be printed are spaces.
    """
    words = "".join(c if c.isprintable() or c == "\n" else " " for c in str(text)) or "''"
    half = most // 2
    words = words if len(words) <= most else f"{words[:half]} … {words[len(words) - most + half + 3 :]}"
    return (" " if words.startswith("_") else "") + words.replace("$", r"\$")  # a legend leaves out names like _x


def level_names(levels: Sequence[object]) -> list[str]:
    """The texts of the levels of a factor: what `plain` would shorten stands in several lines, so that all differ."""
    return [plain(text if len(text) <= 32 else textwrap.fill(text, 24), 88) for text in map(str, levels)]


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the given axes, or the axes of a new figure of this size in inches."""
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def value_label(value: str, evaluation: str) -> str:
    """Return the axis label of a column of an ablation table."""
    name, _, split = evaluation.partition(" on ")
    kind = {"linear": "linear probe", "knn": "weighted kNN"}.get(name, name)
    return f"{split or 'test'} accuracy ({kind})" if value == "accuracy" else plain(value.replace("_", " "))


def dashed_line(ax: Axes, value: float, label: str, *, vertical: bool = False, **text: Any) -> None:
    """Draw a labeled reference line across the axes; `text` places the label relative to the end of the line."""
    (ax.axvline if vertical else ax.axhline)(value, color=QUIET, linestyle="--", linewidth=1)
    coordinates = ("data", "axes fraction") if vertical else ("axes fraction", "data")
    text |= {"textcoords": "offset points", "color": QUIET, "fontsize": "small", "annotation_clip": False}
    ax.annotate(label, (value, 1) if vertical else (1, value), xycoords=coordinates, **text)


def png_text(figure: Figure, **look: Any) -> str:
    """Return a figure as a PNG file in base64, and close it; `look` are options of `savefig`."""
    figure.savefig(buffer := io.BytesIO(), format="png", **look)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
