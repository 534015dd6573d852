"""The HTML page about embeddings: measurements, figures, and a template that escapes all text."""

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import ks_2samp
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

import hsic_lab
from hsic_lab._io import replace_file
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import CorrelationSummary, cross_correlation, standardize, uneven
from hsic_lab.diagnostics import covariance_spectrum, diagnose
from hsic_lab.diagnostics._diagnose import FAULTS
from hsic_lab.evaluation import chance_accuracy, default_neighbors, knn_accuracy, linear_probe, probe_table
from hsic_lab.explorer import CorrelationExplorer, explorer_fragment
from hsic_lab.independence import TestResult, gamma_test, permutation_test
from hsic_lab.kernels import Delta, Gaussian, Linear
from hsic_lab.plots import DIVERGING, PALETTE, plot_cross_correlation, plot_spectrum
from hsic_lab.plots._canvas import png_text
from hsic_lab.plots._samples import principal_axes
from hsic_lab.report._embeddings import Embeddings, known_labels, read_embeddings, real_floats, sample
from hsic_lab.training import Run

Source = Embeddings | Run | Tensor | np.ndarray | tuple | str | Path

# Expensive measurements use a sample of the rows, so that a page takes seconds.
SPECTRUM_ROWS, CKA_ROWS, GAUSSIAN_ROWS = 10_000, 10_000, 2000
TEST_ROWS, GAMMA_ROWS, PERMUTATIONS = 500, 2000, 499
PAIRED_ROWS, DOTS, NEIGHBORS, ALIKE = 2000, 1000, 10, 0.1  # of the comparison of two embeddings
ONE_THREAD_VALUES = 1 << 20
LIVE_FEATURES = 1024  # more make the page larger than 15 MB, and are drawn as an image
LOG = logging.getLogger(__name__)  # the command line shows a line for each part that takes time
PROBE_ROWS, PROBE_VALUES, SPLITS, MIN_CLASS_ROWS = 10_000, 1 << 22, 3, 10


def write_report(source: Source, path: str | Path, *, reference: Source | None = None) -> Path:
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
    reference : as `source`, optional
        Other features of the same rows, of any width. The page then compares both: principal axes side by side, C, CKA
        with a p-value, the neighbors kept, and the probes. Of a run, the features of the encoder are compared.

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
    other = None if reference is None else as_embeddings(reference)
    if other is not None and (n := len(_compared(found))) != (m := len(_compared(other))):
        raise ValueError(f"the reference, {other.name}, must have a row for each of the {n} rows, got {m}")
    path.parent.mkdir(parents=True, exist_ok=True)
    look: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    look |= {"savefig.dpi": 120, "savefig.bbox": "tight"}
    # On shared cores the busy waiting of a second thread makes the many short products of a page ten times slower.
    threads = threadpool_limits(1 if found.z_a.numel() <= ONE_THREAD_VALUES else None)
    with torch.no_grad(), threads, plt.rc_context(look):
        text = report_html(found, other)
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


def write_atlas(source: Source, path: str | Path) -> Path:
    """Write the rows to a Parquet file that Embedding Atlas and similar tools open, and return its path.

    The columns are `projection_x, projection_y` (two principal axes), `row` (its number in the source), the label, and
    columns of a table that are no features. `source` is that of `write_report`, `path` ends in ``.parquet``.
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise ValueError(f"the rows for an atlas need a name ending in .parquet, got {path}")
    found = as_embeddings(source)
    z, table = _compared(found), found.table
    if table is None:
        z = z if found.features is None else found.features
        labels = found.target if found.labels is None else found.labels
        table = pd.DataFrame({"row": range(len(z))} | ({} if labels is None else {"label": labels}))
    axes = pd.DataFrame(principal_axes(z.numpy())[0], columns=["projection_x", "projection_y"])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, axes.join(table.drop(columns=axes.columns, errors="ignore")).to_parquet)
    return path


def _compared(found: Embeddings) -> Tensor:
    """Return what is compared with other embeddings: the features of a run's encoder, else the first view."""
    return found.z_a if found.layers is None or found.features is None else found.features


def report_html(found: Embeddings, other: Embeddings | None = None) -> str:
    """Return the text of the page; the template escapes all values."""
    LOG.info("Diagnostics of %d rows and %d features ...", *found.z_a.shape)
    frame = diagnose(found.z_a, found.z_b, kind=found.kind)
    labeled = found.labels is not None or found.target is not None
    LOG.info("%s\n%s", frame, "Prediction of the labels ..." if labeled else "No labels to predict.")
    probe, probe_note = page_probes(found, other)
    if len(depth := depth_table(found)):
        LOG.info("%s", depth.to_string(index=False, float_format="{:.3f}".format))
    LOG.info("Similarity and tests ...")
    tables = {"diagnostics": frame, "probe": probe, "depth": depth, "independence": independence_table(found)}
    reference = other.z_a if other is not None and len(other.z_a) == len(found.z_a) else None
    tables["similarity"] = similarity_table(found.z_a, found.z_b, reference)
    LOG.info("Figures ...")
    z_b, names = (found.z_a, found.columns) if found.z_b is None else (found.z_b, ())
    summary = CorrelationSummary.from_matrix(cross_correlation(found.z_a, z_b), len(z_b))
    figures: dict[str, Any] = {"correlation": _correlation(found.z_a, found.z_b, names), "summary": summary}
    figures |= _spectrum(found.z_a, found.z_b)
    figures |= {} if other is None else _comparison(found, other)
    figures |= _principal_axes(found, other, figures.get("kept", ()))
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


def _correlation(x: Tensor, y: Tensor | None, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the correlations of the features of `x` with those of `y`, None for its own: live, or as an image."""
    z = x if y is None else y
    if x.shape == z.shape and x.shape[1] <= LIVE_FEATURES:
        explorer = CorrelationExplorer(x, z)
        explorer.panels[0] |= {"one": y is None, "names": list(names)}
        return {"explorer": explorer_fragment(explorer)}
    dtype = torch.promote_types(x.dtype, z.dtype)
    c = standardize(x.to(dtype)).T @ standardize(z.to(dtype)) / len(x)
    limit = float(np.clip(np.quantile(c.abs().numpy(), 0.99), 0.01, 1))
    figure, ax = plt.subplots(figsize=(7.2, 5), layout="constrained")
    if len(c) == len(c.T):
        plot_cross_correlation(c, ax, limit)
    else:
        means = torch.nn.functional.adaptive_avg_pool2d(c[None], (min(len(c), 512), min(len(c.T), 512)))[0]
        extent = (-0.5, c.shape[1] - 0.5, c.shape[0] - 0.5, -0.5)
        image = ax.imshow(means.numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", extent=extent)
        figure.colorbar(image, label="correlation", extend="both")
    ax.set(xlabel="feature" if y is None else "feature of B", ylabel="feature" if y is None else "feature of A")
    return {"image": png_text(figure), "shape": c.shape, "limit": limit, "rms": float(c.square().mean().sqrt())}


def _comparison(found: Embeddings, other: Embeddings) -> dict[str, Any]:
    """Return the comparison with other embeddings of the same rows: its table with a warning, and C."""
    x, y = _compared(found), _compared(other)
    table = comparison_table(x, y)
    # The classes may have other names in the other file, such as 1 and 1.0, or be finer.
    known = [known_labels(one, len(x)) for one in (found, other)]
    pairs = pd.concat(known, axis=1, join="inner", keys=["a", "b"]).value_counts()
    differ = pairs.sum() - max(pairs.groupby(side).max().sum() for side in "ab")
    warning = table.attrs["warning"]
    warning = f"The rows may be in another order: {differ} labels differ. {warning}" if differ else warning
    words = table.drop(columns="rows").to_string(index=False, float_format="{:.4g}".format)
    LOG.info("%s", f"{words}\n{warning}".strip("\n"))
    shown = {"other": other, "comparison": _cells(table), "warning": warning, "kept": table.attrs["kept"]}
    return shown | {"joint": _correlation(x, y)}


def comparison_table(x: Tensor, y: Tensor) -> pd.DataFrame:
    """Return how similar two embeddings of the same rows are; ``attrs["kept"]`` is the share of neighbors of each row.

    ``attrs["warning"]`` is not empty if the rows may be in another order: nothing speaks against the independence of
    the two, but the spectra and the distances from the mean, up to a scale, agree.
    """
    rows = sample(len(x), PAIRED_ROWS)
    x, y = x[rows].double(), y[rows].double()
    value, n, k = cka_or_nan(x, y), len(rows), min(NEIGHBORS, len(rows) - 2)
    near = [NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False) for z in (x, y)]
    kept = np.array([np.isin(a, b).mean() for a, b in zip(*near, strict=True)])
    warning, answer = "", "not defined: all rows of one are equal"
    if np.isfinite(value):
        result = permutation_test(x, y, Linear(), Linear(), permutations=PERMUTATIONS)
        answer = f"p = {result.pvalue:.3g} out of {result.out_of}: "
        answer += "they depend on each other" if result.pvalue <= 0.01 else "no linear dependence is shown"
        both = [(z, covariance_spectrum(z)) for z in (x, y)]
        shares = pd.concat([pd.Series((part / part.sum()).numpy()) for _, part in both], axis=1).fillna(0)
        distances = [((z - z.mean(dim=0)).norm(dim=1) / spectrum.sum().sqrt()).numpy() for z, spectrum in both]
        apart = max((shares[0] - shares[1]).abs().sum() / 2, ks_2samp(*distances, method="asymp").statistic - n**-0.5)
        if result.pvalue > 0.01 and apart <= ALIKE:
            warning = "The rows may be in another order: the two look independent of each other, but their spectra and "
            warning += "the distances of the rows from the mean agree, which do not depend on the order."
    measures = [
        ("CKA (linear)", value, 0.0, n, answer),
        (f"neighbors kept, k = {k}", kept.mean(), k / (n - 1), n, f"of a row's {k} nearest in A, the share in B"),
    ]
    table = pd.DataFrame(measures, columns=["measure", "value", "unrelated_rows_give", "rows", "remark"])
    table.attrs = {"warning": warning, "kept": kept.tolist()}
    return table


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
    return {"spectrum": png_text(figure), "spectra": spectra, "spectrum_rows": len(rows), "most_values": most}


def _principal_axes(found: Embeddings, other: Embeddings | None, kept: Sequence[float] = ()) -> dict[str, Any]:
    """Return the dots of a sample of the rows on two axes, those of the labels or of both embeddings compared.

    Rows have their numbers in the source. The result is empty if all rows are equal. `kept` is that of
    `comparison_table`.
    """
    z = [_compared(found), _compared(other)] if other else [found.z_a if found.features is None else found.features]
    if not any((part != part[:1]).any() for part in z):
        return {}
    rows = sample(len(z[0]), PAIRED_ROWS)
    # Alone, rows without a label are left out; of a comparison they have the color of the text.
    numbers = np.arange(len(z[0])) if other or found.labelled is None else found.labelled
    labels = known_labels(found, len(z[0])).map(str).reindex(numbers[rows], fill_value="")
    numbers = numbers if found.table is None else found.table["row"].to_numpy()[numbers]
    step = -(-len(rows) // DOTS)
    common = sorted(labels[labels != ""].value_counts().index[: len(PALETTE)])
    axes, shares = zip(*(principal_axes(part.numpy()) for part in z), strict=True)
    axes = [part[rows[::step]] for part in axes]
    axes[-1] *= np.where((axes[0] * axes[-1]).sum(axis=0) < 0, -1, 1)  # the sign of an axis has no meaning
    places = [20 + 360 * (part - part.min(axis=0)) / (np.ptp(part, axis=0).max() or 1) for part in axes]
    colors = dict(zip(common, PALETTE, strict=False))
    dots = []
    for i, (row, label) in enumerate(zip(rows[::step], labels[::step], strict=True)):
        words = f"Row {numbers[row]}" + (f", label {label}" if label else "")
        words += f": {kept[i * step]:.0%} of its neighbors kept" if len(kept) else ""
        color = colors.get(label) if colors else PALETTE[0]
        dots.append({"words": words, "color": color, "places": [place[i].round(1).tolist() for place in places]})
    return {"dots": dots, "shares": shares, "legend": colors, "others": not labels.isin(common).all()}


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
        apart = [len(found.columns) > 0 and z.ndim == 2 and uneven(z) for z in (x, y)]  # columns of a table have units
        x, y = (standardize(z) if other_units else z for z, other_units in zip((x, y), apart, strict=True))
        result = run(x[chosen], y[chosen], **options)
        method = result.method + "; columns standardized, because their spreads differ" * any(apart)
        answer = "no: they depend on each other" if result.pvalue <= 0.01 else "nothing speaks against it"
        rows.append((question, method, len(chosen), result.statistic, result.pvalue, answer))

    if found.z_b is not None:
        question = "are the views independent?"
        test(question, permutation_test, TEST_ROWS, found.z_a, found.z_b, permutations=PERMUTATIONS)
        test(question, gamma_test, GAMMA_ROWS, found.z_a, found.z_b)
    if found.labels is not None:
        x = found.z_a if found.features is None else found.features
        codes = torch.from_numpy(np.unique(found.labels, return_inverse=True)[1])
        options, question = {"kernel_y": Delta(), "permutations": PERMUTATIONS}, "are features and labels independent?"
        if len(codes.unique()) < len(codes):
            test(question, permutation_test, TEST_ROWS, x, codes, **options)
        else:
            rows.append((question, "none", len(codes), math.nan, math.nan, "cannot be tested: no label occurs twice"))
    if found.target is not None:
        y = torch.from_numpy(found.target).to(found.z_a.dtype)
        x, y = found.z_a[y.isfinite()], y[y.isfinite()]
        test("are features and target independent?", permutation_test, TEST_ROWS, x, y, permutations=PERMUTATIONS)
    return pd.DataFrame(rows, columns=["question", "test", "rows", "statistic", "pvalue", "answer"])


def page_probes(found: Embeddings, other: Embeddings | None = None) -> tuple[pd.DataFrame, str]:
    """Return the accuracies on random splits of a linear probe and of nearest neighbors, and which rows were used.

    The features of `other` are B, those of `found` are A.
    """
    if found.labels is None:
        return pd.DataFrame(), ""
    given = {"A": found.z_a if found.features is None else found.features}
    if other is not None:
        z = _compared(other)[slice(None) if found.labelled is None else found.labelled]
        given |= {"B": z} if len(z) == len(given["A"]) else {}
    kept, note = _probed_rows(found.labels, given)
    if not len(kept):
        return pd.DataFrame(), note
    y, rows = found.labels[kept], []
    for seed in range(SPLITS):
        train, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=seed)
        for name, z in given.items():
            parts = z[kept[train]], y[train], z[kept[test]], y[test]
            results = {"linear probe": linear_probe(*parts, seed=seed).accuracy}
            if not (z[kept] == 0).all(dim=1).any():  # a zero row has no direction, and so no nearest neighbors
                results[f"{default_neighbors(len(train))} nearest neighbors"] = knn_accuracy(*parts)
            rows += [(name, *result, chance_accuracy(y[train], y[test])) for result in results.items()]
    table = pd.DataFrame(rows, columns=["features", "evaluation", "accuracy", "chance"])
    groups = table.groupby(["features", "evaluation"], sort=False)
    table = groups.agg(accuracy=("accuracy", "mean"), std=("accuracy", "std"), chance=("chance", "mean")).reset_index()
    table = table.assign(**{"train rows": len(train), "test rows": len(test)})
    return table if len(given) > 1 else table.drop(columns="features"), note


def depth_table(found: Embeddings) -> pd.DataFrame:
    """Return the accuracy of a linear probe by the depth of a run's layer, beside CKA with the labels and RankMe."""
    if found.labels is None or found.layers is None or not len(kept := _probed_rows(found.labels, found.layers)[0]):
        return pd.DataFrame()
    train, test = train_test_split(kept, test_size=0.3, stratify=found.labels[kept], random_state=0)
    parts = {name: (z[train], z[test]) for name, z in found.layers.items()}
    table = probe_table(parts, found.labels[train], found.labels[test], SPLITS, layers=True)
    table = table.rename(columns={"representation": "layer", "cka_labels": "CKA with labels", "rankme": "RankMe"})
    accuracy = table.groupby("layer", sort=False)["accuracy"].agg(accuracy="mean", std="std")
    others = table.drop_duplicates("layer").set_index("layer")[["chance", "CKA with labels", "RankMe"]]
    return accuracy.join(others).reset_index().assign(features=[z.shape[1] for z in found.layers.values()])


def _probed_rows(labels: np.ndarray, given: Mapping[str, Tensor]) -> tuple[np.ndarray, str]:
    """Return a sample of the rows, of the classes that are frequent in it; none if fewer than two are. And in words."""
    chosen = sample(len(labels), min(PROBE_ROWS, PROBE_VALUES // max(x.shape[1] for x in given.values())))
    classes, counts = np.unique(labels[chosen], return_counts=True)
    frequent = classes[counts >= MIN_CLASS_ROWS]
    kept = chosen[np.isin(labels[chosen], frequent)]
    note = f"{len(kept)} of {len(labels)} rows were used"
    if left_out := len(classes) - len(frequent):
        note += f"; {left_out} of {len(classes)} classes have fewer than {MIN_CLASS_ROWS} of the {len(chosen)} rows "
        note += "sampled and are left out"
    return (kept, f"{note}.") if len(frequent) > 1 else (kept[:0], f"{note}: there is nothing to predict.")
