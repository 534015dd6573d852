"""Somebody's embeddings, or a run, as one self-contained HTML page: pictures, numbers, verdicts in plain words."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import hsic_lab
from hsic_lab.canvas import PALETTE, QUIET
from hsic_lab.correlation import cross_correlation
from hsic_lab.diagnostics import FAULTS, diagnose
from hsic_lab.embedding_arrays import Embeddings, real_floats
from hsic_lab.embeddings import read_embeddings
from hsic_lab.files import replace_file
from hsic_lab.findings import independence_table, probe_table, sample, similarity_table
from hsic_lab.heatmaps import plot_cross_correlation
from hsic_lab.page import Section, make_page
from hsic_lab.plots import plot_embedding, plot_spectrum
from hsic_lab.runs import Run
from hsic_lab.spectra import covariance_spectrum

VERDICTS = {
    "healthy": "Every rule that has a threshold is kept. That is no proof of usefulness: what the features know, "
    "labels and the task decide.",
    "complete collapse": "The rows hardly differ from one another: whatever the input, the answer is the same. (If "
    "labels can still be read off, a large mean hides the differences: subtract it and look again.)",
    "branch anti-alignment": "The two branches oppose one another in the sum of their features. A loss with the "
    "off-diagonal target -1 can be satisfied that way without learning anything.",
    "unrelated views": "Feature i of one view does not agree with feature i of the other: nothing was learned yet, the "
    "rows are not in the same order, or the features are not (two different networks). Similarity and tests below "
    "tell which.",
    "dimensional collapse": "The rows differ, but in far fewer directions than there are features: most of the width "
    "is not used.",
    "redundant": "Features are correlated: the off-diagonal of C holds more than chance and more than its diagonal. "
    "That is usual for features that no loss has decorrelated, an encoder's or raw data, and no fault by itself: "
    "rankme says how many directions are left.",
    "not judged": "No rule could be applied.",
}
SPECTRUM_ROWS = 10_000
Source = Embeddings | Run | Tensor | np.ndarray | tuple | str | Path


def write_report(source: Source, path: str | Path, *, reference: Tensor | np.ndarray | None = None) -> Path:
    """Write the page about `source` to `path` (.html) and return the path.

    source:    `Embeddings`, a file or run folder that `read_embeddings` takes, a `Run`, one view `(n, d)` or two
               `(z_a, z_b)`, as tensors or arrays
    reference: other features `(n, p)` of the same rows, for CKA

    The page says on how many rows each number rests: correlations and diagnostics on all, what costs much on
    fewer. Raises ValueError as `Embeddings` and `read_embeddings` do, and for a reference that does not match.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page needs a name ending in .html, got {path}")
    found = as_embeddings(source)
    if reference is not None:
        reference = as_embeddings(reference).z_a
        if len(reference) != len(found.z_a):
            raise ValueError(f"reference must have a row for each of the {len(found.z_a)} rows, got {len(reference)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = report_html(found, reference)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def as_embeddings(source: Source) -> Embeddings:
    """What `write_report` accepts, as embeddings."""
    if isinstance(source, Embeddings):
        return source
    if isinstance(source, str | Path | Run):
        return read_embeddings(source.folder if isinstance(source, Run) else source)
    views = source if isinstance(source, tuple) else (source,)
    if not 1 <= len(views) <= 2 or not all(isinstance(z, Tensor | np.ndarray) for z in views):
        raise TypeError(f"source must be one array (n, d) or a pair of them, got {[type(z).__name__ for z in views]}")
    return Embeddings(*(real_floats(z, "the source") for z in views))


@torch.no_grad()
@plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
def report_html(found: Embeddings, reference: Tensor | None = None) -> str:
    """The page as text."""
    z_a, z_b = found.z_a, found.z_b
    n, d = z_a.shape
    frame = diagnose(z_a, z_b)
    verdict = frame.attrs["verdict"]
    sections = [_correlation(z_a, z_b), _spectra(z_a, z_b), _cloud(found)]
    sections.append(Section(
        "Diagnostics", ["Each value with the rule that judges it, where there is one. The rules are conventions to "
                        "start looking from; the overall verdict is the worst of them."], tables=[frame],
    ))  # fmt: skip
    if found.labels is not None:
        sections.append(_probe(found))
    if z_b is not None or reference is not None:
        sections.append(_similarity(z_a, z_b, reference))
    if z_b is not None or found.labels is not None:
        sections.append(_independence(found))
    facts = f"{'two views' if z_b is not None else 'one view'} of {n} rows and {d} features"
    if found.rows is not None:
        facts += f", drawn at random from {found.rows} rows"
    if found.labels is not None:
        facts += f"; {len(np.unique(found.labels))} kinds of labels"
    if found.features is not None:
        facts += f". Labels and cloud are of other rows: {' x '.join(map(str, found.features.shape))} features"
    if found.note:
        facts += f". {found.note}"
    good = True if verdict == "healthy" else False if verdict in FAULTS else None
    headline = f"Verdict: {verdict}"
    footer = f"Made by hsic_lab {hsic_lab.__version__} (hsic-lab inspect), torch {torch.__version__}."
    return make_page(found.name, facts, (headline, VERDICTS[verdict], good), sections, footer)


def _correlation(z_a: Tensor, z_b: Tensor | None) -> Section:
    n, d = z_a.shape
    c = cross_correlation(z_a, z_a if z_b is None else z_b).numpy()
    diagonal, off = (np.clip(part, -1, 1) for part in (c.diagonal(), c[~np.eye(d, dtype=bool)]))  # 1 + rounding
    floor = 1 / np.sqrt(n - 1)
    small = float(np.clip(np.quantile(np.abs(off), 0.99), 0.01, 1))
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.2), layout="constrained", width_ratios=(1, 1, 0.8))
    for ax, limit, title in ((axes[0], 1.0, "C"), (axes[1], small, "C, a finer colour scale")):
        plot_cross_correlation(c, ax, limit, title)
        if z_b is None:
            ax.set(xlabel="feature", ylabel="feature")
    look = {"histtype": "stepfilled", "alpha": 0.6}
    axes[2].hist(off, bins=81, range=(-1, 1), density=True, color=PALETTE[0], **look, label="off the diagonal")
    if z_b is not None:
        axes[2].hist(diagonal, bins=81, range=(-1, 1), density=True, color=PALETTE[1], **look, label="diagonal")
    axes[2].axvspan(-2 * floor, 2 * floor, color=QUIET, alpha=0.25, label="±2 standard errors of 0")
    axes[2].set(xlabel="correlation", ylabel="density", yscale="log")
    axes[2].legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if z_b is None:
        words = "The correlation of every feature with every other, over the rows; the diagonal is 1."
    else:
        words = "C_ij is the correlation of feature i of view A with feature j of view B. A bright diagonal: each " \
                "feature agrees with itself across the views."
    noise = f"Between unrelated features of {n} rows a correlation is {floor:.3g} in size by chance alone; what lies " \
            "beyond the grey band is redundancy. Blocks are groups of features that say the same."
    return Section("Correlation of features", [words, noise], [(figure, "heatmaps and histogram of the correlations")])


def _spectra(z_a: Tensor, z_b: Tensor | None) -> Section:
    if not any((z != z[:1]).any() for z in (z_a, z_b) if z is not None):
        return Section("Spectrum", ["All rows are equal: there is nothing to draw."])
    figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    rows = sample(len(z_a), SPECTRUM_ROWS)
    most = min(len(rows) - 1, z_a.shape[1])
    for name, z in (("view A", z_a), ("view B", z_b)):
        if z is not None and (values := covariance_spectrum(z[rows]).sqrt()).max() > 0:
            plot_spectrum(values[values > 0], ax, name)
    ax.set_xlim(0, most + 1)
    words = f"Singular values of {len(rows)} centred rows, the largest set to 1. A slow fall: many dimensions are in " \
            f"use. A cliff before the right edge, {most}: the rest of them is empty."
    return Section("Spectrum", [words], [(figure, "singular values, sorted")])


def _cloud(found: Embeddings) -> Section:
    z = found.z_a if found.features is None else found.features
    if not (z != z[:1]).any():
        return Section("Cloud", ["All rows are equal: there is nothing to draw."])
    colours = "" if found.labels is None else ", coloured by label"
    words = f"The rows on the two directions of largest variance{colours}; in brackets the share of the variance. " \
            "Groups may be hidden in the other dimensions, and distances across the cloud mean little."
    figure = plot_embedding(z, found.labels).figure
    return Section("Cloud", [words], [(figure, "scatter plot on two principal axes")])


def _probe(found: Embeddings) -> Section:
    table, note = probe_table(found)
    words = "How well can the labels be read off? A linear probe is logistic regression on the standardised " \
            "features, its penalty chosen on a part of its training rows; nearest neighbours is the vote of the up " \
            "to 200 nearest by cosine. Accuracy on held-out rows (30 %), mean and standard deviation over 3 random " \
            "splits; chance always answers the commonest class."
    tables = [] if table.empty else [table]
    return Section("What the features know of the labels", [words, note], tables=tables)


def _similarity(z_a: Tensor, z_b: Tensor | None, reference: Tensor | None) -> Section:
    words = "Centred kernel alignment asks whether two sets of features find the same rows alike, whatever the axes: " \
            "1 if they agree, near 0 if they are unrelated. The estimator is unbiased, so it may be a little below 0."
    return Section("Similarity: CKA", [words], tables=[similarity_table(z_a, z_b, reference)])


def _independence(found: Embeddings) -> Section:
    words = "HSIC with Gaussian kernels is 0 only for independent variables. A small p-value says that the " \
            "dependence is not chance; it does not say that it is strong. Permutation tests are exact, their p-value " \
            "has a least value; the gamma test is approximate far in the tail. Each sees a random part of the rows."
    return Section("Tests of independence", [words], tables=[independence_table(found)])
