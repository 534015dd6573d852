"""One HTML page that needs nothing but itself: sections of text, images and tables; everything given is escaped."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split
from torch import Tensor

import hsic_lab
from hsic_lab._io import replace_file
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import cross_correlation
from hsic_lab.diagnostics import covariance_spectrum, diagnose
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.evaluation import knn_accuracy, linear_probe
from hsic_lab.independence import TestResult, gamma_test, permutation_test
from hsic_lab.kernels import Delta, Gaussian
from hsic_lab.plots import plot_cross_correlation, plot_embedding, plot_spectrum
from hsic_lab.plots._canvas import PALETTE, QUIET
from hsic_lab.report._embeddings import Embeddings, read_embeddings, real_floats
from hsic_lab.training import Run

_STYLE = """
body { font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1c2024; background: #fff;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-bottom: 1px solid #d9dde2; padding-bottom: .25rem; }
p { margin: .5rem 0; max-width: 48rem; } .metadata, footer { color: #5a636e; font-size: .9rem; }
.verdict { border-left: .4rem solid #5a636e; background: #f4f6f8; padding: .7rem 1rem; margin: 1.2rem 0; }
.verdict b { font-size: 1.1rem; } .good { border-color: #029e73; background: #eef8f4; }
.bad { border-color: #d55e00; background: #fdf3ec; }
img { max-width: 100%; display: block; margin: .8rem 0; }
.wide { overflow-x: auto; } .wide img { max-width: none; width: max(100%, 46rem); }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; width: max-content; max-width: 58rem; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
th { color: #5a636e; font-weight: 600; } td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.alarm { color: #b34700; font-weight: 600; }
footer { margin: 3rem 0 1rem; border-top: 1px solid #d9dde2; padding-top: .6rem; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } section, figure, tr { break-inside: avoid; } }
"""
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body>
<h1>$title</h1>
<p class="facts">$metadata</p>
$body
<footer>$footer</footer>
</body>
</html>
""")


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, images with their descriptions, and tables."""

    title: str
    paragraphs: Sequence[str]
    images: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[pd.DataFrame] = ()


def make_page(
    title: str, metadata: str, verdict: tuple[str, str, bool | None], sections: Sequence[Section], footer: str
) -> str:
    """The page's text. `verdict` is a headline, a sentence, and whether that is good (None: neither)."""
    headline, words, good = verdict
    kind = {True: " good", False: " bad", None: ""}[good]
    parts = [f'<div class="verdict{kind}"><b>{html.escape(headline)}</b><br>{html.escape(words)}</div>']
    parts += [_section(section) for section in sections]
    return _PAGE.substitute(
        title=html.escape(title),
        style=_STYLE,
        metadata=html.escape(metadata),
        body="\n".join(parts),
        footer=html.escape(footer),
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(words)}</p>" for words in section.paragraphs]
    for figure, words in section.images:
        wide = figure.get_figwidth() > 9  # of several panels: a small screen scrolls it
        image = f'<img alt="{html.escape(words)}" src="data:image/png;base64,{_png(figure)}">'
        parts.append(f'<div class="wide">{image}</div>' if wide else image)
    parts += [_table(frame) for frame in section.tables]
    return "\n".join([*parts, "</section>"])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in frame.columns)
    rows = ["".join(_cell(name, value) for name, value in row.items()) for row in frame.to_dict("records")]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, value: object) -> str:
    if name == "pvalue" and value == 0:  # of an approximation: smaller than a float
        return '<td class="number">&lt; 1e-300</td>'
    if isinstance(value, float):
        return f'<td class="number">{"not defined" if value != value else f"{value + 0.0:.4g}"}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    words = html.escape(str(value).replace("_", " ") if name == "diagnostic" else str(value))
    alarm = name == "verdict" and value in FAULTS
    return f'<td class="alarm">{words}</td>' if alarm else f"<td>{words}</td>"


CKA_ROWS, GAUSSIAN_ROWS = 10_000, 2000
TEST_ROWS, GAMMA_ROWS, PERMUTATIONS = 500, 2000, 499
PROBE_VALUES, PROBE_ROWS, SPLITS, LEAST_OF_CLASS = 1 << 23, 10_000, 3, 10


def sample(n: int, most: int, seed: int = 0) -> np.ndarray:
    """`min(n, most)` of the rows 0..n - 1, drawn without replacement, in order."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, most), replace=False))


def similarity_table(z_a: Tensor, z_b: Tensor | None, reference: Tensor | None) -> pd.DataFrame:
    """Unbiased CKA between the views and of each with a reference: `between, kernel, CKA, rows`; NaN if not defined."""
    views = {"view A": z_a, "view B": z_b, "the reference": reference}
    views = {name: z for name, z in views.items() if z is not None}
    pairs = [(a, b) for i, a in enumerate(views) for b in list(views)[i + 1 :]]
    rows = []
    for a, b in pairs:
        for kernel, most in ((None, CKA_ROWS), (Gaussian(), GAUSSIAN_ROWS)):
            chosen = sample(len(z_a), most)
            x, y = views[a][chosen], views[b][chosen]
            value = cka_or_nan(x, y, kernel, kernel)
            rows.append((f"{a} and {b}", "Gaussian, median bandwidth" if kernel else "linear", value, len(chosen)))
    return pd.DataFrame(rows, columns=["between", "kernel", "CKA", "rows"])


def independence_table(embeddings: Embeddings) -> pd.DataFrame:
    """HSIC tests between the views, and of labels and what they are labels of.

    One row a test: `question, test, rows, statistic, pvalue, answer`; the answer is at the level 0.01.
    """
    z_a, z_b = embeddings.z_a, embeddings.z_b
    rows = []
    if z_b is not None:
        question = "are the views independent?"
        chosen = sample(len(z_a), TEST_ROWS)
        result = permutation_test(z_a[chosen], z_b[chosen], permutations=PERMUTATIONS)
        rows.append(_answer(question, len(chosen), result))
        chosen = sample(len(z_a), GAMMA_ROWS)
        rows.append(_answer(question, len(chosen), gamma_test(z_a[chosen], z_b[chosen])))
    if embeddings.labels is not None:
        x = z_a if embeddings.features is None else embeddings.features
        chosen = sample(len(x), TEST_ROWS)
        codes = torch.from_numpy(np.unique(embeddings.labels, return_inverse=True)[1])
        result = permutation_test(x[chosen], codes[chosen], kernel_y=Delta(), permutations=PERMUTATIONS)
        rows.append(_answer("are features and labels independent?", len(chosen), result))
    return pd.DataFrame(rows, columns=["question", "test", "rows", "statistic", "pvalue", "answer"])


def _answer(question: str, n: int, result: TestResult) -> tuple:
    answer = "no: they depend on each other" if result.pvalue <= 0.01 else "nothing speaks against it"
    return question, result.method, n, result.statistic, result.pvalue, answer


def probe_table(embeddings: Embeddings) -> tuple[pd.DataFrame, str]:
    """What labels a linear probe and nearest neighbors read off the features, and how that was measured.

    One row an evaluation, `evaluation, accuracy, std, chance, train rows, test rows`, over 3 stratified random splits.
    Classes with fewer than 10 of the sampled rows are left out; without two others the table is empty.
    """
    x = embeddings.z_a if embeddings.features is None else embeddings.features
    chosen = sample(len(x), min(PROBE_ROWS, PROBE_VALUES // x.shape[1]))
    x, y = x[chosen], embeddings.labels[chosen]
    classes, counts = np.unique(y, return_counts=True)
    kept = np.isin(y, classes[counts >= LEAST_OF_CLASS])
    x, y, left_out = x[kept], y[kept], int((counts < LEAST_OF_CLASS).sum())
    note = f"{len(y)} of {len(embeddings.labels)} rows were used"
    if left_out:
        rare = f"{left_out} of {len(classes)} classes have fewer than {LEAST_OF_CLASS} of the {len(chosen)} rows drawn"
        note += f"; {rare} and are left out"
    if len(classes) - left_out < 2:
        return pd.DataFrame(), f"{note}: there is nothing to tell apart."
    results: dict[str, list[float]] = {"linear probe": [], "nearest neighbors": []}
    chances = []
    for split in range(SPLITS):
        train, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=split)
        parts = x[train], y[train], x[test], y[test]
        results["linear probe"].append(linear_probe(*parts, seed=split).accuracy)
        if not (x == 0).all(dim=1).any():  # such a row has no direction, and no neighbors
            results["nearest neighbors"].append(knn_accuracy(*parts))
        names, sizes = np.unique(y[train], return_counts=True)
        chances.append(float((y[test] == names[sizes.argmax()]).mean()))
    rows = [
        (name, np.mean(values), np.std(values, ddof=1), np.mean(chances), len(train), len(test))
        for name, values in results.items()
        if values
    ]
    columns = ["evaluation", "accuracy", "std", "chance", "train rows", "test rows"]
    return pd.DataFrame(rows, columns=columns), f"{note}."


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
    metadata = f"{'two views' if z_b is not None else 'one view'} of {n} rows and {d} features"
    if found.rows is not None:
        metadata += f", drawn at random from {found.rows} rows"
    if found.labels is not None:
        metadata += f"; {len(np.unique(found.labels))} kinds of labels"
    if found.features is not None:
        metadata += f". Labels and cloud are of other rows: {' x '.join(map(str, found.features.shape))} features"
    if found.note:
        metadata += f". {found.note}"
    good = True if verdict == "healthy" else False if verdict in FAULTS else None
    headline = f"Verdict: {verdict}"
    footer = f"Made by hsic_lab {hsic_lab.__version__} (hsic-lab inspect), torch {torch.__version__}."
    return make_page(found.name, metadata, (headline, VERDICTS[verdict], good), sections, footer)


def _correlation(z_a: Tensor, z_b: Tensor | None) -> Section:
    n, d = z_a.shape
    c = cross_correlation(z_a, z_a if z_b is None else z_b).numpy()
    diagonal, off = (np.clip(part, -1, 1) for part in (c.diagonal(), c[~np.eye(d, dtype=bool)]))  # 1 + rounding
    floor = 1 / np.sqrt(n - 1)
    small = float(np.clip(np.quantile(np.abs(off), 0.99), 0.01, 1))
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.2), layout="constrained", width_ratios=(1, 1, 0.8))
    for ax, limit, title in ((axes[0], 1.0, "C"), (axes[1], small, "C, a finer color scale")):
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
        words = (
            "C_ij is the correlation of feature i of view A with feature j of view B. A bright diagonal: each "
            "feature agrees with itself across the views."
        )
    noise = (
        f"Between unrelated features of {n} rows a correlation is {floor:.3g} in size by chance alone; what lies "
        "beyond the gray band is redundancy. Blocks are groups of features that say the same."
    )
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
    words = (
        f"Singular values of {len(rows)} centered rows, the largest set to 1. A slow fall: many dimensions are in "
        f"use. A cliff before the right edge, {most}: the rest of them is empty."
    )
    return Section("Spectrum", [words], [(figure, "singular values, sorted")])


def _cloud(found: Embeddings) -> Section:
    z = found.z_a if found.features is None else found.features
    if not (z != z[:1]).any():
        return Section("Cloud", ["All rows are equal: there is nothing to draw."])
    colors = "" if found.labels is None else ", colored by label"
    words = (
        f"The rows on the two directions of largest variance{colors}; in brackets the share of the variance. "
        "Groups may be hidden in the other dimensions, and distances across the cloud mean little."
    )
    figure = plot_embedding(z, found.labels).figure
    return Section("Cloud", [words], [(figure, "scatter plot on two principal axes")])


def _probe(found: Embeddings) -> Section:
    table, note = probe_table(found)
    words = (
        "How well can the labels be read off? A linear probe is logistic regression on the standardized "
        "features, its penalty chosen on a part of its training rows; nearest neighbors is the vote of the up "
        "to 200 nearest by cosine. Accuracy on held-out rows (30 %), mean and standard deviation over 3 random "
        "splits; chance always answers the commonest class."
    )
    tables = [] if table.empty else [table]
    return Section("What the features know of the labels", [words, note], tables=tables)


def _similarity(z_a: Tensor, z_b: Tensor | None, reference: Tensor | None) -> Section:
    words = (
        "Centered kernel alignment asks whether two sets of features find the same rows alike, whatever the axes: "
        "1 if they agree, near 0 if they are unrelated. The estimator is unbiased, so it may be a little below 0."
    )
    return Section("Similarity: CKA", [words], tables=[similarity_table(z_a, z_b, reference)])


def _independence(found: Embeddings) -> Section:
    words = (
        "HSIC with Gaussian kernels is 0 only for independent variables. A small p-value says that the "
        "dependence is not chance; it does not say that it is strong. Permutation tests are exact, their p-value "
        "has a least value; the gamma test is approximate far in the tail. Each sees a random part of the rows."
    )
    return Section("Tests of independence", [words], tables=[independence_table(found)])
