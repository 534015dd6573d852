"""Standardization of features and the cross-correlation matrix C of two views."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from hsic_lab._checks import (  # isort: skip
    as_tensor, at_least_float32, check_choice, check_integer, check_view, check_views, hides_values, is_transformed,
    row_product, to_array,
)  # fmt: skip

__all__ = [
    "ORDERS", "CorrelationSummary", "cross_correlation", "expected_squared_norm", "feature_order", "off_diagonal",
    "spectrum", "standardize",
]  # fmt: skip

ORDERS = ("index", "diagonal", "cluster")
_BLOCK_ELEMENTS = 1 << 23  # of a block in float64: 64 MiB


def standardize(z: Tensor) -> Tensor:
    """Scale every column to mean 0 and variance 1 over the batch.

    ``(z - mean) / std`` with ``std = sqrt(sum (z - mean)^2 / n)``, so that equal views correlate to exactly 1 at every
    n. A column that is constant up to rounding becomes 0 and gets the gradient 0. NaN and infinite values make their
    column NaN, and so do values above 1e38 / n in float32, whose sum may overflow.

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Floating point, n at least 2. Half precision is raised to float32.
    """
    check_view("z", z)
    if len(z) < 2:
        raise ValueError(f"standardizing needs at least 2 rows, got shape {tuple(z.shape)}")
    return standardize_with_scale(at_least_float32(z))[0]


def standardize_with_scale(z: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized columns of `z` `(n, d)` and the factor `(d,)` that scaled them, 0 for a constant column."""
    first = z[0].detach()
    x = z - first  # the mean of a column far from 0 would be rounded, that of the differences is not
    x -= x.sum(dim=0) * (1 / len(z))  # faster than `mean` on small batches
    squares = (x * x).sum(dim=0) * (1 / len(z))
    if not hides_values(z) and squares.min() > 1e-30 and squares.max() < torch.inf:
        scale = reciprocal_norm(first, squares, 1)  # of the mean square
        return x * scale, scale
    x = x / (unit := column_unit(x))
    scale = reciprocal_norm(first / unit, (x * x).sum(dim=0) * (1 / len(z)), 1)
    return x * scale, scale / unit


def column_unit(x: Tensor) -> Tensor:
    """The power of two below the largest entry of every column: to divide by it keeps squares in the range."""
    limit = math.floor(0.8 * math.log2(torch.finfo(x.dtype).max))  # its inverse is in the range, too
    return x.detach().abs().amax(dim=-2).log2().floor().clamp(-limit, limit).exp2()


def reciprocal_norm(value: Tensor, squared_norm: Tensor, n: int) -> Tensor:
    """1 / norm of centered columns of n rows near `value`; 0 if constant up to rounding, NaN if a square overflowed."""
    constant = _is_rounding(squared_norm, value, 4 * n**0.5 * torch.finfo(value.dtype).eps)
    if squared_norm.requires_grad or is_transformed():
        squared_norm = squared_norm.masked_fill(constant, 1)  # else the derivative of the root would be infinite
    size = squared_norm.detach()  # without it the derivative of the root would overflow for tiny columns
    return (size.sqrt() / size * (squared_norm / size).rsqrt()).masked_fill(constant, 0)


def _is_rounding(square: Tensor, value: Tensor, tolerance: float) -> Tensor:
    """Whether the root of `square` is at most `tolerance * |value|`; false if `square` overflowed."""
    return torch.addcmul(square, value, value, value=-(tolerance**2)) <= 0


def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Correlations ``C = standardize(z_a)' standardize(z_b) / n`` of the features of two views.

    This is equation 2 of Zbontar et al. (2021), "Barlow Twins", arXiv:2103.03230. Rows of C, a (d, d) tensor, belong to
    the features of `z_a`. Constant features have correlation 0.

    Parameters
    ----------
    z_a, z_b : Tensor of shape (n, d)
        Two views; rows of one index are one image. The narrower dtype is raised to the wider.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> standardize(z).tolist(), cross_correlation(z, -z).tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]])
    """
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    return row_product(standardize(z_a.to(dtype)), standardize(z_b.to(dtype))) / len(z_a)


@dataclass(frozen=True)
class CorrelationSummary:
    """Summary of a matrix C of n pairs without constant features, with the values that unrelated features give."""

    mean_diagonal: float
    rms_diagonal: float
    mean_off_diagonal: float
    rms_off_diagonal: float
    off_diagonal_squared_norm: float  # sum of the squared off-diagonal entries, the redundancy of the features
    total: float  # sum 1'C1 of all entries, the covariance of the feature sums of the two views
    expected_rms: float  # 1 / sqrt(n - 1), the rms_off_diagonal of unrelated features
    expected_squared_norm: float  # d (d - 1) / (n - 1), the off_diagonal_squared_norm of unrelated features
    lower_bound: float  # -1 / (d - 1), the smallest mean_off_diagonal of a positive semi-definite C with unit diagonal
    n_constant: int  # features whose row or column of C is 0: constant in a view; d above does not count them

    @classmethod
    def from_matrix(cls, c: ArrayLike, n: int) -> CorrelationSummary:
        """Summarize a matrix `c` of shape (d, d) that was computed from `n` pairs, with n at least 2."""
        c = square_matrix(c)
        n, a, b = check_integer("n, the number of pairs,", n, 2), c.any(axis=1), c.any(axis=0)
        diagonal, live = np.diagonal(c), int((a & b).sum())
        squares, pairs = np.square(off_diagonal(c)).sum(), int(a.sum() * b.sum()) - live
        return cls(
            mean_diagonal=float(diagonal.sum() / max(live, 1)), total=float(c.sum()), n_constant=len(c) - live,
            rms_diagonal=float(np.sqrt(np.square(diagonal).sum() / max(live, 1))),
            mean_off_diagonal=float((c.sum() - diagonal.sum()) / max(pairs, 1)),
            rms_off_diagonal=float(np.sqrt(squares / max(pairs, 1))), off_diagonal_squared_norm=float(squares),
            expected_squared_norm=pairs / (n - 1), expected_rms=(n - 1) ** -0.5, lower_bound=-1 / max(live - 1, 1),
        )  # fmt: skip


def expected_squared_norm(n: int, d: int) -> float:
    """Squared off-diagonal norm of C for unrelated features: d (d - 1) correlations of variance ``1 / (n - 1)``."""
    n, d = check_integer("n, the number of pairs,", n, 2), check_integer("d, the number of features,", d, 2)
    return d * (d - 1) / (n - 1)


def off_diagonal(c: np.ndarray) -> np.ndarray:
    """The ``d (d - 1)`` off-diagonal entries of a (d, d) array, row by row."""
    return c[~np.eye(len(c), dtype=bool)]


def spectrum(c: ArrayLike) -> np.ndarray:
    """Singular values of a (d, d) matrix, largest first, computed in float32."""
    return torch.linalg.svdvals(torch.from_numpy(square_matrix(c)).float()).double().numpy()


def feature_order(c: ArrayLike, by: str = "index") -> np.ndarray:
    """Order of the features that makes a heatmap of C readable: its row and column p are feature ``order[p]``.

    Parameters
    ----------
    c : array-like of shape (d, d)
        A finite cross-correlation matrix, d at least 2.
    by : {"index", "diagonal", "cluster"}, default "index"
        "index" keeps the given order. "diagonal" puts the features on which the views agree best first. "cluster" puts
        related features side by side: the leaves of average linkage on the distance ``1 - (C + C') / 2``.
    """
    c, by = square_matrix(c), check_choice(by, ORDERS, "order")
    if by == "index":
        return np.arange(len(c))
    if by == "diagonal":
        return np.argsort(-np.diagonal(c), kind="stable")
    distance = np.clip(1 - (c + c.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average")).astype(np.int64)


def square_matrix(c: ArrayLike) -> np.ndarray:
    """`c` as a float64 array, checked to be finite and (d, d) with d at least 2."""
    c = to_array(as_tensor(c, "c")).astype(np.float64)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) < 2:
        raise ValueError(f"c must have shape (d, d), d at least 2, as cross_correlation(z_a, z_b) has, got {c.shape}")
    if bad := (~np.isfinite(c.astype(np.float32) ** 2)).sum():
        raise ValueError(f"c and its squares must be finite in float32, {bad} of its {c.size} entries are not")
    return c


def uneven(x: Tensor) -> bool:
    """Whether a column's standard deviation is above 100 times their median, as if its unit were another one."""
    variance = column_moments(x)[1]
    return bool((variance > 1e4 * variance[variance > 0].median()).any()) if variance.any() else False


def column_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (1/n) of the columns of `z` `(n, d)` in float64; the variance of a constant column is 0."""
    if len(z) < 2:
        raise ValueError(f"needs at least 2 rows, got shape {tuple(z.shape)}")
    mean = torch.stack([block.sum(dim=0) for block in row_blocks(z)]).sum(dim=0) / len(z)
    variance = torch.stack([(block - mean).square().sum(dim=0) for block in row_blocks(z)]).sum(dim=0) / len(z)
    return mean, variance.masked_fill(_is_rounding(variance, mean, 4 * torch.finfo(z.dtype).eps), 0)


def row_blocks(z: Tensor) -> Iterator[Tensor]:
    """The rows of `z` `(n, d)` in float64, in blocks of limited memory."""
    return (block.double() for block in z.split(max(1, _BLOCK_ELEMENTS // z.shape[1])))


def l2_normalize(z: Tensor) -> Tensor:
    """The rows of `z` `(n, d)` scaled to length 1; a row of zeros stays, and its derivatives are 0."""
    # Dividing by the largest entry first keeps the squares of tiny and huge features in the float range.
    largest = z.detach().abs().amax(dim=1, keepdim=True)
    z = z / largest.masked_fill(largest == 0, torch.inf)
    return z * z.square().sum(dim=1, keepdim=True).clamp(min=0.5).rsqrt()


def directions(name: str, x: Tensor) -> Tensor:
    """`l2_normalize` of `x`; ValueError for a row of zeros."""
    if len(zero := (x == 0).all(dim=1).nonzero()[:, 0]):
        raise ValueError(f"{name} has {len(zero)} zero rows, which have no direction; the first is row {zero[0]}")
    return l2_normalize(x)
