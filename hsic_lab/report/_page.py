"""The HTML page about embeddings: measurements, figures, and a template that escapes all text."""

import base64
import io
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from torch import Tensor

import hsic_lab
from hsic_lab._io import replace_file
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import CorrelationSummary, cross_correlation, off_diagonal
from hsic_lab.diagnostics import covariance_spectrum, diagnose
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.evaluation import knn_accuracy, linear_probe
from hsic_lab.evaluation._features import chance_accuracy, default_neighbors
from hsic_lab.explorer import CorrelationExplorer, explorer_fragment
from hsic_lab.independence import TestResult, gamma_test, permutation_test
from hsic_lab.kernels import Delta, Gaussian
from hsic_lab.plots import PALETTE, plot_cross_correlation, plot_embedding, plot_spectrum
from hsic_lab.plots._canvas import QUIET
from hsic_lab.report._embeddings import Embeddings, read_embeddings, real_floats, sample
from hsic_lab.training import Run

Source = Embeddings | Run | Tensor | np.ndarray | tuple | str | Path

# Expensive measurements use a sample of the rows, so that a page takes seconds.
SPECTRUM_ROWS, CKA_ROWS, GAUSSIAN_ROWS = 10_000, 10_000, 2000
TEST_ROWS, GAMMA_ROWS, PERMUTATIONS = 500, 2000, 499
ONE_THREAD_VALUES = 1 << 20
LIVE_FEATURES = 1024  # more make the page larger than 15 MB, and are drawn as an image
LOG = logging.getLogger(__name__)  # the command line shows a line for each part that takes time
PROBE_ROWS, PROBE_VALUES, SPLITS, MIN_CLASS_ROWS = 10_000, 1 << 22, 3, 10


def write_report(source: Source, path: str | Path, *, reference: Tensor | np.ndarray | None = None) -> Path:
    """Write an HTML page about embeddings or a run, and return its path.

    The page has a verdict, the correlation of the features, spectrum, principal axes, diagnostics, accuracy of a linear
    probe and of nearest neighbors, CKA, and tests of independence. It is one file that loads nothing else. Correlations
    and diagnostics use all rows; expensive measurements use a sample, and the page says of how many rows.

    Parameters
    ----------
    source : Embeddings, Run, path, array of shape (n, d), or tuple of two such arrays
        What to describe; a path is a file or a folder that `read_embeddings` accepts.
    path : path
        The file to write, ending in ``.html``.
    reference : Tensor or ndarray of shape (n, p), optional
        Other features of the same rows, for CKA.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from hsic_lab.report import write_report
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(torch.randn(50, 4), f"{folder}/page.html").name
    'page.html'
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
    look: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    # On shared cores the busy waiting of a second thread makes the many short products of a page ten times slower.
    threads = threadpool_limits(1 if found.z_a.numel() <= ONE_THREAD_VALUES else None)
    with torch.no_grad(), threads, plt.rc_context(look):
        text = report_html(found, reference)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def as_embeddings(source: Source) -> Embeddings:
    """Return the source of `write_report` as embeddings."""
    if isinstance(source, Embeddings):
        return source
    if isinstance(source, str | Path | Run):
        return read_embeddings(source.folder if isinstance(source, Run) else source)
    views = source if isinstance(source, tuple) else (source,)
    if not 1 <= len(views) <= 2 or not all(isinstance(z, Tensor | np.ndarray) for z in views):
        raise TypeError(f"source must be one array (n, d) or a pair of them, got {[type(z).__name__ for z in views]}")
    z = [real_floats(view, "the source") for view in views]
    return Embeddings(z[0], z[1] if len(z) == 2 else None)


def report_html(found: Embeddings, reference: Tensor | None = None) -> str:
    """Return the text of the page; the template escapes all values."""
    LOG.info("Diagnostics of %d rows and %d features ...", *found.z_a.shape)
    frame = diagnose(found.z_a, found.z_b, kind=found.kind)
    LOG.info("%s\nPrediction of the labels ...", frame)
    probe, probe_note = probe_table(found)
    LOG.info("Similarity and tests ...")
    similarity = similarity_table(found.z_a, found.z_b, reference)
    tables = {"diagnostics": frame, "probe": probe, "similarity": similarity, "independence": independence_table(found)}
    LOG.info("Figures ...")
    figures = _correlation(found) | _spectrum(found.z_a, found.z_b) | _principal_axes(found)
    verdict = frame.attrs["verdict"]
    kind = "good" if verdict == "healthy" else "bad" if verdict in FAULTS else ""
    classes = 0 if found.labels is None else len(np.unique(found.labels))
    source = {"found": found, "n": len(found.z_a), "d": found.z_a.shape[1], "classes": classes}
    source["sampled"] = len(found.z_a) > TEST_ROWS and (tables["independence"]["rows"] >= TEST_ROWS).any()
    judged = {"verdict": verdict, "kind": kind, "explanation": frame.attrs["explanation"], "probe_note": probe_note}
    used = dict(splits=SPLITS, version=hsic_lab.__version__, torch_version=torch.__version__)
    cells = {name: _cells(table) for name, table in tables.items()}
    pages = jinja2.Environment(loader=jinja2.PackageLoader("hsic_lab", "report"), autoescape=True, trim_blocks=True)
    return pages.get_template("page.html").render(source | judged | used | figures | cells)


def _cells(frame: pd.DataFrame) -> dict[str, list]:
    """Return a table as the template reads it: names of columns, and rows of (CSS class, words)."""
    rows = [[_cell(name, value) for name, value in row.items()] for row in frame.to_dict("records")]
    return {"columns": [name.replace("_", " ") for name in frame.columns], "rows": rows}


def _cell(name: str, value: object) -> tuple[str, str]:
    if name == "pvalue" and value == 0:  # the p-value of an approximation, smaller than any float
        return "number", "< 1e-300"
    if isinstance(value, float):
        return "number", "not defined" if value != value else f"{value + 0.0:.4g}"
    if isinstance(value, int):
        return "number", str(value)
    kind = "alarm" if name == "verdict" and value in FAULTS else ""
    return kind, str(value).replace("_", " ") if name == "diagnostic" else str(value)


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _correlation(found: Embeddings) -> dict[str, Any]:
    z_a, z_b = found.z_a, found.z_b
    c = cross_correlation(z_a, z_a if z_b is None else z_b).numpy()
    summary = CorrelationSummary.from_matrix(c, len(z_a))
    if len(c) <= LIVE_FEATURES:
        explorer = CorrelationExplorer(z_a, z_a if z_b is None else z_b)
        explorer.panels[0] |= {"one": z_b is None, "names": list(found.columns) if z_b is None else []}
        return {"explorer": explorer_fragment(explorer), "summary": summary}
    live, parts = np.outer(c.any(axis=1), c.any(axis=0)), (np.diagonal, off_diagonal)
    diagonal, off = (np.clip(part(c)[part(live)], -1, 1) for part in parts)  # rounding may exceed 1
    finer_limit = float(np.clip(np.quantile(np.abs(off), 0.99) if len(off) else 0, 0.01, 1))
    layout = ConstrainedLayoutEngine(w_pad=0.1)
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.2), layout=layout, width_ratios=(1, 1, 0.8))
    for ax, limit, title in ((axes[0], 1.0, "C"), (axes[1], finer_limit, "C, a finer color scale")):
        plot_cross_correlation(c, ax, limit, title)
        if z_b is None:
            ax.set(xlabel="feature", ylabel="feature")
    look = {"bins": 81, "range": (-1, 1), "density": True, "histtype": "stepfilled", "alpha": 0.6}
    axes[2].hist(off, **look, color=PALETTE[0], label="off the diagonal")
    if z_b is not None:
        axes[2].hist(diagonal, **look, color=PALETTE[1], label="diagonal")
    band = 2 * summary.expected_rms
    axes[2].axvspan(-band, band, color=QUIET, alpha=0.25, label="±2 standard errors of 0")
    axes[2].set(xlabel="correlation", ylabel="density", yscale="log")
    axes[2].legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return {"correlation": _png(figure), "summary": summary, "finer_limit": finer_limit}


def _spectrum(z_a: Tensor, z_b: Tensor | None) -> dict[str, Any]:
    """Return the figure of the spectrum with its numbers, nothing if all rows are equal."""
    rows = sample(len(z_a), SPECTRUM_ROWS)
    values: dict[str, Tensor] = {}
    for name, z in (("view A", z_a), ("view B", z_b)):
        if z is not None and (z != z[:1]).any():
            part = covariance_spectrum(z[rows]).sqrt()
            values |= {name: part[part > 0]} if part.max() > 0 else {}
    if not values:
        return {}
    figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, part in values.items():
        plot_spectrum(part, ax, name)
    most = min(len(rows) - 1, z_a.shape[1])
    ax.set_xlim(0, most + 1)
    spectra = [(name, len(part), float(part.min() / part.max())) for name, part in values.items()]
    return {"spectrum": _png(figure), "spectra": spectra, "spectrum_rows": len(rows), "most_values": most}


def _principal_axes(found: Embeddings) -> dict[str, Any]:
    """Return the scatter plot and the names of its axes, nothing if all rows are equal."""
    z = found.z_a if found.features is None else found.features
    if not (z != z[:1]).any():
        return {}
    ax = plot_embedding(z, found.labels)
    return {"axis_names": (ax.get_xlabel(), ax.get_ylabel()), "principal_axes": _png(ax.figure)}


def similarity_table(z_a: Tensor, z_b: Tensor | None, reference: Tensor | None) -> pd.DataFrame:
    """Return unbiased CKA of every pair among the views and the reference; NaN if it is not defined."""
    given = (("view A", z_a), ("view B", z_b), ("the reference", reference))
    views = {name: z for name, z in given if z is not None}
    kernels = (("linear", None, CKA_ROWS), ("Gaussian, median bandwidth", Gaussian(), GAUSSIAN_ROWS))
    rows = []
    for (a, b), (name, kernel, most) in itertools.product(itertools.combinations(views, 2), kernels):
        chosen = sample(len(z_a), most)
        rows.append((f"{a} and {b}", name, cka_or_nan(views[a][chosen], views[b][chosen], kernel, kernel), len(chosen)))
    return pd.DataFrame(rows, columns=["between", "kernel", "CKA", "rows"])


def independence_table(found: Embeddings) -> pd.DataFrame:
    """Return HSIC tests between the views, and between features and labels, with an answer at the level 0.01."""
    rows = []

    def test(question: str, run: Callable[..., TestResult], most: int, x: Tensor, y: Tensor, **options: Any) -> None:
        chosen = sample(len(x), most)
        result = run(x[chosen], y[chosen], **options)
        answer = "no: they depend on each other" if result.pvalue <= 0.01 else "nothing speaks against it"
        rows.append((question, result.method, len(chosen), result.statistic, result.pvalue, answer))

    if found.z_b is not None:
        question = "are the views independent?"
        test(question, permutation_test, TEST_ROWS, found.z_a, found.z_b, permutations=PERMUTATIONS)
        test(question, gamma_test, GAMMA_ROWS, found.z_a, found.z_b)
    if found.labels is not None:
        x = found.z_a if found.features is None else found.features
        codes = torch.from_numpy(np.unique(found.labels, return_inverse=True)[1])
        options = {"kernel_y": Delta(), "permutations": PERMUTATIONS}
        test("are features and labels independent?", permutation_test, TEST_ROWS, x, codes, **options)
    if found.target is not None:
        y = torch.from_numpy(found.target).to(found.z_a.dtype)
        x, y = found.z_a[y.isfinite()], y[y.isfinite()]
        test("are features and target independent?", permutation_test, TEST_ROWS, x, y, permutations=PERMUTATIONS)
    return pd.DataFrame(rows, columns=["question", "test", "rows", "statistic", "pvalue", "answer"])


def probe_table(found: Embeddings) -> tuple[pd.DataFrame, str]:
    """Return the accuracies on random splits of a linear probe and of nearest neighbors, and which rows were used."""
    if found.labels is None:
        return pd.DataFrame(), ""
    x = found.z_a if found.features is None else found.features
    chosen = sample(len(x), min(PROBE_ROWS, PROBE_VALUES // x.shape[1]))
    classes, counts = np.unique(found.labels[chosen], return_counts=True)
    frequent = classes[counts >= MIN_CLASS_ROWS]
    kept = chosen[np.isin(found.labels[chosen], frequent)]
    x, y = x[kept], found.labels[kept]
    note = f"{len(y)} of {len(found.labels)} rows were used"
    if left_out := len(classes) - len(frequent):
        note += f"; {left_out} of {len(classes)} classes have fewer than {MIN_CLASS_ROWS} of the {len(chosen)} rows "
        note += "sampled and are left out"
    if len(frequent) < 2:
        return pd.DataFrame(), f"{note}: there is nothing to predict."
    splits = []
    for seed in range(SPLITS):
        train, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=seed)
        parts = x[train], y[train], x[test], y[test]
        split = {"linear probe": linear_probe(*parts, seed=seed).accuracy, "chance": chance_accuracy(y[train], y[test])}
        if not (x == 0).all(dim=1).any():  # a zero row has no direction, and so no nearest neighbors
            split[f"{default_neighbors(len(train))} nearest neighbors"] = knn_accuracy(*parts)
        splits.append(split)
    splits = pd.DataFrame(splits)
    chance = splits.pop("chance").mean()
    table = pd.DataFrame({"evaluation": splits.columns, "accuracy": splits.mean().values, "std": splits.std().values})
    return table.assign(**{"chance": chance, "train rows": len(train), "test rows": len(test)}), f"{note}."
