"""A cross-correlation matrix in numbers: its two parts against chance, its spectrum, an order of its features.

`c` is (d, d), rows the features of view A, columns those of view B. ValueError unless d is at least 2 and c finite.
"""
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from hsic_lab.checks import one_of

ORDERS = ("index", "diagonal", "cluster")


@dataclass(frozen=True)
class MatrixSummary:
    """The numbers beside a heatmap of C, made from n pairs.

    diagonal:      mean of C_ii
    off_diagonal:  mean of the other entries; positive semidefinite C with a diagonal of 1 cannot go below `least`
    off_rms:       root mean square of the other entries; `chance_rms` is that of unrelated features, 1/sqrt(n-1)
    redundancy:    sum of the other entries' squares; `noise_floor` is that of unrelated features, d(d-1)/(n-1)
    least:         -1/(d-1)
    total:         1'C1, the sum of all entries: the covariance of the two views' feature sums; below 0 the branches
                   are anti-aligned
    """

    diagonal: float
    off_diagonal: float
    off_rms: float
    redundancy: float
    total: float
    noise_floor: float
    chance_rms: float
    least: float


def summarize(c: ArrayLike, n: int) -> MatrixSummary:
    """The numbers of a matrix C of `n` pairs, n at least 2."""
    c = square_matrix(c)
    floor = noise_floor(n, d := len(c))
    trace, total = np.trace(c), c.sum()
    redundancy = np.square(off_diagonal(c)).sum()
    return MatrixSummary(
        diagonal=trace / d, off_diagonal=(total - trace) / (d * (d - 1)), off_rms=np.sqrt(redundancy / (d * (d - 1))),
        redundancy=redundancy, total=total, noise_floor=floor, chance_rms=(n - 1) ** -0.5, least=-1 / (d - 1),
    )


def noise_floor(n: int, d: int) -> float:
    """What the squares of C's d(d-1) off-diagonal entries sum to on average when no two features are related.

    The correlation of two independent columns, one of them normal, has mean 0 and variance 1/(n-1) at every n.
    """
    if n < 2 or d < 2:
        raise ValueError(f"chance needs at least 2 pairs and 2 features, got n = {n} and d = {d}")
    return d * (d - 1) / (n - 1)


def off_diagonal(c: np.ndarray) -> np.ndarray:
    """The d(d-1) entries beside the diagonal, row by row."""
    # Without its first entry the matrix is d - 1 rows of d other entries and one diagonal one.
    return np.ascontiguousarray(c).ravel()[1:].reshape(len(c) - 1, len(c) + 1)[:, :-1].ravel()


def spectrum(c: ArrayLike) -> np.ndarray:
    """Singular values of C, largest first."""
    return torch.linalg.svdvals(torch.from_numpy(square_matrix(c)).float()).double().numpy()


def feature_order(c: ArrayLike, by: str = "index") -> np.ndarray:
    """A permutation of the features: row and column p of the picture are feature `order[p]`.

    "index"     as they come
    "diagonal"  the features that agree best across the views first; equal ones as they come
    "cluster"   related features side by side: the leaves of average linkage on the distance `1 - S_ij`,
                `S = (C + C') / 2` being what two features share across the views
    """
    c = square_matrix(c)
    one_of(by, ORDERS, "order")
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
