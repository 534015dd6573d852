"""Standardize a batch and cross-correlate two views of it: the matrix C that everything here is about."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab._checks import at_least_float32, check_choice, check_views, no_autocast

# A column whose spread is below this many units in the last place of its mean varies by rounding alone.
ROUNDING_ULPS = 4


def standardize(z: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1 over the batch, `(n, d) -> (n, d)`, in float32 or better.

    `(z - mean) / std` with the biased `std = sqrt(sum (z - mean)^2 / n)`, so that identical views correlate to
    exactly 1 at every n. A dead column (constant up to rounding) has no correlation with anything: it becomes 0 and
    receives the gradient 0. Rescaling a column changes nothing, as
    long as its squares stay in the range of the dtype. Differentiable once.
    Raises ValueError or TypeError unless `z` is a floating `(n, d)` with n >= 2.
    """
    check_views(z, z)
    if len(z) < 2:
        raise ValueError(f"standardizing needs at least 2 rows, got shape {tuple(z.shape)}")
    with no_autocast(z):
        return _Standardize.apply(at_least_float32(z))


def standardize_forward(z: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized columns of `z` `(n, d)`, and the factor `(d,)` that scaled them: 0 for a dead column."""
    mean = _column_mean(z)
    x = z - mean
    # Far from the origin the mean itself is rounded; what is left of it is small and can be had exactly.
    x -= _column_mean(x)
    variance = _column_mean(x * x)
    std = variance.sqrt()
    dead = std <= mean.abs_().mul_(ROUNDING_ULPS * torch.finfo(z.dtype).eps)
    # std / variance, not 1 / std: where the square overflowed, NaN and not a silent 0.
    scale = (std / variance).masked_fill_(dead, 0)
    return x.mul_(scale), scale


def standardize_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to z, in the memory of that with respect to x."""
    along = _column_mean(x * gradient)
    return gradient.sub_(_column_mean(gradient)).addcmul_(x, along, value=-1).mul_(scale)


def _column_mean(z: Tensor) -> Tensor:
    # Half the time of z.mean(dim=0) on small batches, where calls cost more than arithmetic.
    return z.sum(dim=0).mul_(1 / len(z))


class _Standardize(Function):
    # Written out because torch's reductions over rows differ in speed by a factor of 100 (var_mean is the slow one)
    # and because autograd would keep and revisit every intermediate.
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
    """Correlation of every feature of view A with every feature of view B, `(n, d), (n, d) -> (d, d)`.

    `C = X' Y / n` with `X = standardize(z_a)`, `Y = standardize(z_b)`: Zbontar et al. 2021 (arXiv 2103.03230), eq. 2.
    """
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    with no_autocast(z_a):
        return standardize(z_a.to(dtype)).T @ standardize(z_b.to(dtype)) / len(z_a)


ORDERS = ("index", "diagonal", "cluster")


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
        return cls(
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


def expected_squared_norm(n: int, d: int) -> float:
    """Expected sum of squared off-diagonal entries of C for unrelated features, ``d (d - 1) / (n - 1)``.

    The correlation of two independent columns, one of them normal, has mean 0 and variance ``1 / (n - 1)``.
    """
    if n < 2 or d < 2:
        raise ValueError(f"needs at least 2 pairs and 2 features, got n = {n} and d = {d}")
    return d * (d - 1) / (n - 1)


def off_diagonal(c: np.ndarray) -> np.ndarray:
    """The d(d-1) entries beside the diagonal, row by row."""
    # Without its first entry the matrix is d - 1 rows of d other entries and one diagonal one.
    return np.ascontiguousarray(c).ravel()[1:].reshape(len(c) - 1, len(c) + 1)[:, :-1].ravel()


def spectrum(c: ArrayLike) -> np.ndarray:
    """Singular values of C, largest first."""
    return torch.linalg.svdvals(torch.from_numpy(square_matrix(c)).float()).double().numpy()


def feature_order(c: ArrayLike, by: str = "index") -> np.ndarray:
    """A permutation of the features: row and column p of the image are feature `order[p]`.

    "index"     as they come
    "diagonal"  the features that agree best across the views first; equal ones as they come
    "cluster"   related features side by side: the leaves of average linkage on the distance `1 - S_ij`,
                `S = (C + C') / 2` being what two features share across the views
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


def to_array(x: ArrayLike) -> np.ndarray:
    """A tensor on any device, or anything array-like, as a NumPy array."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


_BLOCK_ELEMENTS = 1 << 23  # of a block in float64: 64 MiB


def column_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (1/n) of the columns of checked samples `(n, d)`, float64; the variance of a dead one is 0."""
    if len(z) < 2:
        raise ValueError(f"needs at least 2 rows, got shape {tuple(z.shape)}")
    mean = sum(block.sum(dim=0) for block in row_blocks(z)) / len(z)
    variance = sum((block - mean).square().sum(dim=0) for block in row_blocks(z)) / len(z)
    dead = variance.sqrt() <= mean.abs() * (ROUNDING_ULPS * torch.finfo(z.dtype).eps)
    return mean, variance.masked_fill(dead, 0)


def row_blocks(z: Tensor) -> Iterator[Tensor]:
    """The rows of `z` `(n, d)` in float64, a block at a time."""
    return (block.double() for block in z.split(max(1, _BLOCK_ELEMENTS // z.shape[1])))


def unit_rows(name: str, x: Tensor) -> Tensor:
    """The rows of `x` `(n, p)` over their lengths; ValueError for a zero row, which has no direction."""
    # The largest entry goes first: the squares of tiny or huge features would leave the float range.
    largest = x.abs().amax(dim=1, keepdim=True)
    zero = (largest[:, 0] == 0).nonzero()[:, 0]
    if len(zero):
        raise ValueError(f"{name} has {len(zero)} zero rows without direction, first row {zero[0]}")
    return F.normalize(x / largest, dim=1)
