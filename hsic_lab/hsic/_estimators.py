"""Estimators of HSIC: primal, dual and tiled routes, and a stream."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsic_lab._checks import check_choice, no_autocast
from hsic_lab.kernels import Kernel, Linear

TILE_ROWS = 512  # two float32 tiles and their intermediate results fit a core's second-level cache
DUAL_ROWS = 2048  # the six or so (n, n) arrays of the dual route take at most 100 MB in float32


def hsic(
    x: Tensor,
    y: Tensor,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "biased",
    route: str = "auto",
    block_size: int | None = None,
) -> Tensor:
    """Hilbert-Schmidt Independence Criterion between two samples, a measure of their dependence.

    HSIC is the squared distance (MMD) between the joint distribution of x and y and the product of their marginal
    distributions. With characteristic kernels it is 0 only if x and y are independent. With Gram matrices K, L and
    ``H = I - 11'/n`` the biased estimate is ``tr(K H L H) / n^2``. With linear kernels on standardized columns this is
    ``||C||_F^2``, the squared norm of the cross-correlation matrix, which ties HSIC to Barlow Twins.

    Parameters
    ----------
    x, y : Tensor of shape (n, p) and (n, q)
        Samples whose rows belong together. NumPy arrays and vectors (one column) are accepted.
    kernel_x, kernel_y : Kernel, optional
        One kernel for each sample; None means `Linear`. A median rule is fitted once, on all rows. Class labels take
        `Delta`.
    estimator : {"biased", "unbiased", "block"}, default "biased"
        - "biased" is never negative and exceeds 0 by about 1/n for independent samples. Use it as a loss and for
          identities. Multiply by ``(n / (n - 1))^2`` for the convention ``tr(K H L H) / (n - 1)^2``.
        - "unbiased" has mean 0 for independent samples, so it is negative about half of the time there. Use it to
          compare different n and to average over batches. With the diagonals of K and L set to 0 it is
          ``[tr(K L) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K L1] / (n (n - 3))``, for n >= 4.
        - "block" is the mean of the unbiased estimate over ``n // block_size`` blocks of consecutive rows, which use
          all rows in O(n block_size) time. Use it where n^2 is too much; shuffle ordered rows first.
    route : {"auto", "primal", "dual", "tiled"}, default "auto"
        Three exact ways to the same number.

        - "primal" forms the (p, q) cross-covariance in O(n p q) time, for two linear kernels.
        - "dual" forms the (n, n) Gram matrices in O(n^2 (p + q)) time and O(n^2) memory.
        - "tiled" visits tiles of the Gram matrices in the same time and O(n) memory, gradients included.
        - "auto" takes primal if ``p q <= n (p + q)`` and it applies, else dual up to 2048 rows, else tiled.
    block_size : int, optional
        Rows of a block (estimator "block", at least 4) or of a tile (route "tiled", default 512).

    Returns
    -------
    Tensor of shape ()
        The estimate; differentiable in `x`, `y` and bandwidths. A constant sample has HSIC 0.

    Raises
    ------
    ValueError, TypeError
        If the samples do not match, hold NaN or too few rows, or are labels without `Delta`, or if a name is unknown.

    References
    ----------
    Gretton et al. (2005), "Measuring Statistical Dependence with Hilbert-Schmidt Norms" (biased).
    Song et al. (2012), "Feature Selection via Dependence Maximization", equation 5 (unbiased).
    Zhang et al. (2018), "Large-Scale Kernel Methods for Independence Testing" (block).

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.kernels import Gaussian
    >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    >>> [round(hsic(x, x**2, k, k).item(), 4) for k in (None, Gaussian())]  # uncorrelated, but dependent
    [0.0, 0.0318]
    """
    check_choice(estimator, ("biased", "unbiased", "block"), "estimator")
    kernel_x, kernel_y = kernel_x or Linear(), kernel_y or Linear()
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    if estimator == "block" and not 4 <= (block_size or 0) <= len(x):
        raise ValueError(f"the block estimator needs block_size between 4 and the {len(x)} rows, got {block_size}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    check_choice(route, ("auto", "primal", "dual", "tiled"), "route")
    if route == "primal" and not _linear(kernel_x, kernel_y):
        raise ValueError(f"the primal route needs two linear kernels, got {kernel_x!r} and {kernel_y!r}")
    with no_autocast(x):
        # HSIC does not depend on the origin of a linear kernel, but its rounding error does.
        x = x - x.mean(dim=0) if isinstance(kernel_x, Linear) else x
        y = y - y.mean(dim=0) if isinstance(kernel_y, Linear) else y
        kernel_x, kernel_y = kernel_x.fit(x), kernel_y.fit(y)
        if estimator == "block" and block_size:
            count = len(x) // block_size
            blocks = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
            values = (_exact(*block, kernel_x, kernel_y, True, route, None) for block in blocks)
            return sum(values, torch.zeros(())) / count
        return _exact(x, y, kernel_x, kernel_y, estimator == "unbiased", route, block_size)


def paired_samples(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, at_least: int) -> tuple[Tensor, Tensor]:
    """Two samples of equal length, as their kernels accept them; the narrower floating dtype is raised to the wider."""
    x, y = kernel_x.samples(x, "x"), kernel_y.samples(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same number of rows, got {len(x)} and {len(y)}")
    if len(x) < at_least:
        raise ValueError(f"needs at least {at_least} rows, got {len(x)}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    if x.is_floating_point() and y.is_floating_point():
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    return x, y


def center(gram: Tensor) -> Tensor:
    """Center Gram matrices, ``H K H`` with ``H = I - 11'/n``, (..., n, n) -> (..., n, n): rows and columns sum to 0."""
    rows, columns = gram.mean(dim=-1, keepdim=True), gram.mean(dim=-2, keepdim=True)
    return gram - rows - columns + rows.mean(dim=-2, keepdim=True)


def zero_diagonal(gram: Tensor) -> Tensor:
    """A copy of `gram` `(n, n)` with 0 on the diagonal; differentiable."""
    return gram - gram.diagonal().diag_embed()


def from_sums(trace: Tensor, total_x: Tensor, total_y: Tensor, cross: Tensor, n: int, unbiased: bool) -> Tensor:
    """HSIC from ``tr K L``, ``1'K1``, ``1'L1`` and ``1'K L1``; K and L without diagonals for the unbiased estimator."""
    if unbiased:
        return (trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))
    return (trace + total_x * total_y / n**2 - 2 / n * cross) / n**2


def _linear(*kernels: Kernel) -> bool:
    return all(isinstance(kernel, Linear) for kernel in kernels)


def _exact(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, route: str, block_size: int | None
) -> Tensor:
    """Either estimator by one route, for checked samples and fitted kernels."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    if route == "auto":
        cheap = _linear(kernel_x, kernel_y) and p * q <= n * (p + q)
        route = "primal" if cheap else "dual" if n <= DUAL_ROWS else "tiled"
    if route == "primal":
        if not unbiased:
            return (x.T @ y / n).square().sum()
        diagonal_x, diagonal_y = x.square().sum(dim=1), y.square().sum(dim=1)
        trace = (x.T @ y).square().sum() - diagonal_x @ diagonal_y
        rows_x, rows_y = x @ x.sum(dim=0) - diagonal_x, y @ y.sum(dim=0) - diagonal_y
        return from_sums(trace, rows_x.sum(), rows_y.sum(), rows_x @ rows_y, n, unbiased)
    dtype = x.dtype if x.is_floating_point() else y.dtype if y.is_floating_point() else torch.get_default_dtype()
    if route == "tiled":
        return _tiled(x, y, kernel_x, kernel_y, unbiased, block_size or TILE_ROWS).to(dtype)
    gram_x, gram_y = kernel_x.gram(x, None).to(dtype), kernel_y.gram(y, None).to(dtype)
    if not unbiased:
        # Centering one Gram would do; centering both keeps large constants of a kernel out of the rounding error.
        return (center(gram_x) * center(gram_y)).mean()
    gram_x, gram_y = zero_diagonal(gram_x), zero_diagonal(gram_y)
    rows_x, rows_y = gram_x.sum(dim=1), gram_y.sum(dim=1)
    return from_sums((gram_x * gram_y).sum(), rows_x.sum(), rows_y.sum(), rows_x @ rows_y, n, unbiased)


def _tiled(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, size: int) -> Tensor:
    """Either estimator from tiles of `size` rows: O(n^2 (p + q)) time, O(size^2 + n) memory.

    The Grams are symmetric, so only pairs of row blocks with i <= j are visited. The backward pass computes each tile
    again instead of keeping it. Tiles have the dtype of the samples; sums over tiles are float64.
    """
    blocks_x, blocks_y = x.split(size), y.split(size)
    trace = x.new_zeros((), dtype=torch.float64)
    rows_x = [trace] * len(blocks_x)
    rows_y = list(rows_x)

    def tile(x_i: Tensor, x_j: Tensor | None, y_i: Tensor, y_j: Tensor | None) -> tuple[Tensor, ...]:
        with no_autocast(x):
            k, l = kernel_x.gram(x_i, x_j), kernel_y.gram(y_i, y_j)
            if unbiased and x_j is None:
                k, l = zero_diagonal(k), zero_diagonal(l)
            sums = [k.sum(dim=1), l.sum(dim=1), (k * l).sum(dim=1)]
            if x_j is not None:
                sums += [k.sum(dim=0), l.sum(dim=0)]
        return tuple(s.double() for s in sums)

    for i in range(len(blocks_x)):
        for j in range(i, len(blocks_x)):
            other = (None, None) if i == j else (blocks_x[j], blocks_y[j])
            pair = (blocks_x[i], other[0], blocks_y[i], other[1])
            recompute = torch.is_grad_enabled()
            sums = checkpoint(tile, *pair, use_reentrant=False, preserve_rng_state=False) if recompute else tile(*pair)
            rows_x[i], rows_y[i] = rows_x[i] + sums[0], rows_y[i] + sums[1]
            trace = trace + sums[2].sum() * (1 if i == j else 2)
            if i != j:
                rows_x[j], rows_y[j] = rows_x[j] + sums[3], rows_y[j] + sums[4]
    all_x, all_y = torch.cat(rows_x), torch.cat(rows_y)
    return from_sums(trace, all_x.sum(), all_y.sum(), all_x @ all_y, len(x), unbiased)


class CenteredRows:
    """Rows minus their mean: in float64, in their own dtype, and their squared lengths."""

    def __init__(self, x: Tensor) -> None:
        # Subtracting the first row before the mean makes a constant sample exactly 0.
        first = x[0].double()
        self.rows = x.double() - first
        offset = self.rows.mean(dim=0)
        self.rows -= offset
        self.mean = first + offset
        self.narrow = self.rows.to(x.dtype)
        self.squares = torch.linalg.vecdot(self.rows, self.rows)


@dataclass(frozen=True)
class _Moments:
    """Sums over n rows of x `(p,)` and y `(q,)`, both minus their means, with a = |x|^2 and b = |y|^2."""

    n: int
    mean_x: Tensor
    mean_y: Tensor
    a: Tensor  # sum of a
    b: Tensor
    ab: Tensor
    bx: Tensor  # (p,)
    ay: Tensor  # (q,)
    xy: Tensor  # (p, q)

    @classmethod
    def of(cls, x: CenteredRows, y: CenteredRows) -> "_Moments":
        xy = (x.narrow.T @ y.narrow).double()
        bx, ay = y.squares @ x.rows, x.squares @ y.rows
        squares = x.squares.sum(), y.squares.sum(), x.squares @ y.squares
        return cls(len(x.rows), x.mean, y.mean, *squares, bx, ay, xy)

    def shifted(self, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The sums (a, b, ab, bx, ay, xy) of x + u and y + v; terms with the means, which are 0, are left out."""
        uu, vv = u @ u, v @ v
        a, b = self.a + self.n * uu, self.b + self.n * vv
        ab = self.ab + 2 * (self.bx @ u + self.ay @ v) + 4 * (u @ self.xy @ v) + self.a * vv + b * uu
        bx = self.bx + 2 * (self.xy @ v) + b * u
        ay = self.ay + 2 * (u @ self.xy) + a * v
        return a, b, ab, bx, ay, self.xy + self.n * torch.outer(u, v)

    def __add__(self, other: "_Moments") -> "_Moments":
        """The moments of both sets of rows about their joint mean (Chan, Golub and LeVeque 1983)."""
        n = self.n + other.n
        mean_x = self.mean_x + (other.mean_x - self.mean_x) * (other.n / n)
        mean_y = self.mean_y + (other.mean_y - self.mean_y) * (other.n / n)
        both = (part.shifted(part.mean_x - mean_x, part.mean_y - mean_y) for part in (self, other))
        return _Moments(n, mean_x, mean_y, *(left + right for left, right in zip(*both, strict=True)))


class StreamingLinearHSIC:
    """Linear HSIC of samples that arrive in chunks, exact, in O(p q) memory.

    The result equals `hsic` of all rows, for chunks of any size in any order, also if the mean drifts or is far from 0.
    Sums are float64; only the products of two chunks are formed in the dtype of the rows. No gradient flows.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> stream = StreamingLinearHSIC()
    >>> for rows in (slice(0, 10), slice(10, 60)):
    ...     stream.update(x[rows], y[rows])
    >>> torch.allclose(stream.compute("unbiased"), hsic(x, y, estimator="unbiased"))
    True
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._moments: _Moments | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows (n, p) and (n, q), n at least 1. Raises ValueError or TypeError as `hsic`."""
        x, y = (z.detach() for z in paired_samples(x, y, Linear(), Linear(), at_least=1))
        with no_autocast(x):
            self._add(CenteredRows(x), CenteredRows(y))

    def _add(self, x: CenteredRows, y: CenteredRows) -> None:
        chunk = _Moments.of(x, y)
        if self._moments is not None and self._moments.xy.shape != chunk.xy.shape:
            before, now = tuple(self._moments.xy.shape), tuple(chunk.xy.shape)
            raise ValueError(f"x and y had {before} columns in the chunks before, now {now}")
        self._moments = chunk if self._moments is None else self._moments + chunk

    def compute(self, estimator: str = "biased") -> Tensor:
        """HSIC of all rows so far, "biased" or "unbiased": a float64 tensor of shape ().

        Raises ValueError for fewer than 2 rows (unbiased: 4).
        """
        unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
        m, least = self._moments, 4 if unbiased else 2
        if m is None or m.n < least:
            raise ValueError(f"needs at least {least} rows, got {0 if m is None else m.n}")
        n, total = m.n, m.xy.square().sum()
        if not unbiased:
            return total / n**2
        # Song et al. (2012), equation 5. Rows are centered, so the row sums of the Grams without diagonals are -a, -b.
        return (total - m.ab * (n / (n - 2)) + m.a * m.b / ((n - 1) * (n - 2))) / (n * (n - 3))
