"""What do features know of the causes of their pictures? CKA with every known factor, labels and numbers alike."""

import pandas as pd
import torch
from torch import Tensor

from hsic_lab.checks import as_samples, full_precision
from hsic_lab.joint import as_column
from hsic_lab.kernels import Delta, Gaussian, Kernel, Linear
from hsic_lab.self_hsic import alike, near_one, u_center, varies
from hsic_lab.spectra import Features
from hsic_lab.sphere import drawn_rows

FACTOR_ROWS = 2048


def factor_dependence(
    features: Features, factors: pd.DataFrame, kernel: Kernel | None = None, max_rows: int = FACTOR_ROWS, seed: int = 0
) -> pd.DataFrame:
    """How much `features` `(n, d)` depend on each known factor (a column of `factors`): unbiased CKA, near 0 for none.

    Integers, booleans, strings and categories are labels and take the kernel `Delta`; real factors take `Gaussian()`;
    features take `kernel`, linear if it is left out. O(n^2 d) time and O(n^2) memory, so that above `max_rows` rows
    that many are drawn with `seed`. A factor without two different or without two equal rows, and constant features,
    have 0.

    Returns one row a factor: `factor, kernel, cka, n`. Raises ValueError or TypeError for samples that do not match,
    factors that are not finite, and fewer than 4 rows.
    """
    features = as_samples(features, "features").detach()
    if not isinstance(factors, pd.DataFrame) or not len(factors.columns):
        raise TypeError(f"factors must be a data frame with one or more columns, got {type(factors).__name__}")
    if len(factors) != len(features):
        raise ValueError(f"features and factors must have the same number of rows, got {len(features)}, {len(factors)}")
    features = drawn_rows(features, max_rows, seed)
    n = len(features)
    if n < 4:
        raise ValueError(f"needs at least 4 rows, got {n}")
    gram_x = _unit_gram(kernel or Linear(), features)
    rows = []
    for name in factors:
        column = as_column(factors[name]).to(features.device)
        kernel_y = Gaussian() if column.is_floating_point() else Delta()
        column = drawn_rows(kernel_y.samples(column, f"factors[{name!r}]"), max_rows, seed)
        value = (gram_x * _unit_gram(kernel_y, column)).sum(dtype=torch.float64)
        rows.append({"factor": name, "kernel": type(kernel_y).__name__, "cka": float(value), "n": n})
    return pd.DataFrame(rows)


def _unit_gram(kernel: Kernel, x: Tensor) -> Tensor:
    """U-centred Gram of norm 1, whose products are unbiased CKA; 0 where all pairs of different rows are alike."""
    if not varies(x):
        return torch.zeros(len(x), len(x), device=x.device)
    with full_precision(x):
        x = near_one(x - x.mean(dim=0)) if isinstance(kernel, Linear) else x
        gram = kernel.fit(x).gram(x, None)
    if alike(gram):
        return torch.zeros_like(gram, dtype=torch.float64)
    centred = u_center(gram.double())
    return centred / centred.norm()
