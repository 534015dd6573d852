"""HSIC of more than one pair: several variables at once, and every feature beside every factor."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import check_choice, no_autocast
from hsic_lab.hsic._estimators import from_sums, hsic
from hsic_lab.kernels import Delta, Kernel, Linear

# Entries of the stacked Grams in memory at a time: 64 MiB in float32.
_ENTRIES = 2**24


def dhsic(*samples: Tensor, kernels: Sequence[Kernel] | None = None) -> Tensor:
    """Joint dependence of d >= 2 variables `(n, p_1), ..., (n, p_d)`, a 0-d tensor: Pfister et al. 2018 (1603.00285).

    `mean(K_1 ... K_d) + prod_j mean(K_j) - 2 mean_i prod_j (K_j 1/n)_i` with elementwise products: the squared MMD
    between the rows and all n^d permutations, never negative, and the biased `hsic` for d = 2. It is 0 in the limit
    only if the variables are jointly independent, given characteristic kernels; pairwise independence is not enough.
    A kernel left out is linear; with d >= 3 the origin of a kernel that has one matters. O(n^2) memory, in float64.
    Raises ValueError or TypeError as `hsic` does.
    """
    if len(samples) < 2:
        raise ValueError(f"needs at least 2 samples, got {len(samples)}")
    kernels = [Linear()] * len(samples) if kernels is None else kernels
    if len(kernels) != len(samples):
        raise ValueError(f"needs one kernel per sample, got {len(kernels)} kernels for {len(samples)} samples")
    checked = [k.samples(x, f"samples[{i}]") for i, (k, x) in enumerate(zip(kernels, samples, strict=True))]
    if len({len(x) for x in checked}) != 1 or len(checked[0]) < 2:
        raise ValueError(f"samples must have the same number of rows, 2 or more, got {[len(x) for x in checked]}")
    if len(samples) == 2:
        return hsic(*checked, *kernels)  # which centers, and so keeps the digits that the three means would cancel
    joint = rows = mean = 1.0
    dtypes = [x.dtype for x in checked if x.is_floating_point()] or [torch.get_default_dtype()]
    with no_autocast(checked[0]):
        for kernel, x in zip(kernels, checked, strict=True):
            x = x.double() if x.is_floating_point() else x
            gram = kernel.fit(x).gram(x, None).double()
            joint, rows, mean = joint * gram, rows * gram.mean(dim=1), mean * gram.mean()
        return (joint.mean() + mean - 2 * rows.mean()).to(reduce(torch.promote_types, dtypes))


def hsic_matrix(
    x: Tensor | np.ndarray | pd.DataFrame | Mapping[str, Tensor],
    y: Tensor | np.ndarray | pd.DataFrame | Mapping[str, Tensor],
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "biased",
    normalized: bool = False,
) -> Tensor:
    """HSIC of every column of `x` with every column of `y`, `(n, p), (n, q) -> (p, q)`: features beside factors.

    Samples are tensors, arrays, data frames or mappings from names to columns. Floating columns take the kernel given
    (left out: linear, each with its own median rule otherwise); columns of integers, booleans or strings are labels
    and take `Delta`. `normalized` divides by `sqrt(HSIC(x_i, x_i) HSIC(y_j, y_j))`, which for the biased estimator
    is the CKA of the pair, between 0 and 1; a constant column has 0, as has one whose unbiased self-HSIC is not
    positive.

    The Grams of all columns are stacked in blocks of rows, flattened, and one matrix product gives all p q sums:
    O(n^2 p q) time, at most about 64 MiB at a time per side; no gradients. Raises ValueError or TypeError as `hsic`.
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    columns_x, columns_y = _columns(x, "x"), _columns(y, "y")
    # One dtype for both sides: labels alone have none.
    wide = any(c.dtype == torch.float64 for c in (*columns_x.values(), *columns_y.values()))
    dtype = torch.float64 if wide else torch.float32
    grams_x, n = _column_grams(columns_x, kernel_x, "x", dtype)
    grams_y, n_y = _column_grams(columns_y, kernel_y, "y", dtype)
    if n != n_y:
        raise ValueError(f"x and y must have the same number of rows, got {n} and {n_y}")
    if n < (4 if unbiased else 2):
        raise ValueError(f"needs at least {4 if unbiased else 2} rows, got {n}")
    with torch.no_grad():
        sums = _Sums(len(grams_x), len(grams_y))
        size = max(1, _ENTRIES // (n * max(len(grams_x), len(grams_y))))
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            sums.add(*(_stacked(grams, rows, unbiased) for grams in (grams_x, grams_y)))
        rows_x, rows_y = (torch.cat(rows, dim=1) for rows in (sums.rows_x, sums.rows_y))
        totals_x, totals_y = rows_x.sum(dim=1), rows_y.sum(dim=1)
        values = from_sums(sums.xy, totals_x[:, None], totals_y, rows_x @ rows_y.T, n, unbiased)
        if not normalized:
            return values
        self_x = from_sums(sums.xx, totals_x, totals_x, rows_x.square().sum(dim=1), n, unbiased)
        self_y = from_sums(sums.yy, totals_y, totals_y, rows_y.square().sum(dim=1), n, unbiased)
        # What a constant column leaves is the rounding error of sums of this size.
        alive_x = self_x > 1e-12 * sums.xx / n**2
        alive_y = self_y > 1e-12 * sums.yy / n**2
        alive = alive_x[:, None] & alive_y
        return torch.where(alive, values / (self_x[:, None] * self_y).clamp_min(0).sqrt(), 0.0)


class _Sums:
    # What the estimators need of the Grams, over the blocks of rows seen so far, in float64.
    def __init__(self, p: int, q: int) -> None:
        self.xy = torch.zeros(p, q, dtype=torch.float64)
        self.xx, self.yy = torch.zeros(p, dtype=torch.float64), torch.zeros(q, dtype=torch.float64)
        self.rows_x: list[Tensor] = []
        self.rows_y: list[Tensor] = []

    def add(self, k: Tensor, l: Tensor) -> None:
        self.rows_x.append(k.sum(dim=2).double())
        self.rows_y.append(l.sum(dim=2).double())
        # A product a row: millions of float32 terms in one sum cost four digits, which the estimators do not have.
        products = torch.bmm(k.transpose(0, 1), l.permute(1, 2, 0))
        self.xy = self.xy.to(k.device) + products.sum(dim=0, dtype=torch.float64)
        self.xx = self.xx.to(k.device) + k.square().sum(dim=2).sum(dim=1, dtype=torch.float64)
        self.yy = self.yy.to(l.device) + l.square().sum(dim=2).sum(dim=1, dtype=torch.float64)


def _stacked(grams: list[Callable[[slice], Tensor]], rows: slice, unbiased: bool) -> Tensor:
    stacked = torch.stack([gram(rows) for gram in grams])
    if unbiased:
        stacked[:, torch.arange(rows.stop - rows.start), torch.arange(rows.start, rows.stop)] = 0
    return stacked


def _columns(x: Tensor | np.ndarray | pd.DataFrame | Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The columns of a table by the names that errors give them."""
    if isinstance(x, pd.DataFrame) and not x.columns.is_unique:
        raise ValueError(f"{name} must have columns of different names, got {list(x.columns)}")
    if isinstance(x, pd.DataFrame | Mapping):
        return {f"{name}[{key!r}]": as_column(x[key]) for key in x}
    if isinstance(x, Tensor | np.ndarray) and x.ndim in (1, 2):
        table = torch.as_tensor(x)
        table = table[:, None] if table.dim() == 1 else table
        return {f"{name}[:, {i}]": column for i, column in enumerate(table.T)}
    raise TypeError(f"{name} must be a table: a tensor, array, data frame or mapping, got {type(x).__name__}")


def _column_grams(
    columns: Mapping[str, Tensor], kernel: Kernel | None, name: str, dtype: torch.dtype
) -> tuple[list[Callable[[slice], Tensor]], int]:
    """For every column the function that gives rows of its Gram, and the number of rows."""
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"{name} needs one or more columns of one length, got lengths {sorted(lengths)}")
    return [_rows_of_gram(c, kernel or Linear(), key, dtype) for key, c in columns.items()], lengths.pop()


def as_column(column: Tensor | np.ndarray | pd.Series) -> Tensor:
    """A column of a table as a tensor `(n,)`; dates become seconds, strings and categories integers, in order of
    appearance.
    """
    if isinstance(column, Tensor):
        return column
    array = np.array(column)  # a copy: pandas lends arrays that are not writable
    if array.dtype.kind == "O" and all(isinstance(value, numbers.Real) for value in array):
        array = np.array(array.tolist())
    if array.dtype.kind in "mM" and not np.isnat(array).any():
        array = (array - array.min()) / np.timedelta64(1, "s")
    if array.dtype.kind in "biuf":
        return torch.as_tensor(array)
    return torch.as_tensor(pd.factorize(column, use_na_sentinel=False)[0])


def _rows_of_gram(column: Tensor, kernel: Kernel, name: str, dtype: torch.dtype) -> Callable[[slice], Tensor]:
    kernel = kernel if column.is_floating_point() else Delta()
    column = kernel.samples(column.detach(), name)
    if isinstance(kernel, Linear):
        # HSIC does not depend on the origin, its rounding error does.
        column = column - column.mean(dim=0)
    if (column == column[:1]).all():  # exactly 0, where rounding could pass for a signal
        return lambda rows: torch.zeros(len(column[rows]), len(column), dtype=dtype, device=column.device)
    fitted = kernel.fit(column)

    def gram(rows: slice) -> Tensor:
        with no_autocast(column):
            return fitted.gram(column[rows], column).to(dtype)

    return gram
