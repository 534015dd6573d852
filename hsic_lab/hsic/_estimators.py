"""HSIC from three sums over the Grams, which tiles of them supply in little memory."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsic_lab._checks import check_choice, no_autocast, paired_samples
from hsic_lab.kernels import Kernel, Linear

# Two float32 tiles of this side, and what is computed on the way to them, stay in a core's second-level cache.
TILE_ROWS = 512


def from_sums(trace: Tensor, total_x: Tensor, total_y: Tensor, cross: Tensor, n: int, unbiased: bool) -> Tensor:
    """Either estimator from `sum K.L`, `1'K1`, `1'L1` and `1'K L 1`; Grams without diagonals for the unbiased one.

    Biased: `[trace + total_x total_y / n^2 - 2/n cross] / n^2`. Unbiased: Song et al. 2012, eq. 5.
    """
    if unbiased:
        return (trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))
    return (trace + total_x * total_y / n**2 - 2 / n * cross) / n**2


def tiled_hsic(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, block_size: int | None = None
) -> Tensor:
    """The estimators of `hsic` on checked samples and fitted kernels, by square tiles of `block_size` rows.

    The Grams are symmetric: of all pairs of row blocks only those with i <= j are visited. Time O(n^2 (p + q)),
    memory O(block_size^2 + n); a backward pass computes each tile again instead of keeping it. Tiles have the dtype
    of the samples, everything summed over tiles is float64.
    """
    n, size = len(x), block_size or TILE_ROWS
    blocks_x, blocks_y = x.split(size), y.split(size)
    rows_x: list[Tensor | int] = [0] * len(blocks_x)
    rows_y = list(rows_x)
    trace: Tensor | int = 0

    def tile(x_i: Tensor, x_j: Tensor | None, y_i: Tensor, y_j: Tensor | None) -> tuple[Tensor, ...]:
        with no_autocast(x):
            k, l = kernel_x.gram(x_i, x_j), kernel_y.gram(y_i, y_j)
            if unbiased and x_j is None:
                k, l = k - k.diagonal().diag_embed(), l - l.diagonal().diag_embed()
            sums = [k.sum(dim=1), l.sum(dim=1), (k * l).sum(dim=1)]
            if x_j is not None:
                sums += [k.sum(dim=0), l.sum(dim=0)]
        return tuple(s.double() for s in sums)

    for i in range(len(blocks_x)):
        for j in range(i, len(blocks_x)):
            pair = (blocks_x[i], blocks_x[j], blocks_y[i], blocks_y[j])
            if i == j:
                pair = (blocks_x[i], None, blocks_y[i], None)
            recompute = torch.is_grad_enabled()
            sums = checkpoint(tile, *pair, use_reentrant=False, preserve_rng_state=False) if recompute else tile(*pair)
            rows_x[i], rows_y[i] = rows_x[i] + sums[0], rows_y[i] + sums[1]
            trace = trace + sums[2].sum() * (1 if i == j else 2)
            if i != j:
                rows_x[j], rows_y[j] = rows_x[j] + sums[3], rows_y[j] + sums[4]
    rows_x, rows_y = torch.cat(rows_x), torch.cat(rows_y)
    return from_sums(trace, rows_x.sum(), rows_y.sum(), rows_x @ rows_y, n, unbiased)


# Up to here the six or so (n, n) arrays of the dual route take at most 100 MB in float32.
DUAL_ROWS = 2048


def hsic(
    x: Tensor,
    y: Tensor,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "biased",
    route: str = "auto",
    block_size: int | None = None,
) -> Tensor:
    """HSIC between the rows of `x` `(n, p)` and of `y` `(n, q)`, a 0-d tensor; a kernel left out is linear.

    With Gram matrices K, L and `H = I - 11'/n`:

    * `"biased"` (Gretton et al. 2005): `tr(K H L H) / n^2`, never negative, the squared distance (MMD) between the
      mean embedding of the n pairs and that of all n^2 permutations. With linear kernels on standardized columns it is
      `||C||_F^2`. For the other convention, `tr(K H L H) / (n - 1)^2`, multiply by `(n / (n - 1))**2`.
    * `"unbiased"` (Song et al. 2012, eq. 5), needs n >= 4: with K~, L~ the Grams with their diagonals set to 0,
      `[tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2/(n-2) 1'K~ L~1] / (n (n-3))`.
      Its mean is 0 at independence, so it is negative about half of the time there.
    * `"block"` (Zhang et al. 2018): the mean of the unbiased estimator over `n // block_size` blocks of consecutive
      rows, of `block_size` rows or, where that does not divide n, a few more; shuffle rows that have an order.

    Exact routes to one number: `"primal"`, for two linear kernels, forms `(p, q)` in O(n p q); `"dual"` forms the
    `(n, n)` Grams in O(n^2 (p + q)); `"tiled"` visits their tiles of `block_size` rows in the same time and O(n)
    memory, gradients included. `"auto"` takes primal where it needs fewer multiplications (p q <= n (p + q)), else
    dual up to 2048 rows, else tiled. Sums are float64 in the tiled route and of the dtype of the samples elsewhere.

    Median rules are fitted once, on all rows. A constant sample has HSIC 0. Differentiable in x, y and bandwidths.
    Raises ValueError or TypeError on samples that do not match, NaN, too few rows, labels without `Delta`, unknown
    names.
    """
    check_choice(estimator, ("biased", "unbiased", "block"), "estimator")
    kernel_x, kernel_y = kernel_x or Linear(), kernel_y or Linear()
    x, y = paired(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    _check_block_size(block_size, estimator, len(x))
    linear = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear)
    if check_choice(route, ("auto", "primal", "dual", "tiled"), "route") == "primal" and not linear:
        raise ValueError(f"the primal route needs two linear kernels, got {kernel_x!r} and {kernel_y!r}")
    with no_autocast(x):
        # Neither estimator depends on the origin of a linear kernel, its rounding error does.
        x = x - x.mean(dim=0) if isinstance(kernel_x, Linear) else x
        y = y - y.mean(dim=0) if isinstance(kernel_y, Linear) else y
        kernel_x, kernel_y = kernel_x.fit(x), kernel_y.fit(y)
        if estimator == "block":
            count = len(x) // block_size
            blocks = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
            return sum(_exact(*block, kernel_x, kernel_y, True, route, None) for block in blocks) / count
        return _exact(x, y, kernel_x, kernel_y, estimator == "unbiased", route, block_size)


def paired(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, at_least: int) -> tuple[Tensor, Tensor]:
    """Two samples whose rows belong together, each as its kernel accepts it; floating dtypes raised to the wider."""
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
    """`H K H` with `H = I - 11'/n`, in O(n^2): rows and columns that sum to 0, `(..., n, n) -> (..., n, n)`."""
    rows, columns = gram.mean(dim=-1, keepdim=True), gram.mean(dim=-2, keepdim=True)
    return gram - rows - columns + rows.mean(dim=-2, keepdim=True)


def _check_block_size(block_size: int | None, estimator: str, n: int) -> None:
    if block_size is None:
        if estimator == "block":
            raise ValueError("the block estimator needs block_size, the number of rows of a block, got None")
    elif estimator == "block" and not 4 <= block_size <= n:
        raise ValueError(f"block_size must be between 4 and the number of rows, {n}, got {block_size}")
    elif block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")


def _exact(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, route: str, block_size: int | None
) -> Tensor:
    n, p, q = len(x), x.shape[1], y.shape[1]
    if route == "auto":
        linear = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear)
        cheap = linear and p * q <= n * (p + q)
        route = "primal" if cheap else "dual" if n <= DUAL_ROWS else "tiled"
    if route == "primal":
        return _primal_unbiased(x, y) if unbiased else _primal_biased(x, y)
    dtype = x.dtype if x.is_floating_point() else y.dtype if y.is_floating_point() else torch.get_default_dtype()
    if route == "tiled":
        return tiled_hsic(x, y, kernel_x, kernel_y, unbiased, block_size).to(dtype)
    gram_x, gram_y = kernel_x.gram(x, None).to(dtype), kernel_y.gram(y, None).to(dtype)
    return _dual_unbiased(gram_x, gram_y) if unbiased else _dual_biased(gram_x, gram_y)


def _dual_biased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    # H is a projection, one centring would do; two keep large constants of a kernel out of the rounding error.
    return (center(gram_x) * center(gram_y)).mean()


def _primal_biased(x: Tensor, y: Tensor) -> Tensor:
    return (x.T @ y / len(x)).square().sum()


def _dual_unbiased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    gram_x = gram_x - gram_x.diagonal().diag_embed()
    gram_y = gram_y - gram_y.diagonal().diag_embed()
    return _song((gram_x * gram_y).sum(), gram_x.sum(dim=1), gram_y.sum(dim=1))


def _primal_unbiased(x: Tensor, y: Tensor) -> Tensor:
    diagonal_x, diagonal_y = x.square().sum(dim=1), y.square().sum(dim=1)
    trace = (x.T @ y).square().sum() - diagonal_x @ diagonal_y
    return _song(trace, x @ x.sum(dim=0) - diagonal_x, y @ y.sum(dim=0) - diagonal_y)


def _song(trace: Tensor, rows_x: Tensor, rows_y: Tensor) -> Tensor:
    return from_sums(trace, rows_x.sum(), rows_y.sum(), rows_x @ rows_y, len(rows_x), unbiased=True)


class _Centered:
    """Rows about their mean in float64, the same in their own dtype, and their squared lengths."""

    def __init__(self, x: Tensor) -> None:
        # About the first row, then about the mean: a constant sample is exactly 0, not rounding.
        first = x[0].double()
        self.rows = x.double() - first
        offset = self.rows.mean(dim=0)
        self.rows -= offset
        self.mean = first + offset
        self.narrow = self.rows.to(x.dtype)
        self.squares = torch.linalg.vecdot(self.rows, self.rows)


@dataclass(frozen=True)
class _Moments:
    """Sums over n rows of x `(p,)` and y `(q,)`, both about their means, with a = |x|^2 and b = |y|^2."""

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
    def of(cls, x: "_Centered", y: "_Centered") -> "_Moments":
        xy = (x.narrow.T @ y.narrow).double()
        bx, ay = y.squares @ x.rows, x.squares @ y.rows
        squares = x.squares.sum(), y.squares.sum(), x.squares @ y.squares
        return cls(len(x.rows), x.mean, y.mean, *squares, bx, ay, xy)

    def shifted(self, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The sums (a, b, ab, bx, ay, xy) of x + u and y + v; the means are 0, so that half of the terms vanish."""
        uu, vv = u @ u, v @ v
        a, b = self.a + self.n * uu, self.b + self.n * vv
        ab = self.ab + 2 * (self.bx @ u + self.ay @ v) + 4 * (u @ self.xy @ v) + self.a * vv + b * uu
        bx = self.bx + 2 * (self.xy @ v) + b * u
        ay = self.ay + 2 * (u @ self.xy) + a * v
        return a, b, ab, bx, ay, self.xy + self.n * torch.outer(u, v)

    def __add__(self, other: "_Moments") -> "_Moments":
        """The moments of both sets of rows, about their joint mean (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        mean_x = self.mean_x + (other.mean_x - self.mean_x) * (other.n / n)
        mean_y = self.mean_y + (other.mean_y - self.mean_y) * (other.n / n)
        both = (part.shifted(part.mean_x - mean_x, part.mean_y - mean_y) for part in (self, other))
        return _Moments(n, mean_x, mean_y, *(left + right for left, right in zip(*both, strict=True)))


class StreamingLinearHSIC:
    """Linear HSIC of all rows of a stream, equal to `hsic(x, y)` on the rows put together, in O(p q) memory.

    The unbiased estimator needs, beside the cross-covariance, sums of `|x|^2 |y|^2` about the mean; chunks of any
    sizes in any order give the same answer, also where the mean drifts or is far from 0. Sums are float64; only the
    product of a centered chunk with another is formed in the dtype of the rows. No gradient flows.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._moments: _Moments | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in rows `(n, p)`, `(n, q)`, n >= 1. Raises ValueError or TypeError as `hsic` does."""
        x, y = (z.detach() for z in paired_samples(x, y, at_least=1))
        with no_autocast(x):
            self._add(_Centered(x), _Centered(y))

    def _add(self, x: _Centered, y: _Centered) -> None:
        chunk = _Moments.of(x, y)
        if self._moments is not None and self._moments.xy.shape != chunk.xy.shape:
            before, now = tuple(self._moments.xy.shape), tuple(chunk.xy.shape)
            raise ValueError(f"x and y had {before} columns in the chunks before, now {now}")
        self._moments = chunk if self._moments is None else self._moments + chunk

    def compute(self, estimator: str = "biased") -> Tensor:
        """HSIC of all rows so far, a float64 0-d tensor. Raises ValueError for fewer than 2 (unbiased: 4) rows."""
        unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
        n, least = 0 if self._moments is None else self._moments.n, 4 if unbiased else 2
        if n < least:
            raise ValueError(f"needs at least {least} rows, got {n}")
        m = self._moments
        total = m.xy.square().sum()
        if not unbiased:
            return total / n**2
        # Song et al. 2012, eq. 5: about the mean the row sums K~1 are -a and L~1 are -b.
        return (total - m.ab * (n / (n - 2)) + m.a * m.b / ((n - 1) * (n - 2))) / (n * (n - 3))
