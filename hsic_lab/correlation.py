"""Standardization of features and the cross-correlation matrix C of two views."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab._checks import at_least_float32, check_choice, check_views, no_autocast, to_array

__all__ = [
    "ORDERS", "CorrelationSummary", "cross_correlation", "expected_squared_norm", "feature_order", "off_diagonal",
    "spectrum", "standardize",
]  # fmt: skip

ORDERS = ("index", "diagonal", "cluster")
_BLOCK_ELEMENTS = 1 << 23  # of a block in float64: 64 MiB
# A column whose spread is below this many units in the last place of its mean varies by rounding alone.
_ROUNDING_ULPS = 4


def standardize(z: Tensor) -> Tensor:
    """Scale every column to mean 0 and variance 1 over the batch.

    ``(z - mean) / std`` with ``std = sqrt(sum (z - mean)^2 / n)``, so that equal views correlate to exactly 1 at
    every n. A column that is constant up to rounding becomes 0 and gets the gradient 0. Differentiable once.

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Floating point, n at least 2. Half precision is raised to float32.

    Returns
    -------
    Tensor of shape (n, d)
        The standardized columns. NaN and infinite values make their column NaN.

    Raises
    ------
    ValueError, TypeError
        If `z` is not a floating tensor of shape (n, d) with n at least 2.
    """
    check_views(z, z)
    if len(z) < 2:
        raise ValueError(f"standardizing needs at least 2 rows, got shape {tuple(z.shape)}")
    with no_autocast(z):
        return _Standardize.apply(at_least_float32(z))


def standardize_forward(z: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized columns of `z` `(n, d)` and the factor `(d,)` that scaled them, 0 for a constant column."""
    mean = _column_mean(z)
    x = z - mean
    # The mean of a column far from 0 is rounded; the small rest is computed here.
    x -= _column_mean(x)
    variance = _column_mean(x * x)
    std = variance.sqrt()
    # std / variance instead of 1 / std: NaN, not 0, if the squares overflowed.
    scale = (std / variance).masked_fill_(_constant_columns(mean, std, z.dtype), 0)
    return x.mul_(scale), scale


def standardize_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to z, written into `gradient`, the one with respect to x."""
    along = _column_mean(x * gradient)
    return gradient.sub_(_column_mean(gradient)).addcmul_(x, along, value=-1).mul_(scale)


def _column_mean(z: Tensor) -> Tensor:
    # Half the time of z.mean(dim=0) on small batches, where calls cost more than arithmetic.
    return z.sum(dim=0).mul_(1 / len(z))


def _constant_columns(mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Which columns of a sample of this `dtype` are constant up to rounding, `(d,)` booleans."""
    return std <= mean.abs() * (_ROUNDING_ULPS * torch.finfo(dtype).eps)


class _Standardize(Function):
    # Written out because torch's var_mean over rows is slow and autograd would keep every intermediate result.
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        x, scale = standardize_forward(z)
        ctx.save_for_backward(x, scale)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return standardize_backward(gradient.clone(), *ctx.saved_tensors)


def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Correlation of every feature of view A with every feature of view B.

    ``C = X' Y / n`` with ``X = standardize(z_a)`` and ``Y = standardize(z_b)``.

    Parameters
    ----------
    z_a, z_b : Tensor of shape (n, d)
        Two views; rows of one index are one image. The narrower dtype is raised to the wider.

    Returns
    -------
    Tensor of shape (d, d)
        C; rows belong to the features of `z_a`. Constant features have correlation 0.

    Raises
    ------
    ValueError, TypeError
        As `standardize`, or if the shapes or devices differ.

    References
    ----------
    Zbontar et al. (2021), "Barlow Twins", arXiv:2103.03230, equation 2.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> standardize(z).tolist(), cross_correlation(z, -z).tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]])
    """
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    with no_autocast(z_a):
        return standardize(z_a.to(dtype)).T @ standardize(z_b.to(dtype)) / len(z_a)


@dataclass(frozen=True)
class CorrelationSummary:
    """Summary of a cross-correlation matrix C of n pairs, with the values that unrelated features give.

    Attributes
    ----------
    mean_diagonal, rms_diagonal : float
        Mean and root mean square of the diagonal.
    mean_off_diagonal, rms_off_diagonal : float
        Mean and root mean square of the other entries.
    off_diagonal_squared_norm : float
        Sum of the squares of the off-diagonal entries, the redundancy of the features.
    total : float
        Sum of all entries, ``1'C1``: the covariance of the feature sums of the two views.
    expected_rms : float
        ``1 / sqrt(n - 1)``, the root mean square of an entry of unrelated features.
    expected_squared_norm : float
        ``d (d - 1) / (n - 1)``, the value of `off_diagonal_squared_norm` for unrelated features.
    lower_bound : float
        ``-1 / (d - 1)``, the smallest `mean_off_diagonal` of a positive semi-definite C with unit diagonal.
    spectrum : ndarray of shape (d,)
        Singular values of C, largest first; computed when it is first read.

    Examples
    --------
    >>> summary = CorrelationSummary.from_matrix([[1.0, 0.5], [0.5, 1.0]], n=5)
    >>> summary.mean_off_diagonal, summary.expected_rms, summary.total
    (0.5, 0.5, 3.0)
    """

    mean_diagonal: float
    rms_diagonal: float
    mean_off_diagonal: float
    rms_off_diagonal: float
    off_diagonal_squared_norm: float
    total: float
    expected_rms: float
    expected_squared_norm: float
    lower_bound: float

    @classmethod
    def from_matrix(cls, c: ArrayLike, n: int) -> "CorrelationSummary":
        """Summarize a matrix `c` of shape (d, d) that was computed from `n` pairs, with n at least 2."""
        c = square_matrix(c)
        expected = expected_squared_norm(n, d := len(c))
        diagonal, entries = np.diagonal(c), d * (d - 1)
        squares = np.square(off_diagonal(c)).sum()
        summary = cls(
            mean_diagonal=float(diagonal.mean()),
            rms_diagonal=float(np.sqrt(np.square(diagonal).mean())),
            mean_off_diagonal=float((c.sum() - diagonal.sum()) / entries),
            rms_off_diagonal=float(np.sqrt(squares / entries)),
            off_diagonal_squared_norm=float(squares),
            total=float(c.sum()),
            expected_rms=(n - 1) ** -0.5,
            expected_squared_norm=expected,
            lower_bound=-1 / (d - 1),
        )
        summary.__dict__["_matrix"] = c  # for `spectrum`; not a field, so that `asdict` gives numbers only
        return summary

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Singular values of C, largest first."""
        return spectrum(self.__dict__["_matrix"])


def expected_squared_norm(n: int, d: int) -> float:
    """Expected sum of squared off-diagonal entries of C for `d` unrelated features and `n` pairs.

    It is ``d (d - 1) / (n - 1)``, because the correlation of two independent columns, one of them normal, has mean 0
    and variance ``1 / (n - 1)``. Raises ValueError if `n` or `d` is less than 2.
    """
    if n < 2 or d < 2:
        raise ValueError(f"needs at least 2 pairs and 2 features, got n = {n} and d = {d}")
    return d * (d - 1) / (n - 1)


def off_diagonal(c: np.ndarray) -> np.ndarray:
    """The ``d (d - 1)`` off-diagonal entries of a (d, d) array, row by row."""
    # Without its first entry the matrix is d - 1 rows of d other entries and one diagonal one.
    return np.ascontiguousarray(c).ravel()[1:].reshape(len(c) - 1, len(c) + 1)[:, :-1].ravel()


def spectrum(c: ArrayLike) -> np.ndarray:
    """Singular values of a (d, d) matrix, largest first, computed in float32. Raises ValueError as `feature_order`."""
    return torch.linalg.svdvals(torch.from_numpy(square_matrix(c)).float()).double().numpy()


def feature_order(c: ArrayLike, by: str = "index") -> np.ndarray:
    """Order of the features that makes a heatmap of C readable.

    Parameters
    ----------
    c : array-like of shape (d, d)
        A cross-correlation matrix, d at least 2.
    by : {"index", "diagonal", "cluster"}, default "index"
        "index" keeps the given order. "diagonal" puts the features on which the views agree best first. "cluster" puts
        related features side by side: the leaves of average linkage on the distance ``1 - (C + C') / 2``.

    Returns
    -------
    ndarray of shape (d,)
        A permutation: row and column p of the heatmap are feature ``order[p]``.

    Raises
    ------
    ValueError
        If `c` is not square, has fewer than 2 rows or an entry that is not finite, or if `by` is unknown.

    Examples
    --------
    >>> feature_order([[0.1, 0.0], [0.0, 0.9]], "diagonal")
    array([1, 0])
    """
    c = square_matrix(c)
    check_choice(by, ORDERS, "order")
    if by == "index":
        return np.arange(len(c))
    if by == "diagonal":
        return np.argsort(-np.diagonal(c), kind="stable")
    distance = np.clip(1 - (c + c.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average")).astype(np.int64)


def square_matrix(c: ArrayLike) -> np.ndarray:
    """`c` as a float64 array, checked to be finite and (d, d) with d at least 2."""
    c = to_array(c).astype(np.float64)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) < 2:
        raise ValueError(f"c must have shape (d, d) with d at least 2, got {c.shape}")
    if not np.isfinite(c).all():
        raise ValueError(f"c must be finite, {(~np.isfinite(c)).sum()} of its {c.size} entries are not")
    return c


def column_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (1/n) of the columns of `z` `(n, d)` in float64; the variance of a constant column is 0."""
    if len(z) < 2:
        raise ValueError(f"needs at least 2 rows, got shape {tuple(z.shape)}")
    zero = torch.zeros((), dtype=torch.float64)
    mean = sum((block.sum(dim=0) for block in row_blocks(z)), zero) / len(z)
    variance = sum(((block - mean).square().sum(dim=0) for block in row_blocks(z)), zero) / len(z)
    return mean, variance.masked_fill(_constant_columns(mean, variance.sqrt(), z.dtype), 0)


def row_blocks(z: Tensor) -> Iterator[Tensor]:
    """The rows of `z` `(n, d)` in float64, in blocks of limited memory."""
    return (block.double() for block in z.split(max(1, _BLOCK_ELEMENTS // z.shape[1])))


def l2_normalize(name: str, x: Tensor) -> Tensor:
    """The rows of `x` `(n, p)` scaled to length 1; ValueError for a row of zeros."""
    # Dividing by the largest entry first keeps the squares of tiny and huge features in the float range.
    largest = x.abs().amax(dim=1, keepdim=True)
    zero = (largest[:, 0] == 0).nonzero()[:, 0]
    if len(zero):
        raise ValueError(f"{name} has {len(zero)} zero rows, which have no direction; the first is row {zero[0]}")
    return F.normalize(x / largest, dim=1)
