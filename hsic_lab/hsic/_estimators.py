"""Estimators of HSIC: primal, dual and tiled routes, and a stream."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsic_lab._checks import (  # isort: skip
    check_choice, check_integer, default_dtype, inner_products, is_constant, matmul, no_autocast, row_product,
)  # fmt: skip

from hsic_lab.kernels import (  # isort: skip
    Delta, DistanceInduced, Gaussian, InverseMultiquadric, Kernel, Laplace, Linear, Polynomial, Product, Sum, kernel_or,
    middle, require_finite,
)  # fmt: skip

TILE_ROWS = 512  # two float32 tiles and their intermediate results fit a core's second-level cache
DUAL_ROWS = 2048  # the six or so (n, n) arrays of the dual route take at most 100 MB in float32


def hsic(
    x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "biased",
    route: str = "auto", block_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Hilbert-Schmidt Independence Criterion between two samples, a measure of their dependence.

    HSIC is the squared distance (MMD) between the joint distribution of x and y and the product of their marginal
    distributions. With characteristic kernels it is 0 only if x and y are independent. With Gram matrices K, L and
    ``H = I - 11'/n`` the biased estimate is ``tr(K H L H) / n^2``. With linear kernels on standardized columns this is
    ``||C||_F^2``, the squared norm of the cross-correlation matrix, which ties HSIC to Barlow Twins. A constant sample
    has HSIC 0. The result is a tensor of shape (), differentiable in `x`, `y` and bandwidths.

    Parameters
    ----------
    x, y : Tensor of shape (n, p), (n, q)
        Samples whose rows belong together. NumPy arrays and vectors (one column) are accepted. Samples on Apple's MPS,
        which lacks float64, are moved to the CPU.
    kernel_x, kernel_y : Kernel, optional
        None means `Linear`; class labels take `Delta`. A median rule is fitted on all rows.
    estimator : {"biased", "unbiased", "block"}, default "biased"
        "biased" (Gretton et al. 2005) is never negative, and of order 1/n for independent samples: use it as a loss.
        Times ``(n / (n - 1))^2`` it is ``tr(K H L H) / (n - 1)^2``. "unbiased" (Song et al. 2012, equation 5, n >= 4)
        has mean 0 for independent samples: use it to compare different n and to average over batches. "block" (Zhang et
        al. 2018) is the mean of "unbiased" over ``n // block_size`` blocks, O(n block_size) time: shuffle first.
    route : {"auto", "primal", "dual", "tiled"}, default "auto"
        Exact ways to the same number: "primal" by the (p, q) cross-covariance of linear kernels in O(n p q) time,
        "dual" by the (n, n) Gram matrices, "tiled" by tiles of them in O(n) memory, gradients included. "auto" takes
        primal if it applies and ``p q <= n (p + q)``, else dual up to 2048 rows, else tiled.
    block_size : int, optional
        Rows of a block (estimator "block", at least 4) or of a tile (route "tiled", default 512).

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.kernels import Gaussian
    >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    >>> [round(hsic(x, x**2, k, k).item(), 4) for k in (None, Gaussian())]  # uncorrelated, but dependent
    [0.0, 0.0318]
    """
    check_choice(estimator, ("biased", "unbiased", "block"), "estimator")
    kernel_x, kernel_y = kernel_or(Linear(), kernel_x, "kernel_x"), kernel_or(Linear(), kernel_y, "kernel_y")
    block_size = None if block_size is None else check_integer("block_size", block_size, 1)
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    if estimator == "block" and not 4 <= (block_size or 0) <= len(x):
        raise ValueError(f"the block estimator needs block_size between 4 and the {len(x)} rows, got {block_size}")
    check_choice(route, ("auto", "primal", "dual", "tiled"), "route")
    dtype = next((z.dtype for z in (x, y) if z.is_floating_point()), default_dtype())
    with no_autocast(x):
        (kernel_x, x), (kernel_y, y) = fit_at_origin(kernel_x, x), fit_at_origin(kernel_y, y)
        if estimator == "block" and block_size:
            count = len(x) // block_size
            blocks = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
            value = torch.stack([exact(*block, kernel_x, kernel_y, True, route, TILE_ROWS) for block in blocks]).mean()
        else:
            value = exact(x, y, kernel_x, kernel_y, estimator == "unbiased", route, block_size or TILE_ROWS)
        return require_finite(value.to(dtype), kernel_x, kernel_y)


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
        x, y = (z.to(torch.promote_types(x.dtype, y.dtype)) for z in (x, y))
    return x, y


def at_origin(kernel: Kernel, x: Tensor) -> Tensor:
    """`x` minus its `middle` where only the rounding of HSIC depends on the origin, in float64 for `Polynomial`."""
    dependence, origin = _origin_dependence(kernel), _rough_middle if isinstance(kernel, Linear) else middle
    return x - origin(x) if dependence == 2 else x.double() if dependence == 3 else x


def fit_at_origin(kernel: Kernel, x: Tensor, name: str = "this sample") -> tuple[Kernel, Tensor]:
    """The kernel fitted to `at_origin`, and that; ValueError if its powers of the sample have no digits."""
    x = at_origin(kernel, x)
    if _origin_dependence(kernel) == 3 and is_constant(x):
        return kernel.fit(x), x - x.detach()  # HSIC is 0 at any origin, here without rounding
    return fitted_kernel(kernel, x, name), x


def fitted_kernel(kernel: Kernel, x: Tensor, name: str = "this sample") -> Kernel:
    """The kernel fitted to `x`; ValueError if its powers of the sample have no digits."""
    kernel = kernel.fit(x)
    if _origin_dependence(kernel) == 3 and not is_constant(some := x.detach()[:: len(x) // 64 + 1].double()):
        require_digits(center(gram := kernel.gram(some, None)), gram, kernel, name)
    return kernel


def _rough_middle(x: Tensor) -> Tensor:
    """Median of medians of three, over 27 rows: tens of times faster than `middle`, and near enough for products."""
    rows = x.detach()[torch.arange(27, device=x.device) * len(x) // 27]
    for _ in range(3):
        a, b, c = rows.chunk(3)
        rows = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    return rows[0]


def _origin_dependence(kernel: Kernel) -> int:
    """0: functions of ``x - x'``, 1: `Delta`, which a shift may round, 2: `Linear` and such, 3: powers, 4: others."""
    if isinstance(kernel, Sum | Product):
        low, high = sorted(map(_origin_dependence, (kernel.first, kernel.second)))
        return 3 if high == 2 and (low == 1 or isinstance(kernel, Product)) else high
    if isinstance(kernel, Gaussian | Laplace | InverseMultiquadric | Delta):
        return int(isinstance(kernel, Delta))
    return 2 if isinstance(kernel, Linear | DistanceInduced) else 3 if isinstance(kernel, Polynomial) else 4


def center(gram: Tensor) -> Tensor:
    """Center Gram matrices, ``H K H`` with ``H = I - 11'/n``, (..., n, n) -> (..., n, n): rows and columns sum to 0."""
    rows, columns = gram.mean(dim=-1, keepdim=True), gram.mean(dim=-2, keepdim=True)
    return (gram - rows).sub_(columns - rows.mean(dim=-2, keepdim=True))  # in place: one array of the size of gram


def require_digits(centered: Tensor, gram: Tensor, kernel: Kernel, name: str = "this sample") -> Tensor:
    """The centered Gram itself; ValueError if it has fewer than three digits, because the entries of `gram` cancel."""
    if float(centered.detach().abs().max()) <= 1e3 * torch.finfo(gram.dtype).eps * float(gram.detach().abs().max()):
        raise ValueError(f"{kernel!r} is constant on {name} up to rounding error: standardize the sample")
    return centered


def zero_diagonal(gram: Tensor) -> Tensor:
    """A copy of `gram` `(n, n)` with 0 on the diagonal; differentiable."""
    return gram.diagonal_scatter(gram.new_zeros(len(gram)))


def rough_rows(kernel: Kernel, x: Tensor) -> Tensor:
    """r `(n,)`: Grams minus ``r_i + r_j`` have the same HSIC, but no large rows or constant cancel in `from_sums`."""
    some = slice(None, None, len(x) // 16 + 1)
    gram = kernel.gram(x.detach(), x.detach()[some])
    rows, largest = gram.median(dim=1).values, gram.abs().max()  # a mean would spread an outlier to all rows
    return rows - rows[some].median() / 2 + largest - largest  # with the last digit of entries: differences are exact


def _trace_of_pairs(x: Tensor, y: Tensor) -> Tensor:
    """``sum_{i != j} <x_i, x_j> <y_i, y_j>`` in O(n p q), without the diagonal that ``||X'Y||^2`` would cancel."""
    size = max(64, x.shape[1] * y.shape[1] // (x.shape[1] + y.shape[1]))
    trace, before = x.new_zeros(()), x.new_zeros(x.shape[1], y.shape[1])
    for a, b in zip(x.split(size), y.split(size), strict=True):
        cross = matmul(a.T, b)
        trace = trace + (zero_diagonal(inner_products(a)) * inner_products(b)).sum() + 2 * (before * cross).sum()
        before = before + cross
    return trace


def from_sums(trace: Tensor, total_x: Tensor, total_y: Tensor, cross: Tensor, n: int, unbiased: bool) -> Tensor:
    """HSIC from ``tr K L``, ``1'K1``, ``1'L1`` and ``1'K L1``; K and L without diagonals for the unbiased estimator."""
    if unbiased:
        return (trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))
    return (trace + total_x * total_y / n**2 - 2 / n * cross) / n**2


def exact(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, route: str, size: int) -> Tensor:
    """Either estimator by one route, for checked samples and fitted kernels."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    linear = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear)
    if route == "primal" and not linear:
        raise ValueError(f"the primal route needs two linear kernels, got {kernel_x!r} and {kernel_y!r}")
    if route == "auto":
        route = "primal" if linear and p * q <= n * (p + q) else "dual" if n <= DUAL_ROWS else "tiled"
    if route == "primal":
        if not unbiased:
            return (row_product(x - x.mean(dim=0), y - y.mean(dim=0)) / n).square().sum()
        trace = _trace_of_pairs(x, y)
        # The sum of the other rows, without the digits that an outlier would cost in float32.
        rows_x, rows_y = ((z * (z.sum(dim=0, dtype=torch.float64) - z)).sum(dim=1) for z in (x, y))
    elif route == "tiled":
        trace, rows_x, rows_y = _tiled(x, y, kernel_x, kernel_y, unbiased, size)
    else:
        gram_x, gram_y = kernel_x.gram(x, None), kernel_y.gram(y, None)
        gram_x, gram_y = (gram.to(torch.promote_types(gram_x.dtype, gram_y.dtype)) for gram in (gram_x, gram_y))
        if not unbiased:
            # Centering one Gram would do; centering both keeps large constants of a kernel out of the rounding error.
            return (center(gram_x) * center(gram_y)).mean()
        sides = (gram_x, rough_rows(kernel_x, x)), (gram_y, rough_rows(kernel_y, y))
        gram_x, gram_y = ((gram - rows[:, None] - rows).fill_diagonal_(0) for gram, rows in sides)
        trace, rows_x, rows_y = (gram_x * gram_y).sum(), gram_x.sum(dim=1), gram_y.sum(dim=1)
    return from_sums(trace, rows_x.sum(), rows_y.sum(), (rows_x * rows_y).sum(), n, unbiased)


def _tiled(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, size: int) -> tuple[Tensor, ...]:
    """``tr K L``, K1 and L1 in float64 from the tiles on and above the diagonal; the backward pass forms them again."""
    blocks_x, blocks_y = x.split(size), y.split(size)
    trace = x.new_zeros((), dtype=torch.float64)
    rows_x, rows_y = [trace] * len(blocks_x), [trace] * len(blocks_x)
    rough_x, rough_y = rough_rows(kernel_x, x).split(size), rough_rows(kernel_y, y).split(size)

    def tile(x_i: Tensor, x_j: Tensor | None, y_i: Tensor, y_j: Tensor | None, i: int, j: int) -> tuple[Tensor, ...]:
        k = kernel_x.gram(x_i, x_j) - rough_x[i][:, None] - rough_x[j]
        l = kernel_y.gram(y_i, y_j) - rough_y[i][:, None] - rough_y[j]
        if unbiased and x_j is None:
            k, l = zero_diagonal(k), zero_diagonal(l)
        return tuple(s.double() for s in (k.sum(dim=1), l.sum(dim=1), (k * l).sum(dim=1), k.sum(dim=0), l.sum(dim=0)))

    for i in range(len(blocks_x)):
        for j in range(i, len(blocks_x)):
            x_j, y_j = (None, None) if i == j else (blocks_x[j], blocks_y[j])
            given = blocks_x[i], x_j, blocks_y[i], y_j, i, j
            sums = checkpoint(tile, *given, use_reentrant=False, preserve_rng_state=False)
            rows_x[i], rows_y[i] = rows_x[i] + sums[0], rows_y[i] + sums[1]
            trace = trace + sums[2].sum() * (1 if i == j else 2)
            if i != j:
                rows_x[j], rows_y[j] = rows_x[j] + sums[3], rows_y[j] + sums[4]
    return trace, torch.cat(rows_x), torch.cat(rows_y)


class CenteredRows:
    """Rows minus their mean: in float64, in their own dtype, and their squared lengths."""

    def __init__(self, x: Tensor) -> None:
        # Subtracting the first row before the mean makes a constant sample exactly 0.
        first = x[0].double()
        rows = x.double() - first
        offset = rows.mean(dim=0)
        self.rows, self.mean = rows - offset, first + offset
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
    """

    _moments: _Moments | None = None

    def reset(self) -> None:
        """Forget all rows."""
        self._moments = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows (n, p) and (n, q), n at least 1."""
        x, y = (z.detach() for z in paired_samples(x, y, Linear(), Linear(), at_least=1))
        with no_autocast(x):
            self._add(CenteredRows(x), CenteredRows(y))

    def _add(self, x: CenteredRows, y: CenteredRows) -> None:
        xy = row_product(x.narrow, y.narrow).double()
        sums = x.squares.sum(), y.squares.sum(), x.squares @ y.squares, y.squares @ x.rows, x.squares @ y.rows
        chunk = _Moments(len(x.rows), x.mean, y.mean, *sums, xy)
        if self._moments is not None and self._moments.xy.shape != chunk.xy.shape:
            before, now = tuple(self._moments.xy.shape), tuple(chunk.xy.shape)
            raise ValueError(f"x and y had {before} columns in the chunks before, now {now}")
        self._moments = chunk if self._moments is None else self._moments + chunk

    def compute(self, estimator: str = "biased") -> Tensor:
        """HSIC of all rows so far, "biased" or "unbiased": a float64 tensor of shape ()."""
        unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
        m, least = self._moments, 4 if unbiased else 2
        if m is None or m.n < least:
            raise ValueError(f"needs at least {least} rows, got {0 if m is None else m.n}")
        n, total = m.n, require_finite(m.xy.square().sum(), Linear())
        if not unbiased:
            return total / n**2
        # The rows are centered, so the row sums of the Grams without diagonals are -a and -b.
        return from_sums(total - m.ab, -m.a, -m.b, m.ab, n, unbiased)
