"""What a report says of embeddings in numbers, each on as many rows as its cost allows, which it states."""

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from hsic_lab.cka import cka_or_nan
from hsic_lab.embeddings import Embeddings
from hsic_lab.evaluation import knn_accuracy
from hsic_lab.independence import gamma_test, permutation_test
from hsic_lab.kernels import Delta, Gaussian
from hsic_lab.probes import fast_probe
from hsic_lab.results import TestResult

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
    """What labels a linear probe and nearest neighbours read off the features, and how that was measured.

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
    results: dict[str, list[float]] = {"linear probe": [], "nearest neighbours": []}
    chances = []
    for split in range(SPLITS):
        train, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=split)
        parts = x[train], y[train], x[test], y[test]
        results["linear probe"].append(fast_probe(*parts, seed=split).accuracy)
        if not (x == 0).all(dim=1).any():  # such a row has no direction, and no neighbours
            results["nearest neighbours"].append(knn_accuracy(*parts, k=min(200, len(train))))
        names, sizes = np.unique(y[train], return_counts=True)
        chances.append(float((y[test] == names[sizes.argmax()]).mean()))
    rows = [
        (name, np.mean(values), np.std(values, ddof=1), np.mean(chances), len(train), len(test))
        for name, values in results.items() if values
    ]
    columns = ["evaluation", "accuracy", "std", "chance", "train rows", "test rows"]
    return pd.DataFrame(rows, columns=columns), f"{note}."
