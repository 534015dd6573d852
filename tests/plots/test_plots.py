"""Plots draw the given arrays, scales, lines and labels. Pixels are not compared."""

import os
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from hsic_lab.correlation import feature_order
from hsic_lab.plots import (
    DIVERGING,
    PALETTE,
    compare_cross_correlations,
    history_figure,
    plot_ablation,
    plot_ablation_map,
    plot_cross_correlation,
    plot_embedding,
    plot_pairs,
    plot_probe,
    plot_spectrum,
)
from hsic_lab.plots._heatmaps import matrix_figure
from hsic_lab.plots._samples import unit_images


def matrix(d, seed=0):
    c = np.random.default_rng(seed).uniform(-0.2, 0.2, (d, d))
    np.fill_diagonal(c, 0.9)
    return c


def history(offset=0.0):
    step = np.arange(0, 50, 10)
    columns = {"loss": 64 - step, "diagonal": step / 50 + offset, "off_diagonal": -step / 1000}
    return pd.DataFrame({"step": step, **columns})


def probes():
    values = [("pixels", 0.5), ("pixels", 0.7), ("barlow", 0.9), ("barlow", 0.8)]
    return pd.DataFrame(values, columns=["representation", "accuracy"]).assign(chance=0.1)


IMAGES = np.random.default_rng(0).uniform(-1, 1, (9, 3, 8, 8))

DRAW = {
    "cross_correlation": lambda **kw: plot_cross_correlation(matrix(8), **kw),
    "probe": lambda **kw: plot_probe(probes(), **kw),
    "spectrum": lambda **kw: plot_spectrum(np.arange(1, 5), **kw),
    "pairs": lambda **kw: plot_pairs(IMAGES, IMAGES, **kw),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_given_axes_are_returned_and_settings_are_kept(draw):
    before = dict(matplotlib.rcParams)
    _, (ax, other) = plt.subplots(1, 2)
    assert draw(ax=ax) is ax
    assert not other.has_data()
    assert draw().figure is not ax.figure  # without ax: a figure of its own
    assert dict(matplotlib.rcParams) == before


def test_only_set_theme_changes_settings():
    script = (
        "import matplotlib, matplotlib.pyplot; before = dict(matplotlib.rcParams)\n"
        "from hsic_lab import plots\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "plots.set_theme()\n"
        "assert matplotlib.rcParams['axes.prop_cycle'].by_key()['color'][:2] != ['#1f77b4', '#ff7f0e']\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "MPLBACKEND": "Agg"})


# --- heatmaps


WITH_GRADIENT = lambda c: torch.tensor(c, requires_grad=True)  # noqa: E731


@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor, WITH_GRADIENT])
def test_heatmap_shows_the_matrix_on_a_centered_scale(as_type):
    c = matrix(16)
    ax = plot_cross_correlation(as_type(c), limit=0.25, title="after")
    (image,) = ax.get_images()
    np.testing.assert_array_equal(image.get_array(), c)
    assert image.get_clim() == (-0.25, 0.25) and image.get_cmap().name == DIVERGING
    assert image.get_interpolation() == "nearest"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("feature of view B", "feature of view A", "after")
    rms = np.sqrt(np.mean(c[~np.eye(16, dtype=bool)] ** 2))
    assert [text.get_text() for text in ax.texts] == [f"mean diagonal 0.90\nrms off-diagonal {rms:.3f}"]
    assert len(ax.figure.axes) == 2


@pytest.mark.parametrize(
    ("scale", "limit", "extend"), [(1, 1.0, "neither"), (1, 0.5, "max"), (-1, 0.5, "min"), (1, 0.1, "both")]
)
def test_color_bar_has_an_arrow_where_entries_exceed_the_limit(scale, limit, extend):
    image = plot_cross_correlation(scale * matrix(16), limit=limit).get_images()[0]
    assert image.colorbar.extend == extend


@pytest.mark.parametrize("d", [513, 1024, 1100])
def test_large_matrices_show_block_means_and_means_of_the_diagonal(d):
    c = matrix(d)
    c[np.arange(d), np.arange(d)] = np.linspace(0.5, 1, d)
    ax = plot_cross_correlation(c)
    image = ax.get_images()[0]
    shown, width = image.get_array(), -(-d // 512)
    assert shown.shape == (-(-d // width),) * 2
    for i, j in [(0, 0), (0, 1), (7, 3), (len(shown) - 1,) * 2, (2, len(shown) - 1)]:
        block = c[i * width : (i + 1) * width, j * width : (j + 1) * width]
        assert shown[i, j] == pytest.approx(np.diagonal(block).mean() if i == j else block.mean())
    assert image.get_extent() == [-0.5, len(shown) * width - 0.5, len(shown) * width - 0.5, -0.5]


def test_panels_share_one_scale_and_one_color_bar():
    row = {"before": matrix(8, 1), "after": matrix(8, 2)}
    grid = {"BT": row, "H": {when: -c for when, c in row.items()}}
    figure = compare_cross_correlations(grid, limit=0.3)
    panels = [ax for ax in figure.axes if ax.get_images()]
    assert [ax.get_title() for ax in panels] == ["BT, before", "BT, after", "H, before", "H, after"]
    assert len(figure.axes) == 5
    norms = {id(ax.get_images()[0].norm) for ax in panels}
    assert len(norms) == 1 and panels[0].get_images()[0].get_clim() == (-0.3, 0.3)
    np.testing.assert_array_equal(panels[3].get_images()[0].get_array(), grid["H"]["after"])
    rows, columns = panels[0].get_subplotspec().get_gridspec().get_geometry()
    assert (rows, columns) == (2, 2)


def test_one_row_of_panels():
    figure = compare_cross_correlations({"before": matrix(8), "after": matrix(600)})
    assert [ax.get_title() for ax in figure.axes] == ["before", "after", ""]


# --- curves


@pytest.mark.parametrize("missing", ["no column", "from a later step on", None])
def test_history_figure_draws_the_rms_that_every_history_has(missing):
    runs = {name: history(x).assign(rms_off_diagonal=0.1 + x) for name, x in (("a", 0.0), ("b", 0.1))}
    if missing == "no column":  # a run of an earlier version
        del runs["a"]["rms_off_diagonal"]
    elif missing:  # such a run, resumed
        runs["a"].loc[:2, "rms_off_diagonal"] = np.nan
    figure = history_figure(runs, dimension=64)
    loss, diagonal, off = figure.axes
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), history()["loss"] / 64)
    words, column, marks = ("mean", "off_diagonal", [0, -1 / 63]) if missing else ("rms", "rms_off_diagonal", [0])
    titles = ["loss per feature", "mean diagonal of C", f"{words} off-diagonal of C"]
    assert [ax.get_title() for ax in figure.axes] == titles
    np.testing.assert_array_equal(off.get_lines()[1].get_ydata(), runs["b"][column])
    assert [line.get_ydata()[0] for line in off.get_lines()[2:]] == marks
    assert diagonal.get_lines()[2].get_ydata()[0] == 1
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False, False]


def test_probe_bars_are_means_and_dots_are_splits():
    ax = plot_probe(probes())
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.6, 0.85])
    dots = [line.get_xdata() for line in ax.get_lines() if line.get_marker() == "o"]
    np.testing.assert_array_equal(dots, [[0.5, 0.7], [0.9, 0.8]])
    chance = [line.get_xdata() for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [list(x) for x in chance] == [[0.1, 0.1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["pixels", "barlow"]
    assert ax.yaxis_inverted()
    assert "60.0 ± 14.1%" in [text.get_text() for text in ax.texts]


def test_one_split_has_no_spread():
    assert "50.0%" in [text.get_text() for text in plot_probe(probes().head(1)).texts]


def test_spectrum_of_samples_is_the_spectrum_of_their_covariance():
    z = np.random.default_rng(0).normal(size=(40, 5)) + 3
    ax = plot_spectrum(torch.as_tensor(z), label="z")
    eigenvalues = np.sqrt(np.linalg.eigvalsh(np.cov(z.T))[::-1])
    plot_spectrum(np.random.default_rng(1).permutation(eigenvalues), ax=ax, label="values")
    first, second = ax.get_lines()
    np.testing.assert_allclose(first.get_ydata(), eigenvalues / eigenvalues[0])
    np.testing.assert_allclose(first.get_ydata(), second.get_ydata())
    assert ax.get_yscale() == "log" and first.get_color() != second.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["z", "values"]


# --- images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_view_a_is_above_view_b(channels, as_bytes):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 5, channels, 8, 6), dtype=np.uint8)
    given = (a, b) if as_bytes else (torch.tensor(a) / 127.5 - 1, torch.tensor(b) / 127.5 - 1)
    ax = plot_pairs(*given, n=3)
    shown = np.asarray(ax.get_images()[0].get_array()).reshape(17, 3 * 7 - 1, channels)
    np.testing.assert_allclose(shown[:8, 7:13] * 255, a[1].transpose(1, 2, 0), atol=1e-3)
    np.testing.assert_allclose(shown[9:, 14:20] * 255, b[2].transpose(1, 2, 0), atol=1e-3)
    assert ax.get_images()[0].get_clim() == (0, 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["view A", "view B"]


# --- errors

EYE = np.eye(2)


@pytest.mark.parametrize(
    ("draw", "quoted"),
    [
        (lambda: plot_cross_correlation(np.ones((3, 4))), r"\(3, 4\)"),
        (lambda: plot_cross_correlation(np.ones((1, 1))), r"\(1, 1\)"),
        (lambda: plot_cross_correlation(np.full((2, 2), np.nan)), "4 of its 4"),
        (lambda: plot_cross_correlation(np.eye(2), limit=0.0), "got 0.0"),
        (lambda: compare_cross_correlations({}), "none"),
        (lambda: compare_cross_correlations({"a": {"x": EYE}, "b": {"y": EYE}}), r"\['x'\].*\['y'\]"),
        (lambda: compare_cross_correlations({"a": {"x": EYE}, "b": EYE}), r"both under \['a', 'b'\]"),
        (lambda: history_figure({"a": history().drop(columns="step")}, 8), r"\['step'\]"),
        (lambda: history_figure({}, 8), "at least one history"),
        (lambda: history_figure({"a": history()}, 1), "got 1"),
        (lambda: history_figure({"a": history().drop(columns="off_diagonal")}, 8), "off_diagonal"),
        (lambda: history_figure({"a": history(), "b": history()[:0]}, 8), "at least one row, got none"),
        (lambda: plot_probe(probes().drop(columns="chance")), "chance"),
        (lambda: plot_probe(probes().head(0)), "none"),
        (lambda: plot_spectrum(np.zeros(3)), "0.0 to 0.0"),
        (lambda: plot_spectrum([1.0, -1.0]), "-1.0 to 1.0"),
        (lambda: plot_spectrum(np.ones((2, 2, 2))), r"\(2, 2, 2\)"),
        (lambda: plot_spectrum([1.0, np.inf]), "finite"),
        (lambda: plot_pairs(IMAGES, IMAGES[:3]), r"\(9, .*\(3, "),
        (lambda: plot_pairs(IMAGES, IMAGES, n=10), "at most 9, got 10"),
        (lambda: plot_pairs(IMAGES * 2, IMAGES), r"float64 in \[-1.9"),
        (lambda: plot_pairs(IMAGES.astype(int), IMAGES), "int64"),
        (lambda: plot_pairs(IMAGES[:, :2], IMAGES), r"\(9, 2, 8, 8\)"),
    ],
)
def test_bad_input_raises(draw, quoted):
    with pytest.raises(ValueError, match=quoted):
        draw()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("draw", [plot_spectrum, plot_embedding, plot_cross_correlation, unit_images])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.eye(4) * 1j, "real numbers"),
        (np.eye(4).astype(str), "real numbers"),
        (torch.eye(4).to_sparse(), "sparse"),
        (np.ma.masked_array(np.eye(4), np.eye(4) > 0), "4 missing"),
    ],
    ids=["complex", "words", "sparse", "masked"],
)
def test_arrays_that_hold_no_real_numbers_are_refused(draw, values, words):
    with pytest.raises((TypeError, ValueError), match=words):
        draw(values)


@pytest.mark.parametrize(
    "form", [lambda z: z.astype(">f4"), lambda z: z[::-1][::-1], lambda z: torch.tensor(z).bfloat16()]
)
def test_arrays_of_every_layout_are_drawn(form):
    z = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    expected, found = plot_spectrum(z).get_lines()[0].get_ydata(), plot_spectrum(form(z)).get_lines()[0].get_ydata()
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert len(plot_embedding(form(z), form(np.arange(12))).collections) == 12


def test_palette_is_color_blind_safe():
    assert PALETTE[:3] == ["#0173b2", "#de8f05", "#029e73"]


@pytest.mark.parametrize("diagonal", [np.full(100, 0.9), *np.random.default_rng(0).uniform(size=(12, 100))])
def test_caption_of_a_diagonal_matrix_has_off_diagonal_zero(diagonal):
    axes = plot_cross_correlation(np.diag(diagonal))
    assert any("rms off-diagonal 0.000" in text.get_text() for text in axes.texts)
    plt.close(axes.figure)


def figure_of(panels, n=50, limit=1.0, order="index"):
    orders = {title: feature_order(c, order) for title, c in panels.items()}
    return matrix_figure(panels, dict.fromkeys(panels, n), limit, orders)


def test_matrix_figure_shows_ordered_matrices_on_one_scale():
    panels = {"one": matrix(12), "two": matrix(20, 1)}
    figure = figure_of(panels, limit=0.5, order="diagonal")
    images = [ax.get_images()[0] for ax in figure.axes if ax.get_images()]
    for image, c in zip(images, panels.values(), strict=True):
        order = np.argsort(-np.diagonal(c), kind="stable")
        np.testing.assert_array_equal(image.get_array(), c[order][:, order])
        assert image.get_clim() == (-0.5, 0.5)
    words = [ax.get_xlabel() for ax in figure.axes]
    assert any(f"1ᵀC1 = {panels['one'].sum():.1f}".replace("-", "−") in text for text in words)
    plt.close(figure)


def test_matrix_figure_takes_more_panels_than_colors_and_numpy_integers():
    figure = figure_of({f"{i}": matrix(4, i) for i in range(12)}, np.int64(50))
    histogram = next(ax for ax in figure.axes if ax.get_title() == "diagonal")
    assert len(histogram.patches) == 12
    plt.close(figure)


def test_histograms_and_captions_leave_constant_features_out():
    c, padded = matrix(12), np.zeros((15, 15))
    padded[:12, :12] = c
    found, alone = (figure_of({"c": each}).axes for each in (padded, c))
    for with_constants, expected in zip(found, alone, strict=True):
        assert [text.get_text() for text in with_constants.texts] == [text.get_text() for text in expected.texts]
        if expected.get_title() in ("diagonal", "off-diagonal"):
            drawn, wanted = (ax.patches[-1].get_xy() for ax in (with_constants, expected))
            np.testing.assert_allclose(drawn, wanted)
    assert "without 3 constant features" in next(ax for ax in found if ax.get_title() == "diagonal").get_xlabel()
    assert figure_of({"c": np.zeros((4, 4))}).axes, "all features are constant"
    plt.close("all")


def test_unit_images_from_bytes_and_floats_agree():
    pixels = torch.randint(0, 256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    np.testing.assert_allclose(unit_images(pixels.float() / 127.5 - 1), unit_images(pixels), atol=1e-6)
    for bad, words in [
        (pixels[0], "shape"),
        (pixels[:, :2], "c = 1 or 3"),
        (pixels.float(), "uint8 or floats"),
        (pixels.int(), "int32"),
    ]:
        with pytest.raises(ValueError, match=words):
            unit_images(bad)


def test_levels_with_long_names_stay_apart():
    """The names of the project's own table of symmetry differ only in the middle."""
    middle = [f"loss=barlow_twins, predictor={one}, target=same" for one in ("none", "64")]
    frame = pd.DataFrame([{"settings": name, "x": x, "seed": 0, "accuracy": 0.5, "evaluation": "linear"}
                          for name in middle for x in ("a", "b")])  # fmt: skip
    for ax in (plot_ablation(frame, "settings", "x"), plot_ablation_map(frame, "settings", "x").yaxis.axes):
        axis = ax.xaxis if ax.get_xlabel() == "settings" else ax.yaxis
        assert [text.get_text().replace("\n", " ") for text in axis.get_ticklabels()] == middle
    legend = plot_ablation(frame, "x", "settings").get_legend()
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == middle
    plt.close("all")


def test_levels_that_are_numbers_have_lines_and_booleans_have_none():
    for levels, lines in ((["-1", "0"], 1), ([-1, 0], 1), ([True, False], 0)):
        frame = pd.DataFrame({"level": levels, "seed": 0, "accuracy": [0.9, 0.8], "evaluation": "linear"})
        drawn = plot_ablation(frame, "level").get_lines()
        assert sum(line.get_linestyle() == "-" for line in drawn) == lines
    plt.close("all")


def test_nothing_is_drawn_between_names():
    rows = [{"kernel": kernel, "loss": loss, "seed": seed, "accuracy": accuracy, "evaluation": "linear"}
            for kernel, loss, values in (("imq", "a", (0.5, 0.7)), ("none", "a", (0.6, 0.8)), ("imq", "b", (0.1, 0.3)))
            for seed, accuracy in enumerate(values)]  # fmt: skip
    ax = plot_ablation(pd.DataFrame(rows), "kernel", "loss")
    assert len(ax.containers) == 2
    for (line, _, (bars,)), means in zip(ax.containers, ([0.6, 0.7], [0.2]), strict=True):
        assert line.get_linestyle() == "None" and line.get_ydata().tolist() == pytest.approx(means)
        for segment, mean in zip(bars.get_segments(), means, strict=True):
            low, high = segment[:, 1]
            assert (low + high) / 2 == pytest.approx(mean)
            assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 1) * 0.1)
    assert abs(ax.containers[0][0].get_xdata()[0] - ax.containers[1][0].get_xdata()[0]) > 0.1, "side by side"
    plt.close("all")


def test_layers_are_drawn_by_the_linear_probe_only():
    frame = pd.DataFrame({"layer": ["encoder", "projector 1"], "seed": 0, "accuracy": [0.9, 0.8],
                          "evaluation": ["linear", "linear of projector 1"]})  # fmt: skip
    np.testing.assert_array_equal(plot_ablation(frame, "layer").get_lines()[0].get_ydata(), [0.9, 0.8])
    with pytest.raises(ValueError, match="evaluation of the layers must be one of 'linear', got 'knn'"):
        plot_ablation(frame, "layer", evaluation="knn")
    plt.close("all")


def test_rows_without_a_label_are_named():
    z = np.random.default_rng(0).normal(size=(20, 3))
    ax = plot_embedding(z, np.array([0.0, 1.0] * 9 + [np.nan] * 2))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["no label", "0.0", "1.0"]
    assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 9, 9]
    plt.close("all")
