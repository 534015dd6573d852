"""The Hilbert-Schmidt Independence Criterion on samples: three estimators, three routes to each number.

How to choose. `"biased"` is the loss and the test statistic: never negative, about 1/n too large. `"unbiased"` is the
measurement: comparable between sample sizes, negative about half of the time at independence. `"block"` is unbiased
in O(n block_size) instead of O(n^2), with a larger variance. A million rows: `streaming.StreamingLinearHSIC` for linear
kernels, `hsic(factor(kernel_x, x), factor(kernel_y, y))` with `lowrank.factor` for the others.
"""

import torch
from torch import Tensor

from hsic_lab.checks import full_precision, one_of
from hsic_lab.kernels import Kernel, Linear
from hsic_lab.tiled import from_sums, tiled_hsic

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
      mean embedding of the n pairs and that of all n^2 re-pairings. With linear kernels on standardised columns it is
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
    one_of(estimator, ("biased", "unbiased", "block"), "estimator")
    kernel_x, kernel_y = kernel_x or Linear(), kernel_y or Linear()
    x, y = paired(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    _check_block_size(block_size, estimator, len(x))
    linear = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear)
    if one_of(route, ("auto", "primal", "dual", "tiled"), "route") == "primal" and not linear:
        raise ValueError(f"the primal route needs two linear kernels, got {kernel_x!r} and {kernel_y!r}")
    with full_precision(x):
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
