"""HSIC of more than two variables: joint HSIC, and HSIC of every pair of columns."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import check_choice, factor_values, is_constant, no_autocast
from hsic_lab.hsic._estimators import at_origin, from_sums, hsic
from hsic_lab.kernels import Delta, Kernel, Linear

Table: TypeAlias = Tensor | np.ndarray | pd.DataFrame | Mapping[str, Tensor]
_ENTRIES = 2**24  # of the stacked Grams in memory at a time: 64 MiB in float32


def dhsic(*samples: Tensor, kernels: Sequence[Kernel] | None = None) -> Tensor:
    """Joint dependence of two or more variables (dHSIC).

    ``mean(K_1 ... K_m) + prod_j mean(K_j) - 2 mean_i prod_j (K_j 1/n)_i`` with elementwise products, the squared MMD
    between the n rows and all n^m combinations of rows (Pfister et al. 2018, arXiv:1603.00285). It is never negative;
    for two variables it is the biased `hsic`. With characteristic kernels its limit is 0 only if the variables are
    jointly independent; pairwise independence is not enough. Needs O(n^2) memory.

    Parameters
    ----------
    *samples : Tensor of shape (n, p_1), ..., (n, p_m)
        Variables whose rows belong together, at least two.
    kernels : sequence of Kernel, optional
        One for each variable; None means `Linear`. Linear and polynomial kernels depend on the origin here if m > 2.

    Returns
    -------
    Tensor of shape ()
        The estimate; differentiable.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.kernels import Delta
    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> dhsic(a, b, a ^ b, kernels=[Delta()] * 3)  # pairwise independent, jointly dependent
    tensor(0.1250)
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
        # `hsic` centers the Grams, and so keeps the digits that the three means would cancel.
        return hsic(checked[0], checked[1], kernels[0], kernels[1])
    joint = rows = mean = torch.ones((), dtype=torch.float64)
    dtypes = [x.dtype for x in checked if x.is_floating_point()] or [torch.get_default_dtype()]
    with no_autocast(checked[0]):
        for kernel, x in zip(kernels, checked, strict=True):
            x = x.double() if x.is_floating_point() else x
            gram = kernel.fit(x).gram(x, None).double()
            joint, rows, mean = joint * gram, rows * gram.mean(dim=1), mean * gram.mean()
        return (joint.mean() + mean - 2 * rows.mean()).to(reduce(torch.promote_types, dtypes))


def hsic_matrix(
    x: Table,
    y: Table,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "biased",
    normalized: bool = False,
) -> Tensor:
    """HSIC of every column of `x` with every column of `y`, for instance of features with factors, in O(n^2 p q) time.

    Parameters
    ----------
    x, y : Tensor, ndarray, DataFrame or mapping of names to columns, p and q columns of n rows
        Columns of integers, booleans, strings or categories are labels and take the kernel `Delta`. Decimals are
        numbers, dates and durations seconds. A missing value is an error.
    kernel_x, kernel_y, estimator
        As in `hsic`, without "block". The kernels are for floating columns; a median rule is fitted to every column.
    normalized : bool, default False
        Divide by ``sqrt(HSIC(x_i, x_i) HSIC(y_j, y_j))``: CKA, or 0 where one of the two is not positive.

    Returns
    -------
    Tensor of shape (p, q)
        The estimates in float64, without gradient.

    Examples
    --------
    >>> import numpy as np
    >>> hsic_matrix(np.arange(4.0), {"class": np.array([0, 0, 1, 1])}, normalized=True)
    tensor([[0.8000]], dtype=torch.float64)
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    columns_x, columns_y = _columns(x, "x"), _columns(y, "y")
    # Both sides need one dtype, and labels have none.
    dtypes = {c.dtype for c in (*columns_x.values(), *columns_y.values())}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    grams_x = [_rows_of_gram(c, kernel_x or Linear(), name, dtype) for name, c in columns_x.items()]
    grams_y = [_rows_of_gram(c, kernel_y or Linear(), name, dtype) for name, c in columns_y.items()]
    first, first_y = (next(iter(columns.values())) for columns in (columns_x, columns_y))
    n, n_y = len(first), len(first_y)
    if n < (least := 4 if unbiased else 2) or n != n_y:
        raise ValueError(f"x and y must have the same number of rows, at least {least}, got {n} and {n_y}")
    with torch.no_grad(), no_autocast(first):
        xy = xx = yy = torch.zeros((), dtype=torch.float64)
        row_sums: list[tuple[Tensor, Tensor]] = []
        size = max(1, _ENTRIES // (n * max(len(grams_x), len(grams_y))))
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            k, l = (torch.stack([gram(rows) for gram in grams]) for grams in (grams_x, grams_y))
            if unbiased:
                k.diagonal(start, 1, 2).zero_(), l.diagonal(start, 1, 2).zero_()
            row_sums.append((k.sum(dim=2).double(), l.sum(dim=2).double()))
            # One product for each row: a float32 sum of millions of terms would cost four digits.
            xy = xy + torch.bmm(k.transpose(0, 1), l.permute(1, 2, 0)).sum(dim=0, dtype=torch.float64)
            xx = xx + k.square().sum(dim=2).sum(dim=1, dtype=torch.float64)
            yy = yy + l.square().sum(dim=2).sum(dim=1, dtype=torch.float64)
        rows_x, rows_y = (torch.cat(sums, dim=1) for sums in zip(*row_sums, strict=True))
        totals_x, totals_y = rows_x.sum(dim=1), rows_y.sum(dim=1)
        values = from_sums(xy, totals_x[:, None], totals_y, rows_x @ rows_y.T, n, unbiased)
        if not normalized:
            return values
        self_x = from_sums(xx, totals_x, totals_x, rows_x.square().sum(dim=1), n, unbiased)
        self_y = from_sums(yy, totals_y, totals_y, rows_y.square().sum(dim=1), n, unbiased)
        # Values below this are the rounding error of the sums.
        alive = (self_x > 1e-12 * xx / n**2)[:, None] & (self_y > 1e-12 * yy / n**2)
        return torch.where(alive, values / (self_x[:, None] * self_y).clamp_min(0).sqrt(), 0.0)


def _columns(x: Table, name: str) -> dict[str, Tensor]:
    """The columns of a table, all of one length, by the names that errors give them."""
    if isinstance(x, pd.DataFrame) and not x.columns.is_unique:
        raise ValueError(f"{name} must have columns of different names, got {list(x.columns)}")
    if isinstance(x, pd.DataFrame | Mapping):
        given = {f"{name}[{key!r}]": x[key] for key in x}
    elif isinstance(x, Tensor | np.ndarray) and x.ndim in (1, 2):
        table = x if x.ndim == 2 else x[:, None]
        given = {f"{name}[:, {i}]": table[:, i] for i in range(table.shape[1])}
    else:
        raise TypeError(f"{name} must be a table: a tensor, array, data frame or mapping, got {type(x).__name__}")
    columns = {key: factor_values(column, key)[0] for key, column in given.items()}
    if len(lengths := {len(column) for column in columns.values()}) != 1:
        raise ValueError(f"{name} needs one or more columns of one length, got lengths {sorted(lengths)}")
    return columns


def _rows_of_gram(column: Tensor, kernel: Kernel, name: str, dtype: torch.dtype) -> Callable[[slice], Tensor]:
    """A function that gives rows of the Gram of a column."""
    kernel = kernel if column.is_floating_point() else Delta()
    column = at_origin(kernel.samples(column.detach(), name), kernel)
    if is_constant(column):  # exactly 0, instead of rounding
        return lambda rows: torch.zeros(len(column[rows]), len(column), dtype=dtype, device=column.device)
    fitted = kernel.fit(column)
    return lambda rows: fitted.gram(column[rows], column).to(dtype)
