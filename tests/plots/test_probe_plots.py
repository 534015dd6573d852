"""Plots of probes and diagnostics: lines, bands, cells and texts."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from hsic_lab.diagnostics import diagnose
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.evaluation import confusion, few_label_summary
from hsic_lab.plots import plot_confusion, plot_diagnostics, plot_few_labels
from hsic_lab.plots._canvas import PALETTE


def curve():
    rows = [
        {"representation": name, "per_class": m, "seed": seed, "accuracy": base + 0.01 * m + 0.02 * seed, "chance": 0.1}
        for name, base in (("pixels", 0.2), ("barlow", 0.5))
        for m in (10, 2)
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


COUNTS = confusion([0, 0, 0, 1, 1], [0, 0, 1, 1, 1], ["ant", "bee", "cat"])
FRAME = diagnose(torch.ones(20, 3), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
DRAW = {
    "few_labels": lambda **kw: plot_few_labels(curve(), **kw),
    "confusion": lambda **kw: plot_confusion(COUNTS, **kw),
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


def test_confusion_colors_are_shares_and_texts_are_counts():
    ax = plot_confusion(COUNTS)
    np.testing.assert_allclose(ax.images[0].get_array(), [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 0]])
    assert [text.get_text() for text in ax.texts] == ["2", "1", "", "", "2", "", "", "", ""]
    assert ax.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["ant", "bee", "cat"]
    many = plot_confusion(pd.DataFrame(np.eye(90, dtype=int)))
    assert not many.texts and len(many.get_xticks()) == 30


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


@pytest.mark.parametrize(
    ("draw", "quoted"),
    [
        (lambda: plot_few_labels(curve().drop(columns="chance")), r"\['chance'\]"),
        (lambda: plot_few_labels(curve().head(0)), "got none"),
        (lambda: plot_confusion(COUNTS.head(2)), r"\(2, 3\)"),
        (lambda: plot_confusion(-COUNTS), "negative"),
        (lambda: plot_diagnostics(FRAME.drop(columns="verdict")), r"\['verdict'\]"),
    ],
)
def test_bad_input_raises(draw, quoted):
    with pytest.raises(ValueError, match=quoted):
        draw()
    assert plt.get_fignums() == []
