"""Plots of probes and diagnostics: lines, bands, cells and texts."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from hsic_lab.ablation import paired_difference
from hsic_lab.diagnostics import diagnose
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.evaluation import few_label_summary
from hsic_lab.plots import (
    compare_cross_correlations,
    history_figure,
    plot_ablation,
    plot_ablation_map,
    plot_cka,
    plot_cross_correlation,
    plot_diagnostics,
    plot_differences,
    plot_embedding,
    plot_few_labels,
    plot_probe,
    plot_spectrum,
)
from hsic_lab.plots._canvas import PALETTE, plain
from hsic_lab.plots._heatmaps import matrix_figure


def curve():
    rows = [
        {"representation": name, "per_class": m, "seed": seed, "accuracy": base + 0.01 * m + 0.02 * seed, "chance": 0.1}
        for name, base in (("pixels", 0.2), ("barlow", 0.5))
        for m in (10, 2)
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


FRAME = diagnose(torch.ones(20, 3), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
DRAW = {
    "few_labels": lambda **kw: plot_few_labels(curve(), **kw),
    "diagnostics": lambda **kw: plot_diagnostics(FRAME, **kw),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_given_axes_are_returned_and_settings_are_kept(draw):
    before = dict(matplotlib.rcParams)
    _, (ax, other) = plt.subplots(1, 2)
    assert draw(ax=ax) is ax and not other.has_data()
    assert draw().figure is not ax.figure
    assert dict(matplotlib.rcParams) == before


def test_few_label_lines_are_means_with_intervals():
    ax = plot_few_labels(curve())
    summary = few_label_summary(curve()).set_index(["representation", "per_class"])
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["2", "10"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pixels", "barlow"]
    for i, name in enumerate(("pixels", "barlow")):
        line, band = ax.get_lines()[i], ax.collections[i].get_paths()[0].vertices
        np.testing.assert_array_equal(line.get_xdata(), [2, 10])
        np.testing.assert_allclose(line.get_ydata(), summary.loc[name, "mean"].sort_index())
        assert line.get_color() == PALETTE[i]
        for m in (2, 10):
            edges = band[band[:, 0] == m, 1]
            assert edges.min() == pytest.approx(summary.loc[(name, m), "low"])
            assert edges.max() == pytest.approx(summary.loc[(name, m), "high"])
    assert ax.get_lines()[2].get_ydata()[0] == 0.1


def test_diagnostics_show_the_texts_of_the_frame():
    ax = plot_diagnostics(FRAME)
    words = [text.get_text() for text in ax.texts]
    assert ax.get_title("left") == "verdict: complete collapse" and words.count("complete collapse") == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == FRAME["diagnostic"].str.replace("_", " ").tolist()
    for verdict, threshold in FRAME[["verdict", "threshold"]].itertuples(index=False):
        assert verdict in words and (threshold in words) == (verdict != "not judged")


def test_diagnostics_mark_only_faults_with_a_cross():
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    frame = pd.concat([diagnose(z, z.roll(1, 0)), diagnose(z.repeat(1, 3))])
    assert {"unrelated views", "redundant", "healthy", "not judged"} <= set(frame["verdict"])
    for line, verdict in zip(plot_diagnostics(frame).lines, frame["verdict"], strict=True):
        assert line.get_marker() == ("X" if verdict in FAULTS else "o")
        assert (line.get_markerfacecolor() == "none") == (verdict in ("redundant", "not judged"))


# --- differences


def differences(value="accuracy"):
    rows = [
        ("a", 0, 0.5),
        ("a", 1, 0.52),
        ("a", 2, 0.51),
        ("b", 0, 0.55),
        ("b", 1, 0.58),
        ("b", 2, 0.56),
        ("c", 0, 0.4),
    ]
    frame = pd.DataFrame(rows, columns=["loss", "seed", value]).assign(evaluation="linear")
    return [paired_difference(frame, "loss", "a", other, value=value) for other in "bc"]


@pytest.mark.parametrize(("value", "scale"), [("accuracy", 100), ("rankme", 1)])
def test_differences_are_dots_with_intervals(value, scale):
    found = differences(value)
    ax = plot_differences(pd.DataFrame(found))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b minus a", "c minus a"] and ax.yaxis_inverted()
    zero, interval, dot, lonely, single = ax.get_lines()
    assert list(zero.get_xdata()) == [0, 0]
    np.testing.assert_allclose(interval.get_xdata(), [scale * found[0].low, scale * found[0].high])
    assert dot.get_xdata() == [scale * found[0].mean] and single.get_xdata() == [scale * found[1].mean]
    assert dot.get_markerfacecolor() == PALETTE[0] and single.get_markerfacecolor() == "white", "one seed shows nothing"
    assert np.isnan(lonely.get_xdata()).all()
    spans = [patch.get_extents().transformed(ax.transData.inverted()).intervalx for patch in ax.patches]
    np.testing.assert_allclose(spans, [(-1, 1)] if scale == 100 else [])
    assert ("points" in ax.get_xlabel()) == (scale == 100)
    with pytest.raises(ValueError, match=r"of one column, got .*accuracy.*rankme"):
        plot_differences(pd.DataFrame([*differences(), *differences("rankme")]))


# --- texts of the user

TEXTS = {
    # name: text, and what a figure shows
    "dollars": ("US$_zq_$", "US$_zq_$"),
    "escaped": (r"zq \$x\$ $\frac{$", r"zq \$x\$ $\frac{$"),
    "tag": ("<b>zq</b> & co {0} %d", "<b>zq</b> & co {0} %d"),
    "underscore": ("_zq", " _zq"),
    "long": ("zq" + 300 * "x" + "zq.png", "zqxxxxxxxxxxxxxx … xxxxxxxzq.png"),
    "control": ("zq\0\t\x1b\nzq", "zq   \nzq"),
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [*TEXTS.values(), ("caf\udce9", "caf "), ("", "''"), (None, "None"), (0.5, "0.5"), ("é漢", "é漢")],
)
def test_plain_text_is_shown_as_it_is(text, shown):
    artist = Text(text=plain(text))
    assert artist._preprocess_math(artist.get_text()) == (shown, False)
    assert len(shown) <= 33 and not plain(text).startswith("_")


def table_with(name):
    rows = [(level, 2, seed, 0.5 + 0.1 * seed) for level in (name, "other") for seed in range(3)]
    frame = pd.DataFrame(rows, columns=[f"{name} column", "width", "seed", "accuracy"])
    return frame.assign(evaluation="linear", chance=0.1, per_class=5, representation=frame.iloc[:, 0])


def drawings(name):
    """Plots with a text of the user, and in how many texts of the figure it must occur."""
    z = np.random.default_rng(0).normal(size=(20, 3))
    frame, column = table_with(name), f"{name} column"
    history = pd.DataFrame(np.ones((2, 4)), columns=["step", "loss", "diagonal", "off_diagonal"])
    factor = diagnose(torch.tensor(z), factors=pd.DataFrame({name: np.arange(20) % 2}))
    labels, square = np.array([name, "other"] * 10), pd.DataFrame(np.eye(2), index=[name, "b"], columns=[name, "b"])
    difference = paired_difference(frame, column, "other", name)
    return {
        "embedding": (plot_embedding(z, labels), 1),
        "spectrum": (plot_spectrum(z, label=name), 1),
        "matrix": (plot_cross_correlation(np.eye(3), title=name), 1),
        "matrices": (matrix_figure({name: np.eye(3)}, {name: 50}, 1.0, {name: np.arange(3)}).axes[0], 1),
        "compare": (compare_cross_correlations({name: np.eye(3)}).axes[0], 1),
        "cka": (plot_cka(square), 2),
        "histories": (history_figure({name: history, "b": history}, 4).axes[0], 1),
        "ablation": (plot_ablation(frame, column), 2),
        "ablation lines": (plot_ablation(frame, "width", column), 2),
        "ablation map": (plot_ablation_map(frame, column, "width"), 2),
        "differences": (plot_differences(pd.DataFrame([difference])), 1),
        "probe": (plot_probe(frame), 1),
        "few labels": (plot_few_labels(frame), 1),
        "diagnostics": (plot_diagnostics(factor), 1),
    }


@pytest.mark.parametrize("text", [text for text, _ in TEXTS.values()], ids=TEXTS)
def test_texts_of_the_user_are_never_formulas_and_stay_in_the_legend(text):
    for plot, (ax, count) in drawings(text).items():
        if text == "US$_zq_$":
            ax.figure.canvas.draw()
        found = [artist for artist in ax.figure.findobj(Text) if "zq" in artist.get_text() and artist.get_visible()]
        assert len(found) >= count, plot
        for artist in found:
            words, is_math = artist._preprocess_math(artist.get_text())
            assert not is_math and len(words) < 90, plot
    plt.close("all")


@pytest.mark.parametrize(
    ("draw", "quoted"),
    [
        (lambda: plot_few_labels(curve().drop(columns="chance")), r"\['chance'\]"),
        (lambda: plot_few_labels(curve().head(0)), "got none"),
        (lambda: plot_diagnostics(FRAME.drop(columns="verdict")), r"\['verdict'\]"),
    ],
)
def test_bad_input_raises(draw, quoted):
    with pytest.raises(ValueError, match=quoted):
        draw()
    assert plt.get_fignums() == []
